//! Encoded pictures to RGB. What a picture is, its own first bytes decide alone:
//! no name, no claimed media type. Sides are checked from the header, before any
//! memory for pixels is taken.

mod bmp;
mod gif;
mod jpeg;
mod orientation;
mod png;
mod text;
mod webp;

use crate::RgbImage8;
use imprompt_error::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a request's picture may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest input in bytes, as received: raw or as text.
    pub encoded_bytes: usize,
    /// Longest side in pixels.
    pub side: usize,
    /// Most pixels. Decoding takes about 3 bytes a pixel for the result, and up to
    /// 9 more while it runs, by format.
    pub pixels: usize,
}

impl Default for Limits {
    /// 20 MiB, 16384 pixels a side, 64 Mi pixels.
    fn default() -> Self {
        Limits { encoded_bytes: 20 << 20, side: 16_384, pixels: 64 << 20 }
    }
}

impl Limits {
    /// An error unless a `width` x `height` picture is allowed.
    fn check(&self, width: usize, height: usize) -> Result<()> {
        if width == 0 || height == 0 {
            return Err(invalid(format_args!("the picture is {width}x{height} pixels")));
        }
        if width > self.side || height > self.side {
            return Err(invalid(format_args!(
                "the picture is {width}x{height} pixels, {} a side are allowed",
                self.side
            )));
        }
        // Cannot overflow: both passed the limit of a side unless that limit is absurd.
        if width.checked_mul(height).is_none_or(|area| area > self.pixels) {
            return Err(invalid(format_args!(
                "the picture is {width}x{height} pixels, {} in all are allowed",
                self.pixels
            )));
        }
        Ok(())
    }
}

/// A format that is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Jpeg,
    Png,
    WebP,
    Gif,
    Bmp,
}

impl Format {
    fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xff, 0xd8, 0xff, ..] => Some(Format::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Format::Png),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Format::WebP),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Format::Gif),
            [b'B', b'M', ..] if bmp::is_header(bytes) => Some(Format::Bmp),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Format::Jpeg => "JPEG",
            Format::Png => "PNG",
            Format::WebP => "WebP",
            Format::Gif => "GIF",
            Format::Bmp => "BMP",
        }
    }

    fn decode(self, bytes: &[u8], limits: &Limits) -> Result<RgbImage8> {
        match self {
            Format::Jpeg => jpeg::decode(bytes, limits),
            Format::Png => png::decode(bytes, limits),
            Format::WebP => webp::decode(bytes, limits),
            Format::Gif => gif::decode(bytes, limits),
            Format::Bmp => bmp::decode(bytes, limits),
        }
    }
}

/// The picture in `bytes`: a JPEG, PNG, WebP, GIF (first frame) or BMP as raw bytes, or
/// as base64 text (standard or URL-safe, padded or not, with or without line breaks), or
/// as a `data:` URL of a base64 picture. A path or an address is never opened.
///
/// The result is what Pillow 10.0.0's `Image.open(...).convert("RGB")` gives, then turned
/// upright by the EXIF orientation. `docs/pictures.md` states each format's rules.
///
/// # Errors
/// [`imprompt_error::Kind::InvalidInput`] for everything that is not a whole, allowed
/// picture; [`imprompt_error::Kind::OutOfMemory`]. Messages start with ``input `image`: `` and
/// repeat at most the first 4 bytes, as hexadecimal digits.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage8> {
    if bytes.is_empty() {
        return Err(invalid("empty image"));
    }
    if bytes.len() > limits.encoded_bytes {
        return Err(invalid(format_args!(
            "{} bytes, {} are allowed",
            bytes.len(),
            limits.encoded_bytes
        )));
    }
    if let Some(format) = Format::of(bytes) {
        return decode_as(format, bytes, limits);
    }
    let raw = text::decode(bytes)?;
    let format = Format::of(&raw).ok_or_else(|| not_a_picture(&raw))?;
    decode_as(format, &raw, limits)
}

/// Decodes with a guard around libraries that parse bytes of strangers: a panic in one is
/// that request's error.
fn decode_as(format: Format, bytes: &[u8], limits: &Limits) -> Result<RgbImage8> {
    catch_unwind(AssertUnwindSafe(|| format.decode(bytes, limits)))
        .unwrap_or_else(|_| Err(invalid(format_args!("the {} is damaged", format.name()))))
}

fn invalid(what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("input `image`: {what}"))
}

/// The refusal of bytes that no decoder here takes.
fn not_a_picture(bytes: &[u8]) -> Error {
    let hex: Vec<_> = bytes.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    invalid(format_args!(
        "not a picture of a supported format (JPEG, PNG, WebP, GIF, BMP; as bytes, base64 text or \
         a data: URL): first bytes {}",
        hex.join(" ")
    ))
}

/// The refusal of a file that its decoder cannot take. A decoder's own words may hold text
/// of the file, so they stay out.
fn damaged(format: &str, what: &str) -> Error {
    invalid(format_args!("the {format} is damaged: {what}"))
}

/// The big-endian u32 at the start of `bytes`.
fn big_endian_32(bytes: &[u8]) -> Option<usize> {
    Some(u32::from_be_bytes(*bytes.first_chunk()?) as usize)
}

/// The little-endian u32 at the start of `bytes`.
fn little_endian_32(bytes: &[u8]) -> Option<usize> {
    Some(u32::from_le_bytes(*bytes.first_chunk()?) as usize)
}
