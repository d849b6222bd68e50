//! The report that goes with a prompt.

use serde::Serialize;

use crate::request::Mode;

/// Which way a candidate prompt was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The caption alone.
    Caption,
    /// As mode classic makes it.
    Classic,
    /// As mode fast makes it.
    Fast,
    /// The chain of mode best.
    Chain,
    /// The chain of mode negative.
    Negative,
}

/// A term of the prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Term {
    /// The label, as its table has it.
    pub term: String,
    /// The name of its table.
    pub table: &'static str,
    /// In a chain: cosine of the prompt that ends with this term. Else: cosine of the term alone,
    /// from its float16 embedding, by which it was ranked.
    pub similarity: f32,
}

/// A prompt that could have been the answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// How it was made.
    pub source: Source,
    /// The prompt.
    pub prompt: String,
    /// Cosine of the prompt with the picture.
    pub similarity: f32,
}

/// How a prompt came about.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The mode.
    pub mode: Mode,
    /// Which candidate is the prompt.
    pub source: Source,
    /// Every candidate: caption, classic, fast and chain in mode best, otherwise the prompt alone.
    pub candidates: Vec<Candidate>,
    /// The terms of the prompt in order. A term that the length limit cut off is not among them.
    pub accepted_terms: Vec<Term>,
    /// Tokens of the prompt without the start and the end token, before CLIP cuts it.
    pub token_count: usize,
    /// True when terms were left out for the length limit, or when the prompt itself is longer
    /// than the limit, so that CLIP saw only its beginning.
    pub truncated: bool,
    /// False when `budget_ms` was over before the chain had ended by itself.
    pub complete: bool,
}

/// Where the time of an answer went, in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Seconds {
    /// All of it, from the picture's embedding and its caption on.
    pub all: f64,
    /// The passes over the label tables.
    pub ranking: f64,
    /// Each step of the chain, the last of which may be one that was refused.
    pub steps: Vec<f64>,
}
