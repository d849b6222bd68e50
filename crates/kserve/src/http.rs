//! The protocol over HTTP.

use std::io::{BufRead as _, BufReader};
use std::time::Duration;

use serde_json::{Map, Value};
use ureq::Agent;

use crate::body;
use crate::tensor::{InferRequest, InferResponse};
use crate::{Error, Result};

const HEADER_LENGTH: &str = "inference-header-content-length";

/// Answers larger than this are refused.
const MAX_RESPONSE_BYTES: u64 = 1 << 30;

/// A client of one server. Cheap to clone; connections are kept and shared.
#[derive(Clone, Debug)]
pub struct Client {
    agent: Agent,
    base: String,
}

impl Client {
    /// A client of the server at `url`: `http://host:port`, or `host:port`.
    pub fn new(url: &str) -> Self {
        Self::with_timeout(url, None)
    }

    /// The same, with a limit on each call from its start to its last byte.
    pub fn with_timeout(url: &str, timeout: Option<Duration>) -> Self {
        let url = url.trim_end_matches('/');
        let base = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(timeout)
            .build()
            .new_agent();
        Client { agent, base }
    }

    /// The server's address.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// True when the server lives. An unreachable server does not.
    pub fn is_live(&self) -> bool {
        self.get("/v2/health/live").is_ok()
    }

    /// True when the server and all its models are ready.
    pub fn is_ready(&self) -> bool {
        self.get("/v2/health/ready").is_ok()
    }

    /// True when the model is ready.
    pub fn is_model_ready(&self, model: &str) -> bool {
        self.get(&format!("/v2/models/{model}/ready")).is_ok()
    }

    /// The server's name, version and extensions.
    pub fn server_metadata(&self) -> Result<Value> {
        self.get_json("/v2")
    }

    /// A model's inputs and outputs.
    pub fn model_metadata(&self, model: &str) -> Result<Value> {
        self.get_json(&format!("/v2/models/{model}"))
    }

    /// A model's whole configuration.
    pub fn model_config(&self, model: &str) -> Result<Value> {
        self.get_json(&format!("/v2/models/{model}/config"))
    }

    /// A model's statistics: the one entry of `model_stats`.
    pub fn statistics(&self, model: &str) -> Result<Value> {
        let mut all = self.get_json(&format!("/v2/models/{model}/stats"))?;
        Ok(all["model_stats"][0].take())
    }

    /// Every model of the server's repository, with its state and the reason for it.
    pub fn repository_index(&self) -> Result<Value> {
        json(&self.call(self.agent.post(self.at("/v2/repository/index")), &[])?.body)
    }

    /// Loads a model (model control mode `explicit`).
    pub fn load(&self, model: &str) -> Result<()> {
        let path = self.at(&format!("/v2/repository/models/{model}/load"));
        self.call(self.agent.post(path), &[]).map(drop)
    }

    /// Unloads a model (model control mode `explicit`).
    pub fn unload(&self, model: &str) -> Result<()> {
        let path = self.at(&format!("/v2/repository/models/{model}/unload"));
        self.call(self.agent.post(path), &[]).map(drop)
    }

    /// Runs a model.
    ///
    /// # Errors
    /// [`Error::Status`] with the server's own text, [`Error::Transport`], or
    /// [`Error::Protocol`] when the answer makes no sense.
    pub fn infer(&self, model: &str, request: &InferRequest) -> Result<InferResponse> {
        let (body, header_len) = request.http_body();
        let call = self
            .agent
            .post(self.at(&format!("/v2/models/{model}/infer")))
            .header("content-type", "application/octet-stream")
            .header(HEADER_LENGTH, header_len.to_string());
        let reply = self.call(call, &body)?;
        body::decode(&reply.body, reply.header_len)
    }

    /// Runs a decoupled model through Triton's generate extension: `inputs` by name, a
    /// simple value each. Every answer is a JSON object with the outputs by name.
    ///
    /// # Errors
    /// [`Error::Status`] with the server's own text when the first answer is an error;
    /// what comes later is an error of [`Events`].
    pub fn generate_stream(&self, model: &str, inputs: &Map<String, Value>) -> Result<Events> {
        let body = Value::from(inputs.clone()).to_string();
        let call = self
            .agent
            .post(self.at(&format!("/v2/models/{model}/generate_stream")))
            .header("content-type", "application/json");
        let answer = call.send(body.as_bytes());
        let answer = answer.map_err(|error| Error::Transport(error.to_string()))?;
        if !answer.status().is_success() {
            return Reply::read(Ok(answer))
                .and(Err(Error::protocol("an error without an error status")));
        }
        Ok(Events(BufReader::new(answer.into_body().into_reader())))
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn get(&self, path: &str) -> Result<Reply> {
        Reply::read(self.agent.get(self.at(path)).call())
    }

    fn get_json(&self, path: &str) -> Result<Value> {
        json(&self.get(path)?.body)
    }

    fn call(
        &self,
        call: ureq::RequestBuilder<ureq::typestate::WithBody>,
        body: &[u8],
    ) -> Result<Reply> {
        Reply::read(call.send(body))
    }
}

/// The answers of a decoupled model, as they come (server-sent events).
pub struct Events(BufReader<ureq::BodyReader<'static>>);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Iterator for Events {
    type Item = Result<Value>;

    fn next(&mut self) -> Option<Result<Value>> {
        loop {
            let mut line = String::new();
            match self.0.read_line(&mut line) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(Err(Error::Transport(error.to_string()))),
            }
            // Blank lines lie between the events.
            if let Some(data) = line.strip_prefix("data:") {
                return Some(json(data.trim().as_bytes()).and_then(event));
            }
        }
    }
}

/// An answer, unless it is an error: by then the status has been sent.
fn event(data: Value) -> Result<Value> {
    match data["error"].as_str() {
        Some(text) => Err(Error::Status { code: 500, message: text.to_owned() }),
        None => Ok(data),
    }
}

/// A successful answer.
struct Reply {
    body: Vec<u8>,
    header_len: Option<usize>,
}

impl Reply {
    fn read(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Self> {
        let transport = |error: ureq::Error| Error::Transport(error.to_string());
        let mut answer = answer.map_err(transport)?;
        let code = answer.status();
        let header_len = answer
            .headers()
            .get(HEADER_LENGTH)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse().ok());
        let body = answer
            .body_mut()
            .with_config()
            .limit(MAX_RESPONSE_BYTES)
            .read_to_vec()
            .map_err(transport)?;
        if !code.is_success() {
            return Err(Error::Status { code: code.as_u16(), message: message(&body) });
        }
        Ok(Reply { body, header_len })
    }
}

/// Triton's `{"error": TEXT}` (of a stream: as its first event), or the body as it is.
fn message(body: &[u8]) -> String {
    let body = body.strip_prefix(b"data:").unwrap_or(body);
    let parsed = serde_json::from_slice::<Value>(body).ok();
    match parsed.as_ref().and_then(|value| value["error"].as_str()) {
        Some(text) => text.to_owned(),
        None => String::from_utf8_lossy(body).trim().to_owned(),
    }
}

fn json(body: &[u8]) -> Result<Value> {
    serde_json::from_slice(body)
        .map_err(|error| Error::protocol(format!("the answer is not JSON: {error}")))
}
