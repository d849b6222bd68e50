//! A stage behind an `invocation`: the inputs that a body asks of it stand in one text, the input
//! `invocation`. An ensemble's tensors are all there or the step does not run, so that what a
//! body does not say cannot be a tensor of its own.

use imprompt_error::{Error, Result};
use imprompt_invocation::{Answer, Asked, Value};

use crate::{
    Dtype, Placement, Request, Response, Signature, Slots, Stage, StageKind, StageModel, Tensor,
};

/// The input.
pub(crate) const INVOCATION: &str = "invocation";

/// What the input `invocation` of a request says, if it has one.
pub(crate) fn asked(request: &Request<'_>) -> Result<Option<Asked>> {
    if request.input(INVOCATION).is_none() {
        return Ok(None);
    }
    match request.bytes(INVOCATION)? {
        [text] => Asked::from_text(text).map(Some),
        texts => Err(Error::invalid(format!(
            "input `{INVOCATION}`: a batch of {}, a body is answered alone",
            texts.len()
        ))),
    }
}

/// A stage's model that takes the input `invocation`, too.
pub(crate) struct InvokedModel {
    inner: Box<dyn StageModel>,
    kind: StageKind,
}

impl InvokedModel {
    pub(crate) fn new(kind: StageKind, inner: Box<dyn StageModel>) -> Self {
        InvokedModel { inner, kind }
    }
}

impl StageModel for InvokedModel {
    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn instance(&self, placement: Placement) -> Result<Box<dyn Stage>> {
        let (inner, signature) = (self.inner.instance(placement)?, self.signature().clone());
        Ok(Box::new(Invoked { inner, kind: self.kind, signature }))
    }

    fn slots(&self) -> Option<&Slots> {
        self.inner.slots()
    }
}

struct Invoked {
    inner: Box<dyn Stage>,
    kind: StageKind,
    signature: Signature,
}

impl Stage for Invoked {
    fn execute(&mut self, requests: &[Request<'_>]) -> Vec<Result<Response>> {
        if requests.iter().all(|request| request.input(INVOCATION).is_none()) {
            return self.inner.execute(requests);
        }
        let asked: Vec<Result<Option<Asked>>> = requests.iter().map(asked).collect();
        // Nothing is asked of this stage, or a body is wrong: it does not hear of them.
        let mut answers: Vec<Option<Result<Response>>> = Vec::with_capacity(requests.len());
        let mut passed: Vec<Request<'_>> = Vec::new();
        for (request, asked) in requests.iter().zip(&asked) {
            answers.push(match asked {
                Err(error) => Some(Err(error.clone())),
                Ok(Some(asked)) if self.is_idle(asked.answer) => Some(Ok(self.nothing(request))),
                Ok(asked) => {
                    passed.push(self.passed(request, asked.as_ref()));
                    None
                }
            });
        }
        let executed = match passed[..] {
            [] => Vec::new(),
            _ => self.inner.execute(&passed),
        };
        let mut executed = executed.into_iter();
        let lost = || Err(Error::internal("a stage left a request out"));
        let mut answer = |answer: Option<Result<Response>>, place: usize| {
            answer.unwrap_or_else(|| {
                let response = executed.next().unwrap_or_else(lost)?;
                Ok(match &asked[place] {
                    Ok(Some(asked)) => self.told(response, asked.answer, &requests[place]),
                    _ => response,
                })
            })
        };
        answers.into_iter().enumerate().map(|(place, one)| answer(one, place)).collect()
    }
}

/// The crops of CLIP's picture: the interrogator's reference crops as open_clip does, that of
/// labels as transformers does.
const CLIP_PIXELS: &str = "clip_pixel_values";
const OPEN_CLIP_PIXELS: &str = "open_clip_pixel_values";
const CAPTION_PIXELS: &str = "caption_pixel_values";

impl Invoked {
    /// Whether nothing at all is to be done for that answer. The halves of a captioner know by
    /// mode negative that no caption is needed.
    fn is_idle(&self, answer: Answer) -> bool {
        match self.kind {
            StageKind::Ranker => answer != Answer::Prompt,
            StageKind::Tagger => answer == Answer::Prompt,
            _ => false,
        }
    }

    /// The response of a stage of which nothing is asked. Nobody reads it.
    fn nothing(&self, request: &Request<'_>) -> Response {
        let outputs = self.signature.outputs.iter().filter(|spec| request.wants(spec.name));
        outputs
            .map(|spec| match spec.dtype {
                Dtype::Bytes => Tensor::texts(spec.name, vec![String::new()]),
                Dtype::Fp32 => Tensor::f32(spec.name, vec![1, 1], vec![0.0]),
                Dtype::Int32 => Tensor::i32(spec.name, vec![1, 1], vec![0]),
            })
            .collect()
    }

    /// The request with the inputs that `asked` has for this stage in the place of the text. What
    /// the request has itself goes first.
    fn passed<'r>(&self, request: &'r Request<'_>, asked: Option<&'r Asked>) -> Request<'r> {
        let own = request.inputs.iter().filter(|tensor| tensor.name != INVOCATION);
        let mut inputs: Vec<Tensor<'r>> = own.map(|tensor| tensor.renamed(&tensor.name)).collect();
        let mut outputs = request.outputs.clone();
        if let Some(asked) = asked {
            let takes = |name: &str| self.signature.inputs.iter().any(|spec| spec.name == name);
            let is_prompt = asked.answer == Answer::Prompt;
            match self.kind {
                StageKind::Preprocess => outputs = Some(self.pixels(request, is_prompt)),
                StageKind::Captioner | StageKind::CaptionVision | StageKind::CaptionDecoder
                    if !is_prompt =>
                {
                    inputs.push(Tensor::texts("mode", vec!["negative".to_owned()]));
                }
                _ => {
                    let asked = asked.inputs.iter().filter(|(name, _)| takes(name));
                    inputs.extend(asked.map(|(name, value)| tensor(name, value)));
                }
            }
        }
        Request { batch: request.batch, inputs, outputs, cancellation: request.cancellation }
    }

    /// The outputs of `preprocess` that stand for those that are wanted.
    fn pixels(&self, request: &Request<'_>, is_prompt: bool) -> Vec<String> {
        let wanted = self.signature.outputs.iter().filter(|spec| request.wants(spec.name));
        let wanted = wanted.filter_map(|spec| match spec.name {
            CLIP_PIXELS if is_prompt => Some(OPEN_CLIP_PIXELS),
            CAPTION_PIXELS if !is_prompt => None,
            name => Some(name),
        });
        let mut wanted: Vec<String> = wanted.map(str::to_owned).collect();
        wanted.dedup();
        wanted
    }

    /// The response under the names that were wanted.
    fn told(&self, mut response: Response, answer: Answer, request: &Request<'_>) -> Response {
        if self.kind != StageKind::Preprocess {
            return response;
        }
        if answer == Answer::Prompt {
            if let Some(pixels) = response.iter_mut().find(|it| it.name == OPEN_CLIP_PIXELS)
                && request.wants(CLIP_PIXELS)
            {
                pixels.name = CLIP_PIXELS.into();
                if request.wants(OPEN_CLIP_PIXELS) {
                    let copy = Tensor { name: OPEN_CLIP_PIXELS.into(), ..pixels.clone() };
                    response.push(copy);
                }
            }
        } else if let Some(spec) =
            self.signature.outputs.iter().find(|it| it.name == CAPTION_PIXELS)
            && request.wants(CAPTION_PIXELS)
        {
            // The captioner is not asked, but its step wants its input.
            let sides = spec.dims.iter().map(|&size| usize::try_from(size).unwrap_or(0));
            let shape: Vec<usize> = std::iter::once(1).chain(sides).collect();
            let values = vec![0.0; shape.iter().product()];
            response.push(Tensor::f32(CAPTION_PIXELS, shape, values));
        }
        response
    }
}

fn tensor<'t>(name: &'t str, value: &Value) -> Tensor<'t> {
    match value {
        Value::Text(text) => Tensor::texts(name, vec![text.clone()]),
        Value::Texts(texts) => {
            let values = texts.iter().map(|text| text.clone().into_bytes().into()).collect();
            Tensor::bytes(name, vec![1, texts.len()], values)
        }
        Value::Whole(value) => Tensor::i32(name, vec![1, 1], vec![*value]),
        Value::Real(value) => Tensor::f32(name, vec![1, 1], vec![*value]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Data;
    use imprompt_error::Uncancellable;

    /// Answers every wanted output with zeros, and keeps what it was asked.
    struct Fake {
        signature: Signature,
        seen: std::sync::mpsc::Sender<(Vec<String>, Option<Vec<String>>)>,
    }

    impl Stage for Fake {
        fn execute(&mut self, requests: &[Request<'_>]) -> Vec<Result<Response>> {
            let answer = |request: &Request<'_>| {
                let said = request.inputs.iter().map(|tensor| match &tensor.data {
                    Data::Bytes(values) => format!("{}={}", tensor.name, values.len()),
                    Data::I32(values) => format!("{}={values:?}", tensor.name),
                    data => format!("{}={:?}", tensor.name, data.floats().unwrap().unwrap()),
                });
                self.seen.send((said.collect(), request.outputs.clone())).unwrap();
                let outputs = self.signature.outputs.iter().filter(|it| request.wants(it.name));
                Ok(outputs.map(|it| Tensor::f32(it.name, vec![1, 1], vec![0.0])).collect())
            };
            requests.iter().map(answer).collect()
        }
    }

    type Seen = std::sync::mpsc::Receiver<(Vec<String>, Option<Vec<String>>)>;

    fn stage(kind: StageKind) -> (Invoked, Seen) {
        let mut signature = kind.signature();
        signature.set_dims(CAPTION_PIXELS, &[3, 2, 2]);
        let (seen, receiver) = std::sync::mpsc::channel();
        let inner = Box::new(Fake { signature: signature.clone(), seen });
        (Invoked { inner, kind, signature }, receiver)
    }

    fn request(text: &str, own: Vec<Tensor<'static>>) -> Request<'static> {
        let mut inputs = own;
        if !text.is_empty() {
            inputs.push(Tensor::texts(INVOCATION, vec![text.to_owned()]));
        }
        Request { batch: 1, inputs, outputs: None, cancellation: &Uncancellable }
    }

    const PROMPT: &str = r#"{"answer":"prompt","inputs":[["mode",{"text":"fast"}],["max_new_tokens",{"whole":7}],["top_k",{"whole":2}],["min_flavors",{"whole":1}]]}"#;
    const LABELS: &str =
        r#"{"answer":"labels","inputs":[["labels",{"texts":["a","b"]}],["top_k",{"whole":1}]]}"#;

    #[test]
    fn a_stage_hears_of_what_is_asked_of_it() {
        for (kind, text, heard) in [
            (StageKind::Captioner, PROMPT, vec!["mode=1", "max_new_tokens=[7]", "top_k=[2]"]),
            (StageKind::Captioner, LABELS, vec!["mode=1"]),
            (StageKind::CaptionVision, PROMPT, vec!["mode=1"]),
            (StageKind::Ranker, PROMPT, vec!["mode=1", "min_flavors=[1]"]),
            (StageKind::Tagger, LABELS, vec!["labels=2", "top_k=[1]"]),
        ] {
            let (mut stage, seen) = stage(kind);
            assert!(stage.execute(&[request(text, vec![])])[0].is_ok());
            assert_eq!(seen.recv().unwrap().0, heard, "{kind:?}");
        }
    }

    #[test]
    fn a_stage_of_which_nothing_is_asked_is_not_called() {
        for (kind, text) in [(StageKind::Ranker, LABELS), (StageKind::Tagger, PROMPT)] {
            let (mut stage, seen) = stage(kind);
            let outputs = stage.signature.outputs.len();
            let own = vec![Tensor::i32("top_k", vec![1, 1], vec![9])];
            let requests = [request(text, vec![]), request("", own), request("ZOOM", vec![])];
            let answers = stage.execute(&requests);
            assert_eq!(answers[0].as_ref().unwrap().len(), outputs);
            assert_eq!(answers[1].as_ref().unwrap().len(), outputs);
            assert!(answers[2].as_ref().unwrap_err().message().starts_with("input `invocation`"));
            assert_eq!(seen.try_iter().map(|(said, _)| said).collect::<Vec<_>>(), [["top_k=[9]"]]);
        }
    }

    #[test]
    fn pixels_are_cropped_as_the_answers_reference_does() {
        let (mut stage, seen) = stage(StageKind::Preprocess);
        let wanted = vec![CLIP_PIXELS.to_owned(), CAPTION_PIXELS.to_owned()];
        let mut names = |text| {
            let request = Request { outputs: Some(wanted.clone()), ..request(text, vec![]) };
            let response = stage.execute(&[request]).remove(0).unwrap();
            let asked = seen.recv().unwrap().1.unwrap();
            (
                asked,
                response.into_iter().map(|it| (it.name.to_string(), it.shape)).collect::<Vec<_>>(),
            )
        };
        let told = |caption: &[usize]| {
            vec![
                (CLIP_PIXELS.to_owned(), vec![1, 1]),
                (CAPTION_PIXELS.to_owned(), caption.to_vec()),
            ]
        };
        let asked = [OPEN_CLIP_PIXELS, CAPTION_PIXELS].map(str::to_owned).to_vec();
        assert_eq!(names(PROMPT), (asked, told(&[1, 1])));
        assert_eq!(names(LABELS), (vec![CLIP_PIXELS.to_owned()], told(&[1, 3, 2, 2])));
        assert_eq!(names("").0, wanted);
    }
}
