//! Everything around the unit, on any processor with AVX-512, over a unit in plain Rust; and the real
//! one against it where it is there.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::pieces::pieces;
use super::{Amx, SQUARE, Sums, TILE_ROWS, Unit, attention, is_usable};
use crate::attention::{Part, Strided};
use crate::linear::{Linear, Out, Serial, Weight, Weights};
use crate::quantized::{ROW_BLOCK, to_int8};
use crate::{Activation, Finish, Instructions};

/// The unit's contract, word for word.
struct Plain;

/// Output, row and place in the sums of each result; of a narrow strip those of the first half of the rows.
fn results(narrow: bool) -> impl Iterator<Item = (usize, usize, usize)> {
    let rows = if narrow { TILE_ROWS } else { SQUARE };
    (0..SQUARE).flat_map(move |output| {
        (0..rows).map(move |row| {
            let tile = 2 * (output / TILE_ROWS) + row / TILE_ROWS;
            (output, row, (tile * TILE_ROWS + output % TILE_ROWS) * TILE_ROWS + row % TILE_ROWS)
        })
    })
}

impl Unit for Plain {
    unsafe fn scope(work: impl FnOnce()) {
        work();
    }

    unsafe fn floats<const W: usize, const X: usize>(
        weights: *const u16,
        rows: *const u16,
        depth: usize,
        sums: &mut Sums<f32>,
    ) {
        // SAFETY: the tiles are there, the caller says.
        let (weights, rows) = unsafe {
            let count = depth * 2 * TILE_ROWS * 32;
            (
                std::slice::from_raw_parts(weights, count * W),
                std::slice::from_raw_parts(rows, count * X),
            )
        };
        let value = |tiles: &[u16], tile: usize, line: usize, at: usize| {
            f64::from(bf16::from_bits(tiles[(tile * TILE_ROWS + line) * 32 + at]))
        };
        for (output, row, place) in results(false) {
            let mut sum = 0.0;
            for tile in 0..depth {
                for (w, x) in (0..W).flat_map(|w| (0..X - w).map(move |x| (w, x))) {
                    for at in 0..32 {
                        let weight = (tile * W + w) * 2 + output / TILE_ROWS;
                        let given = (tile * X + x) * 2 + row / TILE_ROWS;
                        sum += value(weights, weight, output % TILE_ROWS, at)
                            * value(rows, given, at / 2, 2 * (row % TILE_ROWS) + at % 2);
                    }
                }
            }
            sums.0[place] = sum as f32;
        }
    }

    unsafe fn narrow_floats<const W: usize, const X: usize>(
        weights: [*const u16; 2],
        rows: *const u16,
        depth: usize,
        sums: &mut [Sums<f32>; 2],
    ) {
        for (weights, sums) in weights.into_iter().zip(sums) {
            let mut all = Sums::new();
            // SAFETY: as here; the strip has room for the rows that are not there.
            unsafe { Self::floats::<W, X>(weights, rows, depth, &mut all) };
            sums.0.fill(f32::NAN);
            results(true).for_each(|(_, _, place)| sums.0[place] = all.0[place]);
        }
    }

    unsafe fn bytes(
        weights: *const i8,
        rows: *const i8,
        depth: usize,
        sums: &mut Sums<i32>,
        narrow: bool,
    ) {
        // SAFETY: as in `floats`.
        let (weights, rows) = unsafe {
            let count = depth * 2 * TILE_ROWS * 64;
            (std::slice::from_raw_parts(weights, count), std::slice::from_raw_parts(rows, count))
        };
        sums.0.fill(i32::MIN);
        for (output, row, place) in results(narrow) {
            let products = (0..depth * 64).map(|at| {
                let (tile, at) = (2 * (at / 64), at % 64);
                let weight = (tile + output / TILE_ROWS) * TILE_ROWS + output % TILE_ROWS;
                let given = (tile + row / TILE_ROWS) * TILE_ROWS + at / 4;
                let given = rows[given * 64 + 4 * (row % TILE_ROWS) + at % 4];
                i32::from(weights[weight * 64 + at]) * i32::from(given)
            });
            sums.0[place] = products.sum();
        }
    }
}

fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A layer's results by `U`.
fn run<U: Unit>(linear: &Linear<'_>, rows: &[f32]) -> Vec<f32> {
    let Weight { outputs, inputs, .. } = linear.weight;
    let count = rows.len() / inputs;
    let mut results = vec![f32::NAN; count * outputs];
    let out = Out { start: results.as_mut_ptr(), outputs, rows: count };
    // SAFETY: the callers ask for what `U` needs.
    unsafe { linear.many_in_tiles::<U>(rows, &mut Vec::new(), &out, &Serial) };
    results
}

/// Both precisions of float32's products.
const BOTH: [Instructions; 2] = [Instructions::Amx, Instructions::AmxHigh];

/// Calls `check` for layers of all forms of weights: name, layer, rows, and the values that weights and rows stand for.
fn layers(check: impl Fn(&str, &Linear<'_>, &[f32], &[f32])) {
    for instructions in BOTH {
        layers_with(instructions, &check);
    }
}

fn layers_with(instructions: Instructions, check: &impl Fn(&str, &Linear<'_>, &[f32], &[f32])) {
    let shapes = [
        (1, 1, 1),
        (7, 31, 5),
        (16, 32, 16),
        (17, 33, 31),
        (32, 64, 32),
        (33, 257, 33),
        (50, 1030, 70),
        (97, 2050, 129),
    ];
    for (rows, inputs, outputs) in shapes {
        let given = noise(rows * inputs, 3);
        let weights = noise(outputs * inputs, 7);
        let (bias, residual) = (noise(outputs, 5), noise(rows * outputs, 11));
        let finish = Finish {
            bias: Some(&bias),
            activation: Some(Activation::Relu),
            residual: Some(&residual),
        };
        let linear = |weights| Linear {
            weight: Weight { weights, outputs, inputs },
            finish,
            instructions,
            independent_rows: false,
        };
        let name = |form: &str| format!("{instructions:?} {form} {rows}x{inputs}x{outputs}");
        let bytes =
            |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
        let stored = bytes(&weights);
        check(&name("f32"), &linear(Weights::F32(&stored)), &given, &weights);
        let halves: Vec<f16> = weights.iter().map(|&w| f16::from_f32(w)).collect();
        let stored: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
        let wide: Vec<f32> = halves.iter().map(|h| h.to_f32()).collect();
        check(&name("f16"), &linear(Weights::F16(&stored)), &given, &wide);
        let halves: Vec<bf16> = weights.iter().map(|&w| bf16::from_f32(w)).collect();
        let stored: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
        let wide: Vec<f32> = halves.iter().map(|h| h.to_f32()).collect();
        check(&name("bf16"), &linear(Weights::Bf16(&stored)), &given, &wide);
        let rounded = to_int8(&weights, inputs);
        let scales = bytes(&rounded.scales);
        let wide: Vec<f32> = (rounded.values.iter().enumerate())
            .map(|(i, v)| f32::from(*v as i8) * rounded.scales[i / inputs])
            .collect();
        let seen = round(&given, inputs);
        let weights = Weights::Int8 { values: &rounded.values, scales: &scales };
        // The rows are rounded again to what they are.
        check(&name("int8"), &linear(weights), &seen, &wide);
    }
}

/// Rows as they meet int8 weights.
fn round(rows: &[f32], inputs: usize) -> Vec<f32> {
    let block = |block: &[f32]| {
        let largest = block.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
        block.iter().map(|x| (x / scale).round_ties_even() * scale).collect::<Vec<_>>()
    };
    rows.chunks(inputs).flat_map(|row| row.chunks(ROW_BLOCK).flat_map(block)).collect()
}

fn is_right(name: &str, linear: &Linear<'_>, rows: &[f32], weights: &[f32], found: &[f32]) {
    let Weight { outputs, inputs, .. } = linear.weight;
    let Finish { bias, residual, .. } = linear.finish;
    for (index, found) in found.iter().enumerate() {
        let (row, output) = (index / outputs, index % outputs);
        let pairs =
            rows[row * inputs..][..inputs].iter().zip(&weights[output * inputs..][..inputs]);
        let sum: f64 = pairs.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        let right = (sum + f64::from(bias.unwrap()[output])).max(0.0);
        let right = right + f64::from(residual.unwrap()[index]);
        let of_a_product = match (linear.instructions, linear.weight.weights) {
            (Instructions::AmxHigh, Weights::F32(_) | Weights::F16(_) | Weights::Bf16(_)) => {
                2f64.powi(-15)
            }
            _ => 8e-7,
        };
        let tolerance = of_a_product * (inputs as f64).sqrt() + 5e-7;
        assert!(
            (f64::from(*found) - right).abs() <= tolerance,
            "{name}: [{row}, {output}] is {found}, not {right}"
        );
    }
}

#[test]
fn layers_are_right_around_any_unit() {
    if !crate::multiplies_bytes() {
        eprintln!("skipped: this processor has no AVX-512 with VNNI");
        return;
    }
    layers(|name, linear, rows, weights| {
        is_right(name, linear, rows, weights, &run::<Plain>(linear, rows));
    });
}

#[test]
fn layers_are_right_with_amx() {
    if !is_usable() {
        eprintln!("skipped: this processor has no AMX");
        return;
    }
    layers(|name, linear, rows, weights| {
        is_right(name, linear, rows, weights, &run::<Amx>(linear, rows));
    });
}

/// Queries that see `keys` all, and each some of its own.
fn attention_is_right<U: Unit>(
    instructions: Instructions,
    (dim, keys, queries): (usize, usize, usize),
) {
    let tolerance = if instructions == Instructions::AmxHigh { 1e-5 } else { 5e-7 };
    let (heads, head) = (3, 1);
    let width = heads * dim;
    let columns = head * dim..(head + 1) * dim;
    let given = noise(queries * width, 3);
    let shared = [5, 7].map(|seed| noise(keys * width, seed));
    let own = [9, 11].map(|seed| noise(queries * width, seed));
    let side = |rows| Strided { rows, stride: width, dim };
    let mut results = vec![f32::NAN; queries * width];
    let out = Out { start: results.as_mut_ptr(), outputs: width, rows: queries };
    let part = Part {
        shared: shared.each_ref().map(|rows| side(&rows[columns.start..])),
        own: own.each_ref().map(|rows| side(&rows[columns.start..])),
        queries: side(&given[columns.start..]),
        rows: 0..queries,
        columns: columns.clone(),
        out: &out,
    };
    // Threes of which each sees those before it and itself.
    let sees = |row: usize| row / 3 * 3..row + 1;
    // SAFETY: the callers ask for what `U` needs.
    unsafe { attention::run::<U>(&part, sees, instructions) };
    let row = |rows: &[f32], row: usize| rows[row * width..][columns.clone()].to_vec();
    for (index, found) in results.chunks(width).enumerate() {
        let query = row(&given, index);
        let all = |of: usize| {
            let shared = (0..keys).map(|key| row(&shared[of], key));
            shared.chain(sees(index).map(|key| row(&own[of], key))).collect::<Vec<_>>()
        };
        let score = |key: &Vec<f32>| -> f64 {
            query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum()
        };
        let weights: Vec<f64> =
            all(0).iter().map(|key| (score(key) / (dim as f64).sqrt()).exp()).collect();
        let total: f64 = weights.iter().sum();
        for at in 0..dim {
            let values = all(1);
            let right: f64 =
                values.iter().zip(&weights).map(|(v, w)| f64::from(v[at]) * w / total).sum();
            let found = f64::from(found[columns.start + at]);
            assert!(
                (found - right).abs() < tolerance,
                "{instructions:?} {dim} {keys} [{index}, {at}]: {found}, {right}"
            );
        }
        assert!(found[..columns.start].iter().all(|x| x.is_nan()), "another head was written");
    }
}

#[test]
fn attention_is_right_around_any_unit() {
    if !crate::is_supported() {
        eprintln!("skipped: this processor has no AVX-512");
        return;
    }
    for shape in [(20, 16, 16), (64, 50, 33), (88, 33, 47)] {
        for instructions in BOTH {
            attention_is_right::<Plain>(instructions, shape);
            if is_usable() {
                attention_is_right::<Amx>(instructions, shape);
            }
        }
    }
}

#[test]
fn every_product_that_counts_is_taken() {
    if !is_usable() {
        eprintln!("skipped: this processor has no AMX");
        return;
    }
    // All of one sign, so that nothing that is left out is hidden by what cancels.
    let positive = |seed| noise(32 * 32, seed).into_iter().map(|x| 1.5 + x).collect::<Vec<f32>>();
    let (given, weights) = (positive(3), positive(7));
    let stored: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    let weight = Weight { weights: Weights::F32(&stored), outputs: 32, inputs: 32 };
    // Two pieces leave 2^-17 of either number, and the product of what is behind the first ones, 2^-16.
    for (instructions, bound) in BOTH.into_iter().zip([2.5e-7, 2f64.powi(-15)]) {
        let linear =
            Linear { weight, finish: Finish::default(), instructions, independent_rows: false };
        for count in [16, 32] {
            let found = run::<Amx>(&linear, &given[..count * 32]);
            for (index, found) in found.into_iter().enumerate() {
                let (row, output) = (index / 32, index % 32);
                let pairs = given[row * 32..][..32].iter().zip(&weights[output * 32..][..32]);
                let right: f64 = pairs.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                let error = (f64::from(found) / right - 1.0).abs();
                assert!(
                    error < bound,
                    "{instructions:?} [{row}, {output}] is off by {error:e} of itself"
                );
            }
        }
    }
}

#[test]
fn pieces_add_up_to_the_number() {
    if !crate::is_supported() {
        eprintln!("skipped: this processor has no AVX-512");
        return;
    }
    let mut numbers = noise(4096 - 8, 9);
    for (index, number) in numbers.iter_mut().enumerate() {
        *number *= 2f32.powi(index as i32 % 200 - 100);
    }
    numbers.extend([0.0, -0.0, 1.0, -1.0, 65_504.0, 3.0e38, f32::EPSILON, 1.0 + f32::EPSILON]);
    numbers.extend([f32::NAN, f32::from_bits(0x7fff_ffff), f32::from_bits(0xffff_ffff)]);
    numbers.resize(numbers.len().next_multiple_of(32), 0.0);
    for chunk in numbers.chunks_exact(32) {
        // SAFETY: AVX-512, asked above; sixteen floats and 64 bytes each.
        let (parts, two) = unsafe {
            let lanes = [_mm512_loadu_ps(chunk.as_ptr()), _mm512_loadu_ps(chunk[16..].as_ptr())];
            let bits = |part| std::mem::transmute::<__m512i, [u16; 32]>(part);
            (pieces::<3>(lanes).map(bits), pieces::<2>(lanes).map(bits))
        };
        for (at, number) in chunk.iter().enumerate() {
            // Pairs are of an input and the one sixteen behind it.
            let place = 2 * (at % 16) + at / 16;
            let sum = |parts: &[[u16; 32]]| -> f64 {
                parts.iter().map(|part| f64::from(bf16::from_bits(part[place]))).sum()
            };
            let number = f64::from(*number);
            let (all, two) = (sum(&parts), sum(&two));
            assert!(all == number || (all.is_nan() && number.is_nan()), "{number} became {all}");
            let is_near = (two - number).abs() <= number.abs() * 2f64.powi(-17);
            assert!(is_near || (two.is_nan() && number.is_nan()), "{number} became {two}");
        }
    }
}

#[test]
fn numbers_that_are_none_stay_so() {
    if !crate::multiplies_bytes() {
        eprintln!("skipped: this processor has no AVX-512 with VNNI");
        return;
    }
    let stored: Vec<u8> = noise(64 * 3, 7).iter().flat_map(|w| w.to_le_bytes()).collect();
    let weight = Weight { weights: Weights::F32(&stored), outputs: 3, inputs: 64 };
    let linear = Linear {
        weight,
        finish: Finish::default(),
        instructions: Instructions::Amx,
        independent_rows: false,
    };
    let mut given = noise(64 * 40, 3);
    given[64 * 20 + 5] = f32::from_bits(0x7fff_ffff);
    given[64 * 30] = f32::INFINITY;
    // A weight of float16 that is none, all of its bits set.
    let halves: Vec<u8> =
        [0x3c00u16, 0x7fff, 0x3c00].iter().flat_map(|h| h.to_le_bytes()).collect();
    let weight = Weight { weights: Weights::F16(&halves), outputs: 3, inputs: 1 };
    let odd = Linear {
        weight,
        finish: Finish::default(),
        instructions: Instructions::Amx,
        independent_rows: false,
    };
    assert!(run::<Plain>(&odd, &[2.0])[1].is_nan());
    let plain = run::<Plain>(&linear, &given);
    let found = if is_usable() { run::<Amx>(&linear, &given) } else { plain.clone() };
    for results in [plain, found] {
        for (row, results) in results.chunks(3).enumerate() {
            let odd = results.iter().all(|x| !x.is_finite());
            assert_eq!(odd, [20, 30].contains(&row), "row {row}: {results:?}");
        }
    }
}
