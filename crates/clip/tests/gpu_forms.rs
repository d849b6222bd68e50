//! The forms of both towers for a GPU, computed by ONNX Runtime on the processor: of every golden
//! model they embed as the processor's graphs do (`IMPROMPT_ONNXRUNTIME` names the library).

use std::path::{Path, PathBuf};

use imprompt_clip::{ImageEncoder, TextEncoder, TextOptions, TextTower};
use imprompt_engine::EngineOptions;
use imprompt_engine::onnxruntime::{OnnxRuntime, OnnxRuntimeOptions};
use imprompt_error::Uncancellable;
use imprompt_graph::builder::Graph;
use imprompt_graph::clip::{IMAGE_GRAPH, TEXT_GRAPH};
use imprompt_graph::clip_graphs;
use imprompt_graph::gpu::{Compute, Form, Target, for_gpu};
use safetensors::SafeTensors;

const MODELS: [&str; 14] = [
    "clip/quick_gelu",
    "clip/gelu_f16",
    "clip/sharded_bf16",
    "clip/section_dicts",
    "open_clip/gelu",
    "open_clip/quick_gelu_f16",
    "open_clip/words",
    "siglip/siglip",
    "siglip/siglip2",
    "siglip/small_bf16",
    "open_clip/siglip",
    "open_clip/siglip2",
    "open_clip/siglip_i18n",
    "open_clip/siglip_384",
];

const PICTURES: usize = 3;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens")
}

/// The texts of a golden model as tokens.
fn rows(name: &str) -> Vec<Vec<u32>> {
    let bytes = std::fs::read(goldens().join(format!("{name}.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let ids = tensors.tensor("input_ids").unwrap();
    let all: Vec<u32> =
        ids.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
    all.chunks_exact(ids.shape()[1]).map(<[u32]>::to_vec).collect()
}

/// The embeddings of pictures and texts, one after the other, and how long one is.
fn embed(name: &str, form: impl Fn(&Graph) -> Graph) -> (Vec<f32>, usize) {
    let source = goldens().join(name);
    let graphs = clip_graphs(&source).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (file, graph) in [(IMAGE_GRAPH, &graphs.image), (TEXT_GRAPH, &graphs.text)] {
        for weights in &graph.weight_files {
            std::fs::copy(source.join(weights), folder.path().join(weights)).unwrap();
        }
        std::fs::write(folder.path().join(file), form(graph).bytes).unwrap();
    }
    let runtime = OnnxRuntime::open(&OnnxRuntimeOptions::default()).expect("ONNX Runtime");
    // imprompt's kernels are for the processor's graphs.
    let engine = EngineOptions { threads: 1, kernels: None, ..EngineOptions::default() };
    let facts = graphs.facts;
    let pixels = facts.channels * facts.image_size.pow(2);
    let pixels: Vec<f32> = (0..PICTURES)
        .flat_map(|i| (0..pixels).map(move |k| ((7919 * k + 131 * i) % 4096) as f32))
        .map(|level| level / 1024.0 - 2.0)
        .collect();
    let mut images = ImageEncoder::open(folder.path(), facts.clone(), runtime, &engine).unwrap();
    let mut embeds = images.encode(&pixels, PICTURES).unwrap();
    let options = TextOptions { engine, ..TextOptions::default() };
    let dimension = facts.projection_dim;
    let tower = TextTower::open(folder.path(), facts, runtime, &options).unwrap();
    embeds.extend(TextEncoder::new(tower.into()).encode(&rows(name), &Uncancellable).unwrap());
    (embeds, dimension)
}

/// The least cosine of two embeddings of the same.
fn least_cosine(a: &[f32], b: &[f32], dimension: usize) -> f64 {
    assert_eq!(a.len(), b.len());
    let cosine = |(a, b): (&[f32], &[f32])| {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    a.chunks_exact(dimension).zip(b.chunks_exact(dimension)).map(cosine).fold(1.0, f64::min)
}

#[test]
fn embeddings_are_alike() {
    for name in MODELS {
        let (expected, dimension) = embed(name, Graph::clone);
        for form in [Form::Parts, Form::Fused] {
            let of = |compute| {
                let target = Target { compute, form, positions: 0, memory: 0 };
                let (found, _) = embed(name, |graph| for_gpu(graph, &target).unwrap());
                least_cosine(&expected, &found, dimension)
            };
            let (wide, half) = (of(Compute::F32), of(Compute::F16));
            println!("{name}, {form:?}: 1 - cosine {:e}, in float16 {:e}", 1.0 - wide, 1.0 - half);
            assert!(1.0 - wide < 1e-10, "{name}, {form:?}: {wide}");
            assert!(1.0 - half < 1e-4, "{name}, {form:?}: {half}");
        }
    }
}
