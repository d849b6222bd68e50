//! Elements to bytes.

use crate::PREFIX_BYTES;
use imprompt_error::{Error, Result};

/// Bytes that `elements` take on the wire: the sum of 4 + length.
///
/// # Errors
/// [`imprompt_error::Kind::InvalidInput`] when an element is longer than a
/// prefix can say (2^32 - 1 bytes) or the sum exceeds `usize`.
pub fn encoded_len<T: AsRef<[u8]>>(tensor: &str, elements: &[T]) -> Result<usize> {
    let mut sum = 0usize;
    for (index, element) in elements.iter().enumerate() {
        let len = element.as_ref().len();
        if u32::try_from(len).is_err() {
            return Err(Error::invalid(format!(
                "{tensor}: element {index} has {len} bytes, at most {} are allowed",
                u32::MAX
            )));
        }
        sum = len
            .checked_add(PREFIX_BYTES)
            .and_then(|step| sum.checked_add(step))
            .ok_or_else(|| Error::invalid(format!("{tensor}: more than {} bytes", usize::MAX)))?;
    }
    Ok(sum)
}

/// The wire form of `elements`.
///
/// # Errors
/// Those of [`encoded_len`], and [`imprompt_error::Kind::OutOfMemory`].
pub fn encode<T: AsRef<[u8]>>(tensor: &str, elements: &[T]) -> Result<Vec<u8>> {
    let len = encoded_len(tensor, elements)?;
    let mut out = Vec::new();
    out.try_reserve_exact(len)
        .map_err(|_| Error::out_of_memory(format!("{tensor}: {len} bytes of output")))?;
    for element in elements {
        let element = element.as_ref();
        // `encoded_len` has refused what does not fit.
        out.extend_from_slice(&(element.len() as u32).to_le_bytes());
        out.extend_from_slice(element);
    }
    Ok(out)
}

/// Writes the wire form of `elements` into `out`, which must have exactly
/// [`encoded_len`] bytes: an output buffer of Triton's, so that nothing is
/// copied twice.
///
/// # Errors
/// Those of [`encoded_len`], and [`imprompt_error::Kind::Internal`] when `out`
/// has another length.
pub fn encode_into<T: AsRef<[u8]>>(tensor: &str, elements: &[T], out: &mut [u8]) -> Result<()> {
    let len = encoded_len(tensor, elements)?;
    if out.len() != len {
        return Err(Error::internal(format!(
            "{tensor}: an output buffer of {} bytes for {len}",
            out.len()
        )));
    }
    let mut rest = out;
    for element in elements {
        let element = element.as_ref();
        let (prefix, after) = rest.split_at_mut(PREFIX_BYTES);
        prefix.copy_from_slice(&(element.len() as u32).to_le_bytes());
        let (body, after) = after.split_at_mut(element.len());
        body.copy_from_slice(element);
        rest = after;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_lengths_and_bytes() {
        let elements: [&[u8]; 3] = [b"ab", b"", b"\x00"];
        let bytes = encode("label", &elements).unwrap();
        assert_eq!(bytes, b"\x02\0\0\0ab\0\0\0\0\x01\0\0\0\0");
        assert_eq!(encoded_len("label", &elements).unwrap(), bytes.len());
        let mut buffer = vec![0xff; bytes.len()];
        encode_into("label", &elements, &mut buffer).unwrap();
        assert_eq!(buffer, bytes);
        assert!(encode_into("label", &elements, &mut buffer[1..]).is_err());
    }

    #[test]
    fn nothing_is_nothing() {
        assert!(encode::<&[u8]>("label", &[]).unwrap().is_empty());
    }
}
