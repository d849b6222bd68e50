//! [`Form::Fused`](super::Form::Fused): attention and activations as the operators that ONNX Runtime's CUDA provider has kernels for.
//!
//! * `Attention` stays one operator, of queries, keys, values and a mask in the products' type. Where
//!   heads are only parted for it, and where a tower of CLIP is marked as having one, it takes rows
//!   `[batch, positions, heads * width]`: the kernels read those as they lie and turn anything else.
//!   Without a mask it is flash attention (float16 and bfloat16), with one the memory-efficient kernel, if the number of keys
//!   is a multiple of 8 (of 16 in float32), else two products and a softmax inside of one operator.
//! * A mask is what scores are raised by, made once for all layers: of truth values the kernels make that in every
//!   layer anew. It is finite in float16, also where a negative score is added to it.
//! * An activation between two products, a scale that the products' type can hold, and the product of a gate are
//!   computed in the products' type; `x * sigmoid(a * x)` is one operator, `QuickGelu` of com.microsoft.
//!
//! Written out stay: attention behind a shared prefix (CLIP's texts), for which there is no kernel, and attention of
//! constant queries to the keys of a whole batch (SigLIP's probe), for the operator wants a batch of both.

use std::collections::{HashMap, HashSet};

use imprompt_error::Result;
use imprompt_onnx as onnx;
use imprompt_onnx::fused::{Fused, GOES_ON};

use super::attention::{Booleans, Parts, scale};
use super::{Compute, MOVERS, attribute, is_cache, new_node, operator};

/// What the score of a key is raised by that is not seen: far below every score, and with one it is
/// still a number in float16.
const UNSEEN: f32 = -30_000.0;

/// The opset that `Attention` came with.
const ATTENTION_OPSET: i64 = 23;

/// Where `QuickGelu` is from.
const MICROSOFT: &str = "com.microsoft";

/// The order that puts heads before positions, and back.
const HEADS_FIRST: [i64; 4] = [0, 2, 1, 3];

/// The nodes of `graph` with attention and gates as one operator each.
///
/// # Errors
/// `Unsupported` where the heads of an attention share keys.
pub(super) fn fuse(graph: &mut onnx::Graph) -> Result<Vec<onnx::Node>> {
    let nodes = std::mem::take(&mut graph.node);
    let fusing = Fusing::new(graph, &nodes);
    let nodes = fusing.run(nodes)?;
    Ok(fuse_gates(nodes, graph))
}

/// Says which operators the model has, with the opset `lowest` at least: gives the opset.
pub(super) fn set_operators(model: &mut onnx::Model, lowest: i64) -> i64 {
    let nodes = model.graph.as_ref().map(|graph| graph.node.as_slice()).unwrap_or_default();
    let has = |name: &str| nodes.iter().any(|node| operator(node) == name);
    let opset = if has("Attention") { lowest.max(ATTENTION_OPSET) } else { lowest };
    let is_foreign = nodes.iter().any(|node| node.domain.as_deref() == Some(MICROSOFT));
    model.set_opset(opset);
    if is_foreign {
        let domain = Some(MICROSOFT.to_owned());
        model.opset_import.push(onnx::OperatorSet { domain, version: Some(1) });
    }
    opset
}

/// What is known while the attentions of a graph are found.
struct Fusing<'g> {
    initializers: &'g mut Vec<onnx::Tensor>,
    /// The node that gives a value.
    producers: HashMap<String, onnx::Node>,
    /// The nodes that take a value.
    readers: HashMap<String, Vec<onnx::Node>>,
    /// Values that depend on an input.
    varying: HashSet<String>,
    booleans: Booleans,
    /// By mask: what scores are raised by.
    raised: HashMap<String, String>,
    /// Nodes whose work an operator has taken over, by what they give.
    taken_over: HashSet<String>,
    nodes: Vec<onnx::Node>,
}

impl<'g> Fusing<'g> {
    fn new(graph: &'g mut onnx::Graph, nodes: &[onnx::Node]) -> Self {
        let mut varying: HashSet<String> =
            graph.input.iter().filter_map(|input| input.name.clone()).collect();
        let (mut producers, mut readers) = (HashMap::new(), HashMap::<_, Vec<_>>::new());
        for node in nodes {
            if node.input.iter().any(|input| varying.contains(input)) {
                varying.extend(node.output.iter().cloned());
            }
            for output in &node.output {
                producers.insert(output.clone(), node.clone());
            }
            for input in &node.input {
                readers.entry(input.clone()).or_default().push(node.clone());
            }
        }
        Fusing {
            initializers: &mut graph.initializer,
            producers,
            readers,
            varying,
            booleans: Booleans::default(),
            raised: HashMap::new(),
            taken_over: HashSet::new(),
            nodes: Vec::with_capacity(nodes.len()),
        }
    }

    fn run(mut self, nodes: Vec<onnx::Node>) -> Result<Vec<onnx::Node>> {
        let mut nodes = nodes.into_iter().peekable();
        while let Some(mut node) = nodes.next() {
            let mark = node.doc_string.take();
            if let Some(tower) = mark.as_deref().and_then(|mark| self.tower(mark)) {
                let mut last = node;
                while let Some(next) =
                    nodes.next_if(|next| next.doc_string.as_deref() == Some(GOES_ON))
                {
                    last = next;
                }
                self.attend_rows(&tower, last);
                continue;
            }
            self.booleans.see(&node);
            match operator(&node) {
                "Attention" => self.attend(node)?,
                _ if self.taken_over.contains(&node.output[0]) => (),
                _ => self.nodes.push(node),
            }
        }
        Ok(self.nodes)
    }

    fn parts(&mut self, base: &str) -> Parts<'_> {
        Parts { nodes: &mut self.nodes, initializers: self.initializers, base: base.to_owned() }
    }

    /// The numbers of the constant `name`.
    fn constant_ints(&self, name: &str) -> Option<Vec<i64>> {
        let named = |tensor: &&onnx::Tensor| tensor.name.as_deref() == Some(name);
        let tensor = self.initializers.iter().find(named)?;
        let bytes = tensor.raw_data.as_ref()?;
        let number = |bytes: &[u8]| bytes.try_into().ok().map(i64::from_le_bytes);
        bytes.chunks(8).map(number).collect()
    }

    /// The attention of a tower that the group marked `mark` amounts to: over rows, with queries of every batch entry.
    fn tower(&self, mark: &str) -> Option<Fused> {
        let group = Fused::parse(mark)?;
        let is_tower = group.operator == "Attention"
            && group.attributes.iter().any(|(name, _)| name == "queries")
            && self.varying.contains(&group.inputs[0]);
        is_tower.then_some(group)
    }

    /// `tower` as one operator; `last` makes rows of what it gives.
    fn attend_rows(&mut self, tower: &Fused, last: onnx::Node) {
        let number = |name: &str| {
            tower.attributes.iter().find(|(known, _)| known == name).map_or(1, |(_, value)| *value)
        };
        let (heads, queries, keys) = (number("heads"), number("queries"), number("keys"));
        let width = self.constant_ints(&last.input[1]).and_then(|shape| shape.last().copied());
        let width = width.unwrap_or(-1);
        let mut parts = self.parts(&tower.output);
        let [query, key, value] = [("query", queries), ("key", keys), ("value", keys)];
        let mut side = |index: usize, (name, length): (&str, i64)| {
            let shape = parts.ints(&[-1, length, width], &format!("{name}.shape"));
            parts.node("Reshape", &[&tower.inputs[index], &shape], name)
        };
        let sides = [side(0, query), side(1, key), side(2, value)];
        let seen = format!("{}.seen", tower.output);
        let scale = ((width / heads) as f32).sqrt().recip();
        self.nodes.push(operator_of(&sides, None, Some(heads), scale, &seen));
        self.nodes.push(onnx::Node {
            input: vec![seen, last.input[1].clone()],
            doc_string: None,
            ..last
        });
    }

    /// `node`, an `Attention`, with a mask that is added, over rows where heads are parted for it alone.
    fn attend(&mut self, node: onnx::Node) -> Result<()> {
        let scale = scale(&node)?;
        let mask = node.input.get(3).filter(|mask| !mask.is_empty()).map(|mask| self.raise(mask));
        let mut heads = attribute(&node, "q_num_heads").and_then(|attribute| attribute.i);
        let mut sides = [0, 1, 2].map(|side| node.input[side].clone());
        let mut output = node.output[0].clone();
        if heads.is_none()
            && let Some((parted, count, rows)) = self.parted(&sides, &output)
        {
            let mut parts = self.parts(&output);
            let shape = parts.ints(&[0, 0, -1], "rows");
            for ((side, parted), name) in
                sides.iter_mut().zip(&parted).zip(["query", "key", "value"])
            {
                *side = parts.node("Reshape", &[parted, &shape], name);
            }
            self.taken_over.insert(rows.clone());
            (output, heads) = (rows, Some(count));
        }
        let mut fused = operator_of(&sides, mask.as_deref(), heads, scale, &output);
        fused.name = node.name;
        self.nodes.push(fused);
        Ok(())
    }

    /// What `sides` are before their heads are put first, the number of heads, and what `output` is after they are put
    /// back: where that is all that is done with them.
    fn parted(&self, sides: &[String; 3], output: &str) -> Option<([String; 3], i64, String)> {
        let mut parted: [String; 3] = Default::default();
        let mut count = None;
        for (parted, side) in parted.iter_mut().zip(sides) {
            let turned = self.producers.get(side).filter(|node| turns_heads(node))?;
            let reshaped = self.producers.get(&turned.input[0])?;
            let heads =
                (operator(reshaped) == "Reshape").then(|| self.heads(&reshaped.input[1]))??;
            if count.is_some_and(|count| count != heads) {
                return None;
            }
            count = Some(heads);
            parted.clone_from(&turned.input[0]);
        }
        let [turned] = self.readers.get(output)?.as_slice() else { return None };
        let [joined] = self.readers.get(&turned.output[0])?.as_slice() else { return None };
        // Rows have one dimension less: a shape that keeps one would mean another.
        let is_joined = turns_heads(turned)
            && operator(joined) == "Reshape"
            && self.constant_ints(&joined.input[1]).is_some_and(|shape| !shape.contains(&0));
        is_joined.then(|| (parted, count.unwrap_or(1), turned.output[0].clone()))
    }

    /// The number of heads in `shape`, that of `[batch, positions, heads, width]`.
    fn heads(&self, shape: &str) -> Option<i64> {
        let ints = match self.producers.get(shape) {
            None => self.constant_ints(shape)?,
            Some(node) if operator(node) == "Concat" => self.constant_ints(node.input.last()?)?,
            Some(_) => return None,
        };
        let heads = ints.len().checked_sub(2).and_then(|at| ints.get(at).copied());
        heads.filter(|&heads| heads > 0)
    }

    /// What scores are raised by where `mask` says what is seen.
    fn raise(&mut self, mask: &str) -> String {
        if let Some(raised) = self.raised.get(mask) {
            return raised.clone();
        }
        let is_choice = self.booleans.contains(mask);
        let mut parts = self.parts(mask);
        let unseen = parts.float(UNSEEN, "unseen");
        let raised = match is_choice {
            true => {
                let zero = parts.float(0.0, "zero");
                parts.node("Where", &[mask, &zero, &unseen], "raised")
            }
            false => parts.node("Max", &[mask, &unseen], "raised"),
        };
        self.raised.insert(mask.to_owned(), raised.clone());
        raised
    }
}

/// `Attention` of `sides`; over rows where the number of heads is given.
fn operator_of(
    sides: &[String; 3],
    mask: Option<&str>,
    heads: Option<i64>,
    scale: f32,
    output: &str,
) -> onnx::Node {
    let inputs: Vec<&str> = sides.iter().map(String::as_str).chain(mask).collect();
    let mut node = new_node("Attention", &inputs, output);
    for name in ["kv_num_heads", "q_num_heads"] {
        node.attribute.extend(heads.map(|heads| onnx::Attribute::integer(name, heads)));
    }
    node.attribute.push(float_attribute("scale", scale));
    node
}

fn float_attribute(name: &str, value: f32) -> onnx::Attribute {
    onnx::Attribute {
        name: Some(name.to_owned()),
        f: Some(value),
        kind: Some(onnx::ATTRIBUTE_FLOAT),
        ..onnx::Attribute::default()
    }
}

fn turns_heads(node: &onnx::Node) -> bool {
    let order = attribute(node, "perm").map(|order| order.ints.as_slice());
    operator(node) == "Transpose" && order == Some(&HEADS_FIRST)
}

/// The constants of `graph` that are one float32.
fn scalars(graph: &onnx::Graph) -> HashMap<&str, f32> {
    let scalar = |tensor: &onnx::Tensor| {
        let is_scalar = tensor.data_type == Some(onnx::FLOAT) && tensor.dims.is_empty();
        let bytes = tensor.raw_data.as_deref().filter(|_| is_scalar)?;
        Some(f32::from_le_bytes(bytes.try_into().ok()?))
    };
    graph
        .initializer
        .iter()
        .filter_map(|tensor| Some((tensor.name.as_deref()?, scalar(tensor)?)))
        .collect()
}

/// `nodes` with `x * sigmoid(a * x)` as one operator.
fn fuse_gates(mut nodes: Vec<onnx::Node>, graph: &onnx::Graph) -> Vec<onnx::Node> {
    let scalars = scalars(graph);
    let producers: HashMap<String, onnx::Node> =
        nodes.iter().map(|node| (node.output[0].clone(), node.clone())).collect();
    // The factor `a` where `gate` is `sigmoid(a * x)`.
    let factor = |x: &str, gate: &str| {
        let gate = producers.get(gate).filter(|node| operator(node) == "Sigmoid")?;
        if gate.input[0] == x {
            return Some(1.0);
        }
        let scaled = producers.get(&gate.input[0]).filter(|node| operator(node) == "Mul")?;
        let [a, b] = scaled.input.as_slice() else { return None };
        let by = if a == x { b } else { a };
        scalars.get(by.as_str()).copied().filter(|_| a == x || b == x)
    };
    for node in nodes.iter_mut().filter(|node| operator(node) == "Mul") {
        let [a, b] = node.input.clone().try_into().unwrap_or_default();
        let found = [(&a, &b), (&b, &a)]
            .into_iter()
            .find_map(|(x, gate)| Some((x.clone(), factor(x, gate)?)));
        if let Some((x, factor)) = found {
            node.op_type = Some("QuickGelu".to_owned());
            node.domain = Some(MICROSOFT.to_owned());
            node.input = vec![x];
            node.attribute = vec![float_attribute("alpha", factor)];
        }
    }
    nodes
}

/// What `nodes` compute between products that loses nothing, or next to nothing, in the type `compute`.
///
/// That is activations of a product, a product's scale where the type has the very number, and products of the two
/// halves of a gate, whose results go into products alone.
pub(super) fn narrow(
    nodes: &[onnx::Node],
    graph: &onnx::Graph,
    compute: Compute,
) -> HashSet<String> {
    let scalars = scalars(graph);
    // From the first node on: what comes from products alone.
    let mut products: HashSet<&str> = HashSet::new();
    let mut candidates: HashSet<&str> = HashSet::new();
    for node in nodes {
        let is_product = |value: &String| products.contains(value.as_str());
        let is_scale =
            |value: &String| scalars.get(value.as_str()).is_some_and(|&value| compute.holds(value));
        let is_candidate = match operator(node) {
            "Relu" | "Gelu" | "QuickGelu" => is_product(&node.input[0]),
            "Mul" => {
                node.input.iter().any(is_product)
                    && node.input.iter().all(|value| is_product(value) || is_scale(value))
            }
            _ => false,
        };
        if is_candidate {
            candidates.extend(node.output.iter().map(String::as_str));
        }
        let moves = MOVERS.contains(&operator(node)) && data(node).iter().all(is_product);
        if is_candidate || moves || takes_products(node) {
            products.extend(node.output.iter().map(String::as_str));
        }
    }
    // From the last node on: what goes into products alone.
    let mut is_read: HashMap<&str, bool> = HashMap::new();
    for output in &graph.output {
        let name = output.name.as_deref().unwrap_or_default();
        is_read.insert(name, is_cache(name));
    }
    let mut kept = HashSet::new();
    for node in nodes.iter().rev() {
        let is_wanted =
            node.output.iter().all(|output| is_read.get(output.as_str()) == Some(&true));
        let is_kept = is_wanted && candidates.contains(node.output[0].as_str());
        if is_kept {
            kept.insert(node.output[0].clone());
        }
        let passes_on = MOVERS.contains(&operator(node)) && is_wanted;
        let takes = is_kept || passes_on || takes_products(node) || operator(node) == "Shape";
        for input in &node.input {
            *is_read.entry(input).or_insert(true) &= takes;
        }
    }
    kept
}

/// Whether `node` multiplies matrices, or keeps what such nodes give, in the products' type.
fn takes_products(node: &onnx::Node) -> bool {
    ["Gemm", "MatMul", "Conv", "Attention", "TensorScatter"].contains(&operator(node))
}

/// What a node that moves elements moves.
fn data(node: &onnx::Node) -> &[String] {
    match operator(node) {
        "Concat" => &node.input,
        _ => &node.input[..1],
    }
}
