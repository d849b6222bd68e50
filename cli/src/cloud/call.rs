//! Signed calls of AWS services (Signature Version 4), with retries.
//!
//! The control plane speaks JSON 1.1: a POST whose header `X-Amz-Target` names the operation. The
//! SDK's crate of SageMaker has all its four hundred operations; see docs/dependencies.md.

use std::time::{Duration, SystemTime};

use aws_sigv4::http_request::{
    PayloadChecksumKind, SignableBody, SignableRequest, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use serde::Serialize;
use serde_json::Value;
use tokio::runtime::Runtime;
use ureq::http::{HeaderMap, Request, Response};

use super::account::{Account, Service};
use super::http::{Patience, is_passing, reason};
use crate::talk::{Failure, Result};

/// Tries of one call.
const TRIES: u32 = 4;

/// Pause before the second try; each later one is twice as long.
const PAUSE: Duration = Duration::from_millis(300);

/// Time a call of the control plane may take.
const CONTROL: Duration = Duration::from_secs(60);

/// One call of a control plane: what is sent, and what `--dry-run` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Operation {
    /// Which service; not part of the request.
    #[serde(skip)]
    pub service: &'static str,
    /// The header `X-Amz-Target`, such as `SageMaker.CreateModel`.
    pub target: String,
    /// The JSON body.
    pub body: Value,
}

impl Operation {
    /// The operation's name without the service's.
    pub fn name(&self) -> &str {
        self.target.rsplit('.').next().unwrap_or_default()
    }
}

/// A service's refusal, or no answer at all.
#[derive(Debug)]
pub enum Missed {
    /// The service said no.
    Refused(Box<Refusal>),
    /// There was no usable answer.
    Failed(Failure),
}

/// What a service said no with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// Such as `ValidationException`.
    pub code: String,
    /// The service's own words.
    pub message: String,
    /// The whole answer, for what a service says beside that.
    pub body: Value,
}

impl From<Failure> for Missed {
    fn from(failure: Failure) -> Self {
        Missed::Failed(failure)
    }
}

impl From<Missed> for Failure {
    fn from(missed: Missed) -> Self {
        match missed {
            Missed::Failed(failure) => failure,
            Missed::Refused(refusal) => refusal.failure(),
        }
    }
}

impl Refusal {
    /// As the command says it, with what would help.
    pub fn failure(&self) -> Failure {
        let Refusal { status, code, message, .. } = self;
        let failure = match message.is_empty() {
            true => Failure::new(format!("{code} (status {status})")),
            false => Failure::new(format!("{code}: {message} (status {status})")),
        };
        match code.as_str() {
            "ExpiredToken" | "ExpiredTokenException" => failure
                .hint("the credentials have expired: log in again, such as with `aws sso login`"),
            "InvalidSignatureException" | "SignatureDoesNotMatch" => {
                failure.hint("check AWS_SECRET_ACCESS_KEY, the region, and this machine's clock")
            }
            "UnrecognizedClientException" | "InvalidClientTokenId" | "InvalidAccessKeyId" => {
                failure.hint(
                    "AWS does not know this access key: check AWS_PROFILE or AWS_ACCESS_KEY_ID",
                )
            }
            "AccessDeniedException" | "AccessDenied" => {
                failure.hint("the policy of this user or role does not allow the call")
            }
            _ => failure,
        }
    }

    fn is_passing(&self) -> bool {
        let slow = ["Throttl", "TooManyRequests", "RequestLimitExceeded", "SlowDown"];
        self.status >= 500 || slow.iter().any(|word| self.code.contains(word))
    }
}

/// Signs and sends; asks again where that may help.
pub struct Caller<'a> {
    /// Who asks.
    pub account: &'a Account,
    /// What carries the credentials' futures.
    pub runtime: &'a Runtime,
}

impl Caller<'_> {
    /// A call of a control plane.
    ///
    /// # Errors
    /// [`Missed`]; a refusal that passes is one after some tries alone.
    pub fn json(&self, service: Service, operation: &Operation) -> Result<Value, Missed> {
        let url = format!("{}/", self.account.endpoint(service)?);
        let body = operation.body.to_string().into_bytes();
        let headers = [
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", operation.target.as_str()),
        ];
        let patience = Patience { whole: Some(CONTROL), ..Patience::default() };
        let answer = self.post(service, &url, &headers, &body, patience)?;
        if answer.body().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(answer.body()).map_err(|_| {
            Failure::new(format!("{}: the answer is no JSON", operation.target))
                .hint("check AWS_ENDPOINT_URL: something else may answer there")
                .into()
        })
    }

    /// A signed POST, tried again where that may help.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn post(
        &self,
        service: Service,
        url: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        patience: Patience,
    ) -> Result<Response<Vec<u8>>, Missed> {
        let mut pause = PAUSE;
        for tries_left in (0..TRIES).rev() {
            let request = self.signed(service, url, headers, body)?;
            match self.account.web.send(request, patience) {
                Ok(answer) if answer.status().is_success() => return Ok(answer),
                Ok(answer) => {
                    let refusal = refusal(&answer);
                    if tries_left == 0 || !refusal.is_passing() {
                        return Err(Missed::Refused(Box::new(refusal)));
                    }
                }
                Err(error) if tries_left == 0 || !is_passing(&error) => {
                    return Err(Failure::new(format!("{}: {}", service.id, reason(&error)))
                        .hint("check the network, the region and AWS_ENDPOINT_URL")
                        .into());
                }
                Err(_) => {}
            }
            std::thread::sleep(pause);
            pause *= 2;
        }
        unreachable!("the last try returns")
    }

    /// The request with its signature.
    fn signed<'b>(
        &self,
        service: Service,
        url: &str,
        headers: &[(&str, &str)],
        body: &'b [u8],
    ) -> Result<Request<&'b [u8]>> {
        // Nothing of an address or a header is repeated: it may be a secret.
        let failed = |what: &str| Failure::new(format!("{}: {what}", service.id));
        let identity = self.account.credentials(self.runtime)?.into();
        let mut settings = SigningSettings::default();
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(self.account.region()?)
            .name(service.signing)
            .time(SystemTime::now())
            .settings(settings)
            .build()
            .map_err(|_| failed("the request cannot be signed"))?
            .into();
        let signable =
            SignableRequest::new("POST", url, headers.iter().copied(), SignableBody::Bytes(body))
                .and_then(|signable| sign(signable, &parameters))
                .map_err(|_| failed("the address is not understood"))?;
        let (instructions, _) = signable.into_parts();
        let mut request = Request::post(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request =
            request.body(body).map_err(|_| failed("the address is not understood"))?;
        instructions.apply_to_request_http1x(&mut request);
        Ok(request)
    }
}

/// What an answer that is an error says.
fn refusal(answer: &Response<Vec<u8>>) -> Refusal {
    let status = answer.status().as_u16();
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or(Value::Null);
    let text = |keys: [&str; 3]| {
        keys.iter().find_map(|key| body[*key].as_str()).unwrap_or_default().to_owned()
    };
    let code = header(answer.headers(), "x-amzn-errortype")
        .map(str::to_owned)
        .unwrap_or_else(|| text(["__type", "code", "Code"]));
    // `com.amazonaws.sagemaker#ValidationException`, `ValidationException:http://...`.
    let code = code.rsplit('#').next().unwrap_or_default();
    let code = code.split(':').next().unwrap_or_default();
    let code = if code.is_empty() { "an error without a name" } else { code };
    let message = text(["message", "Message", "errorMessage"]);
    Refusal { status, code: code.to_owned(), message, body }
}

/// A header's text.
pub fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, header: Option<&str>, body: &str) -> Response<Vec<u8>> {
        let mut answer = Response::builder().status(status);
        if let Some(header) = header {
            answer = answer.header("x-amzn-ErrorType", header);
        }
        answer.body(body.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn refusals_are_read_in_every_form() {
        let cases = [
            (None, r#"{"__type":"com.amazonaws.sagemaker#ValidationException","message":"no"}"#),
            (Some("ValidationException:http://internal/"), r#"{"Message":"no"}"#),
            (Some("ValidationException"), r#"{"message":"no"}"#),
        ];
        for (header, body) in cases {
            let refusal = refusal(&answer(400, header, body));
            assert_eq!(
                (&*refusal.code, &*refusal.message),
                ("ValidationException", "no"),
                "{body}"
            );
            assert!(!refusal.is_passing());
        }
        let refusal = refusal(&answer(502, None, "<html>"));
        assert_eq!(refusal.code, "an error without a name");
        assert!(refusal.is_passing());
    }
}
