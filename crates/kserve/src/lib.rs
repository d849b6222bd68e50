//! A client of the KServe v2 inference protocol as Triton speaks it: HTTP with
//! the binary tensor extension, and (feature `grpc`) gRPC.
//!
//! ```no_run
//! use imprompt_kserve::{Client, InferRequest};
//!
//! let client = Client::new("http://127.0.0.1:8000");
//! let request = InferRequest::new()
//!     .bytes("image", [1, 1], [std::fs::read("croissant.png")?])
//!     .text("mode", "fast")
//!     .output("prompt");
//! let response = client.infer("interrogate", &request)?;
//! println!("{}", response.text("prompt")?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod body;
#[cfg(feature = "grpc")]
pub mod grpc;
mod http;
mod tensor;

pub use http::{Client, Events};
pub use tensor::{InferRequest, InferResponse, Tensor, Values};

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The server answered with an error. `code` is the HTTP status, or the
    /// code of gRPC; `message` is the server's own text.
    #[error("{message} (status {code})")]
    Status {
        /// HTTP status or gRPC code.
        code: u16,
        /// The server's text.
        message: String,
    },
    /// The server could not be reached, or the connection broke.
    #[error("{0}")]
    Transport(String),
    /// The answer was not what the protocol or the caller expects.
    #[error("{0}")]
    Protocol(String),
}

impl Error {
    /// The server's status, if it answered at all.
    pub fn code(&self) -> Option<u16> {
        match self {
            Error::Status { code, .. } => Some(*code),
            _ => None,
        }
    }

    pub(crate) fn protocol(message: impl Into<String>) -> Self {
        Error::Protocol(message.into())
    }
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
