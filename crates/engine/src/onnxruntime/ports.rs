//! Inputs and outputs of a session.

use std::collections::HashMap;
use std::ffi::CString;

use imprompt_error::{Error, Result};
use ort::value::{Outlet, TensorElementType, ValueType};

use crate::{ElementType, Port};

/// The inputs or the outputs of a graph, found by name.
#[derive(Debug)]
pub(super) struct Ports {
    /// In the graph's order.
    pub(super) ports: Vec<Port>,
    /// Their names as C has them.
    pub(super) c_names: Vec<CString>,
    by_name: HashMap<String, usize>,
}

impl Ports {
    /// Those of a session.
    pub(super) fn new(outlets: &[Outlet]) -> Result<Self> {
        let ports = outlets.iter().map(port).collect::<Result<Vec<_>>>()?;
        let c_names = ports
            .iter()
            .map(|port| CString::new(port.name.as_str()))
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| Error::bad_model("a name of the graph contains a null byte"))?;
        let by_name =
            ports.iter().enumerate().map(|(index, port)| (port.name.clone(), index)).collect();
        Ok(Ports { ports, c_names, by_name })
    }

    /// The place of `name`, if it is there.
    pub(super) fn place(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The place of `name`, which is there.
    pub(super) fn find(&self, name: &str, what: &str) -> Result<usize> {
        self.place(name).ok_or_else(|| Error::internal(format!("the graph has no {what} {name}")))
    }
}

fn port(outlet: &Outlet) -> Result<Port> {
    let name = outlet.name();
    let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
        return Err(Error::bad_model(format!("{name} is not a tensor")));
    };
    let element_type = match ty {
        TensorElementType::Float32 => ElementType::F32,
        TensorElementType::Float16 => ElementType::F16,
        TensorElementType::Bfloat16 => ElementType::Bf16,
        TensorElementType::Int64 => ElementType::I64,
        TensorElementType::Int32 => ElementType::I32,
        TensorElementType::Uint8 => ElementType::U8,
        other => {
            return Err(Error::bad_model(format!("{name} has elements of type {other:?}")));
        }
    };
    Ok(Port {
        name: name.to_owned(),
        element_type,
        shape: shape.iter().map(|&dim| usize::try_from(dim).ok()).collect(),
    })
}
