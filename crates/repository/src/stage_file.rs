//! stage.json of a built repository, read and written.

use std::path::Path;

use imprompt_error::{Error, Result};
use imprompt_stage::clip_text::ClipTextFile;
use imprompt_stage::{STAGE_FILE, StageFile};

use crate::files;

/// Reads that in `folder`.
pub(crate) fn read(folder: &Path) -> Result<StageFile> {
    let path = folder.join(STAGE_FILE);
    serde_json::from_str(&files::read_text(&path)?)
        .map_err(|error| Error::bad_model(format!("{}: {error}", path.display())))
}

/// That of the text encoder in `folder`.
pub(crate) fn read_text(folder: &Path) -> Result<ClipTextFile> {
    match read(folder)? {
        StageFile::ClipText(file) => Ok(file),
        _ => Err(wrong(folder)),
    }
}

/// The stage in `folder` is another one than its name says.
pub(crate) fn wrong(folder: &Path) -> Error {
    Error::bad_model(format!("{}: {STAGE_FILE} is that of another stage", folder.display()))
}

/// Writes it.
pub(crate) fn write(folder: &Path, file: &StageFile) -> Result<()> {
    let mut text = serde_json::to_string_pretty(file)
        .map_err(|error| Error::internal(format!("{STAGE_FILE}: {error}")))?;
    text.push('\n');
    files::write(&folder.join(STAGE_FILE), text.as_bytes())
}
