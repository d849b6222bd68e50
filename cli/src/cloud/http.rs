//! The HTTP client of the command under `aws-config` and `object_store`: one connection pool, one
//! set of certificates (the system's), one rule for addresses without encryption. Both libraries
//! could bring a client of their own, and with it a second TLS library.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use aws_smithy_runtime_api::client::http::{
    HttpConnector as SdkConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector,
    http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest as SdkRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use http_body_util::BodyExt as _;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use ureq::Agent;
use ureq::http::{Method, Request, Response, Uri};
use ureq::tls::{RootCerts, TlsConfig};

/// Silence after which a connection counts as cut.
pub const SILENCE: Duration = Duration::from_secs(60);

/// Most bytes of an answer.
const ANSWER: u64 = 64 << 20;

/// Hosts of the clouds' own machines that give out credentials, and have no certificates.
const METADATA: [&str; 3] = ["169.254.169.254", "169.254.170.2", "metadata.google.internal"];

/// How long a call may take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patience {
    /// Until there is a connection; [`SILENCE`] unless said.
    pub connect: Option<Duration>,
    /// From its start to its last byte; no bound unless said.
    pub whole: Option<Duration>,
}

/// The command's HTTP client for clouds. Follows no redirects: a signature holds for one address.
#[derive(Clone, Debug)]
pub struct Web {
    agent: Agent,
    allow_http: bool,
}

impl Web {
    /// `allow_http`: also to other machines without encryption.
    pub fn new(allow_http: bool) -> Self {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(SILENCE))
            .user_agent(concat!("imprompt/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Web { agent, allow_http }
    }

    /// One call, without retries. A status that is an error is an answer.
    ///
    /// # Errors
    /// What [`ureq`] fails with; `BadUri` for an address without encryption.
    pub fn send(
        &self,
        request: Request<impl AsRef<[u8]>>,
        patience: Patience,
    ) -> Result<Response<Vec<u8>>, ureq::Error> {
        let (parts, body) = request.into_parts();
        if !self.allow_http && !is_private(&parts.uri.to_string()) {
            return Err(ureq::Error::BadUri(UNENCRYPTED.to_owned()));
        }
        let body = body.as_ref();
        let has_body = !body.is_empty() || [Method::POST, Method::PUT].contains(&parts.method);
        let configured = self
            .agent
            .configure_request(Request::from_parts(parts, ()))
            .timeout_connect(patience.connect.or(Some(SILENCE)))
            .timeout_global(patience.whole)
            .build();
        let answer = match has_body {
            true => self.agent.run(configured.map(|()| body)),
            false => self.agent.run(configured),
        };
        let (parts, mut body) = answer?.into_parts();
        let body = body.with_config().limit(ANSWER).read_to_vec()?;
        Ok(Response::from_parts(parts, body))
    }

    /// The same client as `aws-config` wants it.
    pub fn for_sdk(&self) -> SharedHttpClient {
        let web = self.clone();
        http_client_fn(move |settings, _| {
            // Whether there is a metadata service must be known within a second.
            let patience =
                Patience { connect: settings.connect_timeout(), whole: settings.read_timeout() };
            SharedHttpConnector::new(ForSdk { web: web.clone(), patience })
        })
    }
}

/// Why an address is refused.
const UNENCRYPTED: &str = "not encrypted (http), and not of this machine";

/// True where nobody else can listen: https, this machine, and the metadata services.
pub fn is_private(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else { return false };
    match (uri.scheme_str(), uri.host()) {
        (Some("https"), Some(_)) => true,
        (Some("http"), Some(host)) => {
            let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
            host == "localhost"
                || METADATA.contains(&host)
                || address.is_ok_and(|address| address.is_loopback())
        }
        _ => false,
    }
}

/// What went wrong, without the address: it may hold a token.
pub fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::BadUri(why) if why == UNENCRYPTED => UNENCRYPTED.to_owned(),
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => "the address is not understood".to_owned(),
        ureq::Error::HostNotFound => "the host is not found".to_owned(),
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        other => other.to_string(),
    }
}

/// True where the same call may succeed a moment later.
pub fn is_passing(error: &ureq::Error) -> bool {
    use ureq::Error::{ConnectionFailed, HostNotFound, Io, Timeout};
    matches!(error, Io(_) | Timeout(_) | ConnectionFailed | HostNotFound)
}

#[derive(Debug)]
struct ForSdk {
    web: Web,
    patience: Patience,
}

impl SdkConnector for ForSdk {
    fn call(&self, request: SdkRequest) -> HttpConnectorFuture {
        let (web, patience) = (self.web.clone(), self.patience);
        HttpConnectorFuture::new(async move {
            let user = |error: &str| ConnectorError::user(error.to_owned().into());
            let request = request.try_into_http1x().map_err(|_| user("no HTTP request"))?;
            let (parts, body) = request.into_parts();
            let body = body.bytes().ok_or_else(|| user("a body without an end"))?.to_vec();
            let call = move || web.send(Request::from_parts(parts, body), patience);
            let answer = tokio::task::spawn_blocking(call)
                .await
                .map_err(|error| ConnectorError::other(error.into(), None))?
                .map_err(|error| match &error {
                    ureq::Error::Timeout(_) => ConnectorError::timeout(reason(&error).into()),
                    _ => ConnectorError::io(reason(&error).into()),
                })?;
            answer
                .map(SdkBody::from)
                .try_into()
                .map_err(|_| ConnectorError::other("the answer is no HTTP".into(), None))
        })
    }
}

impl HttpConnector for Web {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Web {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let web = self.clone();
        let (parts, body) = request.into_parts();
        // One piece is handed on as it is.
        let body = body.collect().await?.to_bytes();
        let call = move || web.send(Request::from_parts(parts, body), Patience::default());
        let failed = |kind, text: String| HttpError::new(kind, std::io::Error::other(text));
        let answer = tokio::task::spawn_blocking(call)
            .await
            .map_err(|error| failed(HttpErrorKind::Unknown, error.to_string()))?
            .map_err(|error| {
                use ureq::Error::{ConnectionFailed, HostNotFound, Io, Timeout};
                let kind = match &error {
                    ConnectionFailed | HostNotFound => HttpErrorKind::Connect,
                    Timeout(_) => HttpErrorKind::Timeout,
                    Io(_) => HttpErrorKind::Interrupted,
                    _ => HttpErrorKind::Unknown,
                };
                failed(kind, reason(&error))
            })?;
        Ok(answer.map(Into::into))
    }
}
