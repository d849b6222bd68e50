//! Where the parts that are installed apart are: tritonserver, the backend,
//! ONNX Runtime, and the repository to use.

use std::path::{Path, PathBuf};

use imprompt_repository::TENSORRT_FOLDER;

use crate::talk::{Failure, Result};

/// An environment variable that is set and not empty.
pub fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Folders in which the project's scripts may have installed things: `$IMPROMPT_HOME`, else
/// the `.imprompt` of the project this executable was built in, and the user's cache.
fn homes() -> Vec<PathBuf> {
    if let Some(home) = variable("IMPROMPT_HOME") {
        return vec![home];
    }
    let executable =
        std::env::current_exe().and_then(|path| path.canonicalize()).unwrap_or_default();
    let project = executable.ancestors().map(|folder| folder.join(".imprompt"));
    project.chain(cache()).collect()
}

/// The user's cache folder of imprompt.
pub fn cache() -> Option<PathBuf> {
    let root = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
    Some(root.join("imprompt"))
}

/// The server.
pub fn tritonserver() -> Result<PathBuf> {
    let installed = homes()
        .into_iter()
        .map(|home| home.join("tritonserver/pytriton/tritonserver/bin/tritonserver"));
    let container = PathBuf::from("/opt/tritonserver/bin/tritonserver");
    find("TRITONSERVER", std::iter::once(container).chain(installed)).map_err(|failure| {
        failure.unwrap_or_else(|| {
            Failure::new("tritonserver was not found").hint(
                "run scripts/setup of the project, use one of NVIDIA's Triton containers, or set \
                 $TRITONSERVER to the server's executable",
            )
        })
    })
}

/// The backend library.
pub fn backend() -> Result<PathBuf> {
    let beside = std::env::current_exe()
        .and_then(|path| path.canonicalize())
        .ok()
        .and_then(|path| Some(path.parent()?.join("libtriton_imprompt.so")));
    let container = PathBuf::from("/opt/tritonserver/backends/imprompt/libtriton_imprompt.so");
    find("IMPROMPT_BACKEND", beside.into_iter().chain([container])).map_err(|failure| {
        failure.unwrap_or_else(|| {
            Failure::new("libtriton_imprompt.so was not found").hint(
                "build it with `cargo build --release -p triton_imprompt`, or set $IMPROMPT_BACKEND \
                 to the library",
            )
        })
    })
}

/// What of ONNX Runtime's CUDA provider lies beside the library that has it.
pub const PROVIDERS: [&str; 2] =
    ["libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"];

/// ONNX Runtime: the library named, else one that is found, `on_gpu` rather one with the CUDA provider;
/// `None` leaves the search to the engine.
pub fn onnxruntime(named: Option<&Path>, on_gpu: bool) -> Result<Option<PathBuf>> {
    if let Some(path) = named {
        return match path.is_file() {
            true => Ok(Some(path.to_owned())),
            false => Err(Failure::new(format!("--onnxruntime {}: no such file", path.display()))),
        };
    }
    let packages: &[&str] =
        if on_gpu { &["onnxruntime-gpu", "onnxruntime"] } else { &["onnxruntime"] };
    let installed = packages.iter().flat_map(|package| {
        let folder = Path::new(package).join("onnxruntime/capi");
        homes()
            .into_iter()
            .flat_map(move |home| libraries(&home.join(&folder), "libonnxruntime.so"))
    });
    let container = PathBuf::from("/opt/tritonserver/backends/onnxruntime/libonnxruntime.so");
    match find("IMPROMPT_ONNXRUNTIME", installed.chain([container])) {
        Ok(path) => Ok(Some(path)),
        Err(Some(failure)) => Err(failure),
        Err(None) => Ok(None),
    }
}

/// The folder of TensorRT: that named, else where the project's scripts install it; `None` leaves
/// the search to who opens it.
pub fn tensorrt(named: Option<&Path>) -> Option<PathBuf> {
    if named.is_some() || variable("IMPROMPT_TENSORRT").is_some() {
        return named.map(Path::to_owned);
    }
    let mut places = homes().into_iter().filter_map(|home| Some(home.join(TENSORRT_FOLDER?)));
    places.find(|folder| folder.is_dir())
}

/// The repository that is meant when none is named.
pub fn repository(named: Option<&Path>) -> Result<PathBuf> {
    named.map(Path::to_owned).or_else(|| variable("IMPROMPT_REPOSITORY")).ok_or_else(|| {
        Failure::usage("neither --repo nor $IMPROMPT_REPOSITORY names a repository").hint(
            "make one with `imprompt build`, then pass it with --repo REPO; --server URL asks a \
             running server",
        )
    })
}

/// `$name` if it is set, which must then be a file; else the first of `places` that is one.
fn find(name: &str, places: impl Iterator<Item = PathBuf>) -> Result<PathBuf, Option<Failure>> {
    if let Some(path) = variable(name) {
        return match path.is_file() {
            true => Ok(path),
            false => Err(Some(Failure::new(format!("${name}: {}: no such file", path.display())))),
        };
    }
    places.into_iter().find(|path| path.is_file()).ok_or(None)
}

/// Files of `folder` whose names begin with `prefix`.
fn libraries(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let mut paths: Vec<_> = named.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}
