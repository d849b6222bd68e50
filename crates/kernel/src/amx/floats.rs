//! Float weights: both sides are parted into bfloat16 pieces, tile by tile.

use std::ops::Range;

use super::pieces::{INPUTS, Lines, PAIR, Parted};
use super::{SQUARE, Sums, Unit, is_narrow, write};
use crate::linear::{Linear, Out, Parallel, Weight};
use crate::tile::{Line, PANEL_SCRATCH, Place, Shared};

/// Tiles of inputs that go by before the next square's turn: weights of so many stay in the cache.
const DEPTH: usize = 32;
/// Bytes of the pieces of a part's weights.
const PART_BYTES: usize = 800 << 10;

impl Linear<'_> {
    /// The layer of many rows, in `X` pieces as `R` says, over float weights, which lie in `bytes` and have `N` pieces.
    ///
    /// # Safety
    /// `U` is usable.
    pub(super) unsafe fn in_pieces<
        U: Unit,
        P: Parted,
        const N: usize,
        R: Parted,
        const X: usize,
    >(
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
        let strip_size = tiles * X * PAIR;
        packed.resize(strips * strip_size / INPUTS, Line::default());
        let packed = Shared(packed.as_mut_ptr().cast::<u16>());
        let strip_of = |strip: usize| strip * SQUARE..out.rows.min((strip + 1) * SQUARE);
        parallel.run(strips, &|strip| {
            let range = strip_of(strip);
            let rows = &rows[range.start * inputs..range.end * inputs];
            let (start, count) = (rows.as_ptr().cast(), range.len());
            let lines = Lines { start, stride: 4 * inputs, inputs, count };
            // SAFETY: the caller asked for the features; each part has a strip of its own.
            unsafe { lines.turn::<R, X>(packed.at(strip * strip_size)) };
        });
        let square_size = N * PAIR;
        let panel_bytes = tiles.min(DEPTH) * square_size * 2;
        let part = part(outputs, parallel.threads(), panel_bytes);
        parallel.run(outputs.div_ceil(part), &|index| {
            let columns = index * part..outputs.min((index + 1) * part);
            PANEL_SCRATCH.with_borrow_mut(|squares| {
                let size = part.div_ceil(SQUARE) * tiles.min(DEPTH) * square_size;
                squares.resize(size / INPUTS, Line::default());
                let squares: *mut u16 = squares.as_mut_ptr().cast();
                let mut sums = [(); 2].map(|()| [Sums::new(), Sums::new()]);
                let mut work = || {
                    for start in (0..tiles).step_by(DEPTH) {
                        let depth = start..tiles.min(start + DEPTH);
                        let passes = (start == 0, depth.end == tiles);
                        for (square, first) in columns.clone().step_by(SQUARE).enumerate() {
                            let (stride, count) =
                                (inputs * P::BYTES, SQUARE.min(columns.end - first));
                            let start = bytes[first * stride..][..count * stride].as_ptr();
                            let lines = Lines { start, stride, inputs, count };
                            // SAFETY: the caller asked for the features.
                            unsafe {
                                let out = squares.add(square * depth.len() * square_size);
                                lines.lay::<P, N>(&depth, out);
                            }
                        }
                        let last = columns.len().div_ceil(SQUARE) - 1;
                        let square_of = |square: usize| {
                            let first = columns.start + square * SQUARE;
                            let weights = squares.wrapping_add(square * depth.len() * square_size);
                            (first..columns.end.min(first + SQUARE), weights.cast_const())
                        };
                        // The unit is at the next squares while the vectors write some.
                        let [mut this, mut other] = sums.each_mut();
                        let mut before: [Option<Place<'_>>; 2] = [None, None];
                        let write_all = |sums: &[Sums<f32>; 2], places: [Option<Place<'_>>; 2]| {
                            for (sums, place) in sums.iter().zip(places.into_iter().flatten()) {
                                // SAFETY: as above; the columns are this part's.
                                unsafe { write(sums, &place, passes) };
                            }
                        };
                        for strip in 0..strips {
                            let rows = packed.at(strip * strip_size + start * X * PAIR);
                            let place = |columns: Range<usize>| {
                                let rows = strip_of(strip);
                                Some(Place { linear: self, out, rows, columns })
                            };
                            let is_narrow = is_narrow(&strip_of(strip));
                            for square in (0..=last).step_by(if is_narrow { 2 } else { 1 }) {
                                let (columns, weights) = square_of(square);
                                // SAFETY: as above; the strips are read alone now.
                                let places = unsafe {
                                    if is_narrow {
                                        // One that is left over goes twice.
                                        let beside = square_of(last.min(square + 1));
                                        let both = [weights, beside.1];
                                        U::narrow_floats::<N, X>(both, rows, depth.len(), this);
                                        let is_there = square < last;
                                        let second = is_there.then(|| place(beside.0)).flatten();
                                        [place(columns), second]
                                    } else {
                                        U::floats::<N, X>(weights, rows, depth.len(), &mut this[0]);
                                        [place(columns), None]
                                    }
                                };
                                write_all(other, std::mem::replace(&mut before, places));
                                std::mem::swap(&mut this, &mut other);
                            }
                        }
                        write_all(other, before);
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
