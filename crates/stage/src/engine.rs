//! How the stages open their engines.

use imprompt_engine::onnxruntime::{LibrarySearch, OnnxRuntime, OnnxRuntimeOptions};
use imprompt_engine::{EngineOptions, Runtime};
use imprompt_error::Result;

use crate::Parameters;

/// ONNX Runtime, opened once a process.
pub(crate) fn runtime(parameters: &Parameters) -> Result<&'static dyn Runtime> {
    let search = LibrarySearch { path: parameters.onnxruntime.clone(), ..LibrarySearch::default() };
    let options = OnnxRuntimeOptions { search, ..OnnxRuntimeOptions::default() };
    Ok(OnnxRuntime::open(&options)?)
}

/// The options of one instance's engines.
pub(crate) fn options(parameters: &Parameters) -> EngineOptions {
    let Parameters { threads, kernels, .. } = *parameters;
    EngineOptions { threads, kernels, ..EngineOptions::default() }
}
