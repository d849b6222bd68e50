//! Ranking: the reference's choice of the best labels by their similarities (`LabelTable._rank` and
//! `LabelTable.rank` of clip_interrogator.py). The similarities themselves are
//! `imprompt_similarity`'s.

use std::cmp::Reverse;

/// Independent sums of a dot product: enough for the widest vectors, and a fixed number, so that a
/// value depends on the numbers alone and not on the machine.
const LANES: usize = 16;

/// Values that are looked at together: mostly, none of them is among the best.
const BLOCK: usize = 32;

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

/// Indices of the `count` greatest values, greatest first; equal values in order of index.
pub fn rank_exact(similarities: &[f32], count: usize) -> Vec<usize> {
    let mut best = Best::new(count);
    best.add(similarities, 0, 1.0);
    best.indices()
}

/// The reference's ranking of `similarities`, in the order of the table's labels.
///
/// With at most `chunk_size` values it is [`rank_exact`], of the negated values if `reverse`.
/// Otherwise each chunk of `chunk_size` values keeps its best `chunk_size / chunks`, and those are
/// ranked once more. That is *not* the global ranking once `count` exceeds what a chunk keeps, and
/// the second ranking puts the most similar first even if `reverse`: both as the reference does.
pub fn rank(similarities: &[f32], chunk_size: usize, count: usize, reverse: bool) -> Vec<usize> {
    let stages = Stages::new(similarities.len(), chunk_size, count);
    let best = stages.finish(stages.begin(similarities, reverse));
    best.into_iter().map(|(index, _)| index).collect()
}

/// The two stages of [`rank`], the first of which may be done elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stages {
    /// Values of a chunk.
    pub chunk: usize,
    /// How many of each chunk are kept.
    pub keep: usize,
    count: usize,
    /// Whether what is kept is ranked once more.
    is_ranked_again: bool,
}

impl Stages {
    /// How the best `count` of `length` values are found.
    #[must_use]
    pub fn new(length: usize, chunk_size: usize, count: usize) -> Self {
        let chunk = chunk_size.max(1);
        let chunks = length.div_ceil(chunk);
        let is_ranked_again = chunks > 1;
        // The reference fails where a chunk would keep nothing.
        let keep = if is_ranked_again { (chunk / chunks).max(1) } else { count };
        Stages { chunk, keep, count, is_ranked_again }
    }

    /// What each chunk keeps of `similarities`, chunk after chunk: indices and values, of each chunk
    /// the best first, or the least if `reverse`.
    #[must_use]
    pub fn begin(&self, similarities: &[f32], reverse: bool) -> Vec<(usize, f32)> {
        let sign = if reverse { -1.0 } else { 1.0 };
        let best_of = |(number, chunk): (usize, &[f32])| {
            let mut kept = Best::new(self.keep);
            kept.add(chunk, number * self.chunk, sign);
            kept.indices().into_iter().map(|index| (index, similarities[index]))
        };
        similarities.chunks(self.chunk).enumerate().flat_map(best_of).collect()
    }

    /// The best of what [`Self::begin`] gives.
    #[must_use]
    pub fn finish(&self, mut kept: Vec<(usize, f32)>) -> Vec<(usize, f32)> {
        if self.is_ranked_again {
            let better = |(index, value): &(usize, f32)| Reverse(key(*value, *index));
            kept.sort_unstable_by_key(better);
        }
        kept.truncate(self.count);
        kept
    }
}

/// The greatest of the values added, equal ones by index.
struct Best {
    count: usize,
    /// Some of the values, the best among them: see [`key`].
    keys: Vec<u64>,
    /// Values below this are not among the best.
    least: f32,
}

/// A value and its place as one number: the greater, the better. Values are in the order of
/// [`f32::total_cmp`], but for -0.0, which is 0.0; of equal ones the lower index is better.
fn key(value: f32, index: usize) -> u64 {
    // Adding 0.0 makes -0.0 the 0.0 it is equal to.
    let bits = (value + 0.0).to_bits();
    let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    // More than 2^32 labels would be a table of terabytes.
    u64::from(ordered) << 32 | u64::from(!(index as u32))
}

impl Best {
    fn new(count: usize) -> Self {
        Best { count, keys: Vec::new(), least: f32::NEG_INFINITY }
    }

    /// Adds `sign * value` of each of `values`, the first of which has the index `first`.
    fn add(&mut self, values: &[f32], first: usize, sign: f32) {
        for (number, block) in values.chunks(BLOCK).enumerate() {
            // Without a way out on the way, so that it becomes vectors. NaN is not below.
            let below = |all: bool, value: &f32| all & (sign * value < self.least);
            if block.iter().fold(true, below) {
                continue;
            }
            let first = first + number * BLOCK;
            self.keys.extend(
                block.iter().enumerate().map(|(place, value)| key(sign * value, first + place)),
            );
            // Rarely enough that it costs little a value.
            if self.keys.len() >= 2 * self.count + 32 * BLOCK {
                self.cut();
            }
        }
    }

    /// Leaves the best.
    fn cut(&mut self) {
        if self.count < self.keys.len() {
            if self.count > 0 {
                let (_, least, _) =
                    self.keys.select_nth_unstable_by(self.count - 1, |a, b| b.cmp(a));
                let ordered = (*least >> 32) as u32;
                let bits = if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered };
                self.least = f32::from_bits(bits);
            }
            self.keys.truncate(self.count);
        }
    }

    /// Their indices, best first.
    fn indices(mut self) -> Vec<usize> {
        self.cut();
        self.keys.sort_unstable_by(|a, b| b.cmp(a));
        self.keys.into_iter().map(|key| !(key as u32) as usize).collect()
    }
}

/// Index of the greatest value, the lowest of equal ones; `None` when there is none.
pub fn first_greatest(values: impl Iterator<Item = f32>) -> Option<usize> {
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

    #[test]
    fn values_that_are_no_numbers_have_a_place() {
        let values = [1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN];
        assert_eq!(rank_exact(&values, 9), [1, 2, 0, 3, 4]);
        assert!(rank_exact(&values, 0).is_empty());
        assert_eq!(rank_exact(&[f32::NEG_INFINITY; 5000], 2), [0, 1]);
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

        /// Long enough that most values are passed over.
        #[test]
        fn long_rankings_too(seed in any::<u32>(), coarse in any::<bool>(), count in 0_usize..1500) {
            let mut state = seed;
            let values: Vec<f32> = (0..20_000).map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let value = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
                if coarse { (value * 50.0).round() } else { value }
            }).collect();
            let mut expected: Vec<usize> = (0..values.len()).collect();
            expected.sort_by(|a, b| (values[*b] + 0.0).total_cmp(&(values[*a] + 0.0)));
            let mut reverse = expected.clone();
            expected.truncate(count);
            prop_assert_eq!(&rank_exact(&values, count), &expected);
            reverse.sort_by(|a, b| values[*a].total_cmp(&values[*b]).then(a.cmp(b)));
            reverse.truncate(count);
            let reversed = rank(&values, 20_000, count, true);
            prop_assert!(reversed.iter().zip(&reverse).all(|(a, b)| values[*a] == values[*b]));
            prop_assert!(reversed.is_sorted_by(|a, b| values[*a] < values[*b] || a < b));
        }
    }
}
