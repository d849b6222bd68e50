//! `config.json`, with every key accounted for: a value is honoured, known not
//! to change the result, or refused by name.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use imprompt_error::{Error, Kind, Result};
use serde_json::{Map, Value};

/// The longest `config.json` that is read.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Keys every transformers configuration may carry that name things or choose
/// outputs, and never change a result.
pub const DESCRIPTIVE_KEYS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "dtype",
    "finetuning_task",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "problem_type",
    "return_dict",
    "return_dict_in_generate",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_bfloat16",
    "gradient_checkpointing",
];

/// Keys that act in training alone.
pub const TRAINING_KEYS: &[&str] = &[
    "attention_dropout",
    "attention_probs_dropout_prob",
    "dropout",
    "hidden_dropout_prob",
    "layerdrop",
];

/// Keys of `generate`, which an encoder never calls, and of the roles it does
/// not play.
pub const GENERATION_KEYS: &[&str] = &[
    "add_cross_attention",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "is_decoder",
    "is_encoder_decoder",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "pad_token_id",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "sep_token_id",
    "suppress_tokens",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "top_k",
    "top_p",
    "typical_p",
];

/// One object of a configuration, which notes the keys it was asked for.
#[derive(Debug)]
pub struct Section {
    path: String,
    values: Map<String, Value>,
    asked: RefCell<BTreeSet<String>>,
}

impl Section {
    /// `config.json` of `folder`.
    ///
    /// # Errors
    /// `NotFound` when there is none, `BadModel` when it is not a JSON object.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::open_file(&folder.join("config.json"))
    }

    /// The JSON object in the file `path`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_file(path: &Path) -> Result<Self> {
        let wrong = |what: String| Error::bad_model(format!("{}: {what}", path.display()));
        let length = std::fs::metadata(path)
            .map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => {
                    Error::new(Kind::NotFound, format!("{} does not exist", path.display()))
                }
                _ => wrong(e.to_string()),
            })?
            .len();
        if length > MAX_CONFIG_BYTES {
            return Err(wrong(format!("has {length} bytes, at most {MAX_CONFIG_BYTES} allowed")));
        }
        let text = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
        match serde_json::from_slice(&text) {
            Ok(Value::Object(values)) => Ok(Self::new(&path.display().to_string(), values)),
            Ok(_) => Err(wrong("is not a JSON object".to_owned())),
            Err(e) => Err(wrong(format!("is not JSON: {e}"))),
        }
    }

    /// These values; `path` names them in messages.
    #[must_use]
    pub fn new(path: &str, values: Map<String, Value>) -> Self {
        Section { path: path.to_owned(), values, asked: RefCell::default() }
    }

    /// What names it in messages.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The value of `key`; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// The object under `key`.
    ///
    /// # Errors
    /// `BadModel` when it is something else.
    pub fn section(&self, key: &str) -> Result<Option<Section>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(values)) => {
                Ok(Some(Section::new(&format!("{}: {key}", self.path), values.clone())))
            }
            Some(_) => Err(self.wrong(key, "an object")),
        }
    }

    /// The object under `key`, an empty one where it is absent.
    ///
    /// # Errors
    /// `BadModel` when it is something else.
    pub fn section_or_empty(&self, key: &str) -> Result<Section> {
        let empty = || Section::new(&format!("{}: {key}", self.path), Map::new());
        Ok(self.section(key)?.unwrap_or_else(empty))
    }

    /// Refuses heads that do not share a width evenly.
    ///
    /// # Errors
    /// `BadModel` with both numbers.
    pub fn check_heads(&self, hidden_size: usize, heads: usize) -> Result<()> {
        if hidden_size.is_multiple_of(heads) {
            return Ok(());
        }
        Err(Error::bad_model(format!(
            "{}: hidden_size {hidden_size} is no multiple of num_attention_heads {heads}",
            self.path
        )))
    }

    /// Refuses a picture without a patch.
    ///
    /// # Errors
    /// `BadModel` with both numbers.
    pub fn check_patch(&self, patch_size: usize, image_size: usize) -> Result<()> {
        if patch_size <= image_size {
            return Ok(());
        }
        Err(Error::bad_model(format!(
            "{}: patch_size {patch_size} is larger than image_size {image_size}",
            self.path
        )))
    }

    /// Refuses token ids that a vocabulary of this size does not have.
    ///
    /// # Errors
    /// `BadModel` naming the first of them.
    pub fn check_token_ids<'i>(
        &self,
        ids: impl IntoIterator<Item = &'i u32>,
        vocabulary: usize,
    ) -> Result<()> {
        match ids.into_iter().find(|id| **id as usize >= vocabulary) {
            None => Ok(()),
            Some(id) => Err(Error::bad_model(format!(
                "{}: token id {id} is not below vocab_size {vocabulary}",
                self.path
            ))),
        }
    }

    /// A length or count.
    ///
    /// # Errors
    /// `BadModel` when it is not a whole number from 1 to 2^31.
    pub fn size(&self, key: &str, default: usize) -> Result<usize> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_u64()
                .filter(|n| (1..=1 << 31).contains(n))
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(|| self.wrong(key, "a whole number from 1 to 2147483648")),
        }
    }

    /// A token id or another whole number from 0.
    ///
    /// # Errors
    /// `BadModel` when it is something else.
    pub fn index(&self, key: &str, default: u32) -> Result<u32> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .ok_or_else(|| self.wrong(key, "a whole number from 0 to 4294967295")),
        }
    }

    /// One token id or a list of them.
    ///
    /// # Errors
    /// `BadModel` when it is something else, or an empty list.
    pub fn token_ids(&self, key: &str, default: u32) -> Result<Vec<u32>> {
        let Some(Value::Array(list)) = self.get(key) else {
            return Ok(vec![self.index(key, default)?]);
        };
        list.iter()
            .map(|value| value.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect::<Option<Vec<u32>>>()
            .filter(|ids| !ids.is_empty())
            .ok_or_else(|| self.wrong(key, "a token id or a list of token ids"))
    }

    /// A finite number.
    ///
    /// # Errors
    /// `BadModel` when it is something else.
    pub fn number(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| self.wrong(key, "a number")),
        }
    }

    /// A truth value.
    ///
    /// # Errors
    /// `BadModel` when it is something else.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "true or false")),
        }
    }

    /// Text.
    ///
    /// # Errors
    /// `BadModel` when it is something else.
    pub fn text(&self, key: &str, default: &str) -> Result<String> {
        match self.get(key) {
            None => Ok(default.to_owned()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(self.wrong(key, "text")),
        }
    }

    /// Refuses a value of `key` that is not one of `allowed` (absent is fine):
    /// for keys that this build knows but does not do.
    ///
    /// # Errors
    /// `Unsupported` naming the key, the value and what is allowed.
    pub fn only(&self, key: &str, allowed: &[Value]) -> Result<()> {
        match self.get(key) {
            Some(value) if !allowed.contains(value) => {
                let list: Vec<String> = allowed.iter().map(Value::to_string).collect();
                Err(Error::unsupported(format!(
                    "{}: {key} is {value}; supported: {}",
                    self.path,
                    list.join(", ")
                )))
            }
            _ => Ok(()),
        }
    }

    /// Refuses every key that was not asked for and is not in `harmless`: it
    /// may change the result.
    ///
    /// # Errors
    /// `Unsupported` naming the keys.
    pub fn finish(&self, harmless: &[&[&str]]) -> Result<()> {
        let asked = self.asked.borrow();
        let unknown: Vec<&str> = self
            .values
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, _)| key.as_str())
            .filter(|key| !asked.contains(*key))
            .filter(|key| !harmless.iter().any(|list| list.contains(key)))
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(Error::unsupported(format!(
            "{}: what {} means for the result is not known to this build",
            self.path,
            unknown.join(", ")
        )))
    }

    fn wrong(&self, key: &str, allowed: &str) -> Error {
        Error::bad_model(format!("{}: {key} must be {allowed}", self.path))
    }
}
