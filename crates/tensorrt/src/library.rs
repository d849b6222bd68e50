//! Finding and checking the library before `trtx` is handed it, which calls what a version may not
//! have.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use imprompt_error::{Error, Result};
use libloading::Library;

use crate::flavour::{NAME, NAMES, Names};

/// The variable that names the folder of the library.
pub const LIBRARY_VARIABLE: &str = "IMPROMPT_TENSORRT";

/// Where to look for the library.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LibrarySearch {
    /// The folder that holds it. When given nothing else is tried; nor is it when
    /// [`LIBRARY_VARIABLE`] is set.
    pub folder: Option<PathBuf>,
    /// Folders to try before the system's loader, such as that of the own binary.
    pub folders: Vec<PathBuf>,
}

/// TensorRT with its ONNX parser, open. There is one in a process.
#[derive(Debug)]
pub struct TensorRt {
    folder: String,
    version: (i32, i32, i32),
    /// Keeps it open.
    _library: Library,
}

impl TensorRt {
    /// Opens the library, or gives the one that is open.
    ///
    /// # Errors
    /// `NotFound` naming what was tried; `Unsupported` when its version is not known here.
    pub fn open(search: &LibrarySearch) -> Result<&'static Self> {
        static OPENED: OnceLock<TensorRt> = OnceLock::new();
        if let Some(opened) = OPENED.get() {
            return Ok(opened);
        }
        let opened = open(search)?;
        Ok(OPENED.get_or_init(|| opened))
    }

    /// Its version, such as `1.7.1`.
    #[must_use]
    pub fn version(&self) -> String {
        let (major, minor, patch) = self.version;
        format!("{major}.{minor}.{patch}")
    }

    /// The folder that it was opened in, or the name the system's loader was given.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.folder
    }
}

fn open(search: &LibrarySearch) -> Result<TensorRt> {
    let Names { runtime: runtime_name, parser: parser_name, known } = NAMES;
    let variable = || std::env::var_os(LIBRARY_VARIABLE).filter(|value| !value.is_empty());
    let named = search.folder.clone().or_else(|| variable().map(PathBuf::from));
    let candidates: Vec<[PathBuf; 2]> = match &named {
        Some(folder) => in_folder(folder).into_iter().collect(),
        None => {
            let own = search.folders.iter().filter_map(|folder| in_folder(folder));
            own.chain(loader_names()).collect()
        }
    };
    let mut tried = Vec::new();
    for [runtime, parser] in candidates {
        match version_of(&runtime) {
            Ok((library, version)) => {
                let (major, minor, _) = version;
                if major != known.0 || minor < known.1 {
                    return Err(Error::unsupported(format!(
                        "{} is {NAME} {major}.{minor}; versions from {}.{} on, below {}, \
                         are known here",
                        runtime.display(),
                        known.0,
                        known.1,
                        known.0 + 1
                    )));
                }
                hand_over(&runtime, &parser)?;
                let folder = runtime.parent().filter(|folder| !folder.as_os_str().is_empty());
                let folder = folder.unwrap_or(&runtime).display().to_string();
                return Ok(TensorRt { folder, version, _library: library });
            }
            Err(why) => tried.push(format!("{} ({why})", runtime.display())),
        }
    }
    if let Some(folder) = named.filter(|_| tried.is_empty()) {
        tried.push(format!("{} (no {runtime_name}* and {parser_name}* there)", folder.display()));
    }
    Err(Error::not_found(format!(
        "{NAME} could not be opened; tried {}; set {LIBRARY_VARIABLE} to the folder of \
         {runtime_name}.{}.{} or later and its ONNX parser",
        tried.join(", "),
        known.0,
        known.1,
    )))
}

/// The two libraries of `folder`, whatever version stands behind their names.
fn in_folder(folder: &Path) -> Option<[PathBuf; 2]> {
    let names: Vec<String> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let find = |base: &str| {
        let is_it = |name: &&String| {
            name.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let name = names.iter().filter(is_it).max()?;
        std::path::absolute(folder.join(name)).ok()
    };
    Some([find(NAMES.runtime)?, find(NAMES.parser)?])
}

/// What the system's loader is asked for.
fn loader_names() -> [[PathBuf; 2]; 2] {
    let Names { runtime, parser, known } = NAMES;
    let versioned = |name: &str| PathBuf::from(format!("{name}.{}", known.0));
    [[versioned(runtime), versioned(parser)], [PathBuf::from(runtime), PathBuf::from(parser)]]
}

/// The library `path`, and its version.
fn version_of(path: &Path) -> std::result::Result<(Library, (i32, i32, i32)), String> {
    // SAFETY: opening a library runs its initialisers. The file was named by the user, or is the
    // one that is kept under the library's name.
    let library =
        unsafe { Library::new(path) }.map_err(|error| error.to_string().replace('\n', " "))?;
    let ask = |name: &[u8]| {
        type Number = unsafe extern "C" fn() -> i32;
        // SAFETY: `NvInferRuntime.h` declares these functions so, in all versions that have them.
        let number = unsafe { library.get::<Number>(name) };
        let number = number.map_err(|_| "does not say its version: not TensorRT".to_owned())?;
        // SAFETY: they take nothing and give a constant.
        Ok::<i32, String>(unsafe { number() })
    };
    let version = (
        ask(b"getInferLibMajorVersion\0")?,
        ask(b"getInferLibMinorVersion\0")?,
        ask(b"getInferLibPatchVersion\0")?,
    );
    Ok((library, version))
}

/// Lets `trtx` open the same files, for good.
fn hand_over(runtime: &Path, parser: &Path) -> Result<()> {
    let failed =
        |path: &Path, error: &trtx::Error| Error::not_found(format!("{}: {error}", path.display()));
    trtx::dynamically_load_tensorrt(Some(runtime)).map_err(|error| failed(runtime, &error))?;
    trtx::dynamically_load_tensorrt_onnxparser(Some(parser)).map_err(|error| failed(parser, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of that name in the folder.
    fn touch(folder: &Path, name: &str, version: &str) {
        std::fs::write(folder.join(format!("{name}{version}")), "no library").unwrap();
    }

    #[test]
    fn both_libraries_are_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let Names { runtime, parser, .. } = NAMES;
        touch(folder.path(), runtime, ".1.7.1");
        touch(folder.path(), runtime.trim_end_matches(".so"), ".sources");
        assert_eq!(in_folder(folder.path()), None);
        touch(folder.path(), parser, ".1.7.1");
        let [found, beside] = in_folder(folder.path()).unwrap();
        assert!(found.ends_with(format!("{runtime}.1.7.1")), "{found:?}");
        assert!(beside.ends_with(format!("{parser}.1.7.1")), "{beside:?}");
        assert_eq!(in_folder(&folder.path().join("nowhere")), None);
    }

    #[test]
    fn what_is_no_tensorrt_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let search =
            |folder: &Path| LibrarySearch { folder: Some(folder.to_owned()), folders: Vec::new() };
        let Names { runtime, parser, .. } = NAMES;
        let error = open(&search(folder.path())).unwrap_err();
        assert!(error.message().contains(&format!("no {runtime}*")), "{error}");
        touch(folder.path(), runtime, ".1");
        touch(folder.path(), parser, ".1");
        let error = open(&search(folder.path())).unwrap_err();
        assert!(error.message().contains(&format!("{runtime}.1 (")), "{error}");
        assert!(error.message().contains(LIBRARY_VARIABLE), "{error}");
        assert!(version_of(Path::new("libm.so.6")).unwrap_err().contains("not TensorRT"));
    }
}
