//! TensorRT: finds its library, and builds engines from ONNX graphs. Nothing of it is linked, and
//! no GPU is needed: the flavour is TensorRT-RTX, whose engines are compiled in two steps, of which
//! the second, for the very card, is done where they run.
//!
//! [`TensorRt::open`] opens the library, [`TensorRt::build`] builds. `unsafe` is in `library`
//! alone: asking a library for its version before the `trtx` crate calls it.

mod build;
mod library;

pub use build::{
    Built, COMPUTE_CAPABILITIES, ComputeCapability, EngineOptions, Port, PortType, Range, Watch,
};
pub use library::{LIBRARY_VARIABLE, LibrarySearch, TensorRt};
