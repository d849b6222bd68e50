//! Random float16 weights in the shapes of a model.

use std::io::{BufWriter, Write};
use std::path::Path;

use half::f16;

use super::shapes::Model;

/// Writes the folder of `model`; the bytes of its weights.
pub fn write(model: &Model, folder: &Path) -> std::io::Result<u64> {
    std::fs::create_dir_all(folder)?;
    let shards = model.shards("F16", 2);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for shard in &shards {
        let mut file = BufWriter::with_capacity(1 << 20, shard.create(folder)?);
        for (name, shape) in &shard.tensors {
            write_tensor(&mut file, name, shape, &mut random)?;
        }
        file.flush()?;
    }
    model.write_files(folder, &shards)?;
    Ok(shards.iter().map(|shard| shard.bytes).sum())
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
        _ if name == "logit_scale" => (100f32.ln(), 0.0),
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
