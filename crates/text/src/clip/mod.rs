//! The tokenizer of CLIP's text tower.

mod bpe;
mod words;

use std::path::Path;
use std::sync::Arc;

use imprompt_error::{Error, Result};
use quick_cache::sync::Cache;
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
    /// Tokens of the phrases that prompts were continued with: `None` of those whose tokens depend on the prompt.
    phrases: Cache<Box<str>, Option<Arc<[u32]>>>,
}

/// Phrases that are kept with their tokens: more than the largest vocabulary of clip-interrogator has.
const KEPT_PHRASES: usize = 1 << 17;

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
        let phrases = Cache::new(KEPT_PHRASES);
        let tokenizer = ClipTokenizer {
            rules,
            cleaning,
            context_length,
            start_id,
            end_id,
            vocab_size,
            phrases,
        };
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
                add_words(pairs, text, &mut ids);
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
        self.encode(text).map(|ids| self.cut(ids))
    }

    /// [`Self::tokens`] of `"{prompt}, {phrase}"` for each of `phrases`. A phrase is tokenised once: its
    /// tokens are kept, as long as there are not too many.
    ///
    /// # Errors
    /// Those of [`Self::encode`].
    pub fn continued(&self, prompt: &str, phrases: &[&str]) -> Result<Vec<Tokens>> {
        let whole = |phrase: &str| self.tokens(&format!("{prompt}, {phrase}"));
        let pairs = match &self.rules {
            Rules::OpenClip(pairs) if clean::is_settled(prompt) => pairs,
            _ => return phrases.iter().map(|phrase| whole(phrase)).collect(),
        };
        // The comma may be one word with what ends the prompt. No word goes over the blank behind it.
        let mut front = vec![self.start_id];
        add_words(pairs, &format!("{prompt},"), &mut front);
        let row = |phrase: &&str| match self.phrase(pairs, phrase) {
            Some(phrase) => Ok(self.cut([&front[..], &phrase, &[self.end_id]].concat())),
            None => whole(phrase),
        };
        phrases.iter().map(row).collect()
    }

    /// The tokens that `phrase` has behind every prompt; `None` where there are no such.
    fn phrase(&self, pairs: &BytePairs, phrase: &str) -> Option<Arc<[u32]>> {
        if let Some(kept) = self.phrases.get(phrase) {
            return kept;
        }
        let ids = clean::is_settled(phrase).then(|| {
            let mut ids = Vec::new();
            add_words(pairs, phrase, &mut ids);
            ids.into()
        });
        self.phrases.insert(phrase.into(), ids.clone());
        ids
    }

    fn cut(&self, mut ids: Vec<u32>) -> Tokens {
        let truncated = ids.len() > self.context_length;
        if truncated {
            ids.truncate(self.context_length);
            ids[self.context_length - 1] = self.end_id;
        }
        Tokens { ids, truncated }
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

/// Adds the tokens of `text`, cleaned.
fn add_words(pairs: &BytePairs, text: &str, ids: &mut Vec<u32>) {
    for word in words::words(&clean::open_clip(text)) {
        pairs.encode(word, ids);
    }
}
