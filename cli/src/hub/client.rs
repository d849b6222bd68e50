//! Requests to a hub, and what its answers mean. Messages name the status or the kind of failure,
//! never an address or a header: those may carry a token or a signature.

use std::time::Duration;

use serde::Deserialize;
use ureq::Agent;
use ureq::config::RedirectAuthHeaders;
use ureq::http::Response;
use ureq::tls::{RootCerts, TlsConfig};

use super::id::HubId;
use super::settings::Settings;
use crate::talk::Failure;

/// Silence after which a connection counts as cut.
const SILENCE: Duration = Duration::from_secs(60);

/// Most redirects that are followed for a file's facts.
const REDIRECTS: usize = 5;

/// Most bytes of a model's listing.
const LISTING: u64 = 32 << 20;

/// Why something did not come from the hub.
#[derive(Debug)]
pub(super) enum Missed {
    /// No answer, or one that may be another the next time.
    Unreachable(String),
    /// A clear no.
    Refused(Failure),
}

impl From<Failure> for Missed {
    fn from(failure: Failure) -> Self {
        Missed::Refused(failure)
    }
}

/// A model's commit and the names of its files.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// What the hub says of a file before it sends it.
#[derive(Debug)]
pub(super) struct Facts {
    /// Names what the file holds; for large files it is their SHA-256.
    pub(super) etag: String,
    /// Its bytes, where the hub says so.
    pub(super) size: Option<u64>,
}

pub(super) struct Client {
    /// Follows redirects, with the token to the same host alone.
    agent: Agent,
    /// Follows none.
    still: Agent,
    settings: Settings,
}

impl Client {
    pub(super) fn new(settings: Settings) -> Self {
        // The system's certificates, as users expect behind a company's proxy.
        let tls = || TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let config = || {
            Agent::config_builder()
                .tls_config(tls())
                .http_status_as_error(false)
                .timeout_connect(Some(SILENCE))
                .timeout_per_read(Some(SILENCE))
                .user_agent(concat!("imprompt/", env!("CARGO_PKG_VERSION")))
        };
        let agent = config().redirect_auth_headers(RedirectAuthHeaders::SameHost).build().into();
        let still = config().max_redirects(0).max_redirects_will_error(false).build().into();
        Client { agent, still, settings }
    }

    /// The files of a model at its revision.
    pub(super) fn listing(&self, id: &HubId) -> Result<Listing, Missed> {
        #[derive(Deserialize)]
        struct Answer {
            sha: String,
            #[serde(default)]
            siblings: Vec<File>,
        }
        #[derive(Deserialize)]
        struct File {
            rfilename: String,
        }
        let revision = id.revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}", self.settings.endpoint, id.name);
        let mut answer = self.call(self.agent.get(&url)).map_err(Missed::Unreachable)?;
        self.check(id, &answer)?;
        let body = answer.body_mut().with_config().limit(LISTING).read_to_vec();
        let body = body.map_err(|error| Missed::Unreachable(reason(&error)))?;
        let not_understood = || Failure::new(format!("{id}: the hub's answer is not understood"));
        let answer: Answer = serde_json::from_slice(&body).map_err(|_| {
            not_understood().hint("check $HF_ENDPOINT: it may be no Hugging Face hub")
        })?;
        let is_commit =
            !answer.sha.is_empty() && answer.sha.chars().all(|c| c.is_ascii_alphanumeric());
        if !is_commit {
            return Err(not_understood().into());
        }
        let files = answer.siblings.into_iter().map(|file| file.rfilename).collect();
        Ok(Listing { commit: answer.sha, files })
    }

    /// The address of a file of a commit.
    pub(super) fn address(&self, id: &HubId, commit: &str, name: &str) -> String {
        format!("{}/{}/resolve/{commit}/{name}", self.settings.endpoint, id.name)
    }

    /// What the hub itself says of the file at `url`: the store it may redirect to knows other
    /// names of the content.
    pub(super) fn facts(&self, id: &HubId, url: &str) -> Result<Facts, Missed> {
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            let request = self.still.head(&url).header("Accept-Encoding", "identity");
            let answer = self.call(request).map_err(Missed::Unreachable)?;
            let header =
                |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
            let elsewhere = header("location").filter(|_| answer.status().is_redirection());
            // A renamed model: the hub sends to another place of its own.
            if let Some(place) = elsewhere.filter(|place| place.starts_with('/')) {
                url = format!("{}{place}", origin(&url));
                continue;
            }
            if elsewhere.is_none() {
                self.check(id, &answer)?;
            }
            let etag = header("x-linked-etag").or(header("etag")).unwrap_or_default();
            let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            let good = (1..=200).contains(&etag.len())
                && !etag.starts_with('.')
                && etag.chars().all(is_name);
            if !good {
                return Err(Failure::new(format!("{id}: the hub names no content of a file"))
                    .hint("check $HF_ENDPOINT: it may be no Hugging Face hub")
                    .into());
            }
            let own_size = header("content-length").filter(|_| elsewhere.is_none());
            let size = header("x-linked-size").or(own_size).and_then(|size| size.parse().ok());
            return Ok(Facts { etag, size });
        }
        Err(Missed::Unreachable("it redirects in a circle".to_owned()))
    }

    /// The file at `url` from byte `start` on. The status is 200 (the whole file), 206 (from
    /// there on) or 416 (there is nothing there).
    pub(super) fn file(
        &self,
        id: &HubId,
        url: &str,
        start: u64,
    ) -> Result<Response<ureq::Body>, Missed> {
        let mut request = self.agent.get(url).header("Accept-Encoding", "identity");
        if start > 0 {
            request = request.header("Range", format!("bytes={start}-"));
        }
        let answer = self.call(request).map_err(Missed::Unreachable)?;
        if answer.status() != 416 {
            self.check(id, &answer)?;
        }
        Ok(answer)
    }

    fn call(
        &self,
        request: ureq::RequestBuilder<ureq::typestate::WithoutBody>,
    ) -> Result<Response<ureq::Body>, String> {
        let request = match &self.settings.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        };
        request.call().map_err(|error| reason(&error))
    }

    /// Turns a status that is a refusal into words.
    fn check(&self, id: &HubId, answer: &Response<ureq::Body>) -> Result<(), Missed> {
        let status = answer.status().as_u16();
        let code = answer.headers().get("x-error-code").and_then(|value| value.to_str().ok());
        let refused = |why: &str| Failure::new(format!("{id}: {why}"));
        let failure = match (status, code.unwrap_or_default()) {
            (200..=299, _) => return Ok(()),
            (_, "GatedRepo") => refused("the hub gives this model to those alone who accepted its licence")
                .hint(match self.settings.token {
                    Some(_) => "accept the licence on the model's page, with the account that HF_TOKEN belongs to",
                    None => "accept the licence on the model's page and set HF_TOKEN to a token of that account",
                }),
            (404, "RevisionNotFound") => refused("the hub has this model, but no such revision")
                .hint("a revision is a branch, a tag or a commit: OWNER/NAME@REVISION"),
            (404, "EntryNotFound") => refused("the hub lists a file that it does not have")
                .hint("run the same command again"),
            (401, _) if self.settings.token.is_some() => {
                refused("the hub does not accept the token, or has no such model")
                    .hint("check HF_TOKEN, and the spelling: OWNER/NAME")
            }
            (401 | 403, _) => refused("the hub refuses access, or has no such model").hint(
                "check the spelling; for a gated or private model accept its licence on its page \
                 and set HF_TOKEN to a token of yours",
            ),
            (404, _) => refused("the hub has no such model or revision")
                .hint("check the spelling: OWNER/NAME, and `imprompt models` for the names that are known"),
            _ => return Err(Missed::Unreachable(format!("it answers with status {status}"))),
        };
        Err(failure.into())
    }
}

/// Scheme and host of an address.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find('/').map_or(url.len(), |at| host + at);
    &url[..end]
}

/// What went wrong, without the address.
pub(super) fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => "its address is not understood".to_owned(),
        ureq::Error::HostNotFound => "its host is not found".to_owned(),
        ureq::Error::Timeout(_) => "it is silent".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_and_host() {
        assert_eq!(origin("http://a:1/b/c"), "http://a:1");
        assert_eq!(origin("https://a"), "https://a");
    }
}
