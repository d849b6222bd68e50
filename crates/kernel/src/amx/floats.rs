//! Float weights: both sides are parted into bfloat16 pieces, tile by tile.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{SQUARE, Sums, TILE_BYTES, TILE_ROWS, Unit, is_narrow, write};
use crate::lanes::{Half, LANES, Single, Stored, first, transpose};
use crate::linear::{Linear, Out, Parallel, Weight, Weights};
use crate::tile::{Line, PANEL_SCRATCH, Place, Shared, ask_ahead};

/// Inputs of a tile.
const INPUTS: usize = 32;
/// Tiles of inputs that go by before the next square's turn: weights of so many stay in the cache.
const DEPTH: usize = 32;
/// Bytes of the pieces of a part's weights.
const PART_BYTES: usize = 800 << 10;
/// Pieces of a row.
const ROW_PIECES: usize = 3;
/// Values of bfloat16 in a tile.
const TILE: usize = TILE_BYTES / 2;

/// 32 float32 numbers as three of bfloat16 that add up to them, but for what is below 2^-126: the first two
/// rounded to nearest, the third what is left, which has eight bits at most. A pair of
/// inputs is one of the first sixteen and the one sixteen behind it. NaN stays one; an infinity becomes one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn pieces([mut low, mut high]: [__m512; 2]) -> [__m512i; 3] {
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let join = |low, high| {
        // What is set in the shifted one or, of the upper half, in the other.
        _mm512_ternarylogic_epi32::<0b1111_1000>(_mm512_srli_epi32::<16>(low), high, upper)
    };
    let mut next = || {
        let half = _mm512_set1_epi32(0x8000);
        let [a, b] = [low, high].map(|x| _mm512_add_epi32(_mm512_castps_si512(x), half));
        let [whole_a, whole_b] = [a, b].map(|x| _mm512_castsi512_ps(_mm512_and_epi32(x, upper)));
        (low, high) = (_mm512_sub_ps(low, whole_a), _mm512_sub_ps(high, whole_b));
        join(a, b)
    };
    let (one, two) = (next(), next());
    [one, two, join(_mm512_castps_si512(low), _mm512_castps_si512(high))]
}

/// A form of weights as pieces.
trait Parted {
    /// Of an element, as stored.
    const BYTES: usize;

    /// The pieces of `left` values from `start` on, at most 32; zeros behind them.
    ///
    /// # Safety
    /// The values are readable.
    unsafe fn load(start: *const u8, left: usize) -> [__m512i; 3];
}

/// float32, in three pieces.
struct Three;
/// float16, in two: it has eleven bits.
struct Two;
/// bfloat16.
struct One;

/// The pieces of a stored form that is widened first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn widened<S: Stored>(start: *const u8, left: usize) -> [__m512i; 3] {
    // SAFETY: what the caller of `load` promises.
    unsafe {
        let behind = start.wrapping_add(S::BYTES * LANES);
        pieces([S::load(start, first(left)), S::load(behind, first(left.saturating_sub(LANES)))])
    }
}

impl Parted for Three {
    const BYTES: usize = Single::BYTES;

    #[inline(always)]
    unsafe fn load(start: *const u8, left: usize) -> [__m512i; 3] {
        // SAFETY: what the caller promises.
        unsafe { widened::<Single>(start, left) }
    }
}

impl Parted for Two {
    const BYTES: usize = Half::BYTES;

    #[inline(always)]
    unsafe fn load(start: *const u8, left: usize) -> [__m512i; 3] {
        // SAFETY: what the caller promises.
        unsafe { widened::<Half>(start, left) }
    }
}

impl Parted for One {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(start: *const u8, left: usize) -> [__m512i; 3] {
        let mask = if left >= INPUTS { !0 } else { (1 << left) - 1 };
        // SAFETY: what the caller promises.
        unsafe {
            let values = _mm512_maskz_loadu_epi16(mask, start.cast());
            let low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(values));
            let high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(values, 1));
            let piece = _mm512_or_epi32(low, _mm512_slli_epi32(high, 16));
            [piece, _mm512_setzero_si512(), _mm512_setzero_si512()]
        }
    }
}

/// Tiles of inputs `tiles` of the weight rows `outputs`, as `[squares][tiles][PIECES][2]` tiles; zeros
/// behind the last output and behind a row's end.
///
/// # Safety
/// The outputs are inside of the weight; `out` has room for whole squares.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn part_weights<P: Parted, const PIECES: usize>(
    (bytes, inputs): (&[u8], usize),
    outputs: &Range<usize>,
    tiles: &Range<usize>,
    out: *mut u16,
) {
    for half in 0..2 * outputs.len().div_ceil(SQUARE) {
        // SAFETY: the square's first tile.
        let square = unsafe { out.add((half / 2) * tiles.len() * PIECES * 2 * TILE) };
        // Sixteen rows side by side: a tile is written line after line.
        for (index, tile) in tiles.clone().enumerate() {
            let at = tile * INPUTS;
            for row in 0..TILE_ROWS {
                let output = outputs.start + half * TILE_ROWS + row;
                let pieces = match output < outputs.end {
                    // SAFETY: inputs from `at` on of an output.
                    true => unsafe {
                        let start = bytes.as_ptr().wrapping_add((output * inputs + at) * P::BYTES);
                        ask_ahead(start);
                        P::load(start, inputs - at)
                    },
                    false => [_mm512_setzero_si512(); 3],
                };
                for (piece, values) in pieces.into_iter().enumerate().take(PIECES) {
                    let place = ((index * PIECES + piece) * 2 + half % 2) * TILE + row * INPUTS;
                    // SAFETY: a row of a tile of the square.
                    unsafe { _mm512_store_si512(square.add(place).cast(), values) };
                }
            }
        }
    }
}

/// The rows `range` as `[inputs / 32][3][2]` tiles, turned: a tile's row is a pair of inputs of sixteen
/// rows.
///
/// # Safety
/// `out` has room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn part_rows(rows: &[f32], range: &Range<usize>, inputs: usize, out: *mut u16) {
    let rows = &rows[range.start * inputs..range.end * inputs];
    for tile in 0..inputs.div_ceil(INPUTS) {
        let at = tile * INPUTS;
        for half in 0..range.len().div_ceil(TILE_ROWS) {
            let mut lanes = [[_mm512_setzero_si512(); TILE_ROWS]; ROW_PIECES];
            let here = range.len().saturating_sub(half * TILE_ROWS).min(TILE_ROWS);
            for row in 0..here {
                let start = rows.as_ptr().wrapping_add((half * TILE_ROWS + row) * inputs + at);
                // SAFETY: inputs from `at` on of a row.
                let pieces = unsafe { widened::<Single>(start.cast(), inputs - at) };
                for (lanes, piece) in lanes.iter_mut().zip(pieces) {
                    lanes[row] = piece;
                }
            }
            for (piece, lanes) in lanes.into_iter().enumerate() {
                for (pair, values) in transpose(lanes).into_iter().enumerate() {
                    let place = ((tile * ROW_PIECES + piece) * 2 + half) * TILE + pair * INPUTS;
                    // SAFETY: a row of a tile, for which there is room.
                    unsafe { _mm512_store_si512(out.add(place).cast(), values) };
                }
            }
        }
    }
}

impl Linear<'_> {
    /// The layer of many rows over float weights.
    ///
    /// # Safety
    /// `U` is usable.
    pub(crate) unsafe fn many_floats<U: Unit>(
        &self,
        rows: &[f32],
        packed: &mut Vec<Line>,
        out: &Out,
        parallel: &dyn Parallel,
    ) {
        // SAFETY: what the caller promises.
        unsafe {
            match self.weight.weights {
                Weights::F32(bytes) => {
                    self.in_pieces::<U, Three, 3>(bytes, rows, packed, out, parallel);
                }
                Weights::F16(bytes) => {
                    self.in_pieces::<U, Two, 2>(bytes, rows, packed, out, parallel);
                }
                Weights::Bf16(bytes) => {
                    self.in_pieces::<U, One, 1>(bytes, rows, packed, out, parallel);
                }
                Weights::Int8 { .. } | Weights::Int4 { .. } => {
                    unreachable!("rounded weights meet rounded rows")
                }
            }
        }
    }

    unsafe fn in_pieces<U: Unit, P: Parted, const PIECES: usize>(
        &self,
        bytes: &[u8],
        rows: &[f32],
        packed: &mut Vec<Line>,
        out: &Out,
        parallel: &dyn Parallel,
    ) {
        let Weight { outputs, inputs, .. } = self.weight;
        let tiles = inputs.div_ceil(INPUTS);
        let strips = out.rows.div_ceil(SQUARE);
        let strip_size = tiles * ROW_PIECES * 2 * TILE;
        packed.resize(strips * strip_size / INPUTS, Line::default());
        let packed = Shared(packed.as_mut_ptr().cast::<u16>());
        let strip_of = |strip: usize| strip * SQUARE..out.rows.min((strip + 1) * SQUARE);
        parallel.run(strips, &|strip| {
            // SAFETY: the caller asked for the features; each part has a strip of its own.
            unsafe { part_rows(rows, &strip_of(strip), inputs, packed.at(strip * strip_size)) };
        });
        let square_size = PIECES * 2 * TILE;
        let panel_bytes = tiles.min(DEPTH) * square_size * 2;
        let part = part(outputs, parallel.threads(), panel_bytes);
        parallel.run(outputs.div_ceil(part), &|index| {
            let columns = index * part..outputs.min((index + 1) * part);
            PANEL_SCRATCH.with_borrow_mut(|squares| {
                let size = part.div_ceil(SQUARE) * tiles.min(DEPTH) * square_size;
                squares.resize(size / INPUTS, Line::default());
                let squares: *mut u16 = squares.as_mut_ptr().cast();
                let mut sums = [Sums::new(), Sums::new()];
                let mut work = || {
                    for start in (0..tiles).step_by(DEPTH) {
                        let depth = start..tiles.min(start + DEPTH);
                        let passes = (start == 0, depth.end == tiles);
                        // SAFETY: the caller asked for the features; the strips are read alone
                        // now, the columns are this part's.
                        unsafe {
                            part_weights::<P, PIECES>((bytes, inputs), &columns, &depth, squares)
                        };
                        // The unit is at the next square while the vectors write one.
                        let [mut this, mut other] = sums.each_mut();
                        let mut before: Option<Place<'_>> = None;
                        for strip in 0..strips {
                            let at = strip * strip_size + start * ROW_PIECES * 2 * TILE;
                            for (square, first) in columns.clone().step_by(SQUARE).enumerate() {
                                let place = Place {
                                    linear: self,
                                    out,
                                    rows: strip_of(strip),
                                    columns: first..columns.end.min(first + SQUARE),
                                };
                                // SAFETY: as above.
                                unsafe {
                                    let weights = squares.add(square * depth.len() * square_size);
                                    let narrow = is_narrow(&place.rows);
                                    U::floats::<PIECES>(
                                        weights,
                                        packed.at(at),
                                        depth.len(),
                                        this,
                                        narrow,
                                    );
                                    if let Some(place) = before.replace(place) {
                                        write(other, is_narrow(&place.rows), &place, passes);
                                    }
                                }
                                std::mem::swap(&mut this, &mut other);
                            }
                        }
                        if let Some(place) = before {
                            // SAFETY: as above.
                            unsafe { write(other, is_narrow(&place.rows), &place, passes) };
                        }
                    }
                };
                // SAFETY: the unit is usable, the caller says.
                unsafe { U::scope(&mut work) };
            });
        });
    }
}

/// Outputs of a part: two parts a thread, where their weights stay in the cache.
fn part(outputs: usize, threads: usize, panel_bytes: usize) -> usize {
    let fair = outputs.div_ceil(2 * threads).next_multiple_of(SQUARE);
    fair.clamp(SQUARE, (PART_BYTES / panel_bytes).max(1) * SQUARE)
}
