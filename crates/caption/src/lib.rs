//! Captions: a picture through its encoders, and a language model that says what
//! it sees, token by token.
//!
//! * [`Captioner`]: the graphs of a model folder, run on batches of pictures.
//! * [`SharedCaptioner`]: one for many callers, whose pictures join and leave at step boundaries.
//! * [`PictureEncoder`]: the graphs of it that read no text, for a process or stage of their own.
//! * [`generation`]: how the next token is chosen.
//! * [`scheduler`]: slots, steps, early stops and cancellation, whatever the
//!   model and the engine.
#![forbid(unsafe_code)]

mod admission;
mod captioner;
mod decode_loop;
mod decoder;
#[cfg(test)]
mod fake;
pub mod generation;
mod pictures;
pub mod scheduler;
mod shared_captioner;

pub use captioner::{CaptionRequest, Captioner, CaptionerOptions, Encoded, Generated, Tell, Told};
pub use decode_loop::{Load, Watch};
pub use decoder::memory_length;
pub use generation::{EarlyStopping, GenerationOptions, Sampling};
pub use pictures::PictureEncoder;
pub use scheduler::Stop;
pub use shared_captioner::SharedCaptioner;
