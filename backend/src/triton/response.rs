//! A response as a value: sent, or deleted when dropped.

use std::ffi::{CString, c_void};
use std::ptr::{self, NonNull};

use imprompt_error::{Error, Result};
use imprompt_stage::{Data, Dtype, Gpu, Held as _, HeldRows, Tensor};

use super::bindings::{
    self as sys, TRITONBACKEND_Output, TRITONBACKEND_Response, TRITONSERVER_Error,
};
use super::error::{OwnedError, check};
use super::request::{Request, gpu_of};

/// A response that is not sent yet.
pub(super) struct Response(NonNull<TRITONBACKEND_Response>);

impl Response {
    /// An empty response to `request`.
    pub(super) fn new(request: &Request) -> Result<Self> {
        let mut response = ptr::null_mut();
        // SAFETY: the request is live.
        check("ResponseNew", unsafe {
            sys::TRITONBACKEND_ResponseNew(&mut response, request.as_ptr())
        })?;
        NonNull::new(response)
            .map(Response)
            .ok_or_else(|| Error::internal("ResponseNew: no response"))
    }

    /// A response to `request` that holds `tensors`.
    pub(super) fn of(request: &Request, tensors: &[Tensor<'_>]) -> Result<Self> {
        let response = Response::new(request)?;
        for tensor in tensors {
            response.write(tensor)?;
        }
        Ok(response)
    }

    /// Adds one output. Each name at most once.
    fn write(&self, tensor: &Tensor<'_>) -> Result<()> {
        let of = format!("output `{}`", tensor.name);
        let name = CString::new(tensor.name.as_bytes())
            .map_err(|_| Error::internal("an output's name has a NUL"))?;
        let shape: Vec<i64> = tensor
            .shape
            .iter()
            .map(|&size| i64::try_from(size))
            .collect::<Result<_, _>>()
            .map_err(|_| Error::internal(format!("{of}: a dimension is too large")))?;
        let datatype = match tensor.data.dtype() {
            Dtype::Fp32 => sys::TRITONSERVER_TYPE_FP32,
            Dtype::Int32 => sys::TRITONSERVER_TYPE_INT32,
            Dtype::Bytes => sys::TRITONSERVER_TYPE_BYTES,
        };
        let mut output = ptr::null_mut();
        // SAFETY: the response is live; Triton copies name and shape.
        check("ResponseOutput", unsafe {
            sys::TRITONBACKEND_ResponseOutput(
                self.0.as_ptr(),
                &mut output,
                name.as_ptr(),
                datatype,
                shape.as_ptr(),
                shape.len() as u32,
            )
        })?;
        match &tensor.data {
            Data::Held(rows) => held(&of, output, rows),
            Data::F32(values) => fill(&of, output, size_of_val(&**values), copy(values)),
            Data::I32(values) => fill(&of, output, size_of_val(&**values), copy(values)),
            Data::Bytes(values) => {
                let len = imprompt_wire::encoded_len(&of, values)?;
                fill(&of, output, len, |bytes| imprompt_wire::encode_into(&of, values, bytes))
            }
        }
    }

    /// Sends the response, with `error` if there is one; it is the last of its request.
    pub(super) fn send(self, error: Option<&Error>) -> Result<()> {
        let error = error.map(OwnedError::new);
        let error_ptr = error.as_ref().map_or(ptr::null_mut(), OwnedError::as_ptr);
        self.hand_over(sys::TRITONSERVER_RESPONSE_COMPLETE_FINAL, error_ptr)
    }

    /// Sends the response; others of its request follow.
    pub(super) fn send_more(self) -> Result<()> {
        self.hand_over(0, ptr::null_mut())
    }

    fn hand_over(self, flags: u32, error: *mut TRITONSERVER_Error) -> Result<()> {
        let response = self.0.as_ptr();
        // Triton takes the response, even when it returns an error.
        std::mem::forget(self);
        // SAFETY: live and not sent before; the error stays the caller's.
        check("ResponseSend", unsafe { sys::TRITONBACKEND_ResponseSend(response, flags, error) })
    }
}

impl Drop for Response {
    fn drop(&mut self) {
        // SAFETY: not sent: `send` forgets the value.
        let _ =
            check("ResponseDelete", unsafe { sys::TRITONBACKEND_ResponseDelete(self.0.as_ptr()) });
    }
}

/// An output's buffer: `len` bytes for us alone until the response is sent.
struct Buffer {
    base: NonNull<c_void>,
    len: usize,
    /// Whose memory it is; none of the host's.
    gpu: Option<usize>,
}

impl Buffer {
    /// Has Triton give `output`, which has none yet, `len` bytes, on GPU `wanted` if it can. `None`
    /// without bytes.
    fn of(
        name: &str,
        output: *mut TRITONBACKEND_Output,
        len: usize,
        wanted: Option<usize>,
    ) -> Result<Option<Self>> {
        let mut base = ptr::null_mut();
        let (mut memory_type, mut memory_id) = match wanted {
            None => (sys::TRITONSERVER_MEMORY_CPU, 0),
            Some(ordinal) => {
                (sys::TRITONSERVER_MEMORY_GPU, i64::try_from(ordinal).unwrap_or_default())
            }
        };
        // SAFETY: `output` belongs to a response that is not sent yet, and has no buffer so far.
        check("OutputBuffer", unsafe {
            sys::TRITONBACKEND_OutputBuffer(
                output,
                &mut base,
                len as u64,
                &mut memory_type,
                &mut memory_id,
            )
        })?;
        if len == 0 {
            return Ok(None);
        }
        let base = NonNull::new(base)
            .ok_or_else(|| Error::out_of_memory(format!("{name}: {len} bytes")))?;
        Ok(Some(Buffer { base, len, gpu: gpu_of(memory_type, memory_id) }))
    }

    /// Has `write` fill it, by way of the host where it is on a GPU.
    fn fill(self, name: &str, write: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        let base = self.base.as_ptr();
        let Some(ordinal) = self.gpu else {
            // SAFETY: host memory, ours alone by what `of` was promised; written, never read.
            return write(unsafe { std::slice::from_raw_parts_mut(base.cast::<u8>(), self.len) });
        };
        let mut bytes = vec![0; self.len];
        write(&mut bytes)?;
        let gpu = Gpu::open(ordinal)?;
        // SAFETY: that GPU's memory, ours alone as above.
        let written = unsafe { gpu.write(base as u64, &bytes) };
        written.map_err(|error| error.context(name))
    }
}

/// Has `write` fill an output's buffer of `len` bytes, which lies in host memory, or in a GPU's where
/// the client has its own there.
fn fill(
    name: &str,
    output: *mut TRITONBACKEND_Output,
    len: usize,
    write: impl FnOnce(&mut [u8]) -> Result<()>,
) -> Result<()> {
    match Buffer::of(name, output, len, None)? {
        Some(buffer) => buffer.fill(name, write),
        None => write(&mut []),
    }
}

/// Fills an output's buffer with `rows`: on the GPU that has them, where Triton takes them there.
fn held(name: &str, output: *mut TRITONBACKEND_Output, rows: &HeldRows) -> Result<()> {
    let spans = rows.settled()?.unwrap_or_default();
    let wanted = spans.first().map(|span| span.stream().device().ordinal());
    let len = rows.elements() * size_of::<f32>();
    let Some(buffer) = Buffer::of(name, output, len, wanted)? else { return Ok(()) };
    if wanted.is_none() || buffer.gpu != wanted {
        return buffer.fill(name, copy(rows.to_host()?.as_slice::<f32>()?));
    }
    let mut address = buffer.base.as_ptr() as u64;
    for span in spans {
        // SAFETY: the buffer has room for all of them, and is ours alone until the response is sent.
        unsafe { span.copy_to(address) }.map_err(|error| error.context(name))?;
        address += span.len() as u64;
    }
    Ok(())
}

/// Writes `values` as they lie in memory: Triton's tensors have the machine's byte order.
fn copy<T: bytemuck::NoUninit>(values: &[T]) -> impl FnOnce(&mut [u8]) -> Result<()> {
    |buffer| {
        buffer.copy_from_slice(bytemuck::cast_slice(values));
        Ok(())
    }
}
