//! A picture given as text: base64, or a `data:` URL.

use super::{invalid, not_a_picture};
use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use imprompt_error::{Error, Result};
use std::borrow::Cow;

/// Padding is free, and so are the unused bits of the last digit: they say nothing.
const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD_DIGITS: GeneralPurpose = GeneralPurpose::new(&STANDARD, LENIENT);
const URL_SAFE_DIGITS: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, LENIENT);

/// The bytes that `text` stands for.
pub(super) fn decode(text: &[u8]) -> Result<Vec<u8>> {
    let text = text.trim_ascii();
    let digits = match data_url_digits(text)? {
        Some(digits) => digits,
        None if is_address(text) => {
            return Err(invalid(
                "not a picture: an address is never opened; send the picture itself",
            ));
        }
        None => text,
    };
    let digits = if digits.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
        let mut joined = Vec::new();
        reserve(&mut joined, digits.len())?;
        joined.extend(digits.iter().filter(|byte| !matches!(byte, b'\r' | b'\n')));
        Cow::Owned(joined)
    } else {
        Cow::Borrowed(digits)
    };
    if !digits.iter().all(is_digit) {
        return Err(not_a_picture(text));
    }
    let url_safe = digits.iter().any(|byte| matches!(byte, b'-' | b'_'));
    let engine = if url_safe { &URL_SAFE_DIGITS } else { &STANDARD_DIGITS };
    let mut bytes = Vec::new();
    reserve(&mut bytes, digits.len().div_ceil(4) * 3)?;
    engine
        .decode_vec(&*digits, &mut bytes)
        .map_err(|_| invalid(format_args!("{} base64 digits do not decode", digits.len())))?;
    Ok(bytes)
}

fn is_digit(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_' | b'=')
}

fn reserve(vector: &mut Vec<u8>, length: usize) -> Result<()> {
    vector.try_reserve_exact(length).map_err(|_| Error::out_of_memory("base64 text of a picture"))
}

/// `scheme://...`, by RFC 3986's letters of a scheme.
fn is_address(text: &[u8]) -> bool {
    text.windows(3)
        .take(32)
        .position(|window| window == b"://")
        .is_some_and(|end| end > 0 && text[..end].iter().all(|byte| byte.is_ascii_alphanumeric()))
}

/// What follows the comma of `data:image/...;base64,`; nothing when it is no `data:` URL.
fn data_url_digits(text: &[u8]) -> Result<Option<&[u8]>> {
    let Some((scheme, rest)) = text.split_at_checked(5) else { return Ok(None) };
    if !scheme.eq_ignore_ascii_case(b"data:") {
        return Ok(None);
    }
    // A media type with its parameters is short; a comma further on is not its end.
    let comma = rest
        .iter()
        .take(256)
        .position(|byte| *byte == b',')
        .ok_or_else(|| invalid("a data: URL without a comma after its media type"))?;
    let mut parts = rest[..comma].split(|byte| *byte == b';');
    let media_type = parts.next().unwrap_or_default().trim_ascii();
    if !media_type.get(..6).is_some_and(|start| start.eq_ignore_ascii_case(b"image/")) {
        return Err(invalid("a data: URL of another media type than image/..."));
    }
    if !parts.next_back().is_some_and(|last| last.trim_ascii().eq_ignore_ascii_case(b"base64")) {
        return Err(invalid("a data: URL that is not base64"));
    }
    Ok(Some(rest[comma + 1..].trim_ascii()))
}
