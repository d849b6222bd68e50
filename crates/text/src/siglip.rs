//! The tokenizers of SigLIP's and SigLIP 2's text towers.

use std::borrow::Cow;
use std::path::Path;

use imprompt_error::{Error, Result};
use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{Tokenizer, TruncationDirection};

use crate::clean::{is_python_space, open_clip_canonical, python_strip};
use crate::clip::{Cleaning, Tokens};
use crate::files::Folder;
use crate::pipeline;
use crate::sentencepiece::{self, SPACE, SentencePiece};

/// SentencePiece's model of SigLIP.
const MODEL: &str = "spiece.model";

/// Special tokens of transformers' `SiglipTokenizer`.
const DEFAULTS: [(&str, &str); 3] =
    [("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "</s>")];

/// Special tokens of transformers' `GemmaTokenizer` and `Siglip2Tokenizer`.
const GEMMA_DEFAULTS: [(&str, &str); 4] = [
    ("bos_token", "<bos>"),
    ("eos_token", "<eos>"),
    ("unk_token", "<unk>"),
    ("pad_token", "<pad>"),
];

/// Text to the rows of SigLIP's text tower: as many ids as it has slots, because
/// it sees the padding too.
///
/// References: `SiglipTokenizer` of transformers 4.57.6 over the folder's
/// `spiece.model` (lower case, no punctuation, unigrams); for SigLIP 2
/// `Siglip2Tokenizer` of transformers 5.5.4, which is Gemma's `tokenizer.json`
/// behind lower case. The folders of SigLIP 2 name `GemmaTokenizer`, which leaves
/// capitals as they are; the models were trained on lower case, so they get it.
/// With [`Cleaning::Canonical`] texts are cleaned first, as open_clip does.
pub struct SiglipTokenizer {
    rules: Rules,
    is_canonical: bool,
    context_length: usize,
    pad_id: u32,
    pad_in_front: bool,
    vocab_size: usize,
}

enum Rules {
    SentencePiece(Box<Pieces>),
    Pipeline(Box<Tokenizer>),
}

/// `SiglipTokenizer`, the slow one.
struct Pieces {
    model: SentencePiece,
    /// The special tokens that the model has, with their ids.
    special: Vec<(String, u32)>,
    lower_case: bool,
    unknown: String,
    /// Ids that [`Self::unknown`], spelt out, has.
    unknown_length: usize,
    end_id: u32,
}

impl SiglipTokenizer {
    /// Loads the tokenizer of a Hugging Face folder: its `spiece.model` where its
    /// class is `SiglipTokenizer`, else its `tokenizer.json`. `context_length` is
    /// the text tower's number of slots, 64 for every SigLIP of Google's. Of
    /// `cleaning` [`Cleaning::Canonical`] alone makes a difference.
    ///
    /// # Errors
    /// [`imprompt_error::Kind::BadModel`] when a file is missing, malformed or
    /// lacks a token that is needed, `Unsupported` for a SentencePiece model of
    /// another kind.
    pub fn load(folder: &Path, cleaning: Cleaning, context_length: usize) -> Result<Self> {
        let plain = Folder::new(folder, &DEFAULTS);
        let class = plain.text("tokenizer_class")?.unwrap_or_default();
        let is_gemma = class.starts_with("Gemma") || class.starts_with("Siglip2");
        let folder = if is_gemma { Folder::new(folder, &GEMMA_DEFAULTS) } else { plain };
        let is_slow = class.is_empty() || class == "SiglipTokenizer";
        let pieces = |folder: &Folder| -> Result<Option<Rules>> {
            let model = folder.bytes(MODEL, sentencepiece::MAX_BYTES)?;
            let pieces = model.map(|model| Pieces::new(folder, &model)).transpose()?;
            Ok(pieces.map(|pieces| Rules::SentencePiece(Box::new(pieces))))
        };
        let pipeline = |folder: &Folder| -> Result<Option<Rules>> {
            let Some(mut tokenizer) = folder.tokenizer()? else { return Ok(None) };
            if is_gemma {
                lower_case(&mut tokenizer).map_err(|error| folder.bad(error))?;
            }
            Ok(Some(Rules::Pipeline(Box::new(tokenizer))))
        };
        let rules = match is_slow {
            true => pieces(&folder)?.map_or_else(|| pipeline(&folder), |found| Ok(Some(found)))?,
            false => pipeline(&folder)?.map_or_else(|| pieces(&folder), |found| Ok(Some(found)))?,
        };
        let rules = rules.ok_or_else(|| {
            folder.bad(
                "neither spiece.model nor tokenizer.json (tokenizer.model alone is not read: load \
                 it with transformers' AutoTokenizer and save it)",
            )
        })?;
        let pad = folder.special_token("pad_token")?.unwrap_or_default();
        let pad_id = match &rules {
            Rules::SentencePiece(pieces) => pieces.model.id(&pad),
            Rules::Pipeline(tokenizer) => tokenizer.token_to_id(&pad),
        };
        let this = SiglipTokenizer {
            is_canonical: cleaning == Cleaning::Canonical,
            context_length,
            pad_id: pad_id.ok_or_else(|| folder.bad("no pad_token in the vocabulary"))?,
            // Gemma's class pads in front unless its folder says otherwise.
            pad_in_front: match folder.text("padding_side")? {
                Some(side) => side == "left",
                None => is_gemma,
            },
            vocab_size: match &rules {
                Rules::SentencePiece(pieces) => pieces.model.size(),
                Rules::Pipeline(tokenizer) if cleaning == Cleaning::Canonical => spelt(tokenizer),
                Rules::Pipeline(tokenizer) => tokenizer.get_vocab_size(true),
            },
            rules,
        };
        let added = this.encode("")?.len();
        if added >= context_length {
            return Err(folder.bad(format!(
                "the empty text has {added} tokens, the model {context_length} slots"
            )));
        }
        Ok(this)
    }

    /// All ids of `text` with its end token, neither cut nor padded.
    ///
    /// # Errors
    /// [`imprompt_error::Kind::Internal`] when the folder's own pipeline fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let text = &*self.cleaned(text);
        match &self.rules {
            Rules::SentencePiece(pieces) => Ok(pieces.with_end(pieces.encode(text))),
            Rules::Pipeline(tokenizer) => pipeline::encode(tokenizer, text),
        }
    }

    fn cleaned<'t>(&self, text: &'t str) -> Cow<'t, str> {
        match self.is_canonical {
            true => Cow::Owned(open_clip_canonical(text)),
            false => Cow::Borrowed(text),
        }
    }

    /// The row of `text`: its ids cut to the context length, the end token kept,
    /// and padded to it.
    ///
    /// # Errors
    /// Those of [`Self::encode`].
    pub fn tokens(&self, text: &str) -> Result<Tokens> {
        let mut ids = self.encode(text)?;
        let truncated = ids.len() > self.context_length;
        if truncated {
            ids = self.cut(text)?;
        }
        let missing = self.context_length.saturating_sub(ids.len());
        let place = if self.pad_in_front { 0 } else { ids.len() };
        ids.splice(place..place, std::iter::repeat_n(self.pad_id, missing));
        Ok(Tokens { ids, truncated })
    }

    /// The ids of a text that has too many.
    fn cut(&self, text: &str) -> Result<Vec<u32>> {
        let text = &*self.cleaned(text);
        match &self.rules {
            Rules::SentencePiece(pieces) => {
                let mut ids = pieces.encode(text);
                ids.truncate(self.context_length - 1);
                Ok(pieces.with_end(ids))
            }
            Rules::Pipeline(tokenizer) => {
                // The cause may quote the text.
                let failed =
                    |_| Error::internal(format!("a text of {} bytes cannot be cut", text.len()));
                let added = tokenizer.encode_fast("", true).map_err(failed)?.len();
                let mut encoding = tokenizer.encode_fast(text, false).map_err(failed)?;
                encoding.truncate(self.context_length - added, 0, TruncationDirection::Right);
                encoding.take_overflowing();
                let encoding = tokenizer.post_process(encoding, None, true).map_err(failed)?;
                Ok(encoding.get_ids().to_vec())
            }
        }
    }

    /// The number of slots of the text tower.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// The ids of texts are below this. Without cleaning it is the number of all
    /// ids; special tokens have punctuation, so a cleaned text has none of them
    /// (T5's extra ones lie beyond the model's vocabulary).
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

/// One more than the highest id that is no special token's.
fn spelt(tokenizer: &Tokenizer) -> usize {
    let added = tokenizer.get_added_tokens_decoder();
    let ids = tokenizer.get_vocab(false).into_values().filter(|id| !added.contains_key(id));
    ids.max().map_or(0, |id| id as usize + 1)
}

/// Puts lower case in front of the tokenizer's own normaliser.
fn lower_case(tokenizer: &mut Tokenizer) -> tokenizers::Result<()> {
    let mut normalizers = vec![Lowercase.into()];
    normalizers.extend(tokenizer.get_normalizer().cloned());
    tokenizer.with_normalizer(Some(Sequence::new(normalizers)))?;
    Ok(())
}

impl Pieces {
    fn new(folder: &Folder, model: &[u8]) -> Result<Self> {
        let model = SentencePiece::new(model)
            .map_err(|error| error.context(format!("{MODEL}, {}", folder.name())))?;
        let token = |role: &str| -> Result<(String, u32)> {
            let name = folder.special_token(role)?.unwrap_or_default();
            let id = model.id(&name);
            id.map(|id| (name, id)).ok_or_else(|| folder.bad(format!("no {role} in {MODEL}")))
        };
        let (unknown, _) = token("unk_token")?;
        let (_, end_id) = token("eos_token")?;
        let special = folder.special_tokens()?.into_iter();
        let special = special.filter_map(|name| model.id(&name).map(|id| (name, id))).collect();
        let unknown_length = model.encode(&unknown).len();
        let lower_case = folder.flag("do_lower_case")?.unwrap_or(true);
        Ok(Pieces { model, special, lower_case, unknown, unknown_length, end_id })
    }

    /// `_add_eos_if_not_present`.
    fn with_end(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if ids.last() != Some(&self.end_id) {
            ids.push(self.end_id);
        }
        ids
    }

    /// `tokenize`: the ids without the end token.
    fn encode(&self, text: &str) -> Vec<u32> {
        let text = self.lowered(&format!("{SPACE}{}", text.replace(SPACE, " ")));
        let mut ids = Vec::new();
        let mut rest = &*text;
        loop {
            let next = self.next_special(rest);
            let (before, after) = match next {
                Some((at, (name, _))) => (&rest[..at], &rest[at + name.len()..]),
                None => (rest, ""),
            };
            self.encode_part(before, &mut ids);
            let Some((_, (_, id))) = next else { break };
            // A space that stands alone in front of a special token is dropped.
            if ids.len() == 1 && self.model.id("\u{2581}") == Some(ids[0]) {
                ids.clear();
            }
            ids.push(*id);
            rest = after;
        }
        ids
    }

    /// The special token that stands first in `text`, the longest of several.
    fn next_special(&self, text: &str) -> Option<(usize, &(String, u32))> {
        let found = self.special.iter().filter_map(|token| Some((text.find(&token.0)?, token)));
        found.min_by_key(|(at, (name, _))| (*at, usize::MAX - name.len()))
    }

    /// Lower case, letter by letter, but for special tokens.
    fn lowered(&self, text: &str) -> String {
        if !self.lower_case {
            return text.to_owned();
        }
        let mut lowered = String::with_capacity(text.len());
        let mut rest = text;
        loop {
            let next = self.next_special(rest);
            let end = next.map_or(rest.len(), |(at, _)| at);
            lowered.extend(rest[..end].chars().flat_map(char::to_lowercase));
            let Some((at, (name, _))) = next else { return lowered };
            lowered.push_str(name);
            rest = &rest[at + name.len()..];
        }
    }

    /// `_tokenize`. The model drops a blank in front, so the unknown token is put
    /// there and what it becomes is dropped again.
    fn encode_part(&self, text: &str, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let found = self.model.encode(&format!("{}{}", self.unknown, canonical(text)));
        ids.extend(found.get(self.unknown_length..).unwrap_or(&found));
    }
}

/// `canonicalize_text`: without ASCII punctuation, white space as single blanks.
fn canonical(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_space = false;
    for c in text.chars().filter(|c| !c.is_ascii_punctuation()) {
        let space = is_python_space(c);
        if !space {
            out.push(c);
        } else if !in_space {
            out.push(' ');
        }
        in_space = space;
    }
    python_strip(&out).to_owned()
}
