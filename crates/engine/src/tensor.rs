//! Plain tensors: shape and borrowed elements.

use half::{bf16, f16};
use imprompt_error::{Error, Result};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ElementType {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point.
    F16,
    /// Brain floating point: the range of `F32`, in 16 bits.
    Bf16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 8-bit unsigned integer.
    U8,
}

impl ElementType {
    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            ElementType::I64 => 8,
            ElementType::F32 | ElementType::I32 => 4,
            ElementType::F16 | ElementType::Bf16 => 2,
            ElementType::U8 => 1,
        }
    }
}

/// Borrowed elements, row-major.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Data<'a> {
    /// 32-bit floating point.
    F32(&'a [f32]),
    /// 16-bit floating point.
    F16(&'a [f16]),
    /// Brain floating point.
    Bf16(&'a [bf16]),
    /// 64-bit signed integers.
    I64(&'a [i64]),
    /// 32-bit signed integers.
    I32(&'a [i32]),
    /// Bytes.
    U8(&'a [u8]),
}

impl<'a> Data<'a> {
    /// The bytes of the elements, in the machine's order.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        fn cast<T: Element>(elements: &[T]) -> &[u8] {
            let bytes = std::mem::size_of_val(elements);
            // SAFETY: an element is a number, all of whose bytes are set.
            unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), bytes) }
        }
        match *self {
            Data::F32(data) => cast(data),
            Data::F16(data) => cast(data),
            Data::Bf16(data) => cast(data),
            Data::I64(data) => cast(data),
            Data::I32(data) => cast(data),
            Data::U8(data) => cast(data),
        }
    }

    /// The type of the elements.
    #[must_use]
    pub fn element_type(&self) -> ElementType {
        match self {
            Data::F32(_) => ElementType::F32,
            Data::F16(_) => ElementType::F16,
            Data::Bf16(_) => ElementType::Bf16,
            Data::I64(_) => ElementType::I64,
            Data::I32(_) => ElementType::I32,
            Data::U8(_) => ElementType::U8,
        }
    }

    /// How many elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Data::F32(data) => data.len(),
            Data::F16(data) => data.len(),
            Data::Bf16(data) => data.len(),
            Data::I64(data) => data.len(),
            Data::I32(data) => data.len(),
            Data::U8(data) => data.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A Rust type that a tensor's elements can be.
pub trait Element: Copy + Send + Sync + 'static {
    /// Its name as an element type.
    const TYPE: ElementType;

    /// The elements, where they are of this type.
    fn from_data(data: Data<'_>) -> Option<&[Self]>;

    /// These elements, whatever their type.
    fn to_data(elements: &[Self]) -> Data<'_>;
}

macro_rules! element {
    ($($type:ty => $variant:ident),+) => {$(
        impl Element for $type {
            const TYPE: ElementType = ElementType::$variant;

            fn from_data(data: Data<'_>) -> Option<&[Self]> {
                match data {
                    Data::$variant(elements) => Some(elements),
                    _ => None,
                }
            }

            fn to_data(elements: &[Self]) -> Data<'_> {
                Data::$variant(elements)
            }
        }
    )+};
}
element!(f32 => F32, f16 => F16, bf16 => Bf16, i64 => I64, i32 => I32, u8 => U8);

/// How many elements fill `shape`; `None` where that is no number.
pub(crate) fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |count, &length| count.checked_mul(length))
}

/// A shape and the elements that fill it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorView<'a> {
    shape: &'a [usize],
    data: Data<'a>,
}

impl<'a> TensorView<'a> {
    /// `elements` as a tensor of `shape`.
    ///
    /// # Errors
    /// `Internal` when the product of `shape` is not the number of elements.
    pub fn new<T: Element>(shape: &'a [usize], elements: &'a [T]) -> Result<Self> {
        let data = T::to_data(elements);
        let expected = element_count(shape);
        if expected != Some(data.len()) {
            return Err(Error::internal(format!(
                "a tensor of shape {shape:?} was given {} elements",
                data.len()
            )));
        }
        Ok(TensorView { shape, data })
    }

    /// Its dimensions.
    #[must_use]
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// Its elements.
    #[must_use]
    pub fn data(&self) -> Data<'a> {
        self.data
    }

    /// The type of its elements.
    #[must_use]
    pub fn element_type(&self) -> ElementType {
        self.data.element_type()
    }

    /// Its elements as `T`.
    ///
    /// # Errors
    /// `Internal` when they are of another type.
    pub fn as_slice<T: Element>(&self) -> Result<&'a [T]> {
        T::from_data(self.data).ok_or_else(|| {
            Error::internal(format!(
                "a tensor's elements are {:?}, not {:?}",
                self.element_type(),
                T::TYPE
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shape_and_elements_agree() {
        assert!(TensorView::new(&[2, 3], &[0f32; 6]).is_ok());
        assert!(TensorView::new(&[2, 0], &[0i64; 0]).is_ok());
        assert!(TensorView::new(&[], &[1i32]).is_ok());
        assert!(TensorView::new(&[2, 3], &[0f32; 5]).is_err());
        assert!(TensorView::new(&[usize::MAX, 2], &[0u8; 2]).is_err());
    }

    #[test]
    fn elements_are_asked_for_by_type() {
        let view = TensorView::new(&[2], &[1i64, 2]).unwrap();
        assert_eq!(view.as_slice::<i64>().unwrap(), &[1, 2]);
        assert!(view.as_slice::<f32>().is_err());
    }
}
