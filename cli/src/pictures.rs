//! Which pictures PATHs mean.

use std::path::{Path, PathBuf};

use crate::talk::{Failure, Result};

/// Suffixes taken from a folder. A file that is named itself is taken whatever it is called.
const SUFFIXES: [&str; 6] = ["bmp", "gif", "jpeg", "jpg", "png", "webp"];

/// Files larger than this are no pictures that anybody serves.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// The pictures of `paths`: each file, and the pictures of each folder in the order of
/// their names. What cannot be listed is in the list as its failure.
pub fn list(paths: &[PathBuf]) -> Vec<(PathBuf, Result<()>)> {
    let mut pictures = Vec::new();
    for path in paths {
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => match folder(path) {
                Ok(found) => pictures.extend(found.into_iter().map(|path| (path, Ok(())))),
                Err(failure) => pictures.push((path.clone(), Err(failure))),
            },
            Ok(_) => pictures.push((path.clone(), Ok(()))),
            Err(error) => pictures.push((path.clone(), Err(Failure::new(error)))),
        }
    }
    pictures
}

fn folder(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Failure::new)? {
        let path = entry.map_err(Failure::new)?.path();
        let suffix = path.extension().unwrap_or_default().to_ascii_lowercase();
        if SUFFIXES.iter().any(|known| suffix == *known) && path.is_file() {
            found.push(path);
        }
    }
    if found.is_empty() {
        return Err(Failure::new(format!(
            "no pictures (*.{}) in this folder",
            SUFFIXES.join(", *.")
        )));
    }
    found.sort();
    Ok(found)
}

/// The bytes of a picture.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::metadata(path).map_err(Failure::new)?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(Failure::new(format!("{bytes} bytes, at most {MAX_FILE_BYTES} are read")));
    }
    std::fs::read(path).map_err(Failure::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_give_their_pictures_by_name() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.PNG", "a.jpg", "notes.txt", "c.webp"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::create_dir(folder.path().join("d.png")).unwrap();
        let missing = PathBuf::from("/nowhere.png");
        let named = folder.path().join("notes.txt");
        let list = list(&[folder.path().to_owned(), missing, named]);
        let names: Vec<_> =
            list.iter().map(|(path, _)| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.jpg", "b.PNG", "c.webp", "nowhere.png", "notes.txt"]);
        let fine: Vec<_> = list.iter().map(|(_, result)| result.is_ok()).collect();
        assert_eq!(fine, [true, true, true, false, true]);
    }

    #[test]
    fn a_folder_without_pictures_is_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        assert!(list(&[folder.path().to_owned()])[0].1.is_err());
    }
}
