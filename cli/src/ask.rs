//! Asking an ensemble: of a server over HTTP, or of a repository in this process.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use imprompt_error::Uncancellable;
use imprompt_kserve::{Client, InferRequest, InferResponse, Values};
use imprompt_repository::InProcess;
use imprompt_stage::{Data, GpuEngine, Parameters, Placement, Response, Tensor};
use serde_json::{Map, Value};

use crate::arguments::{Generation, RunEngine, Where};
use crate::installed;
use crate::sagemaker::invoke::Endpoint;
use crate::talk::{Failure, Result};

/// Requests a server is given at the same time, for its dynamic batching.
const SERVER_CONCURRENCY: usize = 4;

/// How long a server may take to say that it lives.
const CONNECT: Duration = Duration::from_secs(10);

/// The tensors of one request: name, and values of the one item.
#[derive(Clone, Debug, Default)]
pub struct Question(Vec<Tensor<'static>>);

impl Question {
    /// About a picture.
    pub fn picture(bytes: Vec<u8>) -> Self {
        Question(vec![Tensor::bytes("image", vec![1, 1], vec![bytes.into()])])
    }

    /// With a text, if there is one.
    #[must_use]
    pub fn text(self, name: &'static str, text: Option<&str>) -> Self {
        match text {
            Some(text) => self.texts(name, &[text.to_owned()]),
            None => self,
        }
    }

    /// With a list of texts, if there are any.
    #[must_use]
    pub fn texts(mut self, name: &'static str, texts: &[String]) -> Self {
        if !texts.is_empty() {
            let values = texts.iter().map(|text| text.clone().into_bytes().into()).collect();
            self.0.push(Tensor::bytes(name, vec![1, texts.len()], values));
        }
        self
    }

    /// With a number, if there is one.
    #[must_use]
    pub fn number(mut self, name: &'static str, number: Option<i32>) -> Self {
        if let Some(number) = number {
            self.0.push(Tensor::i32(name, vec![1, 1], vec![number]));
        }
        self
    }

    /// With a number that need not be whole, if there is one.
    #[must_use]
    pub fn real(mut self, name: &'static str, number: Option<f32>) -> Self {
        if let Some(number) = number {
            self.0.push(Tensor::f32(name, vec![1, 1], vec![number]));
        }
        self
    }

    /// With what is said about how a caption is generated.
    #[must_use]
    pub fn generation(self, said: &Generation) -> Self {
        self.number("max_new_tokens", said.max_new_tokens)
            .number("min_new_tokens", said.min_new_tokens)
            .number("num_beams", said.num_beams)
            .real("temperature", said.temperature)
            .number("top_k", said.top_k)
            .real("top_p", said.top_p)
            .number("seed", said.seed)
            .real("repetition_penalty", said.repetition_penalty)
            .real("length_penalty", said.length_penalty)
            .number("no_repeat_ngram_size", said.no_repeat_ngram_size)
    }

    /// The tensors, for a stage.
    pub fn tensors(&self) -> Vec<Tensor<'static>> {
        self.0.clone()
    }

    /// The inputs for Triton's generate extension: a simple value each, pictures as base64.
    pub fn to_generate(&self) -> Map<String, Value> {
        let value = |tensor: &Tensor<'_>| match &tensor.data {
            Data::F32(values) => values.first().map(|value| Value::from(*value)),
            Data::Held(_) => None,
            Data::I32(values) => values.first().map(|value| Value::from(*value)),
            Data::Bytes(values) if tensor.name == "image" => {
                values.first().map(|value| STANDARD.encode(value).into())
            }
            Data::Bytes(values) => {
                values.first().map(|value| String::from_utf8_lossy(value).into_owned().into())
            }
        };
        let values = self.0.iter();
        values.filter_map(|tensor| Some((tensor.name.to_string(), value(tensor)?))).collect()
    }

    fn to_wire(&self) -> InferRequest {
        self.0.iter().fold(InferRequest::new(), |request, tensor| {
            let shape: Vec<i64> = tensor.shape.iter().map(|&size| size as i64).collect();
            let values = match &tensor.data {
                // A question is made of values on the host.
                Data::Held(_) => return request,
                Data::F32(values) => Values::F32(values.to_vec()),
                Data::I32(values) => Values::I32(values.to_vec()),
                Data::Bytes(values) => Values::Bytes(values.iter().map(|v| v.to_vec()).collect()),
            };
            request.tensor(&tensor.name, shape, values)
        })
    }
}

/// The answer to a question.
#[derive(Clone, Debug)]
pub struct Answer(Response);

impl Answer {
    /// The texts of an output.
    pub fn texts(&self, name: &str) -> Result<Vec<String>> {
        match &self.tensor(name)?.data {
            Data::Bytes(values) => {
                Ok(values.iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect())
            }
            other => Err(wrong_type(name, &other.dtype().to_string(), "BYTES")),
        }
    }

    /// The one text of an output.
    pub fn text(&self, name: &str) -> Result<String> {
        self.texts(name)?.pop().ok_or_else(|| Failure::new(format!("output `{name}` is empty")))
    }

    /// The numbers of an output.
    pub fn numbers(&self, name: &str) -> Result<&[f32]> {
        let data = &self.tensor(name)?.data;
        data.floats()?.ok_or_else(|| wrong_type(name, &data.dtype().to_string(), "FP32"))
    }

    /// The one number of an output.
    pub fn number(&self, name: &str) -> Result<f32> {
        let numbers = self.numbers(name)?;
        numbers.first().copied().ok_or_else(|| Failure::new(format!("output `{name}` is empty")))
    }

    fn tensor(&self, name: &str) -> Result<&Tensor<'static>> {
        let missing = || Failure::new(format!("the answer has no output `{name}`"));
        self.0.iter().find(|tensor| tensor.name == name).ok_or_else(missing)
    }
}

fn wrong_type(name: &str, found: &str, expected: &str) -> Failure {
    Failure::new(format!("output `{name}`: type {found}, expected {expected}"))
}

/// One ensemble, wherever it runs.
pub enum Asker {
    /// On a server.
    Server {
        /// The connection.
        client: Client,
        /// The ensemble's name.
        ensemble: &'static str,
    },
    /// In this process.
    Here(Box<InProcess>),
    /// A SageMaker endpoint.
    Endpoint(Box<Endpoint>),
}

impl Asker {
    /// Opens `ensemble` where the command line says.
    pub fn open(place: &Where, ensemble: &'static str) -> Result<Self> {
        if let Some(url) = &place.server {
            return Ok(Asker::Server { client: connect(url)?, ensemble });
        }
        let (repository, parameters) = repository(place)?;
        Ok(Asker::Here(Box::new(InProcess::open(&repository, ensemble, &parameters)?)))
    }

    /// How many questions to put at once.
    pub fn at_once(&self, in_process: usize) -> usize {
        match self {
            Asker::Server { .. } | Asker::Endpoint(_) => SERVER_CONCURRENCY,
            Asker::Here(_) => in_process,
        }
    }

    /// Milliseconds that each stage took of the last questions, in their order; nothing of a server's.
    pub fn stage_times(&self) -> Vec<(&'static str, f64)> {
        match self {
            Asker::Here(ensemble) => {
                ensemble.times().map(|(stage, took)| (stage, took.as_secs_f64() * 1e3)).collect()
            }
            Asker::Server { .. } | Asker::Endpoint(_) => Vec::new(),
        }
    }

    /// Answers each question, in order.
    pub fn ask(&mut self, questions: Vec<Question>) -> Vec<Result<Answer>> {
        match self {
            Asker::Here(ensemble) => {
                let requests = questions.into_iter().map(|question| question.0).collect();
                let answers = ensemble.run_batch(requests, &Uncancellable);
                answers.into_iter().map(|answer| Ok(Answer(answer?))).collect()
            }
            Asker::Server { client, ensemble } => {
                side_by_side(&questions, |question| call(client, ensemble, question))
            }
            Asker::Endpoint(endpoint) => {
                side_by_side(&questions, |question| answer(endpoint.infer(&question.to_wire())?))
            }
        }
    }
}

/// Each question's answer, all asked at once.
fn side_by_side(
    questions: &[Question],
    ask: impl Fn(&Question) -> Result<Answer> + Sync,
) -> Vec<Result<Answer>> {
    std::thread::scope(|scope| {
        let ask = &ask;
        let calls: Vec<_> =
            questions.iter().map(|question| scope.spawn(move || ask(question))).collect();
        let joined = calls.into_iter().map(|call| call.join());
        joined.map(|answer| answer.unwrap_or_else(|_| Err(Failure::new("a call failed")))).collect()
    })
}

/// A client of the server at `url`, which lives.
///
/// # Errors
/// When none answers there.
pub fn connect(url: &str) -> Result<Client> {
    let client = Client::new(url);
    // Answers may take minutes; whether there is a server does not.
    if Client::with_timeout(url, Some(CONNECT)).is_live() {
        return Ok(client);
    }
    Err(Failure::new(format!("no server answers at {}", client.url()))
        .hint("start one with `imprompt serve REPO`, or run in-process with --repo REPO"))
}

/// The repository that runs in this process, and how its stages shall.
///
/// # Errors
/// When there is none, or no ONNX Runtime where the command line says.
pub fn repository(place: &Where) -> Result<(PathBuf, Parameters)> {
    let parameters = Parameters {
        threads: place.threads.into(),
        onnxruntime: installed::onnxruntime(
            place.onnxruntime.as_deref(),
            place.device != Placement::Cpu,
        )?,
        placement: place.device,
        gpu_engine: match place.gpu_engine {
            RunEngine::Auto => GpuEngine::Auto,
            RunEngine::Tensorrt => GpuEngine::TensorRt,
            RunEngine::Cuda => GpuEngine::Cuda,
        },
        tensorrt: installed::tensorrt(None),
        ..Parameters::default()
    };
    Ok((installed::repository(place.repo.as_deref())?, parameters))
}

/// What a call of `model` on a server failed with, and what would help.
pub fn failed(error: &imprompt_kserve::Error, client: &Client, model: &str) -> Failure {
    let failure = Failure::new(error);
    match error.code() {
        Some(404) => failure.hint(format!(
            "the server at {} serves no `{model}`: is it one that `imprompt serve` started, \
             and was the repository built with the models that `{model}` needs?",
            client.url()
        )),
        Some(503) => failure.hint("the server is busy: ask again, or with fewer callers"),
        _ => failure,
    }
}

/// One call of a server.
fn call(client: &Client, ensemble: &str, question: &Question) -> Result<Answer> {
    let response = client
        .infer(ensemble, &question.to_wire())
        .map_err(|error| failed(&error, client, ensemble))?;
    answer(response)
}

/// A response as an answer.
fn answer(response: InferResponse) -> Result<Answer> {
    let tensors = response.outputs.into_iter().map(|tensor| {
        let shape = tensor.shape.iter().map(|&size| usize::try_from(size).unwrap_or(0)).collect();
        let data = match tensor.values {
            Values::Bytes(values) => Data::Bytes(values.into_iter().map(Into::into).collect()),
            Values::F32(values) => Data::F32(values.into()),
            Values::I32(values) => Data::I32(values.into()),
            Values::Raw { datatype, .. } => {
                return Err(wrong_type(&tensor.name, &datatype, "BYTES, FP32 or INT32"));
            }
        };
        Ok(Tensor { name: tensor.name.into(), shape, data })
    });
    Ok(Answer(tensors.collect::<Result<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_has_batch_first_shapes_and_only_what_was_given() {
        let labels = ["a".to_owned(), "b".to_owned()];
        let request = Question::picture(vec![1, 2])
            .texts("labels", &labels)
            .text("template", None)
            .text("vocabulary", Some("mediums"))
            .number("top_k", Some(3))
            .number("min_flavors", None)
            .to_wire();
        let shapes: Vec<_> = request.inputs.iter().map(|t| (&*t.name, t.shape.clone())).collect();
        let expected = [
            ("image", vec![1, 1]),
            ("labels", vec![1, 2]),
            ("vocabulary", vec![1, 1]),
            ("top_k", vec![1, 1]),
        ];
        assert_eq!(shapes, expected);
        assert_eq!(request.inputs[0].values, Values::Bytes(vec![vec![1, 2]]));
    }

    #[test]
    fn answers_are_checked() {
        let answer = Answer(vec![
            Tensor::texts("prompt", vec!["x".into()]),
            Tensor::f32("similarity", vec![1, 0], vec![]),
        ]);
        assert_eq!(answer.text("prompt").unwrap(), "x");
        assert!(answer.number("prompt").is_err());
        assert!(answer.number("similarity").is_err());
        assert!(answer.text("caption").is_err());
    }
}
