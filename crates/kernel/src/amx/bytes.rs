//! int8 weights: rows are rounded to 8 bits, a scale for each [`ROW_BLOCK`] inputs, and turned tile by tile.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::{SQUARE, Sums, TILE_BYTES, TILE_ROWS, Unit, is_narrow, write};
use crate::lanes::{LANES, first_bytes, transpose};
use crate::linear::{Linear, Out, Parallel, Weight, Weights};
use crate::quantized::ROW_BLOCK;
use crate::rounded::Rows;
use crate::tile::{Line, PANEL_SCRATCH, Place, Shared, ask_ahead, part};

/// Inputs of a tile.
const INPUTS: usize = 64;
/// Tiles of a block of inputs with one scale.
const TILES: usize = ROW_BLOCK / INPUTS;
/// Blocks that go by before the next square's turn.
const DEPTH: usize = 16;

thread_local! {
    /// The rows that are turned next.
    static ROWS: RefCell<Rows> = RefCell::default();
}

/// Blocks `blocks` of the weight rows `outputs` as `[squares][blocks * 4][2]` tiles; zeros behind the last output
/// and behind a row's end.
///
/// # Safety
/// The outputs are inside of the matrix; `out` has room for whole squares.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn lay_weights(
    (values, inputs): (&[u8], usize),
    outputs: &Range<usize>,
    blocks: &Range<usize>,
    out: *mut i8,
) {
    let tiles = blocks.len() * TILES;
    for half in 0..2 * outputs.len().div_ceil(SQUARE) {
        // SAFETY: the square's first tile of this half.
        let square = unsafe { out.add(((half / 2) * tiles * 2 + half % 2) * TILE_BYTES) };
        for row in 0..TILE_ROWS {
            let output = outputs.start + half * TILE_ROWS + row;
            for tile in 0..tiles {
                let at = blocks.start * ROW_BLOCK + tile * INPUTS;
                let left = if output < outputs.end { inputs.saturating_sub(at) } else { 0 };
                // SAFETY: the mask ends where the row does; a row of a tile of the square.
                unsafe {
                    let start = values.as_ptr().wrapping_add(output * inputs + at);
                    ask_ahead(start);
                    let lanes = _mm512_maskz_loadu_epi8(first_bytes(left), start.cast());
                    let place = tile * 2 * TILE_BYTES + row * INPUTS;
                    _mm512_store_si512(square.add(place).cast(), lanes);
                }
            }
        }
    }
}

/// Rows, at most [`SQUARE`], as `[blocks * 4][2]` tiles, turned: a tile's row is four inputs of sixteen rows. Their scales go
/// to `scales`, `[blocks][SQUARE]`.
///
/// # Safety
/// `out` and `scales` have room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn lay_rows(rows: &Rows, out: *mut i8, scales: *mut f32) {
    let count = rows.rows();
    for tile in 0..rows.blocks * TILES {
        for half in 0..count.div_ceil(TILE_ROWS) {
            let lanes = std::array::from_fn(|row| {
                let row = half * TILE_ROWS + row;
                match row < count {
                    // SAFETY: sixteen words of a row: rows are padded to whole blocks.
                    true => unsafe { _mm512_loadu_epi32(rows.words(row).add(tile * INPUTS / 4)) },
                    false => _mm512_setzero_si512(),
                }
            });
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

/// Adds a block's sums, times the rows' scales `[SQUARE]`, to `sums`; the first block's are the first. Of a `narrow` strip the first half of
/// the rows is there.
///
/// # Safety
/// The scales are there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn add(
    dots: &Sums<i32>,
    scales: *const f32,
    sums: &mut Sums<f32>,
    is_first: bool,
    narrow: bool,
) {
    // SAFETY: both halves of the rows; sixteen lanes of the squares.
    unsafe {
        let scales = [_mm512_loadu_ps(scales), _mm512_loadu_ps(scales.add(LANES))];
        for tile in (0..4).step_by(if narrow { 2 } else { 1 }) {
            for row in 0..TILE_ROWS {
                let at = (tile * TILE_ROWS + row) * LANES;
                let dots = _mm512_cvtepi32_ps(_mm512_load_epi32(dots.0.as_ptr().add(at)));
                let place = sums.0.as_mut_ptr().add(at);
                let sum = match is_first {
                    true => _mm512_mul_ps(dots, scales[tile % 2]),
                    false => _mm512_fmadd_ps(dots, scales[tile % 2], _mm512_load_ps(place)),
                };
                _mm512_store_ps(place, sum);
            }
        }
    }
}

/// Multiplies each output's sums with its scale; what is behind the last is left.
fn scale(sums: &mut Sums<f32>, scales: &[u8]) {
    let (scales, _) = scales.as_chunks();
    for (output, scale) in scales.iter().enumerate() {
        let scale = f32::from_le_bytes(*scale);
        let (tile, row) = (output / TILE_ROWS, output % TILE_ROWS);
        for half in 0..2 {
            let start = (2 * tile + half) * TILE_ROWS * LANES + row * LANES;
            sums.0[start..start + LANES].iter_mut().for_each(|sum| *sum *= scale);
        }
    }
}

/// A block of inputs of a square of results.
struct Block<'a> {
    place: Place<'a>,
    strip: usize,
    index: usize,
}

impl Linear<'_> {
    /// The layer of many rows over int8 weights.
    ///
    /// # Safety
    /// `U` is usable, and so is VNNI.
    pub(crate) unsafe fn many_bytes<U: Unit>(
        &self,
        rows: &[f32],
        packed: &mut Vec<Line>,
        out: &Out,
        parallel: &dyn Parallel,
    ) {
        let Weight { outputs, inputs, .. } = self.weight;
        let Weights::Int8 { values, scales: scales_of } = self.weight.weights else { return };
        let blocks = inputs.div_ceil(ROW_BLOCK);
        let strips = out.rows.div_ceil(SQUARE);
        // The tiles, then the scales.
        let tiles_size = blocks * TILES * 2 * TILE_BYTES;
        let block_size = TILES * 2 * TILE_BYTES;
        let strip_size = tiles_size + blocks * SQUARE * size_of::<f32>();
        packed.resize(strips * strip_size / size_of::<Line>(), Line::default());
        let packed = Shared(packed.as_mut_ptr().cast::<i8>());
        let strip_of = |strip: usize| strip * SQUARE..out.rows.min((strip + 1) * SQUARE);
        parallel.run(strips, &|strip| {
            let range = strip_of(strip);
            ROWS.with_borrow_mut(|rounded| {
                // SAFETY: the caller asked for the features; each part has a strip of its own.
                unsafe {
                    rounded.round(
                        &rows[range.start * inputs..range.end * inputs],
                        inputs,
                        ROW_BLOCK,
                    );
                    let out = packed.at(strip * strip_size);
                    lay_rows(rounded, out, out.add(tiles_size).cast());
                }
            });
        });
        let part = part(outputs, parallel.threads());
        parallel.run(outputs.div_ceil(part), &|index| {
            let columns = index * part..outputs.min((index + 1) * part);
            PANEL_SCRATCH.with_borrow_mut(|squares| {
                let square_size = blocks.min(DEPTH) * TILES * 2 * TILE_BYTES;
                squares.resize(
                    part.div_ceil(SQUARE) * square_size / size_of::<Line>(),
                    Line::default(),
                );
                let squares: *mut i8 = squares.as_mut_ptr().cast();
                let mut dots = [Sums::new(), Sums::new()];
                let mut sums = Sums::new();
                let mut work = || {
                    for start in (0..blocks).step_by(DEPTH) {
                        let depth = start..blocks.min(start + DEPTH);
                        let passes = (start == 0, depth.end == blocks);
                        // SAFETY: the caller asked for the features; the columns are this part's.
                        unsafe { lay_weights((values, inputs), &columns, &depth, squares) };
                        let mut finish = |dots: &Sums<i32>, block: &Block<'_>| {
                            // SAFETY: as above; the strips are read alone now.
                            unsafe {
                                let scales = packed.at(block.strip * strip_size + tiles_size);
                                let scales = scales.cast::<f32>().add(block.index * SQUARE);
                                let narrow = is_narrow(&block.place.rows);
                                add(dots, scales, &mut sums, block.index == start, narrow);
                                if block.index + 1 == depth.end {
                                    let of =
                                        4 * block.place.columns.start..4 * block.place.columns.end;
                                    scale(&mut sums, &scales_of[of]);
                                    write(&sums, false, &block.place, passes);
                                }
                            }
                        };
                        // The unit is at the next block while the vectors add one up.
                        let [mut this, mut other] = dots.each_mut();
                        let mut before: Option<Block<'_>> = None;
                        for strip in 0..strips {
                            for (square, first) in columns.clone().step_by(SQUARE).enumerate() {
                                for index in depth.clone() {
                                    let place = Place {
                                        linear: self,
                                        out,
                                        rows: strip_of(strip),
                                        columns: first..columns.end.min(first + SQUARE),
                                    };
                                    // SAFETY: as above.
                                    unsafe {
                                        let weights = squares.add(
                                            (square * depth.len() + index - start) * block_size,
                                        );
                                        let rows =
                                            packed.at(strip * strip_size + index * block_size);
                                        U::bytes(
                                            weights,
                                            rows,
                                            TILES,
                                            this,
                                            is_narrow(&place.rows),
                                        );
                                    }
                                    if let Some(block) =
                                        before.replace(Block { place, strip, index })
                                    {
                                        finish(other, &block);
                                    }
                                    std::mem::swap(&mut this, &mut other);
                                }
                            }
                        }
                        if let Some(block) = before {
                            finish(other, &block);
                        }
                    }
                };
                // SAFETY: the unit is usable, the caller says.
                unsafe { U::scope(&mut work) };
            });
        });
    }
}
