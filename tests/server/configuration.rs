//! Configurations: completed where they leave things open, refused by name where
//! they are wrong. A model that does not load leaves the others alone.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Server, copy_model, good, preprocess_model, server};

#[test]
fn a_model_folder_needs_little() {
    let client = server().client();
    let config = client.model_config("completed").unwrap();
    assert_eq!(config["max_batch_size"], 8);
    assert_eq!(config["input"][0]["name"], "image");
    assert_eq!(config["input"][0]["data_type"], "TYPE_STRING");
    assert_eq!(config["output"][0]["name"], "clip_pixel_values");
    assert_eq!(config["output"][0]["data_type"], "TYPE_FP32");
    assert_eq!(config["instance_group"][0]["kind"], "KIND_CPU");
    assert_eq!(config["dynamic_batching"]["preferred_batch_size"], json!([8]));
    // The sizes are those of the model in the folder.
    let shape = client.model_metadata("completed").unwrap()["outputs"][0]["shape"].clone();
    assert_eq!(shape[0], json!(-1));
    assert!(shape[2].as_i64().or_else(|| shape[2].as_str()?.parse().ok()).unwrap() > 0, "{shape}");
    server().assert_serves("completed", &good());
}

/// Models that must not load: what is wrong, the configuration, what the reason must say.
const WRONG: [(&str, &str, &str); 12] = [
    (
        "unknown_parameter",
        "parameters { key: \"thread\" value { string_value: \"2\" } }",
        "unknown parameter `thread`",
    ),
    (
        "bad_parameter",
        "parameters { key: \"threads\" value { string_value: \"-2\" } }",
        "parameter `threads`: not a whole number",
    ),
    (
        "wrong_dtype",
        "input { name: \"image\" data_type: TYPE_UINT8 dims: [ 1 ] }",
        "input `image`: data_type TYPE_UINT8, the stage has TYPE_STRING",
    ),
    (
        "wrong_dims",
        "input { name: \"image\" data_type: TYPE_STRING dims: [ 2 ] }",
        "input `image`: dims [2]",
    ),
    (
        "wrong_rank",
        "output { name: \"clip_pixel_values\" data_type: TYPE_FP32 dims: [ 3 ] }",
        "output `clip_pixel_values`: dims [3]",
    ),
    (
        "wrong_name",
        "input { name: \"picture\" data_type: TYPE_STRING dims: [ 1 ] }",
        "input `picture`: the stage's are image",
    ),
    (
        "wrong_output",
        "output { name: \"pixels\" data_type: TYPE_FP32 dims: [ -1 ] }",
        "output `pixels`",
    ),
    (
        "optional_image",
        "input { name: \"image\" data_type: TYPE_STRING dims: [ 1 ] optional: true }",
        "input `image`: optional",
    ),
    ("sequence", "sequence_batching { }", "sequence_batching"),
    ("decoupled", "model_transaction_policy { decoupled: true }", "decoupled"),
    ("no_stage_file", "", "stage.json"),
    ("bad_stage_file", "", "stage.json"),
];

#[test]
fn wrong_configurations_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path();
    for (name, config, _) in WRONG {
        preprocess_model(repository, name, config);
    }
    let stage_file = |name: &str| repository.join(name).join("1/stage.json");
    fs::remove_file(stage_file("no_stage_file")).unwrap();
    fs::write(stage_file("bad_stage_file"), "{\"stage\": \"teleport\"}").unwrap();
    preprocess_model(repository, "right", "");
    broken_weights(repository);
    let server = Server::start(&[repository], &[]);
    let index = server.client().repository_index().unwrap();
    let reason = |name: &str| -> String {
        let models = index.as_array().unwrap();
        let entry = models.iter().find(|entry| entry["name"] == name).unwrap();
        assert_eq!(entry["state"], "UNAVAILABLE", "{name}");
        entry["reason"].as_str().unwrap().to_owned()
    };
    for (name, _, expected) in WRONG {
        let reason = reason(name);
        assert!(reason.contains(expected), "{name}: {reason:?} lacks {expected:?}");
    }
    let reason = reason("broken_weights");
    assert!(!reason.is_empty());
    assert!(!server.client().is_ready());
    server.assert_serves("right", &good());
}

/// A stage whose engine finds no graph in its files.
fn broken_weights(repository: &Path) {
    copy_model(repository, "clip_image", "broken_weights", "");
    let version = repository.join("broken_weights/1");
    for entry in fs::read_dir(version).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "onnx") {
            fs::write(path, b"not a graph").unwrap();
        }
    }
}

#[test]
fn without_completion_the_file_must_say_it_all() {
    let folder = tempfile::tempdir().unwrap();
    let whole = "max_batch_size: 4 \
         input { name: \"image\" data_type: TYPE_STRING dims: [ 1 ] } \
         output { name: \"clip_pixel_values\" data_type: TYPE_FP32 dims: [ 3, -1, -1 ] } \
         instance_group { kind: KIND_CPU count: 2 }";
    preprocess_model(folder.path(), "whole", whole);
    let no_batch = whole.replace("max_batch_size: 4", "");
    preprocess_model(folder.path(), "no_batch", &no_batch);
    let on_gpu = whole.replace("KIND_CPU", "KIND_GPU");
    preprocess_model(folder.path(), "on_gpu", &on_gpu);
    let flags = ["--disable-auto-complete-config", "--backend-config=imprompt,max_labels=7"];
    let server = Server::start(&[folder.path()], &flags);
    server.assert_serves("whole", &good());
    let index = server.client().repository_index().unwrap();
    let state = |name: &str| {
        let models = index.as_array().unwrap();
        models.iter().find(|entry| entry["name"] == name).unwrap().clone()
    };
    assert_eq!(state("whole")["state"], "READY");
    let text = |value: Value| value["reason"].as_str().unwrap().to_owned();
    assert!(text(state("no_batch")).contains("max_batch_size: 0"), "{index}");
    // Triton itself refuses the kind where it sees no GPU; else this backend does.
    assert!(text(state("on_gpu")).to_lowercase().contains("gpu"), "{index}");
}
