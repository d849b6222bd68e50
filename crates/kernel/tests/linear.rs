//! Every kernel against float64 sums over the same stored weights.

use half::{bf16, f16};
use imprompt_kernel::quantized::{INT4_GROUP, to_int4, to_int8};
use imprompt_kernel::{
    Activation, Finish, Instructions, Linear, Parallel, Serial, Weight, Weights,
};
use proptest::prelude::*;

/// Threads of the standard library, to see that parts of the work do not disturb each other.
struct Threads(usize);

impl Parallel for Threads {
    fn threads(&self) -> usize {
        self.0
    }

    fn run(&self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        let next = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..self.0 {
                scope.spawn(|| {
                    loop {
                        let part = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if part >= parts {
                            return;
                        }
                        work(part);
                    }
                });
            }
        });
    }
}

fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        values.push((state >> 8) as f32 / (1 << 23) as f32 - 1.0);
    }
    values
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    F32,
    F16,
    Bf16,
    Int8,
    Int4,
}

const INSTRUCTIONS: [Instructions; 3] =
    [Instructions::Avx512, Instructions::Amx, Instructions::AmxHigh];
const FORMS: [Form; 5] = [Form::F32, Form::F16, Form::Bf16, Form::Int8, Form::Int4];

/// Whether this processor multiplies rounded weights with rounded rows.
fn rounds_rows() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has_dots = std::arch::is_x86_feature_detected!("avx512vnni");
    #[cfg(not(target_arch = "x86_64"))]
    let has_dots = false;
    imprompt_kernel::is_supported() && has_dots
}

/// Stored weights and what they stand for.
struct Matrix {
    form: Form,
    values: Vec<u8>,
    scales: Vec<u8>,
    wide: Vec<f32>,
    outputs: usize,
    inputs: usize,
}

impl Matrix {
    fn new(form: Form, outputs: usize, inputs: usize) -> Self {
        let weights = noise(outputs * inputs, 7);
        let mut scales = Vec::new();
        let mut wide = weights.clone();
        let values = match form {
            Form::F32 => weights.iter().flat_map(|w| w.to_le_bytes()).collect(),
            Form::F16 => {
                wide = weights.iter().map(|&w| f16::from_f32(w).to_f32()).collect();
                weights.iter().flat_map(|&w| f16::from_f32(w).to_le_bytes()).collect()
            }
            Form::Bf16 => {
                wide = weights.iter().map(|&w| bf16::from_f32(w).to_f32()).collect();
                weights.iter().flat_map(|&w| bf16::from_f32(w).to_le_bytes()).collect()
            }
            Form::Int8 => {
                let rounded = to_int8(&weights, inputs);
                scales = rounded.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
                wide = (rounded.values.iter().enumerate())
                    .map(|(i, v)| f32::from(*v as i8) * rounded.scales[i / inputs])
                    .collect();
                rounded.values
            }
            Form::Int4 => {
                let rounded = to_int4(&weights);
                scales = rounded.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
                let nibbles =
                    rounded.values.iter().flat_map(|&v| [(v << 4) as i8 >> 4, v as i8 >> 4]);
                wide = (nibbles.enumerate())
                    .map(|(i, v)| f32::from(v) * rounded.scales[i / INT4_GROUP])
                    .collect();
                rounded.values
            }
        };
        Matrix { form, values, scales, wide, outputs, inputs }
    }

    fn weight(&self) -> Weight<'_> {
        let (values, scales) = (&self.values[..], &self.scales[..]);
        let weights = match self.form {
            Form::F32 => Weights::F32(values),
            Form::F16 => Weights::F16(values),
            Form::Bf16 => Weights::Bf16(values),
            Form::Int8 => Weights::Int8 { values, scales },
            Form::Int4 => Weights::Int4 { values, scales },
        };
        Weight { weights, outputs: self.outputs, inputs: self.inputs }
    }

    /// The rows as the kernels see them: rounded to 8 bits a block where the weights are.
    fn seen(&self, rows: &[f32]) -> Vec<f64> {
        let block = match self.form {
            Form::Int8 if rounds_rows() => 256,
            Form::Int4 if rounds_rows() => 128,
            _ => return rows.iter().map(|&x| f64::from(x)).collect(),
        };
        let rounded = |part: &[f32]| {
            let largest = part.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let scale = f64::from(largest / 127.0);
            let values = part.iter().map(|x| f64::from((x * inverse).round_ties_even()) * scale);
            values.collect::<Vec<_>>()
        };
        rows.chunks(self.inputs).flat_map(|row| row.chunks(block).flat_map(rounded)).collect()
    }
}

fn check(form: Form, rows: usize, inputs: usize, outputs: usize, threads: usize) {
    let inputs = if form == Form::Int4 { inputs.next_multiple_of(INT4_GROUP) } else { inputs };
    let matrix = Matrix::new(form, outputs, inputs);
    let given = noise(rows * inputs, 3);
    let (bias, residual) = (noise(outputs, 5), noise(rows * outputs, 11));
    let finish =
        Finish { bias: Some(&bias), activation: Some(Activation::Relu), residual: Some(&residual) };
    let seen = matrix.seen(&given);
    // On a processor without AMX all are one.
    for instructions in INSTRUCTIONS {
        // Two bfloat16 pieces of a number leave 2^-17 of it, and the product of two second ones, 2^-16, is left out.
        let is_high = instructions == Instructions::AmxHigh;
        let of_a_product = if is_high { 2f64.powi(-15) } else { 2e-6 };
        let tolerance = of_a_product * (inputs as f64).sqrt() + 1e-6;
        let mut out = vec![f32::NAN; rows * outputs];
        let linear =
            Linear { weight: matrix.weight(), finish, instructions, independent_rows: false };
        match threads {
            1 => linear.run(&given, &mut out, &Serial),
            _ => linear.run(&given, &mut out, &Threads(threads)),
        }
        for row in 0..rows {
            for output in 0..outputs {
                let products = seen[row * inputs..][..inputs]
                    .iter()
                    .zip(&matrix.wide[output * inputs..][..inputs])
                    .map(|(x, w)| x * f64::from(*w));
                let sum = products.sum::<f64>() + f64::from(bias[output]);
                let right = sum.max(0.0) + f64::from(residual[row * outputs + output]);
                let found = f64::from(out[row * outputs + output]);
                assert!(
                    (found - right).abs() <= tolerance,
                    "{form:?} {rows}x{inputs}x{outputs}, {instructions:?}: [{row}, {output}] is {found}, not {right}"
                );
            }
        }
    }
}

#[test]
fn all_sizes_around_the_kernels_borders() {
    for form in FORMS {
        for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 33, 40, 41, 55, 57] {
            check(form, rows, 64, 70, 2);
        }
        for inputs in [1, 15, 16, 17, 63, 65, 257, 511, 513, 1030, 2050] {
            check(form, 3, inputs, 33, 1);
            check(form, 50, inputs, 33, 1);
        }
        for outputs in [1, 15, 16, 17, 31, 32, 33, 48, 129, 300] {
            check(form, 1, 40, outputs, 2);
            check(form, 45, 40, outputs, 2);
        }
    }
}

#[test]
fn more_rows_than_are_done_at_once() {
    for form in FORMS {
        // 8 MiB of rows are 998 of this length.
        check(form, 1030, 2_100, 5, 2);
    }
}

/// Small layers stay on the caller's thread; these are shared out.
#[test]
fn layers_that_are_worth_several_threads() {
    for form in FORMS {
        for (rows, inputs, outputs) in
            [(1, 640, 1700), (5, 640, 900), (90, 320, 150), (60, 1030, 70)]
        {
            check(form, rows, inputs, outputs, 3);
        }
    }
}

#[test]
fn rows_do_not_depend_on_their_neighbours_in_few_bits() {
    let matrix = Matrix::new(Form::Int8, 96, 300);
    let given = noise(60 * 300, 3);
    let linear = Linear {
        weight: matrix.weight(),
        finish: Finish::default(),
        instructions: Instructions::default(),
        independent_rows: false,
    };
    let mut all = vec![0.0; 60 * 96];
    linear.run(&given, &mut all, &Serial);
    for row in 0..60 {
        let mut alone = vec![0.0; 96];
        linear.run(&given[row * 300..][..300], &mut alone, &Serial);
        for (alone, all) in alone.iter().zip(&all[row * 96..]) {
            assert!((alone - all).abs() <= 1e-5 * all.abs().max(1.0), "{alone}, {all}");
        }
    }
}

#[test]
fn independent_rows_are_the_same_bits_in_any_company() {
    if !imprompt_kernel::is_supported() {
        eprintln!("skipped: this processor has no AVX-512");
        return;
    }
    for form in FORMS {
        // 100 outputs are an odd number of squares, the last of them not whole.
        let (outputs, inputs, count) = (100, 1280, 150);
        let matrix = Matrix::new(form, outputs, inputs);
        let given = noise(count * inputs, 3);
        let residual = noise(count * outputs, 11);
        for instructions in INSTRUCTIONS {
            let run = |rows: std::ops::Range<usize>| {
                let finish = Finish {
                    bias: None,
                    activation: Some(Activation::Gelu),
                    residual: Some(&residual[rows.start * outputs..rows.end * outputs]),
                };
                let weight = matrix.weight();
                let linear = Linear { weight, finish, instructions, independent_rows: true };
                let mut out = vec![f32::NAN; rows.len() * outputs];
                linear.run(&given[rows.start * inputs..rows.end * inputs], &mut out, &Threads(2));
                out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let all = run(0..count);
            for (start, end) in [(0, 1), (3, 5), (0, 16), (7, 24), (20, 52), (50, 99), (149, 150)] {
                assert!(
                    run(start..end) == all[start * outputs..end * outputs],
                    "{form:?}, {instructions:?}: rows {start}..{end}"
                );
            }
        }
    }
}

#[test]
#[should_panic(expected = "the weights do not fill")]
fn short_weights_are_refused() {
    let weight = Weight { weights: Weights::F32(&[0; 12]), outputs: 2, inputs: 2 };
    let linear = Linear {
        weight,
        finish: Finish::default(),
        instructions: Instructions::default(),
        independent_rows: false,
    };
    linear.run(&[0.0; 2], &mut [0.0; 2], &Serial);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_size(form in 0usize..5, rows in 1usize..80, inputs in 1usize..400, outputs in 1usize..150) {
        check(FORMS[form], rows, inputs, outputs, 2);
    }
}
