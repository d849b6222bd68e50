//! Attention without a cache: of pictures, and of many short sequences behind one shared prefix.

use std::ops::Range;

use crate::linear::Out;
use crate::{Instructions, Parallel, Serial};

/// Attention in which every query sees all keys of its batch entry.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// `[batch * keys_each, heads * head_dim]`.
    pub keys: &'a [f32],
    /// `[batch * keys_each, heads * head_dim]`.
    pub values: &'a [f32],
    /// Keys of a batch entry.
    pub keys_each: usize,
    /// Queries of a batch entry.
    pub queries_each: usize,
    /// What it may be computed with.
    pub instructions: Instructions,
}

impl Attention<'_> {
    /// What `queries` `[batch * queries_each, heads * head_dim]` see: softmax of
    /// `query . key / sqrt(head_dim)` times the values, `[batch * queries_each, heads * head_dim]`. Queries of one batch
    /// entry serve every batch entry of the keys.
    ///
    /// # Panics
    /// When a slice has not the length its shape asks: the caller has checked shapes.
    pub fn run(&self, queries: &[f32], out: &mut [f32], parallel: &dyn Parallel) {
        let Attention { keys_each, queries_each, .. } = *self;
        let width = self.heads * self.head_dim;
        let batch = self.keys.len() / (keys_each * width);
        assert_eq!(self.keys.len(), self.values.len());
        assert_eq!(self.keys.len(), batch * keys_each * width, "keys of whole batch entries");
        assert_eq!(out.len(), batch * queries_each * width, "results");
        let is_shared = queries.len() == queries_each * width;
        assert!(is_shared || queries.len() == out.len(), "queries");
        let is_small = batch * keys_each * queries_each * width <= FEW_PRODUCTS;
        let parallel = if is_small { &Serial } else { parallel };
        let out = Out { start: out.as_mut_ptr(), outputs: width, rows: batch * queries_each };
        parallel.run(batch * self.heads, &|part| {
            let (entry, head) = (part / self.heads, part % self.heads);
            let first = entry * keys_each * width + head * self.head_dim;
            let last = (entry + 1) * keys_each * width;
            let side = |rows| Strided { rows, stride: width, dim: self.head_dim };
            let query = if is_shared { 0 } else { entry * queries_each * width };
            let columns = head * self.head_dim..(head + 1) * self.head_dim;
            let part = Part {
                shared: [side(&self.keys[first..last]), side(&self.values[first..last])],
                own: [side(&[]), side(&[])],
                queries: side(&queries[query + columns.start..]),
                rows: entry * queries_each..(entry + 1) * queries_each,
                columns,
                out: &out,
            };
            part.run(|_| 0..0, self.instructions);
        });
    }
}

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
    /// What it may be computed with.
    pub instructions: Instructions,
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
        let each = if matches!(queries, Queries::All(_)) { self.length } else { 1 };
        // Heads are parts of their own, so that one long sequence is shared out too.
        parallel.run(groups * self.heads, &|part| {
            let (group, head) = (part / self.heads, part % self.heads);
            let sequences = group * SEQUENCES..sequences.min((group + 1) * SEQUENCES);
            let size = self.prefix_keys.len() / self.heads;
            let of_prefix = head * size..(head + 1) * size;
            let columns = head * self.head_dim..(head + 1) * self.head_dim;
            let side = |rows, stride| Strided { rows, stride, dim: self.head_dim };
            let part = Part {
                shared: [
                    side(&self.prefix_keys[of_prefix.clone()], self.head_dim),
                    side(&self.prefix_values[of_prefix], self.head_dim),
                ],
                own: [
                    side(&self.keys[columns.start..], width),
                    side(&self.values[columns.start..], width),
                ],
                queries: side(&rows[sequences.start * each * width + columns.start..], width),
                rows: sequences.start * each..sequences.end * each,
                columns,
                out: &out,
            };
            let own = |row: usize| match queries {
                Queries::All(_) => row / self.length * self.length..row + 1,
                Queries::Pooled(_, places) => {
                    let start = row * self.length;
                    start..start + places[row] as usize + 1
                }
            };
            part.run(own, self.instructions);
        });
    }
}

/// A head's queries and what they see.
pub(crate) struct Part<'a> {
    /// Keys and values that all of them see.
    pub(crate) shared: [Strided<'a>; 2],
    /// Keys and values of which each sees some.
    pub(crate) own: [Strided<'a>; 2],
    /// From the first on.
    pub(crate) queries: Strided<'a>,
    /// Where the results are.
    pub(crate) rows: Range<usize>,
    pub(crate) columns: Range<usize>,
    pub(crate) out: &'a Out,
}

impl Part<'_> {
    /// Computes all; `own` gives what of the own keys the query of a result's row sees.
    fn run(&self, own: impl Fn(usize) -> Range<usize>, instructions: Instructions) {
        #[cfg(target_arch = "x86_64")]
        if instructions != Instructions::Avx512 && crate::amx::attention::pays(self) {
            // SAFETY: `pays` says that AMX is usable; the results are this part's.
            unsafe { crate::amx::attention::run::<crate::amx::Amx>(self, own, instructions) };
            return;
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = instructions;
        let prefix = Prefix::new(self.shared);
        let mut scores = Vec::new();
        for (query, row) in self.queries.iter().zip(self.rows.clone()) {
            // SAFETY: each part has a head of its rows.
            let seen = unsafe { self.out.part(row, self.columns.clone()) };
            let own = self.own.map(|side| side.part(own(row)));
            see(query, &prefix, own, &mut scores, seen);
        }
    }
}

/// One query's view of the prefix and of the tokens `own`.
fn see(
    query: &[f32],
    prefix: &Prefix<'_>,
    own: [Strided<'_>; 2],
    scores: &mut Vec<f32>,
    seen: &mut [f32],
) {
    let scale = 1.0 / (query.len() as f32).sqrt();
    scores.clear();
    #[cfg(target_arch = "x86_64")]
    if crate::is_supported() {
        // SAFETY: the processor has the features.
        unsafe { vectors::see((query, scale), prefix, own.into(), scores, seen) };
        return;
    }
    let [keys, values] = own;
    for key in prefix.keys.iter().chain(keys.iter()) {
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

/// Keys and values that all queries of a part see.
struct Prefix<'a> {
    #[cfg_attr(target_arch = "x86_64", allow(dead_code))]
    keys: Strided<'a>,
    values: Strided<'a>,
    /// How many they are.
    length: usize,
    /// The keys as `[head_dim, padded]`, a multiple of sixteen: a query meets sixteen at once.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    columns: Vec<f32>,
}

impl<'a> Prefix<'a> {
    fn new([keys, values]: [Strided<'a>; 2]) -> Self {
        let length = keys.len();
        let padded = length.next_multiple_of(16);
        let mut columns = vec![0.0; keys.dim * padded];
        for (place, key) in keys.iter().enumerate() {
            for (at, value) in key.iter().enumerate() {
                columns[at * padded + place] = *value;
            }
        }
        Prefix { keys, values, length, columns }
    }
}

/// Rows of `dim` that begin `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub(crate) rows: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) dim: usize,
}

impl<'a> Strided<'a> {
    /// How many they are.
    pub(crate) fn len(self) -> usize {
        self.rows.len().div_ceil(self.stride)
    }

    /// The rows of `range`.
    pub(crate) fn part(self, range: Range<usize>) -> Self {
        let end = (range.end * self.stride).min(self.rows.len());
        Strided { rows: &self.rows[(range.start * self.stride).min(end)..end], ..self }
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = &'a [f32]> {
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
