//! Files and folders: errors that name the path, writes that are whole or
//! absent, and weights that are on the disk once however many stages use them.

use std::collections::HashMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use imprompt_error::{Error, Kind, Result};
use sha2::{Digest as _, Sha256};

use crate::progress::{Progress, Unit};

/// Bytes copied between two reports of progress.
const COPY_BLOCK: usize = 1 << 20;

/// An I/O failure as this project's error: what was done to which path.
pub fn io(doing: &str, path: &Path, error: &std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => Kind::NotFound,
        std::io::ErrorKind::OutOfMemory => return Error::out_of_memory(path.display()),
        _ => Kind::Internal,
    };
    Error::new(kind, format!("{}: {doing}: {error}", path.display()))
}

pub(crate) fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|error| io("create the folder", path, &error))
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| io("read", path, &error))
}

pub(crate) fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| io("read", path, &error))
}

/// Writes `bytes` beside `path` and renames: a reader sees the old file or the new one.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let failed = |error: &std::io::Error| io("write", path, error);
    let mut file = tempfile::NamedTempFile::new_in(parent).map_err(|error| failed(&error))?;
    file.write_all(bytes).map_err(|error| failed(&error))?;
    readable(file.as_file()).map_err(|error| failed(&error))?;
    file.persist(path).map_err(|error| failed(&error.error))?;
    Ok(())
}

/// A temporary file is its owner's alone; a repository is read by the server's user too.
fn readable(file: &fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

/// SHA-256 of a whole file, in hexadecimal, reading a block at a time.
///
/// # Errors
/// Those of [`io`].
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).map_err(|error| io("open", path, &error))?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; COPY_BLOCK];
    loop {
        let count = file.read(&mut block).map_err(|error| io("read", path, &error))?;
        if count == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&block[..count]);
    }
}

/// Bytes of a weight file that count for its identity: all of a small file, and
/// evenly spread blocks of a large one, because reading gigabytes would take longer than the
/// rest of the build.
pub(crate) const SAMPLES: u64 = 256;
pub(crate) const SAMPLE_BYTES: u64 = 64 << 10;

/// Feeds `hasher` with the size of a file and with its bytes, or evenly spread blocks of them.
pub(crate) fn sample(path: &Path, hasher: &mut Sha256) -> Result<()> {
    sample_blocks(path, hasher).map_err(|error| io("read", path, &error))
}

fn sample_blocks(path: &Path, hasher: &mut Sha256) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::open(path)?;
    let bytes = file.metadata()?.len();
    hasher.update(bytes.to_le_bytes());
    let stride = bytes.div_ceil(SAMPLES).max(SAMPLE_BYTES);
    let mut block = vec![0; SAMPLE_BYTES as usize];
    let mut offset = 0;
    while offset < bytes {
        let mut filled = 0;
        while filled < block.len() {
            match file.read_at(&mut block[filled..], offset + filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        hasher.update(&block[..filled]);
        offset += stride;
    }
    Ok(())
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Puts large files into a repository: as hard links where the file system
/// allows, as one copy (and hard links to that) where it does not.
pub(crate) struct Placer<'a> {
    copy: bool,
    /// Source to its first place in the repository.
    placed: HashMap<PathBuf, PathBuf>,
    progress: &'a dyn Progress,
    /// Bytes that had to be copied.
    pub(crate) copied: u64,
}

impl<'a> Placer<'a> {
    pub(crate) fn new(copy: bool, progress: &'a dyn Progress) -> Self {
        Placer { copy, placed: HashMap::new(), progress, copied: 0 }
    }

    /// `source` appears at `target`, which does not exist yet.
    pub(crate) fn place(&mut self, source: &Path, target: &Path) -> Result<()> {
        // A hub's cache holds symbolic links to its blobs; a link to a link
        // would lead out of the repository, which ONNX Runtime refuses.
        let source = source.canonicalize().map_err(|error| io("open", source, &error))?;
        if let Some(first) = self.placed.get(&source)
            && fs::hard_link(first, target).is_ok()
        {
            return Ok(());
        }
        if self.copy || fs::hard_link(&source, target).is_err() {
            self.copy(&source, target)?;
        }
        self.placed.insert(source, target.to_owned());
        Ok(())
    }

    fn copy(&mut self, source: &Path, target: &Path) -> Result<()> {
        let failed =
            |error: &std::io::Error| io(&format!("copy to {}", target.display()), source, error);
        let mut from = fs::File::open(source).map_err(|error| failed(&error))?;
        let mut to = fs::File::create_new(target).map_err(|error| failed(&error))?;
        let bytes = from.metadata().map_err(|error| failed(&error))?.len();
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        self.progress.start(&format!("copying {name}"), bytes, Unit::Bytes);
        let mut block = vec![0; COPY_BLOCK];
        loop {
            let count = from.read(&mut block).map_err(|error| failed(&error))?;
            if count == 0 {
                break;
            }
            to.write_all(&block[..count]).map_err(|error| failed(&error))?;
            self.progress.advance(count as u64);
            self.copied += count as u64;
        }
        self.progress.finish();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn links_share_an_inode_and_copies_are_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("model.safetensors");
        fs::write(&source, vec![7; 3 << 20]).unwrap();
        let link = folder.path().join("link.safetensors");
        std::os::unix::fs::symlink(&source, &link).unwrap();
        for copy in [false, true] {
            let mut placer = Placer::new(copy, &Silent);
            let targets = ["a", "b"].map(|name| folder.path().join(format!("{name}{copy}")));
            for target in &targets {
                placer.place(&link, target).unwrap();
            }
            let inodes =
                targets.each_ref().map(|target| fs::symlink_metadata(target).unwrap().ino());
            assert_eq!(inodes[0], inodes[1]);
            assert_eq!(inodes[0] == fs::metadata(&source).unwrap().ino(), !copy);
            assert_eq!(placer.copied, if copy { 3 << 20 } else { 0 });
            assert_eq!(sha256(&targets[1]).unwrap(), sha256(&source).unwrap());
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read(Path::new("/nowhere/config.json")).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.message().starts_with("/nowhere/config.json: read: "), "{error}");
    }

    #[test]
    fn the_digest_is_sha256() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(file.path()).unwrap(), expected);
    }
}
