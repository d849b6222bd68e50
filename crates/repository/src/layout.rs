//! Names of the files and folders of a repository.

use std::path::Path;

/// Every model's version folder.
pub(crate) const VERSION: &str = "1";

/// The manifest of a repository.
pub const MANIFEST: &str = "imprompt.json";

/// Triton's configuration of a model.
pub const CONFIG: &str = "config.pbtxt";

/// Keeps an ensemble's empty version folder in archives and object stores,
/// which have no empty folders.
pub(crate) const KEEP: &str = ".keep";

/// The folder of a stage's label tables.
pub(crate) const TABLES: &str = "tables";

/// CLIP's image processor configuration.
pub(crate) const CLIP_PREPROCESSOR: &str = "clip_preprocessor_config.json";

/// The captioner's image processor configuration.
pub(crate) const CAPTION_PREPROCESSOR: &str = "caption_preprocessor_config.json";

/// CLIP's text tower in 8 bits, beside the one in full precision.
pub(crate) const SCREEN_GRAPH: &str = "clip_text_screen.onnx";

/// `REPOSITORY/STAGE/1` as `STAGE/1`, for messages.
pub(crate) fn shown(version_folder: &Path) -> String {
    let mut parts: Vec<_> = version_folder.iter().rev().take(2).collect();
    parts.reverse();
    parts.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}
