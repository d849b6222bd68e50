//! Attention: scores of 32 queries at a time, their softmax, and the values that they weigh.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::pieces::{INPUTS, Lines, PAIR, Parted, Rounded, Three, pieces};
use super::{SQUARE, Sums, TILE_ROWS, Unit, is_usable};
use crate::Instructions;
use crate::attention::{Part, Strided};
use crate::lanes::{LANES, exp, first};
use crate::tile::Line;

/// Memory that a thread keeps for the next part.
#[derive(Default)]
struct Scratch {
    tiles: [Vec<Line>; 4],
    scores: Vec<Sums<f32>>,
    own: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Whether a part takes less time here: few keys are not worth the laying out.
pub(crate) fn pays(part: &Part<'_>) -> bool {
    part.shared[0].len() >= TILE_ROWS && part.rows.len() >= TILE_ROWS && is_usable()
}

/// A part, and its tiles: all sides in `N` pieces.
struct Work<'a, const N: usize> {
    part: &'a Part<'a>,
    /// Squares of keys.
    strips: usize,
    /// Tiles of a key or a value.
    groups: usize,
    /// The keys, turned: `[strips][groups][N][2]` tiles.
    keys: *mut u16,
    /// The values: `[groups][strips][N][2]` tiles, whose rows are pairs of keys.
    values: *mut u16,
    /// 32 queries: `[groups][N][2]` tiles.
    queries: *mut u16,
    /// What each of them gives to each key: `[strips][N][2]` tiles.
    weights: *mut u16,
}

/// Computes a part of the results; `own` gives what of the own keys the query of a row sees.
///
/// # Safety
/// `U` is usable, and so is AVX-512; the results are the caller's alone.
pub(crate) unsafe fn run<U: Unit>(
    part: &Part<'_>,
    own: impl Fn(usize) -> Range<usize>,
    instructions: Instructions,
) {
    // SAFETY: what the caller promises.
    unsafe {
        match instructions {
            Instructions::AmxHigh => in_pieces::<U, Rounded, 2>(part, own),
            _ => in_pieces::<U, Three, 3>(part, own),
        }
    }
}

/// As [`run`], in `N` pieces as `P` says.
///
/// # Safety
/// As [`run`].
unsafe fn in_pieces<U: Unit, P: Parted, const N: usize>(
    part: &Part<'_>,
    own: impl Fn(usize) -> Range<usize>,
) {
    let size = N * PAIR;
    let [keys, _] = part.shared;
    let (strips, groups) = (keys.len().div_ceil(SQUARE), keys.dim.div_ceil(INPUTS));
    SCRATCH.with_borrow_mut(|Scratch { tiles, scores, own: own_weights }| {
        for (tiles, count) in
            tiles.iter_mut().zip([strips * groups, strips * groups, groups, strips])
        {
            tiles.resize(count * size / INPUTS, Line::default());
        }
        scores.resize_with(strips, Sums::new);
        let [keys, values, queries, weights] =
            tiles.each_mut().map(|tiles| tiles.as_mut_ptr().cast::<u16>());
        let work = Work::<N> { part, strips, groups, keys, values, queries, weights };
        // SAFETY: what the caller promises; there is room for all tiles.
        unsafe {
            work.lay_shared::<P>();
            U::scope(|| {
                for start in (0..part.rows.len()).step_by(SQUARE) {
                    let rows = part.rows.start + start
                        ..part.rows.end.min(part.rows.start + start + SQUARE);
                    work.strip::<U, P>(rows, &own, scores, own_weights);
                }
            });
        }
    });
}

/// As the tiles take them.
fn lines(rows: Strided<'_>) -> Lines {
    let Strided { rows: values, stride, dim } = rows;
    let (start, stride) = (values.as_ptr().cast(), stride * size_of::<f32>());
    Lines { start, stride, inputs: dim, count: rows.len() }
}

impl<const N: usize> Work<'_, N> {
    /// Values of bfloat16 of a square's pieces.
    const SIZE: usize = N * PAIR;

    /// Lays the shared keys and values out.
    ///
    /// # Safety
    /// There is room for them.
    unsafe fn lay_shared<P: Parted>(&self) {
        let [keys, values] = self.part.shared;
        for strip in 0..self.strips {
            let range = strip * SQUARE..keys.len().min((strip + 1) * SQUARE);
            // SAFETY: what the caller promises.
            unsafe {
                lines(keys.part(range.clone()))
                    .turn::<P, N>(self.keys.add(strip * self.groups * Self::SIZE));
                for group in 0..self.groups {
                    let out = self.values.add((group * self.strips + strip) * Self::SIZE);
                    lay_values::<N>(values.part(range.clone()), group * INPUTS, out);
                }
            }
        }
    }

    /// The results `rows`, a square's at most.
    ///
    /// # Safety
    /// As [`run`], inside of the unit's scope.
    unsafe fn strip<U: Unit, P: Parted>(
        &self,
        rows: Range<usize>,
        own: &impl Fn(usize) -> Range<usize>,
        scores: &mut [Sums<f32>],
        own_weights: &mut Vec<f32>,
    ) {
        let part = self.part;
        let first = rows.start - part.rows.start;
        let queries = part.queries.part(first..first + rows.len());
        let mut inverse = [0.0; SQUARE];
        let mut ends = [0; SQUARE];
        own_weights.clear();
        // SAFETY: what the caller promises.
        unsafe {
            lines(queries).lay::<P, N>(&(0..self.groups), self.queries);
            for (strip, scores) in scores.iter_mut().enumerate() {
                // What is behind the last key is some number that nobody reads.
                let keys = self.keys.add(strip * self.groups * Self::SIZE);
                U::floats::<N, N>(self.queries, keys, self.groups, scores);
            }
            for (index, query) in queries.iter().enumerate() {
                let start = own_weights.len();
                let own_keys = part.own[0].part(own(rows.start + index));
                own_weights.extend(own_keys.iter().map(|key| dot(query, key)));
                inverse[index] = self.weigh(index, scores, &mut own_weights[start..]);
                ends[index] = own_weights.len();
            }
            let mut seen = Sums::new();
            for group in 0..self.groups {
                let values = self.values.add(group * self.strips * Self::SIZE);
                U::floats::<N, N>(self.weights, values, self.strips, &mut seen);
                let mut start = 0;
                for (index, row) in rows.clone().enumerate() {
                    let own_values = part.own[1].part(own(row));
                    let weights = &own_weights[start..ends[index]];
                    start = ends[index];
                    let columns = group * INPUTS..part.columns.len().min((group + 1) * INPUTS);
                    let all = part.columns.start;
                    let out = part.out.part(row, all + columns.start..all + columns.end);
                    let own_values =
                        own_values.iter().map(|value| &value[columns.clone()]).zip(weights);
                    write(&seen, index, own_values, inverse[index], out);
                }
            }
        }
    }

    /// Turns the scores of query `index` of the strip into weights, those of the own keys in place, and gives one over their
    /// sum.
    ///
    /// # Safety
    /// There is room for the weights.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn weigh(&self, index: usize, scores: &[Sums<f32>], own: &mut [f32]) -> f32 {
        let Strided { dim, .. } = self.part.queries;
        let keys = self.part.shared[0].len();
        let lanes = |strip: usize, half: usize| {
            // SAFETY: sixteen scores of the query.
            unsafe { _mm512_load_ps(scores[strip].0.as_ptr().add(place(index, half))) }
        };
        let mask = |strip: usize, half: usize| {
            first(keys.saturating_sub(strip * SQUARE + half * TILE_ROWS))
        };
        let mut highest = _mm512_set1_ps(own.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        for strip in 0..self.strips {
            for half in 0..2 {
                let mask = mask(strip, half);
                highest = _mm512_mask_max_ps(highest, mask, highest, lanes(strip, half));
            }
        }
        let highest = _mm512_set1_ps(_mm512_reduce_max_ps(highest));
        let scale = _mm512_set1_ps(1.0 / (dim as f32).sqrt());
        let weight = |score| exp(_mm512_mul_ps(_mm512_sub_ps(score, highest), scale));
        let mut total = _mm512_setzero_ps();
        let row = index / TILE_ROWS * (PAIR / 2) + index % TILE_ROWS * INPUTS;
        for strip in 0..self.strips {
            let [left, right] = [0, 1]
                .map(|half| _mm512_maskz_mov_ps(mask(strip, half), weight(lanes(strip, half))));
            total = _mm512_add_ps(total, _mm512_add_ps(left, right));
            for (piece, values) in pieces::<N>([left, right]).into_iter().enumerate() {
                // SAFETY: a row of a tile, for which there is room.
                unsafe {
                    let out = self.weights.add(strip * Self::SIZE + piece * PAIR + row);
                    _mm512_store_si512(out.cast(), values);
                }
            }
        }
        for chunk in own.chunks_mut(LANES) {
            let mask = first(chunk.len());
            // SAFETY: the mask ends where the chunk does.
            unsafe {
                let weight = weight(_mm512_maskz_loadu_ps(mask, chunk.as_ptr()));
                total = _mm512_mask_add_ps(total, mask, total, weight);
                _mm512_mask_storeu_ps(chunk.as_mut_ptr(), mask, weight);
            }
        }
        1.0 / _mm512_reduce_add_ps(total)
    }
}

/// Where sixteen sums of query `index` of a square are, of the first or the second half of the other side.
fn place(index: usize, half: usize) -> usize {
    ((index / TILE_ROWS * 2 + half) * TILE_ROWS + index % TILE_ROWS) * LANES
}

/// Values from column `column` on as `[N][2]` tiles: a row is a pair of keys, the first sixteen with those that are sixteen
/// behind; zeros behind the last.
///
/// # Safety
/// `out` has room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn lay_values<const N: usize>(values: Strided<'_>, column: usize, out: *mut u16) {
    let Strided { rows, stride, dim } = values;
    for half in 0..(dim - column).div_ceil(LANES).min(2) {
        let at = column + half * LANES;
        let mask = first(dim - at);
        let lanes = |key: usize| match key < values.len() {
            // SAFETY: the mask ends where the row does.
            true => unsafe { _mm512_maskz_loadu_ps(mask, rows[key * stride + at..].as_ptr()) },
            false => _mm512_setzero_ps(),
        };
        for pair in 0..TILE_ROWS {
            let both = pieces::<N>([lanes(pair), lanes(pair + TILE_ROWS)]);
            for (piece, values) in both.into_iter().enumerate() {
                let place = piece * PAIR + half * (PAIR / 2) + pair * INPUTS;
                // SAFETY: a row of a tile, for which there is room.
                unsafe { _mm512_store_si512(out.add(place).cast(), values) };
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn dot(query: &[f32], key: &[f32]) -> f32 {
    let mut sum = _mm512_setzero_ps();
    for (query, key) in query.chunks(LANES).zip(key.chunks(LANES)) {
        let mask = first(query.len().min(key.len()));
        // SAFETY: the mask ends where the chunks do.
        unsafe {
            let query = _mm512_maskz_loadu_ps(mask, query.as_ptr());
            sum = _mm512_fmadd_ps(query, _mm512_maskz_loadu_ps(mask, key.as_ptr()), sum);
        }
    }
    _mm512_reduce_add_ps(sum)
}

/// What query `index` sees: its sums, at most 32, and its own values with their weights, all times `inverse`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn write<'v>(
    seen: &Sums<f32>,
    index: usize,
    own: impl Iterator<Item = (&'v [f32], &'v f32)>,
    inverse: f32,
    out: &mut [f32],
) {
    let masks = [first(out.len()), first(out.len().saturating_sub(LANES))];
    // SAFETY: sixteen sums each; the masks end where the values and the results do.
    unsafe {
        let mut sums = [0, 1].map(|half| _mm512_load_ps(seen.0.as_ptr().add(place(index, half))));
        for (value, weight) in own {
            for (half, sum) in sums.iter_mut().enumerate() {
                let start = value.as_ptr().wrapping_add(half * LANES);
                let value = _mm512_maskz_loadu_ps(masks[half], start);
                *sum = _mm512_fmadd_ps(value, _mm512_set1_ps(*weight), *sum);
            }
        }
        for (half, sum) in sums.into_iter().enumerate() {
            let start = out.as_mut_ptr().wrapping_add(half * LANES);
            _mm512_mask_storeu_ps(start, masks[half], _mm512_mul_ps(sum, _mm512_set1_ps(inverse)));
        }
    }
}
