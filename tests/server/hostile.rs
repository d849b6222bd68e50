//! Packages that are broken or meant to harm, on the real front end of a multi-model endpoint.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::endpoint::{Endpoint, Unpacked, package};
use crate::support::good;

/// What is done to an unpacked package, and what the endpoint says of it.
struct Harm {
    name: &'static str,
    does: fn(&Path),
    said: &'static str,
}

const WEIGHTS: &str = "clip_image/1/model.safetensors";
const STAGE: &str = "clip_image/1/stage.json";
const GRAPH: &str = "clip_image/1/clip_image.onnx";

fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    // Files of a package may be hard links of one.
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

fn replace_text(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text}");
    rewrite(path, |bytes| *bytes = text.replace(from, to).into_bytes());
}

/// The backend's library in the folder of a stage.
fn library(model: &Path) -> std::path::PathBuf {
    let entries = fs::read_dir(model.join("clip_image")).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    let is_ours = |path: &std::path::PathBuf| path.to_str().unwrap().contains("libtriton_imprompt");
    paths.find(is_ours).expect("a stage has the library")
}

fn link(model: &Path, file: &str, target: &str) {
    fs::remove_file(model.join(file)).unwrap();
    symlink(target, model.join(file)).unwrap();
}

fn pipe(model: &Path, file: &str) {
    fs::remove_file(model.join(file)).unwrap();
    assert!(Command::new("mkfifo").arg(model.join(file)).status().unwrap().success());
}

const HARMS: [Harm; 23] = [
    Harm {
        name: "no weights",
        does: |model| fs::remove_file(model.join(WEIGHTS)).unwrap(),
        said: "model.safetensors",
    },
    Harm {
        name: "half of the weights",
        does: |model| rewrite(&model.join(WEIGHTS), |bytes| bytes.truncate(bytes.len() / 2)),
        said: "clip_image",
    },
    Harm {
        name: "no byte of the weights",
        does: |model| rewrite(&model.join(WEIGHTS), Vec::clear),
        said: "clip_image",
    },
    Harm {
        name: "weights elsewhere",
        does: |model| link(model, WEIGHTS, "/etc/passwd"),
        said: "model.safetensors: a link out of the model's folder",
    },
    Harm {
        name: "weights without end",
        does: |model| link(model, WEIGHTS, "/dev/zero"),
        said: "model.safetensors: a link out of the model's folder",
    },
    Harm {
        name: "weights that are their own link",
        does: |model| link(model, WEIGHTS, "model.safetensors"),
        said: "model.safetensors",
    },
    Harm {
        name: "a pipe for weights",
        does: |model| pipe(model, WEIGHTS),
        said: "model.safetensors: neither a file nor a folder",
    },
    Harm {
        name: "a pipe for the stage's file",
        does: |model| pipe(model, STAGE),
        said: "stage.json: neither a file nor a folder",
    },
    Harm {
        name: "no file of the stage",
        does: |model| fs::remove_file(model.join(STAGE)).unwrap(),
        said: "stage.json",
    },
    Harm {
        name: "another stage",
        does: |model| replace_text(&model.join(STAGE), "\"clip_image\"", "\"ZOOM\""),
        said: "stage.json",
    },
    Harm {
        name: "deep JSON",
        does: |model| rewrite(&model.join(STAGE), |bytes| *bytes = vec![b'['; 1 << 20]),
        said: "stage.json",
    },
    Harm {
        name: "sizes that no memory holds",
        does: |model| {
            replace_text(
                &model.join(STAGE),
                "\"projection_dim\": 128",
                "\"projection_dim\": 9007199254740991",
            );
        },
        said: "clip_image",
    },
    Harm {
        name: "a path out of the folder",
        does: |model| {
            let path = model.join("preprocess/1/stage.json");
            replace_text(&path, "\"clip_preprocessor_config.json", "\"../../../../../etc/passwd");
        },
        said: "leads out of the folder",
    },
    Harm {
        name: "half of the graph",
        does: |model| rewrite(&model.join(GRAPH), |bytes| bytes.truncate(bytes.len() / 2)),
        said: "clip_image",
    },
    Harm {
        name: "another graph",
        does: |model| {
            rewrite(&model.join(GRAPH), |bytes| bytes.iter_mut().for_each(|b| *b ^= 0x55))
        },
        said: "clip_image",
    },
    Harm {
        name: "no graph",
        does: |model| fs::remove_file(model.join(GRAPH)).unwrap(),
        said: "clip_image.onnx",
    },
    Harm {
        name: "no library",
        does: |model| fs::remove_file(library(model)).unwrap(),
        said: "libtriton_imprompt",
    },
    Harm {
        name: "a library of the first bytes",
        does: |model| rewrite(&library(model), |bytes| bytes.truncate(40)),
        said: "clip_image",
    },
    Harm {
        name: "a library that is none",
        does: |model| rewrite(&library(model), |bytes| bytes[..64].fill(b'a')),
        said: "clip_image",
    },
    Harm {
        name: "no configuration",
        does: |model| rewrite(&model.join("clip_image/config.pbtxt"), |bytes| bytes.fill(b'{')),
        // Triton's own words; the rest is in its log.
        said: "failed to poll from model repository",
    },
    Harm {
        name: "a parameter that does not exist",
        does: |model| {
            rewrite(&model.join("clip_image/config.pbtxt"), |bytes| {
                let more = b"parameters { key: \"path\" value { string_value: \"/etc/passwd\" } }";
                bytes.extend_from_slice(more);
            });
        },
        said: "clip_image",
    },
    Harm {
        name: "more memory than there is",
        does: |model| {
            rewrite(&model.join("clip_image/config.pbtxt"), |bytes| {
                let more = b"parameters { key: \"threads\" value { string_value: \"999999999\" } }";
                bytes.extend_from_slice(more);
            });
        },
        said: "threads",
    },
    Harm {
        name: "nothing",
        does: |model| {
            fs::remove_dir_all(model).unwrap();
            fs::create_dir(model).unwrap();
        },
        said: "",
    },
];

#[test]
fn a_broken_package_is_refused_with_the_reason_and_harms_nobody() {
    let endpoint = Endpoint::multi();
    let steady = Unpacked::new("harmless", &package("zero_shot"));
    assert_eq!(endpoint.load(&steady), (200, String::new()));
    let request = good().text("labels", "a");
    for (number, harm) in HARMS.iter().enumerate() {
        let whole = package("embed_image");
        let model = Unpacked::new(&format!("harm{number}x"), &whole);
        (harm.does)(&model.folder());
        let started = Instant::now();
        let (status, said) = endpoint.load(&model);
        let name = harm.name;
        assert_eq!(status, 400, "{name}: {said}");
        assert!(said.contains(harm.said), "{name}: {said}");
        assert!(!said.contains("root:"), "{name}: {said}");
        assert!(started.elapsed() < Duration::from_secs(20), "{name}: {:?}", started.elapsed());
        // Neither the others nor its own name have suffered.
        endpoint.infer(Some(&steady), &request).unwrap();
        assert_eq!(endpoint.invoke(Some(&model), "application/json", b"{}").status, 404, "{name}");
        model.replace(&whole);
        assert_eq!(endpoint.load(&model), (200, String::new()), "{name}");
        endpoint.infer(Some(&model), &good()).unwrap();
        assert_eq!(endpoint.unload(&model), 200, "{name}");
    }
}

#[test]
fn an_ensemble_without_its_stage_is_refused() {
    // Where another package has a stage of that name, Triton takes it from there.
    let endpoint = Endpoint::multi();
    let whole = package("embed_image");
    let model = Unpacked::new("stageless", &whole);
    fs::remove_dir_all(model.folder().join("clip_image")).unwrap();
    let (status, said) = endpoint.load(&model);
    assert_eq!(status, 400, "{said}");
    assert!(said.contains("models that are not available or ambiguous: clip_image"), "{said}");
    model.replace(&whole);
    assert_eq!(endpoint.load(&model), (200, String::new()));
    endpoint.infer(Some(&model), &good()).unwrap();
}
