//! A response as a value: sent, or deleted when dropped.

use std::ffi::CString;
use std::ptr::{self, NonNull};

use imprompt_error::{Error, Result};
use imprompt_stage::{Data, Dtype, Gpu, Tensor};

use super::bindings::{
    self as sys, TRITONBACKEND_Output, TRITONBACKEND_Response, TRITONSERVER_Error,
};
use super::error::{OwnedError, check};
use super::request::{Request, is_host};

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

/// Has `write` fill an output's buffer of `len` bytes, which lies in host memory, or in a GPU's where
/// the client has its own there.
fn fill(
    of: &str,
    output: *mut TRITONBACKEND_Output,
    len: usize,
    write: impl FnOnce(&mut [u8]) -> Result<()>,
) -> Result<()> {
    let mut base = ptr::null_mut();
    let (mut memory_type, mut memory_id) = (sys::TRITONSERVER_MEMORY_CPU, 0);
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
        return write(&mut []);
    }
    if base.is_null() {
        return Err(Error::out_of_memory(format!("{of}: {len} bytes")));
    }
    if !is_host(memory_type) {
        let mut bytes = vec![0; len];
        write(&mut bytes)?;
        let gpu = Gpu::open(usize::try_from(memory_id).unwrap_or(0))?;
        // SAFETY: `len` bytes of that GPU's memory for us alone until the response is sent.
        let written = unsafe { gpu.write(base as u64, &bytes) };
        return written.map_err(|error| error.context(of));
    }
    // SAFETY: `len` bytes for us alone until the response is sent; written, never read.
    write(unsafe { std::slice::from_raw_parts_mut(base.cast::<u8>(), len) })
}

/// Writes `values` as they lie in memory: Triton's tensors have the machine's byte order.
fn copy<T: bytemuck::NoUninit>(values: &[T]) -> impl FnOnce(&mut [u8]) -> Result<()> {
    |buffer| {
        buffer.copy_from_slice(bytemuck::cast_slice(values));
        Ok(())
    }
}
