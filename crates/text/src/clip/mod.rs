//! The tokenizer of CLIP's text tower.

mod bpe;
mod words;

use std::path::Path;

use imprompt_error::{Error, Result};
use tokenizers::Tokenizer;

use crate::files::Folder;
use crate::{clean, pipeline};
use bpe::BytePairs;

/// Which reference the text is cleaned and split like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cleaning {
    /// `SimpleTokenizer` of open_clip 2.20.0: ftfy 6.1.1's `fix_text`,
    /// `html.unescape` twice, white space, lower case.
    OpenClip,
    /// `CLIPTokenizerFast` of transformers 4.33.1: NFC, white space, lower case;
    /// or what the folder's `tokenizer.json` says.
    HuggingFace,
    /// `HFTokenizer` of open_clip 3.3.0 with `clean="canonicalize"`, for SigLIP:
    /// `fix_text`, `html.unescape` twice, "_" as a blank, no ASCII punctuation,
    /// lower case, white space; then the folder's tokenizer.
    Canonical,
}

/// The row of token ids that a text tower is given for a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Of CLIP: from the start token to the end token, at most the context
    /// length of ids. Of SigLIP: exactly the context length of ids, padded.
    pub ids: Vec<u32>,
    /// Whether the text had more tokens than fit.
    pub truncated: bool,
}

enum Rules {
    OpenClip(Box<BytePairs>),
    HuggingFace(Box<Tokenizer>),
}

/// CLIP's byte-pair tokenizer, with a vocabulary of any size.
///
/// Loaded from a folder's `tokenizer.json`, or `vocab.json` and `merges.txt`.
/// References: open_clip 2.20.0 `tokenizer.py`, transformers 4.33.1
/// `tokenization_clip_fast.py`.
pub struct ClipTokenizer {
    rules: Rules,
    cleaning: Cleaning,
    context_length: usize,
    start_id: u32,
    end_id: u32,
    vocab_size: usize,
}

/// Special tokens of transformers' `CLIPTokenizerFast`.
const DEFAULTS: [(&str, &str); 4] = [
    ("bos_token", "<|startoftext|>"),
    ("eos_token", "<|endoftext|>"),
    ("unk_token", "<|endoftext|>"),
    ("pad_token", "<|endoftext|>"),
];

impl ClipTokenizer {
    /// Loads the tokenizer of a Hugging Face folder; `context_length` is the
    /// text tower's number of positions, 77 for every CLIP of OpenAI's.
    ///
    /// # Errors
    /// [`imprompt_error::Kind::BadModel`] when a file is missing, malformed or
    /// lacks a token that CLIP needs, or `context_length` is below 2.
    pub fn load(folder: &Path, cleaning: Cleaning, context_length: usize) -> Result<Self> {
        if context_length < 2 {
            return Err(Error::bad_model(format!(
                "a context length of {context_length}, at least 2 is needed"
            )));
        }
        let folder = Folder::new(folder, &DEFAULTS);
        let vocabulary = folder.byte_pairs()?;
        let id_of = |role: &str| {
            let token = folder.special_token(role)?;
            token
                .and_then(|token| vocabulary.id(&token))
                .ok_or_else(|| folder.bad(format!("no {role} in the vocabulary")))
        };
        let (start_id, end_id) = (id_of("bos_token")?, id_of("eos_token")?);
        let vocab_size = vocabulary.size();
        let rules = match cleaning {
            Cleaning::OpenClip => {
                let pairs = BytePairs::new(&vocabulary, start_id, end_id);
                Rules::OpenClip(Box::new(pairs.map_err(|error| error.context(folder.name()))?))
            }
            Cleaning::Canonical => {
                return Err(folder.bad("texts without punctuation are not for CLIP's tokenizer"));
            }
            Cleaning::HuggingFace => {
                let tokenizer = match folder.tokenizer()? {
                    Some(tokenizer) => tokenizer,
                    None => pipeline::clip(&folder, &vocabulary, start_id, end_id)?,
                };
                Rules::HuggingFace(Box::new(tokenizer))
            }
        };
        let tokenizer =
            ClipTokenizer { rules, cleaning, context_length, start_id, end_id, vocab_size };
        // A tokenizer.json without CLIP's post-processor would yield features
        // of the wrong position.
        let empty = tokenizer.encode("")?;
        if empty != [start_id, end_id] {
            return Err(folder.bad(format!(
                "the empty text has {} tokens, CLIP's has its start and its end token",
                empty.len()
            )));
        }
        Ok(tokenizer)
    }

    /// All ids of `text`, from the start token to the end token, not truncated.
    ///
    /// # Errors
    /// [`imprompt_error::Kind::Internal`] when the folder's own pipeline fails,
    /// which CLIP's does not.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.rules {
            Rules::OpenClip(pairs) => {
                let mut ids = vec![self.start_id];
                let text = clean::open_clip(text);
                for word in words::words(&text) {
                    pairs.encode(word, &mut ids);
                }
                ids.push(self.end_id);
                Ok(ids)
            }
            Rules::HuggingFace(tokenizer) => pipeline::encode(tokenizer, text),
        }
    }

    /// The ids of `text` cut to the context length, the last one then replaced
    /// by the end token: what both references feed the text tower, without the
    /// padding behind.
    ///
    /// # Errors
    /// Those of [`Self::encode`].
    pub fn tokens(&self, text: &str) -> Result<Tokens> {
        let mut ids = self.encode(text)?;
        let truncated = ids.len() > self.context_length;
        if truncated {
            ids.truncate(self.context_length);
            ids[self.context_length - 1] = self.end_id;
        }
        Ok(Tokens { ids, truncated })
    }

    /// Clip-interrogator's `_prompt_at_max_len`: whether the last slot of the
    /// padded row is taken, which a text that just fits does too. It supposes
    /// that padding is 0, as open_clip's is.
    ///
    /// # Errors
    /// Those of [`Self::encode`].
    pub fn is_at_max_length(&self, text: &str) -> Result<bool> {
        Ok(self.encode(text)?.len() >= self.context_length)
    }

    /// The number of positions of the text tower.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// The id that every text starts with.
    pub fn start_id(&self) -> u32 {
        self.start_id
    }

    /// The id that every text ends with; a text's feature is read there.
    pub fn end_id(&self) -> u32 {
        self.end_id
    }

    /// Number of ids, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The reference that texts are cleaned like.
    pub fn cleaning(&self) -> Cleaning {
        self.cleaning
    }
}
