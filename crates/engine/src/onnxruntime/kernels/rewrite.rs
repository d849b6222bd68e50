//! What of a graph the kernels take over.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use imprompt_error::Result;
use imprompt_kernel::{Activation, Instructions};
use imprompt_onnx as onnx;
use imprompt_onnx::fused::{Fused, GOES_ON};

use super::DOMAIN;
use super::operators::{ATTENTION, activation_number};
use super::weights::{Piece, Stored, StoredWeight};

/// Puts the kernels' operators into `model`, whose external data lies in `folder`, and
/// gives the weights they refer to.
///
/// # Errors
/// `BadModel` naming the file when a weight is missing.
pub(in super::super) fn rewrite(
    model: &mut onnx::Model,
    folder: &Path,
    instructions: Instructions,
) -> Result<Vec<StoredWeight>> {
    let Some(graph) = model.graph.as_mut() else { return Ok(Vec::new()) };
    replace_fused(graph, instructions);
    let weights = replace_linear(graph, folder)?;
    graph.drop_unread();
    model
        .opset_import
        .push(onnx::OperatorSet { domain: Some(DOMAIN.to_owned()), version: Some(1) });
    Ok(weights)
}

/// Groups that are one operator. Attention in which all see all is ONNX Runtime's where there is no AMX: it
/// is a matter of products alone.
fn replace_fused(graph: &mut onnx::Graph, instructions: Instructions) {
    let has_amx = instructions != Instructions::Avx512 && imprompt_kernel::has_amx();
    let mut nodes = Vec::with_capacity(graph.node.len());
    let mut is_replaced = false;
    for node in graph.node.drain(..) {
        let text = node.doc_string.as_deref();
        if text == Some(GOES_ON) {
            if !is_replaced {
                nodes.push(node);
            }
            continue;
        }
        let fused = text.and_then(Fused::parse);
        let Some(fused) = fused.filter(|fused| has_amx || fused.operator != ATTENTION) else {
            is_replaced = false;
            nodes.push(node);
            continue;
        };
        is_replaced = true;
        nodes.push(onnx::Node {
            input: fused.inputs,
            output: vec![fused.output],
            name: node.name,
            op_type: Some(fused.operator),
            attribute: fused
                .attributes
                .iter()
                .map(|(name, value)| onnx::Attribute::integer(name, *value))
                .collect(),
            doc_string: None,
            domain: Some(DOMAIN.to_owned()),
        });
    }
    graph.node = nodes;
}

/// Where things of a graph are.
struct Places<'g> {
    graph: &'g onnx::Graph,
    folder: &'g Path,
    initializers: HashMap<&'g str, &'g onnx::Tensor>,
    producers: HashMap<&'g str, usize>,
    consumers: HashMap<&'g str, Vec<usize>>,
    outputs: HashSet<&'g str>,
}

impl<'g> Places<'g> {
    fn new(graph: &'g onnx::Graph, folder: &'g Path) -> Self {
        let mut producers = HashMap::new();
        let mut consumers: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, node) in graph.node.iter().enumerate() {
            producers.extend(node.output.iter().map(|name| (name.as_str(), index)));
            for name in &node.input {
                consumers.entry(name).or_default().push(index);
            }
        }
        let tensors = graph.initializer.iter();
        Places {
            graph,
            folder,
            initializers: tensors.map(|t| (t.name.as_deref().unwrap_or_default(), t)).collect(),
            producers,
            consumers,
            outputs: graph.output.iter().filter_map(|output| output.name.as_deref()).collect(),
        }
    }

    fn node(&self, index: usize) -> &'g onnx::Node {
        &self.graph.node[index]
    }

    /// The nodes that read `name`, unless it is an output of the graph too.
    fn readers(&self, name: &str) -> &[usize] {
        match self.outputs.contains(name) {
            true => &[],
            false => self.consumers.get(name).map_or(&[], Vec::as_slice),
        }
    }

    /// The node of type `operator` that is the only one to read `name`.
    fn reader(&self, name: &str, operator: &str) -> Option<usize> {
        match self.readers(name) {
            [index] if self.node(*index).is(operator) => Some(*index),
            _ => None,
        }
    }

    /// The node of type `operator` that makes `name`.
    fn maker(&self, name: &str, operator: &str) -> Option<&'g onnx::Node> {
        let node = self.node(*self.producers.get(name)?);
        node.is(operator).then_some(node)
    }

    /// The one value of a constant of one element.
    fn scalar(&self, name: &str) -> Option<f32> {
        let tensor = self.initializers.get(name)?;
        let bytes = tensor.raw_data.as_deref()?.try_into().ok()?;
        (tensor.data_type == Some(onnx::FLOAT)).then(|| f32::from_le_bytes(bytes))
    }

    /// The matrix `name`, when it is one that the kernels can read.
    fn weight(&self, name: &str) -> Result<Option<StoredWeight>> {
        if let Some(tensor) = self.initializers.get(name) {
            return self.floats(tensor);
        }
        if let Some(cast) = self.maker(name, "Cast") {
            return match self.initializers.get(cast.input[0].as_str()) {
                Some(tensor) => self.floats(tensor),
                None => Ok(None),
            };
        }
        match self.maker(name, "DequantizeLinear") {
            Some(node) => self.quantized(node),
            None => Ok(None),
        }
    }

    fn floats(&self, tensor: &onnx::Tensor) -> Result<Option<StoredWeight>> {
        let (Some((outputs, inputs)), Some(piece)) = (tensor.matrix(), self.piece(tensor)?) else {
            return Ok(None);
        };
        let stored = match tensor.data_type {
            Some(onnx::FLOAT) => Stored::F32(piece),
            Some(onnx::FLOAT16) => Stored::F16(piece),
            Some(onnx::BFLOAT16) => Stored::Bf16(piece),
            _ => return Ok(None),
        };
        Ok(Some(StoredWeight { stored, outputs, inputs }))
    }

    fn quantized(&self, node: &onnx::Node) -> Result<Option<StoredWeight>> {
        let find = |index: usize| {
            node.input.get(index).and_then(|name| self.initializers.get(name.as_str()))
        };
        let (Some(values), Some(scales), None) = (find(0), find(1), node.input.get(2)) else {
            return Ok(None);
        };
        let Some((outputs, inputs)) = values.matrix() else { return Ok(None) };
        let kind = values.data_type;
        let (Some(values), Some(scales)) = (self.piece(values)?, self.piece(scales)?) else {
            return Ok(None);
        };
        let stored = match kind {
            Some(onnx::INT8) => Stored::Int8 { values, scales },
            Some(onnx::INT4) => Stored::Int4 { values, scales },
            _ => return Ok(None),
        };
        Ok(Some(StoredWeight { stored, outputs, inputs }))
    }

    /// Where a tensor of a weight file lies; `None` of one that is in the graph.
    fn piece(&self, tensor: &onnx::Tensor) -> Result<Option<Piece>> {
        tensor.external().map(|piece| Piece::open(self.folder, piece)).transpose()
    }
}

/// A linear layer in a graph: its product and what follows it.
struct Found {
    /// The nodes it takes the place of, the last of them last.
    nodes: Vec<usize>,
    given: String,
    bias: String,
    residual: String,
    output: String,
    activation: Option<Activation>,
}

/// `Gemm` over stored weights, with what the kernel does besides.
fn replace_linear(graph: &mut onnx::Graph, folder: &Path) -> Result<Vec<StoredWeight>> {
    let places = Places::new(graph, folder);
    let mut weights = Vec::new();
    let mut taken = HashSet::new();
    let mut placed: HashMap<usize, onnx::Node> = HashMap::new();
    for index in 0..graph.node.len() {
        let node = places.node(index);
        if !node.is_linear() {
            continue;
        }
        let Some(weight) = places.weight(&node.input[1])? else { continue };
        if !weight.view().is_whole() {
            continue;
        }
        let found = found(&places, index, &taken);
        taken.extend(&found.nodes);
        let last = found.nodes[found.nodes.len() - 1];
        let attributes = [
            onnx::Attribute::integer("weight", weights.len() as i64),
            onnx::Attribute::integer("activation", activation_number(found.activation)),
        ];
        weights.push(weight);
        let linear = onnx::Node {
            input: vec![found.given, found.bias, found.residual],
            output: vec![found.output],
            name: node.name.clone(),
            op_type: Some("Linear".to_owned()),
            attribute: attributes.to_vec(),
            doc_string: None,
            domain: Some(DOMAIN.to_owned()),
        };
        placed.insert(last, linear);
    }
    let nodes = graph.node.drain(..).enumerate();
    let kept = nodes.filter_map(|(index, node)| match placed.remove(&index) {
        Some(linear) => Some(linear),
        None => (!taken.contains(&index)).then_some(node),
    });
    graph.node = kept.collect();
    Ok(weights)
}

/// The layer that begins with the `Gemm` at `index`.
fn found(places: &Places<'_>, index: usize, taken: &HashSet<usize>) -> Found {
    let node = places.node(index);
    let mut found = Found {
        nodes: vec![index],
        given: node.input[0].clone(),
        bias: node.input.get(2).cloned().unwrap_or_default(),
        residual: String::new(),
        output: node.output[0].clone(),
        activation: None,
    };
    if let Some((activation, nodes)) = activation(places, &found.output) {
        found.activation = Some(activation);
        found.output.clone_from(&places.node(nodes[nodes.len() - 1]).output[0]);
        found.nodes.extend(nodes);
    }
    // An addition of two results, of which this is one: the other may not be a constant, which
    // would be broadcast, and an addition belongs to one layer alone.
    if let Some(add) = places.reader(&found.output, "Add").filter(|add| !taken.contains(add)) {
        let node = places.node(add);
        let other = node.input.iter().find(|name| **name != found.output);
        let other = other.filter(|name| {
            !places.initializers.contains_key(name.as_str()) && places.maker(name, "Cast").is_none()
        });
        if let Some(other) = other {
            found.residual.clone_from(other);
            found.output.clone_from(&node.output[0]);
            found.nodes.push(add);
        }
    }
    found
}

/// The activation of `name`, and the nodes it is made of.
fn activation(places: &Places<'_>, name: &str) -> Option<(Activation, Vec<usize>)> {
    if let Some(relu) = places.reader(name, "Relu") {
        return Some((Activation::Relu, vec![relu]));
    }
    if let Some(gelu) = places.reader(name, "Gelu") {
        let tanh = |attribute: &onnx::Attribute| attribute.s.as_deref() == Some(b"tanh");
        let activation = match places.node(gelu).attribute.iter().any(tanh) {
            true => Activation::GeluTanh,
            false => Activation::Gelu,
        };
        return Some((activation, vec![gelu]));
    }
    // x * sigmoid(x), or x * sigmoid(1.702 x).
    let [first, last] = *places.readers(name) else { return None };
    if !places.node(last).is("Mul") {
        return None;
    }
    let (activation, sigmoid, nodes) = match places.node(first).op_type.as_deref()? {
        "Sigmoid" => (Activation::Silu, first, vec![first, last]),
        "Mul" => {
            let factor = places.node(first).input.iter().find_map(|name| places.scalar(name))?;
            let sigmoid = places.reader(&places.node(first).output[0], "Sigmoid")?;
            if factor.to_bits() != 1.702f32.to_bits() {
                return None;
            }
            (Activation::QuickGelu, sigmoid, vec![first, sigmoid, last])
        }
        _ => return None,
    };
    let gate = &places.node(sigmoid).output[0];
    (places.readers(gate) == [last]).then_some((activation, nodes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "model.safetensors";

    fn node(operator: &str, inputs: &[&str], output: &str) -> onnx::Node {
        let attribute = match operator {
            "Gemm" => vec![onnx::Attribute::integer("transB", 1)],
            _ => Vec::new(),
        };
        onnx::Node {
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            op_type: Some(operator.to_owned()),
            attribute,
            ..onnx::Node::default()
        }
    }

    fn constant(name: &str, value: f32) -> onnx::Tensor {
        onnx::Tensor {
            data_type: Some(onnx::FLOAT),
            name: Some(name.to_owned()),
            raw_data: Some(value.to_le_bytes().to_vec()),
            ..onnx::Tensor::default()
        }
    }

    /// `[2, 3]`, at the start of the file.
    fn stored(name: &str, length: u64) -> onnx::Tensor {
        let piece = onnx::External { location: FILE, offset: 0, length };
        onnx::Tensor::stored(name.to_owned(), onnx::FLOAT, vec![2, 3], piece)
    }

    /// Operators and inputs of the nodes, how many weights there are, and the model.
    type Rewritten = (Vec<(String, Vec<String>)>, usize, onnx::Model);

    /// What the rewriting makes of `nodes`.
    fn rewritten(
        nodes: Vec<onnx::Node>,
        tensors: Vec<onnx::Tensor>,
        output: &str,
    ) -> Result<Rewritten> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), [0u8; 24]).unwrap();
        let graph = onnx::Graph {
            node: nodes,
            initializer: tensors,
            output: vec![onnx::ValueInfo { name: Some(output.to_owned()), r#type: None }],
            ..onnx::Graph::default()
        };
        let mut model = onnx::Model { graph: Some(graph), ..onnx::Model::default() };
        let weights = rewrite(&mut model, folder.path(), Instructions::default())?.len();
        let nodes = model.graph.as_ref().unwrap().node.iter();
        let listed = nodes.map(|n| (n.op_type.clone().unwrap(), n.input.clone())).collect();
        Ok((listed, weights, model))
    }

    #[test]
    fn a_layer_takes_its_activation_and_its_residual() {
        let nodes = vec![
            node("Gemm", &["x", "w", "b"], "product"),
            node("Mul", &["product", "factor"], "scaled"),
            node("Sigmoid", &["scaled"], "gate"),
            node("Mul", &["product", "gate"], "activated"),
            node("Add", &["x", "activated"], "y"),
        ];
        let tensors = vec![stored("w", 24), constant("factor", 1.702), constant("b", 0.0)];
        let (nodes, weights, model) = rewritten(nodes, tensors, "y").unwrap();
        assert_eq!(nodes, [("Linear".to_owned(), ["x", "b", "x"].map(str::to_owned).to_vec())]);
        assert_eq!(weights, 1);
        let graph = model.graph.unwrap();
        let activation = activation_number(Some(Activation::QuickGelu));
        assert_eq!(graph.node[0].attribute[1].i, Some(activation));
        assert_eq!(graph.node[0].output, ["y"]);
        // The weight and the factor have left.
        assert_eq!(graph.initializer.len(), 1);
        assert_eq!(model.opset_import.last().unwrap().domain.as_deref(), Some(DOMAIN));
    }

    #[test]
    fn what_is_read_elsewhere_or_is_broadcast_stays() {
        // The product is an output; the sum has a constant; another factor is no QuickGELU.
        let gemm = || node("Gemm", &["x", "w"], "product");
        let tensors = || vec![stored("w", 24), constant("factor", 1.7)];
        let relu = vec![gemm(), node("Relu", &["product"], "y")];
        let (nodes, ..) = rewritten(relu, tensors(), "product").unwrap();
        assert_eq!(nodes[0].0, "Linear");
        let sum = vec![gemm(), node("Add", &["product", "factor"], "y")];
        let (nodes, ..) = rewritten(sum, tensors(), "y").unwrap();
        assert_eq!(
            nodes.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["Linear", "Add"]
        );
        let other = vec![
            gemm(),
            node("Mul", &["product", "factor"], "scaled"),
            node("Sigmoid", &["scaled"], "gate"),
            node("Mul", &["product", "gate"], "y"),
        ];
        let (nodes, ..) = rewritten(other, tensors(), "y").unwrap();
        assert_eq!(nodes.len(), 4);
    }

    #[test]
    fn two_layers_that_are_added_are_added_once() {
        let nodes = vec![
            node("Gemm", &["x", "w"], "a"),
            node("Gemm", &["x", "w"], "b"),
            node("Add", &["a", "b"], "y"),
        ];
        let (nodes, weights, _) = rewritten(nodes, vec![stored("w", 24)], "y").unwrap();
        let names = |index: usize| nodes[index].1.iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!((nodes.len(), weights), (2, 2));
        assert_eq!((names(0), names(1)), (vec!["x", "", ""], vec!["x", "", "b"]));
    }

    #[test]
    fn a_group_is_its_operator() {
        let fused = Fused {
            operator: "PrefixAttention".to_owned(),
            inputs: vec!["q".to_owned(), "k".to_owned()],
            output: "y".to_owned(),
            attributes: vec![("heads".to_owned(), 2)],
        };
        let mut first = node("MatMul", &["q", "k"], "scores");
        first.doc_string = Some(fused.to_string());
        let mut last = node("Softmax", &["scores"], "y");
        last.doc_string = Some(GOES_ON.to_owned());
        let (nodes, ..) = rewritten(vec![first, last], Vec::new(), "y").unwrap();
        assert_eq!(nodes, [("PrefixAttention".to_owned(), vec!["q".to_owned(), "k".to_owned()])]);
    }

    #[test]
    fn a_weight_behind_the_files_end_is_an_error() {
        let nodes = vec![node("Gemm", &["x", "w"], "y")];
        let error = rewritten(nodes, vec![stored("w", 28)], "y").unwrap_err();
        assert!(error.message().contains(FILE), "{error}");
        assert!(error.message().contains("28 bytes"), "{error}");
    }
}
