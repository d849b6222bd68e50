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
    if color == ColorType::Rgb8 && depth(bytes) == Some(16) {
        truncate_levels(bytes, &mut stored)?;
    }
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

/// Bits a pixel, as an information header states them.
fn depth(bytes: &[u8]) -> Option<u16> {
    const CORE: usize = 12;
    let place = if bytes.get(14..).and_then(little_endian_32)? == CORE { 24 } else { 28 };
    Some(u16::from_le_bytes(*bytes.get(place..)?.first_chunk()?))
}

/// 5 and 6 bits to 8: the decoder rounds `value * 255 / 31`, Pillow (Unpack.c, `BGR;15` and
/// `BGR;16`) rounds down. Other layouts of 16 bits Pillow refuses.
fn truncate_levels(bytes: &[u8], stored: &mut [u8]) -> Result<()> {
    const BIT_FIELDS: usize = 3;
    let field = |place: usize| bytes.get(place..).and_then(little_endian_32);
    let green_levels = match (field(30), field(54), field(58), field(62)) {
        (Some(BIT_FIELDS), Some(0xf800), Some(0x7e0), Some(0x1f)) => 63,
        (Some(BIT_FIELDS), Some(0x7c00), Some(0x3e0), Some(0x1f)) => 31,
        (Some(BIT_FIELDS), ..) => {
            return Err(damaged("BMP", "its 16 bits are neither 5-5-5 nor 5-6-5"));
        }
        _ => 31,
    };
    let table = |levels: u32| -> Vec<u8> {
        (0..=255).map(|level: u32| ((level * levels + 127) / 255 * 255 / levels) as u8).collect()
    };
    let (five, green) = (table(31), table(green_levels));
    for pixel in stored.chunks_exact_mut(3) {
        pixel[0] = five[usize::from(pixel[0])];
        pixel[1] = green[usize::from(pixel[1])];
        pixel[2] = five[usize::from(pixel[2])];
    }
    Ok(())
}
