//! WebP: lossy, lossless, with alpha (dropped, as Pillow's `convert("RGB")` does); of an
//! animation the first frame on its canvas, which is black where the frame is not.

use super::{Limits, damaged, little_endian_32, orientation};
use crate::{RgbImage8, zeros};
use image_webp::WebPDecoder;
use imprompt_error::{Error, Result};
use std::io::Cursor;

const HEADER: usize = 12;

/// Where the first frame lies, and what surrounds it.
#[derive(Default)]
struct Summary<'a> {
    canvas: Option<(usize, usize)>,
    exif: Option<&'a [u8]>,
    frame: Option<Frame<'a>>,
}

/// One frame of an animation: its place on the canvas and its chunks.
struct Frame<'a> {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
    chunks: &'a [u8],
}

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage8> {
    let summary = inspect(bytes)?;
    if let Some((width, height)) = summary.canvas {
        limits.check(width, height)?;
    }
    let image = match (&summary.frame, summary.canvas) {
        (Some(frame), Some(canvas)) => {
            if frame.left + frame.width > canvas.0 || frame.top + frame.height > canvas.1 {
                return Err(damaged("WebP", "its first frame lies outside its canvas"));
            }
            place(frame, canvas, &decode_still(&still(frame)?, limits)?)?
        }
        (Some(_), None) => return Err(damaged("WebP", "its animation has no canvas")),
        (None, _) => decode_still(bytes, limits)?,
    };
    orientation::apply(image, summary.exif)
}

/// A 24-bit little-endian number.
fn read_24(bytes: &[u8], place: usize) -> Option<usize> {
    let bytes = bytes.get(place..place + 3)?;
    Some(usize::from(bytes[0]) | usize::from(bytes[1]) << 8 | usize::from(bytes[2]) << 16)
}

/// The name, data and successors of the chunk at the start of `bytes`.
fn chunk(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (name, rest) = bytes.split_at_checked(4)?;
    let size = little_endian_32(rest)?;
    let (data, after) = rest[4..].split_at_checked(size)?;
    // Chunks are padded to an even length; the last one's padding is often forgotten.
    Some((name, data, if size % 2 == 1 { after.get(1..).unwrap_or_default() } else { after }))
}

/// Walks the chunks up to the end the RIFF header states.
fn inspect(bytes: &[u8]) -> Result<Summary<'_>> {
    let cut = || damaged("WebP", "it is shorter than it says");
    let size = little_endian_32(&bytes[4..]).ok_or_else(cut)?;
    // Some writers leave the last padding byte out but count it.
    let end = size.saturating_add(8);
    if end > bytes.len() + 1 {
        return Err(cut());
    }
    let mut rest = bytes.get(HEADER..end.min(bytes.len())).ok_or_else(cut)?;
    let mut summary = Summary::default();
    let mut has_picture = false;
    while rest.len() >= 8 {
        let (name, data, after) = chunk(rest).ok_or_else(cut)?;
        match name {
            b"VP8X" => {
                let side = |place| read_24(data, place).map(|side| side + 1).ok_or_else(cut);
                summary.canvas = Some((side(4)?, side(7)?));
            }
            b"ANMF" if summary.frame.is_none() && !has_picture => {
                let field = |place| read_24(data, place).ok_or_else(cut);
                summary.frame = Some(Frame {
                    left: field(0)? * 2,
                    top: field(3)? * 2,
                    width: field(6)? + 1,
                    height: field(9)? + 1,
                    chunks: data.get(16..).ok_or_else(cut)?,
                });
            }
            b"VP8 " | b"VP8L" => has_picture = true,
            b"EXIF" => summary.exif = Some(data),
            _ => {}
        }
        rest = after;
    }
    if !has_picture && summary.frame.is_none() {
        return Err(damaged("WebP", "it has no picture"));
    }
    Ok(summary)
}

/// A still picture's file around the chunks of `frame`: the first frame of an animation is
/// shown as stored, and none of the others is looked at.
fn still(frame: &Frame) -> Result<Vec<u8>> {
    let mut file = Vec::new();
    let out_of_memory = |_| Error::out_of_memory("a frame of a WebP");
    file.try_reserve_exact(frame.chunks.len() + 64).map_err(out_of_memory)?;
    file.extend(b"RIFF\0\0\0\0WEBP");
    let mut rest = frame.chunks;
    while let Some((name, data, after)) = chunk(rest) {
        if matches!(name, b"ALPH" | b"VP8 " | b"VP8L") {
            if name == b"ALPH" {
                // Alpha needs the extended header: its flag, and the size less one.
                file.extend(b"VP8X\x0a\0\0\0\x10\0\0\0");
                file.extend(&((frame.width - 1) as u32).to_le_bytes()[..3]);
                file.extend(&((frame.height - 1) as u32).to_le_bytes()[..3]);
            }
            file.extend(name);
            file.extend((data.len() as u32).to_le_bytes());
            file.extend(data);
            file.extend(std::iter::repeat_n(0, data.len() % 2));
            if name != b"ALPH" {
                break;
            }
        }
        rest = after;
    }
    let size = (file.len() - 8) as u32;
    file[4..8].copy_from_slice(&size.to_le_bytes());
    Ok(file)
}

fn place(frame: &Frame, canvas: (usize, usize), image: &RgbImage8) -> Result<RgbImage8> {
    if (image.width(), image.height()) != (frame.width, frame.height) {
        return Err(damaged("WebP", "its first frame is of another size than stated"));
    }
    let mut pixels = zeros(canvas.0 * canvas.1 * 3, "a decoded picture")?;
    for y in 0..frame.height {
        let start = ((frame.top + y) * canvas.0 + frame.left) * 3;
        pixels[start..start + frame.width * 3].copy_from_slice(image.row(y));
    }
    RgbImage8::new(canvas.0, canvas.1, pixels)
}

fn decode_still(bytes: &[u8], limits: &Limits) -> Result<RgbImage8> {
    let broken = |_| damaged("WebP", "its image data cannot be decoded");
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(broken)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    limits.check(width, height)?;
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    let mut stored = zeros(width * height * channels, "a decoded picture")?;
    decoder.read_image(&mut stored).map_err(broken)?;
    if channels == 4 {
        // In place: pixel i moves from 4i to 3i, never over one still to be read.
        for pixel in 0..width * height {
            stored.copy_within(pixel * 4..pixel * 4 + 3, pixel * 3);
        }
        stored.truncate(width * height * 3);
    }
    RgbImage8::new(width, height, stored)
}
