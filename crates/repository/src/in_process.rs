//! The ensembles of a built repository, run in this process: the same stages, in
//! the order of [`imprompt_stage::ensemble::ENSEMBLES`], without a server.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use imprompt_error::{Cancellation, Error, Result};
use imprompt_stage::ensemble::{ENSEMBLES, Ensemble, Step};
use imprompt_stage::{Parameters, Request, Response, Stage, StageKind, StageModel, Tensor};

use crate::layout::{self, VERSION};

/// One ensemble with its stages opened.
pub struct InProcess {
    ensemble: &'static Ensemble,
    stages: Vec<OpenStage>,
}

struct OpenStage {
    step: &'static Step,
    /// Declared before the model it was made by, so that it is dropped first.
    instance: Box<dyn Stage>,
    _model: Box<dyn StageModel>,
    /// What the last batch took here.
    took: Duration,
}

impl InProcess {
    /// Opens the stages that `ensemble` needs in `repository`.
    ///
    /// # Errors
    /// [`imprompt_error::Kind::NotFound`] when there is no such repository, or it was
    /// built without this ensemble; and what opening a stage fails with.
    pub fn open(repository: &Path, ensemble: &str, parameters: &Parameters) -> Result<Self> {
        let manifest = crate::Manifest::read(repository)?;
        let has = |kind: StageKind| manifest.stages.iter().any(|stage| stage == kind.name());
        let found = Ensemble::all()
            .filter(|found| manifest.ensembles.iter().any(|name| name == found.name))
            .find(|found| found.name == ensemble && found.is_possible(has));
        let Some(ensemble) = found else {
            return Err(Error::not_found(format!(
                "{}: built without `{ensemble}`; it has {}",
                repository.display(),
                manifest.ensembles.join(", ")
            )));
        };
        let stages = ensemble.steps.iter().map(|step| {
            let folder = repository.join(step.stage.name()).join(VERSION);
            let model = imprompt_stage::open(&folder, parameters)
                .map_err(|error| error.context(layout::shown(&folder)))?;
            let instance = model.instance(parameters.placement)?;
            Ok(OpenStage { step, instance, _model: model, took: Duration::ZERO })
        });
        Ok(InProcess { ensemble, stages: stages.collect::<Result<_>>()? })
    }

    /// The names of every ensemble there may be.
    pub fn ensembles() -> impl Iterator<Item = &'static str> {
        ENSEMBLES.iter().map(|ensemble| ensemble.name)
    }

    /// Answers one request: `inputs` and the response under the ensemble's names.
    ///
    /// # Errors
    /// The error of the stage that refused it.
    pub fn run(
        &mut self,
        inputs: Vec<Tensor<'static>>,
        cancellation: &dyn Cancellation,
    ) -> Result<Response> {
        let none = || Err(Error::internal("no answer"));
        self.run_batch(vec![inputs], cancellation).pop().unwrap_or_else(none)
    }

    /// What each stage took of the last call, in their order.
    pub fn times(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        self.stages.iter().map(|stage| (stage.step.stage.name(), stage.took))
    }

    /// Answers several requests, the stages running them together. A request that a
    /// stage refuses goes no further; the others do.
    pub fn run_batch(
        &mut self,
        requests: Vec<Vec<Tensor<'static>>>,
        cancellation: &dyn Cancellation,
    ) -> Vec<Result<Response>> {
        let mut flows: Vec<Result<Flow>> = requests.into_iter().map(Flow::start).collect();
        for index in 0..self.stages.len() {
            let (done, rest) = self.stages.split_at_mut(index + 1);
            let Some(stage) = done.last_mut() else { continue };
            let later: Vec<&Step> = rest.iter().map(|stage| stage.step).collect();
            let started = Instant::now();
            step(stage, &later, self.ensemble, &mut flows, cancellation);
            stage.took = started.elapsed();
        }
        flows.into_iter().map(|flow| flow.map(|flow| flow.finish(self.ensemble))).collect()
    }
}

/// Runs one stage for every request that has not failed yet.
fn step(
    stage: &mut OpenStage,
    later: &[&Step],
    ensemble: &Ensemble,
    flows: &mut [Result<Flow>],
    cancellation: &dyn Cancellation,
) {
    let map = stage.step;
    let needed = |outer: &str| {
        ensemble.outputs.contains(&outer)
            || later.iter().any(|step| step.inputs.iter().any(|(_, needs)| *needs == outer))
    };
    let outputs: Vec<String> = map
        .outputs
        .iter()
        .filter(|(_, outer)| needed(outer))
        .map(|(inner, _)| (*inner).to_owned())
        .collect();
    let alive: Vec<usize> = (0..flows.len()).filter(|&index| flows[index].is_ok()).collect();
    let requests: Vec<Request<'_>> = flows
        .iter()
        .flatten()
        .map(|flow| Request {
            batch: flow.batch,
            inputs: flow.inputs(map),
            outputs: Some(outputs.clone()),
            cancellation,
        })
        .collect();
    let mut answers = if requests.is_empty() { vec![] } else { stage.instance.execute(&requests) };
    drop(requests);
    // The stage promises one answer a request; a shorter list fails the rest.
    answers.resize_with(alive.len(), || Err(Error::internal("a stage left a request out")));
    for (index, answer) in alive.into_iter().zip(answers) {
        match (answer, &mut flows[index]) {
            (Ok(response), Ok(flow)) => flow.take(map, response),
            (Err(error), flow) => *flow = Err(error),
            (Ok(_), Err(_)) => {}
        }
    }
}

/// The tensors of one request on its way, by the ensemble's names.
struct Flow {
    batch: usize,
    tensors: HashMap<String, Tensor<'static>>,
}

impl Flow {
    fn start(inputs: Vec<Tensor<'static>>) -> Result<Self> {
        let batch = inputs.first().and_then(|tensor| tensor.shape.first().copied()).unwrap_or(0);
        if batch == 0 || inputs.iter().any(|tensor| tensor.shape.first() != Some(&batch)) {
            return Err(Error::invalid("every input needs the same first dimension, 1 or more"));
        }
        let tensors = inputs.into_iter().map(|tensor| (tensor.name.to_string(), tensor));
        Ok(Flow { batch, tensors: tensors.collect() })
    }

    fn inputs(&self, step: &'static Step) -> Vec<Tensor<'_>> {
        let present = step.inputs.iter().filter_map(|(inner, outer)| {
            self.tensors.get(*outer).map(|tensor| tensor.renamed(inner))
        });
        present.collect()
    }

    fn take(&mut self, step: &Step, response: Response) {
        for mut tensor in response {
            let outer = step.outputs.iter().find(|(inner, _)| tensor.name == *inner);
            if let Some((_, outer)) = outer {
                tensor.name = Cow::Borrowed(*outer);
                self.tensors.insert((*outer).to_owned(), tensor);
            }
        }
    }

    fn finish(mut self, ensemble: &Ensemble) -> Response {
        ensemble.outputs.iter().filter_map(|name| self.tensors.remove(*name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imprompt_error::Uncancellable;
    use imprompt_stage::{Data, Placement, Signature};
    use std::sync::{Arc, Mutex};

    /// What each execution was asked: (inputs by name, outputs wanted).
    type Seen = Arc<Mutex<Vec<(Vec<String>, Vec<String>)>>>;

    /// Makes every wanted output; refuses a picture that says "bad".
    struct Fake {
        kind: StageKind,
        seen: Seen,
    }

    impl StageModel for Fake {
        fn signature(&self) -> &Signature {
            unreachable!("not asked in-process")
        }
        fn instance(&self, _placement: Placement) -> Result<Box<dyn Stage>> {
            Ok(Box::new(Fake { kind: self.kind, seen: self.seen.clone() }))
        }
    }

    impl Stage for Fake {
        fn execute(&mut self, requests: &[Request<'_>]) -> Vec<Result<Response>> {
            let answer = |request: &Request<'_>| {
                let names = request.inputs.iter().map(|tensor| tensor.name.to_string()).collect();
                let wanted = request.outputs.clone().unwrap();
                self.seen.lock().unwrap().push((names, wanted.clone()));
                if let Some(picture) = request.input("image")
                    && picture.data == Data::Bytes(vec![Cow::Borrowed(b"bad")])
                {
                    return Err(Error::invalid("input `image`: bad"));
                }
                Ok(wanted
                    .into_iter()
                    .map(|name| Tensor::f32(name, vec![1, 1], vec![1.0]))
                    .collect())
            };
            requests.iter().map(answer).collect()
        }
    }

    fn fake(ensemble: &str) -> (InProcess, Seen) {
        let ensemble = ENSEMBLES.iter().find(|found| found.name == ensemble).unwrap();
        let seen = Seen::default();
        let stages = ensemble.steps.iter().map(|step| {
            let model = Fake { kind: step.stage, seen: seen.clone() };
            let instance = model.instance(Placement::Cpu).unwrap();
            OpenStage { step, instance, _model: Box::new(model), took: Duration::ZERO }
        });
        (InProcess { ensemble, stages: stages.collect() }, seen)
    }

    fn picture(text: &str) -> Vec<Tensor<'static>> {
        vec![Tensor::texts("image", vec![text.into()])]
    }

    #[test]
    fn tensors_are_renamed_from_stage_to_stage() {
        let (mut ensemble, seen) = fake("embed_image");
        let response = ensemble.run(picture("good"), &Uncancellable).unwrap();
        assert_eq!(response.iter().map(|tensor| &*tensor.name).collect::<Vec<_>>(), ["embedding"]);
        let expected = [("image", "clip_pixel_values"), ("pixel_values", "image_embeds")]
            .map(|(input, output)| (vec![input.to_owned()], vec![output.to_owned()]));
        assert_eq!(*seen.lock().unwrap(), expected);
    }

    #[test]
    fn a_bad_picture_costs_its_own_answer_only() {
        let (mut ensemble, seen) = fake("interrogate");
        let requests = vec![picture("good"), picture("bad"), picture("fine")];
        let answers = ensemble.run_batch(requests, &Uncancellable);
        assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(answers[0].as_ref().unwrap().len(), 4);
        // Three at the first stage, two at each of the other three.
        assert_eq!(seen.lock().unwrap().len(), 3 + 2 * 3);
        assert!(ensemble.run(vec![], &Uncancellable).is_err());
    }

    #[test]
    fn optional_inputs_are_passed_on_only_when_present() {
        let (mut ensemble, seen) = fake("caption");
        let mut inputs = picture("good");
        inputs.push(Tensor::i32("max_new_tokens", vec![1, 1], vec![5]));
        ensemble.run(inputs, &Uncancellable).unwrap();
        assert_eq!(seen.lock().unwrap()[1].0, ["pixel_values", "max_new_tokens"]);
    }
}
