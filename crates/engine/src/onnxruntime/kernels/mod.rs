//! imprompt's own kernels as operators of ONNX Runtime.
//!
//! [`rewrite`] finds in a graph what the kernels do: linear layers over stored weights, with their
//! activation and residual, and groups of nodes that the graph marks as one operator
//! ([`imprompt_onnx::fused`]). Those become nodes of the domain [`DOMAIN`], and their weights
//! leave the graph: the library never sees them, the kernels read them from the mapped
//! file. Everything else stays as it is.

mod operators;
mod rewrite;
mod weights;

pub(super) use operators::domain;
pub(super) use rewrite::rewrite;

/// The domain of the operators.
const DOMAIN: &str = "imprompt";
