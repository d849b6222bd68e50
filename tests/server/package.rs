//! A package on a server that has nothing of ours, as on an endpoint.

use std::fs;
use std::path::Path;
use std::process::Command;

use imprompt_package::{PackRequest, pack};
use imprompt_repository::Silent;

use crate::library::library;
use crate::support::{Server, demo_repository, from_environment, server, with_image};

#[test]
fn a_package_brings_all_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let request = PackRequest {
        repository: demo_repository(),
        ensemble: "interrogate".to_owned(),
        library: library(),
        companions: vec![from_environment("IMPROMPT_ONNXRUNTIME")],
        out: folder.path().join("model.tar.gz"),
        level: 1,
    };
    let packed = pack(&request, &Silent).unwrap();
    // As SageMaker lays it out, and as its `serve` starts a single model.
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    let unpack = Command::new("tar").arg("-xzf").arg(&request.out).arg("-C").arg(&model).status();
    assert!(unpack.unwrap().success());
    let flags = ["--model-control-mode=explicit", "--load-model=interrogate"];
    let endpoint = Server::start_bare(&[&model], &flags);
    let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/croissant.png");
    let picture = fs::read(picture).unwrap();
    for mode in ["fast", "classic", "caption"] {
        let request = with_image(picture.clone()).text("mode", mode);
        let answer = endpoint.client().infer("interrogate", &request).unwrap();
        let expected = server().client().infer("interrogate", &request).unwrap();
        assert_eq!(answer.text("prompt").unwrap(), expected.text("prompt").unwrap(), "{mode}");
    }
    // Code and engine are those of the package.
    let maps = fs::read_to_string(format!("/proc/{}/maps", endpoint.pid())).unwrap();
    let root = fs::canonicalize(&model).unwrap();
    for name in [packed.library.as_str(), "libonnxruntime.so"] {
        let mut mapped = maps.lines().filter(|line| line.contains(name)).peekable();
        assert!(mapped.peek().is_some(), "{name} is not loaded");
        assert!(mapped.all(|line| line.contains(root.to_str().unwrap())), "{name}: another one");
    }
}
