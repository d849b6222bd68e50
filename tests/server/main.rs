//! The backend in a real Triton server, over HTTP and gRPC.
//!
//! `scripts/test` sets the server, ONNX Runtime and the demo repository up and
//! names them in the environment; without, these tests fail and say so.
#![allow(missing_docs)]

mod bad_input;
mod batches;
mod cancellation;
mod clips;
mod configuration;
mod endpoint;
mod ensembles;
mod families;
mod generation;
mod goldens;
mod gpu;
mod hostile;
mod joined;
mod library;
mod lifecycle;
mod package;
mod sagemaker;
mod statistics;
mod stream;
mod support;
mod transport;
