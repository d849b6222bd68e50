//! A model's configuration (config.pbtxt as Triton gives it: JSON) against the
//! signature of its stage.

use imprompt_error::{Error, Result};
use imprompt_stage::signature::MAX_BATCH_SIZE;
use imprompt_stage::{Parameters, Signature, TensorSpec};
use serde_json::{Value, json};

/// Keys of the backend's own configuration that are Triton's, not ours.
const SERVER_KEYS: [&str; 5] = [
    "auto-complete-config",
    "backend-directory",
    "default-max-batch-size",
    "min-compute-capability",
    "version",
];

/// Sets `parameters` from the server's `--backend-config=imprompt,KEY=VALUE` flags.
///
/// # Errors
/// `BadModel` that names the key.
pub fn read_backend_config(config: &Value, parameters: &mut Parameters) -> Result<()> {
    let Some(flags) = config["cmdline"].as_object() else { return Ok(()) };
    for (key, value) in flags.iter().filter(|(key, _)| !SERVER_KEYS.contains(&key.as_str())) {
        let text = value.as_str().unwrap_or_default();
        parameters.set(key, text).map_err(|error| error.context("--backend-config"))?;
    }
    Ok(())
}

/// Sets `parameters` from the model's `parameters`.
///
/// # Errors
/// `BadModel` that names the key: unknown, or with a value out of range.
pub fn read_parameters(config: &Value, parameters: &mut Parameters) -> Result<()> {
    let Some(entries) = config["parameters"].as_object() else { return Ok(()) };
    for (key, value) in entries {
        let text = value["string_value"].as_str().unwrap_or_default();
        parameters.set(key, text)?;
    }
    Ok(())
}

/// `config` with what it leaves open: inputs, outputs, the largest batch and
/// dynamic batching. `None` when it leaves nothing open.
pub fn complete(config: &Value, signature: &Signature) -> Option<Value> {
    let mut completed = config.clone();
    if list(config, "input").is_empty() {
        completed["input"] = signature.inputs.iter().map(input).collect();
    }
    if list(config, "output").is_empty() {
        completed["output"] = signature.outputs.iter().map(output).collect();
    }
    if config["max_batch_size"].as_i64().unwrap_or(0) == 0 {
        completed["max_batch_size"] = MAX_BATCH_SIZE.into();
    }
    let schedulers = ["dynamic_batching", "sequence_batching", "ensemble_scheduling"];
    // Of several instances that share a model, requests of a batch would wait for one another.
    let batches = !signature.shares_model || instances(config) < 2;
    if batches && schedulers.iter().all(|scheduler| config[scheduler].is_null()) {
        // No max_queue_size: with any queue policy Triton stops prefetching, and then a
        // request that comes in the moment an instance ends waits up to 500 ms.
        completed["dynamic_batching"] = json!({});
    }
    if signature.decoupled && !is_decoupled(config) {
        completed["model_transaction_policy"] = json!({ "decoupled": true });
    }
    (completed != *config).then_some(completed)
}

/// How many instances `config` asks for.
fn instances(config: &Value) -> i64 {
    let count = |group: &Value| group["count"].as_i64().unwrap_or(1).max(1);
    list(config, "instance_group").iter().map(count).sum()
}

fn is_decoupled(config: &Value) -> bool {
    config["model_transaction_policy"]["decoupled"].as_bool() == Some(true)
}

fn input(spec: &TensorSpec) -> Value {
    let mut input = output(spec);
    if spec.optional {
        input["optional"] = true.into();
    }
    if spec.ragged {
        input["allow_ragged_batch"] = true.into();
    }
    input
}

fn output(spec: &TensorSpec) -> Value {
    json!({ "name": spec.name, "data_type": spec.dtype.config_name(), "dims": spec.dims })
}

/// Refuses a configuration that the stage cannot serve.
///
/// # Errors
/// `BadModel` that names the key: a name the stage does not have, another type
/// or shape, a required input left out, no batching, or a feature of Triton
/// that this backend does not have. `Unsupported` for instances on a GPU.
pub fn check(config: &Value, signature: &Signature) -> Result<()> {
    let batch = config["max_batch_size"].as_i64().unwrap_or(0);
    if batch < 1 {
        return Err(wrong(format!("max_batch_size: {batch}, at least 1 is needed")));
    }
    for key in ["sequence_batching", "ensemble_scheduling"] {
        if !config[key].is_null() {
            return Err(wrong(format!("{key}: not for a stage; use dynamic_batching")));
        }
    }
    let decoupled = is_decoupled(config);
    if decoupled != signature.decoupled {
        return Err(wrong(format!(
            "model_transaction_policy: decoupled is {decoupled}, the stage needs {}",
            signature.decoupled
        )));
    }
    for group in list(config, "instance_group") {
        let kind = group["kind"].as_str().unwrap_or_default();
        if kind == "KIND_GPU" && !signature.on_gpu {
            return Err(Error::unsupported(
                "config.pbtxt: instance_group: kind KIND_GPU: this stage computes on the processor; \
                 use KIND_CPU",
            ));
        }
    }
    for entry in list(config, "input") {
        let spec = check_tensor("input", entry, &signature.inputs)?;
        let name = spec.name;
        if entry["optional"].as_bool() == Some(true) && !spec.optional {
            return Err(wrong(format!("input `{name}`: optional, the stage needs it")));
        }
        if entry["allow_ragged_batch"].as_bool() == Some(true) && !spec.ragged {
            return Err(wrong(format!("input `{name}`: allow_ragged_batch is not for this input")));
        }
    }
    for entry in list(config, "output") {
        check_tensor("output", entry, &signature.outputs)?;
    }
    let inputs = list(config, "input");
    for spec in signature.inputs.iter().filter(|spec| !spec.optional) {
        if !inputs.iter().any(|entry| entry["name"] == spec.name) {
            return Err(wrong(format!("input `{}`: missing, the stage needs it", spec.name)));
        }
    }
    Ok(())
}

fn check_tensor<'s>(what: &str, entry: &Value, specs: &'s [TensorSpec]) -> Result<&'s TensorSpec> {
    let name = entry["name"].as_str().unwrap_or_default();
    let Some(spec) = specs.iter().find(|spec| spec.name == name) else {
        let names: Vec<_> = specs.iter().map(|spec| spec.name).collect();
        return Err(wrong(format!("{what} `{name}`: the stage's are {}", names.join(", "))));
    };
    let data_type = entry["data_type"].as_str().unwrap_or_default();
    if data_type != spec.dtype.config_name() {
        return Err(wrong(format!(
            "{what} `{name}`: data_type {data_type}, the stage has {}",
            spec.dtype.config_name()
        )));
    }
    if !entry["reshape"].is_null() {
        return Err(wrong(format!("{what} `{name}`: reshape is not for a stage")));
    }
    let dims: Vec<i64> = list(entry, "dims").iter().filter_map(dimension).collect();
    // -1 on either side leaves the size to the request.
    let fits = |(&size, &wanted): (&i64, &i64)| size == -1 || wanted == -1 || size == wanted;
    if dims.len() != spec.dims.len() || !dims.iter().zip(&spec.dims).all(fits) {
        return Err(wrong(format!(
            "{what} `{name}`: dims {dims:?}, the stage has {:?} (-1: any size)",
            spec.dims
        )));
    }
    Ok(spec)
}

/// A dimension, which protobuf's JSON writes as a number or as a text.
fn dimension(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

fn list<'v>(config: &'v Value, key: &str) -> &'v [Value] {
    config[key].as_array().map_or(&[], Vec::as_slice)
}

fn wrong(message: impl std::fmt::Display) -> Error {
    Error::bad_model(format!("config.pbtxt: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use imprompt_error::Kind;
    use imprompt_stage::StageKind;

    fn full(kind: StageKind) -> Value {
        complete(&json!({ "name": "any", "max_batch_size": 0, "input": [] }), &kind.signature())
            .unwrap()
    }

    #[test]
    fn an_empty_configuration_is_completed_and_then_right() {
        for kind in StageKind::ALL {
            let config = full(kind);
            check(&config, &kind.signature()).unwrap();
            assert_eq!(complete(&config, &kind.signature()), None);
        }
        let tagger = full(StageKind::Tagger);
        assert_eq!(tagger["max_batch_size"], 8);
        assert_eq!(
            tagger["input"][1],
            json!({"name": "labels", "data_type": "TYPE_STRING", "dims": [-1],
                   "optional": true, "allow_ragged_batch": true})
        );
        assert_eq!(tagger["dynamic_batching"], json!({}));
    }

    #[test]
    fn instances_that_share_a_model_need_no_batches_of_requests() {
        let batches = |kind: StageKind, groups: Value| {
            let config = json!({ "instance_group": groups });
            complete(&config, &kind.signature()).unwrap()["dynamic_batching"] == json!({})
        };
        use StageKind::{CaptionDecoder, CaptionStream, Captioner, Ranker, Tagger};
        for kind in [Captioner, CaptionDecoder, CaptionStream, Ranker] {
            assert!(!batches(kind, json!([{ "count": 8 }])));
            assert!(!batches(kind, json!([{ "count": 1 }, { "kind": "KIND_CPU" }])));
            assert!(batches(kind, json!([{ "count": 1 }])) && batches(kind, json!([])));
        }
        assert!(batches(Tagger, json!([{ "count": 8 }])));
    }

    #[test]
    fn what_the_owner_says_is_kept() {
        let config = json!({
            "max_batch_size": 3,
            "input": [{"name": "text", "data_type": "TYPE_STRING", "dims": ["1"]}],
            "output": [{"name": "text_embeds", "data_type": "TYPE_FP32", "dims": [512]}],
            "dynamic_batching": {},
        });
        let signature = StageKind::ClipText.signature();
        assert_eq!(complete(&config, &signature), None);
        check(&config, &signature).unwrap();
    }

    #[test]
    fn every_mistake_is_named() {
        type Change = fn(&mut Value);
        let changes: [(Change, &str); 13] = [
            (|c| c["max_batch_size"] = 0.into(), "max_batch_size: 0"),
            (|c| c["max_batch_size"] = (-1).into(), "max_batch_size: -1"),
            (|c| c["input"][0]["name"] = "picture".into(), "input `picture`: the stage's are"),
            (|c| c["input"][0]["data_type"] = "TYPE_INT8".into(), "data_type TYPE_INT8"),
            (|c| c["input"][0]["dims"] = json!([3]), "input `image_embeds`: dims [3]"),
            (|c| c["output"][0]["dims"] = json!([]), "output `prompt`: dims []"),
            (|c| c["output"][1]["name"] = "score".into(), "output `score`"),
            (|c| c["input"][1]["optional"] = true.into(), "input `caption`: optional"),
            (|c| c["input"][1]["allow_ragged_batch"] = true.into(), "allow_ragged_batch"),
            (|c| c["input"][1]["reshape"] = json!({"shape": []}), "input `caption`: reshape"),
            (|c| drop(c["input"].as_array_mut().unwrap().remove(1)), "input `caption`: missing"),
            (|c| c["sequence_batching"] = json!({}), "sequence_batching"),
            (|c| c["model_transaction_policy"] = json!({"decoupled": true}), "decoupled"),
        ];
        let mut signature = StageKind::Ranker.signature();
        signature.inputs[0].dims = vec![512];
        for (change, expected) in changes {
            let mut config = complete(&json!({}), &signature).unwrap();
            change(&mut config);
            let error = check(&config, &signature).unwrap_err();
            assert_eq!(error.kind(), Kind::BadModel);
            assert!(error.message().contains(expected), "{error}");
        }
        let groups = json!([{"kind": "KIND_CPU"}, {"kind": "KIND_GPU"}]);
        let mut config = full(StageKind::Ranker);
        config["instance_group"] = groups.clone();
        check(&config, &signature).unwrap();
        let mut config = full(StageKind::Preprocess);
        config["instance_group"] = groups;
        let error = check(&config, &StageKind::Preprocess.signature()).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.message().contains("computes on the processor"));
    }

    #[test]
    fn parameters_come_from_the_flags_and_then_the_model() {
        let mut parameters = Parameters::default();
        let flags = json!({"cmdline": {"auto-complete-config": "true", "threads": "2",
                                       "max_labels": "5"}});
        read_backend_config(&flags, &mut parameters).unwrap();
        let model = json!({"parameters": {"threads": {"string_value": "3"}}});
        read_parameters(&model, &mut parameters).unwrap();
        assert_eq!((parameters.threads, parameters.max_labels), (3, 5));
        let unknown = json!({"parameters": {"thread": {"string_value": "3"}}});
        let error = read_parameters(&unknown, &mut parameters).unwrap_err();
        assert!(error.message().contains("unknown parameter `thread`"));
        let unknown = json!({"cmdline": {"thread": "2"}});
        assert!(read_backend_config(&unknown, &mut parameters).is_err());
        read_backend_config(&json!({}), &mut parameters).unwrap();
    }
}
