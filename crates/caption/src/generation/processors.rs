//! What changes the scores before a token is chosen (`LogitsProcessor`).

use super::GenerationOptions;

/// The processors that options ask for, in the reference's order: repetition
/// penalty, banned n-grams, minimum length, minimum of new tokens.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Processors {
    repetition_penalty: f32,
    ngram_size: usize,
    /// The end tokens are banned while there are fewer ids than this, the context counted.
    min_length: usize,
    eos_token_ids: Vec<u32>,
}

impl Processors {
    /// `context`: how many ids there are in front of the new ones.
    pub(super) fn new(options: &GenerationOptions, context: usize, eos_token_ids: &[u32]) -> Self {
        Processors {
            repetition_penalty: options.repetition_penalty as f32,
            ngram_size: options.no_repeat_ngram_size,
            // Both of the reference's processors ban the same tokens.
            min_length: match options.min_new_tokens {
                0 => options.min_length,
                new => options.min_length.max(context + new),
            },
            eos_token_ids: eos_token_ids.to_vec(),
        }
    }

    /// Whether they would leave every score as it is after `ids`.
    pub(super) fn is_idle(&self, ids: &[u32]) -> bool {
        self.repetition_penalty == 1.0 && self.ngram_size == 0 && ids.len() >= self.min_length
    }

    /// Changes the `scores` of the token that follows `ids`. A banned token's is
    /// negative infinity.
    pub(super) fn apply(&self, ids: &[u32], scores: &mut [f32]) {
        if self.repetition_penalty != 1.0 {
            self.penalise(ids, scores);
        }
        if self.ngram_size > 0 {
            self.ban_ngrams(ids, scores);
        }
        if ids.len() < self.min_length {
            for id in &self.eos_token_ids {
                set(scores, *id, f32::NEG_INFINITY);
            }
        }
    }

    /// Each id once, however often it was said.
    fn penalise(&self, ids: &[u32], scores: &mut [f32]) {
        let mut unique = ids.to_vec();
        unique.sort_unstable();
        unique.dedup();
        for id in unique {
            let Some(score) = scores.get_mut(id as usize) else { continue };
            if *score < 0.0 {
                *score *= self.repetition_penalty;
            } else {
                *score /= self.repetition_penalty;
            }
        }
    }

    /// Bans what would make the last ids an n-gram that was there before.
    fn ban_ngrams(&self, ids: &[u32], scores: &mut [f32]) {
        let prefix = self.ngram_size - 1;
        let Some(start) = ids.len().checked_sub(prefix) else { return };
        let last = &ids[start..];
        for ngram in ids.windows(self.ngram_size) {
            if &ngram[..prefix] == last {
                set(scores, ngram[prefix], f32::NEG_INFINITY);
            }
        }
    }
}

/// A model of few tokens has no score for an id of another's context.
fn set(scores: &mut [f32], id: u32, value: f32) {
    if let Some(score) = scores.get_mut(id as usize) {
        *score = value;
    }
}
