//! Attention behind a prefix, and to a cache, against float64.

use imprompt_kernel::{Attention, CachedAttention, Instructions, PrefixAttention, Queries, Serial};

fn noise(count: usize, seed: u64) -> Vec<f32> {
    let wave = |i: usize| ((i as u64 * 7919 + seed * 104_729) % 4099) as f32 / 2048.0 - 1.0;
    (0..count).map(wave).collect()
}

/// On a processor without AMX all are one.
const INSTRUCTIONS: [Instructions; 3] =
    [Instructions::Avx512, Instructions::Amx, Instructions::AmxHigh];

/// Values are 1 at most, and so are their weights together.
fn tolerance(instructions: Instructions) -> f64 {
    if instructions == Instructions::AmxHigh { 2f64.powi(-15) } else { 1e-6 }
}

/// Softmax of the scores times the values, by column.
fn right(query: &[f32], seen: &[(&[f32], &[f32])]) -> Vec<f64> {
    let dim = query.len();
    let dot = |key: &[f32]| -> f64 {
        query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum()
    };
    let weights: Vec<f64> =
        seen.iter().map(|(key, _)| (dot(key) / (dim as f64).sqrt()).exp()).collect();
    let total: f64 = weights.iter().sum();
    let column =
        |at: usize| seen.iter().zip(&weights).map(|((_, v), w)| w / total * f64::from(v[at])).sum();
    (0..dim).map(column).collect()
}

fn check(heads: usize, dim: usize, prefix: usize, sequences: usize, length: usize) {
    for instructions in INSTRUCTIONS {
        check_with(instructions, heads, dim, prefix, [sequences, length]);
    }
}

fn check_with(
    instructions: Instructions,
    heads: usize,
    dim: usize,
    prefix: usize,
    [sequences, length]: [usize; 2],
) {
    let width = heads * dim;
    let (keys, values) =
        (noise(sequences * length * width, 1), noise(sequences * length * width, 2));
    let (prefix_keys, prefix_values) = (noise(prefix * width, 3), noise(prefix * width, 4));
    let queries = noise(sequences * length * width, 5);
    let attention = PrefixAttention {
        heads,
        head_dim: dim,
        prefix_keys: &prefix_keys,
        prefix_values: &prefix_values,
        keys: &keys,
        values: &values,
        length,
        instructions,
    };
    let mut all = vec![f32::NAN; queries.len()];
    attention.run(Queries::All(&queries), &mut all, &Serial);
    for row in 0..sequences * length {
        for head in 0..heads {
            let (sequence, place) = (row / length, row % length);
            let query = &queries[row * width + head * dim..][..dim];
            let of_prefix = |at: usize| (head * prefix + at) * dim;
            let own = |at: usize| (sequence * length + at) * width + head * dim;
            let seen: Vec<(&[f32], &[f32])> = (0..prefix)
                .map(|at| (&prefix_keys[of_prefix(at)..], &prefix_values[of_prefix(at)..]))
                .chain((0..=place).map(|at| (&keys[own(at)..], &values[own(at)..])))
                .collect();
            for (at, right) in right(query, &seen).into_iter().enumerate() {
                let found = f64::from(all[row * width + head * dim + at]);
                assert!(
                    (found - right).abs() < tolerance(instructions),
                    "{instructions:?}: row {row}, head {head}: {found}, {right}"
                );
            }
        }
    }
    let places: Vec<i64> = (0..sequences).map(|s| (s % length) as i64).collect();
    let row_of = |s: usize| s * length + s % length;
    let pooled: Vec<f32> =
        (0..sequences).flat_map(|s| queries[row_of(s) * width..][..width].to_vec()).collect();
    let mut some = vec![f32::NAN; pooled.len()];
    attention.run(Queries::Pooled(&pooled, &places), &mut some, &Serial);
    for (sequence, found) in some.chunks_exact(width).enumerate() {
        for (found, right) in found.iter().zip(&all[row_of(sequence) * width..]) {
            assert!(
                (found - right).abs() < tolerance(instructions) as f32,
                "{instructions:?}: sequence {sequence}: {found}, {right}"
            );
        }
    }
}

#[test]
fn tokens_see_the_prefix_and_those_before_them() {
    for (heads, dim) in [(1, 64), (3, 20), (2, 7), (12, 16)] {
        for prefix in [0, 1, 30] {
            for (sequences, length) in [(1, 1), (1, 9), (11, 3), (60, 5)] {
                check(heads, dim, prefix, sequences, length);
            }
        }
    }
}

#[test]
fn every_query_sees_all_keys_of_its_entry() {
    for (heads, dim) in [(1, 64), (3, 20), (2, 7), (2, 88)] {
        for (batch, queries, keys) in [(1, 1, 1), (2, 17, 16), (1, 33, 50), (3, 40, 70), (2, 1, 33)]
        {
            let cases = INSTRUCTIONS.into_iter().map(|instructions| (false, instructions));
            for (is_shared, instructions) in cases.chain([(true, Instructions::Amx)]) {
                let width = heads * dim;
                let given = noise(if is_shared { 1 } else { batch } * queries * width, 5);
                let (all_keys, values) =
                    (noise(batch * keys * width, 1), noise(batch * keys * width, 2));
                let attention = Attention {
                    heads,
                    head_dim: dim,
                    keys: &all_keys,
                    values: &values,
                    keys_each: keys,
                    queries_each: queries,
                    instructions,
                };
                let mut all = vec![f32::NAN; batch * queries * width];
                attention.run(&given, &mut all, &Serial);
                for row in 0..batch * queries {
                    for head in 0..heads {
                        let entry = row / queries;
                        let place = if is_shared { row % queries } else { row };
                        let query = &given[place * width + head * dim..][..dim];
                        let key = |at: usize| (entry * keys + at) * width + head * dim;
                        let seen: Vec<(&[f32], &[f32])> = (0..keys)
                            .map(|at| (&all_keys[key(at)..], &values[key(at)..]))
                            .collect();
                        for (at, right) in right(query, &seen).into_iter().enumerate() {
                            let found = f64::from(all[row * width + head * dim + at]);
                            assert!(
                                (found - right).abs() < tolerance(instructions),
                                "{batch} {queries} {keys} {instructions:?}: row {row}, head {head}: {found}, {right}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
#[should_panic]
fn an_index_behind_the_sequence_is_refused() {
    let ones = [1.0; 4];
    let attention = PrefixAttention {
        heads: 1,
        head_dim: 2,
        prefix_keys: &[],
        prefix_values: &[],
        keys: &ones,
        values: &ones,
        length: 2,
        instructions: Instructions::default(),
    };
    attention.run(Queries::Pooled(&ones[..2], &[2]), &mut [0.0; 2], &Serial);
}

/// `sequences` of `each` queries, of which each sees one position more than the one before.
fn check_cached([heads, dim]: [usize; 2], [sequences, each]: [usize; 2], length: usize) {
    let (width, max_length) = (heads * dim, length + 3);
    let slots = sequences * width * max_length;
    let (mut keys, mut values) = (noise(slots, 1), noise(slots, 2));
    let queries = noise(sequences * each * width, 3);
    let sees =
        |query: usize, at: usize| at != 1 && at <= (length - 1).saturating_sub(each - 1 - query);
    let row = |query: usize| (0..length).map(move |at| sees(query, at) || length < each);
    let mask: Vec<bool> = (0..sequences).flat_map(|_| (0..each).flat_map(row)).collect();
    // What nobody sees may be anything.
    for at in (0..slots / dim).filter(|at| at % max_length >= length) {
        keys[at * dim..][..dim].fill(f32::NAN);
        values[at * dim..][..dim].fill(f32::NAN);
    }
    for mask in [None, Some(&mask[..])] {
        let attention = CachedAttention {
            heads,
            head_dim: dim,
            max_length,
            keys: &keys,
            values: &values,
            length,
            mask,
            scale: 0.3,
        };
        let mut found = vec![f32::NAN; queries.len()];
        attention.run(&queries, &mut found, &Serial);
        for (index, found) in found.into_iter().enumerate() {
            let (row, head, column) = (index / width, index % width / dim, index % dim);
            let query = &queries[row * width + head * dim..][..dim];
            let slot = (row / each * heads + head) * max_length;
            let (mut total, mut sum) = (0.0, 0.0);
            for at in (0..length).filter(|at| mask.is_none_or(|mask| mask[row * length + at])) {
                let key = &keys[(slot + at) * dim..][..dim];
                let dot = |(q, k): (&f32, &f32)| f64::from(*q) * f64::from(*k);
                let weight =
                    (query.iter().zip(key).map(dot).sum::<f64>() * f64::from(0.3f32)).exp();
                total += weight;
                sum += weight * f64::from(values[(slot + at) * dim + column]);
            }
            let right = sum / total;
            assert!((f64::from(found) - right).abs() < 2e-6, "{row}, {head}: {found}, {right}");
        }
    }
}

#[test]
fn queries_see_their_positions_of_the_cache() {
    for shape in [[1, 64], [3, 20], [2, 7], [12, 80], [2, 128]] {
        for rows in [[1, 1], [3, 1], [2, 5]] {
            for length in [3, 16, 40, 577] {
                check_cached(shape, rows, length);
            }
        }
    }
}

#[test]
#[should_panic]
fn a_mask_of_other_rows_is_refused() {
    let ones = [1.0; 4];
    let attention = CachedAttention {
        heads: 1,
        head_dim: 2,
        max_length: 2,
        keys: &ones,
        values: &ones,
        length: 2,
        mask: Some(&[true]),
        scale: 1.0,
    };
    attention.run(&ones[..2], &mut [0.0; 2], &Serial);
}
