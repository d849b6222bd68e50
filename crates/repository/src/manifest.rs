//! `imprompt.json`: what a repository was built from, and what is in it.

use std::path::Path;

use imprompt_error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::files;
use crate::layout::MANIFEST;

/// The layout that this version writes and reads.
const LAYOUT: u32 = 1;

/// Files up to this size have their SHA-256 in the manifest; larger ones (weights)
/// their size, because a build reads no more of them than their header.
const HASHED_BYTES: u64 = 4 << 20;

/// The manifest of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of imprompt that built it.
    pub imprompt: String,
    /// Version of the folder layout.
    pub layout: u32,
    /// The CLIP, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<Source>,
    /// The captioner, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub captioner: Option<Source>,
    /// In how many bits the weights are kept, part by part, where not as the models have them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// The device that there are engines for, where it is not the processor: `gpu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Names of the ensembles.
    pub ensembles: Vec<String>,
    /// Names of the stages.
    pub stages: Vec<String>,
    /// The label tables.
    pub tables: Vec<TableEntry>,
    /// Every file but this one, by path.
    pub files: Vec<FileEntry>,
}

/// Where a model came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The folder's name, or the hub id.
    pub name: String,
    /// `architectures[0]` of its config.json, or its `model_type`; `open_clip` for a folder in
    /// open_clip's form.
    pub architecture: String,
    /// Of a CLIP: which probability `zero_shot` gives, `softmax` or `sigmoid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<String>,
}

/// One label table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableEntry {
    /// The name: what `vocabulary` of `zero_shot` says.
    pub name: String,
    /// How many labels.
    pub labels: usize,
    /// SHA-256 of the labels joined by `,`, as clip-interrogator computes it.
    pub hash: String,
    /// Identity of the text encoder that made the embeddings.
    pub encoder: String,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Path in the repository, with `/`.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256 of files up to 4 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl Manifest {
    /// A manifest of nothing yet, of this version.
    pub(crate) fn new() -> Self {
        Manifest {
            imprompt: env!("CARGO_PKG_VERSION").to_owned(),
            layout: LAYOUT,
            clip: None,
            captioner: None,
            precision: None,
            device: None,
            ensembles: vec![],
            stages: vec![],
            tables: vec![],
            files: vec![],
        }
    }

    /// The manifest of `repository`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when the folder is not a repository, [`Kind::BadModel`]
    /// when the manifest is not one, or of a newer layout.
    pub fn read(repository: &Path) -> Result<Self> {
        let path = repository.join(MANIFEST);
        let text = files::read_text(&path).map_err(|error| match error.kind() {
            Kind::NotFound => Error::not_found(format!(
                "{}: not a repository made by `imprompt build` (it has no {MANIFEST})",
                repository.display()
            )),
            _ => error,
        })?;
        let bad = |why: String| Error::bad_model(format!("{}: {why}", path.display()));
        let manifest: Manifest =
            serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        if manifest.layout > LAYOUT {
            return Err(bad(format!(
                "layout {}, this version of imprompt reads up to {LAYOUT}",
                manifest.layout
            )));
        }
        Ok(manifest)
    }

    /// Lists the files of `repository` anew and writes the manifest.
    pub(crate) fn write(&mut self, repository: &Path) -> Result<()> {
        self.files.clear();
        self.list(repository, "")?;
        self.files.sort_by(|one, other| one.path.cmp(&other.path));
        files::write(&repository.join(MANIFEST), self.to_text()?.as_bytes())
    }

    /// What stands in the file.
    ///
    /// # Errors
    /// [`Kind::Internal`] when it cannot be written as JSON.
    pub fn to_text(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::internal(format!("{MANIFEST}: {error}")))?;
        text.push('\n');
        Ok(text)
    }

    fn list(&mut self, root: &Path, under: &str) -> Result<()> {
        let folder = root.join(under);
        let failed = |error: &std::io::Error| files::io("list", &folder, error);
        for entry in std::fs::read_dir(&folder).map_err(|error| failed(&error))? {
            let entry = entry.map_err(|error| failed(&error))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if under.is_empty() { name } else { format!("{under}/{name}") };
            let kind = entry.file_type().map_err(|error| failed(&error))?;
            if kind.is_dir() {
                self.list(root, &path)?;
            } else if path != MANIFEST {
                let bytes = entry.metadata().map_err(|error| failed(&error))?.len();
                let small = bytes <= HASHED_BYTES;
                let sha256 = small.then(|| files::sha256(&entry.path())).transpose()?;
                self.files.push(FileEntry { path, bytes, sha256 });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_hashes_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("ranker/1")).unwrap();
        std::fs::write(folder.path().join("ranker/1/stage.json"), "abc").unwrap();
        let large =
            std::fs::File::create(folder.path().join("ranker/1/model.safetensors")).unwrap();
        large.set_len(HASHED_BYTES + 1).unwrap();
        let mut manifest = Manifest::new();
        manifest.write(folder.path()).unwrap();
        manifest.write(folder.path()).unwrap();
        let read = Manifest::read(folder.path()).unwrap();
        assert_eq!(read, manifest);
        let paths: Vec<_> = read.files.iter().map(|file| &*file.path).collect();
        assert_eq!(paths, ["ranker/1/model.safetensors", "ranker/1/stage.json"]);
        assert_eq!(read.files[0].sha256, None);
        assert_eq!(&read.files[1].sha256.as_ref().unwrap()[..8], "ba7816bf");
    }

    #[test]
    fn a_folder_without_manifest_and_a_newer_layout_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::read(folder.path()).unwrap_err().kind(), Kind::NotFound);
        let newer = Manifest { layout: LAYOUT + 1, ..Manifest::new() };
        let text = serde_json::to_string(&newer).unwrap();
        std::fs::write(folder.path().join(MANIFEST), text).unwrap();
        assert_eq!(Manifest::read(folder.path()).unwrap_err().kind(), Kind::BadModel);
    }
}
