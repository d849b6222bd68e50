//! The casts between products and what is in float32.

use std::collections::{HashMap, HashSet};

use imprompt_error::{Error, Result};
use imprompt_onnx as onnx;

use super::ports::{element_type, set_element_type};
use super::{COMPARISONS, Compute, MOVERS, casts_to, is_cache, new_node, operator};

/// Which values there are in float32 and which in the products' type.
pub(super) struct Typed {
    compute: Compute,
    /// Values that are in float32 under their own name.
    wide: HashSet<String>,
    /// By value: its name in the products' type.
    narrow: HashMap<String, String>,
    /// The results of operators that compute in the products' type without being products.
    kept_narrow: HashSet<String>,
    nodes: Vec<onnx::Node>,
}

impl Typed {
    /// For the values of `graph`; `kept_narrow` are results of operators that shall be computed in the
    /// products' type as well.
    pub(super) fn new(graph: &onnx::Graph, compute: Compute, kept_narrow: HashSet<String>) -> Self {
        let mut typed = Typed {
            compute,
            wide: HashSet::new(),
            narrow: HashMap::new(),
            kept_narrow,
            nodes: Vec::new(),
        };
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
    pub(super) fn rewrite(
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
            "Gemm" | "MatMul" | "Conv" | "Attention" => self.add_narrow(node),
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
            _ if self.kept_narrow.contains(&node.output[0]) => self.add_narrow(node),
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

    /// A node that takes and gives the products' type.
    fn add_narrow(&mut self, mut node: onnx::Node) {
        for input in &mut node.input {
            *input = self.narrow_name(input);
        }
        self.push_narrow(node);
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
