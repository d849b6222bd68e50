//! From a repository and the name of an ensemble to a package.

use std::fs::File;
use std::io::BufWriter;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::archive::Archive;
use crate::members::{Content, Members};
use imprompt_error::{Error, Result};
use imprompt_repository::files::{io, sha256};
use imprompt_repository::{CONFIG, FileEntry, MANIFEST, Manifest, Progress, Unit};
use imprompt_stage::StageKind;
use imprompt_stage::ensemble::Ensemble;

/// The line of a stage's configuration that names the backend.
const BACKEND_LINE: &str = "backend: \"imprompt\"\n";

/// What to pack.
#[derive(Clone, Debug)]
pub struct PackRequest {
    /// The repository.
    pub repository: PathBuf,
    /// The ensemble.
    pub ensemble: String,
    /// libtriton_imprompt.so.
    pub library: PathBuf,
    /// Libraries to put beside it, such as libonnxruntime.so.
    pub companions: Vec<PathBuf>,
    /// The package. One that is there is replaced when the new one is complete.
    pub out: PathBuf,
    /// gzip's level, 0 to 9.
    pub level: u32,
}

/// A package that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// What is in it: the repository's manifest, as far as it was packed.
    pub manifest: Manifest,
    /// The library's name in it.
    pub library: String,
    /// Bytes of the package.
    pub bytes: u64,
}

/// Packs an ensemble with the stages it needs. Reads every file once and keeps none in memory.
///
/// # Errors
/// `NotFound` when there is no such repository, ensemble or library; `BadModel` naming a library that is
/// none or cut short; `Unsupported` naming what
/// is no plain file, or a configuration without the backend's line; what reading and writing
/// files fails with.
pub fn pack(request: &PackRequest, progress: &dyn Progress) -> Result<Packed> {
    let mut manifest = Manifest::read(&request.repository)?;
    let has = |kind: StageKind| manifest.stages.iter().any(|stage| stage == kind.name());
    let ensemble = Ensemble::all()
        .filter(|ensemble| manifest.ensembles.iter().any(|name| name == ensemble.name))
        .find(|ensemble| ensemble.name == request.ensemble && ensemble.is_possible(has))
        .ok_or_else(|| {
            Error::not_found(format!(
                "{}: no such ensemble; it has {}",
                request.repository.display(),
                manifest.ensembles.join(", ")
            ))
        })?;
    let needed = |stage: &String| ensemble.steps.iter().any(|step| step.stage.name() == stage);
    manifest.ensembles = vec![ensemble.name.to_owned()];
    manifest.stages.retain(needed);

    for library in [&request.library].into_iter().chain(&request.companions) {
        crate::library::check(library)?;
    }
    let library = library_name(&request.library)?;
    let mut members = Members::default();
    members.add_folder(&request.repository.join(ensemble.name), ensemble.name)?;
    for stage in &manifest.stages {
        let folder = request.repository.join(stage);
        members.add_folder(&folder, stage)?;
        let config = with_runtime(&folder.join(CONFIG), &library)?;
        members.add_bytes(format!("{stage}/{CONFIG}"), config.into_bytes());
        members.add_file(&request.library, format!("{stage}/{library}"))?;
        for companion in &request.companions {
            members.add_file(companion, format!("{stage}/{}", file_name(companion)?))?;
        }
    }
    let bytes = write(request, &members, &mut manifest, progress)?;
    Ok(Packed { manifest, library, bytes })
}

/// Writes the package beside its place and puts it there. Fills in the manifest's files.
fn write(
    request: &PackRequest,
    members: &Members,
    manifest: &mut Manifest,
    progress: &dyn Progress,
) -> Result<u64> {
    let out = &request.out;
    let failed = |error: &std::io::Error| io("write", out, error);
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut file = tempfile::NamedTempFile::new_in(parent.unwrap_or(Path::new(".")))
        .map_err(|error| failed(&error))?;
    let mut archive = Archive::new(BufWriter::new(file.as_file_mut()), request.level);
    let contents = members.contents();
    let total = contents.iter().map(|(_, content)| content.bytes()).sum();
    progress.start(&format!("packing {}", request.ensemble), total, Unit::Bytes);
    let advance = |bytes| progress.advance(bytes);
    manifest.files.clear();
    for (path, content) in contents {
        let path = path.to_owned();
        let bytes = content.bytes();
        let entry = match content {
            Content::Link(first) => {
                archive.link(&path, &first).map_err(|error| failed(&error))?;
                let linked = manifest.files.iter().find(|file| file.path == first);
                let lost = || Error::internal(format!("{path}: a link to no member"));
                FileEntry { path: path.clone(), ..linked.cloned().ok_or_else(lost)? }
            }
            Content::Bytes(content) => {
                let hash = archive.file(&path, content.as_slice(), bytes, &advance);
                FileEntry { path, bytes, sha256: Some(hash.map_err(|error| failed(&error))?) }
            }
            Content::File(source, _) => {
                let content = File::open(&source).map_err(|error| io("open", &source, &error))?;
                let hash = archive.file(&path, content, bytes, &advance);
                let hash = hash.map_err(|error| io("pack", &source, &error))?;
                FileEntry { path, bytes, sha256: Some(hash) }
            }
        };
        manifest.files.push(entry);
    }
    let text = manifest.to_text()?;
    archive
        .file(MANIFEST, text.as_bytes(), text.len() as u64, &|_| ())
        .and_then(|_| archive.finish())
        .and_then(|buffer| buffer.into_inner().map_err(std::io::IntoInnerError::into_error))
        .map_err(|error| failed(&error))?;
    progress.finish();
    // A temporary file is its owner's alone.
    file.as_file()
        .set_permissions(std::fs::Permissions::from_mode(0o644))
        .map_err(|error| failed(&error))?;
    let bytes = file.as_file().metadata().map_err(|error| failed(&error))?.len();
    file.persist(out).map_err(|error| failed(&error.error))?;
    Ok(bytes)
}

/// `libtriton_imprompt-VERSION-HASH.so`: another library has another name.
fn library_name(library: &Path) -> Result<String> {
    let hash = sha256(library)?;
    Ok(format!("libtriton_imprompt-{}-{}.so", env!("CARGO_PKG_VERSION"), &hash[..12]))
}

/// The configuration in `path` with the library's name.
fn with_runtime(path: &Path, library: &str) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(|error| io("read", path, &error))?;
    if text.matches(BACKEND_LINE).count() != 1
        || text.lines().any(|line| line.starts_with("runtime:"))
    {
        return Err(Error::unsupported(format!(
            "{}: needs one line `{}` and no `runtime`, which packing adds",
            path.display(),
            BACKEND_LINE.trim_end()
        )));
    }
    Ok(text.replace(BACKEND_LINE, &format!("{BACKEND_LINE}runtime: \"{library}\"\n")))
}

fn file_name(path: &Path) -> Result<&str> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.ok_or_else(|| Error::invalid(format!("{}: not a file", path.display())))
}
