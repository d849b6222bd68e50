//! The chart: what is kept of its rendering is fresh, values are checked, and its parts fit together.
#![allow(missing_docs)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use support::{documents, files, here, items, read, strings, validate};

/// What there is below a folder of `deploy/helm`, with its sums.
fn sums(folder: &str, into: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(here("helm").join(folder)).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            sums(&name, into);
        } else if name != "rendered/SHA256SUMS" {
            let digest = Sha256::digest(fs::read(entry.path()).unwrap());
            into.insert(name, digest.iter().map(|byte| format!("{byte:02x}")).collect());
        }
    }
}

#[test]
fn what_is_rendered_is_of_this_chart() {
    let mut found = BTreeMap::new();
    for folder in ["imprompt", "values", "rendered"] {
        sums(folder, &mut found);
    }
    let noted = read(&here("helm/rendered/SHA256SUMS"));
    let noted: BTreeMap<_, _> = noted
        .lines()
        .map(|line| line.split_once("  ").unwrap())
        .map(|(digest, name)| (name.to_owned(), digest.to_owned()))
        .collect();
    let differing: BTreeSet<_> = found
        .keys()
        .chain(noted.keys())
        .filter(|name| found.get(*name) != noted.get(*name))
        .collect();
    assert!(differing.is_empty(), "{differing:?} changed: run deploy/helm/render");
}

/// As Helm lays values over the chart's: objects key by key, all else whole.
fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// What the schema of the values says of the chart's own with `over` on them.
fn values(over: &Value) -> Result<(), String> {
    let schema: Value =
        serde_json::from_str(&read(&here("helm/imprompt/values.schema.json"))).unwrap();
    let mut values = documents(&read(&here("helm/imprompt/values.yaml"))).remove(0);
    merge(&mut values, over);
    validate(&schema, "", &values)
}

#[test]
fn values_are_what_the_schema_allows() {
    values(&json!({})).unwrap();
    for file in files("helm/values", ".yaml") {
        let over = documents(&read(&file)).remove(0);
        values(&over).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let rendered = here("helm/rendered").join(file.file_name().unwrap());
        assert!(rendered.exists(), "{}: not rendered", file.display());
    }
}

#[test]
fn wrong_values_are_refused() {
    let sum = "0".repeat(64);
    let cases = [
        (json!({ "replica": 2 }), "replica"),
        (json!({ "server": { "thread": 2 } }), "thread"),
        (json!({ "server": { "threads": "2" } }), "threads"),
        (json!({ "server": { "extraArguments": ["--log-verbose", "1"] } }), "extraArguments"),
        (json!({ "models": { "source": "gcs" } }), "source"),
        (json!({ "models": { "source": "volume", "volume": { "claim": "" } } }), "claim"),
        // A package whose sum is not said, and one that is nowhere.
        (
            json!({ "models": { "source": "package", "package": { "url": "https://a/b" } } }),
            "sha256",
        ),
        (json!({ "models": { "source": "package", "package": { "sha256": sum } } }), "url"),
        (json!({ "models": { "package": { "url": "http://a/b" } } }), "url"),
        // Triton loads no backend out of a store.
        (
            json!({ "models": { "source": "s3", "s3": { "url": "s3://b/c", "region": "r" } } }),
            "source",
        ),
        (
            json!({ "models": { "source": "s3", "s3": { "region": "r" } }, "backend": { "source": "server" } }),
            "url",
        ),
        (json!({ "backend": { "source": "image" } }), "repository"),
        (json!({ "autoscaling": { "minReplicas": 0 } }), "minReplicas"),
        (json!({ "podDisruptionBudget": { "maxUnavailable": 0 } }), "maxUnavailable"),
        (json!({ "service": { "httpPort": 70_000 } }), "httpPort"),
        (json!({ "image": { "tag": "" } }), "tag"),
    ];
    for (over, why) in cases {
        let error = values(&over).unwrap_err();
        assert!(error.contains(why), "{over}: {error}");
    }
}

/// A set of values as it was rendered, by kinds.
fn rendered(name: &str) -> BTreeMap<String, Value> {
    let manifests = documents(&read(&here("helm/rendered").join(name).with_extension("yaml")));
    let count = manifests.len();
    let by_kind: BTreeMap<_, _> = manifests
        .into_iter()
        .map(|manifest| (manifest["kind"].as_str().unwrap().to_owned(), manifest))
        .collect();
    assert_eq!(by_kind.len(), count, "{name}: a kind twice");
    by_kind
}

const SETS: [&str; 4] = ["default", "package", "s3", "volume"];

#[test]
fn values_choose_what_there_is() {
    let always = ["Deployment", "PodDisruptionBudget", "Service", "ServiceAccount"];
    for name in SETS {
        let manifests = rendered(name);
        let is_volume = name == "volume";
        let mut expected: Vec<_> = always.to_vec();
        expected.extend(if is_volume {
            vec!["PersistentVolumeClaim", "ServiceMonitor"]
        } else {
            vec!["HorizontalPodAutoscaler"]
        });
        expected.sort_unstable();
        assert_eq!(manifests.keys().collect::<Vec<_>>(), expected, "{name}");
        // The autoscaler's number is not to be set back by an upgrade.
        assert_eq!(manifests["Deployment"]["spec"]["replicas"].is_null(), !is_volume, "{name}");
    }
}

#[test]
fn parts_find_each_other() {
    for name in SETS {
        let manifests = rendered(name);
        let deployment = &manifests["Deployment"];
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        let chosen = |selector: &Value| {
            let selector = selector.as_object().filter(|selector| !selector.is_empty());
            selector.expect("a selector").iter().all(|(key, value)| labels[key] == *value)
        };
        let service = &manifests["Service"];
        assert!(chosen(&deployment["spec"]["selector"]["matchLabels"]), "{name}");
        assert!(chosen(&service["spec"]["selector"]), "{name}");
        assert!(
            chosen(&manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]),
            "{name}"
        );
        let pod = &deployment["spec"]["template"]["spec"];
        let server = &pod["containers"][0];
        let ports: BTreeMap<_, _> = items(&server["ports"])
            .map(|port| (port["name"].as_str().unwrap(), &port["containerPort"]))
            .collect();
        let targets =
            items(&service["spec"]["ports"]).map(|port| port["targetPort"].as_str().unwrap());
        assert_eq!(targets.collect::<Vec<_>>(), ["http", "grpc", "metrics"], "{name}");
        for (port, number) in &ports {
            let argument = format!("--{port}-port={number}");
            assert!(strings(&server["args"]).contains(&&*argument), "{name}: {argument}");
        }
        assert_eq!(pod["serviceAccountName"], manifests["ServiceAccount"]["metadata"]["name"]);
        if let Some(autoscaler) = manifests.get("HorizontalPodAutoscaler") {
            let target = &autoscaler["spec"]["scaleTargetRef"];
            assert_eq!(target["name"], deployment["metadata"]["name"], "{name}");
        }
        if let Some(monitor) = manifests.get("ServiceMonitor") {
            let selector = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap();
            assert!(
                selector.iter().all(|(key, value)| service["metadata"]["labels"][key] == *value)
            );
            let port = &monitor["spec"]["endpoints"][0]["port"];
            assert!(items(&service["spec"]["ports"]).any(|has| has["name"] == *port), "{name}");
        }
        if let Some(claim) = manifests.get("PersistentVolumeClaim") {
            let volumes = items(&pod["volumes"]);
            let mut claims = volumes.map(|volume| &volume["persistentVolumeClaim"]["claimName"]);
            assert!(claims.any(|has| *has == claim["metadata"]["name"]), "{name}");
        }
    }
}

/// The shell command of an init container, with its folders elsewhere.
fn script(set: &str, container: &str, folder: &Path) -> Command {
    let manifests = rendered(set);
    let pod = &manifests["Deployment"]["spec"]["template"]["spec"];
    let container = items(&pod["initContainers"]).find(|init| init["name"] == container).unwrap();
    let [program, options, text] = strings(&container["command"])[..] else {
        panic!("{container}")
    };
    let folder = folder.to_str().unwrap();
    let text = text.replace("/models", &format!("{folder}/models"));
    let text = text.replace("/backends", &format!("{folder}/backends"));
    let mut command = Command::new(program);
    command.args([options, &text]);
    command
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

#[test]
fn a_package_is_fetched_checked_and_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for stage in ["captioner", "ranker"] {
        fs::create_dir_all(path("packed").join(stage)).unwrap();
    }
    fs::create_dir(path("models")).unwrap();
    fs::write(path("packed/captioner/weights"), "weights").unwrap();
    fs::hard_link(path("packed/captioner/weights"), path("packed/ranker/weights")).unwrap();
    let archive = path("package.tar.gz");
    let mut tar = Command::new("tar");
    tar.arg("-czf").arg(&archive).arg("-C").arg(path("packed")).args(["captioner", "ranker"]);
    assert!(run(&mut tar).status.success());
    let digest = Sha256::digest(fs::read(&archive).unwrap());
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let fetch = |sum: &str, url: &str| {
        let mut command = script("package", "package", folder.path());
        run(command.env("PACKAGE_URL", url).env("PACKAGE_SHA256", sum))
    };
    let url = format!("file://{}", archive.display());
    let weights = path("models/repository/ranker/weights");
    // A pod whose init containers run once more begins anew.
    for _ in 0..2 {
        let output = fetch(&digest, &url);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(fs::read_to_string(&weights).unwrap(), "weights");
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(fs::metadata(&weights).unwrap().nlink(), 2, "the link is one");
        assert!(!path("models/package.tar.gz").exists());
    }
    for (sum, url) in [(&*"0".repeat(64), &*url), (&digest, "file:///nowhere/package.tar.gz")] {
        assert!(!fetch(sum, url).status.success());
        assert!(!weights.exists(), "nothing of a wrong package is served");
    }
}

#[test]
fn a_backend_is_copied_out_of_its_image() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("library"), "library").unwrap();
    fs::write(path("runtime"), "runtime").unwrap();
    fs::create_dir(path("backends")).unwrap();
    let copy = |library: &str, runtime: &str| {
        let mut command = script("s3", "backend", folder.path());
        run(command.env("LIBRARY", library).env("ONNXRUNTIME", runtime)).status.success()
    };
    let [library, runtime] = ["library", "runtime"].map(|name| path(name).display().to_string());
    assert!(!copy("/nowhere", &runtime));
    assert!(copy(&library, "") && !path("backends/imprompt/libonnxruntime.so").exists());
    assert!(copy(&library, &runtime));
    let copied = |name: &str| fs::read_to_string(path("backends/imprompt").join(name)).unwrap();
    assert_eq!(copied("libtriton_imprompt.so"), "library");
    assert_eq!(copied("libonnxruntime.so"), "runtime");
}
