//! Text to token ids, and back, exactly as the Python references do it.
//!
//! [`ClipTokenizer`] is for CLIP's text tower, with the cleaning of open_clip or
//! that of transformers, [`SiglipTokenizer`] for SigLIP's; [`CaptionTokenizer`] is
//! for the language models that write captions. All are loaded from a Hugging Face
//! folder, are used through `&self` from any thread, and take any text: no string
//! makes them panic.
//! `docs/text.md` states the rules, the references and where this crate
//! knowingly differs from them.
#![forbid(unsafe_code)]

mod caption;
mod clean;
mod clip;
mod files;
mod pipeline;
mod prefix;
mod sentencepiece;
mod siglip;

pub use caption::CaptionTokenizer;
pub use clean::{fix_text, python_strip, unescape_html};
pub use clip::{Cleaning, ClipTokenizer, Tokens};
pub use prefix::common_prefix;
pub use siglip::SiglipTokenizer;
