//! What is asked of the messages wherever graphs are written, converted or rewritten.

use std::collections::HashSet;

use super::{
    ATTRIBUTE_INT, Attribute, EXTERNAL, Graph, Model, Node, OperatorSet, StringEntry, Tensor,
};

/// A piece of a weight file, as `TensorProto.external_data` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct External<'a> {
    /// The file, in the graph's folder.
    pub location: &'a str,
    /// Where the piece begins, in bytes.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
}

impl Tensor {
    /// A tensor whose elements are `piece`.
    #[must_use]
    pub fn stored(name: String, data_type: i32, dims: Vec<i64>, piece: External<'_>) -> Self {
        let entry = |key: &str, value: String| StringEntry {
            key: Some(key.to_owned()),
            value: Some(value),
        };
        Tensor {
            dims,
            data_type: Some(data_type),
            name: Some(name),
            raw_data: None,
            external_data: vec![
                entry("location", piece.location.to_owned()),
                entry("offset", piece.offset.to_string()),
                entry("length", piece.length.to_string()),
            ],
            data_location: Some(EXTERNAL),
        }
    }

    /// Where its elements are; `None` of a tensor that is in the graph.
    #[must_use]
    pub fn external(&self) -> Option<External<'_>> {
        let find = |key: &str| {
            let entry = self.external_data.iter().find(|e| e.key.as_deref() == Some(key))?;
            entry.value.as_deref()
        };
        Some(External {
            location: find("location")?,
            offset: find("offset")?.parse().ok()?,
            length: find("length")?.parse().ok()?,
        })
    }

    /// Rows and columns of a matrix.
    #[must_use]
    pub fn matrix(&self) -> Option<(usize, usize)> {
        match *self.dims {
            [rows, columns] => Some((usize::try_from(rows).ok()?, usize::try_from(columns).ok()?)),
            _ => None,
        }
    }
}

impl Attribute {
    /// A whole number.
    #[must_use]
    pub fn integer(name: &str, value: i64) -> Self {
        Attribute {
            name: Some(name.to_owned()),
            i: Some(value),
            kind: Some(ATTRIBUTE_INT),
            ..Attribute::default()
        }
    }
}

impl Node {
    /// Whether it is the standard operator of that name.
    #[must_use]
    pub fn is(&self, operator: &str) -> bool {
        self.op_type.as_deref() == Some(operator) && self.domain.as_deref().unwrap_or("").is_empty()
    }

    /// Whether it is a linear layer: `A * B^T`, not scaled, with a bias or none.
    #[must_use]
    pub fn is_linear(&self) -> bool {
        let [attribute] = self.attribute.as_slice() else { return false };
        self.is("Gemm") && attribute.name.as_deref() == Some("transB") && attribute.i == Some(1)
    }
}

impl Graph {
    /// Takes the nodes and initializers out that nobody reads.
    pub fn drop_unread(&mut self) {
        let mut read: HashSet<String> =
            self.output.iter().filter_map(|output| output.name.clone()).collect();
        // Nodes stand behind what they read: from the end on, readers are known first.
        let mut kept = Vec::with_capacity(self.node.len());
        while let Some(node) = self.node.pop() {
            if node.output.iter().any(|name| read.contains(name)) {
                read.extend(node.input.iter().cloned());
                kept.push(node);
            }
        }
        kept.reverse();
        self.node = kept;
        self.initializer.retain(|t| t.name.as_ref().is_some_and(|name| read.contains(name)));
    }
}

impl Model {
    /// Says that its operators are those of `opset`.
    pub fn set_opset(&mut self, opset: i64) {
        self.ir_version = Some(if opset > 20 { 10 } else { 9 });
        self.opset_import = vec![OperatorSet { domain: Some(String::new()), version: Some(opset) }];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FLOAT, ValueInfo};

    fn node(operator: &str, inputs: &[&str], output: &str) -> Node {
        Node {
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            op_type: Some(operator.to_owned()),
            ..Node::default()
        }
    }

    #[test]
    fn what_leads_nowhere_leaves() {
        let tensor = |name: &str| Tensor { name: Some(name.to_owned()), ..Tensor::default() };
        let mut graph = Graph {
            node: vec![
                node("Cast", &["a"], "wide"),
                node("Cast", &["b"], "unread"),
                node("Relu", &["unread"], "unread too"),
                node("Relu", &["wide"], "y"),
            ],
            initializer: ["a", "b", "c"].map(tensor).to_vec(),
            output: vec![ValueInfo { name: Some("y".to_owned()), r#type: None }],
            ..Graph::default()
        };
        graph.drop_unread();
        let outputs: Vec<&str> = graph.node.iter().map(|node| node.output[0].as_str()).collect();
        assert_eq!(outputs, ["wide", "y"]);
        assert_eq!(graph.initializer, [tensor("a")]);
    }

    #[test]
    fn a_piece_is_read_back() {
        let piece = External { location: "model.safetensors", offset: 1 << 40, length: 24 };
        let mut tensor = Tensor::stored("w".to_owned(), FLOAT, vec![2, 3], piece);
        assert_eq!((tensor.external(), tensor.matrix()), (Some(piece), Some((2, 3))));
        tensor.external_data.pop();
        tensor.dims.push(1);
        assert_eq!((tensor.external(), tensor.matrix()), (None, None));
    }

    #[test]
    fn a_linear_layer_is_a_plain_product() {
        let mut gemm = node("Gemm", &["x", "w"], "y");
        assert!(!gemm.is_linear());
        gemm.attribute = vec![Attribute::integer("transB", 1)];
        assert!(gemm.is_linear());
        gemm.attribute.push(Attribute::integer("transA", 1));
        assert!(!gemm.is_linear());
    }
}
