//! Reading the small files of a stage's folder, and memory for sizes that come from outside.

use std::path::Path;

use imprompt_error::{Error, Kind, Result};

/// Checks that a model's version folder holds files and folders alone, and that no link leads out of it:
/// a package comes from elsewhere, and opening a pipe waits for ever.
///
/// # Errors
/// `BadModel` naming the entry.
pub(crate) fn check_folder(folder: &Path) -> Result<()> {
    let whole = folder.canonicalize().map_err(|error| failed(folder, &error))?;
    let mut folders = vec![whole.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|error| failed(&folder, &error))? {
            let path = entry.map_err(|error| failed(&folder, &error))?.path();
            let name = path.strip_prefix(&whole).unwrap_or(&path).display();
            let real = path.canonicalize().map_err(|error| failed(&path, &error))?;
            if !real.starts_with(&whole) {
                return Err(Error::bad_model(format!("{name}: a link out of the model's folder")));
            }
            // The link's own folder is visited anyway.
            let kind = path.symlink_metadata().map_err(|error| failed(&path, &error))?;
            if kind.is_dir() {
                folders.push(path);
            } else if !real.is_file() && !real.is_dir() {
                return Err(Error::bad_model(format!("{name}: neither a file nor a folder")));
            }
        }
    }
    Ok(())
}

fn failed(path: &Path, error: &std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::OutOfMemory => Kind::OutOfMemory,
        _ => Kind::BadModel,
    };
    Error::new(kind, format!("{}: {error}", path.file_name().unwrap_or(path.as_os_str()).display()))
}

/// The text of `folder/name`. The name comes from the repository's own stage
/// file, yet may not lead out of the folder.
pub(crate) fn text(folder: &Path, name: &str) -> Result<String> {
    let path = inside(folder, name)?;
    std::fs::read_to_string(&path).map_err(|error| failed(&path, &error))
}

/// The path of `name` in `folder`.
pub(crate) fn inside(folder: &Path, name: &str) -> Result<std::path::PathBuf> {
    let path = Path::new(name);
    let plain = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if name.is_empty() || !plain {
        return Err(Error::bad_model(format!(
            "stage.json: file name of {} bytes leads out of the folder",
            name.len()
        )));
    }
    Ok(folder.join(path))
}

/// `length` zeros, or an out-of-memory error for `what`: an allocation whose size
/// a request chose must not end the process when it fails.
pub(crate) fn zeros(length: usize, what: &str) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    values.try_reserve_exact(length).map_err(|_| Error::out_of_memory(what))?;
    values.resize(length, 0.0);
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_folder_has_files_and_links_to_its_own_files() {
        let outside = tempfile::tempdir().unwrap();
        let folder = outside.path().join("1");
        std::fs::create_dir_all(folder.join("tokenizer")).unwrap();
        std::fs::write(folder.join("tokenizer/vocab.json"), "{}").unwrap();
        symlink("tokenizer", folder.join("other")).unwrap();
        symlink("other/vocab.json", folder.join("vocab.json")).unwrap();
        check_folder(&folder).unwrap();
        // The folder itself may be a link: Kubernetes mounts volumes so.
        symlink("1", outside.path().join("2")).unwrap();
        check_folder(&outside.path().join("2")).unwrap();

        let refused = |name: &str, why: &str| {
            let error = check_folder(&folder).unwrap_err();
            assert!(error.message().starts_with(name), "{error}");
            assert!(error.message().contains(why), "{error}");
            std::fs::remove_file(folder.join(name)).unwrap();
        };
        symlink("../../..", folder.join("tokenizer/up")).unwrap();
        refused("tokenizer/up", "out of the model's folder");
        symlink("/etc/passwd", folder.join("weights")).unwrap();
        refused("weights", "out of the model's folder");
        symlink("weights", folder.join("weights")).unwrap();
        refused("weights", "");
        let socket = std::os::unix::net::UnixListener::bind(folder.join("weights")).unwrap();
        refused("weights", "neither a file nor a folder");
        drop(socket);
        check_folder(&folder).unwrap();
    }
}
