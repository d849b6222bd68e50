//! CLIPs in other forms than `save_pretrained`'s, from the folder to the answer of `zero_shot`:
//! image processor, tokenizer, graphs and probability against open_clip and transformers.
//! Needs ONNX Runtime: `scripts/setup` installs it, IMPROMPT_ONNXRUNTIME names it.

use std::path::{Path, PathBuf};

use imprompt_error::{Kind, Uncancellable};
use imprompt_picture::{Limits, Preprocessor, Scratch, decode};
use imprompt_repository::{BuildRequest, InProcess, ModelFolder, Silent, build};
use imprompt_stage::{Data, Parameters, Tensor};
use serde::Deserialize;

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The library that the tests use: the variable's, or the one that scripts/setup installs.
fn onnxruntime() -> PathBuf {
    if let Some(path) = std::env::var_os("IMPROMPT_ONNXRUNTIME") {
        return path.into();
    }
    let installed =
        project().join(".imprompt/onnxruntime/onnxruntime/capi/libonnxruntime.so.1.32.0");
    assert!(installed.is_file(), "no ONNX Runtime: run scripts/setup, or set IMPROMPT_ONNXRUNTIME");
    installed
}

#[derive(Deserialize)]
struct Golden {
    picture: String,
    labels: Vec<String>,
    similarity: Vec<f32>,
    probability: Vec<f32>,
    #[serde(default)]
    pixel_values: Vec<f32>,
}

impl Golden {
    fn read(path: &str) -> Self {
        let text = std::fs::read_to_string(project().join("goldens").join(path)).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

/// A model of the goldens with `tokenizer`, a folder whose files are put beside it.
fn model(folder: &Path, name: &str, tokenizer: Option<&str>) -> ModelFolder {
    let model = folder.join("model");
    std::fs::create_dir(&model).unwrap();
    let sources =
        [Some(project().join("goldens").join(name)), tokenizer.map(|at| project().join(at))];
    for (number, source) in sources.into_iter().flatten().enumerate() {
        for entry in std::fs::read_dir(source).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_str().unwrap();
            if number == 0 || file.starts_with("tokenizer") {
                std::fs::copy(&path, model.join(file)).unwrap();
            }
        }
    }
    ModelFolder::open(&model).unwrap()
}

fn request(folder: &Path, model: ModelFolder) -> BuildRequest {
    BuildRequest {
        clip: Some(model),
        threads: 1,
        onnxruntime: Some(onnxruntime()),
        ..BuildRequest::new(&folder.join("repository"))
    }
}

fn largest(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).fold(0.0, |most, (one, other)| most.max((one - other).abs()))
}

/// Builds the model and compares the answer of `zero_shot`; the configuration of that ensemble.
fn zero_shot(name: &str, tokenizer: Option<&str>, golden: &Golden, kind: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let request = request(folder.path(), model(folder.path(), name, tokenizer));
    let manifest = build(&request, &Silent).unwrap();
    assert_eq!(
        manifest.ensembles,
        ["zero_shot", "embed_image", "embed_text", "invocations_zero_shot"]
    );
    assert_eq!(manifest.clip.unwrap().probability.as_deref(), Some(kind));
    let parameters = Parameters { onnxruntime: Some(onnxruntime()), ..Parameters::default() };
    let mut opened = InProcess::open(&request.out, "zero_shot", &parameters).unwrap();
    let picture = std::fs::read(project().join(&golden.picture)).unwrap();
    let labels: Vec<_> =
        golden.labels.iter().map(|label| label.as_bytes().to_vec().into()).collect();
    let inputs = vec![
        Tensor::bytes("image", vec![1, 1], vec![picture.into()]),
        Tensor::bytes("labels", vec![1, labels.len()], labels),
    ];
    let response = opened.run(inputs, &Uncancellable).unwrap();
    for (output, expected) in
        [("similarity", &golden.similarity), ("probability", &golden.probability)]
    {
        let tensor = response.iter().find(|tensor| tensor.name == output).unwrap();
        let Data::F32(found) = &tensor.data else { panic!("{output} is not floats") };
        let difference = largest(found, expected);
        println!("{name} {output}: largest difference {difference:e}");
        assert!(difference < 1e-5, "{name} {output}: {found:?}, expected {expected:?}");
    }
    std::fs::read_to_string(request.out.join("zero_shot/config.pbtxt")).unwrap()
}

#[test]
fn open_clip_folders_answer_as_open_clip_does() {
    let golden = Golden::read("open_clip/zero_shot.json");
    let config = zero_shot("open_clip/words", Some("models/demo-clip"), &golden, "softmax");
    assert!(config.contains("value: { string_value: \"softmax\" }"), "{config}");
    // The pixels alone, so that a wrong crop cannot hide behind a small model.
    let bytes = std::fs::read(project().join(&golden.picture)).unwrap();
    let image = decode(&bytes, &Limits::default()).unwrap();
    let config = r#"{"preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.25, 0.2]}, "image_size": 32}"#;
    let preprocessor = Preprocessor::from_json(config.as_bytes()).unwrap();
    let mut pixels = vec![0.0; preprocessor.output_len()];
    preprocessor.run(&image, &mut Scratch::default(), &mut pixels).unwrap();
    let some: Vec<f32> = pixels.into_iter().step_by(97).collect();
    assert!(largest(&some, &golden.pixel_values) < 1e-6);
}

#[test]
fn siglip_gives_sigmoids() {
    for name in ["siglip/siglip", "siglip/siglip2", "open_clip/siglip", "open_clip/siglip2"] {
        let golden = Golden::read(&format!("{name}.json"));
        let sum: f32 = golden.probability.iter().sum();
        assert!((sum - 1.0).abs() > 0.1, "a softmax could not be told from it");
        let config = zero_shot(name, None, &golden, "sigmoid");
        assert!(config.contains("value: { string_value: \"sigmoid\" }"), "{config}");
        assert!(config.contains("they need not add up to 1"), "{config}");
    }
}

#[test]
fn siglip_ranks_for_the_interrogator_too() {
    for name in ["siglip/siglip", "open_clip/siglip"] {
        ranks(name);
    }
}

fn ranks(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut request = request(folder.path(), model(folder.path(), name, None));
    request.captioner = Some(ModelFolder::open(&project().join("models/demo-blip2")).unwrap());
    request.vocabularies = vec![folder.path().join("tables")];
    std::fs::create_dir(&request.vocabularies[0]).unwrap();
    for (table, labels) in [
        ("artists", "Noto\n"),
        ("flavors", "crisp\ngolden\n"),
        ("mediums", "a photo\n"),
        ("movements", "food\n"),
    ] {
        std::fs::write(request.vocabularies[0].join(format!("{table}.txt")), labels).unwrap();
    }
    build(&request, &Silent).unwrap();
    let parameters = Parameters { onnxruntime: Some(onnxruntime()), ..Parameters::default() };
    let mut opened = InProcess::open(&request.out, "interrogate", &parameters).unwrap();
    let picture = std::fs::read(project().join("models/croissant.png")).unwrap();
    let text =
        |name, text: &str| Tensor::bytes(name, vec![1, 1], vec![text.as_bytes().to_vec().into()]);
    let inputs = vec![
        Tensor::bytes("image", vec![1, 1], vec![picture.into()]),
        text("mode", "best"),
        text("given_caption", "a cat"),
    ];
    let response = opened.run(inputs, &Uncancellable).unwrap();
    let Data::Bytes(prompt) = &response[0].data else { panic!("no prompt") };
    assert!(String::from_utf8_lossy(&prompt[0]).starts_with("a cat"));
}

#[test]
fn what_is_missing_is_said_at_the_build() {
    let fails = |name: &str, change: &dyn Fn(&Path)| {
        let folder = tempfile::tempdir().unwrap();
        let model = model(folder.path(), name, None);
        change(model.path());
        build(&request(folder.path(), model), &Silent).unwrap_err()
    };
    let error = fails("open_clip/words", &|_| ());
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.message().contains("no tokenizer (neither tokenizer.json"), "{error}");
    let pickled = |model: &Path| {
        let weights = model.join("open_clip_model.safetensors");
        std::fs::rename(weights, model.join("open_clip_pytorch_model.bin")).unwrap();
    };
    let error = fails("open_clip/words", &pickled);
    assert!(error.message().contains("open_clip_pytorch_model.bin is not read"), "{error}");
    let error = fails("siglip/siglip2", &|model| {
        std::fs::rename(model.join("tokenizer.json"), model.join("tokenizer.model")).unwrap();
    });
    assert!(error.message().contains("no tokenizer"), "{error}");
    let naflex = |model: &Path| {
        std::fs::write(model.join("config.json"), r#"{"model_type": "siglip2"}"#).unwrap();
    };
    let error = fails("siglip/siglip2", &naflex);
    assert!(error.kind() == Kind::Unsupported && error.message().contains("NaFlex"), "{error}");
    // A tokenizer of more words than the model has rows.
    for name in ["siglip/siglip", "open_clip/siglip"] {
        let error = fails(name, &|model| {
            let other = project().join("goldens/siglip/siglip2/");
            for gone in ["spiece.model", "special_tokens_map.json"] {
                let _ = std::fs::remove_file(model.join(gone));
            }
            for name in ["tokenizer.json", "tokenizer_config.json"] {
                std::fs::copy(other.join(name), model.join(name)).unwrap();
            }
        });
        assert!(error.message().contains("700 tokens, the model knows 600"), "{name}: {error}");
    }
}
