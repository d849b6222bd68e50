//! Pillow's 8-bit `Image.resize`, bit for bit (`src/libImaging/Resample.c` and, for
//! nearest, `Geometry.c`; Pillow 10.0.0, `reducing_gap=None`).
//!
//! Two passes, horizontal then vertical, each with fixed-point coefficients of 22
//! fractional bits and a rounding to u8. Any part of the result can be computed alone
//! and equals that part of the whole: a centre crop pays for what it keeps.

use crate::simd::Simd;
use crate::{RgbImage8, grow};
use imprompt_error::{Error, Result};
use std::f64::consts::PI;
use std::ops::Range;

/// How new pixels are made from old ones. The discriminants are Pillow's
/// (`PIL.Image.Resampling`), which is what `resample` of a configuration holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// The old pixel under the centre of the new one.
    Nearest = 0,
    /// Windowed sinc, 3 lobes.
    Lanczos = 1,
    /// Triangle.
    Bilinear = 2,
    /// Keys' cubic, a = -0.5.
    Bicubic = 3,
    /// Average of the area covered.
    Box = 4,
    /// Windowed sinc, 1 lobe.
    Hamming = 5,
}

impl Filter {
    /// The filter of Pillow's number `number`.
    pub fn from_number(number: u64) -> Option<Self> {
        use Filter::*;
        [Nearest, Lanczos, Bilinear, Bicubic, Box, Hamming].into_iter().nth(number.try_into().ok()?)
    }

    fn support(self) -> f64 {
        match self {
            Filter::Nearest | Filter::Box => 0.5,
            Filter::Bilinear | Filter::Hamming => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    /// The weight at distance `x`. Written operation by operation as Pillow has it:
    /// another order of the same terms rounds differently.
    fn weight(self, x: f64) -> f64 {
        match self {
            Filter::Nearest | Filter::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Filter::Bilinear => (1.0 - x.abs()).max(0.0),
            Filter::Hamming => {
                let x = x.abs();
                if x == 0.0 {
                    1.0
                } else if x >= 1.0 {
                    0.0
                } else {
                    let x = x * PI;
                    // The f32 suffixes are Pillow's.
                    x.sin() / x * (f64::from(0.54_f32) + f64::from(0.46_f32) * x.cos())
                }
            }
            Filter::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        1.0
    } else {
        let x = x * PI;
        x.sin() / x
    }
}

/// Fractional bits of a coefficient: an i32 holds 8 bits of level and 2 of overshoot besides.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// One side of a resize: `old` pixels become `full`, of which `kept` are computed from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) old: usize,
    pub(crate) full: usize,
    pub(crate) first: usize,
    pub(crate) kept: usize,
}

impl Span {
    /// All of the result.
    pub(crate) fn whole(old: usize, full: usize) -> Self {
        Span { old, full, first: 0, kept: full }
    }

    fn is_identity(self) -> bool {
        self.old == self.full
    }
}

/// Coefficients of one side, in two halves of 16 bits (`high << 15 | low`): products of
/// 16-bit numbers are what every x86 and Arm vector unit multiplies and adds fastest.
#[derive(Clone, Debug, Default)]
struct Coefficients {
    /// Places of one new pixel in `high` and `low`, a multiple of 16, zero-filled.
    stride: usize,
    /// First old pixel and count of each new pixel.
    bounds: Vec<(usize, usize)>,
    high: Vec<i16>,
    low: Vec<i16>,
}

const LOW_BITS: u32 = 15;

impl Coefficients {
    /// `precompute_coeffs` and `normalize_coeffs_8bpc` of Resample.c.
    fn compute(&mut self, span: Span, filter: Filter) -> Result<()> {
        let scale = span.old as f64 / span.full as f64;
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        self.stride = (support.ceil() as usize * 2 + 1).next_multiple_of(16);
        let places = self.stride * span.kept;
        self.bounds.clear();
        self.high.clear();
        self.low.clear();
        grow(&mut self.high, places, "resize coefficients")?;
        grow(&mut self.low, places, "resize coefficients")?;
        let inverse = 1.0 / filter_scale;
        let mut weights = vec![0.0_f64; self.stride];
        let rows =
            self.high.chunks_exact_mut(self.stride).zip(self.low.chunks_exact_mut(self.stride));
        for (index, (high, low)) in rows.enumerate() {
            let center = ((span.first + index) as f64 + 0.5) * scale;
            // `as` saturates at 0, which is the clamp Resample.c makes after truncating.
            let start = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(span.old);
            let count = end - start;
            let mut sum = 0.0;
            for (x, weight) in weights[..count].iter_mut().enumerate() {
                *weight = filter.weight(((x + start) as f64 - center + 0.5) * inverse);
                sum += *weight;
            }
            for (x, weight) in weights[..count].iter().enumerate() {
                let weight = if sum != 0.0 { weight / sum } else { *weight };
                let scaled = weight * f64::from(1 << PRECISION_BITS);
                let fixed = (if weight < 0.0 { -0.5 + scaled } else { 0.5 + scaled }) as i32;
                high[x] = (fixed >> LOW_BITS) as i16;
                low[x] = (fixed & ((1 << LOW_BITS) - 1)) as i16;
            }
            self.bounds.push((start, count));
        }
        Ok(())
    }

    /// The old pixels that count.
    fn span(&self) -> Range<usize> {
        let first = self.bounds.first().map_or(0, |bound| bound.0);
        first..self.bounds.iter().map(|bound| bound.0 + bound.1).max().unwrap_or(first)
    }

    fn of(&self, index: usize) -> (&[i16], &[i16]) {
        let place = index * self.stride;
        (&self.high[place..][..self.stride], &self.low[place..][..self.stride])
    }
}

/// The rounding to a level. Sums of halves may wrap on the way; the total does not.
fn level(high: i32, low: i32) -> u8 {
    let sum = (high << LOW_BITS).wrapping_add(low).wrapping_add(1 << (PRECISION_BITS - 1));
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Buffers of a resize, reused between pictures.
#[derive(Clone, Debug, Default)]
pub(crate) struct ResizeScratch {
    across: Coefficients,
    down: Coefficients,
    /// The old rows that matter, already of the new width.
    narrow: Vec<u8>,
    /// One old row, a plane a channel, widened to 16 bits.
    planes: Vec<i16>,
}

/// `image` at `width` x `height`, equal to Pillow's
/// `image.resize((width, height), resample=filter)`.
///
/// # Errors
/// [`imprompt_error::Kind::InvalidInput`] when a new side is 0 or above 65535;
/// [`imprompt_error::Kind::OutOfMemory`].
pub fn resize(image: &RgbImage8, width: usize, height: usize, filter: Filter) -> Result<RgbImage8> {
    const SIDES: std::ops::RangeInclusive<usize> = 1..=65535;
    if !SIDES.contains(&width) || !SIDES.contains(&height) {
        return Err(Error::invalid(format!(
            "cannot resize a picture to {width}x{height}: a side is 1 to 65535"
        )));
    }
    let mut pixels = Vec::new();
    let across = Span::whole(image.width, width);
    let down = Span::whole(image.height, height);
    resize_part(image, across, down, filter, (&mut ResizeScratch::default(), &mut pixels))?;
    RgbImage8::new(width, height, pixels)
}

/// The part of a resized picture that `across` and `down` keep, into `out`
/// (`[down.kept, across.kept, 3]`).
pub(crate) fn resize_part(
    image: &RgbImage8,
    across: Span,
    down: Span,
    filter: Filter,
    (scratch, out): (&mut ResizeScratch, &mut Vec<u8>),
) -> Result<()> {
    let row_length = across.kept * 3;
    grow(out, row_length * down.kept, "a resized picture")?;
    if filter == Filter::Nearest {
        return nearest(image, across, down, out);
    }
    let simd = Simd::best();
    let (mut first_row, mut rows) = (down.first, down.kept);
    if !down.is_identity() {
        scratch.down.compute(down, filter)?;
        // Only the old rows some new row looks at pass the horizontal pass.
        let old_rows = scratch.down.span();
        (first_row, rows) = (old_rows.start, old_rows.len());
    }
    grow(&mut scratch.narrow, row_length * rows, "a resized picture")?;
    let narrow = &mut scratch.narrow[..row_length * rows];
    if across.is_identity() {
        for (y, row) in narrow.chunks_exact_mut(row_length).enumerate() {
            row.copy_from_slice(&image.row(first_row + y)[across.first * 3..][..row_length]);
        }
    } else {
        scratch.across.compute(across, filter)?;
        let plane = across.old + scratch.across.stride;
        scratch.planes.clear();
        grow(&mut scratch.planes, plane * 3, "a resized picture")?;
        let columns = scratch.across.span();
        for (y, row) in narrow.chunks_exact_mut(row_length).enumerate() {
            split_planes(image.row(first_row + y), columns.clone(), &mut scratch.planes, simd);
            narrow_row(&scratch.across, &scratch.planes, simd, row);
        }
    }
    if down.is_identity() {
        out.copy_from_slice(narrow);
        return Ok(());
    }
    for (y, new_row) in out.chunks_exact_mut(row_length).enumerate() {
        let (start, count) = scratch.down.bounds[y];
        let old_rows = &narrow[(start - first_row) * row_length..][..count * row_length];
        lower_row(old_rows, scratch.down.of(y), simd, new_row);
    }
    Ok(())
}

/// The pixels `columns` of a row of `[width, 3]` bytes, to 3 planes of 16 bits.
fn split_planes(row: &[u8], columns: Range<usize>, planes: &mut [i16], simd: Simd) {
    let (red, rest) = planes.split_at_mut(planes.len() / 3);
    let (green, blue) = rest.split_at_mut(rest.len() / 2);
    let [red, green, blue] = [red, green, blue].map(|plane| &mut plane[columns.clone()]);
    let row = &row[columns.start * 3..columns.end * 3];
    let done = if simd.split_planes(row, red, green, blue) { columns.len() / 16 * 16 } else { 0 };
    let rest = row[done * 3..].chunks_exact(3);
    let planes = red[done..].iter_mut().zip(&mut green[done..]).zip(&mut blue[done..]);
    for (pixel, ((red, green), blue)) in rest.zip(planes) {
        *red = i16::from(pixel[0]);
        *green = i16::from(pixel[1]);
        *blue = i16::from(pixel[2]);
    }
}

/// One row of the horizontal pass.
fn narrow_row(across: &Coefficients, planes: &[i16], simd: Simd, row: &mut [u8]) {
    if simd.narrow_row(&across.bounds, &across.high, &across.low, planes, row) {
        return;
    }
    let plane = planes.len() / 3;
    for (x, pixel) in row.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let start = across.bounds[x].0;
        let (high, low) = across.of(x);
        for (channel, new) in pixel.iter_mut().enumerate() {
            let old = &planes[channel * plane + start..][..across.stride];
            *new = level(dot(old, high), dot(old, low));
        }
    }
}

/// Sum of products, in blocks of 8 so that they become vectors.
#[inline]
fn dot(left: &[i16], right: &[i16]) -> i32 {
    let mut sums = [0_i32; 8];
    for (left, right) in left.as_chunks::<8>().0.iter().zip(right.as_chunks::<8>().0) {
        for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
            *sum = sum.wrapping_add(i32::from(*left) * i32::from(*right));
        }
    }
    sums.into_iter().fold(0, i32::wrapping_add)
}

/// One new row of the vertical pass, a few columns at a time so that their sums stay in registers.
fn lower_row(old_rows: &[u8], (high, low): (&[i16], &[i16]), simd: Simd, new_row: &mut [u8]) {
    const AT_ONCE: usize = 16;
    let length = new_row.len();
    let is_done = simd.lower_row(old_rows, high, low, new_row);
    let (blocks, rest) = new_row.as_chunks_mut::<AT_ONCE>();
    let done = blocks.len() * AT_ONCE;
    let blocks = if is_done { &mut [] } else { blocks };
    for (number, block) in blocks.iter_mut().enumerate() {
        let (mut high_sums, mut low_sums) = ([0_i32; AT_ONCE], [0_i32; AT_ONCE]);
        for ((old_row, &high), &low) in old_rows.chunks_exact(length).zip(high).zip(low) {
            let Some(old) = old_row[number * AT_ONCE..].first_chunk::<AT_ONCE>() else { break };
            for x in 0..AT_ONCE {
                let old = i16::from(old[x]);
                high_sums[x] = high_sums[x].wrapping_add(i32::from(old) * i32::from(high));
                low_sums[x] = low_sums[x].wrapping_add(i32::from(old) * i32::from(low));
            }
        }
        for (x, new) in block.iter_mut().enumerate() {
            *new = level(high_sums[x], low_sums[x]);
        }
    }
    for (x, new) in rest.iter_mut().enumerate() {
        let (mut high_sum, mut low_sum) = (0_i32, 0_i32);
        for ((old_row, &high), &low) in old_rows.chunks_exact(length).zip(high).zip(low) {
            let old = i32::from(old_row[done + x]);
            high_sum = high_sum.wrapping_add(old * i32::from(high));
            low_sum = low_sum.wrapping_add(old * i32::from(low));
        }
        *new = level(high_sum, low_sum);
    }
}

/// `ImagingScaleAffine` of Geometry.c: positions add up a step, rounding as they go.
fn nearest(image: &RgbImage8, across: Span, down: Span, out: &mut [u8]) -> Result<()> {
    let (columns, rows) = (nearest_positions(across)?, nearest_positions(down)?);
    for (new_row, &y) in out.chunks_exact_mut(across.kept * 3).zip(&rows) {
        let old_row = image.row(y);
        for (new, &x) in new_row.chunks_exact_mut(3).zip(&columns) {
            new.copy_from_slice(&old_row[x * 3..][..3]);
        }
    }
    Ok(())
}

fn nearest_positions(span: Span) -> Result<Vec<usize>> {
    let step = span.old as f64 / span.full as f64;
    let mut position = step * 0.5;
    for _ in 0..span.first {
        position += step;
    }
    let mut positions = Vec::new();
    positions
        .try_reserve_exact(span.kept)
        .map_err(|_| Error::out_of_memory("resize coefficients"))?;
    for _ in 0..span.kept {
        positions.push((position as usize).min(span.old - 1));
        position += step;
    }
    Ok(positions)
}
