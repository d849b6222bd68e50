//! PNG: all depths, colour types and interlacing; of an APNG the default image.
//!
//! Pillow's rules for `convert("RGB")` (PngImagePlugin.py, Unpack.c, Convert.c): alpha and
//! tRNS are dropped, not blended; 16-bit colour keeps the high byte; 16-bit gray is clipped
//! at 255, not scaled (mode `I`).

use super::{Limits, big_endian_32, damaged, invalid, orientation};
use crate::{RgbImage8, zeros};
use ::png::{BitDepth, ColorType, InterlaceInfo, Transformations};
use imprompt_error::Result;
use std::io::Cursor;

const SIGNATURE: usize = 8;

/// What the chunks say before any pixel is decoded.
struct Summary<'a> {
    width: usize,
    height: usize,
    palette: &'a [u8],
    exif: Option<&'a [u8]>,
}

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage8> {
    let summary = inspect(bytes, limits)?;
    let mut options = ::png::DecodeOptions::default();
    // Every chunk's CRC was checked above; text and profiles would be unpacked for nothing.
    options.set_ignore_crc(true);
    options.set_ignore_text_chunk(true);
    options.set_ignore_iccp_chunk(true);
    let mut decoder = ::png::Decoder::new_with_options(Cursor::new(bytes), options);
    // A few rows of the widest pixels, and a palette.
    decoder.set_limits(::png::Limits { bytes: (1 << 20) + 64 * summary.width });
    decoder.set_transformations(Transformations::IDENTITY);
    let broken = |_| damaged("PNG", "its image data cannot be decoded");
    let mut reader = decoder.read_info().map_err(broken)?;
    let info = reader.info();
    let (color, depth) = (info.color_type, info.bit_depth);
    let mut pixels = zeros(summary.width * summary.height * 3, "a decoded picture")?;
    let mut row_pixels = zeros(summary.width * 3, "a decoded picture")?;
    let row_length = summary.width * 3;
    let mut row_number = 0;
    while let Some(row) = reader.next_interlaced_row().map_err(broken)? {
        match row.interlace() {
            InterlaceInfo::Null(_) => {
                let out =
                    pixels.get_mut(row_number * row_length..).and_then(|p| p.get_mut(..row_length));
                let out = out.ok_or_else(|| damaged("PNG", "it has too many rows"))?;
                convert(row.data(), (color, depth), summary.palette, out);
            }
            InterlaceInfo::Adam7(pass) => {
                convert(row.data(), (color, depth), summary.palette, &mut row_pixels);
                ::png::expand_interlaced_row(&mut pixels, row_length, &row_pixels, pass, 24);
            }
        }
        row_number += 1;
    }
    orientation::apply(RgbImage8::new(summary.width, summary.height, pixels)?, summary.exif)
}

/// Walks all chunks: sides before anything else, then each CRC, up to IEND.
fn inspect<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Summary<'a>> {
    let cut = || damaged("PNG", "it ends before IEND");
    let header = bytes.get(SIGNATURE..SIGNATURE + 16).ok_or_else(cut)?;
    if header[4..8] != *b"IHDR" {
        return Err(damaged("PNG", "it does not begin with IHDR"));
    }
    let side = |place: usize| big_endian_32(&header[place..]).ok_or_else(cut);
    let (width, height) = (side(8)?, side(12)?);
    limits.check(width, height)?;
    let mut summary = Summary { width, height, palette: &[], exif: None };
    let mut rest = &bytes[SIGNATURE..];
    loop {
        let length = big_endian_32(rest).ok_or_else(cut)?;
        let (chunk, after) = rest.split_at_checked(length.saturating_add(12)).ok_or_else(cut)?;
        let (body, crc) = chunk[4..].split_at(length + 4);
        if big_endian_32(crc) != Some(crc32fast::hash(body) as usize) {
            return Err(damaged("PNG", "a chunk's CRC is wrong"));
        }
        let (name, data) = body.split_at(4);
        match name {
            b"PLTE" if data.len() <= 768 => summary.palette = data,
            b"PLTE" => {
                return Err(invalid(format_args!("the PNG has a palette of {} bytes", data.len())));
            }
            b"eXIf" => summary.exif = Some(data),
            b"IEND" => return Ok(summary),
            _ => {}
        }
        rest = after;
    }
}

/// One row of samples as stored to RGB. `out` may be longer than the row (an interlaced pass).
fn convert(data: &[u8], (color, depth): (ColorType, BitDepth), palette: &[u8], out: &mut [u8]) {
    let pixels = out.chunks_exact_mut(3);
    let wide = depth == BitDepth::Sixteen;
    match color {
        ColorType::Grayscale if wide => {
            for (pixel, sample) in pixels.zip(data.chunks_exact(2)) {
                pixel.fill(if sample[0] > 0 { 255 } else { sample[1] });
            }
        }
        ColorType::Grayscale | ColorType::Indexed => {
            let bits = depth as usize;
            let per_byte = 8 / bits;
            let mask = u8::MAX >> (8 - bits);
            let table: Vec<[u8; 3]> = (0..=mask)
                .map(|value| match color {
                    ColorType::Indexed => palette_entry(palette, value),
                    _ => [value * (255 / mask); 3],
                })
                .collect();
            for (x, pixel) in pixels.enumerate() {
                let Some(byte) = data.get(x / per_byte) else { break };
                let shift = 8 - bits - (x % per_byte) * bits;
                pixel.copy_from_slice(&table[usize::from(byte >> shift & mask)]);
            }
        }
        _ => {
            let sample = if wide { 2 } else { 1 };
            let step = color.samples() * sample;
            for (pixel, stored) in pixels.zip(data.chunks_exact(step)) {
                match color {
                    ColorType::GrayscaleAlpha => pixel.fill(stored[0]),
                    _ => pixel.copy_from_slice(&[stored[0], stored[sample], stored[2 * sample]]),
                }
            }
        }
    }
}

/// Entry `index` of an RGB palette. Where the file has none Pillow's palette is a gray ramp.
pub(super) fn palette_entry(palette: &[u8], index: u8) -> [u8; 3] {
    let start = usize::from(index) * 3;
    palette.get(start..start + 3).map_or([index; 3], |entry| [entry[0], entry[1], entry[2]])
}
