//! ONNX graphs of the models of imprompt, written from a Hugging Face model
//! folder without Python: `config.json` is read, the headers of the weight files
//! are read, the weights stay where they are and are referenced by offset.
//!
//! * [`weights`]: which tensor lies where in the model's files.
//! * [`builder`]: nodes, constants and references to weights become a graph.
//! * [`quantize`]: the same graph over weights in fewer bits.
//! * [`config`]: `config.json`, with every key accounted for.
//! * [`family`]: which families of models are known, and which are supported.
//! * [`clip`]: the two towers of CLIP, of open_clip's CLIP, and of SigLIP.
//! * [`captioner`]: caption models of every family: [`blip`], [`blip2`] and
//!   [`git`], made of [`bert`], [`qformer`], [`opt`] and [`t5`]; what their decoders have
//!   in common is in `decoder`.
#![forbid(unsafe_code)]

pub mod bert;
pub mod blip;
pub mod blip2;
pub mod builder;
pub mod captioner;
pub mod clip;
pub mod config;
mod decoder;
pub mod family;
mod generation;
pub mod git;
pub mod gpu;
pub mod opt;
pub mod precision;
pub mod qformer;
pub mod quantize;
pub mod t5;
pub mod weights;

pub use captioner::{
    CaptionFacts, CaptionFamily, CaptionGraphs, MemoryFacts, QFormerTextFacts, TextFacts,
    caption_graphs,
};
pub use clip::{ClipFacts, ClipFamily, ClipGraphs, EosRule, Probability, clip_graphs};
pub use generation::{EarlyStoppingFact, GenerationFacts};
