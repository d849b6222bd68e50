//! The control plane as the commands need it: what is there, making what is not, and waiting.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::plan::{is_of, sagemaker};
use super::{SAGEMAKER, SCALING};
use crate::cloud::account::Service;
use crate::cloud::call::{Caller, Missed, Operation, Refusal};
use crate::talk::{Failure, Result};

/// Pause before the second look; each later one is longer, up to [`LONGEST`].
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(15);

/// Calls of the control plane.
pub struct Control<'a>(pub Caller<'a>);

/// The services' own words for "there is none".
fn is_missing(refusal: &Refusal) -> bool {
    let message = refusal.message.to_ascii_lowercase();
    refusal.code == "ObjectNotFoundException"
        || refusal.code == "ResourceNotFound"
        || (refusal.code == "ValidationException"
            && ["could not find", "does not exist", "no scalable target found", "no such"]
                .iter()
                .any(|words| message.contains(words)))
}

impl Control<'_> {
    /// Does it.
    pub fn call(&self, operation: &Operation) -> Result<Value> {
        self.0.json(service(operation), operation).map_err(|missed| {
            let failure = Failure::from(missed);
            let quota = failure.message().contains("ResourceLimitExceeded");
            let failure = failure.of(operation.name());
            match quota {
                true => failure.hint(
                    "ask for a higher quota of this instance type (Service Quotas, SageMaker), or take another one",
                ),
                false => failure,
            }
        })
    }

    /// Does it; `None` where what it is about is not there.
    pub fn find(&self, operation: &Operation) -> Result<Option<Value>> {
        match self.0.json(service(operation), operation) {
            Ok(answer) => Ok(Some(answer)),
            Err(Missed::Refused(refusal)) if is_missing(&refusal) => Ok(None),
            Err(missed) => Err(Failure::from(missed).of(operation.name())),
        }
    }

    /// The endpoint, if there is one.
    pub fn endpoint(&self, name: &str) -> Result<Option<Value>> {
        self.find(&sagemaker("DescribeEndpoint", json!({ "EndpointName": name })))
    }

    /// Names of models (`Model`) or configurations (`EndpointConfig`) that were made for the endpoint.
    pub fn made_for(&self, endpoint: &str, kind: &str) -> Result<Vec<String>> {
        let mut names = vec![];
        let mut token = Value::Null;
        loop {
            let mut body = json!({ "NameContains": endpoint, "MaxResults": 100 });
            if !token.is_null() {
                body["NextToken"] = token;
            }
            let answer = self.call(&sagemaker(&format!("List{kind}s"), body))?;
            let list = answer[format!("{kind}s")].as_array();
            let listed = list.into_iter().flatten();
            let listed = listed.filter_map(|item| item[format!("{kind}Name")].as_str());
            names.extend(listed.filter(|name| is_of(endpoint, name)).map(str::to_owned));
            token = answer["NextToken"].clone();
            if token.is_null() || token == "" {
                names.sort();
                names.dedup();
                return Ok(names);
            }
        }
    }

    /// Looks until the endpoint is in none of `passing`; gives it, or `None` when it is gone.
    /// `said` is told of every new status.
    pub fn wait(
        &self,
        name: &str,
        passing: &[&str],
        limit: Duration,
        said: &dyn Fn(&str),
    ) -> Result<Option<Value>> {
        let (started, mut pause, mut last) = (Instant::now(), PAUSE, String::new());
        loop {
            let Some(endpoint) = self.endpoint(name)? else { return Ok(None) };
            let status = endpoint["EndpointStatus"].as_str().unwrap_or_default().to_owned();
            if status != last {
                said(&status);
            }
            if !passing.contains(&&*status) {
                return Ok(Some(endpoint));
            }
            if started.elapsed() > limit {
                return Err(Failure::new(format!(
                    "the endpoint {name} is still {status} after {} s",
                    limit.as_secs()
                ))
                .hint("it goes on without this command: run it again to wait on, or give --wait more seconds"));
            }
            last = status;
            std::thread::sleep(pause);
            pause = (pause * 3 / 2).min(LONGEST);
        }
    }
}

fn service(operation: &Operation) -> Service {
    if operation.service == SCALING.id { SCALING } else { SAGEMAKER }
}
