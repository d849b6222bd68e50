//! A repository that was built for GPUs, on a machine with or without one.

use std::fs;
use std::path::{Path, PathBuf};

use imprompt_repository::{BuildRequest, GpuEngine, GpuRequest, ModelFolder, Precision, Silent};

use crate::support::{Server, copy_folder, server, with_image};

/// The demo models in the form for ONNX Runtime's CUDA provider.
fn build(out: &Path) {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let model = |name: &str| Some(ModelFolder::open(&models.join(name)).unwrap());
    let request = BuildRequest {
        clip: model("demo-clip"),
        captioner: model("demo-blip2"),
        vocabularies: vec![models.join("demo-vocabulary")],
        precision: Precision::with_default(&[], imprompt_repository::Bits::F16),
        gpu: Some(GpuRequest { engine: GpuEngine::Cuda, ..GpuRequest::default() }),
        ..BuildRequest::new(out)
    };
    imprompt_repository::build(&request, &Silent).unwrap();
}

fn config(repository: &Path, stage: &str) -> PathBuf {
    repository.join(stage).join("config.pbtxt")
}

#[test]
fn a_repository_for_gpus_is_served_where_there_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository");
    build(&repository);
    for stage in ["clip_image", "captioner", "ranker", "tagger"] {
        let text = fs::read_to_string(config(&repository, stage)).unwrap();
        assert!(text.contains("kind: KIND_AUTO"), "{stage}: {text}");
    }
    // One that demands a GPU.
    copy_folder(&repository.join("clip_text"), &repository.join("demanding"));
    let demanding = config(&repository, "demanding");
    let text = fs::read_to_string(&demanding).unwrap();
    fs::write(&demanding, text.replace("KIND_AUTO", "KIND_GPU")).unwrap();
    let own = Server::start(&[&repository], &[]);
    let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/croissant.png");
    let request = with_image(fs::read(picture).unwrap()).text("mode", "fast");
    let answer = own.client().infer("interrogate", &request).unwrap();
    let expected = server().client().infer("interrogate", &request).unwrap();
    if imprompt_repository::Gpu::count().unwrap() > 0 {
        println!("skipped: the refusal of KIND_GPU, for this machine has a GPU");
        return;
    }
    // On the processor the graphs are those of a repository for it.
    assert_eq!(answer.text("prompt").unwrap(), expected.text("prompt").unwrap());
    let index = own.client().repository_index().unwrap();
    let model =
        index.as_array().unwrap().iter().find(|entry| entry["name"] == "demanding").unwrap();
    assert_eq!(model["state"], "UNAVAILABLE", "{index}");
    assert!(model["reason"].as_str().unwrap().contains("GPU"), "{index}");
}
