//! Prompts and rankings equal clip-interrogator 0.6.0's (goldens/interrogate/make.py).

mod support;

use std::collections::HashMap;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use imprompt_error::Uncancellable;
use imprompt_interrogate::{
    Config, Interrogator, LabelTable, Mode, Request, Source, Table, Vocabulary, rank,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use support::{FakeClip, SCALE, golden, golden_json, mix};

#[derive(Deserialize)]
struct Modes {
    images: Vec<Vec<f32>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    vocabulary: String,
    bias: i64,
    image: usize,
    mode: String,
    chunk_size: usize,
    flavor_intermediate_count: usize,
    caption: String,
    min_flavors: Option<i32>,
    max_flavors: Option<i32>,
    prompt: String,
    similarity: f32,
    #[serde(default)]
    candidates: Vec<(String, f32)>,
    chain_steps: usize,
}

fn vocabulary(name: &str, bias: i64) -> Vocabulary {
    let mut encoder = FakeClip::new(bias);
    let mut vocabulary = Vocabulary::new(support::DIMENSION);
    for table in Table::ALL {
        let labels = table.labels(&golden(&format!("vocabulary-{name}"))).unwrap().unwrap();
        let labels =
            LabelTable::compute(table.name(), labels, &mut encoder, &Uncancellable, &mut |_| ())
                .unwrap();
        vocabulary.insert(table, Arc::new(labels)).unwrap();
    }
    vocabulary
}

/// Runs the cases whose index leaves `part` when divided by `parts`: one test each, so that they
/// run side by side.
fn check_part(part: usize, parts: usize) {
    let golden: Modes = serde_json::from_value(golden_json("modes.json")).unwrap();
    let mut vocabularies: HashMap<(String, i64), Vocabulary> = HashMap::new();
    assert!(golden.cases.len() >= 100 && golden.images.len() >= 20);
    for (index, case) in golden.cases.iter().enumerate().filter(|(index, _)| index % parts == part)
    {
        let vocabulary = vocabularies
            .entry((case.vocabulary.clone(), case.bias))
            .or_insert_with(|| vocabulary(&case.vocabulary, case.bias));
        let config = Config {
            chunk_size: case.chunk_size,
            flavor_intermediate_count: case.flavor_intermediate_count,
            ..Config::default()
        };
        check(index, case, &golden.images[case.image], vocabulary, config);
    }
}

fn check(index: usize, case: &Case, image: &[f32], vocabulary: &Vocabulary, config: Config) {
    let image: Vec<f32> = image.iter().map(|value| value / SCALE).collect();
    let mode: Mode = case.mode.parse().unwrap();
    let request = Request {
        mode,
        caption: &case.caption,
        min_flavors: case.min_flavors,
        max_flavors: case.max_flavors,
        budget_ms: None,
    };
    let mut encoder = FakeClip::new(case.bias);
    let outcome = Interrogator::new(vocabulary.clone(), config)
        .unwrap()
        .interrogate(&image, &request, &mut encoder, &Uncancellable)
        .unwrap();
    let what = format!("case {index}: {} of {}", case.mode, case.vocabulary);
    assert_eq!(outcome.prompt, case.prompt, "{what}");
    // The stand-in's cosines are exact, so these are equal, not near.
    assert_eq!(outcome.similarity, case.similarity, "{what}");
    if mode == Mode::Best {
        let candidates: Vec<(String, f32)> = outcome
            .report
            .candidates
            .iter()
            .map(|candidate| (candidate.prompt.clone(), candidate.similarity))
            .collect();
        assert_eq!(candidates, case.candidates, "{what}");
        // The caption, the steps of the chain, and the four candidates.
        assert_eq!(encoder.calls, 2 + case.chain_steps, "{what}");
    }
    let report = &outcome.report;
    let terms: Vec<&str> = report.accepted_terms.iter().map(|term| term.term.as_str()).collect();
    if matches!(report.source, Source::Chain | Source::Negative | Source::Fast) {
        assert!(outcome.prompt.ends_with(&terms.join(", ")) || report.truncated, "{what}");
    }
    if matches!(report.source, Source::Chain | Source::Negative) {
        let last = report.accepted_terms.last().map(|term| term.similarity);
        assert_eq!(last, (!terms.is_empty()).then_some(outcome.similarity), "{what}");
    }
    assert!(report.source != Source::Caption || terms.is_empty(), "{what}");
}

#[test]
fn prompts_are_the_references_0() {
    check_part(0, 4);
}

#[test]
fn prompts_are_the_references_1() {
    check_part(1, 4);
}

#[test]
fn prompts_are_the_references_2() {
    check_part(2, 4);
}

#[test]
fn prompts_are_the_references_3() {
    check_part(3, 4);
}

/// The cases reach every way a prompt can come about.
#[test]
fn the_cases_are_not_all_alike() {
    let golden: Modes = serde_json::from_value(golden_json("modes.json")).unwrap();
    let count = |test: &dyn Fn(&Case) -> bool| golden.cases.iter().filter(|c| test(c)).count();
    for place in 0..4 {
        let wins = count(&|case| case.mode == "best" && case.candidates[place].0 == case.prompt);
        assert!(wins > 0, "candidate {place} never wins");
    }
    let negative = |positive: bool| {
        count(&|case| case.mode == "negative" && (case.similarity > 0.0) == positive)
    };
    assert!(negative(true) > 3 && negative(false) > 3);
    assert!(count(&|case| case.mode == "negative" && !case.prompt.contains(',')) > 3);
    let tables = golden_json("labels.json")["hashes"]["large"].clone();
    let labels: u64 = Table::ALL[..5].iter().map(|t| tables[t.name()][0].as_u64().unwrap()).sum();
    assert!(labels > 2 * 2048);
}

#[derive(Deserialize)]
struct RankCase {
    seed: u64,
    rows: usize,
    columns: usize,
    chunk_size: usize,
    count: usize,
    reverse: bool,
    kept: usize,
    first: Vec<usize>,
    sha256: String,
}

fn row_values(seed: u64, count: usize) -> impl Iterator<Item = f32> {
    (0..count as u64).map(move |index| {
        let key = mix(seed * 1_000_003 + index);
        let sign = if key & 1 == 0 { 1.0 } else { -1.0 };
        sign * (1.0 + (key >> 50) as f32 / 16384.0)
    })
}

fn image_values(seed: u64, columns: usize) -> Vec<f32> {
    let value = |index| (mix(seed * 1_000_003 + index) >> 55) as f32 / 256.0 - 1.0;
    (0..columns as u64).map(value).collect()
}

#[test]
fn rankings_are_the_references() {
    let cases: Vec<RankCase> =
        serde_json::from_value(golden_json("rank.json")["cases"].clone()).unwrap();
    assert!(cases.len() >= 9);
    for case in cases {
        let rows: Vec<f16> =
            row_values(case.seed, case.rows * case.columns).map(f16::from_f32).collect();
        let image = image_values(100 + case.seed, case.columns);
        let similarities = imprompt_similarity::similarities(&[&rows], &image, case.columns, 0);
        let ranking = rank::rank(&similarities[0], case.chunk_size, case.count, case.reverse);
        assert_eq!(ranking[..case.first.len()], case.first, "seed {}", case.seed);
        assert_eq!(ranking.len(), case.kept, "seed {}", case.seed);
        let mut digest = Sha256::new();
        for index in &ranking {
            digest.update((*index as u32).to_le_bytes());
        }
        let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, case.sha256, "seed {}", case.seed);
    }
}

#[test]
fn a_cache_file_is_the_references_byte_for_byte() {
    let labels = Table::Mediums.labels(&golden("vocabulary-small")).unwrap().unwrap();
    let mut encoder = FakeClip::new(1);
    let table =
        LabelTable::compute("mediums", labels.clone(), &mut encoder, &Uncancellable, &mut |_| ())
            .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mediums.safetensors");
    table.save(&path).unwrap();
    let reference = std::fs::read(golden("table.safetensors")).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), reference);
    let loaded =
        LabelTable::from_safetensors("mediums", labels, support::DIMENSION, Arc::new(reference))
            .unwrap();
    assert_eq!(loaded.rows().to_f32_vec(), table.rows().to_f32_vec());
}
