//! A model source: a folder as `save_pretrained` writes it.

use std::path::{Path, PathBuf};

use imprompt_error::{Error, Kind, Result};
use imprompt_graph::clip::open_clip;
use imprompt_picture::Preprocessor;
use imprompt_stage::captioner::QFORMER_TOKENIZER;
use serde_json::{Value, json};

use crate::files;
use crate::manifest::Source;

/// Tokenizer files; a folder has some of them.
pub const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
];

/// Files of the second tokenizer that a model has whose Q-Former reads the text: those of BERT's.
pub const QFORMER_TOKENIZER_FILES: [&str; 5] = [
    "qformer_tokenizer/tokenizer.json",
    "qformer_tokenizer/tokenizer_config.json",
    "qformer_tokenizer/special_tokens_map.json",
    "qformer_tokenizer/added_tokens.json",
    "qformer_tokenizer/vocab.txt",
];

/// Configurations; a folder has some of them.
pub const CONFIG_FILES: [&str; 4] =
    ["config.json", "generation_config.json", PREPROCESSOR, PROCESSOR];

/// Configuration and weights of a CLIP as open_clip keeps it.
pub const OPEN_CLIP_FILES: [&str; 2] = ["open_clip_config.json", "open_clip_model.safetensors"];

/// The image processor's configuration.
const PREPROCESSOR: &str = "preprocessor_config.json";

/// The processor's configuration, which newer versions of transformers write instead: the image
/// processor's is one of its values.
const PROCESSOR: &str = "processor_config.json";

/// A folder with config.json, weights, tokenizer and image processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFolder {
    path: PathBuf,
    name: String,
}

impl ModelFolder {
    /// The model in the folder `path`, known by the folder's name.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there is no such folder, or neither config.json nor
    /// open_clip_config.json in it.
    pub fn open(path: &Path) -> Result<Self> {
        let absolute = path.canonicalize().map_err(|error| files::io("open", path, &error))?;
        let name = absolute.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self::named(path, name)
    }

    /// The model in the folder `path`, known by `name`, such as its hub id.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn named(path: &Path, name: impl Into<String>) -> Result<Self> {
        if !path.join("config.json").is_file() && !path.join(open_clip::CONFIG).is_file() {
            return Err(Error::not_found(format!(
                "{}: not a model folder (it has no config.json, and no {})",
                path.display(),
                open_clip::CONFIG
            )));
        }
        Ok(ModelFolder { path: path.to_owned(), name: name.into() })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name by which the manifest knows the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// True for a CLIP in open_clip's form.
    pub(crate) fn is_open_clip(&self) -> bool {
        open_clip::is_folder(&self.path)
    }

    /// What the manifest says of it.
    pub(crate) fn source(&self) -> Result<Source> {
        if self.is_open_clip() {
            let (name, architecture) = (self.name.clone(), "open_clip".to_owned());
            return Ok(Source { name, architecture, probability: None });
        }
        let path = self.path.join("config.json");
        let config: Value = serde_json::from_str(&files::read_text(&path)?)
            .map_err(|error| Error::bad_model(format!("{}: {error}", path.display())))?;
        let architecture = config["architectures"][0].as_str().or(config["model_type"].as_str());
        Ok(Source {
            name: self.name.clone(),
            architecture: architecture.unwrap_or_default().to_owned(),
            probability: None,
        })
    }

    /// Copies the tokenizers of a captioner to `folder`: the second one where `qformer_reads`.
    pub(crate) fn copy_caption_tokenizers(&self, folder: &Path, qformer_reads: bool) -> Result<()> {
        self.copy_tokenizer(folder)?;
        if !qformer_reads {
            return Ok(());
        }
        files::create_dir(&folder.join(QFORMER_TOKENIZER))?;
        let copied = self.copy_files(&QFORMER_TOKENIZER_FILES, folder)?;
        if copied.iter().any(|name| name.ends_with("tokenizer.json") || name.ends_with("vocab.txt"))
        {
            return Ok(());
        }
        Err(Error::not_found(format!(
            "{}: no tokenizer for the Q-Former ({QFORMER_TOKENIZER}/ has neither tokenizer.json \
             nor vocab.txt)",
            self.path.display()
        )))
    }

    /// Copies those of the files `names` that there are to `folder`.
    fn copy_files(&self, names: &[&'static str], folder: &Path) -> Result<Vec<&'static str>> {
        let mut copied = Vec::new();
        for name in names {
            match files::read(&self.path.join(name)) {
                Ok(bytes) => {
                    files::write(&folder.join(name), &bytes)?;
                    copied.push(*name);
                }
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(copied)
    }

    /// Copies the tokenizer's files to `folder`.
    pub(crate) fn copy_tokenizer(&self, folder: &Path) -> Result<()> {
        let copied = self.copy_files(&TOKENIZER_FILES, folder)?;
        let has = |name| copied.contains(&name);
        let is_complete = has("tokenizer.json")
            || has("vocab.txt")
            || has("spiece.model")
            || (has("vocab.json") && has("merges.txt"));
        if is_complete {
            return Ok(());
        }
        Err(Error::not_found(format!(
            "{}: no tokenizer (neither tokenizer.json, nor vocab.json with merges.txt, nor \
             vocab.txt, nor spiece.model)",
            self.path.display()
        )))
    }

    /// Writes the image processor's configuration to `path`, having checked that it makes
    /// pictures of `expected` height and width.
    pub(crate) fn write_preprocessor(&self, path: &Path, expected: [usize; 2]) -> Result<()> {
        let bytes = match self.is_open_clip() {
            true => self.open_clip_preprocessor(expected[0])?,
            false => self.preprocessor()?,
        };
        let failed = |error: Error| error.context(self.path.display());
        let preprocessor = Preprocessor::from_json(&bytes).map_err(failed)?;
        let made = [preprocessor.height(), preprocessor.width()];
        if made != expected {
            return Err(Error::bad_model(format!(
                "{}: the image processor makes {}x{} pixels, the model takes {}x{}",
                self.path.display(),
                made[0],
                made[1],
                expected[0],
                expected[1]
            )));
        }
        files::write(path, &bytes)
    }

    /// open_clip's settings, and the size that they are for.
    fn open_clip_preprocessor(&self, size: usize) -> Result<Vec<u8>> {
        let path = self.path.join(open_clip::CONFIG);
        let config: Value = serde_json::from_str(&files::read_text(&path)?)
            .map_err(|error| Error::bad_model(format!("{}: {error}", path.display())))?;
        let settings = config.get("preprocess_cfg").cloned().unwrap_or_default();
        let settings = if settings.is_null() { json!({}) } else { settings };
        let file = json!({ "preprocess_cfg": settings, "image_size": size });
        Ok(file.to_string().into_bytes())
    }

    fn preprocessor(&self) -> Result<Vec<u8>> {
        match files::read(&self.path.join(PREPROCESSOR)) {
            Err(error) if error.kind() == Kind::NotFound => {}
            other => return other,
        }
        let none = || {
            Error::not_found(format!(
                "{}: no image processor (neither {PREPROCESSOR} nor {PROCESSOR} with `image_processor`)",
                self.path.display()
            ))
        };
        let text = files::read_text(&self.path.join(PROCESSOR))
            .map_err(|error| if error.kind() == Kind::NotFound { none() } else { error })?;
        let processor: Value = serde_json::from_str(&text).map_err(|error| {
            Error::bad_model(format!("{}: {PROCESSOR}: {error}", self.path.display()))
        })?;
        let image_processor = processor.get("image_processor").filter(|value| value.is_object());
        Ok(image_processor.ok_or_else(none)?.to_string().into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, ModelFolder) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), r#"{"model_type": "clip"}"#).unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let model = ModelFolder::open(folder.path()).unwrap();
        (folder, model)
    }

    const CLIP: &str = r#"{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32}}"#;

    #[test]
    fn a_folder_without_config_is_no_model() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(ModelFolder::open(empty.path()).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(ModelFolder::open(Path::new("/nowhere")).unwrap_err().kind(), Kind::NotFound);
        let (_folder, model) = folder(&[]);
        assert_eq!(model.source().unwrap().architecture, "clip");
    }

    #[test]
    fn a_tokenizer_is_needed() {
        let target = tempfile::tempdir().unwrap();
        let (_folder, model) = folder(&[("vocab.json", "{}")]);
        assert!(model.copy_tokenizer(target.path()).is_err());
        let (_folder, model) = folder(&[("vocab.json", "{}"), ("merges.txt", "")]);
        model.copy_tokenizer(target.path()).unwrap();
        assert!(target.path().join("merges.txt").is_file());
    }

    #[test]
    fn a_qformer_that_reads_needs_its_own_tokenizer() {
        let target = tempfile::tempdir().unwrap();
        let (folder, model) = folder(&[("vocab.txt", "a")]);
        model.copy_caption_tokenizers(target.path(), false).unwrap();
        assert!(!target.path().join(QFORMER_TOKENIZER).exists());
        let second = folder.path().join(QFORMER_TOKENIZER);
        std::fs::create_dir(&second).unwrap();
        std::fs::write(second.join("tokenizer_config.json"), "{}").unwrap();
        let error = model.copy_caption_tokenizers(target.path(), true).unwrap_err();
        assert!(error.message().contains("no tokenizer for the Q-Former"), "{error}");
        for name in QFORMER_TOKENIZER_FILES {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        model.copy_caption_tokenizers(target.path(), true).unwrap();
        for name in QFORMER_TOKENIZER_FILES {
            assert!(name.starts_with(QFORMER_TOKENIZER));
            assert_eq!(std::fs::read_to_string(target.path().join(name)).unwrap(), name);
        }
    }

    #[test]
    fn the_image_processor_is_found_in_both_files_and_checked() {
        let target = tempfile::tempdir().unwrap();
        let path = target.path().join("clip.json");
        let nested =
            format!(r#"{{"image_processor": {CLIP}, "processor_class": "CLIPProcessor"}}"#);
        for files in [(PREPROCESSOR, CLIP), (PROCESSOR, &*nested)] {
            let (_folder, model) = folder(&[files]);
            model.write_preprocessor(&path, [32, 32]).unwrap();
            let error = model.write_preprocessor(&path, [64, 64]).unwrap_err();
            assert!(
                error.message().ends_with("makes 32x32 pixels, the model takes 64x64"),
                "{error}"
            );
        }
        let (_folder, model) = folder(&[]);
        assert_eq!(model.write_preprocessor(&path, [32, 32]).unwrap_err().kind(), Kind::NotFound);
    }
}
