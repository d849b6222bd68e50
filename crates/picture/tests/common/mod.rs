//! What the tests of this crate share.
#![allow(dead_code)] // each test file uses its own part

use imprompt_picture::{Limits, RgbImage8, decode};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// `goldens/picture` of the project.
pub fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens/picture")
}

/// One golden file.
pub fn golden(name: &str) -> Value {
    let path = goldens().join(name);
    let json = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&json).unwrap()
}

/// An encoded picture of the goldens.
pub fn file(name: &str) -> Vec<u8> {
    let path = goldens().join("files").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Decodes with the default limits.
pub fn open(bytes: &[u8]) -> imprompt_error::Result<RgbImage8> {
    decode(bytes, &Limits::default())
}

/// SHA-256 in hexadecimal digits.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A whole number of a golden.
pub fn number(case: &Value, key: &str) -> usize {
    case[key].as_u64().unwrap_or_else(|| panic!("{key} of {case}")) as usize
}

/// A text of a golden.
pub fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap_or_else(|| panic!("{key} of {case}"))
}

/// The pictures of `goldens/picture/synthetic.py`.
pub fn synthetic(kind: &str, width: usize, height: usize) -> RgbImage8 {
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            for c in 0..3 {
                pixels.push(match kind {
                    "ramp" => (x * 7 + y * 13 + c * 85) as u8,
                    "blocks" => ((x / 3 + y / 5 + c) % 2 * 255) as u8,
                    "noise" => noise((y * width + x) * 3 + c),
                    other => panic!("unknown kind {other}"),
                });
            }
        }
    }
    RgbImage8::new(width, height, pixels).unwrap()
}

fn noise(index: usize) -> u8 {
    let mut mixed = (index as u32).wrapping_mul(2_654_435_761).wrapping_add(12_345);
    mixed ^= mixed >> 15;
    (mixed.wrapping_mul(2_246_822_519) >> 24) as u8
}
