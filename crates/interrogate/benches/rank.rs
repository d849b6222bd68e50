//! Ranking a merged table of the size of clip-interrogator's: the pass over the rows, the
//! reference's two-stage rule, and the plain best.
//!
//! `cargo bench -p imprompt-interrogate --bench rank [-- TABLE IMAGE]`: TABLE holds float16 rows of
//! 768 values, IMAGE the float32 values of one picture; without them both are made up. With them the
//! two rankings are written beside TABLE as `two_stage` and `plain`, u32.
#![allow(missing_docs)]

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use half::f16;
use imprompt_interrogate::rank::{rank, rank_exact};
use imprompt_similarity::similarities;

const DIMENSION: usize = 768;
const COUNT: usize = 2_048;

fn milliseconds<T>(what: &str, mut work: impl FnMut() -> T) -> T {
    let mut times = Vec::new();
    let mut result = work();
    for _ in 0..21 {
        let start = Instant::now();
        result = black_box(work());
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    println!("{what:<40} {:8.3} ms median {:8.3} ms least", times[times.len() / 2], times[0]);
    result
}

fn noise(count: usize) -> Vec<f16> {
    let mut state = 1_u32;
    let value = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f16::from_f32((state >> 8) as f32 / (1 << 28) as f32 - 0.03)
    };
    (0..count).map(value).collect()
}

fn main() {
    let files: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let folder = tempfile::tempdir().unwrap();
    let (table, image) = match files.as_slice() {
        [table, image] => (PathBuf::from(table), PathBuf::from(image)),
        _ => {
            let (table, image) = (folder.path().join("table"), folder.path().join("image"));
            let values: Vec<f32> = noise(DIMENSION).iter().map(|value| value.to_f32()).collect();
            std::fs::write(&table, bytemuck::cast_slice(&noise(111_867 * DIMENSION))).unwrap();
            std::fs::write(&image, bytemuck::cast_slice(&values)).unwrap();
            (table, image)
        }
    };
    let mapped = imprompt_mapping::map_file(&table).unwrap();
    let rows: &[f16] = bytemuck::cast_slice(&mapped[..]);
    let image = std::fs::read(image).unwrap();
    let image: Vec<f32> =
        image.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let pass = |threads| similarities(&[rows], &image, DIMENSION, threads).remove(0);
    milliseconds("the pass, 1 thread", || pass(1));
    let values = milliseconds("the pass, 2 threads", || pass(2));
    milliseconds("two stages, best 2048", || rank(&values, 2_048, COUNT, false));
    milliseconds("two stages, best 32", || rank(&values, 2_048, 32, false));
    milliseconds("plain best 2048", || rank_exact(&values, COUNT));
    milliseconds("plain best 10", || rank_exact(&values, 10));
    let two_stage =
        milliseconds("pass and two stages, 2 threads", || rank(&pass(2), 2_048, COUNT, false));
    let plain = milliseconds("pass and plain best, 2 threads", || rank_exact(&pass(2), COUNT));
    if !files.is_empty() {
        for (name, ranking) in [("two_stage", two_stage), ("plain", plain)] {
            let ranking: Vec<u32> = ranking.into_iter().map(|index| index as u32).collect();
            std::fs::write(table.with_file_name(name), bytemuck::cast_slice(&ranking)).unwrap();
        }
    }
}
