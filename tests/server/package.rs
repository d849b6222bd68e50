//! A package on a server that has nothing of ours, as on an endpoint.

use std::fs;
use std::path::Path;

use crate::endpoint::{repackage, unpack};
use crate::library::library;
use crate::support::{Server, demo_repository, server, with_image};

#[test]
fn a_package_brings_all_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let (package, packed) = repackage(folder.path(), &demo_repository(), "interrogate", &library());
    // As SageMaker lays it out, and as its `serve` starts a single model.
    let model = folder.path().join("model");
    unpack(&package, &model);
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
    for name in [packed.as_str(), "libonnxruntime.so"] {
        let mut mapped = maps.lines().filter(|line| line.contains(name)).peekable();
        assert!(mapped.peek().is_some(), "{name} is not loaded");
        assert!(mapped.all(|line| line.contains(root.to_str().unwrap())), "{name}: another one");
    }
}
