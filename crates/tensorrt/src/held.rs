//! What a run leaves on the device.

use std::any::Any;
use std::sync::OnceLock;

use half::{bf16, f16};
use imprompt_cuda::{Span, Stream};
use imprompt_engine::{Element, ElementType, Held, TensorView};
use imprompt_error::{Error, Result};

use crate::pool::Lease;

/// A tensor on the device; its memory is its engine's again once it is dropped.
#[derive(Debug)]
pub(crate) struct TensorRtHeld {
    memory: Lease,
    element_type: ElementType,
    shape: Vec<usize>,
    /// A copy of it, in units that are aligned for every type.
    host: OnceLock<Vec<u64>>,
}

impl TensorRtHeld {
    /// A run's output, which was given to the stream.
    pub(crate) fn new(memory: Lease, element_type: ElementType, shape: Vec<usize>) -> Self {
        TensorRtHeld { memory, element_type, shape, host: OnceLock::new() }
    }

    /// Where it is, where a run of `stream` may read it without waiting.
    ///
    /// # Errors
    /// As [`Lease::span`].
    pub(crate) fn span(&self, stream: &Stream) -> Result<Option<Span<'_>>> {
        let is_same = self.memory.stream().handle() == stream.handle();
        is_same.then(|| self.memory.span()).transpose()
    }

    fn read(&self) -> Result<Vec<u64>> {
        let span = self.memory.span()?;
        let mut host: Vec<u64> = Vec::new();
        let units = span.len().div_ceil(8);
        host.try_reserve_exact(units).map_err(|_| {
            Error::out_of_memory(format_args!("{} bytes of a run's output", span.len()))
        })?;
        host.resize(units, 0);
        span.read(&mut bytemuck::cast_slice_mut(&mut host)[..span.len()])?;
        Ok(host)
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
        let host = match self.host.get() {
            Some(host) => host,
            None => {
                let read = self.read()?;
                self.host.get_or_init(|| read)
            }
        };
        view(&self.shape, self.element_type, host)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `units` as a tensor of `shape`.
fn view<'a>(
    shape: &'a [usize],
    element_type: ElementType,
    units: &'a [u64],
) -> Result<TensorView<'a>> {
    fn typed<'a, T: Element + bytemuck::Pod>(
        shape: &'a [usize],
        units: &'a [u64],
    ) -> Result<TensorView<'a>> {
        let elements: &[T] = bytemuck::cast_slice(units);
        let count = shape.iter().product();
        let elements = elements
            .get(..count)
            .ok_or_else(|| Error::internal(format!("{} elements of {count}", elements.len())))?;
        TensorView::new(shape, elements)
    }
    match element_type {
        ElementType::F32 => typed::<f32>(shape, units),
        ElementType::F16 => typed::<f16>(shape, units),
        ElementType::Bf16 => typed::<bf16>(shape, units),
        ElementType::I64 => typed::<i64>(shape, units),
        ElementType::I32 => typed::<i32>(shape, units),
        ElementType::U8 => typed::<u8>(shape, units),
        other => Err(Error::internal(format!("elements of type {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_elements_of_any_type() {
        let units = [0x3f80_0000_4000_0000, 0x4040_0000];
        let floats = view(&[3], ElementType::F32, &units).unwrap();
        assert_eq!(floats.as_slice::<f32>().unwrap(), [2.0, 1.0, 3.0]);
        let halves = view(&[1, 1], ElementType::F16, &[0x3c00]).unwrap();
        assert_eq!(halves.as_slice::<f16>().unwrap(), [f16::ONE]);
        let brains = view(&[2], ElementType::Bf16, &[0x3f80_4000]).unwrap();
        assert_eq!(brains.as_slice::<bf16>().unwrap(), [bf16::from_f32(2.0), bf16::ONE]);
        let whole = view(&[], ElementType::I64, &[7]).unwrap();
        assert_eq!(whole.as_slice::<i64>().unwrap(), [7]);
        assert_eq!(view(&[0, 5], ElementType::U8, &[]).unwrap().data().len(), 0);
        assert!(view(&[3], ElementType::I64, &units).is_err());
    }
}
