//! `caption_stream` of a built repository, run in this process.

use std::path::Path;

use imprompt_error::{Cancellation, Error, Result};
use imprompt_stage::{
    Data, Parameters, Request, Response, Sink, Stage, StageKind, StageModel, Tensor,
};

use crate::layout::{self, VERSION};

/// The stage, opened.
pub struct CaptionStream {
    /// Declared before the model it was made by, so that it is dropped first.
    instance: Box<dyn Stage>,
    _model: Box<dyn StageModel>,
}

impl CaptionStream {
    /// Opens the stage of `repository`.
    ///
    /// # Errors
    /// [`imprompt_error::Kind::NotFound`] when there is no such repository, or it was
    /// built without this stage; and what opening a stage fails with.
    pub fn open(repository: &Path, parameters: &Parameters) -> Result<Self> {
        let name = StageKind::CaptionStream.name();
        let manifest = crate::Manifest::read(repository)?;
        if !manifest.stages.iter().any(|stage| stage == name) {
            return Err(Error::not_found(format!(
                "{}: built without `{name}`; it has {}",
                repository.display(),
                manifest.stages.join(", ")
            )));
        }
        let folder = repository.join(name).join(VERSION);
        let model = imprompt_stage::open(&folder, parameters)
            .map_err(|error| error.context(layout::shown(&folder)))?;
        Ok(CaptionStream { instance: model.instance(parameters.placement)?, _model: model })
    }

    /// Captions the picture among `inputs`, and tells every piece of the caption as it comes.
    ///
    /// # Errors
    /// The error of the stage; pieces may have been told before.
    pub fn run(
        &mut self,
        inputs: Vec<Tensor<'static>>,
        cancellation: &dyn Cancellation,
        tell: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        let mut pieces = Pieces { tell, outcome: Err(Error::internal("no answer")) };
        let request = Request { batch: 1, inputs, outputs: None, cancellation };
        self.instance.stream(&[request], &mut pieces);
        pieces.outcome
    }
}

struct Pieces<'a> {
    tell: &'a mut dyn FnMut(&str) -> Result<()>,
    outcome: Result<()>,
}

impl Sink for Pieces<'_> {
    fn send(&mut self, _: usize, response: Response) -> Result<()> {
        for tensor in &response {
            let Data::Bytes(values) = &tensor.data else { continue };
            for value in values {
                (self.tell)(&String::from_utf8_lossy(value))?;
            }
        }
        Ok(())
    }

    fn end(&mut self, request: usize, outcome: Result<Response>) {
        self.outcome = outcome.and_then(|response| self.send(request, response));
    }
}
