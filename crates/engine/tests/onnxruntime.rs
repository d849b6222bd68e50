//! The engine on the real library, which `IMPROMPT_ONNXRUNTIME` names.

use std::collections::HashMap;
use std::path::Path;

use imprompt_engine::onnxruntime::{OnnxRuntime, OnnxRuntimeOptions};
use imprompt_engine::{
    CacheEntry, CacheSpec, ElementType, Engine, EngineOptions, Held, Input, Runtime, SlotLength,
    TensorView,
};
use imprompt_error::Kind;
use imprompt_graph::builder::{GraphBuilder, Type};
use imprompt_graph::weights::WeightIndex;
use safetensors::Dtype;
use safetensors::tensor::TensorView as Stored;

fn runtime() -> &'static OnnxRuntime {
    OnnxRuntime::open(&OnnxRuntimeOptions::default()).expect("the tests need ONNX Runtime")
}

fn one_thread() -> EngineOptions {
    EngineOptions { threads: 1, ..EngineOptions::default() }
}

/// A folder with the weights `w` (float32, `[2, 3]`) and `h` (float16, `[3]`).
fn model_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let w: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let h: Vec<u8> =
        [0.5f32, -1.0, 2.0].iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
    let tensors = HashMap::from([
        ("w", Stored::new(Dtype::F32, vec![2, 3], &w).unwrap()),
        ("h", Stored::new(Dtype::F16, vec![3], &h).unwrap()),
    ]);
    let bytes = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

/// `y = x * w^T + h . w`: both weights, by reference.
fn write_linear(folder: &Path) -> std::path::PathBuf {
    let weights = WeightIndex::open(folder).unwrap();
    let mut graph = GraphBuilder::new("linear", &weights);
    let x = graph.input("x", Type::F32, &["n".into(), 3.into()]);
    let w = graph.weight("w", &[2, 3]).unwrap();
    let h = graph.weight("h", &[3]).unwrap();
    let shifted = graph.add(&x, &h);
    let y = graph.gemm(&shifted, &w, None);
    graph.output(&y, "y", Type::F32, &["n".into(), 2.into()]);
    let path = folder.join("linear.onnx");
    std::fs::write(&path, graph.finish().bytes).unwrap();
    path
}

fn open_linear(folder: &Path) -> Box<dyn Engine> {
    runtime().open(&write_linear(folder), &one_thread()).unwrap()
}

fn linear(x: &[f32]) -> Vec<f32> {
    let (h, w) = ([0.5, -1.0, 2.0], [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
    x.chunks(3)
        .flat_map(|row| w.map(|w| (0..3).map(|i| (row[i] + h[i]) * w[i]).sum::<f32>()))
        .collect()
}

#[test]
fn the_library_is_named() {
    let runtime = runtime();
    assert!(runtime.file().contains("libonnxruntime"), "{}", runtime.file());
    assert!(Path::new(runtime.file()).is_file());
    assert!(runtime.version().starts_with("1."), "{}", runtime.version());
    assert!(runtime.description().contains(runtime.version()));
}

#[test]
fn weights_are_used_where_they_lie() {
    let folder = model_folder();
    let mut engine = open_linear(folder.path());
    assert_eq!(engine.inputs()[0].shape, [None, Some(3)]);
    assert_eq!(engine.outputs()[0].element_type, ElementType::F32);
    for rows in [1usize, 4, 2] {
        let x: Vec<f32> = (0..rows * 3).map(|i| i as f32 * 0.25 - 1.0).collect();
        let shape = [rows, 3];
        let view = TensorView::new(&shape, &x).unwrap();
        let outputs = engine.run(&[("x", view.into())], &["y"]).unwrap();
        assert_eq!(outputs[0].shape(), [rows, 2]);
        assert_eq!(outputs[0].as_slice::<f32>().unwrap(), linear(&x));
        assert!(outputs[0].as_slice::<i64>().is_err());
    }
}

#[test]
fn no_rows_give_no_rows() {
    let folder = model_folder();
    let mut engine = open_linear(folder.path());
    let view = TensorView::new(&[0, 3], &[0f32; 0]).unwrap();
    let outputs = engine.run(&[("x", view.into())], &["y"]).unwrap();
    assert_eq!(outputs[0].shape(), [0, 2]);
    assert!(outputs[0].as_slice::<f32>().unwrap().is_empty());
}

#[test]
fn a_held_tensor_goes_into_the_next_run() {
    let folder = model_folder();
    let weights = WeightIndex::open(folder.path()).unwrap();
    let mut graph = GraphBuilder::new("double", &weights);
    let x = graph.input("x", Type::F32, &["n".into(), 3.into()]);
    let y = graph.add(&x, &x);
    graph.output(&y, "y", Type::F32, &["n".into(), 3.into()]);
    let path = folder.path().join("double.onnx");
    std::fs::write(&path, graph.finish().bytes).unwrap();

    let mut double = runtime().open(&path, &one_thread()).unwrap();
    let mut linear_engine = open_linear(folder.path());
    let x = [1.0f32, 2.0, 3.0];
    let view = TensorView::new(&[1, 3], &x).unwrap();
    let doubled = double.run(&[("x", view.into())], &["y"]).unwrap();
    // The tensor outlives the engine that made it.
    drop(double);
    let outputs = linear_engine.run(&[("x", (&doubled[0]).into())], &["y"]).unwrap();
    assert_eq!(outputs[0].as_slice::<f32>().unwrap(), linear(&[2.0, 4.0, 6.0]));
}

/// A tensor that is not the engine's own.
#[derive(Debug)]
struct Foreign([usize; 2], Vec<f32>);

impl Held for Foreign {
    fn element_type(&self) -> ElementType {
        ElementType::F32
    }
    fn shape(&self) -> &[usize] {
        &self.0
    }
    fn to_host(&self) -> imprompt_error::Result<TensorView<'_>> {
        TensorView::new(&self.0, &self.1)
    }
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[test]
fn another_engines_tensor_is_read_on_the_host() {
    let folder = model_folder();
    let mut engine = open_linear(folder.path());
    let foreign = Foreign([1, 3], vec![1.0, 2.0, 3.0]);
    let outputs = engine.run(&[("x", Input::Held(&foreign))], &["y"]).unwrap();
    assert_eq!(outputs[0].as_slice::<f32>().unwrap(), linear(&[1.0, 2.0, 3.0]));
}

#[test]
fn wrong_calls_are_errors() {
    let folder = model_folder();
    let mut engine = open_linear(folder.path());
    let x = [1.0f32, 2.0, 3.0];
    let view = TensorView::new(&[1, 3], &x).unwrap();
    let mut fails = |inputs: &[(&str, Input<'_>)], outputs: &[&str], text: &str| {
        let error = engine.run(inputs, outputs).unwrap_err();
        assert_eq!(error.kind(), Kind::Internal);
        assert!(error.message().contains(text), "{error}");
    };
    fails(&[("z", view.into())], &["y"], "no input z");
    fails(&[("x", view.into())], &["z"], "no output z");
    fails(&[], &["y"], "0 inputs were given, the graph has 1");
    let integers = TensorView::new(&[1, 3], &[1i64, 2, 3]).unwrap();
    fails(&[("x", integers.into())], &["y"], "nexpected input data type");
    let wide = TensorView::new(&[1, 4], &[0f32; 4]).unwrap();
    fails(&[("x", wide.into())], &["y"], "dimensions");
    // And the engine goes on.
    assert!(engine.run(&[("x", view.into())], &["y"]).is_ok());
}

#[test]
fn a_bad_file_is_named() {
    let folder = model_folder();
    let path = write_linear(folder.path());
    let fails = |path: &Path| {
        let error = runtime().open(path, &one_thread()).unwrap_err();
        assert_eq!(error.kind(), Kind::BadModel, "{error}");
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(error.message().contains(name), "{error}");
    };
    fails(&folder.path().join("missing.onnx"));
    let corrupt = folder.path().join("corrupt.onnx");
    std::fs::write(&corrupt, &std::fs::read(&path).unwrap()[..40]).unwrap();
    fails(&corrupt);
    std::fs::write(&corrupt, b"nonsense").unwrap();
    fails(&corrupt);

    let weights = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 8]).unwrap();
    fails(&path);
    std::fs::remove_file(&weights).unwrap();
    fails(&path);
}

#[test]
fn memory_that_cannot_be_had_is_told_apart() {
    let folder = model_folder();
    let weights = WeightIndex::open(folder.path()).unwrap();
    let mut graph = GraphBuilder::new("large", &weights);
    let shape = graph.input("shape", Type::I64, &[2.into()]);
    let y = graph.full(&shape, 1.0);
    graph.output(&y, "y", Type::F32, &["a".into(), "b".into()]);
    let path = folder.path().join("large.onnx");
    std::fs::write(&path, graph.finish().bytes).unwrap();
    let mut engine = runtime().open(&path, &one_thread()).unwrap();
    let sides = [1i64 << 24, 1 << 24];
    let view = TensorView::new(&[2], &sides).unwrap();
    let error = engine.run(&[("shape", view.into())], &["y"]).unwrap_err();
    assert_eq!(error.kind(), Kind::OutOfMemory, "{error}");
    let spec = CacheSpec::decoder(1, 1 << 20, 1 << 10, 1 << 4, 1 << 11);
    assert_eq!(engine.new_cache(&spec).unwrap_err().kind(), Kind::OutOfMemory);
}

/// Writes `update` into the cache and gives the cache's sum over the length.
fn open_scatter(folder: &Path) -> Box<dyn Engine> {
    let weights = WeightIndex::open(folder).unwrap();
    let mut graph = GraphBuilder::new("scatter", &weights);
    let dims = ["batch".into(), 2.into(), "max_length".into(), 3.into()];
    let past = graph.input("past", Type::F32, &dims);
    let update =
        graph.input("update", Type::F32, &["batch".into(), 2.into(), "length".into(), 3.into()]);
    let at = graph.input("at", Type::I64, &["batch".into()]);
    let present = graph.tensor_scatter(&past, &update, &at, -2);
    let sum = graph.reduce_sum(&present, &[2]);
    graph.output(&present, "present", Type::F32, &dims);
    graph.output(&sum, "sum", Type::F32, &["batch".into(), 2.into(), 1.into(), 3.into()]);
    let path = folder.join("scatter.onnx");
    let graph = graph.finish();
    assert_eq!(graph.opset, 24);
    std::fs::write(&path, graph.bytes).unwrap();
    runtime().open(&path, &one_thread()).unwrap()
}

fn entry() -> CacheEntry {
    let (input, output) = ("past".into(), "present".into());
    CacheEntry { input, output, max_length: 8, is_memory: false, heads: 2, head_dim: 3 }
}

#[test]
fn the_cache_is_written_in_place() {
    let folder = model_folder();
    let mut engine = open_scatter(folder.path());
    let spec = CacheSpec { slots: 4, element_type: ElementType::F32, entries: vec![entry()] };
    let mut cache = engine.new_cache(&spec).unwrap();
    let mut step = |cache: &mut dyn imprompt_engine::Cache,
                    slots: std::ops::Range<usize>,
                    at: i64,
                    value: f32| {
        let batch = slots.len();
        let (update, at) = (vec![value; batch * 2 * 3], vec![at; batch]);
        let (shape, at_shape) = ([batch, 2, 1, 3], [batch]);
        let update = TensorView::new(&shape, &update).unwrap();
        let at = TensorView::new(&at_shape, &at).unwrap();
        let outputs = engine
            .run_with_cache(&[("update", update.into()), ("at", at.into())], &["sum"], cache, slots)
            .unwrap();
        outputs[0].as_slice::<f32>().unwrap().to_vec()
    };
    // Sequences in slots 0 and 1, then one joins in slot 2, then all go on.
    assert_eq!(step(cache.as_mut(), 0..2, 0, 1.0), [1.0; 12]);
    assert_eq!(step(cache.as_mut(), 0..2, 1, 2.0), [3.0; 12]);
    assert_eq!(step(cache.as_mut(), 2..3, 0, 10.0), [10.0; 6]);
    let all = step(cache.as_mut(), 0..3, 2, 4.0);
    assert_eq!(all, [[7.0; 12].as_slice(), &[14.0; 6]].concat());
    // The first leaves; the last takes its slot.
    let length = |positions| SlotLength { positions, memory: 0 };
    cache.copy_slot(2, 0, length(3)).unwrap();
    let rest = step(cache.as_mut(), 0..2, 3, 0.0);
    assert_eq!(rest, [[14.0; 6], [7.0; 6]].concat());
    assert!(cache.copy_slot(0, 4, length(1)).is_err());
    assert!(cache.copy_slot(0, 1, length(usize::MAX)).is_err());
}

#[test]
fn slots_out_of_range_are_errors() {
    let folder = model_folder();
    let mut engine = open_scatter(folder.path());
    let spec = CacheSpec { slots: 2, element_type: ElementType::F32, entries: vec![entry()] };
    let mut cache = engine.new_cache(&spec).unwrap();
    for slots in [1..3, 0..0, 2..3] {
        let error = engine.run_with_cache(&[], &[], cache.as_mut(), slots).unwrap_err();
        assert!(error.message().contains("of a cache of 2"), "{error}");
    }
}

#[test]
fn every_option_loads() {
    let folder = model_folder();
    let path = write_linear(folder.path());
    let options = EngineOptions {
        threads: 2,
        branches: 2,
        spinning: true,
        optimization: imprompt_engine::Optimization::None,
        arena: false,
        memory_pattern: true,
        own_threads: true,
        independent_rows: true,
        kernels: None,
        cuda_graphs: false,
    };
    let mut engine = runtime().open(&path, &options).unwrap();
    let x = [1.0f32, 2.0, 3.0];
    let view = TensorView::new(&[1, 3], &x).unwrap();
    let outputs = engine.run(&[("x", view.into())], &["y"]).unwrap();
    assert_eq!(outputs[0].as_slice::<f32>().unwrap(), linear(&x));
}

/// The kernels' domain is added to a list of the process with the first session.
#[test]
fn sessions_open_at_the_same_time() {
    let folder = model_folder();
    let path = write_linear(folder.path());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                (0..20).for_each(|_| drop(runtime().open(&path, &one_thread()).unwrap()))
            });
        }
    });
}
