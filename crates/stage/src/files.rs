//! Reading the small files of a stage's folder, and memory for sizes that come from outside.

use std::path::Path;

use imprompt_error::{Error, Kind, Result};

/// The text of `folder/name`. The name comes from the repository's own stage
/// file, yet may not lead out of the folder.
pub(crate) fn text(folder: &Path, name: &str) -> Result<String> {
    std::fs::read_to_string(inside(folder, name)?).map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::OutOfMemory => Kind::OutOfMemory,
            _ => Kind::BadModel,
        };
        Error::new(kind, format!("{name}: {error}"))
    })
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
