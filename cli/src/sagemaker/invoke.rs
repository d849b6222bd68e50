//! Asking an endpoint: the binary form of KServe v2 in the body that SageMaker's front end of
//! Triton takes, or any other body with its content type.

use std::time::{Duration, Instant};

use imprompt_kserve::{InferRequest, InferResponse};
use serde_json::Value;
use tokio::runtime::Runtime;
use ureq::http::Response;

use super::RUNTIME;
use super::plan::check_name;
use crate::cloud::account::Account;
use crate::cloud::call::{Caller, Missed, Refusal, header};
use crate::cloud::http::{Patience, Web};
use crate::talk::{Failure, Result};

/// A body whose first N bytes are its JSON, before the tensors.
const BINARY: &str = "application/vnd.sagemaker-triton.binary+json;json-header-size=";

/// SageMaker gives a container 60 s; its own answer takes a moment more.
const LIMIT: Duration = Duration::from_secs(75);

/// A model that is loaded for the first time may take this long, by SageMaker's own bound.
const COLD: Duration = Duration::from_secs(360);

/// Pause before the next try while a model is loaded.
const COLD_PAUSE: Duration = Duration::from_secs(5);

/// An endpoint that can be asked.
pub struct Endpoint {
    account: Account,
    runtime: Runtime,
    name: String,
    target_model: Option<String>,
    url: String,
}

impl Endpoint {
    /// The endpoint `name`; of a multi-model endpoint `target_model` is the package.
    pub fn open(name: &str, target_model: Option<&str>, region: Option<&str>) -> Result<Self> {
        check_name(name)?;
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if target_model.is_some_and(|model| model.is_empty() || !is_plain(model)) {
            return Err(Failure::usage("--target-model: no name of a package"));
        }
        let runtime = crate::cloud::runtime()?;
        let account = Account::load(&runtime, region, Web::new(false))?;
        let url = format!("{}/endpoints/{name}/invocations", account.endpoint(RUNTIME)?);
        // Before the first picture: without credentials none can be asked about.
        account.credentials(&runtime)?;
        account.region()?;
        let target_model = target_model.map(str::to_owned);
        Ok(Endpoint { account, runtime, name: name.to_owned(), target_model, url })
    }

    /// Asks the model.
    pub fn infer(&self, request: &InferRequest) -> Result<InferResponse> {
        let (body, length) = request.http_body();
        let answer = self.invoke(&format!("{BINARY}{length}"), "*/*", &body)?;
        let kind = header(answer.headers(), "content-type").unwrap_or_default();
        let length = kind.strip_prefix(BINARY).and_then(|length| length.trim().parse().ok());
        InferResponse::from_http_body(answer.body(), length)
            .map_err(|error| Failure::new(error).of(format!("endpoint {}", self.name)))
    }

    /// Sends a body as it is, and waits while the model is loaded.
    pub fn invoke(
        &self,
        content_type: &str,
        accept: &str,
        body: &[u8],
    ) -> Result<Response<Vec<u8>>> {
        let mut headers = vec![("content-type", content_type), ("accept", accept)];
        if let Some(model) = &self.target_model {
            headers.push(("x-amzn-sagemaker-target-model", model));
        }
        let caller = Caller { account: &self.account, runtime: &self.runtime };
        let patience = Patience { whole: Some(LIMIT), ..Patience::default() };
        let started = Instant::now();
        loop {
            match caller.post(RUNTIME, &self.url, &headers, body, patience) {
                Ok(answer) => return Ok(answer),
                Err(Missed::Refused(refusal))
                    if refusal.code == "ModelNotReadyException" && started.elapsed() < COLD =>
                {
                    std::thread::sleep(COLD_PAUSE);
                }
                Err(Missed::Refused(refusal)) => return Err(self.refused(&refusal)),
                Err(Missed::Failed(failure)) => return Err(failure),
            }
        }
    }

    /// What a refusal means here.
    fn refused(&self, refusal: &Refusal) -> Failure {
        let message = refusal.message.to_ascii_lowercase();
        match &*refusal.code {
            "ModelError" => {
                let original = refusal.body["OriginalMessage"].as_str().unwrap_or_default();
                let said: Option<Value> = serde_json::from_str(original).ok();
                let said =
                    said.as_ref().and_then(|said| said["error"].as_str()).unwrap_or(original);
                let status = refusal.body["OriginalStatusCode"].as_u64().unwrap_or_default();
                let failure = Failure::new(format!("{said} (status {status})"));
                match status {
                    507 => failure
                        .hint("the instance has no memory left: a larger one, or fewer models"),
                    404 => {
                        failure.hint("check --target-model: the packages in the endpoint's folder")
                    }
                    _ => failure,
                }
            }
            "ValidationError" | "ValidationException" if message.contains("not found") => {
                Failure::new(format!("there is no endpoint {} in this region", self.name))
                    .hint("make one with `imprompt deploy`, or check --region and AWS_PROFILE")
            }
            "ModelNotReadyException" => {
                refusal.failure().hint("the model is still being loaded: ask again in some minutes")
            }
            _ => refusal.failure(),
        }
    }
}
