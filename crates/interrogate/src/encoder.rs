//! What the interrogator needs of CLIP's text side.

use imprompt_error::{Cancellation, Error, Result};

use crate::table_ranker::TableRanker;

/// The text side of a CLIP model, as the interrogator uses it.
///
/// Every text is cleaned, tokenised, and cut to [`Self::context_length`] with the end token kept,
/// as open_clip's tokenizer does. Embeddings are L2-normalised, so a dot product with a normalised
/// image embedding is a cosine.
///
/// The default methods build everything from [`Self::encode`]. An implementation over a real model
/// overrides [`Self::continuation_similarities`]: the text tower is causal, so the keys and values
/// of the shared prompt need computing only once.
pub trait PromptEncoder {
    /// Width D of the joint embedding space.
    fn dimension(&self) -> usize;

    /// Token slots of the text tower, start and end token included: 77 for CLIP.
    fn context_length(&self) -> usize {
        77
    }

    /// Tokens of `text` before truncation, without the start and the end token.
    fn token_count(&self, text: &str) -> usize;

    /// Embeds `texts`: float32 `[n, D]`, row-major, each row L2-normalised.
    ///
    /// # Errors
    /// Those of the engine below, and a cancellation.
    fn encode(&mut self, texts: &[&str], cancel: &dyn Cancellation) -> Result<Vec<f32>>;

    /// Cosines of `image` (float32 `[D]`, L2-normalised) with each of `texts`: float32 `[n]`, to the
    /// bits of [`encoded_similarities`].
    ///
    /// # Errors
    /// Those of [`Self::encode`].
    fn similarities(
        &mut self,
        image: &[f32],
        texts: &[&str],
        cancel: &dyn Cancellation,
    ) -> Result<Vec<f32>> {
        encoded_similarities(self, image, texts, cancel)
    }

    /// Cosines of `image` with `prompt + ", " + phrase` for each of `phrases`: float32 `[n]`.
    ///
    /// # Errors
    /// Those of [`Self::encode`].
    fn continuation_similarities(
        &mut self,
        image: &[f32],
        prompt: &str,
        phrases: &[&str],
        cancel: &dyn Cancellation,
    ) -> Result<Vec<f32>> {
        let texts: Vec<String> =
            phrases.iter().map(|phrase| format!("{prompt}, {phrase}")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        self.similarities(image, &texts, cancel)
    }

    /// A cheaper encoder of the same model, whose cosines are near this one's: the chain lets it sort out
    /// the candidates that cannot be the best. `None`: this one scores them all.
    fn screen(&mut self) -> Option<&mut dyn PromptEncoder> {
        None
    }

    /// What compares pictures with the label tables where this encoder computes, if that is elsewhere.
    /// `None`: the processor does.
    fn table_ranker(&mut self) -> Option<&mut dyn TableRanker> {
        None
    }

    /// True when `text` fills the last token slot, so a text that fits exactly counts too
    /// (`_prompt_at_max_len` of clip_interrogator.py, for a tokenizer that pads with 0).
    fn is_at_max_length(&self, text: &str) -> bool {
        self.token_count(text) + 2 >= self.context_length()
    }
}

/// Cosines of `image` with the embeddings that `encoder` gives of `texts`.
///
/// # Errors
/// Those of [`PromptEncoder::encode`]; `Internal` when it gives a wrong number of values.
pub fn encoded_similarities<E: PromptEncoder + ?Sized>(
    encoder: &mut E,
    image: &[f32],
    texts: &[&str],
    cancel: &dyn Cancellation,
) -> Result<Vec<f32>> {
    let dimension = encoder.dimension();
    let embeds = encoder.encode(texts, cancel)?;
    if dimension == 0 || embeds.len() != texts.len() * dimension {
        return Err(Error::internal(format!(
            "the text encoder gave {} values for {} texts of {dimension} values each",
            embeds.len(),
            texts.len()
        )));
    }
    Ok(cosines(image, &embeds))
}

/// Cosines of `image` (float32 `[D]`) with each of `embeds` (float32 `[n, D]`), all of them L2-normalised:
/// float32 `[n]`.
#[must_use]
pub fn cosines(image: &[f32], embeds: &[f32]) -> Vec<f32> {
    let rows = embeds.chunks_exact(image.len().max(1));
    rows.map(|row| crate::rank::dot(row, image)).collect()
}
