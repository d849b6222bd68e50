//! The tokenizer of the language model that writes captions.

use std::path::Path;

use imprompt_error::{Error, Result};
use tokenizers::Tokenizer;

use crate::clean::python_strip;
use crate::files::Folder;
use crate::pipeline;

/// The special tokens of `BertTokenizer` where the configuration names none.
const BERT_TOKENS: &[(&str, &str)] = &[
    ("unk_token", "[UNK]"),
    ("sep_token", "[SEP]"),
    ("pad_token", "[PAD]"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
];

/// Text to ids for a language model, and its answer back to text: OPT's
/// byte-level pairs, BERT's word pieces, and any other model whose folder has a
/// `tokenizer.json`.
///
/// Reference: transformers 4.33.1, `AutoTokenizer` (the fast tokenizer).
/// A special token that is written out in a text is that token, as there: "</s>"
/// in a prompt is the end token.
pub struct CaptionTokenizer {
    tokenizer: Tokenizer,
    clean_up: bool,
    bos_id: Option<u32>,
    eos_id: Option<u32>,
    pad_id: Option<u32>,
}

impl CaptionTokenizer {
    /// Loads a folder's `tokenizer.json`, else BERT's pipeline over its
    /// `vocab.txt`, else GPT-2's over its `vocab.json` and `merges.txt` (with
    /// `add_bos_token` and the special tokens of its configuration).
    ///
    /// # Errors
    /// [`imprompt_error::Kind::BadModel`] when a file is missing or malformed.
    pub fn load(folder: &Path) -> Result<Self> {
        let mut folder = Folder::new(folder, &[]);
        let word_pieces = folder.word_pieces()?;
        if word_pieces.is_some() {
            folder = folder.with_defaults(BERT_TOKENS);
        }
        let tokenizer = match (folder.tokenizer()?, word_pieces) {
            (Some(tokenizer), _) => tokenizer,
            (None, Some(tokens)) => pipeline::bert(&folder, &tokens)?,
            (None, None) => {
                let add_bos = folder.flag("add_bos_token")?.unwrap_or(false);
                let bos = folder.special_token("bos_token")?.filter(|_| add_bos);
                pipeline::gpt2(&folder, &folder.byte_pairs()?, bos)?
            }
        };
        let id = |role| -> Result<Option<u32>> {
            Ok(folder.special_token(role)?.and_then(|token| tokenizer.token_to_id(&token)))
        };
        Ok(CaptionTokenizer {
            clean_up: folder.flag("clean_up_tokenization_spaces")?.unwrap_or(true),
            bos_id: id("bos_token")?,
            eos_id: id("eos_token")?,
            pad_id: id("pad_token")?,
            tokenizer,
        })
    }

    /// `tokenizer(text).input_ids`: the special tokens of the folder's
    /// post-processor included, not truncated.
    ///
    /// # Errors
    /// [`imprompt_error::Kind::Internal`] when the folder's own pipeline fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        pipeline::encode(&self.tokenizer, text)
    }

    /// `tokenizer.batch_decode([ids], skip_special_tokens=skip_special)[0]`,
    /// with the clean-up of spaces that is its default. Ids beyond the
    /// vocabulary are left out.
    ///
    /// # Errors
    /// [`imprompt_error::Kind::Internal`] when the folder's own decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let text = self
            .tokenizer
            .decode(ids, skip_special)
            .map_err(|_| Error::internal(format!("{} token ids have no text", ids.len())))?;
        Ok(if self.clean_up { clean_up(&text) } else { text })
    }

    /// What clip-interrogator makes of a model's answer: [`Self::decode`]
    /// without special tokens, and Python's `strip`.
    ///
    /// # Errors
    /// Those of [`Self::decode`].
    pub fn caption(&self, ids: &[u32]) -> Result<String> {
        let text = self.decode(ids, true)?;
        Ok(python_strip(&text).to_string())
    }

    /// What of [`Self::caption`] is settled, whatever ids may follow: a prefix of it,
    /// and of the caption of any longer list. Held back are an incomplete character,
    /// blanks, and what the clean-up of spaces could still change.
    ///
    /// # Errors
    /// Those of [`Self::decode`].
    pub fn settled(&self, ids: &[u32]) -> Result<String> {
        let text = self
            .tokenizer
            .decode(ids, true)
            .map_err(|_| Error::internal(format!("{} token ids have no text", ids.len())))?;
        // Bytes that are no character yet.
        let mut text = text.trim_end_matches(char::REPLACEMENT_CHARACTER).to_owned();
        if self.clean_up {
            for (from, to) in CLEAN_UP {
                hold_back(&mut text, from);
                text = text.replace(from, to);
            }
        }
        Ok(python_strip(&text).to_string())
    }

    /// The id of a token by its name.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The start token of the folder's configuration.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// The end token of the folder's configuration.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }

    /// The padding token of the folder's configuration.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad_id
    }

    /// Number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }
}

/// `PreTrainedTokenizerBase.clean_up_tokenization`: what is replaced, one after the other.
const CLEAN_UP: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

fn clean_up(text: &str) -> String {
    CLEAN_UP.iter().fold(text.to_string(), |text, (from, to)| text.replace(from, to))
}

/// Cuts off an end of `text` that could be the beginning of `pattern`: what is left
/// is replaced in as it will be in any longer text.
fn hold_back(text: &mut String, pattern: &str) {
    let beginning = (1..pattern.len()).rev().find(|&length| text.ends_with(&pattern[..length]));
    if let Some(length) = beginning {
        text.truncate(text.len() - length);
    }
}
