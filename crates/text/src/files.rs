//! The tokenizer files of a Hugging Face folder.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use imprompt_error::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

/// Roles whose tokens transformers adds as special when it loads a folder, in
/// its order.
const SPECIAL_ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The role with a list of tokens, added last.
const MORE_SPECIAL: &str = "additional_special_tokens";

/// A byte-pair vocabulary.
pub(crate) struct Vocabulary {
    pub(crate) ids: HashMap<String, u32>,
    pub(crate) merges: Vec<(String, String)>,
}

impl Vocabulary {
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// Number of distinct ids.
    pub(crate) fn size(&self) -> usize {
        self.ids.values().collect::<HashSet<_>>().len()
    }
}

/// The parts of a tokenizer.json that hold its vocabulary.
#[derive(Deserialize)]
struct TokenizerFile {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Model {
    vocab: HashMap<String, u32>,
    merges: Vec<MergeEntry>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum MergeEntry {
    Joined(String),
    Pair(String, String),
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

pub(crate) struct Folder {
    path: PathBuf,
    defaults: &'static [(&'static str, &'static str)],
}

/// An entry of a configuration: the token alone, or with its matching rules.
fn added_token(entry: &Value) -> Option<AddedToken> {
    if let Some(token) = entry.as_str() {
        return Some(AddedToken::from(token, true));
    }
    let rule =
        |name: &str, default: bool| entry.get(name).and_then(Value::as_bool).unwrap_or(default);
    let token = AddedToken::from(entry.get("content")?.as_str()?, true)
        .single_word(rule("single_word", false))
        .lstrip(rule("lstrip", false))
        .rstrip(rule("rstrip", false))
        .normalized(rule("normalized", true));
    Some(token)
}

impl Folder {
    /// `defaults` are the special tokens of the tokenizer's class.
    pub(crate) fn new(path: &Path, defaults: &'static [(&'static str, &'static str)]) -> Self {
        Folder { path: path.to_path_buf(), defaults }
    }

    /// The same folder with the special tokens of another class.
    pub(crate) fn with_defaults(self, defaults: &'static [(&'static str, &'static str)]) -> Self {
        Folder { defaults, ..self }
    }

    /// How messages name the folder.
    pub(crate) fn name(&self) -> String {
        format!("tokenizer of {}", self.path.display())
    }

    /// An error about the folder as a whole.
    pub(crate) fn bad(&self, what: impl std::fmt::Display) -> Error {
        Error::bad_model(format!("{}: {what}", self.name()))
    }

    fn bad_file(&self, file: &str, what: impl std::fmt::Display) -> Error {
        Error::bad_model(format!("{}: {what}", self.path.join(file).display()))
    }

    /// A file's text; `None` without the file.
    fn read(&self, file: &str) -> Result<Option<String>> {
        match std::fs::read_to_string(self.path.join(file)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.bad_file(file, error)),
        }
    }

    fn parse<T: for<'a> Deserialize<'a>>(&self, file: &str) -> Result<Option<T>> {
        let Some(text) = self.read(file)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|error| self.bad_file(file, error))
    }

    /// The vocabulary of tokenizer.json, else of vocab.json and merges.txt.
    pub(crate) fn byte_pairs(&self) -> Result<Vocabulary> {
        if let Some(file) = self.parse::<TokenizerFile>("tokenizer.json")? {
            let mut ids = file.model.vocab;
            ids.extend(file.added_tokens.into_iter().map(|added| (added.content, added.id)));
            let merges = file.model.merges.into_iter().enumerate().map(|(at, entry)| match entry {
                MergeEntry::Pair(left, right) => Ok((left, right)),
                MergeEntry::Joined(line) => split_merge(&line).ok_or_else(|| {
                    self.bad_file("tokenizer.json", format!("merge {at} is no pair"))
                }),
            });
            return Ok(Vocabulary { ids, merges: merges.collect::<Result<_>>()? });
        }
        let (Some(ids), Some(lines)) = (self.parse("vocab.json")?, self.read("merges.txt")?) else {
            return Err(self.bad("neither tokenizer.json nor vocab.json with merges.txt"));
        };
        let mut merges = Vec::new();
        for (at, line) in lines.lines().enumerate() {
            if (at == 0 && line.starts_with("#version")) || line.is_empty() {
                continue;
            }
            let merge = split_merge(line).ok_or_else(|| {
                self.bad_file("merges.txt", format!("line {} is no pair", at + 1))
            })?;
            merges.push(merge);
        }
        Ok(Vocabulary { ids, merges })
    }

    /// The tokens of vocab.txt, a line each; `None` without the file.
    pub(crate) fn word_pieces(&self) -> Result<Option<Vec<String>>> {
        // Python's reader ends a line at "\n" alone and takes the rest as it is.
        let lines = |text: String| {
            let text = text.strip_suffix('\n').unwrap_or(&text);
            text.split('\n').map(str::to_owned).collect()
        };
        Ok(self.read("vocab.txt")?.map(lines))
    }

    /// The pipeline of tokenizer.json as transformers loads it: without its
    /// truncation and padding, with the special tokens of the folder.
    pub(crate) fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let Some(text) = self.read("tokenizer.json")? else { return Ok(None) };
        let mut tokenizer: Tokenizer =
            text.parse().map_err(|error| self.bad_file("tokenizer.json", error))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| self.bad_file("tokenizer.json", error))?;
        self.add_special_tokens(&mut tokenizer)?;
        Ok(Some(tokenizer))
    }

    /// Adds the tokens that the folder's configuration names, as special ones
    /// (`sanitize_special_tokens` of transformers).
    pub(crate) fn add_special_tokens(&self, tokenizer: &mut Tokenizer) -> Result<()> {
        let mut tokens = Vec::new();
        for role in SPECIAL_ROLES.into_iter().chain([MORE_SPECIAL]) {
            match self.special(role)? {
                Some(Value::Array(entries)) => {
                    tokens.extend(entries.iter().filter_map(added_token))
                }
                Some(entry) => tokens.extend(added_token(&entry)),
                None => {}
            }
        }
        // Of two with the same text the first one's rules count, and those of
        // tokenizer.json before all.
        let mut seen: HashSet<String> = tokenizer
            .get_added_tokens_decoder()
            .into_values()
            .filter(|known| known.special)
            .map(|known| known.content)
            .collect();
        // A name that the vocabulary lacks would get a new id, beyond the rows
        // that the model has.
        tokens.retain(|token| {
            tokenizer.token_to_id(&token.content).is_some() && seen.insert(token.content.clone())
        });
        tokenizer.add_special_tokens(tokens).map_err(|error| self.bad(error))?;
        Ok(())
    }

    /// The entry of a role such as `bos_token`.
    fn special(&self, role: &str) -> Result<Option<Value>> {
        for file in ["special_tokens_map.json", "tokenizer_config.json"] {
            let value: Option<Value> = self.parse(file)?;
            let entry = value.and_then(|value| value.get(role).cloned());
            if let Some(entry) = entry.filter(|entry| !entry.is_null()) {
                return Ok(Some(entry));
            }
        }
        let default = self.defaults.iter().find(|(known, _)| *known == role);
        Ok(default.map(|(_, token)| Value::from(*token)))
    }

    /// The token of a role such as `bos_token`.
    pub(crate) fn special_token(&self, role: &str) -> Result<Option<String>> {
        let entry = self.special(role)?;
        Ok(entry.as_ref().and_then(added_token).map(|token| token.content))
    }

    /// The tokens of all roles, each once.
    pub(crate) fn special_tokens(&self) -> Result<Vec<String>> {
        let mut tokens: Vec<String> = Vec::new();
        for role in SPECIAL_ROLES.into_iter().chain([MORE_SPECIAL]) {
            let entries = match self.special(role)? {
                Some(Value::Array(entries)) => entries,
                Some(entry) => vec![entry],
                None => vec![],
            };
            for token in entries.iter().filter_map(added_token) {
                if !tokens.contains(&token.content) {
                    tokens.push(token.content);
                }
            }
        }
        Ok(tokens)
    }

    /// The bytes of a file of at most `most` bytes; `None` without the file.
    pub(crate) fn bytes(&self, file: &str, most: u64) -> Result<Option<Vec<u8>>> {
        let path = self.path.join(file);
        let length = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.bad_file(file, error)),
        };
        if length > most {
            return Err(self.bad_file(file, format!("{length} bytes, at most {most} allowed")));
        }
        std::fs::read(&path).map(Some).map_err(|error| self.bad_file(file, error))
    }

    /// A text of tokenizer_config.json.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>> {
        let config: Option<Value> = self.parse("tokenizer_config.json")?;
        Ok(config.and_then(|config| Some(config.get(name)?.as_str()?.to_owned())))
    }

    /// A flag of tokenizer_config.json.
    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>> {
        let config: Option<Value> = self.parse("tokenizer_config.json")?;
        Ok(config.and_then(|config| config.get(name)?.as_bool()))
    }
}

fn split_merge(line: &str) -> Option<(String, String)> {
    let (left, right) = line.trim_end_matches(['\r', '\n']).split_once(' ')?;
    let is_pair = !left.is_empty() && !right.is_empty() && !right.contains(' ');
    is_pair.then(|| (left.to_string(), right.to_string()))
}
