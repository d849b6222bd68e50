//! What a run leaves on the device.

use std::any::Any;
use std::sync::Arc;

use imprompt_cuda::{Span, Stream};
use imprompt_error::Result;
use ort::session::SharedSessionInner;
use ort::sys::OrtValue;

use crate::onnxruntime::held::{RawValue, check, type_and_shape};
use crate::{ElementType, Held, HostCopy, TensorView};

/// A tensor on the device. Its memory is the session's arena's, which gives it to a later run of the
/// same stream once it is dropped.
#[derive(Debug)]
pub(super) struct CudaHeld {
    value: Arc<RawValue>,
    element_type: ElementType,
    shape: Vec<usize>,
    address: u64,
    stream: Stream,
    host: HostCopy,
    _session: Arc<SharedSessionInner>,
    /// Says that an output of the engine is alive.
    _alive: Arc<()>,
}

impl CudaHeld {
    /// The output `name` of a run of `session` on `stream`.
    pub(super) fn new(
        value: Arc<RawValue>,
        name: &str,
        stream: &Stream,
        session: Arc<SharedSessionInner>,
        alive: Arc<()>,
    ) -> Result<Self> {
        let (element_type, shape) = type_and_shape(&value, name)?;
        let mut data = std::ptr::null_mut();
        // SAFETY: the value is a live tensor.
        let status = unsafe { (ort::api().GetTensorMutableData)(value.pointer(), &mut data) };
        check(status, name)?;
        Ok(CudaHeld {
            value,
            element_type,
            shape,
            address: data as u64,
            stream: stream.clone(),
            host: HostCopy::default(),
            _session: session,
            _alive: alive,
        })
    }

    /// Whether a run of `stream` may read it without waiting.
    pub(super) fn is_on(&self, stream: &Stream) -> bool {
        self.stream.handle() == stream.handle()
    }

    /// The value for the API.
    pub(super) fn pointer(&self) -> *mut OrtValue {
        self.value.pointer()
    }

    /// Where it is on the device.
    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

impl Held for CudaHeld {
    fn element_type(&self) -> ElementType {
        self.element_type
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn to_host(&self) -> Result<TensorView<'_>> {
        self.host.view(&self.shape, self.element_type, |into| {
            // SAFETY: the tensor has as many bytes, and the run that writes it was given to the stream.
            unsafe { self.stream.read(self.address, into) }
        })
    }

    fn on_gpu(&self) -> Result<Option<Span<'_>>> {
        let bytes = self.shape.iter().product::<usize>() * self.element_type.size();
        // SAFETY: the tensor has as many bytes as long as it lives, and the run that writes it was
        // given to the stream, whose work alone the session gives the memory to afterwards.
        Ok(Some(unsafe { Span::over(&self.stream, self.address, bytes) }))
    }

    fn settle(&self) -> Result<()> {
        self.stream.synchronize()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
