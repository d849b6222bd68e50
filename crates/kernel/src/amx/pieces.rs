//! Floats as bfloat16 pieces, laid out in tiles.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::{TILE_BYTES, TILE_ROWS};
use crate::lanes::{Half, LANES, Single, Stored, first, transpose};
use crate::tile::ask_ahead;

/// Inputs of a tile.
pub(super) const INPUTS: usize = 32;
/// Values of bfloat16 in a tile.
const TILE: usize = TILE_BYTES / 2;
/// Values of bfloat16 of a piece of a square: two tiles.
pub(super) const PAIR: usize = 2 * TILE;

/// 32 float32 numbers as `N` of bfloat16: three that add up to them, but for what is below 2^-126, or two that do where
/// they have sixteen bits at most, else as nearly as sixteen bits can. Each is rounded to nearest but a third, which
/// has eight bits by itself. A pair of inputs is one of the first sixteen and the one sixteen behind it. NaN stays
/// one, in what is left; an infinity becomes one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn pieces<const N: usize>([mut low, mut high]: [__m512; 2]) -> [__m512i; N] {
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let join = |low, high| {
        // What is set in the shifted one or, of the upper half, in the other.
        _mm512_ternarylogic_epi32::<0b1111_1000>(_mm512_srli_epi32::<16>(low), high, upper)
    };
    let half = _mm512_set1_epi32(0x8000);
    let mut next = || {
        let [a, b] = [low, high].map(|x| _mm512_add_epi32(_mm512_castps_si512(x), half));
        let [whole_a, whole_b] = [a, b].map(|x| _mm512_castsi512_ps(_mm512_and_epi32(x, upper)));
        (low, high) = (_mm512_sub_ps(low, whole_a), _mm512_sub_ps(high, whole_b));
        join(a, b)
    };
    let mut all = [_mm512_setzero_si512(); N];
    all[..N - 1].iter_mut().for_each(|piece| *piece = next());
    let [low, high] = [low, high].map(|x| match N {
        2 => {
            let is_number = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(x, x);
            let x = _mm512_castps_si512(x);
            _mm512_mask_add_epi32(x, is_number, x, half)
        }
        _ => _mm512_castps_si512(x),
    });
    all[N - 1] = join(low, high);
    all
}

/// A form of weights as pieces.
pub(super) trait Parted {
    /// Of an element, as stored.
    const BYTES: usize;

    /// The pieces of `left` values from `start` on, at most 32; zeros behind them.
    ///
    /// # Safety
    /// The values are readable.
    unsafe fn load(start: *const u8, left: usize) -> [__m512i; 3];
}

/// A stored form that is widened to float32 first, in `N` pieces.
pub(super) struct Widened<S, const N: usize>(PhantomData<S>);
/// float32, in three pieces.
pub(super) type Three = Widened<Single, 3>;
/// float32, in the two of its first sixteen bits.
pub(super) type Rounded = Widened<Single, 2>;
/// float16, in two: it has eleven bits.
pub(super) type Two = Widened<Half, 2>;
/// bfloat16.
pub(super) struct One;

/// The pieces of a stored form that is widened first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn widened<S: Stored, const N: usize>(start: *const u8, left: usize) -> [__m512i; 3] {
    // SAFETY: what the caller of `load` promises.
    let lanes = unsafe {
        let behind = start.wrapping_add(S::BYTES * LANES);
        [S::load(start, first(left)), S::load(behind, first(left.saturating_sub(LANES)))]
    };
    let mut all = [_mm512_setzero_si512(); 3];
    all[..N].copy_from_slice(&pieces::<N>(lanes));
    all
}

impl<S: Stored, const N: usize> Parted for Widened<S, N> {
    const BYTES: usize = S::BYTES;

    #[inline(always)]
    unsafe fn load(start: *const u8, left: usize) -> [__m512i; 3] {
        // SAFETY: what the caller promises.
        unsafe { widened::<S, N>(start, left) }
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

/// Rows of a square, at most, `inputs` values each.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    pub(super) start: *const u8,
    /// Bytes from one to the next.
    pub(super) stride: usize,
    pub(super) inputs: usize,
    pub(super) count: usize,
}

impl Lines {
    /// The pieces of row `row` from input `at` on, zeros behind the last row and behind a row's end.
    ///
    /// # Safety
    /// The rows are there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn load<P: Parted>(self, row: usize, at: usize) -> [__m512i; 3] {
        if row >= self.count {
            return [_mm512_setzero_si512(); 3];
        }
        let start = self.start.wrapping_add(row * self.stride + at * P::BYTES);
        (0..P::BYTES * INPUTS / 64).for_each(|line| ask_ahead(start.wrapping_add(64 * line)));
        // SAFETY: inputs from `at` on of a row.
        unsafe { P::load(start, self.inputs - at) }
    }

    /// Tiles of inputs `tiles` as `[tiles][N][2]` tiles: the left side.
    ///
    /// # Safety
    /// The rows are there; `out` has room.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn lay<P: Parted, const N: usize>(self, tiles: &Range<usize>, out: *mut u16) {
        // Sixteen rows side by side: a tile is written line after line.
        for half in 0..2 {
            for (index, tile) in tiles.clone().enumerate() {
                for row in 0..TILE_ROWS {
                    // SAFETY: what the caller promises; a row of a tile.
                    unsafe {
                        let pieces = self.load::<P>(half * TILE_ROWS + row, tile * INPUTS);
                        for (piece, values) in pieces.into_iter().enumerate().take(N) {
                            let place = (index * N + piece) * PAIR + half * TILE + row * INPUTS;
                            _mm512_store_si512(out.add(place).cast(), values);
                        }
                    }
                }
            }
        }
    }

    /// All inputs as `[inputs / 32][N][2]` tiles, turned, the right side: a tile's row is a pair of inputs of
    /// sixteen rows. Of sixteen rows at most the first of two tiles is written.
    ///
    /// # Safety
    /// The rows are there, in float32; `out` has room.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn turn<P: Parted, const N: usize>(self, out: *mut u16) {
        for tile in 0..self.inputs.div_ceil(INPUTS) {
            for half in 0..self.count.div_ceil(TILE_ROWS) {
                let mut lanes = [[_mm512_setzero_si512(); TILE_ROWS]; N];
                for row in 0..TILE_ROWS {
                    // SAFETY: what the caller promises.
                    let pieces = unsafe { self.load::<P>(half * TILE_ROWS + row, tile * INPUTS) };
                    for (lanes, piece) in lanes.iter_mut().zip(pieces) {
                        lanes[row] = piece;
                    }
                }
                for (piece, lanes) in lanes.into_iter().enumerate() {
                    for (pair, values) in transpose(lanes).into_iter().enumerate() {
                        let place = (tile * N + piece) * PAIR + half * TILE + pair * INPUTS;
                        // SAFETY: a row of a tile, for which there is room.
                        unsafe { _mm512_store_si512(out.add(place).cast(), values) };
                    }
                }
            }
        }
    }
}
