//! A linear layer: which kernel, and how its work is parted.

use std::cell::RefCell;
use std::ops::Range;

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use crate::amx::{self, Amx};
use crate::quantized::{self, INT4_BLOCK, INT4_GROUP, ROW_BLOCK};
#[cfg(target_arch = "x86_64")]
use crate::rounded::Rows;
#[cfg(target_arch = "x86_64")]
use crate::tile::Line;
use crate::{Finish, Instructions};

/// A weight matrix `[outputs, inputs]`, row-major, as it lies in its file: little-endian bytes,
/// aligned or not.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// float32.
    F32(&'a [u8]),
    /// float16, widened as it is read.
    F16(&'a [u8]),
    /// bfloat16, widened as it is read.
    Bf16(&'a [u8]),
    /// 8 bits, see [`quantized`].
    Int8 {
        /// `[outputs, inputs]` bytes.
        values: &'a [u8],
        /// `[outputs]` float32.
        scales: &'a [u8],
    },
    /// 4 bits, see [`quantized`].
    Int4 {
        /// `[outputs, inputs / 2]` bytes.
        values: &'a [u8],
        /// `[outputs, inputs / INT4_GROUP]` float32.
        scales: &'a [u8],
    },
}

/// Weights and their shape.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// The values.
    pub weights: Weights<'a>,
    /// Rows of the matrix: values of a result row.
    pub outputs: usize,
    /// Columns of the matrix: values of a given row.
    pub inputs: usize,
}

impl Weight<'_> {
    /// Whether the slices are as long as the shape asks.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let Weight { outputs, inputs, .. } = *self;
        let count = outputs * inputs;
        match self.weights {
            Weights::F32(bytes) => bytes.len() == 4 * count,
            Weights::F16(bytes) | Weights::Bf16(bytes) => bytes.len() == 2 * count,
            Weights::Int8 { values, scales } => {
                values.len() == count && scales.len() == 4 * outputs
            }
            Weights::Int4 { values, scales } => {
                inputs % INT4_GROUP == 0
                    && values.len() == count / 2
                    && scales.len() == 4 * count / INT4_GROUP
            }
        }
    }

    /// Bytes of the values.
    fn bytes(&self) -> usize {
        match self.weights {
            Weights::F32(bytes) | Weights::F16(bytes) | Weights::Bf16(bytes) => bytes.len(),
            Weights::Int8 { values, .. } | Weights::Int4 { values, .. } => values.len(),
        }
    }

    /// Row `output` of the matrix as float32.
    fn row(&self, output: usize, row: &mut [f32]) {
        let inputs = self.inputs;
        let halves = |bytes: &[u8], widen: fn([u8; 2]) -> f32, row: &mut [f32]| {
            let (bytes, _) = bytes[2 * output * inputs..][..2 * inputs].as_chunks();
            row.iter_mut().zip(bytes).for_each(|(value, bytes)| *value = widen(*bytes));
        };
        match self.weights {
            Weights::F32(bytes) => {
                let (bytes, _) = bytes[4 * output * inputs..][..4 * inputs].as_chunks();
                let values = row.iter_mut().zip(bytes);
                values.for_each(|(value, bytes)| *value = f32::from_le_bytes(*bytes));
            }
            Weights::F16(bytes) => halves(bytes, |b| f16::from_le_bytes(b).to_f32(), row),
            Weights::Bf16(bytes) => halves(bytes, |b| bf16::from_le_bytes(b).to_f32(), row),
            Weights::Int8 { values, scales } => {
                let (scales, _) = scales.as_chunks();
                let scale = f32::from_le_bytes(scales[output]);
                for (value, byte) in row.iter_mut().zip(&values[output * inputs..][..inputs]) {
                    *value = scale * f32::from(*byte as i8);
                }
            }
            Weights::Int4 { values, scales } => {
                let (scales, _) = scales.as_chunks();
                for (input, value) in row.iter_mut().enumerate() {
                    let index = output * inputs + input;
                    let scale = f32::from_le_bytes(scales[index / INT4_GROUP]);
                    *value = scale * quantized::nibble(values, index);
                }
            }
        }
    }
}

/// What runs parts of the work side by side.
pub trait Parallel {
    /// How many parts run at once at most.
    fn threads(&self) -> usize;

    /// Calls `work` with each of `0..parts`, on any threads, in any order, and returns when all
    /// are done.
    fn run(&self, parts: usize, work: &(dyn Fn(usize) + Sync));
}

/// One thread: the caller's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Parallel for Serial {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..parts).for_each(work);
    }
}

/// A linear layer: `finish(rows * weight^T)`.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// `[outputs, inputs]`.
    pub weight: Weight<'a>,
    /// What follows the product.
    pub finish: Finish<'a>,
    /// What it may be computed with.
    pub instructions: Instructions,
    /// Whether a row's result is the same bits whatever rows are beside it, and however many. Few rows take
    /// longer then, for all go the way of many.
    pub independent_rows: bool,
}

/// Products, and bytes of weights, below which a layer is not worth waking other threads: some tens
/// of microseconds of one.
const FEW_PRODUCTS: usize = 1 << 20;
const FEW_BYTES: usize = 256 << 10;
/// Rows above which laying them and the weights out anew, panel by panel, pays.
const FEW_ROWS: usize = 40;
/// Bytes of rows that are worked on at once, so that they stay in the cache. The more of them,
/// the less it costs to lay the weights out.
const BYTES_AT_ONCE: usize = 8 << 20;

impl Linear<'_> {
    /// The layer of `rows` `[n, inputs]`, written to `out` `[n, outputs]`.
    ///
    /// A row's result does not depend on the rows beside it; unless [`Self::independent_rows`], the order in which its
    /// products are summed depends on how many rows there are.
    ///
    /// # Panics
    /// When a slice has not the length its shape asks: the caller has checked shapes.
    pub fn run(&self, rows: &[f32], out: &mut [f32], parallel: &dyn Parallel) {
        let Weight { outputs, inputs, .. } = self.weight;
        assert!(self.weight.is_whole(), "the weights do not fill [{outputs}, {inputs}]");
        let count = rows.len().checked_div(inputs).unwrap_or(0);
        assert_eq!((rows.len(), out.len()), (count * inputs, count * outputs), "rows and results");
        let Finish { bias, residual, .. } = self.finish;
        assert!(bias.is_none_or(|bias| bias.len() == outputs), "the bias is [{outputs}]");
        assert!(residual.is_none_or(|all| all.len() == out.len()), "the residual is the results'");
        if count == 0 || outputs == 0 {
            return;
        }
        let is_small = count * inputs * outputs <= FEW_PRODUCTS && self.weight.bytes() <= FEW_BYTES;
        let parallel = if is_small { &Serial } else { parallel };
        let out = Out { start: out.as_mut_ptr(), outputs, rows: count };
        #[cfg(target_arch = "x86_64")]
        if crate::is_supported() {
            let vectors = crate::multiplies_bytes();
            match self.weight.weights {
                Weights::Int8 { .. } if !vectors => self.portable(rows, &out, parallel),
                Weights::Int4 { .. } if !vectors => self.portable(rows, &out, parallel),
                _ => self.vectors(rows, &out, parallel),
            }
            return;
        }
        self.portable(rows, &out, parallel);
    }

    /// With whatever the compiler makes of it: for processors the kernels do not know.
    fn portable(&self, rows: &[f32], out: &Out, parallel: &dyn Parallel) {
        let Weight { outputs, inputs, .. } = self.weight;
        let part = outputs.div_ceil(4 * parallel.threads()).max(1);
        parallel.run(outputs.div_ceil(part), &|index| {
            let mut weight = vec![0.0; inputs];
            for output in index * part..outputs.min((index + 1) * part) {
                self.weight.row(output, &mut weight);
                for (place, row) in rows.chunks_exact(inputs).enumerate() {
                    let product: f32 = row.iter().zip(&weight).map(|(x, w)| x * w).sum();
                    // SAFETY: parts have different outputs.
                    let value = unsafe { out.part(place, output..output + 1) };
                    value[0] = product;
                    self.finish.apply_portable(value, place, output, outputs);
                }
            }
        });
    }

    #[cfg(target_arch = "x86_64")]
    fn vectors(&self, rows: &[f32], out: &Out, parallel: &dyn Parallel) {
        let count = out.rows;
        let few = |most| count <= most && !self.independent_rows;
        let with_amx = self.instructions != Instructions::Avx512 && amx::is_usable();
        if with_amx && !few(amx::few_rows(&self.weight)) {
            SCRATCH.with_borrow_mut(|scratch| {
                self.piece_by_piece(rows, out, amx::BYTES_AT_ONCE, |linear, rows, out| {
                    // SAFETY: AMX is usable, asked above.
                    unsafe { linear.many_in_tiles::<Amx>(rows, &mut scratch.lines, out, parallel) };
                });
            });
            return;
        }
        match self.weight.weights {
            Weights::F32(_) | Weights::F16(_) | Weights::Bf16(_) if few(FEW_ROWS) => {
                self.few(rows, out, parallel);
            }
            Weights::Int8 { .. } if few(8) => SCRATCH.with_borrow_mut(|scratch| {
                // SAFETY: the caller asked for the features.
                unsafe {
                    scratch.rounded.round(rows, self.weight.inputs, ROW_BLOCK);
                    scratch.rounded.correct();
                }
                self.few_rounded(&scratch.rounded, out, parallel);
            }),
            Weights::Int4 { .. } => SCRATCH.with_borrow_mut(|scratch| {
                // SAFETY: as above.
                unsafe {
                    scratch.rounded.round(rows, self.weight.inputs, INT4_BLOCK);
                    scratch.rounded.part_in_pairs();
                }
                self.few_rounded(&scratch.rounded, out, parallel);
            }),
            Weights::Int8 { .. } => SCRATCH.with_borrow_mut(|scratch| {
                self.piece_by_piece(rows, out, BYTES_AT_ONCE, |linear, rows, out| {
                    linear.many_rounded(rows, scratch, out, parallel);
                });
            }),
            _ => SCRATCH.with_borrow_mut(|scratch| {
                self.piece_by_piece(rows, out, BYTES_AT_ONCE, |linear, rows, out| {
                    linear.many(rows, &mut scratch.packed, out, parallel);
                });
            }),
        }
    }

    /// Calls `run` with the layer of so many rows at a time as have about `bytes`.
    #[cfg(target_arch = "x86_64")]
    fn piece_by_piece(
        &self,
        rows: &[f32],
        out: &Out,
        bytes: usize,
        mut run: impl FnMut(&Linear<'_>, &[f32], &Out),
    ) {
        let Weight { outputs, inputs, .. } = self.weight;
        let at_once = (bytes / 4 / inputs).max(512);
        // Of about equal size.
        let at_once = out.rows.div_ceil(out.rows.div_ceil(at_once));
        for first in (0..out.rows).step_by(at_once) {
            let count = at_once.min(out.rows - first);
            let residual = self.finish.residual;
            let residual = residual.map(|all| &all[first * outputs..][..count * outputs]);
            let linear = Linear { finish: Finish { residual, ..self.finish }, ..*self };
            let start = out.start.wrapping_add(first * outputs);
            let rows = &rows[first * inputs..][..count * inputs];
            run(&linear, rows, &Out { start, outputs, rows: count });
        }
    }
}

/// The results, which parts of the work write side by side.
pub(crate) struct Out {
    pub(crate) start: *mut f32,
    pub(crate) outputs: usize,
    pub(crate) rows: usize,
}

// SAFETY: it is written through `part` alone, whose callers give each part of the work places
// of its own.
unsafe impl Sync for Out {}

impl Out {
    /// `columns` of `row`.
    ///
    /// # Safety
    /// Nobody else has any of them while the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, row: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(row < self.rows && columns.start <= columns.end && columns.end <= self.outputs);
        // SAFETY: inside of `[rows, outputs]`, and the caller's alone.
        unsafe {
            let start = self.start.add(row * self.outputs + columns.start);
            std::slice::from_raw_parts_mut(start, columns.len())
        }
    }
}

/// Memory that a thread keeps for the next layer.
#[cfg(target_arch = "x86_64")]
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) packed: Vec<f32>,
    pub(crate) lines: Vec<Line>,
    pub(crate) words: Vec<i32>,
    pub(crate) rounded: Rows,
}

#[cfg(target_arch = "x86_64")]
thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[cfg(target_arch = "x86_64")]
const _: () = assert!(INT4_BLOCK == 2 * INT4_GROUP);
