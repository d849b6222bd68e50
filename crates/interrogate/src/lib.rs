//! The interrogator: from the embedding of a picture to the prompt that describes it best, with
//! the semantics of clip-interrogator 0.6.0, and zero-shot scoring.
//!
//! This crate knows labels, ranking, the chain and the modes. It has no engine: CLIP's text side
//! comes in as a [`PromptEncoder`]. See `docs/interrogator.md` for the semantics and the decisions
//! where the reference is unclear.
#![forbid(unsafe_code)]

mod budget;
mod chain;
mod encoder;
mod interrogator;
pub mod labels;
mod modes;
pub mod rank;
mod report;
mod request;
mod step;
mod table;
mod table_ranker;
mod vocabulary;
mod zero_shot;

pub use encoder::{PromptEncoder, cosines, encoded_similarities};
pub use interrogator::{Config, Interrogator, NegativeSign, Outcome};
pub use report::{Candidate, Report, Seconds, Source, Term};
pub use request::{
    DEFAULT_MAX_FLAVORS, DEFAULT_MAX_FLAVORS_CLASSIC, DEFAULT_MIN_FLAVORS, FlavorCounts,
    MAX_MAX_FLAVORS, MAX_MIN_FLAVORS, Mode, Request,
};
pub use step::{ChainStep, Choice};
pub use table::{LabelTable, SharedBytes};
pub use table_ranker::{TableRanker, best_here, is_exact, same_bits};
pub use vocabulary::{Table, Vocabulary};
pub use zero_shot::{LabelEmbeds, Score, Scoring, zero_shot, zero_shot_by};
