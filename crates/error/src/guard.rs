//! Panics end here.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{Error, Result};

/// Runs `run`; a panic becomes an error of kind `Internal` that says where
/// (`what`) but not why: a panic's message may hold text of a request.
///
/// # Errors
/// Those of `run`, and the panic's.
pub fn catch<T>(what: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    // Unwind safety: callers drop or rebuild what a panic may have left half done.
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| {
        // The payload's own destructor may panic; that panic's payload is leaked,
        // for its destructor could do the same for ever.
        if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(second);
        }
        Err(Error::internal(format!("{what}: a panic was caught; this is a fault of imprompt")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;
    use std::panic::panic_any;

    struct PanicsWhenDropped;

    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            panic_any(PanicsWhenDropped);
        }
    }

    #[test]
    fn results_pass() {
        assert_eq!(catch("entry", || Ok(7)).unwrap(), 7);
        let error = catch::<()>("entry", || Err(Error::not_found("x"))).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
    }

    #[test]
    fn no_panic_passes_and_its_text_stays_behind() {
        let error = catch::<()>("entry", || panic!("{}", "a user's text")).unwrap_err();
        assert_eq!(error.kind(), Kind::Internal);
        assert!(!error.message().contains("user"));
        assert!(catch::<()>("entry", || panic_any(PanicsWhenDropped)).is_err());
    }
}
