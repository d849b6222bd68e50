//! The forms of the graphs for a GPU, computed by ONNX Runtime on the CPU: in float32 they give what
//! the CPU's graphs give, in float16 nearly that.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};

use imprompt_engine::onnxruntime::{OnnxRuntime, OnnxRuntimeOptions};
use imprompt_engine::{CacheSpec, ElementType, Engine, EngineOptions, Input, Runtime, TensorView};
use imprompt_graph::builder::Graph;
use imprompt_graph::captioner::{DECODER_GRAPH, QFORMER_GRAPH, VISION_GRAPH};
use imprompt_graph::gpu::{Compute, Form, Target, for_gpu};
use imprompt_graph::{caption_graphs, clip_graphs};

const POSITIONS: usize = 32;

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name)
}

/// `graph` in a form for a GPU (`None`: as it is), opened over the weights of `model`.
fn open(
    folder: &Path,
    model: &Path,
    graph: &Graph,
    form: Option<(Compute, Form)>,
) -> Box<dyn Engine> {
    let graph = match form {
        None => graph.clone(),
        Some((compute, form)) => {
            for_gpu(graph, &Target { compute, form, positions: POSITIONS, memory: 0 }).unwrap()
        }
    };
    for file in &graph.weight_files {
        if !folder.join(file).exists() {
            std::fs::copy(model.join(file), folder.join(file)).unwrap();
        }
    }
    let path = folder.join(format!("{form:?}.onnx"));
    std::fs::write(&path, &graph.bytes).unwrap();
    let options = EngineOptions { kernels: None, threads: 1, ..EngineOptions::default() };
    OnnxRuntime::open(&OnnxRuntimeOptions::default()).unwrap().open(&path, &options).unwrap()
}

fn run(engine: &mut dyn Engine, inputs: &[(&str, Input<'_>)], output: &str) -> Vec<f32> {
    let held = engine.run(inputs, &[output]).unwrap();
    held[0].as_slice::<f32>().unwrap().to_vec()
}

/// Numbers about 0 that are the same everywhere.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|n| ((n * 7919 % 1009) as f32 / 504.5) - 1.0).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// What `engine` gives is compared in all forms with the graph as it is.
fn compare(model: &Path, graph: &Graph, compute: impl Fn(&mut dyn Engine) -> Vec<f32>) {
    let folder = tempfile::tempdir().unwrap();
    let of = |form| compute(open(folder.path(), model, graph, form).as_mut());
    let expected = of(None);
    for form in [Form::Parts, Form::Fused] {
        let wide = of(Some((Compute::F32, form)));
        let far = difference(&expected, &wide);
        assert!(far < 2e-4, "{form:?}: {far}");
        let half = of(Some((Compute::F16, form)));
        let near = cosine(&expected, &half);
        println!("{form:?}: float32 {far:e}, float16 1 - {:e}", 1.0 - near);
        assert!(near > 0.9995, "{form:?}: {near}");
        // Something was rounded: the products are in float16 indeed.
        assert_ne!(expected, half, "{form:?}");
    }
}

#[test]
fn clip_embeds_alike() {
    let model = model("demo-clip");
    let graphs = clip_graphs(&model).unwrap();
    let pixels = numbers(2 * 3 * 64 * 64);
    compare(&model, &graphs.image, |engine| {
        let view = TensorView::new(&[2, 3, 64, 64], &pixels).unwrap();
        run(engine, &[("pixel_values", view.into())], "image_embeds")
    });
    let ids: Vec<i64> = vec![5, 90, 1200, 3071, 17, 33, 3071, 3071];
    let prefix = numbers(4 * 2 * 3 * 64);
    compare(&model, &graphs.text, |engine| {
        let shape = [4, 2, 3, 64];
        let inputs = [
            ("input_ids", TensorView::new(&[2, 4], &ids).unwrap().into()),
            ("last_index", TensorView::new(&[2], &[3_i64, 2]).unwrap().into()),
            ("prefix_keys", TensorView::new(&shape, &prefix).unwrap().into()),
            ("prefix_values", TensorView::new(&shape, &prefix).unwrap().into()),
            ("kept_rows", TensorView::new(&[1], &[6_i64]).unwrap().into()),
        ];
        let embeds = run(engine, &inputs, "text_embeds");
        [embeds, run(engine, &inputs, "keys")].concat()
    });
}

#[test]
fn a_captioner_scores_alike() {
    let model = model("demo-blip2");
    let graphs = caption_graphs(&model).unwrap();
    let graph = |name: &str| &graphs.files.iter().find(|(file, _)| *file == name).unwrap().1;
    let pixels = numbers(3 * 64 * 64);
    compare(&model, graph(VISION_GRAPH), |engine| {
        let view = TensorView::new(&[1, 3, 64, 64], &pixels).unwrap();
        run(engine, &[("pixel_values", view.into())], "image_embeds")
    });
    let embeds = numbers(2 * 65 * 192);
    compare(&model, graph(QFORMER_GRAPH), |engine| {
        let view = TensorView::new(&[2, 65, 192], &embeds).unwrap();
        run(engine, &[("image_embeds", view.into())], "query_embeds")
    });
    let picture = numbers(2 * 8 * 160);
    compare(&model, graph(DECODER_GRAPH), |engine| {
        let port = engine.inputs().iter().find(|port| port.name == "past_key_values.0.key");
        let element_type = port.unwrap().element_type;
        let spec = CacheSpec::decoder(3, 5, 32, 2, POSITIONS);
        let spec = CacheSpec { element_type, ..spec };
        assert!(matches!(element_type, ElementType::F32 | ElementType::F16));
        let mut cache = engine.new_cache(&spec).unwrap();
        let mut step = |picture: &[f32], ids: &[i64], at: [i64; 2], keys: usize| {
            let prefix = picture.len() / 2 / 160;
            let keys: Vec<i64> = (0..keys as i64).collect();
            let (tokens, picture_shape) = (ids.len() / 2, [2, prefix, 160]);
            let (token_shape, key_shape) = ([2, tokens], [keys.len()]);
            let lengths = [(prefix + tokens) as i64; 2];
            let inputs = [
                ("picture_embeds", TensorView::new(&picture_shape, picture).unwrap().into()),
                ("input_ids", TensorView::new(&token_shape, ids).unwrap().into()),
                ("write_index", TensorView::new(&[2], &at).unwrap().into()),
                ("lengths", TensorView::new(&[2], &lengths).unwrap().into()),
                ("key_positions", TensorView::new(&key_shape, &keys).unwrap().into()),
            ];
            let held = engine.run_with_cache(&inputs, &["logits"], cache.as_mut(), 0..2).unwrap();
            held[0].as_slice::<f32>().unwrap().to_vec()
        };
        let first = step(&picture, &[2, 2], [0, 0], 9);
        [first, step(&[], &[40, 300], [9, 9], 10)].concat()
    });
}
