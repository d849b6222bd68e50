//! Float weights: both sides are parted into bfloat16 pieces, tile by tile.

use super::pieces::{INPUTS, Lines, PAIR, PIECES, Parted};
use super::{SQUARE, Sums, Unit, is_narrow, write};
use crate::linear::{Linear, Out, Parallel, Weight};
use crate::tile::{Line, PANEL_SCRATCH, Place, Shared};

/// Tiles of inputs that go by before the next square's turn: weights of so many stay in the cache.
const DEPTH: usize = 32;
/// Bytes of the pieces of a part's weights.
const PART_BYTES: usize = 800 << 10;

impl Linear<'_> {
    /// The layer of many rows over float weights, which lie in `bytes` and have `N` pieces.
    ///
    /// # Safety
    /// `U` is usable.
    pub(super) unsafe fn in_pieces<U: Unit, P: Parted, const N: usize>(
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
        let strip_size = tiles * PIECES * PAIR;
        packed.resize(strips * strip_size / INPUTS, Line::default());
        let packed = Shared(packed.as_mut_ptr().cast::<u16>());
        let strip_of = |strip: usize| strip * SQUARE..out.rows.min((strip + 1) * SQUARE);
        parallel.run(strips, &|strip| {
            let range = strip_of(strip);
            let rows = &rows[range.start * inputs..range.end * inputs];
            let (start, count) = (rows.as_ptr().cast(), range.len());
            let lines = Lines { start, stride: 4 * inputs, inputs, count };
            // SAFETY: the caller asked for the features; each part has a strip of its own.
            unsafe { lines.turn(packed.at(strip * strip_size)) };
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
                let mut sums = [Sums::new(), Sums::new()];
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
                        // The unit is at the next square while the vectors write one.
                        let [mut this, mut other] = sums.each_mut();
                        let mut before: Option<Place<'_>> = None;
                        for strip in 0..strips {
                            let at = strip * strip_size + start * PIECES * PAIR;
                            for (square, first) in columns.clone().step_by(SQUARE).enumerate() {
                                let place = Place {
                                    linear: self,
                                    out,
                                    rows: strip_of(strip),
                                    columns: first..columns.end.min(first + SQUARE),
                                };
                                // SAFETY: as above; the strips are read alone now, the columns are
                                // this part's.
                                unsafe {
                                    let weights = squares.add(square * depth.len() * square_size);
                                    let narrow = is_narrow(&place.rows);
                                    U::floats::<N>(
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
