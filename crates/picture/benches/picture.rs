//! One picture from its bytes to `pixel_values` of 224 x 224, as CLIP takes it, on one thread.
//!
//! `cargo bench -p imprompt-picture --bench picture [-- FILE [ROUNDS]]`; FILE is a picture, by default
//! a small photograph of the goldens. `scripts/bench-picture` compares with Pillow on a large one.
#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Instant;

use imprompt_picture::{Limits, Preprocessor, Scratch, decode};

const CONFIG: &str = r#"{"image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "resample": 3}"#;
const PHOTOGRAPH: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../goldens/picture/files/coffee.jpg");

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let path = arguments.first().map_or(PHOTOGRAPH, String::as_str);
    let rounds: usize = arguments.get(1).map_or(31, |rounds| rounds.parse().unwrap());
    let bytes = std::fs::read(path).unwrap();
    let preprocessor = Preprocessor::from_json(CONFIG.as_bytes()).unwrap();
    let mut scratch = Scratch::default();
    let mut out = vec![0.0; preprocessor.output_len()];
    let mut times = [vec![], vec![], vec![]];
    for _ in 0..rounds {
        let start = Instant::now();
        let image = decode(black_box(&bytes), &Limits::default()).unwrap();
        let decoded = start.elapsed().as_secs_f64() * 1e3;
        preprocessor.run(&image, &mut scratch, black_box(&mut out)).unwrap();
        let whole = start.elapsed().as_secs_f64() * 1e3;
        for (times, time) in times.iter_mut().zip([decoded, whole - decoded, whole]) {
            times.push(time);
        }
    }
    for (what, mut times) in ["decode", "resize, crop, normalise", "both"].into_iter().zip(times) {
        times.sort_by(f64::total_cmp);
        println!("{what:<24} {:8.3} ms median {:8.3} ms least", times[rounds / 2], times[0]);
    }
}
