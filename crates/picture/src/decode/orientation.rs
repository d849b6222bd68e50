//! Turning a picture upright by its EXIF orientation.

use crate::{RgbImage8, zeros};
use image::metadata::Orientation;
use imprompt_error::Result;

/// `image` turned as `exif` (a TIFF structure, with or without `Exif\0\0` in front) says.
/// EXIF that is broken or says something unknown is ignored.
pub(super) fn apply(image: RgbImage8, exif: Option<&[u8]>) -> Result<RgbImage8> {
    let exif = exif.map(|exif| exif.strip_prefix(b"Exif\0\0").unwrap_or(exif));
    match exif.and_then(Orientation::from_exif_chunk) {
        None | Some(Orientation::NoTransforms) => Ok(image),
        Some(orientation) => turn(&image, orientation),
    }
}

fn turn(image: &RgbImage8, orientation: Orientation) -> Result<RgbImage8> {
    use Orientation::{FlipHorizontal, FlipVertical, Rotate90, Rotate90FlipH};
    use Orientation::{NoTransforms, Rotate180, Rotate270, Rotate270FlipH};
    let (width, height) = (image.width, image.height);
    let (right, bottom) = (width - 1, height - 1);
    // New pixel (x, y) is old pixel (column, row).
    let old_place = |x: usize, y: usize| match orientation {
        NoTransforms => (x, y),
        FlipHorizontal => (right - x, y),
        Rotate180 => (right - x, bottom - y),
        FlipVertical => (x, bottom - y),
        Rotate90FlipH => (y, x),
        Rotate90 => (y, bottom - x),
        Rotate270FlipH => (right - y, bottom - x),
        Rotate270 => (right - y, x),
    };
    let swapped = matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH);
    let (new_width, new_height) = if swapped { (height, width) } else { (width, height) };
    let mut pixels = zeros(image.pixels.len(), "a turned picture")?;
    for (y, row) in pixels.chunks_exact_mut(new_width * 3).enumerate() {
        for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
            let (column, old_row) = old_place(x, y);
            pixel.copy_from_slice(&image.pixels[(old_row * width + column) * 3..][..3]);
        }
    }
    RgbImage8::new(new_width, new_height, pixels)
}
