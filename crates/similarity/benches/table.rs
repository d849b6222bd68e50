//! Similarities of images with whole mapped label tables, in milliseconds and in bytes of rows a
//! second, beside how fast this machine reads the same mapping and copies memory.
//!
//! `cargo bench -p imprompt-similarity --bench table [-- PART OF A LINE]`
#![allow(missing_docs)]

use std::hint::black_box;
use std::io::Write;
use std::time::Instant;

use half::f16;
use imprompt_similarity::{Instructions, similarities_with};

/// Times `work` and prints a line, when it is asked for.
fn line(what: &str, bytes: usize, rounds: usize, mut work: impl FnMut()) {
    let asked = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    if asked.is_some_and(|part| !what.contains(&part)) {
        return;
    }
    work();
    let mut seconds: Vec<f64> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let (median, least) = (seconds[rounds / 2], seconds[0]);
    println!(
        "{what:<64} {:8.2} ms median {:8.2} ms least {:6.1} GB/s",
        median * 1e3,
        least * 1e3,
        bytes as f64 / median / 1e9
    );
}

/// Reading alone: the sum of 64-bit words, on several threads.
fn read(words: &[u64], threads: usize) -> u64 {
    let sum = |part: &[u64]| part.iter().fold(0_u64, |sum, word| sum.wrapping_add(*word));
    std::thread::scope(|scope| {
        let parts = words.chunks(words.len().div_ceil(threads));
        let parts: Vec<_> = parts.map(|part| scope.spawn(move || sum(part))).collect();
        parts.into_iter().map(|part| part.join().unwrap()).fold(0, u64::wrapping_add)
    })
}

fn rows(count: usize, dimension: usize) -> Vec<f16> {
    let mut state = 1_u32;
    let value = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f16::from_f32((state >> 8) as f32 / (1 << 28) as f32 - 0.03)
    };
    (0..count * dimension).map(value).collect()
}

fn main() {
    let (from, mut to) = (vec![1_u64; 32 << 20], vec![0_u64; 32 << 20]);
    let bytes = 2 * size_of_val(&from[..]);
    line("memory copy (bytes read and written), 1 thread", bytes, 9, || {
        black_box(&mut to).copy_from_slice(black_box(&from));
    });
    drop((from, to));
    for (count, dimension) in [(111_867, 768), (1_000_000, 512)] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytemuck::cast_slice(&rows(count, dimension))).unwrap();
        let mapped = imprompt_mapping::map_file(file.path()).unwrap();
        table(&format!("{count} x {dimension}"), &mapped, dimension);
    }
}

fn table(name: &str, bytes: &[u8], dimension: usize) {
    for threads in [1, 2] {
        let what = format!("{name}: read alone, {threads} threads");
        line(&what, bytes.len(), 15, || {
            black_box(read(black_box(bytemuck::cast_slice(bytes)), threads));
        });
    }
    let available = Instructions::available();
    for (place, instructions) in available.iter().enumerate() {
        for (images, threads) in [(1, 1), (1, 2), (8, 1), (8, 2)] {
            let embeds: Vec<f32> = rows(images, dimension).iter().map(|v| v.to_f32()).collect();
            let what = format!("{name}: {instructions:?} {images} images, {threads} threads");
            // The last is the portable path, which calls a function for each multiply-add.
            let rounds = if place + 1 == available.len() { 1 } else { 15 };
            line(&what, bytes.len(), rounds, || {
                let tables = [black_box(bytemuck::cast_slice(bytes))];
                black_box(similarities_with(*instructions, &tables, &embeds, dimension, threads));
            });
        }
    }
}
