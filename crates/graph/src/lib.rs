//! ONNX graphs of the models of imprompt, written from a Hugging Face model
//! folder without Python: `config.json` is read, the header of the safetensors
//! is read, the weights stay where they are and are referenced by offset.
//!
//! * [`weights`]: which tensor lies where in the model's files.
//! * [`builder`]: nodes, constants and references to weights become a graph.
//! * [`config`]: `config.json`, with every key accounted for.
//! * [`clip`]: the two towers of CLIP, of open_clip's CLIP, and of SigLIP.
//! * [`captioner`]: caption models of every family: [`blip2`], made of its image
//!   encoder, [`qformer`] and [`opt`].
#![forbid(unsafe_code)]

pub mod blip2;
pub mod builder;
pub mod captioner;
pub mod clip;
pub mod config;
pub mod opt;
mod proto;
pub mod qformer;
pub mod weights;

pub use captioner::{CaptionFacts, CaptionFamily, CaptionGraphs, caption_graphs};
pub use clip::{ClipFacts, ClipFamily, ClipGraphs, EosRule, Probability, clip_graphs};
