//! Writes a model folder of BLIP-2 OPT 2.7b's shapes with random float16 weights, for
//! `scripts/large-model`: 7.5 GB, whose captions are nonsense, a word a token.
//!
//! ```text
//! cargo run --release -p imprompt-repository --example large_model -- FOLDER
//! ```

#[path = "../tests/shapes/mod.rs"]
mod shapes;

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::f16;
use serde_json::{Map, Value, json};
use shapes::{Tensors, WORDS};

/// BLIP-2 with OPT 2.7b has so many.
const LAYERS: shapes::Layers = [39, 12, 32];

fn main() -> Result<(), Box<dyn Error>> {
    let folder =
        std::env::args_os().nth(1).map(PathBuf::from).ok_or("usage: large_model FOLDER")?;
    std::fs::create_dir_all(&folder)?;
    let shards = Tensors::of_layers(LAYERS).shards(2, "F16", 2);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for shard in &shards {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(folder.join(&shard.file))?);
        file.write_all(&shard.start)?;
        for (name, shape) in &shard.tensors {
            write_tensor(&mut file, name, shape, &mut random)?;
        }
        file.flush()?;
    }
    shapes::write_configurations(&folder, &shards, LAYERS)?;
    write_tokenizer(&folder)?;
    let bytes: u64 = shards.iter().map(|shard| shard.bytes).sum();
    println!("{bytes} bytes of float16 weights in {}", folder.display());
    Ok(())
}

/// Elements evenly spread about 0 (about 1 for the weights of a norm), as large as keeps a
/// layer's output as large as its input.
fn write_tensor(
    file: &mut impl Write,
    name: &str,
    shape: &[usize],
    random: &mut Random,
) -> std::io::Result<()> {
    let columns: usize = shape.iter().skip(1).product();
    let (middle, reach) = match (name.contains("norm"), name.ends_with("weight")) {
        (true, true) => (1.0, 0.2),
        (_, false) => (0.0, 0.05),
        (false, true) => (0.0, (3.0 / columns as f32).sqrt()),
    };
    let levels: Vec<[u8; 2]> = (0..=255u8)
        .map(|level| middle + reach * (f32::from(level) / 127.5 - 1.0))
        .map(|value| f16::from_f32(value).to_le_bytes())
        .collect();
    let mut left: usize = shape.iter().product();
    while left > 0 {
        let mut elements = [[0; 2]; 8];
        for (element, byte) in elements.iter_mut().zip(random.next().to_le_bytes()) {
            *element = levels[usize::from(byte)];
        }
        let count = left.min(elements.len());
        file.write_all(elements[..count].as_flattened())?;
        left -= count;
    }
    Ok(())
}

/// A tokenizer whose token n is the word "wn".
fn write_tokenizer(folder: &Path) -> std::io::Result<()> {
    let vocabulary: Map<String, Value> =
        (0..WORDS).map(|id| (format!("w{id}"), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w3" }
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string())
}

/// Marsaglia's xorshift: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
