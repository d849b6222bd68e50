//! What a run is given, brought to where it reads it: what the host has in one copy.

use cudarc::driver::{CudaEvent, DriverError, PinnedHostSlice, result, sys};
use imprompt_error::{Error, Result};

use crate::device::failed;
use crate::stream::pinned;
use crate::{Buffer, Span, Stream};

/// Inputs start at multiples of this: what cudaMalloc aligns to, so that every kernel is content.
const ALIGNMENT: usize = 256;

/// What becomes one input of a run.
#[derive(Clone, Debug)]
pub enum Part<'a> {
    /// Bytes of the host.
    Host(&'a [u8]),
    /// What lies on the device, one piece behind the other, and is not written any more: its stream
    /// may be any.
    There(Vec<Span<'a>>),
}

impl Part<'_> {
    fn len(&self) -> usize {
        match self {
            Part::Host(bytes) => bytes.len(),
            Part::There(spans) => spans.iter().map(Span::len).sum(),
        }
    }
}

/// Memory for the inputs of one run after the other: pinned on the host, where those of the host are
/// laid end to end, and on the device, where they are copied to at once, in front of what is copied
/// inside the device. It grows to the largest run and then stays, so that a run finds its inputs where
/// the one before had them.
#[derive(Debug)]
pub struct Feed {
    stream: Stream,
    host: Option<PinnedHostSlice<u8>>,
    device: Option<Buffer>,
    /// After the last copy from the host: what it reads is not written before.
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
        Ok(Feed { stream: stream.clone(), host: None, device: None, copied, offsets: Vec::new() })
    }

    /// Brings `parts` to where the run reads them: where each of them is there, until the next call.
    /// What comes from the device has been read when this returns.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` when a part lies on another device, or when it has to grow or copies on the
    /// device while the stream is recorded; what the driver says.
    pub fn load<'a>(
        &'a mut self,
        parts: &[Part<'_>],
    ) -> Result<impl ExactSizeIterator<Item = u64> + use<'a>> {
        self.stream.bind()?;
        let (of_host, all) = self.lay(parts)?;
        self.reserve(of_host, all)?;
        self.bring_host(parts, of_host)?;
        self.bring_device(parts)?;
        let base = self.device()?.address();
        Ok(self.offsets.iter().map(move |offset| base + *offset as u64))
    }

    /// [`Self::load`], as memory that is known to lie there.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn spans(&mut self, parts: &[Part<'_>]) -> Result<Vec<Span<'_>>> {
        drop(self.load(parts)?);
        let device = self.device()?;
        let span = |(part, offset): (&Part<'_>, &usize)| match part.len() {
            // What is empty may come last, where the memory ends.
            0 => device.span(0, 0),
            length => device.span(*offset, length),
        };
        parts.iter().zip(&self.offsets).map(span).collect()
    }

    fn device(&self) -> Result<&Buffer> {
        self.device.as_ref().ok_or_else(|| Error::internal("no memory for inputs"))
    }

    /// Finds a place for each part; how many bytes those of the host take, and all.
    fn lay(&mut self, parts: &[Part<'_>]) -> Result<(usize, usize)> {
        self.offsets.clear();
        self.offsets.resize(parts.len(), 0);
        let mut ends = [0usize; 2];
        let mut end = 0usize;
        for (is_there, end_of_kind) in [false, true].into_iter().zip(&mut ends) {
            for (part, offset) in parts.iter().zip(&mut self.offsets) {
                if matches!(part, Part::There(_)) == is_there {
                    *offset = end;
                    let next = end.checked_add(part.len());
                    end = next
                        .and_then(|end| end.checked_next_multiple_of(ALIGNMENT))
                        .ok_or_else(|| Error::internal("inputs that fit no address"))?;
                }
            }
            *end_of_kind = end;
        }
        Ok(ends.into())
    }

    /// Copies what the host has, which takes `bytes`.
    fn bring_host(&mut self, parts: &[Part<'_>], bytes: usize) -> Result<()> {
        self.wait().map_err(|error| failed(&error, "the inputs before"))?;
        let device = self.device()?.address();
        let Some(host) = self.host.as_mut().filter(|_| bytes > 0) else { return Ok(()) };
        let laid = host.as_mut_slice().map_err(|error| failed(&error, "pinned memory"))?;
        for (part, offset) in parts.iter().zip(&self.offsets) {
            if let Part::Host(bytes) = part {
                laid[*offset..][..bytes.len()].copy_from_slice(bytes);
            }
        }
        // SAFETY: the device's buffer has as many bytes; the host's are not written before `copied`
        // has passed.
        unsafe {
            result::memcpy_htod_async(device, &laid[..bytes], self.stream.stream.cu_stream())
        }
        .map_err(|error| failed(&error, "writing to the GPU"))?;
        self.copied.record(&self.stream.stream).map_err(|error| failed(&error, "an event"))
    }

    /// Copies what lies on the device, and waits for it: it may be freed or written then.
    fn bring_device(&self, parts: &[Part<'_>]) -> Result<()> {
        let base = self.device()?.address();
        let mut copies = Vec::new();
        for (part, offset) in parts.iter().zip(&self.offsets) {
            let Part::There(spans) = part else { continue };
            let mut to = base + *offset as u64;
            for span in spans {
                copies.push((*span, to));
                to += span.len() as u64;
            }
        }
        if copies.is_empty() {
            return Ok(());
        }
        self.stream.check_plain()?;
        let copied = copies.into_iter().try_for_each(|(from, to)| self.copy(from, to));
        // Those before one that failed as well.
        self.stream.synchronize()?;
        copied
    }

    /// Copies `from` to `to`, which lies in the device's buffer with room for it.
    fn copy(&self, from: Span<'_>, to: u64) -> Result<()> {
        let (own, other) = (self.stream.device(), from.stream().device());
        if own.ordinal() != other.ordinal() {
            return Err(Error::internal(format!(
                "an input on GPU {}, the run is on GPU {}",
                other.ordinal(),
                own.ordinal()
            )));
        }
        // SAFETY: both have as many bytes, which do not overlap: a span is never the feed's own, which
        // is borrowed. `bring_device` waits for the copy, and the span is allocated as long.
        unsafe { self.stream.copy(from.address(), to, from.len()) }
    }

    /// Waits for the last copy from the host.
    fn wait(&self) -> std::result::Result<(), DriverError> {
        match self.copied.synchronize() {
            // It was recorded, and so was not done: what copies from the host is never launched
            // (`Stream::record`). What was before it was waited for when it was recorded.
            Err(DriverError(sys::CUresult::CUDA_ERROR_CAPTURED_EVENT)) => Ok(()),
            waited => waited,
        }
    }

    fn reserve(&mut self, of_host: usize, all: usize) -> Result<()> {
        let size = |bytes: usize| bytes.max(ALIGNMENT).next_power_of_two();
        if of_host > 0 && self.host.as_ref().is_none_or(|host| host.len() < of_host) {
            self.stream.check_plain()?;
            self.wait().map_err(|error| failed(&error, "the inputs before"))?;
            self.host = None;
            self.host = Some(pinned(self.stream.device(), size(of_host))?);
        }
        if self.device.as_ref().is_none_or(|device| device.len() < all) {
            // It is freed behind what was given to the stream to read it.
            self.device = None;
            self.device = Some(self.stream.zeros(size(all))?);
        }
        Ok(())
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        // What it reads is freed after it.
        if self.wait().is_err() {
            tracing::error!("the inputs' last copy to the GPU failed");
        }
    }
}
