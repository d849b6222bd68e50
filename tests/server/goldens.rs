//! Prompts of the demo models against clip-interrogator 0.6.0's own, through the
//! server: `goldens/interrogate/demo.py` wrote them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use imprompt_kserve::InferRequest;
use serde_json::Value;

use crate::support::server;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/demo")
}

/// A decision nearer than the file's bounds may fall the other way when sums are
/// taken in another order; then the similarity alone must agree.
fn is_clear(case: &Value, near: &Value) -> bool {
    let margins = case["margins"].as_object().unwrap();
    margins.iter().all(|(kind, margin)| margin.as_f64().unwrap() > near[kind].as_f64().unwrap())
}

#[test]
fn prompts_equal_clip_interrogators() {
    let file = fs::read(goldens().join("interrogate.json")).unwrap();
    let file: Value = serde_json::from_slice(&file).unwrap();
    let client = server().client();
    let mut equal: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut near, mut fell_otherwise, mut largest) = (0, 0, 0.0_f64);
    for case in file["cases"].as_array().unwrap() {
        let picture = fs::read(goldens().join(case["picture"].as_str().unwrap())).unwrap();
        let mode = case["mode"].as_str().unwrap();
        let request =
            InferRequest::new().bytes("image", [1, 1], [picture]).bytes("mode", [1, 1], [mode]);
        let response = client.infer("interrogate", &request).unwrap();
        let name = format!("{} {mode}", case["picture"]);
        let expected = case["similarity"].as_f64().unwrap();
        let difference = (f64::from(response.f32("similarity").unwrap()[0]) - expected).abs();
        if mode != "negative" {
            assert_eq!(response.text("caption").unwrap(), case["caption"], "{name}");
        }
        let is_equal = response.text("prompt").unwrap() == case["prompt"];
        if !is_clear(case, &file["near"]) {
            near += 1;
            assert!(difference < 1e-3, "{name}: {difference}");
            fell_otherwise += usize::from(!is_equal);
        } else {
            assert!(is_equal, "{name}: {:?}, not {}", response.text("prompt"), case["prompt"]);
        }
        if is_equal {
            assert!(difference < 1e-5, "{name}: {difference}");
            largest = largest.max(difference);
            *equal.entry(mode).or_default() += 1;
        }
    }
    println!(
        "equal prompts: {equal:?}; {near} hang on a rounding, {fell_otherwise} of them fell \
         otherwise; similarities within {largest:.1e}"
    );
    for mode in ["best", "fast", "classic", "negative"] {
        assert!(equal[mode] >= 20, "{mode}: {} prompts equal, at least 20 are needed", equal[mode]);
    }
}
