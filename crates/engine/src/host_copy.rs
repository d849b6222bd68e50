//! What lies on a device, brought to the host when it is first asked for.

use std::sync::OnceLock;

use half::{bf16, f16};
use imprompt_error::{Error, Result};

use crate::{Element, ElementType, TensorView};

/// A tensor's elements on the host, in units that are aligned for every type. Read once.
#[derive(Debug, Default)]
pub struct HostCopy(OnceLock<Vec<u64>>);

impl HostCopy {
    /// The tensor of `shape`; `read` is given its bytes to fill where nobody asked before.
    ///
    /// # Errors
    /// `OutOfMemory`; that of `read`, after which the next call reads again.
    pub fn view<'a>(
        &'a self,
        shape: &'a [usize],
        element_type: ElementType,
        read: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<TensorView<'a>> {
        let units = match self.0.get() {
            Some(units) => units,
            None => {
                let bytes = shape.iter().product::<usize>() * element_type.size();
                let mut units: Vec<u64> = Vec::new();
                units.try_reserve_exact(bytes.div_ceil(8)).map_err(|_| {
                    Error::out_of_memory(format_args!("{bytes} bytes of a run's output"))
                })?;
                units.resize(bytes.div_ceil(8), 0);
                read(&mut bytemuck::cast_slice_mut(&mut units)[..bytes])?;
                self.0.get_or_init(|| units)
            }
        };
        match element_type {
            ElementType::F32 => typed::<f32>(shape, units),
            ElementType::F16 => typed::<f16>(shape, units),
            ElementType::Bf16 => typed::<bf16>(shape, units),
            ElementType::I64 => typed::<i64>(shape, units),
            ElementType::I32 => typed::<i32>(shape, units),
            ElementType::U8 => typed::<u8>(shape, units),
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills what is asked for with the bytes of `units`.
    fn of(units: &[u64]) -> impl FnOnce(&mut [u8]) -> Result<()> {
        |into| {
            let bytes: &[u8] = bytemuck::cast_slice(units);
            into.copy_from_slice(&bytes[..into.len()]);
            Ok(())
        }
    }

    #[test]
    fn units_are_elements_of_any_type() {
        let units = [0x3f80_0000_4000_0000, 0x4040_0000];
        let copy = HostCopy::default();
        let floats = copy.view(&[3], ElementType::F32, of(&units)).unwrap();
        assert_eq!(floats.as_slice::<f32>().unwrap(), [2.0, 1.0, 3.0]);
        let copy = HostCopy::default();
        let halves = copy.view(&[1, 1], ElementType::F16, of(&[0x3c00])).unwrap();
        assert_eq!(halves.as_slice::<f16>().unwrap(), [f16::ONE]);
        let copy = HostCopy::default();
        let brains = copy.view(&[2], ElementType::Bf16, of(&[0x3f80_4000])).unwrap();
        assert_eq!(brains.as_slice::<bf16>().unwrap(), [bf16::from_f32(2.0), bf16::ONE]);
        let copy = HostCopy::default();
        let whole = copy.view(&[], ElementType::I64, of(&[7])).unwrap();
        assert_eq!(whole.as_slice::<i64>().unwrap(), [7]);
        let copy = HostCopy::default();
        assert_eq!(copy.view(&[0, 5], ElementType::U8, of(&[])).unwrap().data().len(), 0);
        assert!(typed::<i64>(&[3], &units).is_err());
    }

    #[test]
    fn what_was_read_is_not_read_again() {
        let copy = HostCopy::default();
        let fails = |_: &mut [u8]| Err(Error::internal("a test"));
        assert!(copy.view(&[1], ElementType::I64, fails).is_err());
        copy.view(&[1], ElementType::I64, of(&[7])).unwrap();
        let again = copy.view(&[1], ElementType::I64, fails).unwrap();
        assert_eq!(again.as_slice::<i64>().unwrap(), [7]);
    }
}
