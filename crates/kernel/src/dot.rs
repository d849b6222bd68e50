//! Few rows: each weight is read once, where it lies, and meets all rows.
//!
//! Both operands lie along the inputs, so the products are summed lane by lane and
//! the lanes at the end. For one to eight rows this runs at the memory's speed.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::lanes::{Brain, Half, LANES, Single, Stored, first, first_bytes};
use crate::linear::{Linear, Out, Parallel, Weights};
use crate::quantized::{INT4_GROUP, ROW_BLOCK};
use crate::rounded::Rows;

/// How far ahead of its use a weight is asked for, in bytes: a page's worth of
/// the streams that the processor follows by itself ends before that.
const AHEAD: usize = 1024;
/// As [`AHEAD`], of weights in 8 and 4 bits on Intel's processors, which then wait in the second cache.
const FAR_AHEAD: usize = 8192;

/// Some weight rows and some rows, all `inputs` long.
#[derive(Clone, Copy)]
struct Block {
    /// The first weight row; the others follow it.
    weights: *const u8,
    /// The first row; the others follow it.
    rows: *const f32,
    inputs: usize,
}

impl Block {
    /// `[R][M]` products, each in `U` sums: one alone would wait for itself.
    ///
    /// # Safety
    /// `weights` has `R` rows of `inputs`, `rows` has `M`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn products<S: Stored, const R: usize, const M: usize, const U: usize>(
        self,
    ) -> [[f32; M]; R] {
        let mut sums = [[[_mm512_setzero_ps(); U]; M]; R];
        let whole = self.inputs / (U * LANES) * (U * LANES);
        for at in (0..whole).step_by(U * LANES) {
            for part in 0..U {
                // SAFETY: what the caller promises; the lanes are inside of the rows.
                unsafe { self.step::<S, R, M, U>(&mut sums, at + part * LANES, part, !0) };
            }
        }
        for at in (whole..self.inputs).step_by(LANES) {
            // SAFETY: as above, and the mask ends where the rows do.
            unsafe { self.step::<S, R, M, U>(&mut sums, at, 0, first(self.inputs - at)) };
        }
        sums.map(|sums| {
            sums.map(|parts| {
                let sum = parts.into_iter().reduce(|a, b| _mm512_add_ps(a, b));
                _mm512_reduce_add_ps(sum.unwrap_or(_mm512_setzero_ps()))
            })
        })
    }

    /// The lanes of `mask` from input `at` on.
    ///
    /// # Safety
    /// As [`Block::products`]; the lanes are inside of the rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn step<S: Stored, const R: usize, const M: usize, const U: usize>(
        self,
        sums: &mut [[[__m512; U]; M]; R],
        at: usize,
        part: usize,
        mask: __mmask16,
    ) {
        let mut given = [_mm512_setzero_ps(); M];
        for (row, given) in given.iter_mut().enumerate() {
            let start = self.rows.wrapping_add(row * self.inputs + at);
            // SAFETY: row `row` of `M`, what the caller promises.
            *given = unsafe { _mm512_maskz_loadu_ps(mask, start) };
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: row `row` of `R`, what the caller promises. A prefetch reads nothing.
            let weight = unsafe {
                let start = self.weights.wrapping_add((row * self.inputs + at) * S::BYTES);
                _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(AHEAD).cast());
                S::load(start, mask)
            };
            for (sum, given) in sums.iter_mut().zip(given) {
                sum[part] = _mm512_fmadd_ps(weight, given, sum[part]);
            }
        }
    }
}

/// Rows that meet weights together, `count` of them from the first on.
struct Few<'a> {
    linear: &'a Linear<'a>,
    bytes: &'a [u8],
    rows: &'a [f32],
    out: &'a Out,
}

impl Few<'_> {
    /// Outputs `columns` of all rows.
    ///
    /// # Safety
    /// The processor has the features; `columns` are the caller's alone.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn run<S: Stored>(&self, columns: Range<usize>) {
        let count = self.out.rows;
        // Rows in groups of about equal size: so many as the registers hold.
        let group = count.div_ceil(count.div_ceil(8));
        for row in (0..count).step_by(group) {
            let here = group.min(count - row);
            macro_rules! sizes {
                ($($m:literal => $r:literal, $u:literal);+) => {
                    match here {
                        // SAFETY: what the caller promises.
                        $($m => unsafe { self.group::<S, $r, $m, $u>(row, &columns) },)+
                        _ => unreachable!("groups have one to eight rows"),
                    }
                };
            }
            sizes!(1 => 4, 2; 2 => 4, 2; 3 => 4, 1; 4 => 4, 1; 5 => 4, 1; 6 => 4, 1; 7 => 3, 1; 8 => 3, 1);
        }
        for row in 0..count {
            // SAFETY: what the caller promises.
            let values = unsafe { self.out.part(row, columns.clone()) };
            self.linear.finish.apply(values, row, columns.start, self.out.outputs);
        }
    }

    /// The products of `M` rows from `row` on.
    ///
    /// # Safety
    /// As [`Few::run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn group<S: Stored, const R: usize, const M: usize, const U: usize>(
        &self,
        row: usize,
        columns: &Range<usize>,
    ) {
        let inputs = self.linear.weight.inputs;
        let block = |column: usize| Block {
            weights: self.bytes[column * inputs * S::BYTES..].as_ptr(),
            rows: self.rows[row * inputs..].as_ptr(),
            inputs,
        };
        let mut column = columns.start;
        while column + R <= columns.end {
            // SAFETY: there are `R` weight rows from `column` on and `M` rows from `row` on.
            let products = unsafe { block(column).products::<S, R, M, U>() };
            for index in 0..M {
                // SAFETY: what the caller promises.
                let out = unsafe { self.out.part(row + index, column..column + R) };
                out.iter_mut().zip(products).for_each(|(out, product)| *out = product[index]);
            }
            column += R;
        }
        for column in column..columns.end {
            // SAFETY: as above, with one weight row.
            let [product] = unsafe { block(column).products::<S, 1, M, U>() };
            for (index, product) in product.into_iter().enumerate() {
                // SAFETY: what the caller promises.
                unsafe { self.out.part(row + index, column..column + 1)[0] = product };
            }
        }
    }
}

/// Outputs of a part of the work: several parts a thread, each of a few hundred kilobytes.
fn part(outputs: usize, threads: usize) -> usize {
    outputs.div_ceil(8 * threads).next_multiple_of(24).clamp(24, 480)
}

impl Linear<'_> {
    /// The layer of a few rows, over float weights.
    pub(crate) fn few(&self, rows: &[f32], out: &Out, parallel: &dyn Parallel) {
        let outputs = self.weight.outputs;
        let part = part(outputs, parallel.threads());
        parallel.run(outputs.div_ceil(part), &|index| {
            let columns = index * part..outputs.min((index + 1) * part);
            // SAFETY: `vectors` asked for the features; parts have columns of their own.
            unsafe {
                match self.weight.weights {
                    Weights::F32(bytes) => {
                        Few { linear: self, bytes, rows, out }.run::<Single>(columns);
                    }
                    Weights::F16(bytes) => {
                        Few { linear: self, bytes, rows, out }.run::<Half>(columns);
                    }
                    Weights::Bf16(bytes) => {
                        Few { linear: self, bytes, rows, out }.run::<Brain>(columns);
                    }
                    Weights::Int8 { .. } | Weights::Int4 { .. } => {
                        unreachable!("rounded weights meet rounded rows")
                    }
                }
            }
        });
    }

    /// The layer of a few rows, over rounded weights.
    pub(crate) fn few_rounded(&self, rows: &Rows, out: &Out, parallel: &dyn Parallel) {
        let outputs = self.weight.outputs;
        let part = part(outputs, parallel.threads());
        parallel.run(outputs.div_ceil(part), &|index| {
            let columns = index * part..outputs.min((index + 1) * part);
            // SAFETY: `vectors` asked for the features; parts have columns of their own.
            unsafe { self.rounded_columns(rows, out, columns) };
        });
    }

    /// # Safety
    /// The processor has the features; `columns` are the caller's alone.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn rounded_columns(&self, rows: &Rows, out: &Out, columns: Range<usize>) {
        let group = out.rows.div_ceil(out.rows.div_ceil(8));
        for row in (0..out.rows).step_by(group) {
            macro_rules! sizes {
                ($($m:literal),+) => {
                    match group.min(out.rows - row) {
                        // SAFETY: what the caller promises.
                        $($m => unsafe { self.rounded_group::<$m>(rows, out, row, &columns) },)+
                        _ => unreachable!("groups have one to eight rows"),
                    }
                };
            }
            sizes!(1, 2, 3, 4, 5, 6, 7, 8);
        }
        for row in 0..out.rows {
            // SAFETY: what the caller promises.
            let values = unsafe { out.part(row, columns.clone()) };
            self.finish.apply(values, row, columns.start, out.outputs);
        }
    }

    /// The products of `M` rows from `row` on.
    ///
    /// # Safety
    /// As [`Linear::rounded_columns`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn rounded_group<const M: usize>(
        &self,
        rows: &Rows,
        out: &Out,
        row: usize,
        columns: &Range<usize>,
    ) {
        let inputs = self.weight.inputs;
        let given = Given::<M>::new(rows, row);
        for column in columns.clone() {
            let products = match self.weight.weights {
                Weights::Int8 { values, scales } => {
                    let (scales, _) = scales.as_chunks();
                    let scale = f32::from_le_bytes(scales[column]);
                    let values = &values[column * inputs..][..inputs];
                    given.times_int8(values).map(|product| product * scale)
                }
                Weights::Int4 { values, scales } => {
                    let groups = inputs / INT4_GROUP;
                    let values = &values[column * inputs / 2..][..inputs / 2];
                    given.times_int4(values, &scales[column * groups * 4..][..groups * 4])
                }
                _ => unreachable!("float weights meet float rows"),
            };
            for (index, product) in products.into_iter().enumerate() {
                // SAFETY: what the caller promises.
                unsafe { out.part(row + index, column..column + 1)[0] = product };
            }
        }
    }
}

/// `M` rows in 8 bits that follow each other.
#[derive(Clone, Copy)]
struct Given<'a, const M: usize> {
    values: &'a [i8],
    scales: &'a [f32],
    corrections: &'a [i32],
    asks_far: bool,
}

impl<'a, const M: usize> Given<'a, M> {
    fn new(rows: &'a Rows, row: usize) -> Self {
        let corrections = rows.corrections.len() / rows.rows();
        Given {
            values: &rows.values[row * rows.padded..][..M * rows.padded],
            scales: &rows.scales[row * rows.blocks..][..M * rows.blocks],
            corrections: &rows.corrections[row * corrections..][..M * corrections],
            asks_far: crate::is_intel(),
        }
    }

    /// Asks for the weights that come some steps later.
    #[inline(always)]
    fn ask_ahead(self, start: *const u8) {
        // SAFETY: a prefetch reads nothing.
        unsafe {
            match self.asks_far {
                true => _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(FAR_AHEAD).cast()),
                false => _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(AHEAD).cast()),
            }
        }
    }

    /// The products with a row of int8 weights, but for their scale.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn times_int8(self, weights: &[u8]) -> [f32; M] {
        let mut sums = [_mm512_setzero_ps(); M];
        let blocks = self.scales.len() / M;
        for block in 0..blocks {
            let mut dots = [_mm512_setzero_si512(); M];
            for at in (block * ROW_BLOCK..(block + 1) * ROW_BLOCK).step_by(64) {
                let left = weights.len().saturating_sub(at);
                // SAFETY: the weights' mask ends where they do; rows are padded to blocks.
                unsafe {
                    let start = weights.as_ptr().wrapping_add(at);
                    self.ask_ahead(start);
                    let signed = _mm512_maskz_loadu_epi8(first_bytes(left), start.cast());
                    let weight = _mm512_xor_si512(signed, _mm512_set1_epi8(-128));
                    for (row, dot) in dots.iter_mut().enumerate() {
                        let at = row * blocks * ROW_BLOCK + at;
                        let given = _mm512_loadu_epi8(self.values.as_ptr().add(at));
                        *dot = _mm512_dpbusd_epi32(*dot, weight, given);
                    }
                }
            }
            for (row, (sum, dot)) in sums.iter_mut().zip(dots).enumerate() {
                let place = row * blocks + block;
                // SAFETY: a block has as many corrections as it has words.
                let dot = unsafe {
                    let start = self.corrections.as_ptr().add(place * ROW_BLOCK / 4);
                    (0..4).fold(dot, |dot, part| {
                        _mm512_add_epi32(dot, _mm512_loadu_epi32(start.add(LANES * part)))
                    })
                };
                let scale = _mm512_set1_ps(self.scales[place]);
                *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, *sum);
            }
        }
        sums.map(|sum| _mm512_reduce_add_ps(sum))
    }

    /// The products with a row of int4 weights, 128 of them at a time with two scales.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn times_int4(self, weights: &[u8], scales: &[u8]) -> [f32; M] {
        let low_nibbles = _mm512_set1_epi8(15);
        // Each scale is that of eight lanes.
        let spread = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
        let mut sums = [_mm512_setzero_ps(); M];
        let blocks = self.scales.len() / M;
        for block in 0..blocks {
            let at = 64 * block;
            let left = weights.len() - at;
            let groups = (scales.len() / 4 - 2 * block).min(2);
            // SAFETY: the masks end where the weights and the scales do; a row has 128 bytes and
            // sixteen corrections a block.
            unsafe {
                let start = weights.as_ptr().add(at);
                self.ask_ahead(start);
                let signed = _mm512_maskz_loadu_epi8(first_bytes(left), start.cast());
                let packed = _mm512_xor_si512(signed, _mm512_set1_epi8(-120));
                let even = _mm512_and_si512(packed, low_nibbles);
                let odd = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low_nibbles);
                let scale = scales.as_ptr().add(8 * block).cast();
                let scale = _mm_maskz_loadu_ps(first(groups) as u8, scale);
                let scale = _mm512_permutexvar_ps(spread, _mm512_castps128_ps512(scale));
                for (row, sum) in sums.iter_mut().enumerate() {
                    let place = row * blocks + block;
                    let given = self.values.as_ptr().add(128 * place);
                    let dot = _mm512_loadu_epi32(self.corrections.as_ptr().add(16 * place));
                    let dot = _mm512_dpbusd_epi32(dot, even, _mm512_loadu_epi8(given));
                    let dot = _mm512_dpbusd_epi32(dot, odd, _mm512_loadu_epi8(given.add(64)));
                    let scale = _mm512_mul_ps(scale, _mm512_set1_ps(self.scales[place]));
                    *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, *sum);
                }
            }
        }
        sums.map(|sum| _mm512_reduce_add_ps(sum))
    }
}
