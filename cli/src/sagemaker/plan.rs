//! What is to be asked of SageMaker for an endpoint: the exact requests, made without asking
//! anybody. Models and configurations are named by what is in them, so that the same arguments are
//! the same names, and a change is a new configuration that the endpoint moves to.

use std::collections::BTreeMap;

use imprompt_repository::files::hex;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::cloud::call::Operation;
use crate::talk::{Failure, Result};

/// The one variant of an endpoint's traffic.
pub const VARIANT: &str = "AllTraffic";

/// Digits of the content in a name.
const DIGITS: usize = 10;

/// SageMaker's bound of names.
const MOST: usize = 63;

/// The instances that scaling may choose between.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// At least.
    pub min: u32,
    /// At most.
    pub max: u32,
    /// Requests a minute that an instance shall have.
    pub target: f64,
}

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The endpoint's name.
    pub name: String,
    /// `s3://...`: a package, or of a multi-model endpoint the folder of packages.
    pub model_data: String,
    /// True of a multi-model endpoint.
    pub multi_model: bool,
    /// Whether a multi-model endpoint keeps models that it has loaded.
    pub model_cache: Option<bool>,
    /// The ensemble in a package of a single-model endpoint.
    pub ensemble: Option<String>,
    /// The role that SageMaker takes.
    pub role: String,
    /// The container.
    pub image: String,
    /// Such as `ml.g5.xlarge`.
    pub instance_type: String,
    /// How many to begin with.
    pub instance_count: u32,
    /// Gigabytes of disk.
    pub volume: Option<u32>,
    /// Seconds in which the container has to answer `/ping`.
    pub health_check_timeout: Option<u32>,
    /// Seconds in which the model has to be there.
    pub download_timeout: Option<u32>,
    /// The container's environment.
    pub environment: Vec<(String, String)>,
    /// Where requests and answers are kept, and how many of a hundred.
    pub data_capture: Option<(String, u32)>,
    /// Between how many instances to choose.
    pub scaling: Option<Scaling>,
    /// Makes other names out of the same content.
    pub salt: Option<String>,
}

/// The requests.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The endpoint's name.
    pub endpoint: String,
    /// The model's name.
    pub model: String,
    /// The configuration's name.
    pub config: String,
    /// `CreateModel`.
    pub create_model: Operation,
    /// `CreateEndpointConfig`.
    pub create_config: Operation,
    /// `CreateEndpoint`, where there is none.
    pub create: Operation,
    /// `UpdateEndpoint`, where there is one.
    pub update: Operation,
    /// `RegisterScalableTarget` and `PutScalingPolicy`.
    pub scaling: Vec<Operation>,
}

/// An operation of SageMaker.
pub fn sagemaker(name: &str, body: Value) -> Operation {
    Operation { service: "SageMaker", target: format!("SageMaker.{name}"), body }
}

/// An operation of Application Auto Scaling.
pub fn autoscaling(name: &str, body: Value) -> Operation {
    let target = format!("AnyScaleFrontendService.{name}");
    Operation { service: "Application Auto Scaling", target, body }
}

/// What names the instances of an endpoint to Application Auto Scaling.
pub fn scalable(endpoint: &str) -> Map<String, Value> {
    let Value::Object(object) = json!({
        "ServiceNamespace": "sagemaker",
        "ResourceId": format!("endpoint/{endpoint}/variant/{VARIANT}"),
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }) else {
        return Map::new();
    };
    object
}

impl Plan {
    /// The requests for what is wanted.
    ///
    /// # Errors
    /// What SageMaker would refuse, as far as it can be known here.
    pub fn new(wanted: &Wanted) -> Result<Self> {
        wanted.check()?;
        let container = wanted.container();
        let model_body = json!({ "ExecutionRoleArn": wanted.role, "PrimaryContainer": container });
        let model = wanted.named(&model_body);
        let config_body = wanted.config(&model);
        let config = wanted.named(&config_body);
        let create = json!({ "EndpointName": wanted.name, "EndpointConfigName": config });
        let mut update = create.clone();
        if wanted.scaling.is_some() {
            // An update would set the number of instances back.
            update["RetainAllVariantProperties"] = true.into();
            update["ExcludeRetainedVariantProperties"] =
                json!([{ "VariantPropertyType": "DataCaptureConfig" }]);
        }
        Ok(Plan {
            create_model: sagemaker("CreateModel", with("ModelName", &model, model_body)),
            create_config: sagemaker(
                "CreateEndpointConfig",
                with("EndpointConfigName", &config, config_body),
            ),
            create: sagemaker("CreateEndpoint", create),
            update: sagemaker("UpdateEndpoint", update),
            scaling: wanted
                .scaling
                .map(|scaling| scaling.operations(&wanted.name))
                .unwrap_or_default(),
            endpoint: wanted.name.clone(),
            model,
            config,
        })
    }
}

/// `body` with a first key.
fn with(key: &str, value: &str, body: Value) -> Value {
    let mut object = Map::from_iter([(key.to_owned(), value.into())]);
    if let Value::Object(rest) = body {
        object.extend(rest);
    }
    object.into()
}

/// True of the name of a model or configuration that was made for the endpoint.
pub fn is_of(endpoint: &str, name: &str) -> bool {
    let digits = name.strip_prefix(endpoint).and_then(|rest| rest.strip_prefix('-'));
    digits.is_some_and(|digits| {
        digits.len() == DIGITS
            && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// # Errors
/// When this is no name that SageMaker allows.
pub fn check_name(name: &str) -> Result<()> {
    let most = MOST - DIGITS - 1;
    let good = (1..=most).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    match good {
        true => Ok(()),
        false => Err(Failure::usage(format!(
            "the endpoint's name: 1 to {most} letters, digits and `-`, which neither begins nor ends it"
        ))),
    }
}

impl Wanted {
    fn check(&self) -> Result<()> {
        check_name(&self.name)?;
        let wrong = |what: &str| Err(Failure::usage(what));
        if !self.model_data.starts_with("s3://") {
            return wrong("--model-data: SageMaker reads from s3://BUCKET/... alone");
        }
        let is_package = self.model_data.ends_with(".tar.gz");
        if self.multi_model && !self.model_data.ends_with('/') {
            return Err(Failure::usage(
                "--model-data: of a multi-model endpoint the folder of its packages",
            )
            .hint("end it with a slash: s3://BUCKET/FOLDER/"));
        }
        if !self.multi_model && !is_package {
            return Err(Failure::usage(
                "--model-data: of a single-model endpoint a package, *.tar.gz",
            )
            .hint(
                "make one with `imprompt pack`, push it with `imprompt push`; or --multi-model",
            ));
        }
        let is_role = self.role.starts_with("arn:aws")
            && self.role.contains(":iam::")
            && self.role.contains(":role/");
        if !is_role {
            return Err(Failure::usage("--role: no role, arn:aws:iam::ACCOUNT:role/NAME"));
        }
        if self.image.is_empty()
            || self.image.len() > 255
            || self.image.contains(char::is_whitespace)
        {
            return wrong("--image: no container image");
        }
        if !self.instance_type.starts_with("ml.") {
            return wrong("--instance-type: SageMaker's begin with `ml.`, such as ml.g5.xlarge");
        }
        if let Some(Scaling { min, max, target }) = self.scaling
            && (min == 0 || min > max || !target.is_finite() || target <= 0.0)
        {
            return wrong("--autoscale: MIN..MAX with 1 <= MIN <= MAX, --autoscale-target above 0");
        }
        if let Some((url, percent)) = &self.data_capture
            && (!url.starts_with("s3://") || *percent > 100)
        {
            return wrong("--data-capture: s3://BUCKET/PREFIX, --data-capture-percent 0 to 100");
        }
        Ok(())
    }

    /// The name of content.
    fn named(&self, body: &Value) -> String {
        let mut hash = Sha256::new();
        hash.update(body.to_string());
        if let Some(salt) = &self.salt {
            hash.update(salt);
        }
        format!("{}-{}", self.name, &hex(&hash.finalize())[..DIGITS])
    }

    fn container(&self) -> Value {
        // Its verbose log has several lines a request and is on unless said.
        let mut environment =
            BTreeMap::from([("SAGEMAKER_TRITON_LOG_VERBOSE".to_owned(), "false".to_owned())]);
        if let Some(ensemble) = &self.ensemble {
            environment.insert("SAGEMAKER_TRITON_DEFAULT_MODEL_NAME".to_owned(), ensemble.clone());
        }
        environment.extend(self.environment.iter().cloned());
        let mode = if self.multi_model { "MultiModel" } else { "SingleModel" };
        let mut container = json!({
            "Image": self.image,
            "Mode": mode,
            "ModelDataUrl": self.model_data,
            "Environment": environment,
        });
        if let Some(cache) = self.model_cache {
            let setting = if cache { "Enabled" } else { "Disabled" };
            container["MultiModelConfig"] = json!({ "ModelCacheSetting": setting });
        }
        container
    }

    fn config(&self, model: &str) -> Value {
        let count = self.scaling.map_or(self.instance_count, |scaling| {
            self.instance_count.clamp(scaling.min, scaling.max)
        });
        let mut variant = json!({
            "VariantName": VARIANT,
            "ModelName": model,
            "InstanceType": self.instance_type,
            "InitialInstanceCount": count,
            "InitialVariantWeight": 1.0,
        });
        let optional = [
            ("VolumeSizeInGB", self.volume),
            ("ModelDataDownloadTimeoutInSeconds", self.download_timeout),
            ("ContainerStartupHealthCheckTimeoutInSeconds", self.health_check_timeout),
        ];
        for (key, value) in optional {
            if let Some(value) = value {
                variant[key] = value.into();
            }
        }
        let mut config = json!({ "ProductionVariants": [variant] });
        if let Some((url, percent)) = &self.data_capture {
            config["DataCaptureConfig"] = json!({
                "EnableCapture": true,
                "InitialSamplingPercentage": percent,
                "DestinationS3Uri": url,
                "CaptureOptions": [{ "CaptureMode": "Input" }, { "CaptureMode": "Output" }],
            });
        }
        config
    }
}

impl Scaling {
    fn operations(self, endpoint: &str) -> Vec<Operation> {
        let mut target = scalable(endpoint);
        target.insert("MinCapacity".to_owned(), self.min.into());
        target.insert("MaxCapacity".to_owned(), self.max.into());
        let mut policy =
            Map::from_iter([("PolicyName".to_owned(), format!("{endpoint}-invocations").into())]);
        policy.extend(scalable(endpoint));
        policy.insert("PolicyType".to_owned(), "TargetTrackingScaling".into());
        policy.insert(
            "TargetTrackingScalingPolicyConfiguration".to_owned(),
            json!({
                "TargetValue": self.target,
                "PredefinedMetricSpecification": {
                    "PredefinedMetricType": "SageMakerVariantInvocationsPerInstance",
                },
            }),
        );
        vec![
            autoscaling("RegisterScalableTarget", target.into()),
            autoscaling("PutScalingPolicy", policy.into()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            name: "prompts".into(),
            model_data: "s3://b/m.tar.gz".into(),
            ensemble: Some("interrogate".into()),
            role: "arn:aws:iam::123456789012:role/r".into(),
            image: "triton".into(),
            instance_type: "ml.m5.xlarge".into(),
            instance_count: 1,
            ..Wanted::default()
        }
    }

    #[test]
    fn names_follow_the_content() {
        let first = Plan::new(&wanted()).unwrap();
        let again = Plan::new(&wanted()).unwrap();
        assert_eq!((&first.model, &first.config), (&again.model, &again.config));
        let other = Plan::new(&Wanted { instance_count: 2, ..wanted() }).unwrap();
        assert_eq!(first.model, other.model, "the model is the same");
        assert_ne!(first.config, other.config);
        let salted = Plan::new(&Wanted { salt: Some("now".into()), ..wanted() }).unwrap();
        assert_ne!(first.model, salted.model);
        for name in [&first.model, &first.config] {
            assert!(is_of("prompts", name) && !is_of("prompt", name), "{name}");
        }
        assert!(!is_of("prompts", "prompts-by-hand"));
    }

    #[test]
    fn data_capture_and_scaling_are_off_unless_said() {
        let plan = Plan::new(&wanted()).unwrap();
        assert!(plan.scaling.is_empty());
        let config = plan.create_config.body.as_object().unwrap();
        assert_eq!(config.keys().collect::<Vec<_>>(), ["EndpointConfigName", "ProductionVariants"]);
        assert_eq!(plan.update.body, plan.create.body);
    }

    #[test]
    fn what_sagemaker_would_refuse_is_wrong_usage() {
        let scaling = |min, max, target| Some(Scaling { min, max, target });
        let cases = [
            Wanted { name: "-a".into(), ..wanted() },
            Wanted { name: "a".repeat(53), ..wanted() },
            Wanted { model_data: "gs://b/m.tar.gz".into(), ..wanted() },
            Wanted { model_data: "s3://b/m/".into(), ..wanted() },
            Wanted { multi_model: true, ..wanted() },
            Wanted { role: "r".into(), ..wanted() },
            Wanted { image: "a b".into(), ..wanted() },
            Wanted { instance_type: "m5.xlarge".into(), ..wanted() },
            Wanted { scaling: scaling(0, 1, 1.0), ..wanted() },
            Wanted { scaling: scaling(2, 1, 1.0), ..wanted() },
            Wanted { scaling: scaling(1, 2, 0.0), ..wanted() },
            Wanted { data_capture: Some(("s3://b".into(), 101)), ..wanted() },
        ];
        for case in cases {
            assert_eq!(Plan::new(&case).unwrap_err().code(), 2, "{case:?}");
        }
    }
}
