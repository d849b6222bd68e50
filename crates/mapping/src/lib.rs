//! The one place that maps files into memory.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use imprompt_error::{Error, Kind, Result};
pub use memmap2::Mmap;

/// The bytes of `path`, mapped: they are read when touched, and shared with every
/// process that maps the same file.
///
/// The files of a repository are replaced whole (written aside, then renamed), never
/// changed in place; an owner who truncates one while it is served ends the process.
///
/// # Errors
/// `NotFound` or `BadModel` naming the file.
pub fn map_file(path: &Path) -> Result<Arc<Mmap>> {
    let failed = |error: std::io::Error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            std::io::ErrorKind::OutOfMemory => Kind::OutOfMemory,
            _ => Kind::BadModel,
        };
        let name = path.file_name().unwrap_or(path.as_os_str()).display();
        Error::new(kind, format!("{name}: {error}"))
    };
    let file = File::open(path).map_err(failed)?;
    // SAFETY: the mapping is read-only and private to its `Mmap`; that nobody changes the file
    // underneath is the promise of whoever owns the repository, as stated above.
    let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
    Ok(Arc::new(map))
}

/// Device and inode: the same file under whatever name.
type Identity = (u64, u64);

static SHARED: Mutex<Option<HashMap<Identity, Weak<Mmap>>>> = Mutex::new(None);

/// [`map_file`], once for all in this process who have the file open: stages and instances hold
/// the same weights under names of their own, hard links of one file.
///
/// # Errors
/// As [`map_file`].
pub fn map_shared(path: &Path) -> Result<Arc<Mmap>> {
    let Ok(metadata) = std::fs::metadata(path) else { return map_file(path) };
    let identity = (metadata.dev(), metadata.ino());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let shared = shared.get_or_insert_default();
    let known = shared.get(&identity).and_then(Weak::upgrade);
    if let Some(file) = known.filter(|file| file.len() as u64 == metadata.len()) {
        return Ok(file);
    }
    shared.retain(|_, file| file.strong_count() > 0);
    let file = map_file(path)?;
    shared.insert(identity, Arc::downgrade(&file));
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_the_bytes_and_names_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.safetensors");
        std::fs::write(&path, b"bytes").unwrap();
        assert_eq!(&map_file(&path).unwrap()[..], b"bytes");
        let error = map_file(&folder.path().join("none.txt")).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.message().starts_with("none.txt: "));
    }

    #[test]
    fn one_file_is_mapped_once_under_all_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
        std::fs::write(&first, b"weights").unwrap();
        std::fs::hard_link(&first, &second).unwrap();
        let mapped = map_shared(&first).unwrap();
        assert!(Arc::ptr_eq(&mapped, &map_shared(&second).unwrap()));
        // A file that was replaced is another one.
        std::fs::remove_file(&first).unwrap();
        std::fs::write(&first, b"others!").unwrap();
        assert_eq!(&map_shared(&first).unwrap()[..], b"others!");
        assert_eq!(&mapped[..], b"weights");
        assert_eq!(map_shared(&folder.path().join("none")).unwrap_err().kind(), Kind::NotFound);
    }
}
