//! Attention of a token that is decoded to the keys and values of its picture and of its text, in
//! bytes of them a second, on one thread: BLIP's and OPT-2.7b's sizes.
//!
//! `cargo bench -p imprompt-kernel --bench attention`
#![allow(missing_docs)]

use std::time::Instant;

use imprompt_kernel::{CachedAttention, Serial};

fn main() {
    for (name, heads, head_dim, length) in
        [("BLIP's picture", 12, 64, 577), ("BLIP's text", 12, 64, 24), ("OPT's text", 32, 80, 60)]
    {
        // As many sequences as do not fit into a cache.
        let slot = heads * head_dim * length;
        let sequences = (1 << 26) / (4 * slot);
        let noise = |seed: usize| -> Vec<f32> {
            (0..sequences * slot).map(|i| ((i * seed) % 1009) as f32 / 504.0 - 1.0).collect()
        };
        let (keys, values) = (noise(7919), noise(104_729));
        let queries = vec![0.1; sequences * heads * head_dim];
        let mut out = vec![0.0; queries.len()];
        let attention = CachedAttention {
            heads,
            head_dim,
            max_length: length,
            keys: &keys,
            values: &values,
            length,
            mask: None,
            scale: (head_dim as f32).sqrt().recip(),
        };
        let mut times: Vec<f64> = (0..12)
            .map(|_| {
                let start = Instant::now();
                attention.run(&queries, &mut out, &Serial);
                start.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let bytes = 4 * (keys.len() + values.len());
        println!("{name}: {:.1} GB/s", bytes as f64 / times[times.len() / 2] / 1e9);
    }
}
