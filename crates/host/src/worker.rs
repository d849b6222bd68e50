//! One instance's stage, built again when it panics.

use std::sync::Arc;

use imprompt_error::{Error, Kind, Result};
use imprompt_stage::{Placement, Request, Response, Signature, Sink, Stage, StageModel, Tensor};

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
    placement: Placement,
    stage: Option<Box<dyn Stage>>,
}

impl Worker {
    /// A worker of `model` that computes where `placement` says.
    ///
    /// # Errors
    /// Those of [`StageModel::instance`]; a panic in it too.
    pub fn new(model: Arc<dyn StageModel>, placement: Placement) -> Result<Self> {
        let stage = Some(build(&*model, placement)?);
        Ok(Worker { model, placement, stage })
    }

    /// Executes one batch. Whatever the stage does, every request has its result.
    pub fn execute(&mut self, requests: &[Request<'_>]) -> Outcome {
        let (run, rebuilt) = self.run(|stage| {
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
        let results = match run {
            Ok(responses) => {
                let signature = self.model.signature();
                let check = |(response, request): (Result<_>, _)| {
                    response.and_then(|response| wanted_outputs(response, request, signature))
                };
                responses.into_iter().zip(requests).map(check).collect()
            }
            Err(error) => vec![Err(error); requests.len()],
        };
        Outcome { results, rebuilt }
    }

    /// Executes one batch of a decoupled stage. Whatever the stage does, `sink` is told the
    /// end of every request exactly once, and nothing of a request after its end. True
    /// when the stage panicked and was built again.
    pub fn stream(&mut self, requests: &[Request<'_>], sink: &mut dyn Sink) -> bool {
        let model = self.model.clone();
        let signature = model.signature();
        let mut watched = Watched { requests, signature, sink, ended: vec![false; requests.len()] };
        let (run, rebuilt) = self.run(|stage| {
            stage.stream(requests, &mut watched);
            Ok(())
        });
        let lost = || Error::internal("the stage left a request out");
        for request in 0..requests.len() {
            if !watched.ended[request] {
                watched.end(request, Err(run.as_ref().err().cloned().unwrap_or_else(lost)));
            }
        }
        rebuilt
    }

    /// Lets the stage run; and true when it panicked or `run` failed, and it was built again.
    fn run<T>(&mut self, run: impl FnOnce(&mut dyn Stage) -> Result<T>) -> (Result<T>, bool) {
        if self.stage.is_none() {
            self.stage = build(&*self.model, self.placement).ok();
        }
        let Some(stage) = &mut self.stage else {
            return (Err(Error::unavailable("the model's worker could not be built again")), false);
        };
        let outcome = catch("execute", || run(&mut **stage));
        if outcome.is_ok() {
            return (outcome, false);
        }
        // Half-done state must not meet the next request. Built at once,
        // so that the next batch does not wait for it; and again then, should it fail.
        let old = self.stage.take();
        let _ = catch("drop", || {
            drop(old);
            Ok(())
        });
        self.stage = build(&*self.model, self.placement).ok();
        (outcome, true)
    }
}

/// A sink that holds a stage to its word.
struct Watched<'a, 'r> {
    requests: &'a [Request<'r>],
    signature: &'a Signature,
    sink: &'a mut dyn Sink,
    ended: Vec<bool>,
}

impl Sink for Watched<'_, '_> {
    fn send(&mut self, request: usize, response: Response) -> Result<()> {
        if self.ended[request] {
            return Err(Error::internal("the stage goes on after its last response"));
        }
        let response = wanted_outputs(response, &self.requests[request], self.signature)?;
        self.sink.send(request, response)
    }

    fn end(&mut self, request: usize, outcome: Result<Response>) {
        if std::mem::replace(&mut self.ended[request], true) {
            return;
        }
        let wanted = outcome
            .and_then(|outcome| wanted_outputs(outcome, &self.requests[request], self.signature));
        self.sink.end(request, wanted);
    }
}

fn build(model: &dyn StageModel, placement: Placement) -> Result<Box<dyn Stage>> {
    catch("instance", || model.instance(placement)).map_err(|error| match error.kind() {
        Kind::Internal => error.context("the model's worker"),
        _ => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use imprompt_error::Uncancellable;
    use imprompt_stage::{Data, StageKind};
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

        fn instance(&self, _placement: Placement) -> Result<Box<dyn Stage>> {
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

        /// Each text twice, and more after the end, which must come to nothing.
        fn stream(&mut self, requests: &[Request<'_>], sink: &mut dyn Sink) {
            for (index, response) in self.execute(requests).into_iter().enumerate() {
                let Ok(response) = response else { return sink.end(index, response) };
                sink.send(index, response.clone()).unwrap();
                sink.end(index, Ok(response.clone()));
                assert!(sink.send(index, response.clone()).is_err());
                sink.end(index, Ok(response));
            }
        }
    }

    fn parrot(most: usize) -> Arc<Parrot> {
        let signature = StageKind::Captioner.signature();
        Arc::new(Parrot { signature, built: AtomicUsize::new(0), most })
    }

    fn request(text: &str) -> Request<'static> {
        Request {
            batch: 1,
            inputs: vec![Tensor::texts("text", vec![text.to_owned()])],
            outputs: None,
            cancellation: &Uncancellable,
        }
    }

    fn kinds(worker: &mut Worker, texts: &[&str]) -> (Vec<Option<Kind>>, bool) {
        let requests: Vec<Request<'_>> = texts.iter().map(|text| request(text)).collect();
        let outcome = worker.execute(&requests);
        let kinds = outcome.results.iter().map(|r| r.as_ref().err().map(Error::kind)).collect();
        (kinds, outcome.rebuilt)
    }

    #[test]
    fn a_bad_request_fails_alone() {
        let mut worker = Worker::new(parrot(1), Placement::Cpu).unwrap();
        let expected = vec![None, Some(Kind::InvalidInput), None];
        assert_eq!(kinds(&mut worker, &["a", "bad", "b"]), (expected, false));
    }

    #[test]
    fn a_panic_costs_its_batch_and_the_worker_is_built_again() {
        let model = parrot(3);
        let mut worker = Worker::new(model.clone(), Placement::Cpu).unwrap();
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

    /// For each request how many responses came before its end, and of what kind that was.
    #[derive(Default)]
    struct Heard(Vec<(usize, usize, Option<Kind>)>);

    impl Sink for Heard {
        fn send(&mut self, request: usize, _: Response) -> Result<()> {
            self.0[request].0 += 1;
            Ok(())
        }

        fn end(&mut self, request: usize, outcome: Result<Response>) {
            self.0[request].1 += 1;
            self.0[request].2 = outcome.err().map(|error| error.kind());
        }
    }

    #[test]
    fn a_stream_has_one_end_whatever_the_stage_does() {
        let mut worker = Worker::new(parrot(2), Placement::Cpu).unwrap();
        let mut stream = |texts: &[&str]| {
            let requests: Vec<Request<'_>> = texts.iter().map(|text| request(text)).collect();
            let mut heard = Heard(vec![(0, 0, None); texts.len()]);
            let rebuilt = worker.stream(&requests, &mut heard);
            (heard.0, rebuilt)
        };
        assert_eq!(stream(&["a", "b"]), (vec![(1, 1, None); 2], false));
        // The stage stops at a bad one: the rest ends all the same.
        let (invalid, internal) = (Some(Kind::InvalidInput), Some(Kind::Internal));
        let expected = vec![(1, 1, None), (0, 1, invalid), (0, 1, internal)];
        assert_eq!(stream(&["a", "bad", "b"]), (expected, false));
        assert_eq!(stream(&["a", "panic"]), (vec![(0, 1, internal); 2], true));
        assert_eq!(stream(&["a"]), (vec![(1, 1, None)], false));
    }
}
