//! The body of a request as one piece, as SageMaker's clients send it: a JSON document or a bare
//! picture. What it asks, and the answer as JSON.
//!
//! A body is read in one pass into what it may say and nothing else: no value is kept that is not
//! asked for, nothing is nested deeper than `parameters`, and what is wrong is named by its field
//! and in numbers. No text of a body is ever repeated.
#![forbid(unsafe_code)]

mod answer;
mod asked;
mod body;
mod fields;

pub use answer::{labels, probabilities, prompt};
pub use asked::{Answer, Asked, Value};
pub use body::{Invocation, read};

/// How much a body may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the body.
    pub body_bytes: usize,
    /// Labels of a list.
    pub labels: usize,
    /// Bytes of one text that is no picture.
    pub text_bytes: usize,
    /// Tokens of a caption.
    pub caption_tokens: usize,
}
