//! What is to be pushed: files with their names in the store and their SHA-256.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use imprompt_repository::files::hex;
use imprompt_repository::{CONFIG, MANIFEST, Progress, Unit};
use sha2::{Digest as _, Sha256};

use crate::talk::{Failure, Result};

/// Bytes that are read at once.
const BLOCK: usize = 1 << 20;

/// A file to push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Where it is.
    pub path: PathBuf,
    /// Its path in the repository, or its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// Names of one file share this.
    pub identity: (u64, u64),
    modified: Option<SystemTime>,
}

impl Local {
    /// # Errors
    /// When the file is another than the one that was hashed.
    pub fn check_unchanged(&self) -> Result<()> {
        let metadata = fs::metadata(&self.path)
            .map_err(|error| Failure::new(error).of(self.path.display()))?;
        match metadata.len() == self.bytes && metadata.modified().ok() == self.modified {
            true => Ok(()),
            false => {
                Err(Failure::new(format!("{}: changed while it was pushed", self.path.display()))
                    .hint("run the same command again"))
            }
        }
    }

    /// True of what a server reads first: it is pushed last, when the rest is there.
    pub fn is_last(&self) -> bool {
        self.name == MANIFEST || Path::new(&self.name).file_name() == Some(CONFIG.as_ref())
    }
}

/// One package.
pub fn package(path: &Path, progress: &dyn Progress) -> Result<Local> {
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| is_plain(name));
    let name =
        name.ok_or_else(|| Failure::usage(format!("{}: no plain file name", path.display())))?;
    let mut found = Found::default();
    found.add(path, name.to_owned())?;
    let mut files = found.hashed(progress)?;
    files.pop().ok_or_else(|| Failure::new("no file"))
}

/// The files of a repository, by name.
///
/// # Errors
/// What cannot be read; links and special files by name, which could lead out of it; a backend's
/// library, which Triton does not load from a store.
pub fn repository(root: &Path, progress: &dyn Progress) -> Result<Vec<Local>> {
    let mut found = Found::default();
    found.folder(root, "")?;
    let is_backend = |name: &str| {
        let file = name.rsplit('/').next().unwrap_or(name);
        file.starts_with("libtriton_") && file.contains(".so")
    };
    if let Some((_, name, _)) = found.0.iter().find(|(_, name, _)| is_backend(name)) {
        return Err(Failure::new(format!(
            "{}: {name}: Triton loads no backend from an object store",
            root.display()
        ))
        .hint(
            "push the repository that `imprompt build` made, and install libtriton_imprompt.so on the server as \
             BACKEND_DIRECTORY/imprompt/libtriton_imprompt.so; or push a package (*.tar.gz)",
        ));
    }
    found.hashed(progress)
}

/// Path, name and facts of what was found.
#[derive(Default)]
struct Found(Vec<(PathBuf, String, Metadata)>);

impl Found {
    fn add(&mut self, path: &Path, name: String) -> Result<()> {
        let metadata =
            fs::metadata(path).map_err(|error| Failure::new(error).of(path.display()))?;
        self.0.push((path.to_owned(), name, metadata));
        Ok(())
    }

    fn folder(&mut self, folder: &Path, prefix: &str) -> Result<()> {
        let failed = |error: std::io::Error| Failure::new(error).of(folder.display());
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            let name = entry.file_name().into_string().ok().filter(|name| is_plain(name));
            let name =
                name.ok_or_else(|| Failure::new(format!("{}: no plain name", path.display())))?;
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                self.folder(&path, &format!("{prefix}{name}/"))?;
            } else if kind.is_file() {
                self.add(&path, format!("{prefix}{name}"))?;
            } else {
                return Err(Failure::new(format!(
                    "{}: a link or special file; files and folders alone are pushed",
                    path.display()
                )));
            }
        }
        Ok(())
    }

    /// Reads every file once, however many names it has.
    fn hashed(mut self, progress: &dyn Progress) -> Result<Vec<Local>> {
        self.0.sort_by(|a, b| a.1.cmp(&b.1));
        let identity = |metadata: &Metadata| (metadata.dev(), metadata.ino());
        let mut sizes: HashMap<_, u64> = HashMap::new();
        for (_, _, metadata) in &self.0 {
            sizes.insert(identity(metadata), metadata.len());
        }
        progress.start("reading", sizes.values().sum(), Unit::Bytes);
        let mut known: HashMap<(u64, u64), String> = HashMap::new();
        let mut files = vec![];
        for (path, name, metadata) in self.0 {
            let identity = identity(&metadata);
            let sha256 = match known.get(&identity) {
                Some(sha256) => sha256.clone(),
                None => sha256(&path, progress)?,
            };
            known.insert(identity, sha256.clone());
            let modified = metadata.modified().ok();
            files.push(Local { path, name, bytes: metadata.len(), sha256, identity, modified });
        }
        progress.finish();
        Ok(files)
    }
}

fn sha256(path: &Path, progress: &dyn Progress) -> Result<String> {
    let failed = |error: std::io::Error| Failure::new(error).of(path.display());
    let mut file = File::open(path).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut block = vec![0; BLOCK];
    loop {
        let count = file.read(&mut block).map_err(failed)?;
        if count == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&block[..count]);
        progress.advance(count as u64);
    }
}

/// True of a name that is the same in every store and no control sequence for a terminal.
fn is_plain(name: &str) -> bool {
    !name.chars().any(char::is_control) && !name.contains('\\')
}

#[cfg(test)]
mod tests {
    use super::*;
    use imprompt_repository::Silent;

    #[test]
    fn links_are_one_file_and_leave_the_repository_never() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("m/1")).unwrap();
        fs::write(at("m/1/weights"), "abc").unwrap();
        fs::hard_link(at("m/1/weights"), at("m/1/again")).unwrap();
        fs::write(at("m/config.pbtxt"), "").unwrap();
        let files = repository(folder.path(), &Silent).unwrap();
        let names: Vec<_> = files.iter().map(|file| &*file.name).collect();
        assert_eq!(names, ["m/1/again", "m/1/weights", "m/config.pbtxt"]);
        assert_eq!(files[0].identity, files[1].identity);
        assert!(files[0].sha256.starts_with("ba7816bf") && files[1].sha256 == files[0].sha256);
        assert_eq!([false, false, true], [0, 1, 2].map(|index| files[index].is_last()));
        files[0].check_unchanged().unwrap();
        fs::write(at("m/1/weights"), "abcd").unwrap();
        assert!(
            files[0]
                .check_unchanged()
                .unwrap_err()
                .message()
                .ends_with("changed while it was pushed")
        );
        std::os::unix::fs::symlink("/etc/passwd", at("m/1/link")).unwrap();
        assert!(
            repository(folder.path(), &Silent).unwrap_err().message().contains("m/1/link: a link")
        );
        fs::remove_file(at("m/1/link")).unwrap();
        fs::write(at("m/libtriton_imprompt-0.1.0-0123.so"), "").unwrap();
        let failure = repository(folder.path(), &Silent).unwrap_err();
        assert!(failure.message().contains("loads no backend from an object store"));
    }
}
