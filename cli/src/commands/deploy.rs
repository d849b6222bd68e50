//! `imprompt deploy`.

use std::time::Duration;

use serde_json::{Value, json};

use super::run;
use crate::arguments::{Deploy, ModelCache};
use crate::cloud::account::{Account, Service};
use crate::cloud::call::{Caller, Operation};
use crate::cloud::http::Web;
use crate::sagemaker::control::Control;
use crate::sagemaker::deploy::{Manner, deploy};
use crate::sagemaker::plan::{Plan, Scaling, Wanted};
use crate::sagemaker::{SAGEMAKER, SCALING};
use crate::talk::{Failure, Result, Spinner};
use crate::{cloud, talk};

/// Prints the requests, or makes them.
pub fn run(arguments: &Deploy) -> Result<()> {
    let plan = Plan::new(&wanted(arguments)?)?;
    let runtime = cloud::runtime()?;
    let account = Account::load(&runtime, arguments.region.as_deref(), Web::new(false))?;
    if arguments.dry_run {
        let steps = [
            ("the model is not there", &plan.create_model),
            ("the configuration is not there", &plan.create_config),
            ("no endpoint of this name is there", &plan.create),
            ("an endpoint of this name has another configuration", &plan.update),
        ];
        for (when, operation) in steps {
            run::json(&request(&account, operation, when)?)?;
        }
        for operation in &plan.scaling {
            run::json(&request(&account, operation, "the endpoint is in service")?)?;
        }
        return Ok(());
    }
    let control = Control(Caller { account: &account, runtime: &runtime });
    let spinner = Spinner::new();
    let say = |text: &str| spinner.say(text);
    let manner = Manner {
        wait: (arguments.wait > 0).then(|| Duration::from_secs(arguments.wait.into())),
        keep_old: arguments.keep_old,
        say: &say,
    };
    let deployed = deploy(&control, &plan, &manner);
    spinner.finish();
    let deployed = deployed?;
    for name in &deployed.removed {
        say(&format!("removed {name}"));
    }
    if arguments.json {
        return run::json(&deployed);
    }
    talk::say(&format!(
        "endpoint {} is {} ({})",
        deployed.endpoint, deployed.status, deployed.done
    ));
    let target = if arguments.multi_model { " --target-model PACKAGE.tar.gz" } else { "" };
    talk::say(&format!("ask it: imprompt invoke --endpoint {}{target} PICTURE", deployed.endpoint));
    Ok(())
}

/// A request as it would be sent, signature apart.
pub fn request(account: &Account, operation: &Operation, when: &str) -> Result<Value> {
    let service: Service = if operation.service == SCALING.id { SCALING } else { SAGEMAKER };
    Ok(json!({
        "when": when,
        "method": "POST",
        "url": format!("{}/", account.endpoint(service)?),
        "headers": {
            "Content-Type": "application/x-amz-json-1.1",
            "X-Amz-Target": operation.target,
        },
        "body": operation.body,
    }))
}

fn wanted(arguments: &Deploy) -> Result<Wanted> {
    let environment = arguments.env.iter().map(|pair| {
        // A value may be a secret: only its name is told.
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let good = pair.contains('=')
            && !name.is_empty()
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        match good {
            true => Ok((name.to_owned(), value.to_owned())),
            false => {
                Err(Failure::usage("--env: NAME=VALUE, with a name of letters, digits and `_`"))
            }
        }
    });
    let has_default = |name: &str| name == "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME";
    let environment: Vec<_> = environment.collect::<Result<_>>()?;
    if !arguments.multi_model
        && arguments.ensemble.is_none()
        && !environment.iter().any(|(name, _)| has_default(name))
    {
        return Err(Failure::usage(
            "--ensemble: of a single-model endpoint the ensemble in the package",
        )
        .hint("such as --ensemble interrogate, as it was said to `imprompt pack`"));
    }
    let scaling = arguments.autoscale.as_deref().map(|range| {
        let numbers = range.split_once("..").map(|(min, max)| (min.parse(), max.parse()));
        match numbers {
            Some((Ok(min), Ok(max))) => {
                Ok(Scaling { min, max, target: arguments.autoscale_target })
            }
            _ => Err(Failure::usage("--autoscale: MIN..MAX, such as 1..4")),
        }
    });
    Ok(Wanted {
        name: arguments.name.clone(),
        model_data: arguments.model_data.clone(),
        multi_model: arguments.multi_model,
        model_cache: arguments.model_cache.map(|cache| cache == ModelCache::Enabled),
        ensemble: arguments.ensemble.clone(),
        role: arguments.role.clone(),
        image: arguments.image.clone(),
        instance_type: arguments.instance_type.clone(),
        instance_count: arguments.instance_count,
        volume: arguments.volume_size,
        health_check_timeout: arguments.health_check_timeout,
        download_timeout: arguments.model_download_timeout,
        environment,
        data_capture: arguments
            .data_capture
            .clone()
            .map(|url| (url, u32::from(arguments.data_capture_percent))),
        scaling: scaling.transpose()?,
        salt: arguments.revision.clone(),
    })
}
