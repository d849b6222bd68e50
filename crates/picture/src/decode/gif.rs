//! GIF: the first frame on its canvas.
//!
//! Pillow's rules (GifImagePlugin.py): the canvas grows to hold a frame that is larger;
//! outside the frame it shows the transparent index if there is one, else index 0.

use super::png::palette_entry;
use super::{Limits, damaged};
use crate::{RgbImage8, zeros};
use ::gif::{ColorOutput, DecodeOptions, MemoryLimit};
use imprompt_error::Result;

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage8> {
    let screen = |place: usize| {
        bytes.get(place..place + 2).map(|side| usize::from(u16::from_le_bytes([side[0], side[1]])))
    };
    let cut = || damaged("GIF", "it ends in its header");
    let (mut width, mut height) = (screen(6).ok_or_else(cut)?, screen(8).ok_or_else(cut)?);
    let broken = |_| damaged("GIF", "its first frame cannot be decoded");
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.set_memory_limit(MemoryLimit::Unlimited);
    options.allow_unknown_blocks(true);
    let mut reader = options.read_info(bytes).map_err(broken)?;
    let frame = reader.next_frame_info().map_err(broken)?;
    let frame = frame.ok_or_else(|| damaged("GIF", "it has no frame"))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (frame_width, frame_height) = (usize::from(frame.width), usize::from(frame.height));
    let outside = frame.transparent.unwrap_or(0);
    width = width.max(left + frame_width);
    height = height.max(top + frame_height);
    limits.check(width, height)?;
    limits.check(frame_width, frame_height)?;
    let mut indices = zeros(frame_width * frame_height, "a decoded picture")?;
    reader.read_into_buffer(&mut indices).map_err(broken)?;
    let palette = reader.palette().map_err(broken)?;
    let colors: Vec<[u8; 3]> = (0..=255).map(|index| palette_entry(palette, index)).collect();
    let mut pixels = zeros(width * height * 3, "a decoded picture")?;
    if (frame_width, frame_height) != (width, height) {
        for pixel in pixels.chunks_exact_mut(3) {
            pixel.copy_from_slice(&colors[usize::from(outside)]);
        }
    }
    for (y, row) in indices.chunks_exact(frame_width).enumerate() {
        let start = ((top + y) * width + left) * 3;
        let out = &mut pixels[start..start + frame_width * 3];
        for (pixel, index) in out.chunks_exact_mut(3).zip(row) {
            pixel.copy_from_slice(&colors[usize::from(*index)]);
        }
    }
    RgbImage8::new(width, height, pixels)
}
