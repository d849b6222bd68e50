//! The cache that Hugging Face's tools share: `models--OWNER--NAME/` with `blobs/` named by what
//! they hold, `snapshots/COMMIT/` of links to them, and `refs/REVISION` with a commit.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::files;
use super::id::HubId;
use crate::talk::{Failure, Result};

/// One model's folder in the cache.
pub(super) struct ModelCache {
    root: PathBuf,
    locks: PathBuf,
    revision: String,
}

impl ModelCache {
    pub(super) fn new(cache: &Path, id: &HubId) -> Self {
        let folder = format!("models--{}", id.name.replace('/', "--"));
        ModelCache {
            root: cache.join(&folder),
            locks: cache.join(".locks").join(folder),
            revision: id.revision.clone(),
        }
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The file whose content is known as `etag`.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Its first part, while it is downloaded.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Keeps other processes from downloading the same file until the answer is dropped.
    pub(super) fn lock(&self, etag: &str, waiting: impl FnOnce()) -> Result<File> {
        use rustix::fs::{FlockOperation, flock};
        create(&self.locks)?;
        create(&self.root.join("blobs"))?;
        let path = self.locks.join(format!("{etag}.lock"));
        let options = File::options().create(true).truncate(false).write(true).open(&path);
        let file = options.map_err(|error| failed(&path, &error))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            waiting();
            flock(&file, FlockOperation::LockExclusive)
                .map_err(|error| failed(&path, &error.into()))?;
        }
        Ok(file)
    }

    /// Puts the blob `etag` into the snapshot of `commit` as `name`, which may lie in a subfolder
    /// of it.
    pub(super) fn link(&self, etag: &str, commit: &str, name: &str) -> Result<()> {
        let target = self.snapshot(commit).join(name);
        create(target.parent().unwrap_or(&self.root))?;
        // A link that leads nowhere: its blob was removed, and is there again.
        if target.is_symlink() {
            fs::remove_file(&target).map_err(|error| failed(&target, &error))?;
        }
        let up = "../".repeat(2 + name.matches('/').count());
        std::os::unix::fs::symlink(Path::new(&up).join("blobs").join(etag), &target)
            .map_err(|error| failed(&target, &error))
    }

    /// The revision is this commit.
    pub(super) fn remember(&self, commit: &str) -> Result<()> {
        if self.revision == commit {
            return Ok(());
        }
        let path = self.root.join("refs").join(&self.revision);
        create(path.parent().unwrap_or(&self.root))?;
        fs::write(&path, commit).map_err(|error| failed(&path, &error))
    }

    /// The snapshot of the revision, if it has a configuration and all weights.
    pub(super) fn whole(&self) -> Option<PathBuf> {
        let commit = fs::read_to_string(self.root.join("refs").join(&self.revision));
        // A commit has no ref: its snapshot has its name.
        let commit = commit.unwrap_or_else(|_| self.revision.clone());
        let folder = self.snapshot(commit.trim());
        files::is_whole(&folder).then_some(folder)
    }
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| failed(folder, &error))
}

/// A failure that names the path.
pub(super) fn failed(path: &Path, error: &std::io::Error) -> Failure {
    let failure = Failure::new(format!("{}: {error}", path.display()));
    match error.kind() {
        std::io::ErrorKind::StorageFull => {
            failure.hint("free some space, or set HF_HOME to a folder that has it")
        }
        _ => failure,
    }
}
