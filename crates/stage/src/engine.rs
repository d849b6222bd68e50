//! How the stages open their engines.

use std::sync::Arc;

use imprompt_engine::onnxruntime::{LibrarySearch, OnnxRuntime, OnnxRuntimeOptions};
use imprompt_engine::{EngineOptions, Runtime};
use imprompt_error::Result;

use crate::{Parameters, Placement};

/// ONNX Runtime, opened once a process.
fn onnxruntime(parameters: &Parameters) -> Result<&'static OnnxRuntime> {
    let search = LibrarySearch {
        path: parameters.onnxruntime.clone(),
        folders: parameters.library_folders.clone(),
    };
    OnnxRuntime::open(&OnnxRuntimeOptions { search, ..OnnxRuntimeOptions::default() })
}

/// Fails where no instance could open its engines, wherever it computes: told when a model is
/// loaded, and not by each of its instances.
pub(crate) fn check(parameters: &Parameters) -> Result<()> {
    onnxruntime(parameters).map(drop)
}

/// What opens the engines of one instance. On a GPU they share a stream.
pub(crate) fn runtime(parameters: &Parameters, placement: Placement) -> Result<Arc<dyn Runtime>> {
    let library = onnxruntime(parameters)?;
    let Placement::Gpu(ordinal) = placement else { return Ok(Arc::new(library)) };
    let runtime = library.on_cuda(ordinal)?;
    tracing::info!(engine = runtime.description(), "an instance on a GPU");
    Ok(Arc::new(runtime))
}

/// Whether engines of these parameters are faster in 8 bits.
pub(crate) fn multiplies_bytes(parameters: &Parameters) -> bool {
    imprompt_engine::onnxruntime::multiplies_bytes(&options(parameters))
}

/// The options of one instance's engines.
pub(crate) fn options(parameters: &Parameters) -> EngineOptions {
    let Parameters { threads, kernels, cuda_graphs, .. } = *parameters;
    EngineOptions { threads, kernels, cuda_graphs, ..EngineOptions::default() }
}
