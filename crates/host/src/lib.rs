//! What the Triton backend does between Triton's C API and a stage, without a
//! name of that API: model configurations, tensors out of buffers and back, and
//! a worker that outlives the panics of its stage.
#![forbid(unsafe_code)]

pub mod config;
mod gather;
mod memory_words;
mod scatter;
mod worker;

pub use gather::{RawBytes, RawInput, gather};
pub use imprompt_error::catch;
pub use memory_words::client_message;
pub use scatter::wanted_outputs;
pub use worker::{Outcome, Worker};
