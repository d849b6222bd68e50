//! What a repository for ONNX Runtime's CUDA provider answers in either form of its graphs, on a
//! machine without a GPU: the processor's operators compute them. Pictures of `goldens/demo` are asked
//! about, and answers compared with those of the processor's own graphs in float32.

use std::path::{Path, PathBuf};

use imprompt_error::Uncancellable;
use imprompt_repository::{
    Bits, BuildRequest, GpuEngine, GpuForm, GpuRequest, InProcess, ModelFolder, Precision, Silent,
    build,
};
use imprompt_stage::{Data, Parameters, Response, Tensor};

/// Every so many pictures are asked about; 1 gives the figures of docs/gpu.md, and takes minutes.
const EVERY: usize = 7;

const MODES: [&str; 4] = ["best", "fast", "classic", "negative"];

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The demo models for GPUs in `form`, whose graphs stand where the processor's are looked for.
fn repository(out: &Path, form: Option<GpuForm>) {
    let models = project().join("models");
    let request = BuildRequest {
        clip: Some(ModelFolder::open(&models.join("demo-clip")).unwrap()),
        captioner: Some(ModelFolder::open(&models.join("demo-blip2")).unwrap()),
        vocabularies: vec![models.join("demo-vocabulary")],
        precision: match form {
            None => Precision::default(),
            Some(_) => Precision::with_default(&[], Bits::F16),
        },
        gpu: form.map(|form| GpuRequest { engine: GpuEngine::Cuda, form, ..GpuRequest::default() }),
        ..BuildRequest::new(out)
    };
    let manifest = build(&request, &Silent).unwrap();
    for file in manifest.files.iter().filter(|file| file.path.ends_with(".gpu.onnx")) {
        let path = out.join(&file.path);
        std::fs::rename(&path, out.join(file.path.replace(".gpu.onnx", ".onnx"))).unwrap();
    }
}

fn pictures() -> Vec<Tensor<'static>> {
    let files = std::fs::read_dir(project().join("goldens/demo")).unwrap();
    let mut files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "png"));
    files.sort();
    let picture = |path: &PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        Tensor::bytes("image", vec![1, 1], vec![bytes.into()])
    };
    files.iter().step_by(EVERY).map(picture).collect()
}

/// What is compared.
struct Answers {
    embeddings: Vec<Vec<f32>>,
    captions: Vec<Vec<u8>>,
    /// By mode.
    prompts: [Vec<Vec<u8>>; 4],
}

fn text(response: &Response, output: &str) -> Vec<u8> {
    let found = response.iter().find(|tensor| tensor.name == output).unwrap();
    let Data::Bytes(values) = &found.data else { panic!("{output} is no text") };
    values[0].to_vec()
}

fn answers(form: Option<GpuForm>) -> Answers {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("repository");
    repository(&out, form);
    // imprompt's kernels are for the processor's graphs.
    let parameters = match form {
        None => Parameters::default(),
        Some(_) => Parameters { kernels: None, ..Parameters::default() },
    };
    let ask = |ensemble: &str, more: &[Tensor<'static>]| -> Vec<Response> {
        let mut opened = InProcess::open(&out, ensemble, &parameters).unwrap();
        let inputs = |picture| [&[picture], more].concat();
        pictures().into_iter().map(|one| opened.run(inputs(one), &Uncancellable).unwrap()).collect()
    };
    let tokens = Tensor::i32("max_new_tokens", vec![1, 1], vec![20]);
    let embedding = |response: &Response| match &response[0].data {
        Data::F32(values) => values.to_vec(),
        _ => panic!("not floats"),
    };
    let captions = ask("caption", std::slice::from_ref(&tokens));
    Answers {
        embeddings: ask("embed_image", &[]).iter().map(embedding).collect(),
        captions: captions.iter().map(|response| text(response, "caption")).collect(),
        prompts: MODES.map(|mode| {
            let mode = Tensor::bytes("mode", vec![1, 1], vec![mode.as_bytes().to_vec().into()]);
            let prompts = ask("interrogate", &[mode, tokens.clone()]);
            prompts.iter().map(|response| text(response, "prompt")).collect()
        }),
    }
}

fn cosine(left: &[f32], right: &[f32]) -> f64 {
    let dot = |left: &[f32], right: &[f32]| -> f64 {
        left.iter().zip(right).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(left, right) / (dot(left, left) * dot(right, right)).sqrt()
}

fn equal(left: &[Vec<u8>], right: &[Vec<u8>]) -> usize {
    left.iter().zip(right).filter(|(left, right)| left == right).count()
}

#[test]
fn both_forms_answer_as_float32_does() {
    let full = answers(None);
    let count = full.captions.len();
    assert!(count >= 4);
    for form in [GpuForm::Parts, GpuForm::Fused] {
        let half = answers(Some(form));
        let pairs = full.embeddings.iter().zip(&half.embeddings);
        let least = pairs.map(|(left, right)| cosine(left, right)).fold(1.0, f64::min);
        let captions = equal(&full.captions, &half.captions);
        let prompts = [0, 1, 2, 3].map(|mode| equal(&full.prompts[mode], &half.prompts[mode]));
        println!(
            "{form:?}: least cosine {least:.7}, captions {captions}, prompts {prompts:?} of {count}"
        );
        assert!(least > 0.99999, "{form:?}: {least}");
        assert_eq!(captions, count, "{form:?}");
        // Terms of a prompt may hang on the last digit of a float16.
        assert!(prompts.iter().all(|equal| equal * 4 >= count * 3), "{form:?}: {prompts:?}");
    }
}
