//! Makes an endpoint what is wanted, in the order that leaves a working one at every moment: model
//! and configuration first, then the endpoint moves to them, then what it had before is removed.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::control::Control;
use super::plan::{Plan, sagemaker};
use crate::talk::{Failure, Result};

/// States that pass.
const PASSING: [&str; 4] = ["Creating", "Updating", "SystemUpdating", "RollingBack"];

/// What became of it; the line of `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Deployed {
    /// The endpoint's name.
    pub endpoint: String,
    /// Its state.
    pub status: String,
    /// The configuration it has.
    pub config: String,
    /// The model it has.
    pub model: String,
    /// What was done: `created`, `updated`, `unchanged`.
    pub done: &'static str,
    /// Configurations and models of before that were removed.
    pub removed: Vec<String>,
}

/// How to go about it.
pub struct Manner<'a> {
    /// How long to wait for the endpoint; `None`: not at all.
    pub wait: Option<Duration>,
    /// Keep models and configurations of before.
    pub keep_old: bool,
    /// Told what happens.
    pub say: &'a dyn Fn(&str),
}

/// Does what the plan says, as far as it is not so already.
pub fn deploy(control: &Control<'_>, plan: &Plan, manner: &Manner<'_>) -> Result<Deployed> {
    let limit = manner.wait.unwrap_or_default();
    let said = |status: &str| (manner.say)(&format!("endpoint {}: {status}", plan.endpoint));
    let before = settled(control, plan, manner, &said)?;
    if ensure(control, "DescribeModel", "ModelName", &plan.model, || {
        control.call(&plan.create_model)
    })? {
        (manner.say)(&format!("created model {}", plan.model));
    }
    if ensure(control, "DescribeEndpointConfig", "EndpointConfigName", &plan.config, || {
        control.call(&plan.create_config)
    })? {
        (manner.say)(&format!("created configuration {}", plan.config));
    }
    let done = match &before {
        None => {
            control.call(&plan.create)?;
            "created"
        }
        Some(before) if before["EndpointConfigName"] == *plan.config => "unchanged",
        Some(_) => {
            control.call(&plan.update)?;
            "updated"
        }
    };
    let mut deployed = Deployed {
        endpoint: plan.endpoint.clone(),
        status: "InService".to_owned(),
        config: plan.config.clone(),
        model: plan.model.clone(),
        done,
        removed: vec![],
    };
    if manner.wait.is_none() && done != "unchanged" {
        deployed.status = if done == "created" { "Creating" } else { "Updating" }.to_owned();
        if !plan.scaling.is_empty() {
            (manner.say)(
                "autoscaling is set on an endpoint in service: run the same command again then",
            );
        }
        return Ok(deployed);
    }
    let endpoint = control.wait(&plan.endpoint, &PASSING, limit, &said)?;
    check(plan, endpoint.as_ref())?;
    for operation in &plan.scaling {
        control.call(operation)?;
    }
    if let [register, ..] = &*plan.scaling {
        let (min, max) = (&register.body["MinCapacity"], &register.body["MaxCapacity"]);
        (manner.say)(&format!("autoscaling: {min} to {max} instances"));
    }
    if !manner.keep_old {
        deployed.removed = remove_old(control, plan)?;
    }
    Ok(deployed)
}

/// The endpoint as it is before, when nothing is under way.
fn settled(
    control: &Control<'_>,
    plan: &Plan,
    manner: &Manner<'_>,
    said: &dyn Fn(&str),
) -> Result<Option<Value>> {
    let mut endpoint = control.endpoint(&plan.endpoint)?;
    let status =
        |endpoint: &Value| endpoint["EndpointStatus"].as_str().unwrap_or_default().to_owned();
    if endpoint.as_ref().is_some_and(|endpoint| status(endpoint) == "Deleting") {
        endpoint =
            control.wait(&plan.endpoint, &["Deleting"], manner.wait.unwrap_or_default(), said)?;
    }
    if endpoint.as_ref().is_some_and(|endpoint| PASSING.contains(&&*status(endpoint))) {
        // SageMaker takes no update meanwhile.
        let limit = manner.wait.unwrap_or_default();
        endpoint = control.wait(&plan.endpoint, &PASSING, limit, said)?;
    }
    match endpoint {
        Some(endpoint) if matches!(&*status(&endpoint), "Failed" | "UpdateRollbackFailed" | "OutOfService") => {
            Err(failed(plan, &endpoint).hint(format!(
                "an endpoint in this state takes no update: `imprompt delete --endpoint {}`, then deploy again",
                plan.endpoint
            )))
        }
        endpoint => Ok(endpoint),
    }
}

/// Makes what is not there; true if it was made.
fn ensure(
    control: &Control<'_>,
    describe: &str,
    key: &str,
    name: &str,
    create: impl FnOnce() -> Result<Value>,
) -> Result<bool> {
    if control.find(&sagemaker(describe, json!({ key: name })))?.is_some() {
        return Ok(false);
    }
    create().map(|_| true)
}

/// # Errors
/// When the endpoint is not in service with the configuration that was wanted: why.
fn check(plan: &Plan, endpoint: Option<&Value>) -> Result<()> {
    let Some(endpoint) = endpoint else {
        return Err(Failure::new(format!("the endpoint {} is gone", plan.endpoint))
            .hint("somebody deleted it meanwhile"));
    };
    let is_wanted = endpoint["EndpointConfigName"] == *plan.config;
    if endpoint["EndpointStatus"] == "InService" && is_wanted {
        return Ok(());
    }
    let failure = failed(plan, endpoint);
    let reason = endpoint["FailureReason"].as_str().unwrap_or_default().to_ascii_lowercase();
    let log = format!(
        "the container's log: CloudWatch, group /aws/sagemaker/Endpoints/{}",
        plan.endpoint
    );
    let hint = if reason.contains("ping") || reason.contains("health check") {
        format!(
            "the container did not become healthy in time: --health-check-timeout with more seconds; {log}"
        )
    } else if reason.contains("capacity") {
        "AWS has no such instance free: take another --instance-type or region, or try again later"
            .to_owned()
    } else if reason.contains("download") || reason.contains("s3") || reason.contains("model data")
    {
        "is the package there, may the role read it, and is --model-download-timeout long enough?"
            .to_owned()
    } else if reason.contains("image") || reason.contains("ecr") {
        "is the image of this region, and may the role pull it?".to_owned()
    } else {
        log
    };
    Err(failure.hint(hint))
}

fn failed(plan: &Plan, endpoint: &Value) -> Failure {
    let status = endpoint["EndpointStatus"].as_str().unwrap_or("without a state");
    let status = match status {
        "InService" => "back in service with the configuration of before",
        status => status,
    };
    let reason = endpoint["FailureReason"].as_str().unwrap_or("SageMaker gives no reason");
    Failure::new(format!("the endpoint {} is {status}: {reason}", plan.endpoint))
}

/// Removes what was made for the endpoint and is no longer used.
fn remove_old(control: &Control<'_>, plan: &Plan) -> Result<Vec<String>> {
    let mut removed = vec![];
    for (kind, kept) in [("EndpointConfig", &plan.config), ("Model", &plan.model)] {
        for name in control.made_for(&plan.endpoint, kind)?.into_iter().filter(|name| name != kept)
        {
            control.find(&sagemaker(
                &format!("Delete{kind}"),
                json!({ format!("{kind}Name"): name }),
            ))?;
            removed.push(name);
        }
    }
    Ok(removed)
}
