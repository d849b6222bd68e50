//! Many rows on processors with AMX (Intel's servers since Sapphire Rapids): a unit of its own that
//! multiplies matrices of bfloat16 or of bytes, many times as fast as vectors.
//!
//! * [`floats`]: float32 results from bfloat16 products. A float32 is the sum of three
//!   bfloat16 numbers of eight bits each, so a product of two is the sum of nine; the six that reach into
//!   float32's 24 bits are taken (Henry, Tang, Heinecke, *Leveraging the bfloat16 Artificial
//!   Intelligence Datatype For Higher-Precision Computations*, 2019). A float16 weight
//!   is the sum of two: five products. A bfloat16 weight is one: three. With [`Instructions::AmxHigh`] float32
//!   is its first sixteen bits, the sum of two: three products, and two.
//! * [`bytes`]: int8 and int4 weights and rows in 8 bits, 32 bit sums.
//! * [`attention`]: of float32, as [`floats`].
//!
//! Layers compute [`SQUARE`] outputs for as many rows at a time, weights on the left: they stay as
//! they lie, and the rows are turned, once a layer.

pub(crate) mod attention;
mod bytes;
mod floats;
mod pieces;
mod unit;

#[cfg(test)]
mod tests;

use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::LazyLock;

use bytes::{Int4, Int8};
use pieces::{One, Rounded, Three, Two};

use crate::Instructions;
use crate::lanes::{LANES, transpose};
use crate::linear::{Linear, Out, Parallel, Weight, Weights};
use crate::tile::{Line, Place};
pub(crate) use unit::{Amx, Unit};

/// Outputs, and rows, of a square of results: two tiles by two.
pub(crate) const SQUARE: usize = 32;
/// Rows of a tile, each of 64 bytes.
const TILE_ROWS: usize = 16;
/// Of a tile.
const TILE_BYTES: usize = 64 * TILE_ROWS;

/// The sums of a square: `[outputs / 16][rows / 16][16 outputs][16 rows]`.
#[repr(align(64))]
pub(crate) struct Sums<T>([T; SQUARE * SQUARE]);

impl<T: Copy + Default> Sums<T> {
    fn new() -> Self {
        Sums([T::default(); SQUARE * SQUARE])
    }
}

/// Bytes of rows that are worked on at once, so that their pieces stay in the caches.
pub(crate) const BYTES_AT_ONCE: usize = 4 << 20;

/// So many rows take no less time here: both sides are laid out anew, and few rows of floats are
/// faster where they are.
pub(crate) fn few_rows(weight: &Weight<'_>) -> usize {
    match weight.weights {
        Weights::F32(_) => 32,
        Weights::F16(_) => 24,
        Weights::Bf16(_) => 16,
        Weights::Int8 { .. } => 3,
        Weights::Int4 { .. } => 6,
    }
}

impl Linear<'_> {
    /// The layer of many rows.
    ///
    /// # Safety
    /// `U` is usable, and so are AVX-512 and its VNNI.
    pub(crate) unsafe fn many_in_tiles<U: Unit>(
        &self,
        rows: &[f32],
        packed: &mut Vec<Line>,
        out: &Out,
        parallel: &dyn Parallel,
    ) {
        let inputs = self.weight.inputs;
        let highest = self.instructions != Instructions::AmxHigh;
        // SAFETY: what the caller promises.
        unsafe {
            match self.weight.weights {
                Weights::F32(bytes) if highest => {
                    self.in_pieces::<U, Three, 3, Three, 3>(bytes, rows, packed, out, parallel);
                }
                Weights::F32(bytes) => {
                    self.in_pieces::<U, Rounded, 2, Rounded, 2>(bytes, rows, packed, out, parallel);
                }
                Weights::F16(bytes) if highest => {
                    self.in_pieces::<U, Two, 2, Three, 3>(bytes, rows, packed, out, parallel);
                }
                Weights::F16(bytes) => {
                    self.in_pieces::<U, Two, 2, Rounded, 2>(bytes, rows, packed, out, parallel);
                }
                Weights::Bf16(bytes) if highest => {
                    self.in_pieces::<U, One, 1, Three, 3>(bytes, rows, packed, out, parallel);
                }
                Weights::Bf16(bytes) => {
                    self.in_pieces::<U, One, 1, Rounded, 2>(bytes, rows, packed, out, parallel);
                }
                Weights::Int8 { values, scales } => {
                    let form = Int8 { inputs, values, scales };
                    self.in_steps::<U, _>(form, rows, packed, out, parallel);
                }
                Weights::Int4 { values, scales } => {
                    let form = Int4 { inputs, values, scales };
                    self.in_steps::<U, _>(form, rows, packed, out, parallel);
                }
            }
        }
    }
}

/// Whether this process may use the unit: asked of the processor and of the system, once.
pub(crate) fn is_usable() -> bool {
    static USABLE: LazyLock<bool> =
        LazyLock::new(|| crate::is_supported() && crate::multiplies_bytes() && unit::is_there());
    *USABLE
}

/// Whether a strip of rows has one tile of them.
fn is_narrow(rows: &Range<usize>) -> bool {
    rows.len() <= TILE_ROWS
}

/// Writes a square of sums to its place, on top of what lies there unless it `starts`; finishes it
/// where it `ends`.
///
/// # Safety
/// The place is the caller's alone, at most [`SQUARE`] rows by [`SQUARE`] columns.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn write(sums: &Sums<f32>, place: &Place<'_>, (starts, ends): (bool, bool)) {
    for (half, first) in place.rows.clone().step_by(TILE_ROWS).enumerate() {
        let rows = first..place.rows.end.min(first + TILE_ROWS);
        let part = Place { rows, columns: place.columns.clone(), ..*place };
        let turned = |left: usize| {
            let tile = (2 * left + half) * TILE_ROWS;
            let lanes = std::array::from_fn(|output| {
                // SAFETY: sixteen lanes of the square.
                unsafe { _mm512_load_epi32(sums.0.as_ptr().add((tile + output) * LANES).cast()) }
            });
            transpose(lanes)
        };
        let (left, right) = (turned(0), turned(1));
        let before: [[__m512; 2]; TILE_ROWS] = match starts {
            true => [[_mm512_setzero_ps(); 2]; TILE_ROWS],
            false => part.load(),
        };
        let sums = std::array::from_fn(|row| {
            let [a, b] = before[row];
            [
                _mm512_add_ps(a, _mm512_castsi512_ps(left[row])),
                _mm512_add_ps(b, _mm512_castsi512_ps(right[row])),
            ]
        });
        part.store::<TILE_ROWS>(sums, ends);
    }
}
