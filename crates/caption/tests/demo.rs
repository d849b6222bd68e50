//! The demo model on the demo pictures, from PNG bytes to text, against
//! transformers: `goldens/demo/captions.json`, made by `goldens/blip2/demo.py`.

use std::fs;
use std::path::{Path, PathBuf};

use imprompt_caption::{CaptionRequest, Captioner, CaptionerOptions, GenerationOptions};
use imprompt_engine::onnxruntime::{OnnxRuntime, OnnxRuntimeOptions};
use imprompt_engine::{EngineOptions, Floats};
use imprompt_error::Uncancellable;
use imprompt_graph::caption_graphs;
use imprompt_picture::{Limits, Preprocessor, Scratch, decode};
use imprompt_text::CaptionTokenizer;
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Expected {
    model_sha256: String,
    max_new_tokens: usize,
    pictures: usize,
    captions: Vec<Caption>,
}

#[derive(Deserialize)]
struct Caption {
    picture: String,
    prompt: Option<String>,
    prompt_ids: Option<Vec<u32>>,
    ids: Vec<u32>,
    caption: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn captioner(model: &Path) -> (tempfile::TempDir, Captioner) {
    let folder = tempfile::tempdir().unwrap();
    let graphs = caption_graphs(model).unwrap();
    for (name, graph) in &graphs.files {
        fs::write(folder.path().join(name), &graph.bytes).unwrap();
        for file in &graph.weight_files {
            fs::copy(model.join(file), folder.path().join(file)).unwrap();
        }
    }
    let runtime = OnnxRuntime::open(&OnnxRuntimeOptions::default())
        .expect("IMPROMPT_ONNXRUNTIME must name ONNX Runtime's library");
    let engine = EngineOptions { threads: 1, ..EngineOptions::default() };
    let options = CaptionerOptions { engine, ..CaptionerOptions::default() };
    let captioner = Captioner::open(folder.path(), graphs.facts, runtime, &options).unwrap();
    (folder, captioner)
}

#[test]
fn captions_of_the_demo_model_are_transformers() {
    let model = root().join("models/demo-blip2");
    let goldens = root().join("goldens/demo");
    let expected: Expected =
        serde_json::from_slice(&fs::read(goldens.join("captions.json")).unwrap()).unwrap();
    let digest = Sha256::digest(fs::read(model.join("model.safetensors")).unwrap());
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        digest, expected.model_sha256,
        "the demo model has changed since goldens/blip2/demo.py was run: run it again"
    );
    assert!(expected.pictures >= 20 && expected.captions.len() >= 60);

    let json = fs::read(model.join("preprocessor_config.json")).unwrap();
    let preprocessor = Preprocessor::from_json(&json).unwrap();
    let tokenizer = CaptionTokenizer::load(&model).unwrap();
    let mut scratch = Scratch::default();
    let pixels: Vec<Vec<f32>> = expected
        .captions
        .iter()
        .map(|caption| {
            let bytes = fs::read(goldens.join(&caption.picture)).unwrap();
            let picture = decode(&bytes, &Limits::default()).unwrap();
            let mut values = vec![0.0; preprocessor.output_len()];
            preprocessor.run(&picture, &mut scratch, &mut values).unwrap();
            values
        })
        .collect();
    let prompts: Vec<Option<Vec<u32>>> = expected
        .captions
        .iter()
        .map(|caption| caption.prompt.as_ref().map(|text| tokenizer.encode(text).unwrap()))
        .collect();
    let requests: Vec<CaptionRequest<'_>> = pixels
        .iter()
        .zip(&prompts)
        .map(|(pixel_values, prompt_ids)| CaptionRequest {
            picture: Floats::from(pixel_values),
            prompt_ids: prompt_ids.as_deref(),
            qformer_ids: None,
            options: GenerationOptions::greedy(expected.max_new_tokens),
            cancel: &Uncancellable,
        })
        .collect();

    let (_folder, mut captioner) = captioner(&model);
    let together = captioner.caption(&requests);
    for (index, golden) in expected.captions.iter().enumerate() {
        let what = format!("{} after {:?}", golden.picture, golden.prompt);
        assert_eq!(prompts[index], golden.prompt_ids, "{what}");
        let found = together[index].as_ref().unwrap();
        assert_eq!(found.ids, golden.ids, "{what}");
        assert_eq!(tokenizer.caption(&found.ids).unwrap(), golden.caption, "{what}");
        let alone = captioner.caption(&requests[index..=index]).remove(0).unwrap();
        assert_eq!(alone, *found, "{what}, alone");
    }
}
