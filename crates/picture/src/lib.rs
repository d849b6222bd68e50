//! Turns the bytes of a request's `image` into the pixel values a model sees,
//! as the Python references do (Pillow 10.0.0, transformers 4.33.1, torchvision).
//!
//! 1. [`decode`]: encoded picture, base64 text or `data:` URL to 8-bit RGB.
//! 2. [`resize`]: Pillow's `Image.resize`, bit for bit.
//! 3. [`Preprocessor`]: a `preprocessor_config.json` applied to a picture,
//!    giving `pixel_values` as f32 `[3, height, width]`.
//!
//! Exactness: every format decodes to the bytes that Pillow 10.0.0 gives, JPEG too, and
//! `resize` gives Pillow's bytes for every filter; values equal transformers' bit for bit, and
//! torchvision's within a millionth. `docs/exactness-picture.md` holds the figures.
//!
//! `unsafe` is in `simd.rs` alone.
#![deny(unsafe_code)]

mod decode;
mod preprocess;
mod resize;
mod simd;

pub use decode::{Limits, decode};
pub use preprocess::{CropRule, Preprocessor, Scratch};
pub use resize::{Filter, resize};
#[doc(hidden)]
pub use simd::portably;

/// A decoded picture: 8 bits a channel, red green blue, rows top to bottom, no padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RgbImage8 {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl RgbImage8 {
    /// A picture of `width` x `height` from its `3 * width * height` bytes.
    ///
    /// # Errors
    /// [`imprompt_error::Kind::InvalidInput`] when a side is 0 or the length is another.
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> imprompt_error::Result<Self> {
        let expected = width.checked_mul(height).and_then(|area| area.checked_mul(3));
        if width == 0 || height == 0 || expected != Some(pixels.len()) {
            return Err(imprompt_error::Error::invalid(format!(
                "a {width}x{height} picture cannot have {} bytes",
                pixels.len()
            )));
        }
        Ok(RgbImage8 { width, height, pixels })
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// All bytes, `[height, width, 3]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The bytes of row `y`, `[width, 3]`.
    pub(crate) fn row(&self, y: usize) -> &[u8] {
        &self.pixels[y * self.width * 3..][..self.width * 3]
    }
}

/// `length` zeros, or an out-of-memory error for `what`: sizes come from requests, so
/// an allocation that fails must not end the process.
pub(crate) fn zeros(length: usize, what: &str) -> imprompt_error::Result<Vec<u8>> {
    let mut vector = Vec::new();
    grow(&mut vector, length, what)?;
    Ok(vector)
}

/// Makes `vector` exactly `length` long, new places zero; old places keep their bytes.
pub(crate) fn grow<T: Clone + Default>(
    vector: &mut Vec<T>,
    length: usize,
    what: &str,
) -> imprompt_error::Result<()> {
    vector
        .try_reserve_exact(length.saturating_sub(vector.len()))
        .map_err(|_| imprompt_error::Error::out_of_memory(what))?;
    vector.resize(length, T::default());
    Ok(())
}
