//! Captions: a picture through its encoders, and a language model that says what
//! it sees, token by token.
//!
//! * [`Captioner`]: the graphs of a model folder, run on batches of pictures.
//! * [`PictureEncoder`]: the graphs of it that read no text, for a process or stage of their own.
//! * [`generation`]: how the next token is chosen.
//! * [`scheduler`]: slots, steps, early stops and cancellation, whatever the
//!   model and the engine.
#![forbid(unsafe_code)]

mod captioner;
mod decoder;
pub mod generation;
mod pictures;
pub mod scheduler;

pub use captioner::{CaptionRequest, Captioner, CaptionerOptions, Encoded, Generated, Told};
pub use decoder::memory_length;
pub use generation::{EarlyStopping, GenerationOptions, Sampling};
pub use pictures::PictureEncoder;
pub use scheduler::Stop;
