//! Inputs and outputs of a graph: their types and lengths.

use imprompt_error::Result;
use imprompt_onnx as onnx;

use super::Target;
use crate::builder::Graph;

pub(super) fn element_type(port: &onnx::ValueInfo) -> Option<i32> {
    port.r#type.as_ref()?.tensor_type.as_ref()?.elem_type
}

pub(super) fn set_element_type(port: &mut onnx::ValueInfo, number: i32) {
    if let Some(tensor) = port.r#type.as_mut().and_then(|kind| kind.tensor_type.as_mut()) {
        tensor.elem_type = Some(number);
    }
}

/// Gives the free lengths of a cache's port their value.
pub(super) fn fix_lengths(port: &mut onnx::ValueInfo, target: &Target) {
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
