//! How the next token is chosen: options, processors of the scores, sampling and
//! beams.
//!
//! Reference: transformers 4.33.1, `generation/{utils,logits_process,beam_search}.py`:
//! the same processors in the same order, the same beams, the same end. Where the
//! reference draws at random, here a seeded generator of known numbers does.
//!
//! **The ids that processors see** are a sequence's *context* and then what it has
//! said. The context is what the reference's `generate` has in `input_ids` before
//! the first step, which is not always the prompt: a language model that is called
//! with embeddings (BLIP-2's) knows of the start token alone, whatever the prompt.
//! Penalties, banned n-grams, `min_length` and the lengths of beams count the
//! context; `max_new_tokens` and `min_new_tokens` do not.

mod beams;
mod decoding;
mod options;
mod processors;
mod sampling;

pub(crate) use decoding::{Advance, Branch, Decoding};
pub use options::{EarlyStopping, GenerationOptions, Sampling};

#[cfg(test)]
mod tests;
