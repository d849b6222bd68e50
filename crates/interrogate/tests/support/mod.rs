//! The Rust twin of goldens/interrogate/fake_clip.py: a CLIP stand-in with exact arithmetic.
#![allow(dead_code)]

use std::path::PathBuf;
use std::sync::LazyLock;

use imprompt_error::{Cancellation, Result};
use imprompt_interrogate::PromptEncoder;

const CONTEXT: usize = 77;
const PIECES: u64 = 3000;
const START: usize = 3001;
const END: usize = 3002;
const RADII: [i64; 32] = [
    24650, 29725, 44785, 34450, 22525, 22100, 21125, 32045, 44525, 37825, 36725, 41905, 40885,
    44225, 38425, 27625, 32825, 31025, 23725, 26650, 45305, 37700, 31525, 31265, 28730, 36125,
    24505, 35425, 26825, 39650, 23426, 30325,
];
/// Width of the stand-in's embeddings.
pub const DIMENSION: usize = 2 * RADII.len();
/// An embedding is a vector of integers divided by this.
pub const SCALE: f32 = 1024.0;

/// splitmix64.
pub fn mix(value: u64) -> u64 {
    let mut value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

fn element(key: usize, index: usize) -> i64 {
    (mix((key * DIMENSION + index) as u64) % 255) as i64 - 127
}

fn vector(key: usize) -> [i64; DIMENSION] {
    std::array::from_fn(|index| element(key, index))
}

static VECTORS: LazyLock<Vec<[i64; DIMENSION]>> = LazyLock::new(|| (0..=END).map(vector).collect());
static BIAS: LazyLock<[i64; DIMENSION]> = LazyLock::new(|| vector(1_000_003));
static POINTS: LazyLock<Vec<Vec<(i64, i64)>>> =
    LazyLock::new(|| RADII.iter().map(|squared| circle(*squared)).collect());

fn circle(squared: i64) -> Vec<(i64, i64)> {
    let radius = squared.isqrt();
    let mut points = Vec::new();
    for x in -radius..=radius {
        let y = (squared - x * x).isqrt();
        if x * x + y * y == squared {
            points.push((x, -y));
            if y != 0 {
                points.push((x, y));
            }
        }
    }
    points
}

fn token_ids(text: &str) -> Vec<usize> {
    let mut ids = Vec::new();
    let mut piece = String::new();
    let id = |piece: &str| {
        let hash = piece.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
        });
        1 + (hash % PIECES) as usize
    };
    for sign in text.to_lowercase().chars().chain([' ']) {
        let in_word = sign.is_ascii_alphanumeric();
        if !piece.is_empty() && (!in_word || piece.len() == 5) {
            ids.push(id(&piece));
            piece.clear();
        }
        if in_word {
            piece.push(sign);
        } else if !sign.is_whitespace() {
            ids.push(id(sign.encode_utf8(&mut [0; 4])));
        }
    }
    ids
}

/// The stand-in. `bias` moves every text towards one direction.
pub struct FakeClip {
    pub bias: i64,
    /// Calls of [`PromptEncoder::encode`] so far.
    pub calls: usize,
}

impl FakeClip {
    pub fn new(bias: i64) -> Self {
        FakeClip { bias, calls: 0 }
    }

    fn embed(&self, text: &str) -> impl Iterator<Item = f32> {
        let mut ids = vec![START];
        ids.extend(token_ids(text));
        ids.push(END);
        if ids.len() > CONTEXT {
            ids.truncate(CONTEXT);
            ids[CONTEXT - 1] = END;
        }
        let mut sums = [0_i64; DIMENSION];
        for (position, id) in ids.into_iter().enumerate() {
            let weight = 5 - (position % 3) as i64;
            for (index, sum) in sums.iter_mut().enumerate() {
                *sum += weight * (VECTORS[id][index] + self.bias * BIAS[index]);
            }
        }
        POINTS.iter().enumerate().flat_map(move |(block, points)| {
            let (x, y) = (sums[2 * block], sums[2 * block + 1]);
            let mut best = points[0];
            for point in points {
                if point.0 * x + point.1 * y > best.0 * x + best.1 * y {
                    best = *point;
                }
            }
            [best.0 as f32 / SCALE, best.1 as f32 / SCALE]
        })
    }
}

impl PromptEncoder for FakeClip {
    fn dimension(&self) -> usize {
        DIMENSION
    }

    fn token_count(&self, text: &str) -> usize {
        token_ids(text).len()
    }

    fn encode(&mut self, texts: &[&str], cancel: &dyn Cancellation) -> Result<Vec<f32>> {
        cancel.check()?;
        self.calls += 1;
        Ok(texts.iter().flat_map(|text| self.embed(text)).collect())
    }
}

/// A file beside goldens/interrogate/make.py.
pub fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens/interrogate").join(name)
}

/// A golden file as JSON.
pub fn golden_json(name: &str) -> serde_json::Value {
    let path = golden(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
