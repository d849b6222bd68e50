//! The rooms of DESIGN.md: what the .so exports and links, and which crate may
//! know which.
#![allow(missing_docs)]

#[path = "server/library.rs"]
mod library;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    text
}

fn library() -> String {
    library::library().to_str().unwrap().to_owned()
}

#[test]
fn the_library_exports_tritons_entry_points_alone() {
    let symbols = output("nm", &["-D", "--defined-only", "--format=just-symbols", &library()]);
    let expected = [
        "TRITONBACKEND_Finalize",
        "TRITONBACKEND_GetBackendAttribute",
        "TRITONBACKEND_Initialize",
        "TRITONBACKEND_ModelFinalize",
        "TRITONBACKEND_ModelInitialize",
        "TRITONBACKEND_ModelInstanceExecute",
        "TRITONBACKEND_ModelInstanceFinalize",
        "TRITONBACKEND_ModelInstanceInitialize",
    ];
    let symbols: BTreeSet<_> = symbols.lines().collect();
    assert_eq!(symbols, BTreeSet::from(expected));
}

#[test]
fn the_library_links_the_system_alone() {
    let allowed =
        ["linux-vdso", "libgcc_s", "libc.so", "libm.so", "libdl.so", "libpthread", "ld-linux"];
    for line in output("ldd", &[&library()]).lines() {
        let known = allowed.iter().any(|name| line.contains(name));
        assert!(known, "linked: {line}");
    }
    let symbols = output("nm", &["-D", "--undefined-only", "--format=just-symbols", &library()]);
    // Engines are opened at run time; nothing here opens a connection.
    let forbidden = [
        "Ort",
        "cuda",
        "cuInit",
        "nvinfer",
        "getInferLib",
        "createInfer",
        "createNvOnnx",
        "SSL_",
        "curl_",
        "getaddrinfo",
        "connect",
    ];
    for symbol in symbols.lines() {
        let name = symbol.split('@').next().unwrap();
        assert!(!forbidden.iter().any(|word| name.starts_with(word)), "needed: {symbol}");
    }
}

#[test]
fn the_library_holds_no_network_client() {
    let arguments = ["tree", "--offline", "--package=triton_imprompt", "--edges=normal"];
    let tree =
        output(env!("CARGO"), &[&arguments[..], &["--prefix=none", "--format={p}"]].concat());
    let names: BTreeSet<_> =
        tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains("imprompt-stage"), "{names:?}");
    let network = ["ureq", "tonic", "hyper", "tokio", "rustls", "hf-hub", "reqwest", "openssl"];
    let clouds = ["object_store", "aws-config", "aws-sigv4", "aws-smithy-runtime"];
    for name in network.into_iter().chain(clouds).chain([
        "imprompt",
        "imprompt-kserve",
        "imprompt-repository",
    ]) {
        assert!(!names.contains(name), "{name} is linked into the backend");
    }
    // What runs engines on a GPU is in it, and opens CUDA and TensorRT at run time: see
    // `the_library_links_the_system_alone`.
    for name in ["cudarc", "trtx"] {
        assert!(names.contains(name), "{name} is not in the backend");
    }
}

/// Who may depend on what: (what, by whom alone).
const ARROWS: [(&str, &[&str]); 15] = [
    ("ort", &["imprompt-engine"]),
    ("cudarc", &["imprompt-cuda", "imprompt-cuda-emulated"]),
    ("imprompt-cuda", &["imprompt-engine", "imprompt-tensorrt"]),
    ("trtx", &["imprompt-tensorrt"]),
    ("imprompt-tensorrt", &["imprompt-repository", "imprompt-stage"]),
    ("libloading", &["imprompt-cuda-emulated", "imprompt-engine", "imprompt-tensorrt"]),
    // Tests alone open an emulated driver.
    ("imprompt-cuda-emulated", &[]),
    ("memmap2", &["imprompt-mapping"]),
    ("ureq", &["imprompt-kserve", "imprompt"]),
    ("tonic", &["imprompt-kserve"]),
    ("object_store", &["imprompt"]),
    ("aws-config", &["imprompt"]),
    ("aws-sigv4", &["imprompt"]),
    ("imprompt-host", &["triton_imprompt"]),
    ("imprompt-kserve", &["imprompt"]),
];

#[test]
fn arrows_go_one_way() {
    let metadata =
        output(env!("CARGO"), &["metadata", "--format-version=1", "--offline", "--no-deps"]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        let normal = dependencies.filter(|dependency| dependency["kind"].is_null());
        for dependency in normal.map(|dependency| dependency["name"].as_str().unwrap()) {
            if let Some((_, by)) = ARROWS.iter().find(|(what, _)| *what == dependency) {
                assert!(by.contains(&name), "{name} depends on {dependency}");
            }
            // The two ends of the corridor: nothing is above them.
            assert!(dependency != "imprompt" && dependency != "triton_imprompt", "{name}");
            assert!(dependency != "imprompt-manifests", "{name}");
            let bottom = [
                "imprompt-error",
                "imprompt-wire",
                "imprompt-picture",
                "imprompt-mapping",
                "imprompt-similarity",
                "imprompt-kernel",
                "imprompt-onnx",
            ];
            if bottom.contains(&name) && dependency.starts_with("imprompt-") {
                assert_eq!(dependency, "imprompt-error", "{name} is at the bottom");
            }
        }
    }
}

/// The Rust files below `folder`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn only_one_room_knows_triton_and_few_are_unsafe() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("cli")];
    folders.extend(fs::read_dir(root.join("crates")).unwrap().map(|entry| entry.unwrap().path()));
    for folder in folders {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let may_be_unsafe = [
            "cuda",
            "cuda-emulated",
            "engine",
            "kernel",
            "mapping",
            "similarity",
            "picture",
            "tensorrt",
        ]
        .contains(&name);
        for file in sources(&folder.join("src")) {
            let text = fs::read_to_string(&file).unwrap();
            for prefix in ["TRITONBACKEND_", "TRITONSERVER_"] {
                assert!(!text.contains(prefix), "{}: knows {prefix}", file.display());
            }
            // Files of it call the code for instructions found at run time, ask a library for its
            // version, or tell it addresses.
            let fenced: [(&str, &[&str]); 2] =
                [("picture", &["simd.rs"]), ("tensorrt", &["library.rs", "context.rs"])];
            let fence = fenced.iter().find(|(room, _)| *room == name);
            let is_of = |of: &&str| file.file_name() == Some((*of).as_ref());
            if fence.is_some_and(|(_, files)| !files.iter().any(is_of)) {
                let mut code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                let is_unsafe = code.any(|line| line.contains("unsafe {"));
                assert!(!is_unsafe, "{}: unsafe", file.display());
            }
        }
        let top = ["src/lib.rs", "src/main.rs"].map(|file| folder.join(file));
        let top = top.iter().find(|file| file.exists()).expect("a crate has a top");
        let forbids = fs::read_to_string(top).unwrap().contains("#![forbid(unsafe_code)]");
        assert!(forbids || may_be_unsafe, "{}: does not forbid unsafe code", top.display());
    }
    // In the root package the names and `unsafe` stay in one folder.
    let border = root.join("backend/src/triton");
    for file in sources(&root.join("backend/src")) {
        let text = fs::read_to_string(&file).unwrap();
        let outside = !file.starts_with(&border);
        assert!(!(outside && (text.contains("unsafe") || text.contains("TRITON"))), "{file:?}");
    }
}
