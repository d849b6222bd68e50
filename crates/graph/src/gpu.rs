//! The form of a graph that a GPU's engine is built from.
//!
//! TensorRT's networks are strongly typed: an operator computes in the types it is given, so the
//! precision is in the graph. [`for_gpu`] rewrites a finished graph:
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
//! Weights stay where they lie; those of another type go through a `Cast` that is folded when the
//! engine is built. The input is a graph of [`crate::builder`], the same graph gives the same bytes.

use std::collections::{HashMap, HashSet};

use imprompt_error::{Error, Result};
use imprompt_onnx as onnx;
use prost::Message;

use crate::builder::Graph;

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

    fn number(self) -> i32 {
        match self {
            Compute::F32 => onnx::FLOAT,
            Compute::F16 => onnx::FLOAT16,
            Compute::Bf16 => onnx::BFLOAT16,
        }
    }
}

/// What a GPU's engine is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The type of its products.
    pub compute: Compute,
    /// Positions of a decoder's cache.
    pub positions: usize,
    /// Positions of what a decoder's cross attention looks at, where that has a text in it.
    pub memory: usize,
}

/// `graph` as a GPU's engine is built from it.
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
            fix_lengths(port, target);
        }
    }
    count_by_slices(inner);
    let nodes = decompose(inner)?;
    inner.node = match compute {
        Compute::F32 => nodes,
        _ => Typed::new(inner, compute).rewrite(nodes, inner)?,
    };
    inner.drop_unread();
    Ok(Graph {
        bytes: model.encode_to_vec(),
        weight_files: graph.weight_files.clone(),
        opset: graph.opset,
    })
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

/// Nodes and constants that take an operator's place, named after its output.
struct Parts<'g> {
    nodes: &'g mut Vec<onnx::Node>,
    initializers: &'g mut Vec<onnx::Tensor>,
    base: String,
}

impl Parts<'_> {
    fn node(&mut self, operator: &str, inputs: &[&str], what: &str) -> String {
        let output = format!("{}.{what}", self.base);
        self.nodes.push(new_node(operator, inputs, &output));
        output
    }

    fn transpose(&mut self, input: &str, permutation: &[i64], what: &str) -> String {
        let output = self.node("Transpose", &[input], what);
        if let Some(node) = self.nodes.last_mut() {
            node.attribute = vec![onnx::Attribute {
                name: Some("perm".to_owned()),
                ints: permutation.to_vec(),
                kind: Some(onnx::ATTRIBUTE_INTS),
                ..onnx::Attribute::default()
            }];
        }
        output
    }

    fn constant(&mut self, data_type: i32, dims: &[i64], bytes: Vec<u8>, what: &str) -> String {
        let name = format!("{}.{what}", self.base);
        self.initializers.push(onnx::Tensor {
            dims: dims.to_vec(),
            data_type: Some(data_type),
            name: Some(name.clone()),
            raw_data: Some(bytes),
            ..onnx::Tensor::default()
        });
        name
    }

    fn float(&mut self, value: f32, what: &str) -> String {
        self.constant(onnx::FLOAT, &[], value.to_le_bytes().to_vec(), what)
    }

    fn ints(&mut self, values: &[i64], what: &str) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(onnx::INT64, &[values.len() as i64], bytes, what)
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

/// The nodes of `graph` with every `Attention` written out, and without the marks of fused groups.
fn decompose(graph: &mut onnx::Graph) -> Result<Vec<onnx::Node>> {
    let mut nodes = Vec::with_capacity(graph.node.len());
    let mut booleans: HashSet<String> = HashSet::new();
    for mut node in std::mem::take(&mut graph.node) {
        node.doc_string = None;
        if operator(&node) == "DequantizeLinear" {
            return Err(Error::unsupported(
                "weights in 8 or 4 bits are for the CPU: a GPU's graph has f32, f16 or bf16",
            ));
        }
        let is_boolean = COMPARISONS.contains(&operator(&node))
            || (MOVERS.contains(&operator(&node)) && booleans.contains(&node.input[0]));
        if is_boolean {
            booleans.extend(node.output.iter().cloned());
        }
        if operator(&node) == "Attention" {
            let is_choice = node.input.get(3).is_some_and(|mask| booleans.contains(mask));
            let base = node.output[0].clone();
            let initializers = &mut graph.initializer;
            attention(&node, is_choice, Parts { nodes: &mut nodes, initializers, base })?;
        } else {
            nodes.push(node);
        }
    }
    Ok(nodes)
}

/// `node`, an `Attention`, in products and a softmax. Its mask `is_choice` where it is truth values
/// and not what scores are raised by.
fn attention(node: &onnx::Node, is_choice: bool, mut parts: Parts<'_>) -> Result<()> {
    let heads = |name: &str| attribute(node, name).and_then(|attribute| attribute.i);
    let (queries, keys) = (heads("q_num_heads"), heads("kv_num_heads"));
    let scale = attribute(node, "scale").and_then(|attribute| attribute.f);
    let Some(scale) = scale.filter(|_| queries == keys && node.input.len() >= 3) else {
        return Err(Error::unsupported("attention without a scale, or whose heads share keys"));
    };
    let mut sides = [0, 1, 2].map(|side| node.input[side].clone());
    if let Some(heads) = queries {
        let shape = parts.ints(&[0, 0, heads, -1], "heads");
        for (side, name) in sides.iter_mut().zip(["query", "key", "value"]) {
            let parted = parts.node("Reshape", &[side, &shape], &format!("{name}.parted"));
            *side = parts.transpose(&parted, &[0, 2, 1, 3], name);
        }
    }
    let [query, key, value] = sides;
    let scale = parts.float(scale, "scale");
    let query = parts.node("Mul", &[&query, &scale], "query.scaled");
    let key = parts.transpose(&key, &[0, 1, 3, 2], "key.turned");
    let mut scores = parts.node("MatMul", &[&query, &key], "scores");
    if let Some(mask) = node.input.get(3).filter(|mask| !mask.is_empty()) {
        let raised = if is_choice {
            let (zero, lowest) = (parts.float(0.0, "zero"), parts.float(f32::MIN, "lowest"));
            parts.node("Where", &[mask, &zero, &lowest], "mask")
        } else {
            mask.clone()
        };
        scores = parts.node("Add", &[&scores, &raised], "scores.masked");
    }
    let weights = parts.node("Softmax", &[&scores], "weights");
    if let Some(node) = parts.nodes.last_mut() {
        node.attribute = vec![onnx::Attribute::integer("axis", -1)];
    }
    let Some(_) = queries else {
        parts.nodes.push(new_node("MatMul", &[&weights, &value], &node.output[0]));
        return Ok(());
    };
    let seen = parts.node("MatMul", &[&weights, &value], "seen");
    let seen = parts.transpose(&seen, &[0, 2, 1, 3], "seen.turned");
    let shape = parts.ints(&[0, 0, -1], "joined");
    parts.nodes.push(new_node("Reshape", &[&seen, &shape], &node.output[0]));
    Ok(())
}

/// Which values there are in float32 and which in the products' type.
struct Typed {
    compute: Compute,
    /// Values that are in float32 under their own name.
    wide: HashSet<String>,
    /// By value: its name in the products' type.
    narrow: HashMap<String, String>,
    nodes: Vec<onnx::Node>,
}

impl Typed {
    fn new(graph: &onnx::Graph, compute: Compute) -> Self {
        let mut typed =
            Typed { compute, wide: HashSet::new(), narrow: HashMap::new(), nodes: Vec::new() };
        for tensor in &graph.initializer {
            let name = tensor.name.clone().unwrap_or_default();
            match tensor.data_type {
                Some(onnx::FLOAT) => drop(typed.wide.insert(name)),
                Some(number) if number == compute.number() => {
                    typed.narrow.insert(name.clone(), name);
                }
                _ => (),
            }
        }
        for input in &graph.input {
            let name = input.name.clone().unwrap_or_default();
            match is_cache(&name) {
                true => drop(typed.narrow.insert(name.clone(), name)),
                false if element_type(input) == Some(onnx::FLOAT) => {
                    typed.wide.insert(name);
                }
                false => (),
            }
        }
        typed
    }

    /// The nodes with casts between them; changes the types of the graph's cache.
    fn rewrite(
        mut self,
        nodes: Vec<onnx::Node>,
        graph: &mut onnx::Graph,
    ) -> Result<Vec<onnx::Node>> {
        for node in nodes {
            self.add(node);
        }
        for port in graph.input.iter_mut().chain(&mut graph.output) {
            let name = port.name.clone().unwrap_or_default();
            if is_cache(&name) {
                set_element_type(port, self.compute.number());
            }
        }
        for output in &graph.output {
            let name = output.name.clone().unwrap_or_default();
            if is_cache(&name) {
                let narrow = self.narrow.get(&name);
                if narrow != Some(&name) {
                    return Err(Error::internal(format!("{name} does not come from a product")));
                }
            } else if element_type(output) == Some(onnx::FLOAT) {
                self.widen(&name);
            }
        }
        Ok(self.nodes)
    }

    fn add(&mut self, mut node: onnx::Node) {
        match operator(&node) {
            "Gemm" | "MatMul" | "Conv" => {
                for input in &mut node.input {
                    *input = self.narrow_name(input);
                }
                self.push_narrow(node);
            }
            "TensorScatter" => {
                for input in &mut node.input[..2] {
                    *input = self.narrow_name(input);
                }
                self.push_narrow(node);
            }
            "Cast" if self.is_widening(&node) => {
                // What it widens is there already.
                let narrow = self.narrow[&node.input[0]].clone();
                self.narrow.insert(node.output[0].clone(), narrow);
            }
            "Cast" => {
                self.widen(&node.input[0]);
                if casts_to(&node) == Some(i64::from(onnx::FLOAT)) {
                    self.wide.insert(node.output[0].clone());
                }
                self.nodes.push(node);
            }
            "Shape" => {
                // Its type makes no difference: the one that is there.
                if let Some(narrow) = self.narrow.get(&node.input[0]) {
                    node.input[0].clone_from(narrow);
                }
                self.nodes.push(node);
            }
            name if MOVERS.contains(&name) => self.add_mover(node),
            name => {
                let is_float = !COMPARISONS.contains(&name)
                    && node.input.iter().any(|input| self.is_float(input));
                for input in &mut node.input {
                    self.widen(input);
                }
                if is_float {
                    self.wide.extend(node.output.iter().cloned());
                }
                self.nodes.push(node);
            }
        }
    }

    fn add_mover(&mut self, mut node: onnx::Node) {
        let data = match operator(&node) {
            "Concat" => node.input.len(),
            _ => 1,
        };
        let is_narrow = node.input[..data]
            .iter()
            .all(|input| self.narrow.contains_key(input) && !self.wide.contains(input));
        if is_narrow {
            for input in &mut node.input[..data] {
                *input = self.narrow_name(input);
            }
            return self.push_narrow(node);
        }
        let is_float = self.is_float(&node.input[0]);
        for input in &node.input[..data] {
            self.widen(input);
        }
        if is_float {
            self.wide.extend(node.output.iter().cloned());
        }
        self.nodes.push(node);
    }

    fn is_float(&self, value: &str) -> bool {
        self.wide.contains(value) || self.narrow.contains_key(value)
    }

    /// Whether `node` makes float32 of what is there in the products' type.
    fn is_widening(&self, node: &onnx::Node) -> bool {
        casts_to(node) == Some(i64::from(onnx::FLOAT))
            && self.narrow.contains_key(&node.input[0])
            && !self.wide.contains(&node.input[0])
    }

    /// A node that gives the products' type: its outputs get names for that.
    fn push_narrow(&mut self, mut node: onnx::Node) {
        for output in &mut node.output {
            let name = match is_cache(output) {
                true => output.clone(),
                false => format!("{output}.{}", self.compute.name()),
            };
            self.narrow.insert(output.clone(), name.clone());
            *output = name;
        }
        self.nodes.push(node);
    }

    /// The name of `value` in the products' type; a cast where it has none yet.
    fn narrow_name(&mut self, value: &str) -> String {
        if let Some(name) = self.narrow.get(value) {
            return name.clone();
        }
        let name = format!("{value}.{}", self.compute.name());
        self.cast(value, &name, self.compute.number());
        self.narrow.insert(value.to_owned(), name.clone());
        name
    }

    /// Sees to it that `value` is there in float32, if it is a float at all.
    fn widen(&mut self, value: &str) {
        if self.wide.contains(value) {
            return;
        }
        if let Some(narrow) = self.narrow.get(value).cloned() {
            self.cast(&narrow, value, onnx::FLOAT);
            self.wide.insert(value.to_owned());
        }
    }

    fn cast(&mut self, from: &str, to: &str, number: i32) {
        let mut node = new_node("Cast", &[from], to);
        // A value's name may be that of the node it comes from.
        node.name = Some(format!("{to}/Cast"));
        node.attribute = vec![onnx::Attribute::integer("to", i64::from(number))];
        self.nodes.push(node);
    }
}

fn element_type(port: &onnx::ValueInfo) -> Option<i32> {
    port.r#type.as_ref()?.tensor_type.as_ref()?.elem_type
}

fn set_element_type(port: &mut onnx::ValueInfo, number: i32) {
    if let Some(tensor) = port.r#type.as_mut().and_then(|kind| kind.tensor_type.as_mut()) {
        tensor.elem_type = Some(number);
    }
}

/// Gives the free lengths of a cache's port their value.
fn fix_lengths(port: &mut onnx::ValueInfo, target: &Target) {
    let tensor = port.r#type.as_mut().and_then(|kind| kind.tensor_type.as_mut());
    let shape = tensor.and_then(|tensor| tensor.shape.as_mut());
    for dim in shape.map(|shape| shape.dim.as_mut_slice()).unwrap_or_default() {
        let length = match dim.dim_param.as_deref() {
            Some("max_length") => target.positions,
            Some("memory_length") => target.memory,
            _ => continue,
        };
        *dim = onnx::Dimension { dim_value: Some(length as i64), dim_param: None };
    }
}

/// A length of an input: known, or free under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Length {
    /// This one.
    Fixed(usize),
    /// Any; equal names are equal lengths.
    Free(String),
}

/// A port of a graph: its name and its lengths.
pub type PortLengths = (String, Vec<Length>);

/// The inputs and the outputs of `graph`, in its order.
///
/// # Errors
/// `Internal` when the graph is none.
pub fn ports(graph: &Graph) -> Result<[Vec<PortLengths>; 2]> {
    let model = graph.model()?;
    let graph = model.graph.unwrap_or_default();
    Ok([graph.input, graph.output].map(|ports| ports.into_iter().map(lengths).collect()))
}

fn lengths(port: onnx::ValueInfo) -> PortLengths {
    let shape = port.r#type.and_then(|kind| kind.tensor_type).and_then(|kind| kind.shape);
    let dims = shape.map(|shape| shape.dim).unwrap_or_default().into_iter();
    let length = |dim: onnx::Dimension| match dim.dim_param {
        Some(name) => Length::Free(name),
        None => Length::Fixed(dim.dim_value.and_then(|n| usize::try_from(n).ok()).unwrap_or(0)),
    };
    (port.name.unwrap_or_default(), dims.map(length).collect())
}
