//! What the tests share: manifests as values, their schemas, and the containers in them.
#![allow(dead_code)] // Each test takes what it needs.

use std::fs;
use std::path::{Path, PathBuf};

use boon::{Compiler, Schemas};
use serde_json::Value;

/// Of `deploy/`.
pub fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Of the project.
pub fn project(path: &str) -> PathBuf {
    here("..").join(path)
}

pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files of a folder of `deploy/` that end so, sorted.
pub fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(here(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.to_str().unwrap().ends_with(ending)).collect();
    files.sort();
    assert!(!files.is_empty(), "{folder} has no {ending}");
    files
}

/// The documents of a YAML text.
pub fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}"))
}

/// Every manifest that is kept here, and the file it is in.
pub fn manifests() -> Vec<(PathBuf, Value)> {
    let mut manifests = vec![];
    for file in ["kserve", "helm/rendered"].into_iter().flat_map(|folder| files(folder, ".yaml")) {
        let found = documents(&read(&file));
        assert!(!found.is_empty(), "{}", file.display());
        manifests.extend(found.into_iter().map(|manifest| (file.clone(), manifest)));
    }
    manifests
}

/// What a JSON schema says of a value; `pointer` chooses a part of the schema.
pub fn validate(schema: &Value, pointer: &str, value: &Value) -> Result<(), String> {
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    compiler.add_resource("schema.json", schema.clone()).unwrap();
    let compiled = compiler
        .compile(&format!("schema.json{pointer}"), &mut schemas)
        .unwrap_or_else(|error| panic!("{pointer}: {error:#}"));
    schemas.validate(value, compiled).map_err(|error| format!("{error:#}"))
}

/// What the schema of its kind says of a manifest.
pub fn check(manifest: &Value) -> Result<(), String> {
    let schema: Value = serde_json::from_str(&read(&here("schemas/kinds.json"))).unwrap();
    let part = |key| manifest[key].as_str().unwrap_or_default();
    let kind = format!("{}/{}", part("apiVersion"), part("kind"));
    let pointer = schema["kinds"][&kind].as_str().ok_or(format!("no schema of {kind}"))?;
    validate(&schema, pointer, manifest)
}

/// The pod of a manifest, where it has one.
pub fn pod(manifest: &Value) -> Option<&Value> {
    match manifest["kind"].as_str()? {
        "Deployment" => Some(&manifest["spec"]["template"]["spec"]),
        "ClusterServingRuntime" => Some(&manifest["spec"]),
        "InferenceService" => Some(&manifest["spec"]["predictor"]),
        _ => None,
    }
}

/// The items of an array that may be missing.
pub fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The strings of an array that may be missing.
pub fn strings(value: &Value) -> Vec<&str> {
    items(value).map(|item| item.as_str().unwrap_or_else(|| panic!("no string: {item}"))).collect()
}

/// The containers that serve.
pub fn servers(manifest: &Value) -> Vec<&Value> {
    let containers = pod(manifest).map_or(&Value::Null, |pod| &pod["containers"]);
    items(containers)
        .filter(|container| container["command"] == serde_json::json!(["tritonserver"]))
        .collect()
}

/// `--name=value` of a container's arguments.
pub fn arguments(container: &Value) -> Vec<(&str, &str)> {
    fn pair(argument: &str) -> (&str, &str) {
        let pair = argument.split_once('=').filter(|(name, _)| name.starts_with("--"));
        pair.unwrap_or_else(|| panic!("{argument}: not --name=value"))
    }
    strings(&container["args"]).into_iter().map(pair).collect()
}

/// What `scripts/test` says where it is.
pub fn from_environment(variable: &str) -> PathBuf {
    let value = std::env::var_os(variable).map(PathBuf::from);
    value.filter(|path| path.exists()).unwrap_or_else(|| {
        panic!(
            "{variable} names nothing: run the tests through scripts/test, which sets up a server"
        )
    })
}
