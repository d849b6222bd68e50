//! Whether a library is whole. A server that opens one that was cut short, by an upload that broke
//! off, ends with all its models before a line of ours runs: the loader maps what the file does not have.

use std::fs::File;
use std::path::Path;

use imprompt_error::{Error, Result};
use imprompt_repository::files::io;
use object::LittleEndian as Little;
use object::elf::{EM_X86_64, ET_DYN, FileHeader64};
use object::read::ReadCache;
use object::read::elf::{FileHeader as _, ProgramHeader as _};

/// Checks that `path` is a library for x86-64 and has all that is loaded of it.
///
/// # Errors
/// `NotFound` or `BadModel` naming the file.
pub(crate) fn check(path: &Path) -> Result<()> {
    let refused = |why: String| Error::bad_model(format!("{}: {why}", path.display()));
    let file = File::open(path).map_err(|error| io("open", path, &error))?;
    let bytes = file.metadata().map_err(|error| io("open", path, &error))?.len();
    let data = ReadCache::new(file);
    let no_library = |_| refused("no library for Linux on x86-64".to_owned());
    let header = FileHeader64::<Little>::parse(&data).map_err(no_library)?;
    if header.e_type(Little) != ET_DYN || header.e_machine(Little) != EM_X86_64 {
        return Err(refused("no library for Linux on x86-64".to_owned()));
    }
    for segment in header.program_headers(Little, &data).map_err(no_library)? {
        let (offset, length) = segment.file_range(Little);
        if offset.checked_add(length).is_none_or(|end| end > bytes) {
            return Err(refused(format!(
                "cut short: {bytes} bytes, of which {length} are loaded from {offset} on"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use imprompt_error::Kind;

    #[test]
    fn a_library_is_whole_or_refused() {
        // A program of today is a library, too, as far as the loader is concerned.
        let whole = std::env::current_exe().unwrap();
        check(&whole).unwrap();
        let bytes = std::fs::read(&whole).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libtriton_imprompt.so");
        for (length, said) in
            [(0, "no library"), (40, "no library"), (100, "no library"), (5_000, "cut short")]
        {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let error = check(&path).unwrap_err();
            assert_eq!(error.kind(), Kind::BadModel);
            assert!(error.message().contains(said), "{length}: {error}");
        }
        std::fs::write(&path, "text").unwrap();
        assert!(check(&path).is_err());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(check(&path).unwrap_err().kind(), Kind::NotFound);
    }
}
