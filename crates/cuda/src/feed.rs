//! What a run is given, brought to the device in one copy.

use cudarc::driver::{CudaEvent, DriverError, PinnedHostSlice, result, sys};
use imprompt_error::{Error, Result};

use crate::device::failed;
use crate::stream::pinned;
use crate::{Buffer, Span, Stream};

/// Inputs start at multiples of this: what cudaMalloc aligns to, so that every kernel is content.
const ALIGNMENT: usize = 256;

/// Memory for the inputs of one run after the other: pinned on the host, where they are laid end to
/// end, and as much on the device, where they are copied to at once. It grows to the largest run
/// and then stays.
#[derive(Debug)]
pub struct Feed {
    stream: Stream,
    memory: Option<(PinnedHostSlice<u8>, Buffer)>,
    /// After the last copy: what it reads is not written before.
    copied: CudaEvent,
    offsets: Vec<usize>,
}

impl Feed {
    /// Without memory yet.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(stream: &Stream) -> Result<Self> {
        let context = stream.stream.context();
        let copied = context.new_event(None).map_err(|error| failed(&error, "an event"))?;
        Ok(Feed { stream: stream.clone(), memory: None, copied, offsets: Vec::new() })
    }

    /// Brings `parts` to the device: where each of them is there, until the next call.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` when it has to grow while the stream is recorded; what the driver says.
    pub fn load<'a>(
        &'a mut self,
        parts: &[&[u8]],
    ) -> Result<impl ExactSizeIterator<Item = u64> + use<'a>> {
        self.stream.bind()?;
        self.offsets.clear();
        let mut end = 0usize;
        for part in parts {
            self.offsets.push(end);
            let next =
                end.checked_add(part.len()).and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
            end = next.ok_or_else(|| Error::internal("inputs that fit no address"))?;
        }
        self.reserve(end)?;
        self.wait().map_err(|error| failed(&error, "the inputs before"))?;
        let (host, device) =
            self.memory.as_mut().ok_or_else(|| Error::internal("no memory for inputs"))?;
        let laid = host.as_mut_slice().map_err(|error| failed(&error, "pinned memory"))?;
        for (part, offset) in parts.iter().zip(&self.offsets) {
            laid[*offset..][..part.len()].copy_from_slice(part);
        }
        if end > 0 {
            // SAFETY: the device's buffer is as long as the host's; the host's is not written before
            // `copied` has passed.
            unsafe {
                result::memcpy_htod_async(
                    device.address(),
                    &laid[..end],
                    self.stream.stream.cu_stream(),
                )
            }
            .map_err(|error| failed(&error, "writing to the GPU"))?;
            self.copied.record(&self.stream.stream).map_err(|error| failed(&error, "an event"))?;
        }
        let base = device.address();
        Ok(self.offsets.iter().map(move |offset| base + *offset as u64))
    }

    /// [`Self::load`], as memory that is known to lie there.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn spans(&mut self, parts: &[&[u8]]) -> Result<Vec<Span<'_>>> {
        drop(self.load(parts)?);
        let (_, device) =
            self.memory.as_ref().ok_or_else(|| Error::internal("no memory for inputs"))?;
        let span = |(part, offset): (&&[u8], &usize)| match part.len() {
            // What is empty may come last, where the memory ends.
            0 => device.span(0, 0),
            length => device.span(*offset, length),
        };
        parts.iter().zip(&self.offsets).map(span).collect()
    }

    /// Waits for the last copy.
    fn wait(&self) -> std::result::Result<(), DriverError> {
        match self.copied.synchronize() {
            // It was recorded, and so was not done: what copies from the host is never launched
            // (`Stream::record`). What was before it was waited for when it was recorded.
            Err(DriverError(sys::CUresult::CUDA_ERROR_CAPTURED_EVENT)) => Ok(()),
            waited => waited,
        }
    }

    /// Frees the memory once the last copy out of it is over.
    fn release(&mut self) {
        if self.wait().is_err() {
            tracing::error!("the inputs' last copy to the GPU failed");
        }
        self.memory = None;
    }

    fn reserve(&mut self, bytes: usize) -> Result<()> {
        if self.memory.as_ref().is_some_and(|(host, _)| host.len() >= bytes) {
            return Ok(());
        }
        let size = bytes.max(ALIGNMENT).next_power_of_two();
        self.stream.check_plain()?;
        self.release();
        self.memory = Some((pinned(self.stream.device(), size)?, self.stream.zeros(size)?));
        Ok(())
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.release();
    }
}
