//! Attention of the new tokens of sequences to keys and values that lie in a cache.

use crate::linear::Out;
use crate::{Parallel, Serial};

/// What sequences see: a head's keys and values lie together, as caches keep them.
#[derive(Clone, Copy, Debug)]
pub struct CachedAttention<'a> {
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Positions of which `keys` and `values` have room in each head.
    pub max_length: usize,
    /// `[sequences, heads, max_length, head_dim]`.
    pub keys: &'a [f32],
    /// `[sequences, heads, max_length, head_dim]`.
    pub values: &'a [f32],
    /// How many of the positions are looked at.
    pub length: usize,
    /// Which of them each query sees, `[sequences, queries, length]`, at least one of them; without, all.
    pub mask: Option<&'a [bool]>,
    /// What the scores are multiplied by.
    pub scale: f32,
}

/// Products below which other threads are not woken.
const FEW_PRODUCTS: usize = 1 << 18;

impl CachedAttention<'_> {
    /// What each query sees: softmax of `scale * query . key` times the values. Queries and results
    /// are `[sequences * queries, heads * head_dim]`.
    ///
    /// # Panics
    /// When a slice has not the length its shape asks: the caller has checked them.
    pub fn run(&self, queries: &[f32], out: &mut [f32], parallel: &dyn Parallel) {
        let width = self.heads * self.head_dim;
        let slot = width * self.max_length;
        let sequences = self.keys.len() / slot;
        let rows = queries.len() / width;
        let each = rows / sequences.max(1);
        assert_eq!((queries.len(), out.len()), (sequences * each * width, queries.len()));
        assert_eq!((self.keys.len(), self.values.len()), (sequences * slot, sequences * slot));
        assert!(0 < self.length && self.length <= self.max_length, "positions of the cache");
        assert!(self.mask.is_none_or(|mask| mask.len() == rows * self.length), "a mask's rows");
        let is_small = rows * self.length * width <= FEW_PRODUCTS;
        let parallel = if is_small { &Serial } else { parallel };
        let out = Out { start: out.as_mut_ptr(), outputs: width, rows };
        parallel.run(sequences * self.heads, &|part| {
            let (sequence, head) = (part / self.heads, part % self.heads);
            let place = part * self.max_length * self.head_dim;
            let columns = head * self.head_dim..(head + 1) * self.head_dim;
            let mut weights = vec![0.0; self.length];
            for row in sequence * each..(sequence + 1) * each {
                let mask = self.mask.map(|mask| &mask[row * self.length..][..self.length]);
                let last =
                    |mask: &[bool]| mask.iter().rposition(|sees| *sees).map_or(0, |at| at + 1);
                let seen = mask.map_or(self.length, last);
                let weights = &mut weights[..seen];
                let place = place..place + seen * self.head_dim;
                score(&self.keys[place.clone()], &queries[row * width..][columns.clone()], weights);
                for (score, _) in
                    weights.iter_mut().zip(mask.unwrap_or_default()).filter(|(_, sees)| !**sees)
                {
                    *score = f32::NEG_INFINITY;
                }
                softmax(weights, self.scale);
                // SAFETY: each part has a head of its sequence.
                let result = unsafe { out.part(row, columns.clone()) };
                mix(&self.values[place], weights, result);
            }
        });
    }
}

/// The products of a query and keys.
fn score(keys: &[f32], query: &[f32], scores: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::is_supported() {
        // SAFETY: the processor has the features.
        unsafe { vectors::score(keys, query, scores) };
        return;
    }
    for (key, score) in keys.chunks_exact(query.len()).zip(scores) {
        *score = query.iter().zip(key).map(|(q, k)| q * k).sum();
    }
}

/// `scores` to weights that add up to 1.
fn softmax(scores: &mut [f32], scale: f32) {
    #[cfg(target_arch = "x86_64")]
    if crate::is_supported() {
        // SAFETY: the processor has the features.
        unsafe { vectors::softmax(scores, scale) };
        return;
    }
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = (scale * (*score - highest)).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|weight| *weight /= sum);
}

/// The values by their weights.
fn mix(values: &[f32], weights: &[f32], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::is_supported() {
        // SAFETY: the processor has the features.
        unsafe { vectors::mix(values, weights, out) };
        return;
    }
    out.fill(0.0);
    for (value, weight) in values.chunks_exact(out.len()).zip(weights) {
        out.iter_mut().zip(value).for_each(|(out, value)| *out += weight * value);
    }
}

#[cfg(target_arch = "x86_64")]
mod vectors {
    use std::arch::x86_64::*;

    use crate::lanes::{LANES, exp, first, transpose};

    /// The products of `query` and sixteen keys from `keys` on.
    ///
    /// # Safety
    /// The processor has the features; sixteen keys are there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn sixteen(keys: *const f32, query: &[f32]) -> __m512 {
        let dim = query.len();
        // In registers: the loops over the keys are unrolled.
        let mut sums = [_mm512_setzero_ps(); LANES];
        for at in (0..dim).step_by(LANES) {
            let mask = first(dim - at);
            // SAFETY: the masks end where the query and the keys do.
            unsafe {
                let part = _mm512_maskz_loadu_ps(mask, query.as_ptr().add(at));
                for (index, sum) in sums.iter_mut().enumerate() {
                    let key = _mm512_maskz_loadu_ps(mask, keys.add(index * dim + at));
                    *sum = _mm512_fmadd_ps(part, key, *sum);
                }
            }
        }
        let mut rows = [_mm512_setzero_si512(); LANES];
        for (row, sum) in rows.iter_mut().zip(sums) {
            *row = _mm512_castps_si512(sum);
        }
        let columns = transpose(rows);
        let mut total = _mm512_setzero_ps();
        for column in columns {
            total = _mm512_add_ps(total, _mm512_castsi512_ps(column));
        }
        total
    }

    /// # Safety
    /// The processor has the features.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn score(keys: &[f32], query: &[f32], scores: &mut [f32]) {
        let dim = query.len();
        let whole = scores.len() / LANES * LANES;
        let (scores, rest) = scores.split_at_mut(whole);
        for (keys, scores) in keys.chunks_exact(LANES * dim).zip(scores.chunks_exact_mut(LANES)) {
            // SAFETY: sixteen keys and sixteen scores.
            unsafe { _mm512_storeu_ps(scores.as_mut_ptr(), sixteen(keys.as_ptr(), query)) };
        }
        for (key, score) in keys[whole * dim..].chunks_exact(dim).zip(rest) {
            let mut sum = _mm512_setzero_ps();
            for at in (0..dim).step_by(LANES) {
                let mask = first(dim - at);
                // SAFETY: the masks end where the query and the key do.
                unsafe {
                    let part = _mm512_maskz_loadu_ps(mask, query.as_ptr().add(at));
                    let key = _mm512_maskz_loadu_ps(mask, key.as_ptr().add(at));
                    sum = _mm512_fmadd_ps(part, key, sum);
                }
            }
            *score = _mm512_reduce_add_ps(sum);
        }
    }

    /// # Safety
    /// The processor has the features.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn softmax(scores: &mut [f32], scale: f32) {
        let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
        let mut highest = lowest;
        for chunk in scores.chunks(LANES) {
            // SAFETY: the mask ends where the scores do.
            let score = unsafe { _mm512_mask_loadu_ps(lowest, first(chunk.len()), chunk.as_ptr()) };
            highest = _mm512_max_ps(highest, score);
        }
        let highest = _mm512_set1_ps(_mm512_reduce_max_ps(highest));
        let scale = _mm512_set1_ps(scale);
        let mut total = _mm512_setzero_ps();
        for chunk in scores.chunks_mut(LANES) {
            let mask = first(chunk.len());
            // SAFETY: the masks end where the scores do.
            unsafe {
                let score = _mm512_maskz_loadu_ps(mask, chunk.as_ptr());
                let weight = exp(_mm512_mul_ps(scale, _mm512_sub_ps(score, highest)));
                total = _mm512_mask_add_ps(total, mask, total, weight);
                _mm512_mask_storeu_ps(chunk.as_mut_ptr(), mask, weight);
            }
        }
        let inverse = _mm512_set1_ps(1.0 / _mm512_reduce_add_ps(total));
        for chunk in scores.chunks_mut(LANES) {
            let mask = first(chunk.len());
            // SAFETY: the masks end where the weights do.
            unsafe {
                let weight = _mm512_maskz_loadu_ps(mask, chunk.as_ptr());
                _mm512_mask_storeu_ps(chunk.as_mut_ptr(), mask, _mm512_mul_ps(weight, inverse));
            }
        }
    }

    /// Vectors of a value that are summed up side by side.
    const SUMS: usize = 4;

    /// # Safety
    /// The processor has the features.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn mix(values: &[f32], weights: &[f32], out: &mut [f32]) {
        let dim = out.len();
        for (index, part) in out.chunks_mut(SUMS * LANES).enumerate() {
            let masks: [__mmask16; SUMS] =
                std::array::from_fn(|at| first(part.len().saturating_sub(at * LANES)));
            let mut sums = [_mm512_setzero_ps(); SUMS];
            for (value, weight) in values.chunks_exact(dim).zip(weights) {
                let weight = _mm512_set1_ps(*weight);
                let start = value[index * SUMS * LANES..].as_ptr();
                for (at, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: the masks end where the value does.
                    let value =
                        unsafe { _mm512_maskz_loadu_ps(masks[at], start.wrapping_add(at * LANES)) };
                    *sum = _mm512_fmadd_ps(weight, value, *sum);
                }
            }
            let start = part.as_mut_ptr();
            for (at, sum) in sums.into_iter().enumerate() {
                // SAFETY: the masks end where the part does.
                unsafe { _mm512_mask_storeu_ps(start.wrapping_add(at * LANES), masks[at], sum) };
            }
        }
    }
}
