//! The one error of imprompt: a kind, and a message that names the tensor or
//! file, what is wrong with it in numbers, and what is allowed.
//!
//! A message never repeats text of a request: SageMaker answers status 507 when
//! an error text contains words such as "OOM", and a user's label may be "ZOOM".
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

mod guard;

pub use guard::catch;

/// What kind of failure it is. Each host (Triton, the command) maps a kind to
/// its own code in one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A value of the request is out of range, malformed or of the wrong type.
    InvalidInput,
    /// A named thing (vocabulary, file, model) does not exist.
    NotFound,
    /// The thing is well formed but this build does not do it.
    Unsupported,
    /// A bounded resource is full for now; the same request may succeed later.
    Unavailable,
    /// The client gave the request up.
    Cancelled,
    /// The request's own deadline passed.
    DeadlineExceeded,
    /// Memory could not be had. The message contains "out of memory", which
    /// SageMaker's front end looks for.
    OutOfMemory,
    /// A file of the repository or of a model source is wrong.
    BadModel,
    /// A fault of imprompt or of an engine below it.
    Internal,
}

/// A failure: its [`Kind`] and a message fit for a client.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    message: String,
}

/// Shorthand for results of this project.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` with `message` (lower case, names the thing).
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into() }
    }

    /// [`Kind::InvalidInput`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidInput, message)
    }

    /// [`Kind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// [`Kind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, message)
    }

    /// [`Kind::Unavailable`].
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }

    /// [`Kind::BadModel`].
    pub fn bad_model(message: impl Into<String>) -> Self {
        Self::new(Kind::BadModel, message)
    }

    /// [`Kind::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// [`Kind::Cancelled`], with its fixed text.
    pub fn cancelled() -> Self {
        Self::new(Kind::Cancelled, "the request was cancelled")
    }

    /// [`Kind::OutOfMemory`]: `what` is the thing the memory was for.
    pub fn out_of_memory(what: impl fmt::Display) -> Self {
        Self::new(Kind::OutOfMemory, format!("out of memory: {what}"))
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same error with `context: ` in front of its message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

impl std::error::Error for Error {}

/// Asked between decoding steps and chain steps whether to go on.
pub trait Cancellation: Sync {
    /// True once the client has given the request up.
    fn is_cancelled(&self) -> bool;

    /// An error of [`Kind::Cancelled`] once [`Self::is_cancelled`].
    fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
    }

    /// From when on the request counts as given up whatever the client does, for one who
    /// works on another thread and cannot ask.
    fn deadline(&self) -> Option<Instant> {
        None
    }
}

/// A request that cannot be cancelled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uncancellable;

impl Cancellation for Uncancellable {
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// A flag shared between the one who cancels and the one who works.
#[derive(Clone, Debug, Default)]
pub struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    /// Gives the work up.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Cancellation for CancelFlag {
    fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_goes_in_front() {
        let error = Error::invalid("2 values, 1 allowed").context("input `mode`");
        assert_eq!(error.message(), "input `mode`: 2 values, 1 allowed");
        assert_eq!(error.kind(), Kind::InvalidInput);
    }

    #[test]
    fn a_flag_cancels() {
        let flag = CancelFlag::default();
        assert!(flag.check().is_ok());
        flag.clone().cancel();
        assert_eq!(flag.check().unwrap_err().kind(), Kind::Cancelled);
    }

    #[test]
    fn sagemaker_recognises_memory_errors() {
        assert!(Error::out_of_memory("a label table").message().contains("out of memory"));
    }
}
