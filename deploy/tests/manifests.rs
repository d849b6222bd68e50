//! Every manifest is what its schema allows, and what it names exists.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Value, json};
use support::{
    arguments, check, documents, from_environment, here, items, manifests, pod, project, read,
    servers, strings,
};

#[test]
fn manifests_are_what_their_schemas_allow() {
    for (file, manifest) in manifests() {
        check(&manifest).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

/// A manifest and what is wrong with it.
fn refused(file: &str, change: impl FnOnce(&mut Value), why: &str) {
    let mut manifest = documents(&read(&here(file))).remove(0);
    check(&manifest).unwrap();
    change(&mut manifest);
    let error = check(&manifest).unwrap_err();
    assert!(error.contains(why), "{file}: {error} has no {why:?}");
}

#[test]
fn wrong_manifests_are_refused() {
    let (service, runtime) = ("kserve/inferenceservice.yaml", "kserve/runtime.yaml");
    let misspelt = |manifest: &mut Value| manifest["spec"]["predictor"]["minReplica"] = 1.into();
    refused(service, misspelt, "minReplica");
    let deep = |manifest: &mut Value| {
        manifest["spec"]["containers"][0]["startupProbe"]["httpget"] = json!({});
    };
    refused(runtime, deep, "httpget");
    let text = |manifest: &mut Value| manifest["spec"]["predictor"]["maxReplicas"] = "four".into();
    refused(service, text, "maxReplicas");
    let quantity = |manifest: &mut Value| {
        manifest["spec"]["containers"][0]["resources"]["limits"]["memory"] = "8 GB".into();
    };
    refused(runtime, quantity, "memory");
    let number = |manifest: &mut Value| {
        manifest["spec"]["annotations"]["prometheus.kserve.io/port"] = 8002.into()
    };
    refused(runtime, number, "port");
    let version = |manifest: &mut Value| manifest["apiVersion"] = "serving.kserve.io/v1".into();
    refused(service, version, "no schema");
    let absent = |manifest: &mut Value| {
        manifest["spec"]["predictor"]["model"].as_object_mut().unwrap().remove("modelFormat");
    };
    refused(service, absent, "modelFormat");
}

/// The names that `tritonserver --help` lists.
fn flags() -> BTreeSet<String> {
    let output =
        Command::new(from_environment("IMPROMPT_TRITONSERVER")).arg("--help").output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let names = text.lines().filter_map(|line| line.strip_prefix("  --"));
    let names = names.filter_map(|line| line.split_whitespace().next());
    names.map(|name| format!("--{name}")).collect()
}

#[test]
fn arguments_are_tritonservers() {
    let known = flags();
    assert!(known.contains("--model-repository") && !known.contains("--model-repositories"));
    let mut seen = 0;
    for (file, manifest) in manifests() {
        for server in servers(&manifest) {
            for (name, value) in arguments(server) {
                assert!(known.contains(name), "{}: no flag {name}", file.display());
                assert!(!value.is_empty(), "{}: {name} without a value", file.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 0);
}

/// The models that a container's arguments and the paths of its probes name.
fn models(container: &Value) -> Vec<&str> {
    let probes = ["startupProbe", "livenessProbe", "readinessProbe"].map(|probe| &container[probe]);
    let paths = probes.into_iter().filter_map(|probe| probe["httpGet"]["path"].as_str());
    let asked = paths.filter_map(|path| path.strip_prefix("/v2/models/")?.strip_suffix("/ready"));
    let mut models: Vec<_> = asked.collect();
    if container["args"].is_array() {
        let loaded = arguments(container).into_iter().filter(|(name, _)| *name == "--load-model");
        models.extend(loaded.map(|(_, model)| model));
    }
    models
}

#[test]
fn named_models_are_in_the_model_repository() {
    let mut seen = 0;
    for (file, manifest) in manifests() {
        let Some(pod) = pod(&manifest) else { continue };
        for container in items(&pod["containers"]).chain([&pod["model"]]) {
            for model in models(container) {
                let config = project("model_repository").join(model).join("config.pbtxt");
                assert!(config.exists(), "{}: no model {model}", file.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 0);
}

/// The seconds of a `sleep` before the end.
fn sleeps(container: &Value) -> u64 {
    match *strings(&container["lifecycle"]["preStop"]["exec"]["command"]) {
        ["sleep", seconds] => seconds.parse().unwrap(),
        _ => panic!("no sleep before the end: {container}"),
    }
}

/// Kubernetes kills what has not ended after the grace period.
fn ends_in_time(container: &Value, grace: &Value) {
    let exit = arguments(container).into_iter().find(|(name, _)| *name == "--exit-timeout-secs");
    let exit: u64 = exit.expect("an exit timeout").1.parse().unwrap();
    let grace = grace.as_u64().expect("a grace period");
    assert!(grace > exit + sleeps(container), "{grace} s for {exit} s and the sleep");
}

#[test]
fn servers_end_before_they_are_killed() {
    let runtime = &documents(&read(&here("kserve/runtime.yaml")))[0];
    let service = &documents(&read(&here("kserve/inferenceservice.yaml")))[0];
    let grace = &service["spec"]["predictor"]["terminationGracePeriodSeconds"];
    ends_in_time(servers(runtime)[0], grace);
    for (_, manifest) in manifests() {
        if manifest["kind"] == "Deployment" {
            let pod = pod(&manifest).unwrap();
            ends_in_time(servers(&manifest)[0], &pod["terminationGracePeriodSeconds"]);
        }
    }
}

#[test]
fn the_service_takes_the_runtime() {
    let runtime = &documents(&read(&here("kserve/runtime.yaml")))[0];
    let service = &documents(&read(&here("kserve/inferenceservice.yaml")))[0];
    let model = &service["spec"]["predictor"]["model"];
    assert_eq!(model["runtime"], runtime["metadata"]["name"]);
    let formats = items(&runtime["spec"]["supportedModelFormats"]);
    assert!(formats.into_iter().any(|format| format["name"] == model["modelFormat"]["name"]));
    let protocols = strings(&runtime["spec"]["protocolVersions"]);
    assert!(protocols.contains(&model["protocolVersion"].as_str().unwrap()));
}

#[test]
fn servers_can_write_where_they_must_alone() {
    for (file, manifest) in manifests() {
        for server in servers(&manifest) {
            let security = &server["securityContext"];
            assert_eq!(security["readOnlyRootFilesystem"], true, "{}", file.display());
            assert_eq!(security["allowPrivilegeEscalation"], false, "{}", file.display());
            assert_eq!(security["capabilities"], json!({ "drop": ["ALL"] }), "{}", file.display());
            let mounts: Vec<_> =
                items(&server["volumeMounts"]).map(|mount| &mount["mountPath"]).collect();
            for writable in ["/dev/shm", "/tmp"] {
                assert!(mounts.contains(&&json!(writable)), "{}: {writable}", file.display());
            }
            let volumes: BTreeSet<_> = items(&pod(&manifest).unwrap()["volumes"])
                .map(|volume| volume["name"].as_str().unwrap())
                .collect();
            for mount in items(&server["volumeMounts"]) {
                let name = mount["name"].as_str().unwrap();
                assert!(volumes.contains(name), "{}: no volume {name}", file.display());
            }
        }
    }
}
