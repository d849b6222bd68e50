//! ONNX graphs of the models of imprompt, written from a Hugging Face model
//! folder without Python: `config.json` is read, the header of the safetensors
//! is read, the weights stay where they are and are referenced by offset.
//!
//! * [`weights`]: which tensor lies where in the model's files.
//! * [`builder`]: nodes, constants and references to weights become a graph.
//! * [`config`]: `config.json`, with every key accounted for.
//! * [`clip`]: the two towers of CLIP.
#![forbid(unsafe_code)]

pub mod builder;
pub mod config;
mod proto;
pub mod weights;
