//! A queue of work on a GPU.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaStream, PinnedHostSlice, result, sys};
use imprompt_error::{Error, Result};

use crate::Device;
use crate::device::failed;
use crate::memory::{Buffer, Pitch};

/// Work on a GPU, done in the order in which it is given. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Stream {
    pub(crate) stream: Arc<CudaStream>,
    device: Device,
    /// What is read back lands here first, and grows to the largest: memory that the GPU writes
    /// by itself.
    landing: Arc<Mutex<Option<PinnedHostSlice<u8>>>>,
}

impl Device {
    /// A new stream.
    ///
    /// # Errors
    /// What the driver says.
    pub fn stream(&self) -> Result<Stream> {
        let stream = self.context.new_stream().map_err(|error| failed(&error, "a stream"))?;
        Ok(Stream { stream, device: self.clone(), landing: Arc::default() })
    }
}

impl Stream {
    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The stream as CUDA's own interfaces take it (`cudaStream_t`), valid as long as `self`.
    #[must_use]
    pub fn handle(&self) -> *mut c_void {
        self.stream.cu_stream().cast()
    }

    /// Waits until all is done that was given so far.
    ///
    /// # Errors
    /// What went wrong in any of it.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(|error| failed(&error, "work on the GPU"))
    }

    /// [`Device::bind`].
    ///
    /// # Errors
    /// What the driver says.
    pub fn bind(&self) -> Result<()> {
        self.device.bind()
    }

    /// `bytes` bytes of zeros on the device.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` while the stream is recorded.
    pub fn zeros(&self, bytes: usize) -> Result<Buffer> {
        let what = || format!("{bytes} bytes");
        self.check_plain()?;
        let slice = self.stream.alloc_zeros::<u8>(bytes.max(1));
        let slice = slice.map_err(|error| failed(&error, &what()))?;
        Ok(Buffer::new(slice, self.clone()))
    }

    /// Refuses a stream that is recorded: what is allocated then is the recording's, and there while
    /// it runs alone.
    pub(crate) fn check_plain(&self) -> Result<()> {
        let status = self.stream.capture_status();
        match status.map_err(|error| failed(&error, "the stream"))? {
            sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE => Ok(()),
            _ => Err(Error::internal("memory on the GPU is asked for in work that is recorded")),
        }
    }

    /// Copies the `into.len()` bytes at `address` of the device to the host, and waits for them.
    ///
    /// # Safety
    /// As many bytes are allocated there, and whatever writes them was given to this stream, or is
    /// done.
    ///
    /// # Errors
    /// `OutOfMemory` of the host; what went wrong in the work that was given before.
    pub unsafe fn read(&self, address: u64, into: &mut [u8]) -> Result<()> {
        if into.is_empty() {
            return self.synchronize();
        }
        self.bind()?;
        let mut landing = self.landing.lock().unwrap_or_else(PoisonError::into_inner);
        if landing.as_ref().is_none_or(|landing| landing.len() < into.len()) {
            *landing = None;
            *landing = Some(pinned(&self.device, into.len().next_power_of_two())?);
        }
        let pinned = landing.as_mut().ok_or_else(|| Error::internal("no memory to read into"))?;
        let lands = pinned.as_mut_slice().map_err(|error| failed(&error, "pinned memory"))?;
        let lands = &mut lands[..into.len()];
        // SAFETY: the caller's word for the device; on the host the memory is this call's until the
        // copy is waited for.
        unsafe { result::memcpy_dtoh_async(lands, address, self.stream.cu_stream()) }
            .map_err(|error| failed(&error, "reading from the GPU"))?;
        self.synchronize()?;
        into.copy_from_slice(lands);
        Ok(())
    }

    /// A copy of the `bytes` bytes at `address` of the device, which is there when this returns.
    ///
    /// # Safety
    /// As many bytes are allocated there, what wrote them is done, and nothing writes them meanwhile.
    ///
    /// # Errors
    /// `OutOfMemory`; what the driver says.
    pub unsafe fn copy_of(&self, address: u64, bytes: usize) -> Result<Buffer> {
        let copy = self.zeros(bytes)?;
        // SAFETY: the caller's word for `address`; the copy has as many bytes.
        unsafe { self.copy(address, copy.address(), bytes)? };
        self.synchronize()?;
        Ok(copy)
    }

    /// Copies the `bytes` bytes at `from` to `to`, both on the device, in its turn.
    ///
    /// # Safety
    /// As many bytes are allocated at either until it is done, and do not overlap; what writes those at
    /// `from` was given to this stream, or is done.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller's word.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(|error| failed(&error, "copying on the GPU"))
    }

    /// Copies rows inside the device's memory: `pitch.rows` times `pitch.width` bytes, a row every
    /// `pitch.stride` bytes, from `from` to `to`.
    ///
    /// # Errors
    /// `Internal` when either reaches out of `buffer`, or a row would be copied onto another; what the
    /// driver says.
    pub fn copy_rows(
        &self,
        buffer: &mut Buffer,
        from: usize,
        to: usize,
        pitch: Pitch,
    ) -> Result<()> {
        if pitch.rows == 0 || pitch.width == 0 || from == to {
            return Ok(());
        }
        let end = pitch.reach().and_then(|reach| reach.checked_add(from.max(to)));
        if end.is_none_or(|end| end > buffer.len()) || pitch.overlaps(from, to) {
            return Err(Error::internal(format!(
                "{pitch:?} from byte {from} to {to} of {} on the GPU",
                buffer.len()
            )));
        }
        self.bind()?;
        let base = buffer.address();
        // SAFETY: both ranges lie inside the buffer and apart, as was checked, and its `&mut` gives it
        // to this call; the copy is ordered by the stream.
        unsafe { pitch.copy(base + from as u64, base + to as u64, self.stream.cu_stream()) }
            .map_err(|error| failed(&error, "copying on the GPU"))
    }
}

/// Memory of the host that the GPU reads and writes by itself.
pub(crate) fn pinned(device: &Device, bytes: usize) -> Result<PinnedHostSlice<u8>> {
    // SAFETY: bytes of any value are bytes. Without flags the host reads it at its usual speed.
    let pinned = unsafe { device.context.alloc_pinned_with_flags::<u8>(bytes, 0) };
    pinned.map_err(|error| failed(&error, &format!("{bytes} bytes of pinned memory")))
}
