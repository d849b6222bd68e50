//! Attention of many short sequences behind one shared prefix.

use crate::linear::Out;
use crate::{Parallel, Serial};

/// What sequences behind a prefix attend to: the prefix's keys and values, which are there once,
/// and their own.
#[derive(Clone, Copy, Debug)]
pub struct PrefixAttention<'a> {
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// `[heads, prefix, head_dim]`.
    pub prefix_keys: &'a [f32],
    /// `[heads, prefix, head_dim]`.
    pub prefix_values: &'a [f32],
    /// `[sequences * length, heads * head_dim]`.
    pub keys: &'a [f32],
    /// `[sequences * length, heads * head_dim]`.
    pub values: &'a [f32],
    /// Tokens of each sequence.
    pub length: usize,
}

/// The queries of a sequence.
#[derive(Clone, Copy, Debug)]
pub enum Queries<'a> {
    /// One a token, `[sequences * length, heads * head_dim]`: a token sees none after itself.
    All(&'a [f32]),
    /// One a sequence, `[sequences, heads * head_dim]`, of the token of that index.
    Pooled(&'a [f32], &'a [i64]),
}

/// Sequences of a part of the work.
const SEQUENCES: usize = 24;
/// Products below which other threads are not woken.
const FEW_PRODUCTS: usize = 1 << 18;

impl PrefixAttention<'_> {
    /// What the queries see, in their shape: softmax of `query . key / sqrt(head_dim)`, in order
    /// of the keys, times the values.
    ///
    /// # Panics
    /// When a slice has not the length its shape asks, or an index is none of a token: the
    /// caller has checked them.
    pub fn run(&self, queries: Queries<'_>, out: &mut [f32], parallel: &dyn Parallel) {
        let width = self.heads * self.head_dim;
        let tokens = self.keys.len() / width;
        let sequences = tokens / self.length;
        assert_eq!((self.keys.len(), self.values.len()), (tokens * width, tokens * width));
        assert_eq!(tokens, sequences * self.length, "keys of whole sequences");
        assert_eq!(self.prefix_keys.len(), self.prefix_values.len());
        assert_eq!(self.prefix_keys.len() % width, 0, "whole keys of the prefix");
        let rows = match queries {
            Queries::All(rows) => rows,
            Queries::Pooled(rows, places) => {
                assert_eq!(places.len(), sequences, "an index for each sequence");
                assert!(
                    places.iter().all(|&at| usize::try_from(at).is_ok_and(|at| at < self.length))
                );
                rows
            }
        };
        let wanted = if matches!(queries, Queries::All(_)) { tokens } else { sequences };
        assert_eq!(
            (rows.len(), out.len()),
            (wanted * width, wanted * width),
            "queries and results"
        );
        let seen = self.prefix_keys.len() / width + self.length;
        let is_small = wanted * seen * width <= FEW_PRODUCTS;
        let parallel = if is_small { &Serial } else { parallel };
        let out = Out { start: out.as_mut_ptr(), outputs: width, rows: wanted };
        let groups = sequences.div_ceil(SEQUENCES);
        // Heads are parts of their own, so that one long sequence is shared out too.
        parallel.run(groups * self.heads, &|part| {
            let (group, head) = (part / self.heads, part % self.heads);
            let mut scores = Vec::new();
            let prefix = Prefix::new(self, head);
            for sequence in group * SEQUENCES..sequences.min((group + 1) * SEQUENCES) {
                let range = match queries {
                    Queries::All(_) => 0..self.length,
                    Queries::Pooled(_, places) => {
                        let at = places[sequence] as usize;
                        at..at + 1
                    }
                };
                for place in range {
                    let row = match queries {
                        Queries::All(_) => sequence * self.length + place,
                        Queries::Pooled(..) => sequence,
                    };
                    let columns = head * self.head_dim..(head + 1) * self.head_dim;
                    let query = &rows[row * width..][columns.clone()];
                    // SAFETY: each part has a head of its sequences.
                    let seen = unsafe { out.part(row, columns) };
                    let own = sequence * self.length..sequence * self.length + place + 1;
                    self.see((head, &prefix), query, own, &mut scores, seen);
                }
            }
        });
    }

    /// One query's view of the prefix and of the tokens `own`.
    fn see(
        &self,
        (head, prefix): (usize, &Prefix<'_>),
        query: &[f32],
        own: std::ops::Range<usize>,
        scores: &mut Vec<f32>,
        seen: &mut [f32],
    ) {
        let (dim, width) = (self.head_dim, self.heads * self.head_dim);
        let own = own.start * width + head * dim..own.end * width;
        let keys = Strided { rows: &self.keys[own.clone()], stride: width, dim };
        let values = Strided { rows: &self.values[own], stride: width, dim };
        let scale = 1.0 / (dim as f32).sqrt();
        scores.clear();
        #[cfg(target_arch = "x86_64")]
        if crate::is_supported() {
            // SAFETY: the processor has the features.
            unsafe { vectors::see((query, scale), prefix, (keys, values), scores, seen) };
            return;
        }
        let prefix_keys = Strided { rows: prefix.keys, stride: dim, dim };
        for key in prefix_keys.iter().chain(keys.iter()) {
            scores.push(scale * query.iter().zip(key).map(|(q, k)| q * k).sum::<f32>());
        }
        let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        scores.iter_mut().for_each(|score| *score = (*score - highest).exp());
        let sum: f32 = scores.iter().sum();
        seen.fill(0.0);
        for (weight, value) in scores.iter().zip(prefix.values.iter().chain(values.iter())) {
            seen.iter_mut().zip(value).for_each(|(seen, value)| *seen += weight / sum * value);
        }
    }
}

/// A head's part of the prefix.
struct Prefix<'a> {
    #[cfg_attr(target_arch = "x86_64", allow(dead_code))]
    keys: &'a [f32],
    values: Strided<'a>,
    /// Tokens of it.
    length: usize,
    /// The keys as `[head_dim, padded]`, a multiple of sixteen: a query meets sixteen at once.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    columns: Vec<f32>,
}

impl<'a> Prefix<'a> {
    fn new(attention: &PrefixAttention<'a>, head: usize) -> Self {
        let dim = attention.head_dim;
        let size = attention.prefix_keys.len() / attention.heads;
        let keys = &attention.prefix_keys[head * size..(head + 1) * size];
        let values = &attention.prefix_values[head * size..(head + 1) * size];
        let length = size / dim;
        let padded = length.next_multiple_of(16);
        let mut columns = vec![0.0; dim * padded];
        for (place, key) in keys.chunks_exact(dim).enumerate() {
            for (at, value) in key.iter().enumerate() {
                columns[at * padded + place] = *value;
            }
        }
        Prefix { keys, values: Strided { rows: values, stride: dim, dim }, length, columns }
    }
}

/// Rows of `dim` that begin `stride` apart.
#[derive(Clone, Copy)]
struct Strided<'a> {
    rows: &'a [f32],
    stride: usize,
    dim: usize,
}

impl<'a> Strided<'a> {
    fn iter(self) -> impl Iterator<Item = &'a [f32]> {
        let dim = self.dim;
        self.rows.chunks(self.stride).map(move |row| &row[..dim])
    }
}

#[cfg(target_arch = "x86_64")]
mod vectors {
    use std::arch::x86_64::*;

    use super::{Prefix, Strided};
    use crate::lanes::{LANES, exp, first};

    /// Scores of the prefix, sixteen of its tokens in each of `N` vectors from `start` on.
    ///
    /// # Safety
    /// `start` has `query.len()` rows of `padded`, of which `16 N` from `start` on are there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn columns<const N: usize>(
        query: &[f32],
        start: *const f32,
        padded: usize,
    ) -> [__m512; N] {
        let mut sums = [_mm512_setzero_ps(); N];
        let mut row = start;
        for value in query {
            let value = _mm512_set1_ps(*value);
            for (index, sum) in sums.iter_mut().enumerate() {
                // SAFETY: what the caller promises.
                let keys = unsafe { _mm512_loadu_ps(row.wrapping_add(index * LANES)) };
                *sum = _mm512_fmadd_ps(value, keys, *sum);
            }
            row = row.wrapping_add(padded);
        }
        sums
    }

    /// # Safety
    /// The processor has the features.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn see(
        (query, scale): (&[f32], f32),
        prefix: &Prefix<'_>,
        (keys, own_values): (Strided<'_>, Strided<'_>),
        scores: &mut Vec<f32>,
        seen: &mut [f32],
    ) {
        let padded = prefix.columns.len() / query.len().max(1);
        scores.resize(padded, 0.0);
        for at in (0..padded).step_by(2 * LANES) {
            let start = prefix.columns.as_ptr().wrapping_add(at);
            // SAFETY: the columns are `padded` wide, a multiple of sixteen, and so are the scores.
            unsafe {
                let out = scores.as_mut_ptr().add(at);
                if at + LANES < padded {
                    let [left, right] = columns::<2>(query, start, padded);
                    _mm512_storeu_ps(out, _mm512_mul_ps(left, _mm512_set1_ps(scale)));
                    _mm512_storeu_ps(out.add(LANES), _mm512_mul_ps(right, _mm512_set1_ps(scale)));
                } else {
                    let [left] = columns::<1>(query, start, padded);
                    _mm512_storeu_ps(out, _mm512_mul_ps(left, _mm512_set1_ps(scale)));
                }
            }
        }
        scores.truncate(prefix.length);
        for key in keys.iter() {
            let mut sum = _mm512_setzero_ps();
            for at in (0..query.len()).step_by(LANES) {
                let mask = first(query.len() - at);
                // SAFETY: the masks end where the query and the key do.
                let (q, k) = unsafe {
                    (
                        _mm512_maskz_loadu_ps(mask, query[at..].as_ptr()),
                        _mm512_maskz_loadu_ps(mask, key[at..].as_ptr()),
                    )
                };
                sum = _mm512_fmadd_ps(q, k, sum);
            }
            scores.push(scale * _mm512_reduce_add_ps(sum));
        }
        let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut total = _mm512_setzero_ps();
        for chunk in scores.chunks_mut(LANES) {
            let mask = first(chunk.len());
            // SAFETY: the masks end where the scores do.
            unsafe {
                let score = _mm512_maskz_loadu_ps(mask, chunk.as_ptr());
                let weight = exp(_mm512_sub_ps(score, _mm512_set1_ps(highest)));
                total = _mm512_mask_add_ps(total, mask, total, weight);
                _mm512_mask_storeu_ps(chunk.as_mut_ptr(), mask, weight);
            }
        }
        let inverse = _mm512_set1_ps(1.0 / _mm512_reduce_add_ps(total));
        for (index, part) in seen.chunks_mut(LANES).enumerate() {
            let mask = first(part.len());
            let mut sum = _mm512_setzero_ps();
            let rows = prefix.values.iter().chain(own_values.iter());
            for (value, weight) in rows.zip(scores.iter()) {
                // SAFETY: the masks end where the value does.
                let value = unsafe { _mm512_maskz_loadu_ps(mask, value[index * LANES..].as_ptr()) };
                sum = _mm512_fmadd_ps(value, _mm512_set1_ps(*weight), sum);
            }
            // SAFETY: the mask ends where the part does.
            unsafe {
                _mm512_mask_storeu_ps(part.as_mut_ptr(), mask, _mm512_mul_ps(sum, inverse));
            }
        }
    }
}
