//! Ranking: cosines of an image with the float16 rows of a label table, and the reference's choice
//! of the best of them (`LabelTable._rank` and `LabelTable.rank` of clip_interrogator.py).

use std::cmp::Ordering;

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Rows widened to float32 at a time: few enough that they stay in the first-level cache.
const BLOCK_ROWS: usize = 8;

/// Independent sums of a dot product: enough for the widest vectors, and a fixed number, so that a
/// value depends on the numbers alone and not on the machine.
const LANES: usize = 16;

/// Dot product of two float32 vectors of one length, summed in a fixed order.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (a_blocks, b_blocks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_blocks.zip(b_blocks) {
        for lane in 0..LANES {
            sums[lane] += x[lane] * y[lane];
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0] + tail
}

/// Appends to `similarities` the dot product of `image` (float32 `[D]`) with every row of `rows`
/// (float16 `[n, D]`, row-major). Rows are widened to float32; the image is not rounded.
pub fn append_similarities(rows: &[f16], image: &[f32], similarities: &mut Vec<f32>) {
    let dimension = image.len();
    if dimension == 0 {
        return;
    }
    similarities.reserve(rows.len() / dimension);
    let mut widened = vec![0.0_f32; BLOCK_ROWS * dimension];
    for block in rows.chunks(BLOCK_ROWS * dimension) {
        let widened = &mut widened[..block.len()];
        block.convert_to_f32_slice(widened);
        similarities.extend(widened.chunks_exact(dimension).map(|row| dot(row, image)));
    }
}

/// Indices of the `count` greatest values, greatest first; equal values in order of index.
pub fn rank_exact(similarities: &[f32], count: usize) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..similarities.len()).collect();
    keep_best(&mut indices, count, |index| similarities[index]);
    indices
}

/// The reference's ranking of `similarities`, in the order of the table's labels.
///
/// With at most `chunk_size` values it is [`rank_exact`], of the negated values if `reverse`.
/// Otherwise each chunk of `chunk_size` values keeps its best `chunk_size / chunks`, and those are
/// ranked once more. That is *not* the global ranking once `count` exceeds what a chunk keeps, and
/// the second ranking puts the most similar first even if `reverse`: both as the reference does.
pub fn rank(similarities: &[f32], chunk_size: usize, count: usize, reverse: bool) -> Vec<usize> {
    let sign = if reverse { -1.0 } else { 1.0 };
    let chunk_size = chunk_size.max(1);
    let chunks = similarities.len().div_ceil(chunk_size);
    if chunks <= 1 {
        let mut indices: Vec<usize> = (0..similarities.len()).collect();
        keep_best(&mut indices, count, |index| sign * similarities[index]);
        return indices;
    }
    // The reference fails where a chunk would keep nothing.
    let keep = (chunk_size / chunks).max(1);
    let mut pool = Vec::with_capacity(keep * chunks);
    for start in (0..similarities.len()).step_by(chunk_size) {
        let end = similarities.len().min(start + chunk_size);
        let mut indices: Vec<usize> = (start..end).collect();
        keep_best(&mut indices, keep, |index| sign * similarities[index]);
        pool.append(&mut indices);
    }
    keep_best(&mut pool, count, |index| similarities[index]);
    pool
}

/// Cuts `indices` to the `count` with the greatest `value`, best first, ties to the lowest index.
fn keep_best(indices: &mut Vec<usize>, count: usize, value: impl Fn(usize) -> f32) {
    // Adding 0.0 makes -0.0 the 0.0 it is equal to.
    let order = |a: &usize, b: &usize| -> Ordering {
        (value(*b) + 0.0).total_cmp(&(value(*a) + 0.0)).then(a.cmp(b))
    };
    if count < indices.len() {
        if count > 0 {
            indices.select_nth_unstable_by(count - 1, order);
        }
        indices.truncate(count);
    }
    indices.sort_unstable_by(order);
}

/// Index of the greatest value, the lowest of equal ones; `None` when there is none.
pub(crate) fn first_greatest(values: impl Iterator<Item = f32>) -> Option<usize> {
    let mut best: Option<(usize, f32)> = None;
    for (index, value) in values.enumerate() {
        if best.is_none_or(|(_, greatest)| value > greatest) {
            best = Some((index, value));
        }
    }
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_dot_product_takes_every_element() {
        for length in 0..70 {
            let a: Vec<f32> = (0..length).map(|i| i as f32).collect();
            let expected: f32 = a.iter().map(|x| x * 2.0).sum();
            assert_eq!(dot(&a, &vec![2.0; length]), expected, "length {length}");
        }
    }

    #[test]
    fn rows_are_widened_and_the_image_is_not_rounded() {
        let rows =
            [f16::from_f32(0.5), f16::from_f32(-2.0), f16::from_f32(1.0), f16::from_f32(0.25)];
        let mut out = vec![7.0];
        append_similarities(&rows, &[0.1, 1.0], &mut out);
        assert_eq!(out, [7.0, 0.5 * 0.1 - 2.0, 0.1 + 0.25]);
    }

    #[test]
    fn ties_go_to_the_lowest_index() {
        assert_eq!(rank_exact(&[1.0, 3.0, 3.0, 0.0, -0.0, 3.0], 4), [1, 2, 5, 0]);
        assert_eq!(rank_exact(&[-0.0, 0.0], 2), [0, 1]);
        assert_eq!(first_greatest([1.0, 2.0, 2.0].into_iter()), Some(1));
        assert_eq!(first_greatest([].into_iter()), None);
    }

    #[test]
    fn each_chunk_keeps_its_own_best() {
        // Two chunks of three: each keeps one, so 8 is lost although it is the second best.
        assert_eq!(rank(&[9.0, 8.0, 1.0, 2.0, 3.0], 3, 3, false), [0, 4]);
        // A table of exactly one chunk is ranked whole.
        assert_eq!(rank(&[9.0, 8.0, 1.0], 3, 2, false), [0, 1]);
    }

    #[test]
    fn the_second_ranking_ignores_reverse() {
        assert_eq!(rank(&[5.0, -1.0, 4.0], 3, 2, true), [1, 2]);
        assert_eq!(rank(&[5.0, -1.0, 4.0, 3.0, -2.0, 0.0, 1.0, 2.0], 4, 2, true), [3, 5]);
    }

    proptest! {
        #[test]
        fn ranking_is_a_stable_sort(values in prop::collection::vec(-3_i8..3, 0..200), count in 0_usize..220) {
            let values: Vec<f32> = values.into_iter().map(f32::from).collect();
            let mut expected: Vec<usize> = (0..values.len()).collect();
            expected.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
            expected.truncate(count);
            prop_assert_eq!(&rank_exact(&values, count), &expected);
            prop_assert_eq!(&rank(&values, 200, count, false), &expected);
        }
    }
}
