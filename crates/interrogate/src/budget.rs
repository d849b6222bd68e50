//! The time that a request gives its chain.

use std::time::{Duration, Instant};

use imprompt_error::{Cancellation, Error, Kind, Result};

/// A request's cancellation, which also stops the work on a step when the time is over.
pub(crate) struct Budget<'a> {
    inner: &'a dyn Cancellation,
    end: Option<Instant>,
}

impl<'a> Budget<'a> {
    /// `time` from now on; `None`: no end.
    pub(crate) fn new(inner: &'a dyn Cancellation, time: Option<Duration>) -> Self {
        Budget { inner, end: time.and_then(|time| Instant::now().checked_add(time)) }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// `result`, or `None` when the time was over before it came about. A request that was
    /// cancelled is an error still.
    pub(crate) fn unless_over<T>(&self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Err(error) if error.kind() == Kind::DeadlineExceeded && self.is_over() => {
                self.inner.check().map(|()| None)
            }
            result => result.map(Some),
        }
    }
}

impl Cancellation for Budget<'_> {
    fn is_cancelled(&self) -> bool {
        self.is_over() || self.inner.is_cancelled()
    }

    fn check(&self) -> Result<()> {
        self.inner.check()?;
        match self.is_over() {
            true => Err(Error::new(Kind::DeadlineExceeded, "input `budget_ms`: the time is over")),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use imprompt_error::{CancelFlag, Uncancellable};

    use super::*;

    #[test]
    fn time_that_is_over_is_no_error_and_a_cancellation_is() {
        let over = Budget::new(&Uncancellable, Some(Duration::ZERO));
        assert!(over.is_over() && over.is_cancelled());
        assert_eq!(over.unless_over(over.check()).unwrap(), None);
        assert!(over.unless_over::<()>(Err(Error::internal("broken"))).is_err());
        let flag = CancelFlag::default();
        flag.cancel();
        let cancelled = Budget::new(&flag, Some(Duration::ZERO));
        assert_eq!(cancelled.check().unwrap_err().kind(), Kind::Cancelled);
        assert!(cancelled.unless_over(over.check()).is_err());
        let endless = Budget::new(&Uncancellable, None);
        assert!(!endless.is_over() && endless.check().is_ok());
    }
}
