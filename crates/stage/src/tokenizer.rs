//! Texts to the token rows of a CLIP's text tower.

use std::path::Path;

use imprompt_error::{Error, Result};
use imprompt_graph::{ClipFacts, ClipFamily};
use imprompt_text::{Cleaning, ClipTokenizer, SiglipTokenizer, Tokens};

/// The tokenizer of a model's family.
pub(crate) enum TextTokenizer {
    Clip(ClipTokenizer),
    Siglip(SiglipTokenizer),
}

impl TextTokenizer {
    /// The tokenizer in `folder`.
    pub(crate) fn load(folder: &Path, facts: &ClipFacts, cleaning: Cleaning) -> Result<Self> {
        let slots = facts.context_length;
        let (tokenizer, ids) = match facts.family {
            ClipFamily::Clip => {
                let tokenizer = ClipTokenizer::load(folder, cleaning, slots)?;
                let ids = tokenizer.vocab_size();
                (TextTokenizer::Clip(tokenizer), ids)
            }
            ClipFamily::Siglip => {
                let tokenizer = SiglipTokenizer::load(folder, cleaning, slots)?;
                let ids = tokenizer.vocab_size();
                (TextTokenizer::Siglip(tokenizer), ids)
            }
        };
        if ids > facts.vocabulary {
            return Err(Error::bad_model(format!(
                "tokenizer of {}: {ids} tokens, the model knows {}",
                folder.display(),
                facts.vocabulary
            )));
        }
        Ok(tokenizer)
    }

    fn tokens(&self, text: &str) -> Result<Tokens> {
        match self {
            TextTokenizer::Clip(tokenizer) => tokenizer.tokens(text),
            TextTokenizer::Siglip(tokenizer) => tokenizer.tokens(text),
        }
    }

    /// Token rows of `texts`.
    pub(crate) fn rows(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        texts.iter().map(|text| Ok(self.tokens(text)?.ids)).collect()
    }

    /// Token rows of `"{prompt}, {phrase}"` for each of `phrases`.
    pub(crate) fn continued(&self, prompt: &str, phrases: &[&str]) -> Result<Vec<Vec<u32>>> {
        match self {
            TextTokenizer::Clip(tokenizer) => {
                let rows = tokenizer.continued(prompt, phrases)?;
                Ok(rows.into_iter().map(|tokens| tokens.ids).collect())
            }
            // Its tokens go over blanks.
            TextTokenizer::Siglip(_) => {
                let row = |phrase| Ok(self.tokens(&format!("{prompt}, {phrase}"))?.ids);
                phrases.iter().map(row).collect()
            }
        }
    }

    /// Tokens of a text, neither cut nor padded.
    pub(crate) fn count(&self, text: &str) -> Result<usize> {
        let ids = match self {
            TextTokenizer::Clip(tokenizer) => tokenizer.encode(text)?,
            TextTokenizer::Siglip(tokenizer) => tokenizer.encode(text)?,
        };
        Ok(ids.len())
    }

    /// Tokens that every text has: start and end token of CLIP, the end token of SigLIP.
    pub(crate) fn frame(&self) -> usize {
        match self {
            TextTokenizer::Clip(_) => 2,
            TextTokenizer::Siglip(_) => 1,
        }
    }
}

/// Checks that `folder` has the tokenizer that a model of these facts needs.
///
/// # Errors
/// `BadModel` naming the file that is missing or wrong, or the sizes that do not fit.
pub fn check_tokenizer(folder: &Path, facts: &ClipFacts, cleaning: Cleaning) -> Result<()> {
    TextTokenizer::load(folder, facts, cleaning).map(drop)
}
