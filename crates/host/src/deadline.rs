//! The time a request may take, beside its client's own wish.

use std::time::{Duration, Instant};

use imprompt_error::{Cancellation, Error, Kind, Result};

/// A request's cancellation, and the moment it is given up all the same.
/// HTTP clients that leave are not noticed by Triton: only this ends their work.
pub struct Deadline<'a> {
    client: &'a dyn Cancellation,
    limit: Option<(Instant, Duration)>,
}

impl<'a> Deadline<'a> {
    /// Gives up `limit` after now (never without one), or when `client` does.
    pub fn new(client: &'a dyn Cancellation, limit: Option<Duration>) -> Self {
        Deadline { client, limit: limit.map(|limit| (Instant::now(), limit)) }
    }

    fn is_over(&self) -> bool {
        self.limit.is_some_and(|(start, limit)| start.elapsed() >= limit)
    }
}

impl Cancellation for Deadline<'_> {
    fn is_cancelled(&self) -> bool {
        self.client.is_cancelled() || self.is_over()
    }

    fn check(&self) -> Result<()> {
        self.client.check()?;
        match self.limit {
            Some((_, limit)) if self.is_over() => Err(Error::new(
                Kind::DeadlineExceeded,
                format!(
                    "the request was given up after {} ms, the model's deadline_ms",
                    limit.as_millis()
                ),
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imprompt_error::{CancelFlag, Uncancellable};

    #[test]
    fn ends_by_time_or_by_the_client() {
        assert!(Deadline::new(&Uncancellable, None).check().is_ok());
        assert!(Deadline::new(&Uncancellable, Some(Duration::from_secs(60))).check().is_ok());
        let over = Deadline::new(&Uncancellable, Some(Duration::ZERO));
        assert!(over.is_cancelled());
        assert_eq!(over.check().unwrap_err().kind(), Kind::DeadlineExceeded);
        let flag = CancelFlag::default();
        flag.cancel();
        let left = Deadline::new(&flag, Some(Duration::from_secs(60)));
        assert_eq!(left.check().unwrap_err().kind(), Kind::Cancelled);
    }
}
