//! BMP, with the headers of Windows and OS/2.

use super::{Limits, damaged, little_endian_32};
use crate::{RgbImage8, zeros};
use ::image::codecs::bmp::BmpDecoder;
use ::image::{ColorType, ImageDecoder};
use imprompt_error::Result;
use std::io::Cursor;

/// Whether what follows `BM` is a bitmap's header: two letters alone could begin a text.
pub(super) fn is_header(bytes: &[u8]) -> bool {
    let size = bytes.get(14..).and_then(little_endian_32);
    matches!(size, Some(12 | 16 | 40 | 52 | 56 | 64 | 108 | 124))
}

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage8> {
    let broken = |_| damaged("BMP", "its pixels cannot be decoded");
    let decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(broken)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    limits.check(width, height)?;
    let color = decoder.color_type();
    let mut stored =
        zeros(width * height * usize::from(color.bytes_per_pixel()), "a decoded picture")?;
    decoder.read_image(&mut stored).map_err(broken)?;
    if color == ColorType::Rgb8 {
        return RgbImage8::new(width, height, stored);
    }
    let mut pixels = zeros(width * height * 3, "a decoded picture")?;
    let step = usize::from(color.bytes_per_pixel());
    for (pixel, stored) in pixels.chunks_exact_mut(3).zip(stored.chunks_exact(step)) {
        match color {
            ColorType::Rgba8 => pixel.copy_from_slice(&stored[..3]),
            _ => return Err(damaged("BMP", "its pixels are of an unknown kind")),
        }
    }
    RgbImage8::new(width, height, pixels)
}
