//! Captions: a picture through its encoders, and a language model that says what
//! it sees, token by token.
//!
//! * [`Captioner`]: the graphs of a model folder, run on batches of pictures.
//! * [`scheduler`]: slots, steps, early stops and cancellation, whatever the
//!   model and the engine.
#![forbid(unsafe_code)]

mod captioner;
mod decoder;
pub mod scheduler;

pub use captioner::{CaptionRequest, Captioner, CaptionerOptions, Generated};
pub use scheduler::Stop;
