//! Weights in 8 and 4 bits: rows are rounded to 8 bits, and turned tile by tile. Sums are exact over a step, the
//! inputs with one scale on both sides.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::{SQUARE, Sums, TILE_BYTES, TILE_ROWS, Unit, is_narrow, write};
use crate::lanes::{LANES, first_bytes, transpose};
use crate::linear::{Linear, Out, Parallel, Weight};
use crate::quantized::{INT4_BLOCK, INT4_GROUP, ROW_BLOCK};
use crate::rounded::Rows;
use crate::tile::{Line, PANEL_SCRATCH, Place, Shared, ask_ahead, part};

/// Inputs of a tile.
const INPUTS: usize = 64;
/// Inputs that go by before the next square's turn.
const DEPTH: usize = 4096;

thread_local! {
    /// The rows that are turned next.
    static ROWS: RefCell<Rows> = RefCell::default();
}

/// A form of weights `[outputs, inputs]`.
pub(super) trait Form: Copy + Sync {
    /// Inputs of a row that share a scale.
    const ROW_BLOCK: usize;
    /// Inputs of a step.
    const STEP: usize;
    /// Tiles of a step.
    const TILES: usize = Self::STEP / INPUTS;

    /// The weights of 64 inputs from `at` on, zeros behind the last.
    ///
    /// # Safety
    /// There is such an output.
    unsafe fn load(self, output: usize, at: usize) -> __m512i;

    /// The same inputs of a row, in the order that the weights have them in.
    ///
    /// # Safety
    /// Called where AVX-512 may be used.
    unsafe fn order(values: __m512i) -> __m512i;

    /// The scale of an output's sums of a step, where steps have their own.
    fn step_scale(self, output: usize, step: usize) -> Option<f32>;

    /// The scale of all sums of an output, where it has one.
    fn scale(self, output: usize) -> Option<f32>;
}

fn float(bytes: &[u8], index: usize) -> f32 {
    f32::from_le_bytes(bytes.as_chunks().0[index])
}

/// A scale an output.
#[derive(Clone, Copy)]
pub(super) struct Int8<'a> {
    pub(super) inputs: usize,
    pub(super) values: &'a [u8],
    pub(super) scales: &'a [u8],
}

impl Form for Int8<'_> {
    const ROW_BLOCK: usize = ROW_BLOCK;
    const STEP: usize = ROW_BLOCK;

    #[inline(always)]
    unsafe fn load(self, output: usize, at: usize) -> __m512i {
        let left = self.inputs.saturating_sub(at);
        let start = self.values.as_ptr().wrapping_add(output * self.inputs + at);
        ask_ahead(start);
        // SAFETY: the mask ends where the output's weights do.
        unsafe { _mm512_maskz_loadu_epi8(first_bytes(left), start.cast()) }
    }

    #[inline(always)]
    unsafe fn order(values: __m512i) -> __m512i {
        values
    }

    fn step_scale(self, _: usize, _: usize) -> Option<f32> {
        None
    }

    fn scale(self, output: usize) -> Option<f32> {
        Some(float(self.scales, output))
    }
}

/// A scale for each [`INT4_GROUP`] inputs of an output, which are a tile: those of even places, then those of odd ones.
#[derive(Clone, Copy)]
pub(super) struct Int4<'a> {
    pub(super) inputs: usize,
    pub(super) values: &'a [u8],
    pub(super) scales: &'a [u8],
}

impl Form for Int4<'_> {
    const ROW_BLOCK: usize = INT4_BLOCK;
    const STEP: usize = INT4_GROUP;

    #[inline(always)]
    unsafe fn load(self, output: usize, at: usize) -> __m512i {
        let left = self.inputs.saturating_sub(at) / 2;
        let start = self.values.as_ptr().wrapping_add((output * self.inputs + at) / 2);
        ask_ahead(start);
        // SAFETY: the mask ends where the output's weights do.
        unsafe {
            let pairs = _mm256_maskz_loadu_epi8(first_bytes(left) as u32, start.cast());
            let odd = _mm256_srli_epi16(pairs, 4);
            let nibbles = _mm512_inserti64x4(_mm512_castsi256_si512(pairs), odd, 1);
            let nibbles = _mm512_and_si512(nibbles, _mm512_set1_epi8(15));
            // Eight to fifteen are negative.
            let sign = _mm512_set1_epi8(8);
            _mm512_sub_epi8(_mm512_xor_si512(nibbles, sign), sign)
        }
    }

    #[inline(always)]
    unsafe fn order(values: __m512i) -> __m512i {
        // SAFETY: what the caller promises.
        unsafe {
            let even = _mm512_cvtepi16_epi8(values);
            let odd = _mm512_cvtepi16_epi8(_mm512_srli_epi16(values, 8));
            _mm512_inserti64x4(_mm512_castsi256_si512(even), odd, 1)
        }
    }

    fn step_scale(self, output: usize, step: usize) -> Option<f32> {
        Some(float(self.scales, output * (self.inputs / INT4_GROUP) + step))
    }

    fn scale(self, _: usize) -> Option<f32> {
        None
    }
}

/// Tiles of inputs `tiles` of the weights of `outputs`, as `[squares][tiles][2]` tiles; zeros behind the last output and
/// behind the last input.
///
/// # Safety
/// The outputs are inside of the matrix; `out` has room for whole squares.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn lay_weights<F: Form>(
    form: F,
    outputs: &Range<usize>,
    tiles: &Range<usize>,
    out: *mut i8,
) {
    for half in 0..2 * outputs.len().div_ceil(SQUARE) {
        // SAFETY: the square's first tile of this half.
        let square = unsafe { out.add(((half / 2) * tiles.len() * 2 + half % 2) * TILE_BYTES) };
        for row in 0..TILE_ROWS {
            let output = outputs.start + half * TILE_ROWS + row;
            for (index, tile) in tiles.clone().enumerate() {
                // SAFETY: a row of a tile of the square.
                unsafe {
                    let lanes = match output < outputs.end {
                        true => form.load(output, tile * INPUTS),
                        false => _mm512_setzero_si512(),
                    };
                    let place = index * 2 * TILE_BYTES + row * INPUTS;
                    _mm512_store_si512(square.add(place).cast(), lanes);
                }
            }
        }
    }
}

/// Rows, at most [`SQUARE`], as `[tiles][2]` tiles, turned: a tile's row is four inputs of sixteen rows. Their scales go
/// to `scales`, `[blocks][SQUARE]`.
///
/// # Safety
/// `out` and `scales` have room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn lay_rows<F: Form>(rows: &Rows, out: *mut i8, scales: *mut f32) {
    let count = rows.rows();
    for tile in 0..rows.padded / INPUTS {
        for half in 0..count.div_ceil(TILE_ROWS) {
            let mut lanes = [_mm512_setzero_si512(); TILE_ROWS];
            for (row, lanes) in (half * TILE_ROWS..count).zip(&mut lanes) {
                // SAFETY: sixteen words of a row: rows are padded to whole blocks.
                unsafe {
                    let values = _mm512_loadu_epi32(rows.words(row).add(tile * INPUTS / 4));
                    *lanes = F::order(values);
                }
            }
            for (four, values) in transpose(lanes).into_iter().enumerate() {
                let place = (tile * 2 + half) * TILE_BYTES + four * INPUTS;
                // SAFETY: a row of a tile, for which there is room.
                unsafe { _mm512_store_si512(out.add(place).cast(), values) };
            }
        }
    }
    for block in 0..rows.blocks {
        for row in 0..SQUARE {
            let scale = if row < count { rows.scales[row * rows.blocks + block] } else { 0.0 };
            // SAFETY: there is room.
            unsafe { scales.add(block * SQUARE + row).write(scale) };
        }
    }
}

/// The scales of steps `steps` of `outputs`, as `[squares][steps][SQUARE]`, where steps have their own; zeros behind the last
/// output.
fn lay_scales<F: Form>(form: F, outputs: &Range<usize>, steps: &Range<usize>, out: &mut Vec<f32>) {
    out.clear();
    if form.step_scale(outputs.start, steps.start).is_none() {
        return;
    }
    for first in outputs.clone().step_by(SQUARE) {
        for step in steps.clone() {
            out.extend((first..first + SQUARE).map(|output| match output < outputs.end {
                true => form.step_scale(output, step).unwrap_or(0.0),
                false => 0.0,
            }));
        }
    }
}

/// A step of a square of results.
struct Step<'a> {
    place: Place<'a>,
    strip: usize,
    index: usize,
    /// Of the outputs, where the step has its own.
    scales: &'a [f32],
}

/// Adds a step's sums, times the rows' scales `[SQUARE]` and the step's own, to `sums`; the first step's are the first. Of
/// a narrow strip the first half of the rows is there.
///
/// # Safety
/// The scales are there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn add(
    (dots, sums): (&Sums<i32>, &mut Sums<f32>),
    row_scales: *const f32,
    step: &Step<'_>,
    is_first: bool,
) {
    // SAFETY: both halves of the rows; sixteen lanes of the squares.
    unsafe {
        let row_scales = [_mm512_loadu_ps(row_scales), _mm512_loadu_ps(row_scales.add(LANES))];
        for tile in (0..4).step_by(if is_narrow(&step.place.rows) { 2 } else { 1 }) {
            for row in 0..TILE_ROWS {
                let scale = match step.scales.get(tile / 2 * TILE_ROWS + row) {
                    Some(scale) => _mm512_mul_ps(row_scales[tile % 2], _mm512_set1_ps(*scale)),
                    None => row_scales[tile % 2],
                };
                let at = (tile * TILE_ROWS + row) * LANES;
                let dots = _mm512_cvtepi32_ps(_mm512_load_epi32(dots.0.as_ptr().add(at)));
                let place = sums.0.as_mut_ptr().add(at);
                let sum = match is_first {
                    true => _mm512_mul_ps(dots, scale),
                    false => _mm512_fmadd_ps(dots, scale, _mm512_load_ps(place)),
                };
                _mm512_store_ps(place, sum);
            }
        }
    }
}

/// Multiplies each output's sums with its scale.
fn scale<F: Form>(sums: &mut Sums<f32>, form: F, outputs: &Range<usize>) {
    for (index, output) in outputs.clone().enumerate() {
        let Some(scale) = form.scale(output) else { return };
        let (tile, row) = (index / TILE_ROWS, index % TILE_ROWS);
        for half in 0..2 {
            let start = (2 * tile + half) * TILE_ROWS * LANES + row * LANES;
            sums.0[start..start + LANES].iter_mut().for_each(|sum| *sum *= scale);
        }
    }
}

impl Linear<'_> {
    /// The layer of many rows over weights in 8 or 4 bits.
    ///
    /// # Safety
    /// `U` is usable.
    pub(super) unsafe fn in_steps<U: Unit, F: Form>(
        &self,
        form: F,
        rows: &[f32],
        packed: &mut Vec<Line>,
        out: &Out,
        parallel: &dyn Parallel,
    ) {
        let Weight { outputs, inputs, .. } = self.weight;
        let strips = out.rows.div_ceil(SQUARE);
        // The tiles, then the scales.
        let blocks = inputs.div_ceil(F::ROW_BLOCK);
        let tiles_size = blocks * F::ROW_BLOCK / INPUTS * 2 * TILE_BYTES;
        let strip_size = tiles_size + blocks * SQUARE * size_of::<f32>();
        packed.resize(strips * strip_size / size_of::<Line>(), Line::default());
        let packed = Shared(packed.as_mut_ptr().cast::<i8>());
        let strip_of = |strip: usize| strip * SQUARE..out.rows.min((strip + 1) * SQUARE);
        parallel.run(strips, &|strip| {
            let range = strip_of(strip);
            let rows = &rows[range.start * inputs..range.end * inputs];
            ROWS.with_borrow_mut(|rounded| {
                // SAFETY: the caller asked for the features; each part has a strip of its own.
                unsafe {
                    rounded.round(rows, inputs, F::ROW_BLOCK);
                    let out = packed.at(strip * strip_size);
                    lay_rows::<F>(rounded, out, out.add(tiles_size).cast());
                }
            });
        });
        let part = part(outputs, parallel.threads());
        let steps = inputs.div_ceil(F::STEP);
        let step_size = F::TILES * 2 * TILE_BYTES;
        let depth = DEPTH / F::STEP;
        parallel.run(outputs.div_ceil(part), &|index| {
            let columns = index * part..outputs.min((index + 1) * part);
            PANEL_SCRATCH.with_borrow_mut(|squares| {
                let size = part.div_ceil(SQUARE) * steps.min(depth) * step_size;
                squares.resize(size / size_of::<Line>(), Line::default());
                let squares: *mut i8 = squares.as_mut_ptr().cast();
                let mut dots = [Sums::new(), Sums::new()];
                let mut sums = Sums::new();
                let mut step_scales = Vec::new();
                let mut pass = |depth: Range<usize>, step_scales: &[f32]| {
                    let mut finish = |dots: &Sums<i32>, step: &Step<'_>| {
                        // SAFETY: the caller asked for the features; the strips are read alone now.
                        unsafe {
                            let scales = packed.at(step.strip * strip_size + tiles_size);
                            let block = step.index * F::STEP / F::ROW_BLOCK;
                            let scales = scales.cast::<f32>().add(block * SQUARE);
                            let is_first = step.index == depth.start;
                            add((dots, &mut sums), scales, step, is_first);
                            if step.index + 1 == depth.end {
                                scale(&mut sums, form, &step.place.columns);
                                let passes = (depth.start == 0, depth.end == steps);
                                write(&sums, &step.place, passes);
                            }
                        }
                    };
                    // The unit is at the next step while the vectors add one up.
                    let [mut this, mut other] = dots.each_mut();
                    let mut before: Option<Step<'_>> = None;
                    for strip in 0..strips {
                        for (square, first) in columns.clone().step_by(SQUARE).enumerate() {
                            for index in depth.clone() {
                                let rows = strip_of(strip);
                                let narrow = is_narrow(&rows);
                                let columns = first..columns.end.min(first + SQUARE);
                                let place = Place { linear: self, out, rows, columns };
                                let step = square * depth.len() + index - depth.start;
                                let scales = step_scales.get(step * SQUARE..(step + 1) * SQUARE);
                                let scales = scales.unwrap_or_default();
                                // SAFETY: as above.
                                unsafe {
                                    let weights = squares.add(step * step_size);
                                    let rows = packed.at(strip * strip_size + index * step_size);
                                    U::bytes(weights, rows, F::TILES, this, narrow);
                                }
                                if let Some(step) =
                                    before.replace(Step { place, strip, index, scales })
                                {
                                    finish(other, &step);
                                }
                                std::mem::swap(&mut this, &mut other);
                            }
                        }
                    }
                    if let Some(step) = before {
                        finish(other, &step);
                    }
                };
                let mut work = || {
                    for start in (0..steps).step_by(depth) {
                        let depth = start..steps.min(start + depth);
                        let tiles = depth.start * F::TILES..depth.end * F::TILES;
                        // SAFETY: the caller asked for the features; the columns are this part's.
                        unsafe { lay_weights(form, &columns, &tiles, squares) };
                        lay_scales(form, &columns, &depth, &mut step_scales);
                        pass(depth, &step_scales);
                    }
                };
                // SAFETY: the unit is usable, the caller says.
                unsafe { U::scope(&mut work) };
            });
        });
    }
}
