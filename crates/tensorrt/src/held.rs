//! What a run leaves on the device.

use std::any::Any;

use imprompt_cuda::{Span, Stream};
use imprompt_engine::{ElementType, Held, HostCopy, TensorView};
use imprompt_error::Result;

use crate::pool::Lease;

/// A tensor on the device; its memory is its engine's again once it is dropped.
#[derive(Debug)]
pub(crate) struct TensorRtHeld {
    memory: Lease,
    element_type: ElementType,
    shape: Vec<usize>,
    host: HostCopy,
}

impl TensorRtHeld {
    /// A run's output, which was given to the stream.
    pub(crate) fn new(memory: Lease, element_type: ElementType, shape: Vec<usize>) -> Self {
        TensorRtHeld { memory, element_type, shape, host: HostCopy::default() }
    }

    /// Where it is, where a run of `stream` may read it without waiting.
    ///
    /// # Errors
    /// As [`Lease::span`].
    pub(crate) fn span(&self, stream: &Stream) -> Result<Option<Span<'_>>> {
        let is_same = self.memory.stream().handle() == stream.handle();
        is_same.then(|| self.memory.span()).transpose()
    }
}

impl Held for TensorRtHeld {
    fn element_type(&self) -> ElementType {
        self.element_type
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn to_host(&self) -> Result<TensorView<'_>> {
        let span = self.memory.span()?;
        self.host.view(&self.shape, self.element_type, |into| span.read(into))
    }

    fn on_gpu(&self) -> Result<Option<Span<'_>>> {
        let bytes = self.shape.iter().product::<usize>() * self.element_type.size();
        self.memory.span()?.part(0, bytes).map(Some)
    }

    fn settle(&self) -> Result<()> {
        self.memory.stream().synchronize()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
