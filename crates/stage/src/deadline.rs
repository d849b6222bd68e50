//! A request's own deadline: an HTTP client that left is not reported as gone, so
//! long work must end by itself.

use std::time::{Duration, Instant};

use imprompt_error::{Cancellation, Error, Kind, Result};

/// The cancellation of a request, with the owner's `deadline_ms` from now on.
pub(crate) struct Deadline<'a> {
    inner: &'a dyn Cancellation,
    end: Option<Instant>,
    milliseconds: u64,
}

impl<'a> Deadline<'a> {
    /// `milliseconds` 0: no deadline.
    pub(crate) fn new(inner: &'a dyn Cancellation, milliseconds: u64) -> Self {
        let end = (milliseconds > 0)
            .then(|| Instant::now().checked_add(Duration::from_millis(milliseconds)))
            .flatten();
        Deadline { inner, end, milliseconds }
    }

    fn is_past(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }
}

impl Cancellation for Deadline<'_> {
    fn is_cancelled(&self) -> bool {
        self.is_past() || self.inner.is_cancelled()
    }

    fn check(&self) -> Result<()> {
        if self.is_past() {
            return Err(Error::new(
                Kind::DeadlineExceeded,
                format!("the request took longer than the {} ms allowed", self.milliseconds),
            ));
        }
        self.inner.check()
    }

    fn deadline(&self) -> Option<Instant> {
        self.end.into_iter().chain(self.inner.deadline()).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imprompt_error::{CancelFlag, Uncancellable};

    #[test]
    fn a_deadline_passes_and_none_never_does() {
        let deadline = Deadline::new(&Uncancellable, 1);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(deadline.check().unwrap_err().kind(), Kind::DeadlineExceeded);
        assert!(deadline.deadline().unwrap() < Instant::now());
        assert!(Deadline::new(&Uncancellable, 0).check().is_ok());
        assert_eq!(Deadline::new(&Uncancellable, 0).deadline(), None);
    }

    #[test]
    fn the_client_may_still_cancel() {
        let flag = CancelFlag::default();
        let deadline = Deadline::new(&flag, 60_000);
        assert!(deadline.check().is_ok());
        flag.cancel();
        assert_eq!(deadline.check().unwrap_err().kind(), Kind::Cancelled);
    }
}
