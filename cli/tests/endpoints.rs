//! `imprompt deploy`, `delete` and `invoke`: against a stand-in for AWS, and against loopback
//! servers for what that does not do (updates, failures, answers of models).

mod common;

use std::sync::{Arc, Mutex};

use common::cloud::{Moto, check_signature, run, with_aws};
use common::{Asked, Reply, Run, Server};
use serde_json::{Value, json};

const DEPLOY: [&str; 13] = [
    "deploy",
    "--name",
    "prompts",
    "--model-data",
    "s3://models/m.tar.gz",
    "--ensemble",
    "interrogate",
    "--role",
    "arn:aws:iam::123456789012:role/sagemaker",
    "--image",
    "1.dkr.ecr.eu-west-1.amazonaws.com/triton:1",
    "--instance-type",
    "ml.m5.xlarge",
];

fn command(url: &str, arguments: &[&str]) -> Run {
    run(with_aws(url).args(arguments))
}

fn deploy(url: &str, arguments: &[&str]) -> Run {
    command(url, &[&DEPLOY[..], arguments].concat())
}

fn lines(run: &Run) -> Vec<Value> {
    assert_eq!(run.code, 0, "{}", run.stderr);
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn an_endpoint_is_made_once_and_deleted_with_all_that_is_its() {
    let moto = Moto::start();
    let scaled = ["--autoscale", "1..3", "--json"];
    let first = lines(&deploy(&moto.url, &scaled)).remove(0);
    assert_eq!((&first["done"], &first["status"]), (&json!("created"), &json!("InService")));
    let again = lines(&deploy(&moto.url, &scaled)).remove(0);
    assert_eq!((&again["done"], &again["config"]), (&json!("unchanged"), &first["config"]));
    let asked = command(&moto.url, &["delete", "--endpoint", "prompts"]);
    assert_eq!((asked.code, &*asked.stdout), (2, ""));
    assert!(asked.stderr.contains("--yes"), "{}", asked.stderr);
    let dry = lines(&command(&moto.url, &["delete", "--endpoint", "prompts", "--dry-run"]));
    let targets: Vec<_> =
        dry.iter().map(|line| line["headers"]["X-Amz-Target"].as_str().unwrap()).collect();
    assert_eq!(
        targets,
        [
            "AnyScaleFrontendService.DeregisterScalableTarget",
            "SageMaker.DeleteEndpoint",
            "SageMaker.DeleteEndpointConfig",
            "SageMaker.DeleteModel"
        ]
    );
    let deleted = command(&moto.url, &["delete", "--endpoint", "prompts", "--yes"]);
    assert_eq!(deleted.code, 0, "{}", deleted.stderr);
    let gone = command(&moto.url, &["delete", "--endpoint", "prompts", "--yes"]);
    assert_eq!(gone.code, 1);
    assert!(gone.stderr.contains("there is no endpoint prompts"), "{}", gone.stderr);
}

#[test]
fn a_dry_run_prints_the_requests_and_asks_nobody() {
    let server = Server::start(|_| Reply::new(500, ""));
    let arguments = [
        &[
            "--dry-run",
            "--env",
            "A=b",
            "--data-capture",
            "s3://kept/x",
            "--data-capture-percent",
            "7",
        ][..],
        &[
            "--health-check-timeout",
            "900",
            "--model-download-timeout",
            "1200",
            "--autoscale",
            "2..4",
        ],
    ]
    .concat();
    let requests = lines(&deploy(&server.url, &arguments));
    assert!(server.asked().is_empty());
    let body = |target: &str| {
        let of = requests.iter().find(|r| r["headers"]["X-Amz-Target"] == target);
        of.unwrap_or_else(|| panic!("no {target}"))["body"].clone()
    };
    let model = body("SageMaker.CreateModel");
    assert_eq!(
        model["PrimaryContainer"],
        json!({
            "Image": "1.dkr.ecr.eu-west-1.amazonaws.com/triton:1", "Mode": "SingleModel",
            "ModelDataUrl": "s3://models/m.tar.gz",
            "Environment": {
                "A": "b", "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME": "interrogate", "SAGEMAKER_TRITON_LOG_VERBOSE": "false"
            }
        })
    );
    let config = body("SageMaker.CreateEndpointConfig");
    assert_eq!(
        config["ProductionVariants"],
        json!([{
            "VariantName": "AllTraffic", "ModelName": model["ModelName"], "InstanceType": "ml.m5.xlarge",
            "InitialInstanceCount": 2, "InitialVariantWeight": 1.0,
            "ModelDataDownloadTimeoutInSeconds": 1200, "ContainerStartupHealthCheckTimeoutInSeconds": 900
        }])
    );
    assert_eq!(config["DataCaptureConfig"]["InitialSamplingPercentage"], 7);
    assert_eq!(body("SageMaker.UpdateEndpoint")["RetainAllVariantProperties"], true);
    assert_eq!(body("AnyScaleFrontendService.RegisterScalableTarget")["MaxCapacity"], 4);
    let metric = &body("AnyScaleFrontendService.PutScalingPolicy")["TargetTrackingScalingPolicyConfiguration"];
    assert_eq!(
        metric["PredefinedMetricSpecification"]["PredefinedMetricType"],
        "SageMakerVariantInvocationsPerInstance"
    );

    let many = [
        "--name",
        "many",
        "--model-data",
        "s3://models/all/",
        "--multi-model",
        "--model-cache",
        "disabled",
    ];
    let many = [&["deploy"], &many[..], &DEPLOY[7..], &["--dry-run"]].concat();
    let requests = lines(&command(&server.url, &many));
    let container = &requests[0]["body"]["PrimaryContainer"];
    assert_eq!(
        (&container["Mode"], &container["MultiModelConfig"]),
        (&json!("MultiModel"), &json!({"ModelCacheSetting": "Disabled"}))
    );
}

/// A control plane that has one endpoint, and remembers what was made.
#[derive(Default)]
struct Plane {
    config: String,
    /// What the endpoint says, one after the other; the last stays.
    says: Vec<Value>,
    models: Vec<String>,
    configs: Vec<String>,
}

impl Plane {
    fn answer(&mut self, asked: &Asked) -> Reply {
        check_signature(asked, "sagemaker");
        let body: Value = serde_json::from_slice(&asked.body).unwrap();
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let missing =
            || Reply::new(400, r#"{"__type":"ValidationException","message":"Could not find it"}"#);
        let fine = |value: Value| Reply::new(200, value.to_string());
        let listed = |kind: &str, names: &[String]| {
            let names: Vec<_> =
                names.iter().map(|name| json!({ format!("{kind}Name"): name })).collect();
            fine(json!({ format!("{kind}s"): names }))
        };
        match asked.header("x-amz-target").unwrap().strip_prefix("SageMaker.").unwrap() {
            "DescribeEndpoint" => {
                let mut says =
                    if self.says.len() > 1 { self.says.remove(0) } else { self.says[0].clone() };
                if says["EndpointConfigName"].is_null() {
                    says["EndpointConfigName"] = self.config.clone().into();
                }
                fine(says)
            }
            "DescribeModel" if !self.models.contains(&text("ModelName")) => missing(),
            "DescribeEndpointConfig" if !self.configs.contains(&text("EndpointConfigName")) => {
                missing()
            }
            "CreateModel" => {
                self.models.push(text("ModelName"));
                fine(json!({}))
            }
            "CreateEndpointConfig" => {
                self.configs.push(text("EndpointConfigName"));
                fine(json!({}))
            }
            "UpdateEndpoint" => {
                self.config = text("EndpointConfigName");
                fine(json!({}))
            }
            "ListModels" => listed("Model", &self.models),
            "ListEndpointConfigs" => listed("EndpointConfig", &self.configs),
            "DeleteModel" => {
                self.models.retain(|name| *name != text("ModelName"));
                Reply::new(200, "")
            }
            "DeleteEndpointConfig" => {
                self.configs.retain(|name| *name != text("EndpointConfigName"));
                Reply::new(200, "")
            }
            _ => fine(json!({})),
        }
    }
}

fn plane(says: Vec<Value>) -> (Server, Arc<Mutex<Plane>>) {
    let old = "prompts-0123456789".to_owned();
    let plane = Plane {
        config: old.clone(),
        says,
        models: vec![old.clone(), "prompts-by-hand".into()],
        configs: vec![old],
    };
    let plane = Arc::new(Mutex::new(plane));
    let shared = plane.clone();
    (Server::start(move |asked| shared.lock().unwrap().answer(asked)), plane)
}

fn status(status: &str) -> Value {
    json!({ "EndpointStatus": status })
}

#[test]
fn a_change_moves_the_endpoint_and_removes_what_it_had() {
    let says = ["Updating", "InService", "Updating", "InService"].map(status).to_vec();
    let (server, plane) = plane(says);
    let updated = lines(&deploy(&server.url, &["--json"])).remove(0);
    assert_eq!(updated["done"], "updated");
    let plane = plane.lock().unwrap();
    assert_eq!(plane.configs, [updated["config"].as_str().unwrap()]);
    assert_eq!(
        plane.models,
        ["prompts-by-hand", updated["model"].as_str().unwrap()],
        "ours alone are removed"
    );
    let targets: Vec<_> =
        server.asked().iter().map(|a| a.header("x-amz-target").unwrap().to_owned()).collect();
    let at = |name: &str| targets.iter().position(|target| target.ends_with(name)).unwrap();
    assert!(
        at("CreateEndpointConfig") < at("UpdateEndpoint")
            && at("UpdateEndpoint") < at("DeleteEndpointConfig")
    );
}

#[test]
fn failures_are_explained() {
    let old = "prompts-0123456789";
    let cases = [
        (
            vec![
                status("InService"),
                json!({
                    "EndpointStatus": "InService", "EndpointConfigName": old,
                    "FailureReason": "The primary container did not pass the ping health check."
                }),
            ],
            "is back in service with the configuration of before: The primary container",
            "--health-check-timeout",
        ),
        (
            vec![
                json!({"EndpointStatus": "Failed", "FailureReason": "Unable to provision capacity"}),
            ],
            "is Failed: Unable to provision",
            "imprompt delete --endpoint prompts",
        ),
        (
            vec![
                status("InService"),
                json!({"EndpointStatus": "Failed", "FailureReason": "InsufficientInstanceCapacity"}),
            ],
            "is Failed: Insufficient",
            "another --instance-type",
        ),
    ];
    for (says, error, hint) in cases {
        let (server, plane) = plane(says);
        let failed = deploy(&server.url, &[]);
        assert_eq!((failed.code, &*failed.stdout), (1, ""));
        assert!(failed.stderr.contains(error) && failed.stderr.contains(hint), "{}", failed.stderr);
        assert!(plane.lock().unwrap().configs.contains(&old.to_owned()), "what works is kept");
    }
    let refused = Server::start(|_| {
        Reply::new(
            400,
            r#"{"__type":"com.amazonaws#UnrecognizedClientException","message":"The token is invalid"}"#,
        )
    });
    let failed = deploy(&refused.url, &[]);
    assert_eq!(failed.code, 1);
    assert!(failed.stderr.contains("hint: AWS does not know this access key"), "{}", failed.stderr);
    assert_eq!(refused.asked().len(), 1, "a refusal is no reason to ask again");
}

/// An endpoint of `interrogate`: the first answer is that the model is being loaded.
fn endpoint(asked: &Asked) -> Reply {
    check_signature(asked, "sagemaker");
    assert_eq!(asked.path, "/endpoints/prompts/invocations");
    let kind = asked.header("content-type").unwrap();
    let length = kind
        .strip_prefix("application/vnd.sagemaker-triton.binary+json;json-header-size=")
        .unwrap();
    let (header, binary) = asked.body.split_at(length.parse().unwrap());
    let header: Value = serde_json::from_slice(header).unwrap();
    if binary.windows(3).any(|bytes| bytes == b"bad") {
        let original = r#"{\"error\":\"input `image`: not a picture\"}"#;
        let body = format!(
            r#"{{"ErrorCode":"X","OriginalStatusCode":400,"OriginalMessage":"{original}","Message":"m"}}"#
        );
        return Reply::new(424, body).header("x-amzn-ErrorType", "ModelError");
    }
    let text = |name: &str, text: &str| {
        (
            json!({"name": name, "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": text.len() + 4}}),
            text.to_owned(),
        )
    };
    let labels = header["inputs"].as_array().unwrap().iter().any(|input| input["name"] == "labels");
    let outputs = match labels {
        true => vec![text("label", "cat")],
        false => vec![text("prompt", "a croissant, crisp"), text("caption", "a croissant")],
    };
    let mut list: Vec<_> = outputs.iter().map(|(output, _)| output.clone()).collect();
    for name in ["similarity", "probability"] {
        list.push(json!({"name": name, "datatype": "FP32", "shape": [1, 1], "data": [0.25]}));
    }
    let head = json!({"model_name": "m.tar.gz", "model_version": "1", "outputs": list}).to_string();
    let mut body = head.clone().into_bytes();
    for (_, text) in &outputs {
        body.extend((text.len() as u32).to_le_bytes());
        body.extend(text.as_bytes());
    }
    let kind =
        format!("application/vnd.sagemaker-triton.binary+json;json-header-size={}", head.len());
    Reply::new(200, body).header("content-type", kind)
}

#[test]
fn an_endpoint_is_asked_about_every_picture_in_every_mode() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in [("a.png", "good"), ("b.png", "bad"), ("c.png", "good")] {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let path = folder.path().to_str().unwrap();
    let server = Server::start(endpoint);
    let flags = ["invoke", "--endpoint", "prompts", path, "--mode", "best,fast"];
    let asked = command(
        &server.url,
        &[&flags[..], &["--json", "--target-model", "m.tar.gz", "--max-flavors", "5"]].concat(),
    );
    assert_eq!(asked.code, 1);
    let said: Vec<Value> =
        asked.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let keys: Vec<_> = said[0].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["image", "mode", "prompt", "caption", "similarity", "seconds"]);
    let modes: Vec<_> = said.iter().map(|line| line["mode"].as_str().unwrap()).collect();
    assert_eq!(modes, ["best", "best", "fast", "fast"]);
    assert!(
        asked.stderr.contains("b.png: input `image`: not a picture (status 400)"),
        "{}",
        asked.stderr
    );
    let requests = server.asked();
    assert_eq!(requests.len(), 6);
    assert!(
        requests
            .iter()
            .all(|asked| asked.header("x-amzn-sagemaker-target-model") == Some("m.tar.gz"))
    );
    let plain = command(
        &server.url,
        &[&flags[..3], &[&format!("{path}/a.png"), "--mode", "best,fast"]].concat(),
    );
    assert_eq!(plain.stdout, "best\ta croissant, crisp\nfast\ta croissant, crisp\n");
    let tags = command(
        &server.url,
        &[&flags[..3], &[&format!("{path}/a.png"), "--labels", "cat"]].concat(),
    );
    assert_eq!((tags.code, &*tags.stdout), (0, "0.2500\t0.2500\tcat\n"), "{}", tags.stderr);
}

#[test]
fn an_endpoint_that_is_missing_or_slow_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("a.png");
    std::fs::write(&picture, "good").unwrap();
    let picture = picture.to_str().unwrap();
    let missing = Server::start(|_| {
        Reply::new(400, r#"{"Message":"Endpoint prompts of account 1 not found."}"#)
            .header("x-amzn-ErrorType", "ValidationError:http://x/")
    });
    let ask = |url: &str| command(url, &["invoke", "--endpoint", "prompts", picture]);
    let run = ask(&missing.url);
    assert_eq!(run.code, 1);
    assert!(
        run.stderr.contains("there is no endpoint prompts in this region\nhint: "),
        "{}",
        run.stderr
    );
    let count = Arc::new(Mutex::new(0));
    let slow = Server::start(move |asked| {
        let mut count = count.lock().unwrap();
        *count += 1;
        match *count {
            1 => Reply::new(429, r#"{"Message":"loading"}"#)
                .header("x-amzn-ErrorType", "ModelNotReadyException"),
            2 => Reply::new(503, "").header("x-amzn-ErrorType", "ServiceUnavailable"),
            _ => endpoint(asked),
        }
    });
    let run = ask(&slow.url);
    assert_eq!((run.code, &*run.stdout), (0, "a croissant, crisp\n"), "{}", run.stderr);
}
