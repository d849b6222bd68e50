//! `caption_stream`: the bytes of a picture to a caption, piece by piece as it is said.
//!
//! A decoupled model cannot be a step of an ensemble that answers once, so this stage
//! has both of what `caption` does in two: the picture's preprocessing and the captioner,
//! the same code.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use imprompt_caption::Told;
use imprompt_error::{Error, Result};
use imprompt_graph::CaptionFacts;
use serde::{Deserialize, Serialize};

use crate::captioner::{CaptionerFile, CaptionerModel, CaptionerStage};
use crate::preprocess::{PreprocessFile, PreprocessModel};
use crate::{
    Parameters, Placement, Request, Response, Signature, Sink, Slots, Stage, StageKind, StageModel,
    Tensor,
};

/// The stage file of `caption_stream`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptionStreamFile {
    /// What the graphs of this folder are.
    pub facts: CaptionFacts,
    /// The captioner's preprocessor_config.json.
    pub caption_preprocessor: String,
}

pub(crate) struct CaptionStreamModel {
    shared: Arc<Shared>,
    signature: Signature,
}

/// What the instances share.
struct Shared {
    preprocess: PreprocessModel,
    /// One picture is decoded at a time, however many instances there are: memory for more would
    /// gain little. None while it is in use, and after a panic.
    decoding: Mutex<Option<Box<dyn Stage>>>,
    captioner: CaptionerModel,
}

impl CaptionStreamModel {
    pub(crate) fn open(
        folder: &Path,
        file: CaptionStreamFile,
        parameters: &Parameters,
    ) -> Result<Self> {
        let preprocess = PreprocessFile {
            clip_preprocessor: None,
            caption_preprocessor: Some(file.caption_preprocessor),
        };
        let captioner = CaptionerFile { facts: file.facts };
        let shared = Shared {
            preprocess: PreprocessModel::open(folder, &preprocess, parameters)?,
            decoding: Mutex::default(),
            captioner: CaptionerModel::open(folder, captioner, parameters)?,
        };
        let signature = StageKind::CaptionStream.signature();
        Ok(CaptionStreamModel { shared: Arc::new(shared), signature })
    }
}

impl StageModel for CaptionStreamModel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn instance(&self, placement: Placement) -> Result<Box<dyn Stage>> {
        Ok(Box::new(CaptionStream { shared: self.shared.clone(), captioner: None, placement }))
    }

    fn slots(&self) -> Option<&Slots> {
        self.shared.captioner.slots()
    }
}

struct CaptionStream {
    shared: Arc<Shared>,
    /// Opened by the first request: who never streams has no second captioner in memory.
    captioner: Option<CaptionerStage>,
    placement: Placement,
}

impl Stage for CaptionStream {
    fn execute(&mut self, requests: &[Request<'_>]) -> Vec<Result<Response>> {
        let mut ends = Ends(Vec::new());
        ends.0.resize_with(requests.len(), || Err(Error::internal("a picture was left out")));
        self.run(requests, &mut ends, false);
        ends.0
    }

    fn stream(&mut self, requests: &[Request<'_>], sink: &mut dyn Sink) {
        self.run(requests, sink, true);
    }
}

/// The last response of each request.
struct Ends(Vec<Result<Response>>);

impl Sink for Ends {
    fn send(&mut self, _: usize, _: Response) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, request: usize, outcome: Result<Response>) {
        self.0[request] = outcome;
    }
}

/// What one request has been told.
#[derive(Default)]
struct Telling {
    ids: Vec<u32>,
    /// The text that was sent.
    sent: String,
    /// Why no more can be sent.
    failure: Option<Error>,
    is_done: bool,
}

impl CaptionStream {
    /// Answers `requests`; in pieces or, else, with the whole caption as the last response.
    fn run(&mut self, requests: &[Request<'_>], sink: &mut dyn Sink, in_pieces: bool) {
        // The requests that have pixels, and these.
        let (mut alive, mut pixels) = (Vec::new(), Vec::new());
        for (index, outcome) in self.shared.pixels(requests).into_iter().enumerate() {
            match outcome {
                Ok(tensor) => {
                    alive.push(index);
                    pixels.push(tensor);
                }
                Err(error) => sink.end(index, Err(error)),
            }
        }
        if alive.is_empty() {
            return;
        }
        let captioner = match &mut self.captioner {
            Some(captioner) => captioner,
            closed => match self.shared.captioner.stage(self.placement) {
                Ok(captioner) => closed.insert(captioner),
                Err(error) => {
                    alive.into_iter().for_each(|index| sink.end(index, Err(error.clone())));
                    return;
                }
            },
        };
        let asked: Vec<Request<'_>> = alive
            .iter()
            .zip(&pixels)
            .map(|(&index, pixels)| {
                let request = &requests[index];
                let others = request.inputs.iter().filter(|tensor| tensor.name != "image");
                let mut inputs = vec![pixels.renamed("pixel_values")];
                inputs.extend(others.map(|tensor| tensor.renamed(&tensor.name)));
                Request { batch: 1, inputs, outputs: None, cancellation: request.cancellation }
            })
            .collect();
        let tokenizer = captioner.tokenizer();
        let mut tellings: Vec<Telling> = alive.iter().map(|_| Telling::default()).collect();
        let mut tell = |request: usize, told: Told<'_>| {
            let (index, telling) = (alive[request], &mut tellings[request]);
            match told {
                Told::Token(id) => {
                    telling.ids.push(id);
                    if in_pieces && telling.failure.is_none() {
                        let told = tokenizer
                            .settled(&telling.ids)
                            .and_then(|text| telling.piece(text))
                            .and_then(|piece| match piece.is_empty() {
                                true => Ok(()),
                                false => sink.send(index, response(piece)),
                            });
                        telling.failure = told.err();
                    }
                }
                Told::End(outcome) => {
                    let outcome = match (telling.failure.take(), outcome) {
                        (Some(error), _) => Err(error),
                        (None, Err(error)) => Err(error.clone()),
                        (None, Ok(generated)) => tokenizer
                            .caption(&generated.ids)
                            .and_then(|text| telling.piece(text))
                            .map(response),
                    };
                    telling.is_done = true;
                    sink.end(index, outcome);
                }
            }
        };
        let outcomes = captioner.run(&asked, Some(&mut tell));
        // Those that were refused before anything was computed.
        for ((index, telling), outcome) in alive.into_iter().zip(tellings).zip(outcomes) {
            if !telling.is_done {
                sink.end(index, outcome);
            }
        }
    }
}

impl Shared {
    /// The pixel values of each request's one picture.
    fn pixels(&self, requests: &[Request<'_>]) -> Vec<Result<Tensor<'static>>> {
        requests.iter().map(|request| self.pixels_of(request)).collect()
    }

    fn pixels_of(&self, request: &Request<'_>) -> Result<Tensor<'static>> {
        if request.batch != 1 {
            return Err(Error::invalid(format!(
                "input `image`: {} pictures, 1 a stream is allowed",
                request.batch
            )));
        }
        let inputs = request.input("image").map(|image| image.renamed("image"));
        let request = Request {
            batch: 1,
            inputs: inputs.into_iter().collect(),
            outputs: None,
            cancellation: request.cancellation,
        };
        let mut decoding = self.decoding.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stage = match decoding.take() {
            Some(stage) => stage,
            None => self.preprocess.instance(Placement::Cpu)?,
        };
        let response = stage.execute(&[request]).pop();
        *decoding = Some(stage);
        drop(decoding);
        let lost = || Err(Error::internal("a picture was left out"));
        let mut response = response.unwrap_or_else(lost)?;
        response.pop().ok_or_else(|| Error::internal("a picture has no pixels"))
    }
}

impl Telling {
    /// What of `text` was not sent, and is now.
    fn piece(&mut self, text: String) -> Result<String> {
        let piece = text
            .strip_prefix(&*self.sent)
            .ok_or_else(|| Error::internal("a caption does not begin as it was told"))?
            .to_owned();
        self.sent = text;
        Ok(piece)
    }
}

fn response(piece: String) -> Response {
    vec![Tensor::texts("caption", vec![piece])]
}
