//! `model_name.json` of the AWS sample: which CLIP and which captioner by clip-interrogator's names.

use std::path::Path;

use imprompt_repository::family::Role;
use serde_json::{Map, Value};

use super::resolve;
use crate::talk::{Failure, Result};

const CLIP: &str = "clip_model_name";
const CAPTIONER: &str = "caption_model_name";

/// The longest file that is read.
const LIMIT: u64 = 1 << 16;

/// The two names of a file; a captioner of `null` is none, as in clip-interrogator's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelNames {
    /// `clip_model_name`.
    pub clip: String,
    /// `caption_model_name`.
    pub captioner: Option<String>,
}

impl ModelNames {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// What is wrong, naming the key and what is allowed there.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |what: String| Failure::new(format!("{}: {what}", path.display()));
        let length = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
        if length > LIMIT {
            return Err(wrong(format!("has {length} bytes, at most {LIMIT} allowed")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let keys: Map<String, Value> = serde_json::from_str(&text).map_err(|error| {
            wrong(format!("is no JSON object: {error}"))
                .hint(format!("it has the keys {CAPTIONER} and {CLIP}"))
        })?;
        Self::of(&keys).map_err(|failure| failure.of(path.display()))
    }

    fn of(keys: &Map<String, Value>) -> Result<Self> {
        if let Some(key) = keys.keys().find(|key| ![CLIP, CAPTIONER].contains(&&***key)) {
            return Err(Failure::new(format!("key {key:?} is not known"))
                .hint(format!("the keys are {CAPTIONER} and {CLIP}")));
        }
        let name = |key: &str, role: Role, example: &str| {
            let failure = |what: &str| {
                Failure::new(format!("{key} {what}")).hint(format!("a name such as {example}"))
            };
            match keys.get(key) {
                None => Err(failure("is missing")),
                Some(Value::Null) => Ok(None),
                Some(Value::String(name)) => {
                    resolve(name, role).map_err(|failure| failure.of(key))?;
                    Ok(Some(name.clone()))
                }
                Some(_) => Err(failure("is no text")),
            }
        };
        let clip = name(CLIP, Role::Clip, "ViT-L-14/openai")?.ok_or_else(|| {
            Failure::new(format!("{CLIP} is null")).hint("a name such as ViT-L-14/openai")
        })?;
        let captioner = name(CAPTIONER, Role::Captioner, "blip2-2.7b, or null for none")?;
        Ok(ModelNames { clip, captioner })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ModelNames> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model_name.json");
        std::fs::write(&path, text).unwrap();
        ModelNames::read(&path)
    }

    #[test]
    fn the_file_of_the_sample_is_read() {
        let text = r#"{"caption_model_name": "blip2-2.7b", "clip_model_name": "ViT-L-14/openai"}"#;
        let names = read(text).unwrap();
        assert_eq!(
            (&*names.clip, names.captioner.as_deref()),
            ("ViT-L-14/openai", Some("blip2-2.7b"))
        );
        let text = r#"{"caption_model_name": null, "clip_model_name": "ViT-L-14/openai"}"#;
        assert_eq!(read(text).unwrap().captioner, None);
    }

    #[test]
    fn errors_name_the_key_and_what_is_allowed() {
        for (text, parts) in [
            ("[]", ["is no JSON object", "caption_model_name and clip_model_name"]),
            (r#"{"clip": 1}"#, ["key \\\"clip\\\" is not known", "the keys are"]),
            (r#"{"caption_model_name": null}"#, ["clip_model_name is missing", "ViT-L-14/openai"]),
            (r#"{"clip_model_name": null}"#, ["clip_model_name is null", "ViT-L-14/openai"]),
            (r#"{"clip_model_name": 3}"#, ["clip_model_name is no text", "such as"]),
            (
                r#"{"clip_model_name": "ViT-L-14/openai", "caption_model_name": "blip2-2,7b"}"#,
                ["caption_model_name: blip2-2,7b", "did you mean blip2-2.7b"],
            ),
            (
                r#"{"clip_model_name": "RN50/openai", "caption_model_name": null}"#,
                ["clip_model_name: RN50/openai: its architecture", "supported: "],
            ),
        ] {
            let said = format!("{:?}", read(text).unwrap_err());
            assert!(parts.iter().all(|part| said.contains(part)), "{text}: {said}");
            assert!(said.contains("model_name.json"), "{said}");
        }
    }
}
