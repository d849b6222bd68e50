//! How the stages open their engines.

use imprompt_engine::onnxruntime::{LibrarySearch, OnnxRuntime, OnnxRuntimeOptions};
use imprompt_engine::{EngineOptions, Runtime};
use imprompt_error::Result;

use crate::Parameters;

/// ONNX Runtime, opened once a process.
pub(crate) fn runtime(parameters: &Parameters) -> Result<&'static dyn Runtime> {
    let search = LibrarySearch {
        path: parameters.onnxruntime.clone(),
        folders: parameters.library_folders.clone(),
    };
    let options = OnnxRuntimeOptions { search, ..OnnxRuntimeOptions::default() };
    Ok(OnnxRuntime::open(&options)?)
}

/// Whether engines of these parameters are faster in 8 bits.
pub(crate) fn multiplies_bytes(parameters: &Parameters) -> bool {
    imprompt_engine::onnxruntime::multiplies_bytes(&options(parameters))
}

/// The options of one instance's engines.
pub(crate) fn options(parameters: &Parameters) -> EngineOptions {
    let Parameters { threads, kernels, .. } = *parameters;
    EngineOptions { threads, kernels, ..EngineOptions::default() }
}
