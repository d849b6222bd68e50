//! How the stages open their engines.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use imprompt_engine::manifest::EngineManifest;
use imprompt_engine::onnxruntime::{LibrarySearch, OnnxRuntime, OnnxRuntimeOptions};
use imprompt_engine::{EngineOptions, Runtime};
use imprompt_error::{Error, Result};
use imprompt_tensorrt::{TensorRt, TensorRtRuntime};

use crate::{GpuEngine, Parameters, Placement};

/// ONNX Runtime, opened once a process.
fn onnxruntime(parameters: &Parameters) -> Result<&'static OnnxRuntime> {
    let search = LibrarySearch {
        path: parameters.onnxruntime.clone(),
        folders: parameters.library_folders.clone(),
    };
    OnnxRuntime::open(&OnnxRuntimeOptions { search, ..OnnxRuntimeOptions::default() })
}

/// TensorRT, opened once a process.
fn tensorrt(parameters: &Parameters) -> Result<&'static TensorRt> {
    TensorRt::open(&imprompt_tensorrt::LibrarySearch {
        folder: parameters.tensorrt.clone(),
        folders: parameters.library_folders.clone(),
    })
}

/// Fails where no instance could open its engines, wherever it computes: told when a model is
/// loaded, and not by each of its instances.
pub(crate) fn check(parameters: &Parameters) -> Result<()> {
    match onnxruntime(parameters) {
        // Instances on a GPU do without.
        Err(_) if parameters.gpu_engine == GpuEngine::TensorRt && tensorrt(parameters).is_ok() => {
            Ok(())
        }
        opened => opened.map(drop),
    }
}

/// What opens the engines of one instance of the stage in `folder`. On a GPU they share a stream.
///
/// # Errors
/// What the libraries say, of those that were to be used.
pub(crate) fn runtime(
    parameters: &Parameters,
    placement: Placement,
    folder: &Path,
) -> Result<Arc<dyn Runtime>> {
    let Placement::Gpu(ordinal) = placement else {
        return Ok(Arc::new(onnxruntime(parameters)?));
    };
    let on_tensorrt = || on_tensorrt(parameters, ordinal, folder);
    let on_cuda = || onnxruntime(parameters)?.on_cuda(ordinal);
    let (runtime, why): (Arc<dyn Runtime>, String) =
        match choose(parameters.gpu_engine, on_tensorrt, on_cuda)? {
            Chosen::TensorRt(runtime) => (Arc::new(runtime), "its engines fit".to_owned()),
            Chosen::Cuda(runtime, None) => (Arc::new(runtime), "as configured".to_owned()),
            Chosen::Cuda(runtime, Some(why)) => (Arc::new(runtime), format!("not TensorRT: {why}")),
        };
    tracing::info!(engine = runtime.description(), why, "an instance on a GPU");
    Ok(runtime)
}

/// What runs the graphs of an instance on a GPU: all of them, since what one leaves on the device the
/// other does not read there.
#[derive(Debug, PartialEq, Eq)]
enum Chosen<T, C> {
    TensorRt(T),
    /// And why it is not TensorRT, where that was to be tried.
    Cuda(C, Option<Error>),
}

/// Takes what `engine` says. Both are opened only where they are needed.
fn choose<T, C>(
    engine: GpuEngine,
    tensorrt: impl FnOnce() -> Result<T>,
    cuda: impl FnOnce() -> Result<C>,
) -> Result<Chosen<T, C>> {
    match engine {
        GpuEngine::Cuda => Ok(Chosen::Cuda(cuda()?, None)),
        GpuEngine::TensorRt => Ok(Chosen::TensorRt(tensorrt()?)),
        GpuEngine::Auto => match tensorrt() {
            Ok(runtime) => Ok(Chosen::TensorRt(runtime)),
            Err(why) => match cuda() {
                Ok(runtime) => Ok(Chosen::Cuda(runtime, Some(why))),
                Err(error) => {
                    let words = format!("{}; nor does TensorRT run: {why}", error.message());
                    Err(Error::new(error.kind(), words))
                }
            },
        },
    }
}

/// TensorRT on GPU `ordinal`, where all graphs in `folder` have engines for it.
fn on_tensorrt(parameters: &Parameters, ordinal: usize, folder: &Path) -> Result<TensorRtRuntime> {
    // What needs no library first.
    let graphs = graphs_for_gpu(folder)?;
    graphs.iter().try_for_each(|graph| EngineManifest::read(graph).map(drop))?;
    let runtime = tensorrt(parameters)?.on_gpu(ordinal)?;
    graphs.iter().try_for_each(|graph| runtime.admit(graph))?;
    Ok(runtime)
}

/// The graphs in `folder` that a GPU computes: those with a form for it beside them.
fn graphs_for_gpu(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error: std::io::Error| Error::bad_model(format!("{}: {error}", folder.display()));
    let mut graphs = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(name) = name.strip_suffix(".gpu.onnx") {
            graphs.push(folder.join(format!("{name}.onnx")));
        }
    }
    if graphs.is_empty() {
        return Err(Error::not_found(format!(
            "{}: no graph has an engine for a GPU; build them with `imprompt build --device gpu`",
            folder.display()
        )));
    }
    graphs.sort();
    Ok(graphs)
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

#[cfg(test)]
mod tests {
    use super::*;
    use imprompt_engine::gpu_form;
    use imprompt_error::Kind;

    fn no(what: &str) -> Result<u8> {
        Err(Error::not_found(format!("no {what}")))
    }

    fn never() -> Result<u8> {
        panic!("opened what is not used")
    }

    #[test]
    fn what_is_configured_is_used_alone() {
        let cuda = choose(GpuEngine::Cuda, never, || Ok(2)).unwrap();
        assert_eq!(cuda, Chosen::Cuda(2, None));
        let tensorrt = choose(GpuEngine::TensorRt, || Ok(1), never).unwrap();
        assert_eq!(tensorrt, Chosen::TensorRt(1));
        let error = choose(GpuEngine::TensorRt, || no("engine"), never).unwrap_err();
        assert_eq!(error.message(), "no engine");
        let error = choose(GpuEngine::Cuda, never, || no("provider")).unwrap_err();
        assert_eq!(error.message(), "no provider");
    }

    #[test]
    fn tensorrt_is_tried_first_and_the_reason_is_kept() {
        let tensorrt = choose(GpuEngine::Auto, || Ok(1), never).unwrap();
        assert_eq!(tensorrt, Chosen::TensorRt(1));
        match choose(GpuEngine::Auto, || no("engine"), || Ok(2)).unwrap() {
            Chosen::Cuda(2, Some(why)) => assert_eq!(why.message(), "no engine"),
            other => panic!("{other:?}"),
        }
        let error = choose(GpuEngine::Auto, || no("engine"), || no("provider")).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(error.message(), "no provider; nor does TensorRT run: no engine");
    }

    #[test]
    fn the_graphs_for_a_gpu_are_those_with_a_form_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let parameters = Parameters::default();
        let touch = |path: &Path| std::fs::write(path, "").unwrap();
        let [text, image, screen] = ["clip_text.onnx", "clip_image.onnx", "clip_text_screen.onnx"]
            .map(|name| folder.path().join(name));
        [&text, &image, &screen].into_iter().for_each(|graph| touch(graph));
        // Nothing is opened where there is nothing to run.
        let error = on_tensorrt(&parameters, 0, folder.path()).err().unwrap();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.message().contains("imprompt build --device gpu"), "{error}");
        touch(&gpu_form(&text));
        touch(&gpu_form(&image));
        assert_eq!(graphs_for_gpu(folder.path()).unwrap(), [image, text]);
        // Built for the CUDA provider alone.
        let error = on_tensorrt(&parameters, 0, folder.path()).err().unwrap();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.message().contains("clip_image.engine.json"), "{error}");
        assert!(graphs_for_gpu(&folder.path().join("nowhere")).is_err());
    }
}
