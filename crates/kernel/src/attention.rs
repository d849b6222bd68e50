//! Attention of many short sequences behind one shared prefix.

use crate::Parallel;
use crate::linear::Out;

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
const SEQUENCES: usize = 8;

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
                assert!(places.iter().all(|&at| usize::try_from(at).is_ok_and(|at| at < self.length)));
                rows
            }
        };
        let wanted = if matches!(queries, Queries::All(_)) { tokens } else { sequences };
        assert_eq!((rows.len(), out.len()), (wanted * width, wanted * width), "queries and results");
        let out = Out { start: out.as_mut_ptr(), outputs: width, rows: wanted };
        let groups = sequences.div_ceil(SEQUENCES);
        // Heads are parts of their own, so that one long sequence is shared out too.
        parallel.run(groups * self.heads, &|part| {
            let (group, head) = (part / self.heads, part % self.heads);
            let mut scores = Vec::new();
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
                    self.see(head, query, own, &mut scores, seen);
                }
            }
        });
    }

    /// One query's view of the prefix and of the tokens `own`.
    fn see(
        &self,
        head: usize,
        query: &[f32],
        own: std::ops::Range<usize>,
        scores: &mut Vec<f32>,
        seen: &mut [f32],
    ) {
        let (dim, width) = (self.head_dim, self.heads * self.head_dim);
        let size = self.prefix_keys.len() / self.heads;
        let of_prefix = head * size..(head + 1) * size;
        let own = own.start * width + head * dim..own.end * width;
        let keys = [
            Strided { rows: &self.prefix_keys[of_prefix.clone()], stride: dim, dim },
            Strided { rows: &self.keys[own.clone()], stride: width, dim },
        ];
        let values = [
            Strided { rows: &self.prefix_values[of_prefix], stride: dim, dim },
            Strided { rows: &self.values[own], stride: width, dim },
        ];
        let scale = 1.0 / (dim as f32).sqrt();
        scores.clear();
        #[cfg(target_arch = "x86_64")]
        if crate::is_supported() {
            // SAFETY: the processor has the features.
            unsafe { vectors::see((query, scale), keys, values, scores, seen) };
            return;
        }
        for key in keys.iter().flat_map(|keys| keys.iter()) {
            scores.push(scale * query.iter().zip(key).map(|(q, k)| q * k).sum::<f32>());
        }
        let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        scores.iter_mut().for_each(|score| *score = (*score - highest).exp());
        let sum: f32 = scores.iter().sum();
        seen.fill(0.0);
        for (weight, value) in scores.iter().zip(values.iter().flat_map(|values| values.iter())) {
            seen.iter_mut().zip(value).for_each(|(seen, value)| *seen += weight / sum * value);
        }
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

    use super::Strided;
    use crate::lanes::{LANES, exp, first};

    /// # Safety
    /// The processor has the features.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn see(
        (query, scale): (&[f32], f32),
        keys: [Strided<'_>; 2],
        values: [Strided<'_>; 2],
        scores: &mut Vec<f32>,
        seen: &mut [f32],
    ) {
        for key in keys.into_iter().flat_map(Strided::iter) {
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
            let rows = values.into_iter().flat_map(Strided::iter);
            for (value, weight) in rows.zip(scores.iter()) {
                // SAFETY: the masks end where the value does.
                let value =
                    unsafe { _mm512_maskz_loadu_ps(mask, value[index * LANES..].as_ptr()) };
                sum = _mm512_fmadd_ps(value, _mm512_set1_ps(*weight), sum);
            }
            // SAFETY: the mask ends where the part does.
            unsafe {
                _mm512_mask_storeu_ps(part.as_mut_ptr(), mask, _mm512_mul_ps(sum, inverse));
            }
        }
    }
}
