//! Removes an endpoint with all that was made for it.

use std::time::Duration;

use serde_json::{Value, json};

use super::control::Control;
use super::plan::{autoscaling, sagemaker, scalable};
use crate::cloud::call::Operation;
use crate::talk::{Failure, Result};

/// What there is of an endpoint.
#[derive(Clone, Debug)]
pub struct Remains {
    name: String,
    /// The endpoint is there.
    pub endpoint: bool,
    /// It is scaled.
    pub scaled: bool,
    /// Configurations: the endpoint's, and those that were made for it.
    pub configs: Vec<String>,
    /// Models of these.
    pub models: Vec<String>,
}

impl Remains {
    /// Looks what there is.
    ///
    /// # Errors
    /// When there is nothing of that name.
    pub fn find(control: &Control<'_>, name: &str) -> Result<Self> {
        let endpoint = control.endpoint(name)?;
        let mut configs = control.made_for(name, "EndpointConfig")?;
        let mut models = control.made_for(name, "Model")?;
        if let Some(config) = endpoint.as_ref().and_then(|e| e["EndpointConfigName"].as_str()) {
            let body = json!({ "EndpointConfigName": config });
            let config_is = control.find(&sagemaker("DescribeEndpointConfig", body))?;
            let variants =
                config_is.as_ref().and_then(|config| config["ProductionVariants"].as_array());
            let used = variants.into_iter().flatten();
            models.extend(
                used.filter_map(|variant| variant["ModelName"].as_str().map(str::to_owned)),
            );
            if config_is.is_some() {
                configs.push(config.to_owned());
            }
        }
        for names in [&mut configs, &mut models] {
            names.sort();
            names.dedup();
        }
        let mut targets = scalable(name);
        let ids = targets.remove("ResourceId").into_iter().collect();
        targets.insert("ResourceIds".to_owned(), Value::Array(ids));
        let targets = control.call(&autoscaling("DescribeScalableTargets", targets.into()))?;
        let scaled =
            targets["ScalableTargets"].as_array().is_some_and(|targets| !targets.is_empty());
        let remains = Remains {
            name: name.to_owned(),
            endpoint: endpoint.is_some(),
            scaled,
            configs,
            models,
        };
        match remains.operations().is_empty() {
            true => Err(Failure::new(format!(
                "there is no endpoint {name} in this region, and nothing that was made for it"
            ))
            .hint("check --region and AWS_PROFILE")),
            false => Ok(remains),
        }
    }

    /// What removes it, in order.
    pub fn operations(&self) -> Vec<Operation> {
        let mut operations = vec![];
        if self.scaled {
            operations.push(autoscaling("DeregisterScalableTarget", scalable(&self.name).into()));
        }
        if self.endpoint {
            operations.push(sagemaker("DeleteEndpoint", json!({ "EndpointName": self.name })));
        }
        for name in &self.configs {
            operations
                .push(sagemaker("DeleteEndpointConfig", json!({ "EndpointConfigName": name })));
        }
        for name in &self.models {
            operations.push(sagemaker("DeleteModel", json!({ "ModelName": name })));
        }
        operations
    }

    /// Removes it. What went meanwhile is no failure.
    pub fn remove(&self, control: &Control<'_>, limit: Duration, say: &dyn Fn(&str)) -> Result<()> {
        for operation in self.operations() {
            control.find(&operation)?;
            say(&format!("{} {}", operation.name(), subject(&operation)));
            // A configuration must outlive its endpoint.
            if operation.name() == "DeleteEndpoint" {
                let left = control.wait(
                    &self.name,
                    &["Deleting", "InService", "Failed"],
                    limit,
                    &|status| {
                        say(&format!("endpoint {}: {status}", self.name));
                    },
                )?;
                if let Some(left) = left {
                    return Err(Failure::new(format!(
                        "the endpoint {} is {} and was not deleted",
                        self.name,
                        left["EndpointStatus"].as_str().unwrap_or("without a state")
                    ))
                    .hint("run the same command again when nothing is under way"));
                }
            }
        }
        Ok(())
    }
}

/// What an operation removes.
pub fn subject(operation: &Operation) -> &str {
    let keys = ["EndpointName", "EndpointConfigName", "ModelName", "ResourceId"];
    keys.iter().find_map(|key| operation.body[*key].as_str()).unwrap_or_default()
}
