//! Dot products of images with the float16 rows of label tables, in one pass at the speed of
//! memory.
//!
//! Rows are used where they lie, such as in a mapped file. Each is read once, whatever the number
//! of images, and widened to float32 in registers. A product depends on its row and its image
//! alone: not on the processor, the number of threads, or what else is computed
//! (`docs/interrogator.md`).
//!
//! `unsafe` is needed to call code for instructions that were found at run time, and for the blocks
//! of the inner loop.

mod instructions;
mod kernel;

use std::num::NonZero;
use std::sync::{Mutex, PoisonError};

use half::f16;

pub use instructions::Instructions;

/// Bytes of rows that a thread takes at a time: much more than taking them costs, and little
/// enough that threads end together.
const BLOCK_BYTES: usize = 256 << 10;

/// Bytes of rows that are worth a thread: some 100 microseconds of reading.
const THREAD_BYTES: usize = 4 << 20;

/// Most threads unless a number is asked for: more do not read faster from memory.
const MOST_THREADS: usize = 8;

/// Dot products of every image (float32 `[images, dimension]`) with every row of `tables` (each
/// float16 `[rows, dimension]`, row-major), in order: for each image one list over all tables.
///
/// `threads` is the most threads at work, the caller's among them; 0: one a core, at most 8. Small
/// tables take fewer.
///
/// # Panics
/// When `images` or a table is not a whole number of rows.
pub fn similarities(
    tables: &[&[f16]],
    images: &[f32],
    dimension: usize,
    threads: usize,
) -> Vec<Vec<f32>> {
    similarities_with(Instructions::best(), tables, images, dimension, threads)
}

/// [`similarities`] with the instructions given.
///
/// # Panics
/// As [`similarities`].
pub fn similarities_with(
    instructions: Instructions,
    tables: &[&[f16]],
    images: &[f32],
    dimension: usize,
    threads: usize,
) -> Vec<Vec<f32>> {
    if dimension == 0 || images.is_empty() {
        return Vec::new();
    }
    let whole = tables.iter().all(|rows| rows.len().is_multiple_of(dimension))
        && images.len().is_multiple_of(dimension);
    assert!(whole, "tables and images of rows of {dimension} values");
    let values: usize = tables.iter().map(|rows| rows.len()).sum();
    let mut results = vec![vec![0.0; values / dimension]; images.len() / dimension];
    let blocks = blocks(tables, &mut results, dimension);
    let threads = thread_count(threads, values * size_of::<f16>()).min(blocks.len());
    let blocks = Mutex::new(blocks.into_iter());
    let work = || {
        loop {
            // A lock that a panic left behind is as good as new: taking cannot be half done.
            let next = blocks.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(Block { rows, mut results }) = next else { break };
            instructions.block(rows, images, dimension, &mut results);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    results
}

fn thread_count(asked: usize, bytes: usize) -> usize {
    let most = match asked {
        0 => std::thread::available_parallelism().map_or(1, NonZero::get).min(MOST_THREADS),
        asked => asked,
    };
    most.min(bytes / THREAD_BYTES).max(1)
}

/// Some rows, and where their products with each image go.
struct Block<'a> {
    rows: &'a [f16],
    results: Vec<&'a mut [f32]>,
}

fn blocks<'a>(
    tables: &[&'a [f16]],
    results: &'a mut [Vec<f32>],
    dimension: usize,
) -> Vec<Block<'a>> {
    let row_bytes = dimension * size_of::<f16>();
    let most = (BLOCK_BYTES / row_bytes).max(1);
    let mut rest: Vec<&mut [f32]> = results.iter_mut().map(Vec::as_mut_slice).collect();
    let mut blocks = Vec::new();
    for rows in tables.iter().flat_map(|rows| rows.chunks(most * dimension)) {
        let count = rows.len() / dimension;
        let results = rest.iter_mut().filter_map(|rest| rest.split_off_mut(..count)).collect();
        blocks.push(Block { rows, results });
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of many magnitudes, the same ones every time.
    fn noise(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next() * (next() * 6.0).exp2()).collect()
    }

    fn halves(values: &[f32]) -> Vec<f16> {
        values.iter().map(|value| f16::from_f32(*value)).collect()
    }

    /// Written apart from the kernel: the order that the crate promises.
    fn expected(row: &[f16], image: &[f32]) -> f32 {
        let mut sums = [0.0_f32; 64];
        for (k, (a, b)) in row.iter().zip(image).enumerate() {
            sums[k % 64] = a.to_f32().mul_add(*b, sums[k % 64]);
        }
        for width in [32, 16, 8, 4, 2, 1] {
            for lane in 0..width {
                sums[lane] += sums[lane + width];
            }
        }
        sums[0]
    }

    #[test]
    fn every_path_gives_the_same_numbers() {
        let available = Instructions::available();
        #[cfg(target_arch = "x86_64")]
        assert!(available.len() > 1 || !std::arch::is_x86_feature_detected!("avx2"));
        for (dimension, row_count, image_count) in
            [(1, 5, 1), (7, 9, 2), (16, 4, 4), (31, 13, 5), (512, 11, 6), (768, 3, 9), (1030, 6, 1)]
        {
            let rows = halves(&noise(dimension * row_count, 1));
            let images = noise(dimension * image_count, 2);
            for instructions in &available {
                let (first, second) = rows.split_at(dimension * (row_count / 3));
                let all = similarities_with(*instructions, &[first, second], &images, dimension, 1);
                assert_eq!(all.len(), image_count);
                for (image, found) in images.chunks(dimension).zip(&all) {
                    let expected: Vec<f32> =
                        rows.chunks(dimension).map(|row| expected(row, image)).collect();
                    assert_eq!(found, &expected, "{instructions:?} {dimension}");
                }
            }
        }
    }

    #[test]
    fn threads_share_the_rows() {
        // 12 MiB: enough for three threads, with a last block that is not full.
        let (dimension, count) = (64, 98_307);
        let rows = halves(&noise(dimension * count, 3));
        let images = noise(dimension * 2, 4);
        let tables = [&rows[..dimension * 5], &[], &rows[dimension * 5..]];
        let alone = similarities(&tables, &images, dimension, 1);
        assert_eq!(alone[0].len(), count);
        assert_eq!(alone[1][count - 1], expected(&rows[dimension * (count - 1)..], &images[64..]));
        for threads in [0, 2, 3, 64] {
            assert_eq!(similarities(&tables, &images, dimension, threads), alone);
        }
    }

    #[test]
    fn threads_are_for_large_tables() {
        assert_eq!(thread_count(4, THREAD_BYTES * 2 - 1), 1);
        assert_eq!(thread_count(4, THREAD_BYTES * 3), 3);
        assert_eq!(thread_count(4, THREAD_BYTES * 30), 4);
        assert!((1..=MOST_THREADS).contains(&thread_count(0, usize::MAX)));
    }

    #[test]
    fn special_values_pass() {
        let row = [f16::INFINITY, f16::NAN, f16::MIN_POSITIVE, f16::from_bits(1), f16::MAX];
        for instructions in Instructions::available() {
            for (place, value) in row.into_iter().enumerate() {
                let mut rows = vec![f16::ZERO; 17];
                rows[place + 12] = value;
                let found = similarities_with(instructions, &[&rows], &[2.0; 17], 17, 1)[0][0];
                let expected = value.to_f32() * 2.0;
                assert!(found == expected || (found.is_nan() && expected.is_nan()));
            }
        }
    }

    #[test]
    fn nothing_gives_nothing() {
        assert!(similarities(&[], &[], 4, 0).is_empty());
        assert_eq!(similarities(&[], &[1.0; 8], 4, 0), vec![Vec::<f32>::new(); 2]);
        assert_eq!(similarities(&[&[]], &[1.0; 4], 4, 2), vec![Vec::<f32>::new()]);
    }
}
