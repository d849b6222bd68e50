//! The forms of graphs for a GPU: how many kernels they are, and what stays as it was. What they
//! compute is compared in `crates/engine/tests/gpu_form.rs` and, for every family, in
//! `crates/caption/tests/families.rs` and `crates/clip/tests/goldens.rs`.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use imprompt_graph::builder::Graph;
use imprompt_graph::captioner::{DECODER_GRAPH, VISION_GRAPH};
use imprompt_graph::gpu::{Compute, Form, Target, for_gpu};
use imprompt_graph::{caption_graphs, clip_graphs};
use imprompt_onnx as onnx;
use prost::Message as _;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)
}

fn caption_graph(model: &str, name: &str) -> Graph {
    let graphs = caption_graphs(&folder(model)).unwrap();
    graphs.files.into_iter().find(|(file, _)| *file == name).unwrap().1
}

fn model(graph: &Graph, compute: Compute, form: Form) -> onnx::Model {
    let target = Target { compute, form, positions: 128, memory: 64 };
    onnx::Model::decode(for_gpu(graph, &target).unwrap().bytes.as_slice()).unwrap()
}

/// The operators of nodes that launch a kernel in every run and whose names start with `scope`: all
/// but those that move no element, and those of constants, which are computed once.
fn count(model: &onnx::Model, scope: &str) -> BTreeMap<String, usize> {
    const FREE: [&str; 5] = ["Reshape", "Squeeze", "Unsqueeze", "Shape", "Identity"];
    let graph = model.graph.as_ref().unwrap();
    let mut varying: HashSet<&str> = graph.input.iter().filter_map(|i| i.name.as_deref()).collect();
    let mut found = BTreeMap::new();
    for node in &graph.node {
        if !node.input.iter().any(|input| varying.contains(input.as_str())) {
            continue;
        }
        varying.extend(node.output.iter().map(String::as_str));
        let operator = node.op_type.as_deref().unwrap();
        if node.name.as_deref().unwrap().starts_with(scope) && !FREE.contains(&operator) {
            *found.entry(operator.to_owned()).or_insert(0) += 1;
        }
    }
    found
}

/// The kernels of one layer in both forms, and those of each operator in the fused one.
fn layer(graph: &Graph, scope: &str) -> ([usize; 2], BTreeMap<String, usize>) {
    let [parts, fused] =
        [Form::Parts, Form::Fused].map(|form| count(&model(graph, Compute::F16, form), scope));
    println!("{scope}: {parts:?}\n{fused:?}");
    ([parts.values().sum(), fused.values().sum()], fused)
}

#[test]
fn a_layer_is_fewer_kernels() {
    let of = |counts: &[(&str, usize)]| -> BTreeMap<String, usize> {
        counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    };
    // docs/gpu.md states these.
    let decoder = caption_graph("models/demo-blip2", DECODER_GRAPH);
    let (kernels, fused) = layer(&decoder, "layers.1/");
    let expected = [
        ("Add", 2),
        ("Attention", 1),
        ("Cast", 4),
        ("Gemm", 6),
        ("LayerNormalization", 2),
        ("Relu", 1),
        ("Slice", 2),
        ("TensorScatter", 2),
        ("Transpose", 4),
    ];
    assert_eq!((kernels, fused), ([36, 24], of(&expected)));
    let image = clip_graphs(&folder("models/demo-clip")).unwrap().image;
    let (kernels, fused) = layer(&image, "vision_model.encoder.layers.1/");
    let expected = [
        ("Add", 2),
        ("Attention", 1),
        ("Cast", 4),
        ("Gemm", 6),
        ("LayerNormalization", 2),
        ("QuickGelu", 1),
    ];
    assert_eq!((kernels, fused), ([32, 16], of(&expected)));
}

#[test]
fn attention_is_one_operator_where_there_is_a_kernel() {
    let of = |graph: &Graph, names: &[&str]| -> Vec<usize> {
        let found = count(&model(graph, Compute::F16, Form::Fused), "");
        names.iter().map(|name| found.get(*name).copied().unwrap_or(0)).collect()
    };
    let names = ["Attention", "Softmax", "Transpose"];
    let caption =
        |model: &str, name: &str| caption_graph(&format!("goldens/captioners/{model}"), name);
    // Layers; none; that of the patches.
    assert_eq!(of(&caption("git_plain", VISION_GRAPH), &names), [2, 0, 1]);
    assert_eq!(of(&caption("blip_plain", VISION_GRAPH), &names), [2, 0, 1]);
    let siglip = clip_graphs(&folder("goldens/siglip/siglip")).unwrap();
    // One probe looks at the patches of every picture of the batch.
    assert_eq!(of(&siglip.image, &names), [2, 1, 5]);
    assert_eq!(of(&siglip.text, &names), [3, 0, 0]);
    // One prefix stands in front of all texts.
    let texts = clip_graphs(&folder("models/demo-clip")).unwrap().text;
    assert_eq!(of(&texts, &names)[..2], [0, 4]);
    assert_eq!(of(&texts, &["Sigmoid", "QuickGelu"]), [0, 4]);
    // A mask is made once, whatever the layers are.
    let decoder = caption("t5_plain", DECODER_GRAPH);
    assert_eq!(of(&decoder, &["Softmax", "Max"]), [0, 1]);
}

#[test]
fn operators_are_those_of_an_opset_that_has_them() {
    let graphs = clip_graphs(&folder("models/demo-clip")).unwrap();
    for (graph, opsets) in [(&graphs.image, [18, 23]), (&graphs.text, [18, 18])] {
        let of = |form| {
            let target = Target { compute: Compute::F16, form, positions: 0, memory: 0 };
            let made = for_gpu(graph, &target).unwrap();
            let model = onnx::Model::decode(made.bytes.as_slice()).unwrap();
            let named = |set: onnx::OperatorSet| (set.domain.unwrap(), set.version.unwrap());
            let imports: Vec<_> = model.opset_import.into_iter().map(named).collect();
            assert_eq!(imports[0].1, made.opset);
            imports
        };
        let standard = |version| (String::new(), version);
        assert_eq!(of(Form::Parts), [standard(opsets[0])]);
        let microsoft = ("com.microsoft".to_owned(), 1);
        assert_eq!(of(Form::Fused), [standard(opsets[1]), microsoft]);
    }
}

#[test]
fn bfloat16_has_an_opset_with_convolutions_of_it() {
    let graphs = clip_graphs(&folder("models/demo-clip")).unwrap();
    for form in [Form::Parts, Form::Fused] {
        let opset = |compute| model(&graphs.image, compute, form).opset_import[0].version.unwrap();
        assert!(opset(Compute::Bf16) >= 22, "{form:?}");
    }
    let opset = model(&graphs.image, Compute::F16, Form::Parts).opset_import[0].version;
    assert_eq!(opset, Some(graphs.image.opset));
}
