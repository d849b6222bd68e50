//! `libtriton_imprompt.so`: the backend `imprompt` of Triton Inference Server.
//!
//! Everything here is the border to Triton's C API; what a model does is in
//! `imprompt-stage`. See docs/backend.md.

mod triton;
