//! Linear layers of the real sizes, in GFLOP/s and in bytes of weights a second, on one thread or on
//! all: a row is a token that is decoded, many rows are a batch of texts or a picture.
//!
//! `cargo bench -p imprompt-kernel --bench linear [-- PART OF A LINE]`
#![allow(missing_docs)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use half::f16;
use imprompt_kernel::quantized::{Quantized, to_int4, to_int8};
use imprompt_kernel::{Finish, Instructions, Linear, Parallel, Weight, Weights, has_amx};

struct Threads(usize);

impl Parallel for Threads {
    fn threads(&self) -> usize {
        self.0
    }

    fn run(&self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let run = || {
            loop {
                let part = next.fetch_add(1, Ordering::Relaxed);
                if part >= parts {
                    return;
                }
                work(part);
            }
        };
        std::thread::scope(|scope| {
            (1..self.0).for_each(|_| drop(scope.spawn(run)));
            run();
        });
    }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn main() {
    let asked = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    for (inputs, outputs) in [(768, 768), (768, 3072), (3072, 768), (2560, 10_240)] {
        let values: Vec<f32> =
            (0..inputs * outputs).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
        let floats = bytes_of(&values);
        let halves: Vec<u8> =
            values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
        let [int8, int4] = [to_int8(&values, inputs), to_int4(&values)];
        let [int8_scales, int4_scales] = [&int8, &int4].map(|q: &Quantized| bytes_of(&q.scales));
        let forms = [
            ("f32", Weights::F32(&floats), floats.len()),
            ("f16", Weights::F16(&halves), halves.len()),
            (
                "int8",
                Weights::Int8 { values: &int8.values, scales: &int8_scales },
                int8.values.len() + int8_scales.len(),
            ),
            (
                "int4",
                Weights::Int4 { values: &int4.values, scales: &int4_scales },
                int4.values.len() + int4_scales.len(),
            ),
        ];
        for (form, weights, bytes) in forms {
            for rows in [1, 8, 33, 257, 1024] {
                for threads in [1, all] {
                    let name =
                        format!("{form} {inputs} to {outputs}, {rows} rows, {threads} threads");
                    if asked.as_ref().is_some_and(|part| !name.contains(part)) {
                        continue;
                    }
                    let weight = Weight { weights, outputs, inputs };
                    let kinds: &[Instructions] = match has_amx() {
                        true => &[Instructions::Avx512, Instructions::Amx, Instructions::AmxHigh],
                        false => &[Instructions::Avx512],
                    };
                    let medians = by_turns(weight, rows, threads, kinds);
                    for (kind, median) in kinds.iter().zip(medians) {
                        let flops = 2.0 * (rows * inputs * outputs) as f64;
                        let kind = format!("{kind:?}").to_lowercase();
                        println!(
                            "{name:<44} {kind:<7} {:9.3} ms {:7.1} GFLOP/s {:6.1} GB/s of weights",
                            median * 1e3,
                            flops / median / 1e9,
                            bytes as f64 / median / 1e9
                        );
                    }
                }
            }
        }
    }
}

/// Median seconds of a layer with each kind of instructions, measured by turns.
fn by_turns(weight: Weight<'_>, rows: usize, threads: usize, kinds: &[Instructions]) -> Vec<f64> {
    let given: Vec<f32> =
        (0..rows * weight.inputs).map(|i| ((i * 7919) % 1003) as f32 / 500.0 - 1.0).collect();
    let mut out = vec![0.0; rows * weight.outputs];
    let mut seconds = vec![Vec::new(); kinds.len()];
    for _ in 0..15 {
        for (instructions, seconds) in kinds.iter().zip(&mut seconds) {
            let linear = Linear {
                weight,
                finish: Finish::default(),
                instructions: *instructions,
                independent_rows: false,
            };
            let start = Instant::now();
            linear.run(&given, &mut out, &Threads(threads));
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    let median = |mut seconds: Vec<f64>| {
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    };
    seconds.into_iter().map(median).collect()
}
