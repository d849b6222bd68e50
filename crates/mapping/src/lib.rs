//! The one function that maps a file into memory.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use imprompt_error::{Error, Kind, Result};
use memmap2::Mmap;

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
}
