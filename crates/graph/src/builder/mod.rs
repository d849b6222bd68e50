//! A graph under construction.
//!
//! [`GraphBuilder`] owns the nodes; a [`Value`] names one of its tensors. The
//! typed helpers of `ops` and `layers` each emit the form of an operator that is
//! valid from opset 18 on, so the written opset is the lowest that the
//! operators in use need. The same calls give the same bytes.

mod layers;
mod ops;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use imprompt_error::{Error, Result};
use prost::Message;

use crate::weights::{DType, WeightIndex};
use imprompt_onnx::fused::{Fused, GOES_ON};
use imprompt_onnx::{self as proto};

pub use layers::{Activation, AttentionHeads, LinearWeights};

/// The lowest opset whose operator forms the helpers emit.
const LOWEST_OPSET: i64 = 18;

/// Operators that came, or came in the form used here, after [`LOWEST_OPSET`].
const NEWER_OPERATORS: &[(&str, i64)] = &[
    ("Gelu", 20),
    ("Attention", 23),
    ("RMSNormalization", 23),
    ("RotaryEmbedding", 23),
    ("TensorScatter", 24),
];

/// A tensor of the graph under construction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Value(Arc<str>);

impl Value {
    /// Its name in the graph.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point.
    F16,
    /// Brain floating point.
    BF16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// Byte.
    U8,
    /// Truth value.
    Bool,
}

impl Type {
    fn number(self) -> i32 {
        match self {
            Type::F32 => proto::FLOAT,
            Type::F16 => proto::FLOAT16,
            Type::BF16 => proto::BFLOAT16,
            Type::I64 => proto::INT64,
            Type::I32 => proto::INT32,
            Type::U8 => proto::UINT8,
            Type::Bool => proto::BOOL,
        }
    }
}

/// A dimension of an input or output: fixed, or free under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dim<'a> {
    /// This length.
    Fixed(usize),
    /// Any length; equal names are equal lengths.
    Free(&'a str),
}

impl From<usize> for Dim<'_> {
    fn from(length: usize) -> Self {
        Dim::Fixed(length)
    }
}

impl<'a> From<&'a str> for Dim<'a> {
    fn from(name: &'a str) -> Self {
        Dim::Free(name)
    }
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// One integer.
    Int(i64),
    /// One float.
    Float(f32),
    /// Text.
    Text(&'static str),
    /// Integers.
    Ints(Vec<i64>),
}

/// A finished graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    /// The `.onnx` file.
    pub bytes: Vec<u8>,
    /// The weight files it refers to, which must lie beside it.
    pub weight_files: BTreeSet<String>,
    /// The opset it needs.
    pub opset: i64,
}

impl Graph {
    /// What the `.onnx` file says.
    ///
    /// # Errors
    /// `Internal` when it is no graph.
    pub(crate) fn model(&self) -> Result<proto::Model> {
        proto::Model::decode(self.bytes.as_slice())
            .map_err(|error| Error::internal(format!("a graph cannot be read back: {error}")))
    }
}

/// Builds one graph over one model's weights.
#[derive(Debug)]
pub struct GraphBuilder<'w> {
    weights: &'w WeightIndex,
    name: String,
    scope: String,
    opset: i64,
    nodes: Vec<proto::Node>,
    initializers: Vec<proto::Tensor>,
    inputs: Vec<proto::ValueInfo>,
    outputs: Vec<(Value, proto::ValueInfo)>,
    constants: HashMap<(i32, Vec<i64>, Vec<u8>), Value>,
    loaded: HashMap<String, Value>,
    names: HashMap<String, usize>,
    weight_files: BTreeSet<String>,
}

impl<'w> GraphBuilder<'w> {
    /// An empty graph called `name`.
    #[must_use]
    pub fn new(name: &str, weights: &'w WeightIndex) -> Self {
        GraphBuilder {
            weights,
            name: name.to_owned(),
            scope: String::new(),
            opset: LOWEST_OPSET,
            nodes: Vec::new(),
            initializers: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            constants: HashMap::new(),
            loaded: HashMap::new(),
            names: HashMap::new(),
            weight_files: BTreeSet::new(),
        }
    }

    /// The weights it refers to.
    #[must_use]
    pub fn weights(&self) -> &'w WeightIndex {
        self.weights
    }

    /// Names the nodes emitted from here on after this part of the model.
    pub fn set_scope(&mut self, scope: &str) {
        scope.clone_into(&mut self.scope);
    }

    /// A graph input.
    pub fn input(&mut self, name: &str, element_type: Type, shape: &[Dim<'_>]) -> Value {
        self.inputs.push(value_info(name, element_type, shape));
        Value(name.into())
    }

    /// Makes `value` the graph output `name`. The value itself takes the name
    /// where it can (no node is added), so that an output that an operator
    /// writes in place is that operator's own.
    pub fn output(&mut self, value: &Value, name: &str, element_type: Type, shape: &[Dim<'_>]) {
        self.outputs.push((value.clone(), value_info(name, element_type, shape)));
    }

    /// A stored tensor as float32: as it lies in the model's file, widened by a
    /// `Cast` (folded when the graph is loaded) where it is F16 or BF16.
    ///
    /// # Errors
    /// `BadModel` when the tensor is missing or has another shape;
    /// `Unsupported` when its elements are no floats of up to 32 bits.
    pub fn weight(&mut self, name: &str, shape: &[usize]) -> Result<Value> {
        let stored = self.stored_weight(name, shape)?;
        if self.weights.get(name)?.dtype == DType::F32 {
            return Ok(stored);
        }
        let widened = format!("{name}.f32");
        if let Some(value) = self.loaded.get(&widened) {
            return Ok(value.clone());
        }
        let value = Value(widened.as_str().into());
        self.emit(
            "Cast",
            &[&stored],
            std::slice::from_ref(&value),
            &[("to", Attribute::Int(i64::from(proto::FLOAT)))],
        );
        self.loaded.insert(widened, value.clone());
        Ok(value)
    }

    /// A stored tensor in the type it is stored in, under its own name.
    ///
    /// # Errors
    /// As [`Self::weight`].
    pub fn stored_weight(&mut self, name: &str, shape: &[usize]) -> Result<Value> {
        let weight = self.weights.expect(name, shape)?;
        if let Some(value) = self.loaded.get(name) {
            return Ok(value.clone());
        }
        let data_type = match weight.dtype {
            DType::F32 => Type::F32,
            DType::F16 => Type::F16,
            DType::BF16 => Type::BF16,
            other => {
                return Err(Error::unsupported(format!(
                    "{}: tensor {name} has elements of type {other:?}; F32, F16 and BF16 are \
                     supported",
                    self.weights.folder().join(&weight.file).display()
                )));
            }
        };
        let dims = shape.iter().map(|&d| d as i64).collect();
        let piece = proto::External {
            location: &weight.file,
            offset: weight.offset,
            length: weight.length,
        };
        let tensor = proto::Tensor::stored(name.to_owned(), data_type.number(), dims, piece);
        self.initializers.push(tensor);
        self.weight_files.insert(weight.file.clone());
        let value = Value(name.into());
        self.loaded.insert(name.to_owned(), value.clone());
        Ok(value)
    }

    /// Constant integers of shape `[n]`.
    pub fn ints(&mut self, values: &[i64]) -> Value {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(Type::I64, vec![values.len() as i64], bytes)
    }

    /// A constant integer without dimensions.
    pub fn int(&mut self, value: i64) -> Value {
        self.constant(Type::I64, Vec::new(), value.to_le_bytes().to_vec())
    }

    /// A constant float without dimensions.
    pub fn float(&mut self, value: f32) -> Value {
        self.constant(Type::F32, Vec::new(), value.to_le_bytes().to_vec())
    }

    /// Constant floats; for small tensors, as they are kept in the graph.
    ///
    /// # Errors
    /// `Internal` when `shape` does not hold `values`.
    pub fn floats(&mut self, shape: &[usize], values: &[f32]) -> Result<Value> {
        if shape.iter().product::<usize>() != values.len() {
            return Err(Error::internal(format!(
                "a constant of shape {shape:?} was given {} values",
                values.len()
            )));
        }
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Ok(self.constant(Type::F32, shape.iter().map(|&d| d as i64).collect(), bytes))
    }

    fn constant(&mut self, element_type: Type, dims: Vec<i64>, bytes: Vec<u8>) -> Value {
        let number = element_type.number();
        let key = (number, dims.clone(), bytes.clone());
        if let Some(value) = self.constants.get(&key) {
            return value.clone();
        }
        let value = Value(format!("constant.{}", self.constants.len()).into());
        self.initializers.push(proto::Tensor {
            dims,
            data_type: Some(number),
            name: Some(value.name().to_owned()),
            raw_data: Some(bytes),
            external_data: Vec::new(),
            data_location: None,
        });
        self.constants.insert(key, value.clone());
        value
    }

    /// A node of one output.
    pub fn node(
        &mut self,
        operator: &str,
        inputs: &[&Value],
        attributes: &[(&str, Attribute)],
    ) -> Value {
        let inputs: Vec<Option<&Value>> = inputs.iter().map(|value| Some(*value)).collect();
        self.nodes(operator, &inputs, 1, attributes).swap_remove(0)
    }

    /// A node of `outputs` outputs; an input of `None` is one left out.
    pub fn nodes(
        &mut self,
        operator: &str,
        inputs: &[Option<&Value>],
        outputs: usize,
        attributes: &[(&str, Attribute)],
    ) -> Vec<Value> {
        let name = self.unique_name(operator);
        let outputs: Vec<Value> = match outputs {
            1 => vec![Value(name.as_str().into())],
            n => (0..n).map(|i| Value(format!("{name}.{i}").into())).collect(),
        };
        self.emit_named(name, operator, inputs, &outputs, attributes);
        outputs
    }

    fn emit(
        &mut self,
        operator: &str,
        inputs: &[&Value],
        outputs: &[Value],
        attributes: &[(&str, Attribute)],
    ) {
        let name = self.unique_name(operator);
        let inputs: Vec<Option<&Value>> = inputs.iter().map(|value| Some(*value)).collect();
        self.emit_named(name, operator, &inputs, outputs, attributes);
    }

    fn emit_named(
        &mut self,
        name: String,
        operator: &str,
        inputs: &[Option<&Value>],
        outputs: &[Value],
        attributes: &[(&str, Attribute)],
    ) {
        if let Some((_, opset)) = NEWER_OPERATORS.iter().find(|(newer, _)| *newer == operator) {
            self.opset = self.opset.max(*opset);
        }
        self.nodes.push(proto::Node {
            input: inputs
                .iter()
                .map(|v| v.map_or(String::new(), |v| v.name().to_owned()))
                .collect(),
            output: outputs.iter().map(|v| v.name().to_owned()).collect(),
            name: Some(name),
            op_type: Some(operator.to_owned()),
            attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
            doc_string: None,
            domain: None,
        });
    }

    /// Marks the nodes that `build` adds as one operator that an engine may have: `operator`
    /// of `inputs` (`None`: left out) and integer attributes, giving what `build` gives.
    pub fn fused(
        &mut self,
        operator: &str,
        inputs: &[Option<&Value>],
        attributes: &[(&str, i64)],
        build: impl FnOnce(&mut Self) -> Value,
    ) -> Value {
        let first = self.nodes.len();
        let output = build(self);
        let name = |value: &Option<&Value>| value.map_or(String::new(), |v| v.name().to_owned());
        let fused = Fused {
            operator: operator.to_owned(),
            inputs: inputs.iter().map(name).collect(),
            output: output.name().to_owned(),
            attributes: attributes
                .iter()
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect(),
        };
        for (index, node) in self.nodes[first..].iter_mut().enumerate() {
            node.doc_string = Some(match index {
                0 => fused.to_string(),
                _ => GOES_ON.to_owned(),
            });
        }
        output
    }

    fn unique_name(&mut self, operator: &str) -> String {
        let base = match self.scope.as_str() {
            "" => operator.to_owned(),
            scope => format!("{scope}/{operator}"),
        };
        let count = self.names.entry(base.clone()).or_insert(0);
        *count += 1;
        format!("{base}.{count}")
    }

    /// The graph as the bytes of an `.onnx` file.
    #[must_use]
    pub fn finish(mut self) -> Graph {
        self.name_outputs();
        let mut model = proto::Model {
            producer_name: Some("imprompt".to_owned()),
            producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            graph: Some(proto::Graph {
                node: self.nodes,
                name: Some(self.name),
                initializer: self.initializers,
                input: self.inputs,
                output: self.outputs.into_iter().map(|(_, info)| info).collect(),
            }),
            ..proto::Model::default()
        };
        model.set_opset(self.opset);
        Graph { bytes: model.encode_to_vec(), weight_files: self.weight_files, opset: self.opset }
    }

    /// Gives values the names of the outputs they are; a value that has a name
    /// of its own already (an input, a constant, another output) is copied.
    fn name_outputs(&mut self) {
        let produced: BTreeSet<String> =
            self.nodes.iter().flat_map(|node| node.output.iter().cloned()).collect();
        let mut renamed: HashMap<String, String> = HashMap::new();
        let mut copied = Vec::new();
        for (value, info) in &self.outputs {
            let target = info.name.clone().unwrap_or_default();
            if produced.contains(value.name()) && !renamed.contains_key(value.name()) {
                renamed.insert(value.name().to_owned(), target);
            } else {
                copied.push((value.clone(), Value(target.as_str().into())));
            }
        }
        for (value, target) in copied {
            self.emit("Identity", &[&value], &[target], &[]);
        }
        let rename = |name: &mut String| {
            if let Some(target) = renamed.get(name) {
                name.clone_from(target);
            }
        };
        for node in &mut self.nodes {
            node.input.iter_mut().chain(&mut node.output).for_each(rename);
            if let Some(mut fused) = node.doc_string.as_deref().and_then(Fused::parse) {
                fused.inputs.iter_mut().chain([&mut fused.output]).for_each(rename);
                node.doc_string = Some(fused.to_string());
            }
        }
    }
}

fn value_info(name: &str, element_type: Type, shape: &[Dim<'_>]) -> proto::ValueInfo {
    let dim = shape
        .iter()
        .map(|dim| match dim {
            Dim::Fixed(length) => {
                proto::Dimension { dim_value: Some(*length as i64), dim_param: None }
            }
            Dim::Free(name) => {
                proto::Dimension { dim_value: None, dim_param: Some((*name).to_owned()) }
            }
        })
        .collect();
    proto::ValueInfo {
        name: Some(name.to_owned()),
        r#type: Some(proto::Type {
            tensor_type: Some(proto::TensorType {
                elem_type: Some(element_type.number()),
                shape: Some(proto::Shape { dim }),
            }),
        }),
    }
}

fn attribute(name: &str, value: &Attribute) -> proto::Attribute {
    let mut attribute = proto::Attribute { name: Some(name.to_owned()), ..Default::default() };
    attribute.kind = Some(match value {
        Attribute::Int(i) => {
            attribute.i = Some(*i);
            proto::ATTRIBUTE_INT
        }
        Attribute::Float(f) => {
            attribute.f = Some(*f);
            proto::ATTRIBUTE_FLOAT
        }
        Attribute::Text(text) => {
            attribute.s = Some(text.as_bytes().to_vec());
            proto::ATTRIBUTE_STRING
        }
        Attribute::Ints(ints) => {
            attribute.ints.clone_from(ints);
            proto::ATTRIBUTE_INTS
        }
    });
    attribute
}

#[cfg(test)]
mod tests;
