//! The wire form of Triton's BYTES tensors, read and written without trust.
//!
//! A BYTES tensor is its elements one after another, each a 4-byte
//! little-endian length and that many bytes. Triton hands a request's tensor
//! over in one or many buffers, does not bound the last element's length, and
//! checks nothing of what comes out of shared memory or another device. So
//! every length is bounded here by the bytes that are really there, a prefix
//! or an element may straddle buffers, and no input makes this crate panic or
//! reserve more memory than a small multiple of the input's own size.
//!
//! Every message starts with the tensor's name and speaks in numbers alone:
//! the bytes of a request are never repeated.
#![forbid(unsafe_code)]

mod decode;
mod encode;

pub use decode::{Elements, Limits, decode, decode_one, elements};
pub use encode::{encode, encode_into, encoded_len};

use imprompt_error::{Error, Result};

/// Bytes of the length in front of every element.
pub const PREFIX_BYTES: usize = 4;

/// How many elements a tensor of this shape has. No axes at all is one element
/// (a scalar); any axis of 0 is none.
///
/// # Errors
/// [`imprompt_error::Kind::InvalidInput`] when an axis is negative or the
/// product exceeds `usize`.
pub fn element_count(tensor: &str, shape: &[i64]) -> Result<usize> {
    for (axis, &size) in shape.iter().enumerate() {
        if size < 0 {
            return Err(Error::invalid(format!(
                "{tensor}: axis {axis} of its shape is {size}, 0 or more is allowed"
            )));
        }
    }
    // Looked for first, so that [2^62, 2^62, 0] is empty in any order of its axes.
    if shape.contains(&0) {
        return Ok(0);
    }
    shape
        .iter()
        .try_fold(1usize, |count, &size| count.checked_mul(usize::try_from(size).ok()?))
        .ok_or_else(|| {
            Error::invalid(format!(
                "{tensor}: the product of the {} axes of its shape exceeds {}",
                shape.len(),
                usize::MAX
            ))
        })
}

/// Element `index` of `tensor` as text.
///
/// # Errors
/// [`imprompt_error::Kind::InvalidInput`], naming the first byte that is not
/// UTF-8.
pub fn check_utf8<'a>(tensor: &str, index: usize, element: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(element).map_err(|error| {
        Error::invalid(format!(
            "{tensor}: element {index} is not UTF-8 from byte {} of its {} on",
            error.valid_up_to(),
            element.len()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_elements() {
        assert_eq!(element_count("labels", &[]).unwrap(), 1);
        assert_eq!(element_count("labels", &[2, 3]).unwrap(), 6);
        assert_eq!(element_count("labels", &[1, 0]).unwrap(), 0);
        assert_eq!(element_count("labels", &[i64::MAX, i64::MAX, 0]).unwrap(), 0);
        let negative = element_count("labels", &[1, -1]).unwrap_err();
        assert_eq!(negative.message(), "labels: axis 1 of its shape is -1, 0 or more is allowed");
        assert!(element_count("labels", &[0, i64::MIN]).is_err());
        assert!(element_count("labels", &[i64::MAX, 2, 2]).is_err());
    }

    #[test]
    fn text_is_checked() {
        assert_eq!(check_utf8("mode", 0, "größe".as_bytes()).unwrap(), "größe");
        let error = check_utf8("mode", 2, b"ab\xff!").unwrap_err();
        assert_eq!(error.message(), "mode: element 2 is not UTF-8 from byte 2 of its 4 on");
    }
}
