//! `answer`: what the other stages found, in the form that the body of the request asks for.

use std::borrow::Cow;

use imprompt_error::{Error, Result};
use imprompt_invocation::{Answer, labels, probabilities, prompt};
use serde::{Deserialize, Serialize};

use crate::invoked::asked;
use crate::{Placement, Request, Response, Signature, Stage, StageKind, StageModel, Tensor};

/// The stage file of `answer`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerFile {}

pub(crate) struct AnswerModel {
    signature: Signature,
}

impl AnswerModel {
    pub(crate) fn open() -> Self {
        AnswerModel { signature: StageKind::Answer.signature() }
    }
}

impl StageModel for AnswerModel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn instance(&self, _placement: Placement) -> Result<Box<dyn Stage>> {
        Ok(Box::new(Writer))
    }
}

struct Writer;

impl Stage for Writer {
    fn execute(&mut self, requests: &[Request<'_>]) -> Vec<Result<Response>> {
        requests.iter().map(answer).collect()
    }
}

fn answer(request: &Request<'_>) -> Result<Response> {
    let asked = asked(request)?.ok_or_else(|| Error::invalid("input `invocation`: missing"))?;
    let text = match asked.answer {
        Answer::Prompt => {
            let found = request.optional_texts("prompt", usize::MAX)?.ok_or_else(|| {
                Error::invalid(
                    "fields `prompt`, `labels` and `vocabulary`: one of them is needed, this model \
                     answers labels alone",
                )
            })?;
            prompt(found.first().copied().unwrap_or_default())
        }
        Answer::Probabilities => probabilities(scores(request, "probability")?),
        Answer::Labels => {
            let most = usize::MAX;
            let (_, names) = request.optional_text_lists("label", most, most)?.unwrap_or_default();
            labels(&names, scores(request, "probability")?, scores(request, "similarity")?)
        }
    };
    Ok(vec![Tensor::bytes("outputs", vec![1, 1], vec![Cow::Owned(text)])])
}

fn scores<'a>(request: &'a Request<'_>, name: &str) -> Result<&'a [f32]> {
    match request.input(name).map(|tensor| tensor.data.floats()).transpose()?.flatten() {
        Some(values) => Ok(values),
        None => Err(Error::invalid(
            "fields `prompt`, `labels` and `vocabulary`: not answered by this model, which makes \
             prompts alone",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Data;
    use imprompt_error::Uncancellable;

    fn said(inputs: Vec<Tensor<'static>>) -> Result<String> {
        let request = Request { batch: 1, inputs, outputs: None, cancellation: &Uncancellable };
        let mut response = answer(&request)?;
        let Some(Tensor { data: Data::Bytes(values), .. }) = response.pop() else {
            panic!("no bytes")
        };
        Ok(String::from_utf8(values[0].to_vec()).unwrap())
    }

    fn asking(answer: &str) -> Tensor<'static> {
        let text = format!(r#"{{"answer":"{answer}","inputs":[]}}"#);
        Tensor::texts("invocation", vec![text])
    }

    #[test]
    fn an_answer_has_the_form_that_is_asked() {
        let prompt = || Tensor::texts("prompt", vec!["a roll".to_owned()]);
        let found = || {
            let names: Vec<Cow<'static, [u8]>> = vec![b"a".into(), b"b".into()];
            vec![
                Tensor::bytes("label", vec![1, 2], names),
                Tensor::f32("probability", vec![1, 2], vec![0.75, 0.25]),
                Tensor::f32("similarity", vec![1, 2], vec![0.5, 0.0]),
            ]
        };
        let all = |answer| [vec![asking(answer), prompt()], found()].concat();
        assert_eq!(said(all("prompt")).unwrap(), r#"{"outputs":"a roll"}"#);
        assert_eq!(said(all("probabilities")).unwrap(), "[[0.75,0.25]]");
        assert!(said(all("labels")).unwrap().starts_with(r#"{"labels":[{"label":"a","#));

        let refused = |inputs| said(inputs).unwrap_err().message().to_owned();
        let no_prompt = refused([vec![asking("prompt")], found()].concat());
        assert!(no_prompt.ends_with("this model answers labels alone"), "{no_prompt}");
        let no_labels = refused(vec![asking("labels"), prompt()]);
        assert!(no_labels.ends_with("which makes prompts alone"), "{no_labels}");
        assert_eq!(refused(vec![prompt()]), "input `invocation`: missing");
    }
}
