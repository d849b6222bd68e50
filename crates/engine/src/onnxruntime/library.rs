//! Finding and checking the shared library before the `ort` crate is handed it:
//! that crate panics where the library is missing.

use std::ffi::CStr;
use std::path::{Path, PathBuf};

use imprompt_error::{Error, Result};
use libloading::Library;

/// Variables that name the library, the first that is set counts.
pub const LIBRARY_VARIABLES: [&str; 2] = ["IMPROMPT_ONNXRUNTIME", "ORT_DYLIB_PATH"];

/// The oldest 1.x that is opened: the oldest whose C API `ort` knows.
pub const MINIMUM_MINOR_VERSION: u32 = ort::MINOR_VERSION;

/// Where Triton's containers keep it.
const TRITON_LIBRARY: &str = "/opt/tritonserver/backends/onnxruntime/libonnxruntime.so";

/// What the system's loader is asked for.
const LOADER_NAMES: [&str; 2] = ["libonnxruntime.so", "libonnxruntime.so.1"];

/// Where to look for the library.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LibrarySearch {
    /// The library, or a folder that holds it. When given nothing else is
    /// tried; nor is it when a variable of [`LIBRARY_VARIABLES`] is set.
    pub path: Option<PathBuf>,
    /// Folders to try before the usual places, such as that of the own binary.
    pub folders: Vec<PathBuf>,
}

/// A library that is open and new enough.
#[derive(Debug)]
pub struct Opened {
    /// What the loader opens it by.
    pub name: PathBuf,
    /// The file behind it.
    pub file: String,
    /// Its version.
    pub version: String,
    /// Keeps it open.
    _library: Library,
}

/// What keeps ONNX Runtime from sending data about models and the machine to its
/// makers. Since 1.29 the official builds for Linux do that from the moment on in
/// which the environment is created; `DisableTelemetryEvents`, which needs one,
/// comes too late.
const TELEMETRY_VARIABLE: &str = "ORT_DISABLE_TELEMETRY";

/// Opens the first library that is found, with its telemetry off.
///
/// # Errors
/// `NotFound` naming what was tried; `Unsupported` when one is too old.
pub fn open(search: &LibrarySearch) -> Result<Opened> {
    if std::env::var_os(TELEMETRY_VARIABLE).is_none() {
        // SAFETY: what could go wrong is a thread of other than Rust code that reads
        // the environment at this very moment. It is written once a process, by the
        // first who opens the library (`OPENING` is locked), which in a server is
        // while models load, and glibc leaves the memory of the first environment
        // as it is.
        unsafe { std::env::set_var(TELEMETRY_VARIABLE, "1") };
    }
    let named =
        search.path.clone().map(|path| ("the configuration".to_owned(), path)).or_else(|| {
            LIBRARY_VARIABLES.into_iter().find_map(|variable| {
                let value = std::env::var_os(variable).filter(|value| !value.is_empty())?;
                Some((variable.to_owned(), PathBuf::from(value)))
            })
        });
    // A library that was asked for by name is the one to use: another in its
    // place would compute, but not what was asked for.
    let candidates = match &named {
        Some((_, path)) => in_place(path),
        None => usual_places(&search.folders),
    };
    let mut tried = Vec::new();
    for candidate in candidates {
        match open_one(&candidate) {
            Ok(opened) => return Ok(opened),
            Err(Refusal::NotOpened(why)) => tried.push(format!("{} ({why})", candidate.display())),
            Err(Refusal::Unfit(error)) => return Err(error),
        }
    }
    let by = named.map_or(String::new(), |(who, _)| format!(" named by {who}"));
    Err(Error::not_found(format!(
        "the ONNX Runtime library{by} could not be opened; tried {}; set {} to a \
         libonnxruntime.so of version 1.{MINIMUM_MINOR_VERSION} or later",
        tried.join(", "),
        LIBRARY_VARIABLES[0],
    )))
}

/// A path given by name: the file, or what a folder holds.
fn in_place(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() {
        return match in_folder(path) {
            found if found.is_empty() => vec![path.join("libonnxruntime.so")],
            found => found,
        };
    }
    vec![std::path::absolute(path).unwrap_or_else(|_| path.to_owned())]
}

fn usual_places(folders: &[PathBuf]) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = folders.iter().flat_map(|folder| in_folder(folder)).collect();
    places.push(PathBuf::from(TRITON_LIBRARY));
    places.extend(LOADER_NAMES.map(PathBuf::from));
    places
}

/// `libonnxruntime.so` of `folder`, and the versioned names where it has only
/// those (as a wheel does), newest last name first.
fn in_folder(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
                name == "libonnxruntime.so" || name.starts_with("libonnxruntime.so.")
            })
        })
        .map(|path| std::path::absolute(&path).unwrap_or(path))
        .collect();
    found.sort();
    found
}

enum Refusal {
    /// Nothing that opens is there.
    NotOpened(String),
    /// It opens, and cannot serve.
    Unfit(Error),
}

fn open_one(name: &Path) -> std::result::Result<Opened, Refusal> {
    if name.is_absolute() && !name.exists() {
        return Err(Refusal::NotOpened("no such file".to_owned()));
    }
    // SAFETY: opening a library runs its initialisers. The file was named by
    // the user, or is the one the system keeps under the library's name.
    let library = unsafe { Library::new(name) }
        .map_err(|error| Refusal::NotOpened(error.to_string().replace('\n', " ")))?;
    type GetApiBase = unsafe extern "C" fn() -> *const ort::sys::OrtApiBase;
    // SAFETY: `OrtGetApiBase` has had this signature in every version.
    let base = unsafe { library.get::<GetApiBase>(b"OrtGetApiBase\0") };
    let get_api_base = *base.map_err(|_| {
        Refusal::NotOpened("does not export OrtGetApiBase: not ONNX Runtime".to_owned())
    })?;
    // SAFETY: the function takes nothing and gives a static struct or null,
    // whose two fields have not changed since the first version.
    let base = unsafe { get_api_base().as_ref() };
    let base = base.ok_or_else(|| Refusal::NotOpened("gives no API".to_owned()))?;
    // SAFETY: the function gives a static C string.
    let version = unsafe { CStr::from_ptr((base.GetVersionString)()) };
    let version = version.to_string_lossy().into_owned();
    let file = mapped_file(get_api_base as usize).unwrap_or_else(|| name.display().to_string());
    // SAFETY: asking for an API version gives a static struct, or null where
    // the library is older.
    let api = unsafe { (base.GetApi)(ort::sys::ORT_API_VERSION) };
    if api.is_null() || minor_version(&version).is_none_or(|minor| minor < MINIMUM_MINOR_VERSION) {
        return Err(Refusal::Unfit(Error::unsupported(format!(
            "{file} is ONNX Runtime {version}; 1.{MINIMUM_MINOR_VERSION} or later is needed"
        ))));
    }
    Ok(Opened { name: name.to_owned(), file, version, _library: library })
}

/// The minor number of a 1.x version.
fn minor_version(version: &str) -> Option<u32> {
    let mut parts = version.split('.');
    match parts.next()?.parse::<u32>().ok()? {
        1 => parts.next()?.parse().ok(),
        0 => None,
        _ => Some(u32::MAX),
    }
}

/// The file that is mapped at `address`: a name of the loader's search path does
/// not say which file it found.
fn mapped_file(address: usize) -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        let file = &rest[rest.find('/')?..];
        (start..end).contains(&address).then(|| file.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(minor_version("1.32.0"), Some(32));
        assert_eq!(minor_version("1.9.1"), Some(9));
        assert_eq!(minor_version("2.0.0"), Some(u32::MAX));
        assert_eq!(minor_version("nonsense"), None);
    }

    #[test]
    fn a_folder_is_searched() {
        let folder = tempfile::tempdir().unwrap();
        assert!(in_folder(folder.path()).is_empty());
        for name in ["libonnxruntime.so.1.32.0", "libonnxruntime_providers_shared.so", "x.so"] {
            std::fs::write(folder.path().join(name), b"").unwrap();
        }
        assert_eq!(in_folder(folder.path()), [folder.path().join("libonnxruntime.so.1.32.0")]);
    }

    #[test]
    fn a_named_library_is_the_only_one_tried() {
        let search = LibrarySearch {
            path: Some("/nonexistent/libonnxruntime.so".into()),
            folders: vec!["/also/not".into()],
        };
        let error = open(&search).unwrap_err();
        assert_eq!(error.kind(), imprompt_error::Kind::NotFound);
        assert!(error.message().contains("/nonexistent/libonnxruntime.so (no such file)"));
        assert!(!error.message().contains("/opt/"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_library_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libonnxruntime.so");
        std::fs::write(&path, b"not ELF").unwrap();
        let search = LibrarySearch { path: Some(folder.path().to_owned()), folders: Vec::new() };
        let error = open(&search).unwrap_err();
        assert_eq!(error.kind(), imprompt_error::Kind::NotFound);
        assert!(error.message().contains("libonnxruntime.so"), "{error}");
    }
}
