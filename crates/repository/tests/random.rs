//! A folder with random weights in the shapes of CLIP ViT-L/14, a layer a tower, embeds texts on the
//! processor. Needs ONNX Runtime: `scripts/setup` installs it, IMPROMPT_ONNXRUNTIME names it.

mod shapes;
#[path = "../examples/random_model/write.rs"]
mod write;

use std::path::{Path, PathBuf};

use imprompt_error::Uncancellable;
use imprompt_repository::{BuildRequest, InProcess, ModelFolder, Silent, build};
use imprompt_stage::{Data, Parameters, Tensor};
use shapes::Model;

/// The library that the tests use: the variable's, or the one that scripts/setup installs.
fn onnxruntime() -> PathBuf {
    if let Some(path) = std::env::var_os("IMPROMPT_ONNXRUNTIME") {
        return path.into();
    }
    let installed = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../.imprompt/onnxruntime/onnxruntime/capi/libonnxruntime.so.1.32.0");
    assert!(installed.is_file(), "no ONNX Runtime: run scripts/setup, or set IMPROMPT_ONNXRUNTIME");
    installed
}

#[test]
fn full_size_is_that_of_the_published_weights() {
    for (name, parameters) in [("clip-vit-l-14", 427_616_513), ("clip-vit-h-14", 986_109_441)] {
        let shards = Model::named(name, None).unwrap().shards("F16", 2);
        assert_eq!(shards[0].bytes, 2 * parameters, "{name}");
    }
    assert!(Model::named("clip-vit-b-32", None).is_err());
}

#[test]
fn random_weights_embed_texts() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (folder.path().join("model"), folder.path().join("repository"));
    write::write(&Model::named("clip-vit-l-14", Some(1)).unwrap(), &model).unwrap();
    let request = BuildRequest {
        clip: Some(ModelFolder::open(&model).unwrap()),
        onnxruntime: Some(onnxruntime()),
        ..BuildRequest::new(&out)
    };
    build(&request, &Silent).unwrap();
    let parameters = Parameters { onnxruntime: Some(onnxruntime()), ..Parameters::default() };
    let mut opened = InProcess::open(&out, "embed_text", &parameters).unwrap();
    let mut embed = |text: &str| {
        let text = Tensor::texts("text", vec![text.to_owned()]);
        let answer = opened.run(vec![text], &Uncancellable).unwrap();
        let Data::F32(embedding) = &answer[0].data else { panic!("not floats") };
        embedding.to_vec()
    };
    let dot = |left: &[f32], right: &[f32]| -> f32 {
        left.iter().zip(right).map(|(left, right)| left * right).sum()
    };
    let cat = embed("a cat");
    assert_eq!(cat.len(), 768);
    assert!((dot(&cat, &cat) - 1.0).abs() < 1e-4);
    // Whatever the text, there are tokens for it.
    for other in ["a dog", "", "Ünïcödé \u{1f950} 漢字", &"long ".repeat(100)] {
        let other = embed(other);
        assert!((dot(&other, &other) - 1.0).abs() < 1e-4);
        assert!(dot(&cat, &other) < 0.99);
    }
}
