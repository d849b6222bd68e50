//! Memory of an engine's outputs, used again and again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use imprompt_cuda::{Buffer, Span, Stream};
use imprompt_error::{Error, Result};

/// Free buffers that are kept.
const KEPT: usize = 16;

/// The least that is allocated: what TensorRT wants addresses to be multiples of.
const LEAST: usize = 256;

/// The size that is allocated for `bytes`: one of eight from a power of two to the next, so that
/// outputs of about the same size take turns in the same memory.
fn class(bytes: usize) -> Option<usize> {
    let bytes = bytes.max(LEAST);
    let step = (bytes.checked_next_power_of_two()? / 16).max(LEAST);
    bytes.checked_next_multiple_of(step)
}

/// What is free, by its size, the one that was used last at the end.
#[derive(Debug)]
struct Shelf<T>(VecDeque<(usize, T)>);

impl<T> Shelf<T> {
    /// One of this size, the one that was used last: addresses that stay the same are worth something.
    fn take(&mut self, size: usize) -> Option<T> {
        let place = self.0.iter().rposition(|(other, _)| *other == size)?;
        self.0.remove(place).map(|(_, item)| item)
    }

    /// Keeps one; gives back what has been here longest, where there are too many.
    fn put(&mut self, size: usize, item: T) -> Option<T> {
        self.0.push_back((size, item));
        (self.0.len() > KEPT).then(|| self.0.pop_front()).flatten().map(|(_, item)| item)
    }
}

/// The buffers of one engine, on its stream: what is written into one again is ordered behind all
/// that was given to read it.
#[derive(Debug)]
pub(crate) struct Pool {
    stream: Stream,
    free: Mutex<Shelf<Buffer>>,
}

impl Pool {
    /// An empty one.
    pub(crate) fn new(stream: &Stream) -> Arc<Self> {
        let free = Mutex::new(Shelf(VecDeque::new()));
        Arc::new(Pool { stream: stream.clone(), free })
    }

    /// At least `bytes` bytes; not none, where there are none to hold.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` when the number fits no address.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Result<Lease> {
        let size = class(bytes).ok_or_else(|| {
            Error::internal(format!("an output of {bytes} bytes fits no address"))
        })?;
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).take(size);
        let buffer = free.map_or_else(|| self.stream.zeros(size), Ok)?;
        Ok(Lease { buffer: Some(buffer), bytes, pool: self.clone() })
    }
}

/// A buffer that goes back to its pool when dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    /// There until it is dropped.
    buffer: Option<Buffer>,
    bytes: usize,
    pool: Arc<Pool>,
}

impl Lease {
    /// The bytes that were asked for.
    ///
    /// # Errors
    /// `Internal`, never as long as it lives.
    pub(crate) fn span(&self) -> Result<Span<'_>> {
        let buffer = self.buffer.as_ref().ok_or_else(|| Error::internal("memory given back"))?;
        buffer.span(0, self.bytes)
    }

    /// The stream that its work is given to.
    pub(crate) fn stream(&self) -> &Stream {
        &self.pool.stream
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(buffer) = self.buffer.take() else { return };
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        let surplus = free.put(buffer.len(), buffer);
        // Freeing it may take the driver a while.
        drop(free);
        drop(surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_classes() {
        assert_eq!(class(0), Some(256));
        assert_eq!(class(256), Some(256));
        assert_eq!(class(257), Some(512));
        assert_eq!(class(8 * 50_304 * 4), Some(1_703_936));
        assert_eq!(class(usize::MAX), None);
        for bytes in (0..1_000_000).step_by(997) {
            let size = class(bytes).unwrap();
            assert!(size >= bytes && size.is_multiple_of(LEAST), "{bytes}");
            assert!(size <= bytes + bytes / 8 + LEAST, "{bytes}: {size}");
            assert_eq!(class(size), Some(size));
        }
    }

    #[test]
    fn the_one_used_last_comes_first() {
        let mut shelf = Shelf(VecDeque::new());
        assert_eq!(shelf.take(256), None);
        assert_eq!(shelf.put(256, 'a'), None);
        assert_eq!(shelf.put(512, 'b'), None);
        assert_eq!(shelf.put(256, 'c'), None);
        assert_eq!(shelf.take(256), Some('c'));
        assert_eq!(shelf.take(256), Some('a'));
        assert_eq!(shelf.take(256), None);
        assert_eq!(shelf.take(1024), None);
        assert_eq!(shelf.take(512), Some('b'));
    }

    #[test]
    fn no_more_than_some_are_kept() {
        let mut shelf = Shelf(VecDeque::new());
        for item in 0..KEPT {
            assert_eq!(shelf.put(256 * (item + 1), item), None);
        }
        assert_eq!(shelf.put(256, KEPT), Some(0));
        assert_eq!(shelf.0.len(), KEPT);
    }
}
