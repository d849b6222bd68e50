//! An RGB picture to `pixel_values`, as a checkpoint's image processor does.
//!
//! The order is transformers': resize, centre crop, rescale, normalise, channels first
//! (`CLIPImageProcessor`, `BlipImageProcessor` of transformers 4.33.1). Pictures arrive as RGB,
//! where clip-interrogator resizes before it converts: the same for RGB pictures.

mod config;

use crate::resize::{Filter, ResizeScratch, Span, resize_part};
use crate::{RgbImage8, grow};
use imprompt_error::{Error, Result};

/// How a centre crop rounds, and pads what is too small. Both resize the short side to the
/// given length and the long one to `long * length / short`, rounded down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CropRule {
    /// transformers 4.33.1 `center_crop`: offset `(side - crop) / 2` rounded down, padding before
    /// `(crop - side) / 2` rounded down. For an odd difference transformers itself gives a picture
    /// one row or column short, which no model takes; here the last one is padding.
    #[default]
    Transformers,
    /// torchvision `CenterCrop` (open_clip 2.20): offset `(side - crop) / 2` rounded half to even,
    /// padding before `(crop - side) / 2` rounded down.
    Torchvision,
}

impl CropRule {
    /// First kept place of a side of `side`, and places of padding in front.
    fn place(self, side: usize, crop: usize) -> (usize, usize) {
        let Some(rest) = side.checked_sub(crop) else { return (0, (crop - side) / 2) };
        match self {
            // Python's round: a half goes to the even neighbour.
            CropRule::Torchvision if rest % 4 == 3 => (rest.div_ceil(2), 0),
            _ => (rest / 2, 0),
        }
    }
}

/// The size a picture is brought to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resize {
    /// The short side's length; the other follows.
    ShortestEdge(usize),
    /// Height and width.
    Exact((usize, usize)),
}

/// A checkpoint's image processor.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocessor {
    resize: Option<Resize>,
    /// Height and width.
    crop: Option<(usize, usize)>,
    filter: Filter,
    rule: CropRule,
    height: usize,
    width: usize,
    /// The value of each level of each channel: rescaling and normalising depend on nothing else.
    levels: Box<[[f32; 256]; 3]>,
}

/// Buffers of [`Preprocessor::run`], reused between pictures.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    resize: ResizeScratch,
    pixels: Vec<u8>,
}

/// One side of the way from picture to output.
#[derive(Clone, Copy)]
struct Side {
    span: Span,
    /// Padding in front.
    before: usize,
}

impl Preprocessor {
    /// Reads a `preprocessor_config.json` with `image_processor_type` (or the older
    /// `feature_extractor_type`) CLIPImageProcessor, CLIPFeatureExtractor, BitImageProcessor,
    /// BlipImageProcessor, SiglipImageProcessor, or their `Fast` twins; missing keys have
    /// transformers' defaults. Or `{"preprocess_cfg": {...}, "image_size": n}`, of which the first
    /// is open_clip's: it crops as torchvision does.
    ///
    /// # Errors
    /// [`imprompt_error::Kind::BadModel`], naming the key: an unknown processor, a key that may
    /// change the result and is not understood, a value of the wrong type or out of range.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        config::parse(json)
    }

    /// The same with another rule of cropping.
    #[must_use]
    pub fn with_crop_rule(mut self, rule: CropRule) -> Self {
        self.rule = rule;
        self
    }

    /// Rows of `pixel_values`.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Columns of `pixel_values`.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Values of one picture: `3 * height * width`.
    pub fn output_len(&self) -> usize {
        3 * self.height * self.width
    }

    /// Writes `pixel_values` of `image` into `out`, f32 `[3, height, width]`, red first.
    /// After the first picture of the largest size it allocates nothing but filter tables.
    ///
    /// # Errors
    /// [`imprompt_error::Kind::Internal`] when `out` has not [`Self::output_len`] places;
    /// [`imprompt_error::Kind::OutOfMemory`].
    pub fn run(&self, image: &RgbImage8, scratch: &mut Scratch, out: &mut [f32]) -> Result<()> {
        if out.len() != self.output_len() {
            return Err(Error::internal(format!(
                "pixel_values has {} places, {} are needed",
                out.len(),
                self.output_len()
            )));
        }
        let (full_height, full_width) = self.resized(image.height(), image.width());
        let down = self.side(image.height(), full_height, self.height);
        let across = self.side(image.width(), full_width, self.width);
        let Scratch { resize, pixels } = scratch;
        grow(pixels, down.span.kept * across.span.kept * 3, "a resized picture")?;
        resize_part(image, across.span, down.span, self.filter, (resize, pixels))?;
        self.write(pixels, (down, across), out);
        Ok(())
    }

    /// Height and width after resizing: `get_resize_output_image_size` of transformers,
    /// `_compute_resized_output_size` of torchvision.
    fn resized(&self, height: usize, width: usize) -> (usize, usize) {
        match self.resize {
            None => (height, width),
            Some(Resize::Exact(size)) => size,
            Some(Resize::ShortestEdge(edge)) if width <= height => (edge * height / width, edge),
            Some(Resize::ShortestEdge(edge)) => (edge, edge * width / height),
        }
    }

    fn side(&self, old: usize, full: usize, new: usize) -> Side {
        let (first, before) = match self.crop {
            Some(_) => self.rule.place(full, new),
            None => (0, 0),
        };
        Side { span: Span { old, full, first, kept: full.min(new) }, before }
    }

    /// Levels to values, channels apart; padding is level 0.
    fn write(&self, pixels: &[u8], (down, across): (Side, Side), out: &mut [f32]) {
        let area = self.height * self.width;
        for ((channel, plane), levels) in
            out.chunks_exact_mut(area).enumerate().zip(self.levels.iter())
        {
            let padded = down.span.kept < self.height || across.span.kept < self.width;
            if padded {
                plane.fill(levels[0]);
            }
            let rows = plane.chunks_exact_mut(self.width).skip(down.before);
            for (row, stored) in rows.zip(pixels.chunks_exact(across.span.kept * 3)) {
                let row = &mut row[across.before..][..across.span.kept];
                for (value, pixel) in row.iter_mut().zip(stored.chunks_exact(3)) {
                    *value = levels[usize::from(pixel[channel])];
                }
            }
        }
    }
}
