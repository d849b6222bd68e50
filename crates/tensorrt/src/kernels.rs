//! The kernels that TensorRT-RTX has compiled for the card at hand, kept beside the engine so that
//! the next start has them. All of it is best effort: without them they are compiled again.

use std::path::{Path, PathBuf};

use crate::context::Loaded;

/// `NAME.engine.cache` of the graph `NAME.onnx`.
pub(crate) fn file(graph: &Path) -> PathBuf {
    graph.with_extension("engine.cache")
}

/// Those that were kept.
pub(crate) fn read(graph: &Path) -> Option<Vec<u8>> {
    std::fs::read(file(graph)).ok().filter(|bytes| !bytes.is_empty())
}

/// Keeps those of `engine`, where they are more than what is kept.
pub(crate) fn keep(graph: &Path, engine: &Loaded) {
    match engine.kernels() {
        Ok(kernels) => write(&file(graph), &kernels, engine.has_stale_kernels()),
        Err(error) => tracing::debug!(target: "tensorrt", "{error}"),
    }
}

/// Replaces `path` by `bytes` where that makes it longer, or is stale: a file that is written again and
/// again would have a server that polls its repository load the model again and again.
fn write(path: &Path, bytes: &[u8], is_stale: bool) {
    let kept = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    if bytes.is_empty() || (!is_stale && bytes.len() as u64 <= kept) {
        return;
    }
    let aside = path.with_extension(format!("cache.{}", std::process::id()));
    let written = std::fs::write(&aside, bytes).and_then(|()| std::fs::rename(&aside, path));
    if let Err(error) = written {
        // Such as a folder that is mounted read-only. What could not be removed was not there.
        let _ = std::fs::remove_file(&aside);
        tracing::debug!(target: "tensorrt", "{} is not kept: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_kept_when_there_are_more() {
        let folder = tempfile::tempdir().unwrap();
        let graph = folder.path().join("clip_text.onnx");
        let kept = folder.path().join("clip_text.engine.cache");
        assert_eq!(file(&graph), kept);
        assert_eq!(read(&graph), None);
        write(&kept, b"", false);
        assert!(!kept.exists());
        write(&kept, b"few", false);
        assert_eq!(read(&graph).unwrap(), b"few");
        write(&kept, b"new", false);
        assert_eq!(read(&graph).unwrap(), b"few");
        write(&kept, b"more", false);
        assert_eq!(read(&graph).unwrap(), b"more");
        write(&kept, b"other", true);
        write(&kept, b"", true);
        assert_eq!(read(&graph).unwrap(), b"other");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        write(&folder.path().join("nowhere/clip_text.engine.cache"), b"lost", false);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
