//! Triton's C API: the only room that knows the names `TRITON*`.
//!
//! [`exports`] has the entry points, each one guarded ([`guard`]). A batch of
//! requests becomes [`request::Request`] values that are answered and released
//! exactly once, whatever happens.

mod backend;
mod bindings;
mod error;
mod exports;
mod guard;
mod instance;
mod log;
mod message;
mod metrics;
mod model;
mod request;
mod response;
mod state;
mod statistics;
