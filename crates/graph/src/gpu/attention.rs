//! `Attention` written out.

use std::collections::HashSet;

use imprompt_error::{Error, Result};
use imprompt_onnx as onnx;

use super::{COMPARISONS, MOVERS, attribute, new_node, operator};

/// Nodes and constants that take an operator's place, named after its output.
pub(super) struct Parts<'g> {
    pub(super) nodes: &'g mut Vec<onnx::Node>,
    pub(super) initializers: &'g mut Vec<onnx::Tensor>,
    pub(super) base: String,
}

impl Parts<'_> {
    pub(super) fn node(&mut self, operator: &str, inputs: &[&str], what: &str) -> String {
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

    pub(super) fn float(&mut self, value: f32, what: &str) -> String {
        self.constant(onnx::FLOAT, &[], value.to_le_bytes().to_vec(), what)
    }

    pub(super) fn ints(&mut self, values: &[i64], what: &str) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(onnx::INT64, &[values.len() as i64], bytes, what)
    }
}

/// The values of a graph that are truth values, node by node.
#[derive(Debug, Default)]
pub(super) struct Booleans(HashSet<String>);

impl Booleans {
    /// Notes what `node` gives.
    pub(super) fn see(&mut self, node: &onnx::Node) {
        let is_boolean = COMPARISONS.contains(&operator(node))
            || (MOVERS.contains(&operator(node)) && self.0.contains(&node.input[0]));
        if is_boolean {
            self.0.extend(node.output.iter().cloned());
        }
    }

    /// Whether `value` was seen as truth values.
    pub(super) fn contains(&self, value: &str) -> bool {
        self.0.contains(value)
    }
}

/// The nodes of `graph` with every `Attention` written out, and without the marks of fused groups.
pub(super) fn write_out(graph: &mut onnx::Graph) -> Result<Vec<onnx::Node>> {
    let mut nodes = Vec::with_capacity(graph.node.len());
    let mut booleans = Booleans::default();
    for mut node in std::mem::take(&mut graph.node) {
        node.doc_string = None;
        booleans.see(&node);
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

/// The scale of `node`, an `Attention` each of whose heads has keys of its own.
///
/// # Errors
/// `Unsupported` where it has no scale or heads share keys.
pub(super) fn scale(node: &onnx::Node) -> Result<f32> {
    let heads = |name: &str| attribute(node, name).and_then(|attribute| attribute.i);
    let is_plain = heads("q_num_heads") == heads("kv_num_heads") && node.input.len() >= 3;
    attribute(node, "scale")
        .and_then(|attribute| attribute.f)
        .filter(|_| is_plain)
        .ok_or_else(|| Error::unsupported("attention without a scale, or whose heads share keys"))
}

/// `node`, an `Attention`, in products and a softmax. Its mask `is_choice` where it is truth values
/// and not what scores are raised by.
fn attention(node: &onnx::Node, is_choice: bool, mut parts: Parts<'_>) -> Result<()> {
    let scale = scale(node)?;
    let queries = attribute(node, "q_num_heads").and_then(|attribute| attribute.i);
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
