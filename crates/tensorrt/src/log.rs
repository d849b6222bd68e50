//! What TensorRT says.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::ThreadId;

use imprompt_error::{Error, Kind, Result};
use trtx::{LogHandler, Logger, Severity};

/// The logger of all that TensorRT does in this process: the library keeps one for good, whoever
/// gave it first.
///
/// # Errors
/// `Internal` when there can be none.
pub(crate) fn logger() -> Result<&'static Logger> {
    static LOGGER: OnceLock<Logger> = OnceLock::new();
    if let Some(logger) = LOGGER.get() {
        return Ok(logger);
    }
    let logger = Logger::new(Handler)
        .map_err(|error| Error::internal(format!("a logger of TensorRT: {error}")))?;
    Ok(LOGGER.get_or_init(|| logger))
}

/// Who wants to know what went wrong.
#[derive(Debug)]
struct Listener {
    /// On which thread; none: on any.
    thread: Option<ThreadId>,
    words: Arc<Mutex<Vec<String>>>,
}

static LISTENERS: Mutex<Vec<Listener>> = Mutex::new(Vec::new());

struct Handler;

impl LogHandler for Handler {
    fn log(&self, severity: Severity, message: &str) {
        // Called from C++, where nothing may unwind.
        let _ = catch_unwind(AssertUnwindSafe(|| hear(severity, message)));
    }
}

fn hear(severity: Severity, message: &str) {
    let message = message.trim();
    match severity {
        // Who listens makes an error of it.
        Severity::InternalError | Severity::Error => {
            tracing::debug!(target: "tensorrt", "{message}");
            let this = std::thread::current().id();
            let listeners = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
            let theirs = |listener: &&Listener| listener.thread.is_none_or(|one| one == this);
            for listener in listeners.iter().filter(theirs) {
                let mut words = listener.words.lock().unwrap_or_else(PoisonError::into_inner);
                words.push(message.to_owned());
            }
        }
        Severity::Warning => tracing::warn!(target: "tensorrt", "{message}"),
        Severity::Info => tracing::debug!(target: "tensorrt", "{message}"),
        Severity::Verbose => tracing::trace!(target: "tensorrt", "{message}"),
    }
}

/// Most characters of TensorRT's words that an error repeats.
const MOST_WORDS: usize = 600;

/// What TensorRT finds fault with, as long as this lives.
#[derive(Debug)]
pub(crate) struct Faults(Arc<Mutex<Vec<String>>>);

impl Faults {
    /// On any thread: for what TensorRT does with threads of its own, one at a time.
    pub(crate) fn of_all() -> Self {
        Self::listen(None)
    }

    /// On this thread.
    pub(crate) fn of_this_thread() -> Self {
        Self::listen(Some(std::thread::current().id()))
    }

    fn listen(thread: Option<ThreadId>) -> Self {
        let words: Arc<Mutex<Vec<String>>> = Arc::default();
        let listener = Listener { thread, words: words.clone() };
        LISTENERS.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
        Faults(words)
    }

    /// TensorRT's words for what went wrong, else those of `error`; `is_telling` says which ones count.
    pub(crate) fn words(&self, error: &trtx::Error, is_telling: impl Fn(&str) -> bool) -> String {
        let faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let telling = faults.iter().map(String::as_str).filter(|fault| is_telling(fault));
        let words = telling.collect::<Vec<_>>().join("; ").replace('\n', " ");
        match words.char_indices().nth(MOST_WORDS) {
            Some((end, _)) => format!("{}...", &words[..end]),
            None if words.is_empty() => error.to_string(),
            None => words,
        }
    }

    /// Why `what` failed, as an error of `kind`, or that memory ran out.
    pub(crate) fn error(&self, kind: Kind, what: &str, error: &trtx::Error) -> Error {
        told(kind, what, &self.words(error, |_| true))
    }
}

/// That `what` failed in TensorRT's `words`, as an error of `kind`, or that memory ran out.
pub(crate) fn told(kind: Kind, what: &str, words: &str) -> Error {
    if words.to_ascii_lowercase().contains("out of memory") {
        return Error::out_of_memory(format_args!("{what} on the GPU: {words}"));
    }
    Error::new(kind, format!("{what}: TensorRT: {words}"))
}

impl Drop for Faults {
    fn drop(&mut self) {
        let mut listeners = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| !Arc::ptr_eq(&listener.words, &self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_a_threads_or_all() {
        let (own, all) = (Faults::of_this_thread(), Faults::of_all());
        let error = trtx::Error::Runtime("no".to_owned());
        Handler.log(Severity::Warning, "slow");
        assert!(own.words(&error, |_| true).ends_with("no"));
        std::thread::spawn(|| Handler.log(Severity::Error, "elsewhere")).join().unwrap();
        Handler.log(Severity::Error, "refused\nhere ");
        assert_eq!(own.words(&error, |_| true), "refused here");
        let words = all.words(&error, |_| true);
        assert!(words.contains("elsewhere") && words.contains("refused here"), "{words}");
        assert_eq!(own.words(&error, |fault| !fault.contains("refused")), error.to_string());
        Handler.log(Severity::Error, &"x".repeat(1000));
        assert_eq!(own.words(&error, |_| true).len(), MOST_WORDS + 3);
        drop(own);
        let later = Faults::of_this_thread();
        assert!(later.words(&error, |_| true).ends_with("no"));
    }

    #[test]
    fn memory_that_ran_out_is_said() {
        let faults = Faults::of_this_thread();
        let error = trtx::Error::Runtime("no".to_owned());
        let plain = faults.error(Kind::Unsupported, "a context", &error);
        assert_eq!(plain.kind(), Kind::Unsupported);
        assert_eq!(plain.message(), "a context: TensorRT: Runtime error: no");
        Handler.log(Severity::Error, "Cuda Runtime (out of memory)");
        let memory = faults.error(Kind::Internal, "a context", &error);
        assert_eq!(memory.kind(), Kind::OutOfMemory);
    }
}
