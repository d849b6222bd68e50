//! TensorRT: finds its library, builds engines from ONNX graphs, and runs them. Nothing of it is
//! linked. The flavour is TensorRT-RTX, whose engines are compiled in two steps: the first needs no
//! GPU, the second, for the very card, is done where they run. With the feature `enterprise` it is
//! the TensorRT of data centres, whose engines are built on the card that they are for.
//!
//! [`TensorRt::open`] opens the library, [`TensorRt::build`] builds, [`TensorRt::on_gpu`] gives the
//! [`Runtime`](imprompt_engine::Runtime) of a GPU. `unsafe` is in two files: `library` asks a library
//! for its version before the `trtx` crate calls it, `context` tells TensorRT addresses.

mod build;
mod cache;
mod context;
mod engine;
mod flavour;
mod held;
mod kernels;
mod library;
mod log;
mod pool;
mod profile;
mod runtime;

pub use build::{Built, ComputeCapability, EngineOptions, Port, PortType, Range, Watch};
pub use flavour::{COMPUTE_CAPABILITIES, FLAVOUR, NAME, SETUP_FOLDER, usual_capabilities};
pub use library::{LIBRARY_VARIABLE, LibrarySearch, TensorRt};
pub use runtime::TensorRtRuntime;
