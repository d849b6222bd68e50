//! One instance's stage, built again when it panics.

use std::sync::Arc;

use imprompt_error::{Error, Kind, Result};
use imprompt_stage::{Request, Stage, StageModel, Tensor};

use crate::{catch, wanted_outputs};

/// What became of a batch.
pub struct Outcome {
    /// One result a request, in their order: the outputs that it wants.
    pub results: Vec<Result<Vec<Tensor<'static>>>>,
    /// True when the stage panicked or lost count, and was built again.
    pub rebuilt: bool,
}

/// A stage and the model to build it from again.
pub struct Worker {
    model: Arc<dyn StageModel>,
    stage: Option<Box<dyn Stage>>,
}

impl Worker {
    /// A worker of `model`.
    ///
    /// # Errors
    /// Those of [`StageModel::instance`]; a panic in it too.
    pub fn new(model: Arc<dyn StageModel>) -> Result<Self> {
        let stage = Some(build(&*model)?);
        Ok(Worker { model, stage })
    }

    /// Executes one batch. Whatever the stage does, every request has its result.
    pub fn execute(&mut self, requests: &[Request<'_>]) -> Outcome {
        if self.stage.is_none() {
            self.stage = build(&*self.model).ok();
        }
        let Some(stage) = &mut self.stage else {
            let error = Error::unavailable("the model's worker could not be built again");
            return Outcome { results: vec![Err(error); requests.len()], rebuilt: false };
        };
        let run = catch("execute", || {
            let responses = stage.execute(requests);
            if responses.len() == requests.len() {
                return Ok(responses);
            }
            Err(Error::internal(format!(
                "the stage answered {} of {} requests",
                responses.len(),
                requests.len()
            )))
        });
        match run {
            Ok(responses) => {
                let signature = self.model.signature();
                let check = |(response, request): (Result<_>, _)| {
                    response.and_then(|response| wanted_outputs(response, request, signature))
                };
                let results = responses.into_iter().zip(requests).map(check).collect();
                Outcome { results, rebuilt: false }
            }
            Err(error) => {
                // Half-done state must not meet the next request. Built at once,
                // so that the next batch does not wait for it; and again then, should it fail.
                let old = self.stage.take();
                let _ = catch("drop", || {
                    drop(old);
                    Ok(())
                });
                self.stage = build(&*self.model).ok();
                Outcome { results: vec![Err(error); requests.len()], rebuilt: true }
            }
        }
    }
}

fn build(model: &dyn StageModel) -> Result<Box<dyn Stage>> {
    catch("instance", || model.instance()).map_err(|error| match error.kind() {
        Kind::Internal => error.context("the model's worker"),
        _ => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use imprompt_error::Uncancellable;
    use imprompt_stage::{Data, Response, Signature, StageKind};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Repeats its text; some texts make it misbehave.
    struct Parrot {
        signature: Signature,
        built: AtomicUsize,
        most: usize,
    }

    impl StageModel for Parrot {
        fn signature(&self) -> &Signature {
            &self.signature
        }

        fn instance(&self) -> Result<Box<dyn Stage>> {
            match self.built.fetch_add(1, Ordering::Relaxed) {
                built if built < self.most => Ok(Box::new(ParrotStage)),
                _ => Err(Error::unavailable("no more")),
            }
        }
    }

    struct ParrotStage;

    impl Stage for ParrotStage {
        fn execute(&mut self, requests: &[Request<'_>]) -> Vec<Result<Response>> {
            let texts = requests.iter().map(|request| match &request.inputs[0].data {
                Data::Bytes(values) => String::from_utf8_lossy(&values[0]).into_owned(),
                _ => String::new(),
            });
            let mut responses = Vec::new();
            for text in texts {
                match text.as_str() {
                    "panic" => panic!("as told"),
                    "lose" => continue,
                    "bad" => responses.push(Err(Error::invalid("input `text`: bad"))),
                    _ => responses.push(Ok(vec![Tensor::texts("caption", vec![text])])),
                }
            }
            responses
        }
    }

    fn parrot(most: usize) -> Arc<Parrot> {
        let signature = StageKind::Captioner.signature();
        Arc::new(Parrot { signature, built: AtomicUsize::new(0), most })
    }

    fn kinds(worker: &mut Worker, texts: &[&str]) -> (Vec<Option<Kind>>, bool) {
        let requests: Vec<Request<'_>> = texts
            .iter()
            .map(|text| Request {
                batch: 1,
                inputs: vec![Tensor::texts("text", vec![(*text).to_owned()])],
                outputs: None,
                cancellation: &Uncancellable,
            })
            .collect();
        let outcome = worker.execute(&requests);
        let kinds = outcome.results.iter().map(|r| r.as_ref().err().map(Error::kind)).collect();
        (kinds, outcome.rebuilt)
    }

    #[test]
    fn a_bad_request_fails_alone() {
        let mut worker = Worker::new(parrot(1)).unwrap();
        let expected = vec![None, Some(Kind::InvalidInput), None];
        assert_eq!(kinds(&mut worker, &["a", "bad", "b"]), (expected, false));
    }

    #[test]
    fn a_panic_costs_its_batch_and_the_worker_is_built_again() {
        let model = parrot(3);
        let mut worker = Worker::new(model.clone()).unwrap();
        let internal = Some(Kind::Internal);
        assert_eq!(kinds(&mut worker, &["a", "panic"]), (vec![internal; 2], true));
        assert_eq!(kinds(&mut worker, &["a"]), (vec![None], false));
        assert_eq!(kinds(&mut worker, &["a", "lose"]), (vec![internal; 2], true));
        assert_eq!(model.built.load(Ordering::Relaxed), 3);
        // A fourth cannot be built: said, and tried again each time.
        assert_eq!(kinds(&mut worker, &["panic"]), (vec![internal], true));
        assert_eq!(kinds(&mut worker, &["a"]), (vec![Some(Kind::Unavailable)], false));
        assert_eq!(model.built.load(Ordering::Relaxed), 5);
    }
}
