//! The forms of a graph for a GPU.
//!
//! [`for_gpu`] rewrites a finished graph. TensorRT's networks are strongly typed: an operator computes
//! in the types it is given, so the precision is in the graph. That of [`Form::Parts`], from which its engines are built:
//!
//! * `Attention` of opset 23 becomes products and a softmax. As one operator it is refused wherever
//!   there is no kernel for its type and head size; as products it is fused where there is one.
//! * Matrix products and convolutions take and give float16 or bfloat16 (they sum in float32
//!   inside). Everything between them, normalisation, softmax, residual sums, activations, the last
//!   L2 norm, stays in float32. Operators that only move elements go in whatever type they have.
//! * `Range` from 0 becomes the beginning of a constant: its end is known on the host, its numbers are
//!   read on the device, and one number after the other would be brought there.
//! * The cache of a decoder (`past_key_values.*`, `memory.*` and what is written over them) is of
//!   the products' type, and of a length known beforehand, which TensorRT asks of a tensor that is
//!   updated in place: its inputs and outputs change. All others keep the type they have.
//!
//! [`Form::Fused`], for ONNX Runtime's CUDA provider alone, is the same but for attention and
//! activations: the room `fused`.
//!
//! Weights stay where they lie; those of another type go through a `Cast` that is folded when the
//! engine is built. The input is a graph of [`crate::builder`], the same graph gives the same bytes.

mod attention;
mod fused;
mod ports;
mod typed;

use std::collections::{HashMap, HashSet};

use imprompt_error::{Error, Result};
use imprompt_onnx as onnx;
use prost::Message;

use crate::builder::Graph;

pub use ports::{Length, PortLengths, ports};

/// In which type a GPU multiplies matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// float32: nothing is rounded.
    F32,
    /// float16.
    F16,
    /// bfloat16, the range of float32 with fewer digits; from compute capability 8.0 on.
    Bf16,
}

impl Compute {
    const ALL: [(&'static str, Compute); 3] =
        [("f32", Compute::F32), ("f16", Compute::F16), ("bf16", Compute::Bf16)];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, one)| *one == self).map_or("f32", |(name, _)| name)
    }

    /// That of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, one)| *one)
    }

    /// Whether it has the very number `value`.
    fn holds(self, value: f32) -> bool {
        let dropped = match self {
            Compute::F32 => 0,
            Compute::F16 => 13,
            Compute::Bf16 => 16,
        };
        // The least and largest of float16's normal numbers.
        let is_small = self == Compute::F16 && !(6.2e-5..65_504.0).contains(&value.abs());
        value.to_bits().trailing_zeros() >= dropped && !is_small
    }

    fn number(self) -> i32 {
        match self {
            Compute::F32 => onnx::FLOAT,
            Compute::F16 => onnx::FLOAT16,
            Compute::Bf16 => onnx::BFLOAT16,
        }
    }
}

/// How much of a graph a GPU is given as one operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Attention as products and a softmax, activations in float32: TensorRT builds it, and ONNX
    /// Runtime's CUDA provider runs it.
    #[default]
    Parts,
    /// Attention and activations as one operator each, in the products' type, which is what the CUDA
    /// provider has kernels for.
    Fused,
}

/// What a graph's form for a GPU is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The type of its products.
    pub compute: Compute,
    /// Its operators.
    pub form: Form,
    /// Positions of a decoder's cache.
    pub positions: usize,
    /// Positions of what a decoder's cross attention looks at, where that has a text in it.
    pub memory: usize,
}

/// `graph` in its form for a GPU.
///
/// # Errors
/// `Unsupported` where weights are kept in 8 or 4 bits, or where heads share keys; `Internal` when
/// the graph is none.
pub fn for_gpu(graph: &Graph, target: &Target) -> Result<Graph> {
    let compute = target.compute;
    let mut model = graph.model()?;
    let inner =
        model.graph.as_mut().ok_or_else(|| Error::internal("a model has no graph in it"))?;
    for port in inner.input.iter_mut().chain(&mut inner.output) {
        if is_cache(port.name.as_deref().unwrap_or_default()) {
            ports::fix_lengths(port, target);
        }
    }
    if inner.node.iter().any(|node| operator(node) == "DequantizeLinear") {
        return Err(Error::unsupported(
            "weights in 8 or 4 bits are for the CPU: a GPU's graph has f32, f16 or bf16",
        ));
    }
    count_by_slices(inner);
    let (nodes, narrow) = match target.form {
        Form::Parts => (attention::write_out(inner)?, HashSet::new()),
        Form::Fused => {
            let nodes = fused::fuse(inner)?;
            let narrow = fused::narrow(&nodes, inner, compute);
            (nodes, narrow)
        }
    };
    inner.node = match compute {
        Compute::F32 => nodes,
        _ => typed::Typed::new(inner, compute, narrow).rewrite(nodes, inner)?,
    };
    inner.drop_unread();
    // ONNX Runtime's CUDA provider has convolutions of bfloat16 from this opset on.
    let lowest = if compute == Compute::Bf16 { graph.opset.max(22) } else { graph.opset };
    let opset = match target.form {
        Form::Parts => {
            if lowest > graph.opset {
                model.set_opset(lowest);
            }
            lowest
        }
        Form::Fused => fused::set_operators(&mut model, lowest),
    };
    Ok(Graph { bytes: model.encode_to_vec(), weight_files: graph.weight_files.clone(), opset })
}

/// Whether the input or output `name` is a decoder's cache.
#[must_use]
pub fn is_cache(name: &str) -> bool {
    ["past_key_values.", "memory.", "present.", "present_memory."]
        .iter()
        .any(|start| name.starts_with(start))
}

/// Operators that give truth values.
const COMPARISONS: [&str; 3] = ["LessOrEqual", "Less", "Greater"];

/// Operators whose first input is data that is moved and not computed with.
const MOVERS: [&str; 11] = [
    "Reshape",
    "Transpose",
    "Gather",
    "GatherND",
    "Slice",
    "Squeeze",
    "Unsqueeze",
    "Expand",
    "Split",
    "Identity",
    "Concat",
];

fn operator(node: &onnx::Node) -> &str {
    node.op_type.as_deref().unwrap_or_default()
}

fn attribute<'n>(node: &'n onnx::Node, name: &str) -> Option<&'n onnx::Attribute> {
    node.attribute.iter().find(|attribute| attribute.name.as_deref() == Some(name))
}

/// The type that a `Cast` casts to.
fn casts_to(node: &onnx::Node) -> Option<i64> {
    attribute(node, "to").and_then(|to| to.i)
}

fn new_node(operator: &str, inputs: &[&str], output: &str) -> onnx::Node {
    onnx::Node {
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.to_owned()],
        name: Some(output.to_owned()),
        op_type: Some(operator.to_owned()),
        ..onnx::Node::default()
    }
}

/// Numbers that a range may have: more than any length of a model has.
const COUNTED: i64 = 1 << 14;

/// Puts the beginning of a constant in the place of every `Range`.
fn count_by_slices(graph: &mut onnx::Graph) {
    const NUMBERS: &str = "gpu.numbers";
    const START: &str = "gpu.start";
    // The end of a range is a scalar, that of a slice has a dimension: the one before it was squeezed.
    let ends: HashMap<String, String> = graph
        .node
        .iter()
        .filter(|node| operator(node) == "Squeeze")
        .map(|node| (node.output[0].clone(), node.input[0].clone()))
        .collect();
    let mut is_any = false;
    for node in graph.node.iter_mut().filter(|node| operator(node) == "Range") {
        let Some(end) = ends.get(&node.input[1]) else { continue };
        node.op_type = Some("Slice".to_owned());
        node.input = vec![NUMBERS.to_owned(), START.to_owned(), end.clone()];
        is_any = true;
    }
    if is_any {
        let numbers = (0..COUNTED).flat_map(i64::to_le_bytes).collect();
        for (name, count, bytes) in
            [(NUMBERS, COUNTED, numbers), (START, 1, 0i64.to_le_bytes().to_vec())]
        {
            graph.initializer.push(onnx::Tensor {
                dims: vec![count],
                data_type: Some(onnx::INT64),
                name: Some(name.to_owned()),
                raw_data: Some(bytes),
                ..onnx::Tensor::default()
            });
        }
    }
}
