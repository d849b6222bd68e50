//! Weights in fewer bits: what they change, and that the kernels and the runtime's own operators
//! agree on it (`IMPROMPT_ONNXRUNTIME` names the library).

use std::path::{Path, PathBuf};

use imprompt_clip::{TextEncoder, TextOptions, TextTower};
use imprompt_engine::EngineOptions;
use imprompt_engine::onnxruntime::{OnnxRuntime, OnnxRuntimeOptions};
use imprompt_error::Uncancellable;
use imprompt_graph::builder::Graph;
use imprompt_graph::clip::TEXT_GRAPH;
use imprompt_graph::precision::high;
use imprompt_graph::quantize::{Form, quantize};
use imprompt_graph::{ClipFacts, ClipGraphs, clip_graphs};

const WEIGHTS: &str = "clip_text.weights";

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens/clip").join(name)
}

/// The embeddings of some rows with the text tower in `form`, and the bytes of its file.
fn embeds(name: &str, form: Option<Form>, kernels: bool) -> (Vec<f32>, usize, u64) {
    let source = golden(name);
    let ClipGraphs { text, facts, .. } = clip_graphs(&source).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = 0;
    let graph = match form {
        None => text,
        Some(form) => {
            let (graph, plan) = quantize(&text, form, WEIGHTS, &source).unwrap();
            let path = folder.path().join(WEIGHTS);
            plan.write(&source, &path, &|_| {}).unwrap();
            bytes = plan.bytes();
            assert_eq!(std::fs::metadata(path).unwrap().len(), bytes);
            graph
        }
    };
    copy_weights(&graph, &source, folder.path());
    let dimension = facts.projection_dim;
    (encode_with(&graph, folder.path(), facts, kernels), dimension, bytes)
}

fn copy_weights(graph: &Graph, source: &Path, folder: &Path) {
    for file in &graph.weight_files {
        std::fs::copy(source.join(file), folder.join(file)).unwrap();
    }
}

/// What `graph` makes of some rows, its weights in `folder`.
fn encode_with(graph: &Graph, folder: &Path, facts: ClipFacts, kernels: bool) -> Vec<f32> {
    std::fs::write(folder.join(TEXT_GRAPH), &graph.bytes).unwrap();
    encode(folder, facts, kernels)
}

fn encode(folder: &Path, facts: ClipFacts, kernels: bool) -> Vec<f32> {
    let runtime = OnnxRuntime::open(&OnnxRuntimeOptions::default()).expect("ONNX Runtime");
    let engine = EngineOptions {
        threads: 2,
        kernels: kernels.then(Default::default),
        ..EngineOptions::default()
    };
    let options = TextOptions { engine, ..TextOptions::default() };
    let end = facts.vocabulary as u32 - 1;
    let row = |first: u32, length: u32| -> Vec<u32> {
        let tokens = (0..length).map(|i| (first * 31 + i * 7) % (end - 1));
        std::iter::once(end - 1).chain(tokens).chain([end]).collect()
    };
    let rows: Vec<Vec<u32>> = (0..60).map(|i| row(i, 1 + i % 5)).collect();
    let tower = TextTower::open(folder, facts, runtime, &options).unwrap();
    let mut encoder = TextEncoder::new(tower.into());
    encoder.encode(&rows, &Uncancellable).unwrap()
}

fn least_cosine(a: &[f32], b: &[f32], dimension: usize) -> f32 {
    let rows = a.chunks_exact(dimension).zip(b.chunks_exact(dimension));
    rows.map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).sum()).fold(1.0, f32::min)
}

#[test]
fn eight_and_four_bits_are_near_and_mean_the_same_everywhere() {
    for (form, near) in [(Form::Int8, 0.999), (Form::Int4, 0.9)] {
        let (exact, dimension, _) = embeds("quick_gelu", None, true);
        let (rounded, _, bytes) = embeds("quick_gelu", Some(form), true);
        let (folded, ..) = embeds("quick_gelu", Some(form), false);
        assert!(bytes > 0, "nothing was converted");
        let cosine = least_cosine(&exact, &rounded, dimension);
        assert!(cosine > near && cosine < 0.999_999, "{form:?}: cosine {cosine}");
        // The runtime multiplies rounded weights with float rows, the kernels with rounded ones.
        let cosine = least_cosine(&folded, &rounded, dimension);
        assert!(cosine > 0.9995, "{form:?}: the kernels differ from the runtime by {cosine}");
    }
}

#[test]
fn a_graph_of_high_precision_is_multiplied_so_where_there_is_amx() {
    let source = golden("quick_gelu");
    let ClipGraphs { text, facts, .. } = clip_graphs(&source).unwrap();
    let folder = tempfile::tempdir().unwrap();
    copy_weights(&text, &source, folder.path());
    let embeds = |graph, kernels| encode_with(graph, folder.path(), facts.clone(), kernels);
    let high = high(&text).unwrap();
    let [exact, rounded] = [&text, &high].map(|graph| embeds(graph, true));
    assert_eq!(exact == rounded, !imprompt_kernel::has_amx());
    let apart = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-5, "{apart:e}");
    // To the runtime's own operators it says nothing.
    assert!(embeds(&text, false) == embeds(&high, false));
}

#[test]
fn halves_are_lossless_or_left_alone() {
    // Float32 weights that are no halves: nothing is converted.
    let (exact, ..) = embeds("quick_gelu", None, true);
    let (halves, _, bytes) = embeds("quick_gelu", Some(Form::F16), true);
    assert_eq!((halves == exact, bytes), (true, 0));
}

#[test]
fn the_runtime_and_the_kernels_agree_in_float32() {
    for name in ["quick_gelu", "gelu_f16", "sharded_bf16", "section_dicts"] {
        let ((kernels, ..), (runtime, ..)) = (embeds(name, None, true), embeds(name, None, false));
        let difference = kernels.iter().zip(&runtime).map(|(a, b)| (a - b).abs());
        assert!(difference.fold(0.0, f32::max) < 2e-6, "{name}");
    }
}
