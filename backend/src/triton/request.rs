//! A request as a value that is answered and released exactly once.

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use imprompt_error::{Cancellation, Error, Result};
use imprompt_host::{RawBytes, RawInput};
use imprompt_stage::{Dtype, Gpu, GpuBuffer, GpuStream, Tensor};

use super::bindings::{
    self as sys, TRITONBACKEND_Input, TRITONBACKEND_ModelInstance, TRITONBACKEND_Request,
};
use super::error::{check, text};
use super::response::Response;
use super::statistics::Times;

/// A request that Triton gave this backend. [`Request::answer`] is its regular
/// end; dropped without, it answers with an internal error all the same: a
/// request without an answer would hang its client for ever.
pub(super) struct Request {
    raw: NonNull<TRITONBACKEND_Request>,
    instance: *mut TRITONBACKEND_ModelInstance,
    /// Whether the last response was sent, or could not be.
    answered: AtomicBool,
    /// Copies of what lies in a GPU's memory; none is changed or dropped before the request is.
    copies: Mutex<Vec<Box<[u8]>>>,
}

// SAFETY: shared with the threads of a stage for `Cancellation` only, whose one
// call reads a flag that Triton itself sets from other threads.
unsafe impl Sync for Request {}

impl Request {
    /// Takes a request over. `None` for a null pointer.
    ///
    /// # Safety
    /// `raw` is null or a live request that Triton handed to this backend and nobody
    /// else answers or releases; `instance` is live until the value is gone.
    pub(super) unsafe fn new(
        raw: *mut TRITONBACKEND_Request,
        instance: *mut TRITONBACKEND_ModelInstance,
    ) -> Option<Self> {
        NonNull::new(raw).map(|raw| Request {
            raw,
            instance,
            answered: AtomicBool::new(false),
            copies: Mutex::default(),
        })
    }

    /// The pointer, for calls about the request.
    pub(super) fn as_ptr(&self) -> *mut TRITONBACKEND_Request {
        self.raw.as_ptr()
    }

    /// All inputs with all their buffers. Floats that lie on the GPU of `inbox` are copied to memory of
    /// its there, all else on a GPU to the host.
    pub(super) fn inputs(&self, inbox: Option<&GpuStream>) -> Result<Vec<RawInput<'_>>> {
        let mut count = 0;
        // SAFETY: the request is live until `self` is dropped; so throughout.
        check("RequestInputCount", unsafe {
            sys::TRITONBACKEND_RequestInputCount(self.as_ptr(), &mut count)
        })?;
        (0..count).map(|index| self.input(index, inbox)).collect()
    }

    fn input(&self, index: u32, inbox: Option<&GpuStream>) -> Result<RawInput<'_>> {
        let mut input = ptr::null_mut();
        // SAFETY: as above.
        check("RequestInputByIndex", unsafe {
            sys::TRITONBACKEND_RequestInputByIndex(self.as_ptr(), index, &mut input)
        })?;
        let (mut name, mut datatype, mut shape) = (ptr::null(), 0, ptr::null());
        let (mut dims_count, mut buffer_count) = (0, 0);
        // SAFETY: `input` belongs to the request; null asks for no byte size.
        check("InputProperties", unsafe {
            sys::TRITONBACKEND_InputProperties(
                input,
                &mut name,
                &mut datatype,
                &mut shape,
                &mut dims_count,
                ptr::null_mut(),
                &mut buffer_count,
            )
        })?;
        // SAFETY: name and shape live as long as the request, and so as `self`.
        let name = unsafe { std::ffi::CStr::from_ptr(name) };
        let name = name.to_str().map_err(|_| Error::internal("an input's name is not UTF-8"))?;
        // SAFETY: as above.
        let shape = unsafe { slice(shape, u64::from(dims_count)) }?;
        let dtype = match datatype {
            sys::TRITONSERVER_TYPE_FP32 => Some(Dtype::Fp32),
            sys::TRITONSERVER_TYPE_INT32 => Some(Dtype::Int32),
            sys::TRITONSERVER_TYPE_BYTES => Some(Dtype::Bytes),
            _ => None,
        };
        let in_error = |error: Error| error.context(format_args!("input `{name}`"));
        let inbox = inbox.filter(|_| dtype == Some(Dtype::Fp32) && buffer_count == 1);
        let buffers = (0..buffer_count).map(|index| Buffer::of(input, index));
        let buffers: Vec<Buffer> = buffers.collect::<Result<_>>()?;
        if let (Some(inbox), [buffer]) = (inbox, buffers.as_slice())
            && let Some(copy) = buffer.copied_to(inbox).map_err(in_error)?
        {
            return Ok(RawInput { name, dtype, shape, bytes: RawBytes::OnGpu(copy) });
        }
        let pieces = buffers.iter().map(|buffer| self.piece(buffer).map_err(in_error));
        let bytes = RawBytes::Pieces(pieces.collect::<Result<_>>()?);
        Ok(RawInput { name, dtype, shape, bytes })
    }

    fn piece(&self, buffer: &Buffer) -> Result<&[u8]> {
        if let Some(ordinal) = buffer.gpu {
            // SAFETY: as many bytes of that GPU's memory, as Triton says, whose writer is done.
            return unsafe { self.copy_from_gpu(ordinal, buffer.base as u64, buffer.len) };
        }
        // SAFETY: `len` bytes of host memory that the request keeps until its release.
        unsafe { slice(buffer.base.cast::<u8>(), buffer.len) }
    }

    /// The `len` bytes at `address` of GPU `ordinal`'s memory, on the host.
    ///
    /// # Safety
    /// There are as many, and nothing writes them any more.
    unsafe fn copy_from_gpu(&self, ordinal: usize, address: u64, len: u64) -> Result<&[u8]> {
        let too_much = || Error::out_of_memory(format_args!("{len} bytes of GPU memory"));
        let len = usize::try_from(len).map_err(|_| too_much())?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| too_much())?;
        bytes.resize(len, 0);
        // SAFETY: the caller's word.
        unsafe { Gpu::open(ordinal)?.read(address, &mut bytes)? };
        let bytes = bytes.into_boxed_slice();
        let start = bytes.as_ptr();
        self.copies.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        // SAFETY: the bytes of a box stay where they are, and boxes stay in `copies` as long as `self`.
        Ok(unsafe { std::slice::from_raw_parts(start, len) })
    }

    /// The names of the outputs that the client wants.
    pub(super) fn outputs(&self) -> Result<Vec<String>> {
        let mut count = 0;
        // SAFETY: the request is live.
        check("RequestOutputCount", unsafe {
            sys::TRITONBACKEND_RequestOutputCount(self.as_ptr(), &mut count)
        })?;
        let name = |index| {
            let mut name = ptr::null();
            // SAFETY: the request is live.
            check("RequestOutputName", unsafe {
                sys::TRITONBACKEND_RequestOutputName(self.as_ptr(), index, &mut name)
            })?;
            // SAFETY: the name lives as long as the request.
            Ok(unsafe { text(name) })
        };
        (0..count).map(name).collect()
    }

    /// Sends one of several responses; others follow. For a decoupled model only.
    pub(super) fn send(&self, tensors: &[Tensor<'_>]) -> Result<()> {
        if self.answered.load(Ordering::Relaxed) {
            return Err(Error::internal("the request has had its last response"));
        }
        Response::of(self, tensors)?.send_more()
    }

    /// Reports, and sends `response` (or, on an error, one that says so) as the last.
    /// Statistics come first, so that whoever has an answer finds it counted. Only the
    /// first call does anything. The request is released when it is dropped.
    pub(super) fn answer(&self, response: Result<Response>, times: &Times) {
        if self.answered.swap(true, Ordering::Relaxed) {
            return;
        }
        let (response, error) = match response {
            Ok(response) => (Ok(response), None),
            Err(error) => (Response::new(self), Some(error)),
        };
        // SAFETY: neither is released; `instance` by the promise of `new`.
        let reported =
            unsafe { times.report_request(self.instance, self.as_ptr(), error.is_none()) };
        let sent = response.and_then(|response| response.send(error.as_ref()));
        for failure in [reported, sent].into_iter().filter_map(Result::err) {
            tracing::error!("a request could not be answered as it should: {failure}");
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let fault = Error::internal("the request was given up by a fault");
        self.answer(Err(fault), &Times::begin());
        // SAFETY: released only here; nothing uses the request afterwards.
        let released = check("RequestRelease", unsafe {
            sys::TRITONBACKEND_RequestRelease(self.as_ptr(), sys::TRITONSERVER_REQUEST_RELEASE_ALL)
        });
        if let Err(failure) = released {
            tracing::error!("a request could not be released: {failure}");
        }
    }
}

impl Cancellation for Request {
    fn is_cancelled(&self) -> bool {
        let mut cancelled = false;
        // SAFETY: the request is live. A failure to ask is no wish to cancel.
        let asked = check("RequestIsCancelled", unsafe {
            sys::TRITONBACKEND_RequestIsCancelled(self.as_ptr(), &mut cancelled)
        });
        asked.is_ok() && cancelled
    }
}

/// One buffer of an input.
struct Buffer {
    base: *const c_void,
    len: u64,
    /// Whose memory it is; none of the host's.
    gpu: Option<usize>,
}

impl Buffer {
    /// Buffer `index` of `input`, which belongs to a live request.
    fn of(input: *mut TRITONBACKEND_Input, index: u32) -> Result<Self> {
        let (mut base, mut len) = (ptr::null(), 0);
        let (mut memory_type, mut memory_id) = (sys::TRITONSERVER_MEMORY_CPU, 0);
        // SAFETY: `input` belongs to a live request.
        check("InputBuffer", unsafe {
            sys::TRITONBACKEND_InputBuffer(
                input,
                index,
                &mut base,
                &mut len,
                &mut memory_type,
                &mut memory_id,
            )
        })?;
        Ok(Buffer { base, len, gpu: gpu_of(memory_type, memory_id) })
    }

    /// A copy of it, where it is on the GPU of `inbox`.
    fn copied_to(&self, inbox: &GpuStream) -> Result<Option<GpuBuffer>> {
        if self.gpu != Some(inbox.device().ordinal()) {
            return Ok(None);
        }
        let len = usize::try_from(self.len)
            .map_err(|_| Error::out_of_memory(format_args!("{} bytes of GPU memory", self.len)))?;
        // SAFETY: as many bytes of that GPU's memory, as Triton says, whose writer is done; the request
        // keeps them until its release.
        unsafe { inbox.copy_of(self.base as u64, len) }.map(Some)
    }
}

/// The GPU whose memory this is; none for memory that the CPU reads and writes.
pub(super) fn gpu_of(memory_type: sys::TRITONSERVER_MemoryType, memory_id: i64) -> Option<usize> {
    let is_host =
        matches!(memory_type, sys::TRITONSERVER_MEMORY_CPU | sys::TRITONSERVER_MEMORY_CPU_PINNED);
    (!is_host).then(|| usize::try_from(memory_id).unwrap_or(0))
}

/// `len` elements at `base`; of no elements, wherever `base` points.
///
/// # Safety
/// `base` has `len` elements that live for `'a`.
unsafe fn slice<'a, T>(base: *const T, len: u64) -> Result<&'a [T]> {
    let len = usize::try_from(len).map_err(|_| Error::internal("a buffer is too long"))?;
    if len == 0 {
        return Ok(&[]);
    }
    if base.is_null() {
        return Err(Error::internal("Triton gave a buffer without an address"));
    }
    // SAFETY: the caller's word.
    Ok(unsafe { std::slice::from_raw_parts(base, len) })
}
