//! Against the reference's own processors and warpers: `goldens/generation`, made by
//! `goldens/generation/make.py`.

use std::path::Path;

use imprompt_error::Kind;
use safetensors::SafeTensors;
use serde::Deserialize;

use super::decoding::greedy;
use super::processors::Processors;
use super::sampling::{Sampler, warp};
use super::*;

#[derive(Deserialize)]
struct Golden {
    eos_token_ids: Vec<u32>,
    width: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    ids: Vec<u32>,
    prompt: usize,
    options: Options,
}

#[derive(Deserialize)]
struct Options {
    repetition_penalty: f64,
    no_repeat_ngram_size: usize,
    min_new_tokens: usize,
    min_length: usize,
    temperature: f64,
    top_k: usize,
    top_p: f64,
}

impl Options {
    fn sampling(&self) -> Sampling {
        let Options { temperature, top_k, top_p, .. } = *self;
        Sampling { temperature, top_k, top_p, seed: 0 }
    }

    fn generation(&self) -> GenerationOptions {
        GenerationOptions {
            repetition_penalty: self.repetition_penalty,
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            min_new_tokens: self.min_new_tokens,
            min_length: self.min_length,
            sampling: Some(self.sampling()),
            ..GenerationOptions::default()
        }
    }
}

/// Each case with its scores, what the processors and what the warpers made of them.
fn goldens() -> (Golden, Vec<[Vec<f32>; 3]>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/generation");
    let golden: Golden =
        serde_json::from_str(&std::fs::read_to_string(folder.join("cases.json")).unwrap()).unwrap();
    let bytes = std::fs::read(folder.join("scores.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let read = |name: String| -> Vec<f32> {
        let view = tensors.tensor(&name).unwrap();
        assert_eq!(view.shape(), [golden.width]);
        view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let scores = (0..golden.cases.len())
        .map(|case| ["scores", "processed", "warped"].map(|name| read(format!("{name}.{case}"))))
        .collect();
    (golden, scores)
}

#[test]
fn scores_are_those_of_the_reference() {
    let (golden, scores) = goldens();
    for (number, (case, [scores, processed, warped])) in golden.cases.iter().zip(scores).enumerate()
    {
        let processors =
            Processors::new(&case.options.generation(), case.prompt, &golden.eos_token_ids);
        let mut found = scores.clone();
        processors.apply(&case.ids, &mut found);
        assert_eq!(found, processed, "case {number}");
        assert_eq!(processors.is_idle(&case.ids), !has_work(case), "case {number}");
        assert!(has_work(case) || found == scores);
        warp(&case.options.sampling(), &mut found);
        assert_eq!(found, warped, "case {number}");
    }
}

/// Whether a processor was asked for that has something to do after these ids.
fn has_work(case: &Case) -> bool {
    let Options { repetition_penalty, no_repeat_ngram_size, min_new_tokens, min_length, .. } =
        case.options;
    repetition_penalty != 1.0
        || no_repeat_ngram_size > 0
        || case.ids.len() < min_length
        || case.ids.len() - case.prompt < min_new_tokens
}

#[test]
fn tokens_are_drawn_by_their_probabilities() {
    const DRAWS: usize = 4_000;
    let (golden, scores) = goldens();
    // The upper 0.1 % of chi-squared with n - 1 degrees of freedom (Wilson and Hilferty).
    let limit = |freedom: f64| {
        let spread = 2.0 / (9.0 * freedom);
        freedom * (1.0 - spread + 3.3 * spread.sqrt()).powi(3)
    };
    let mut tested = 0;
    for (number, (case, [_, processed, warped])) in golden.cases.iter().zip(scores).enumerate() {
        let sum: f64 = warped.iter().map(|score| f64::from(*score).exp()).sum();
        let mut counts = vec![0usize; golden.width];
        let mut sampler =
            Sampler::new(Sampling { seed: 1_000 + number as u64, ..case.options.sampling() });
        for _ in 0..DRAWS {
            counts[sampler.draw(&mut processed.clone()).unwrap() as usize] += 1;
        }
        // Tokens that come seldom are counted together.
        let (mut statistic, mut cells, mut rest) = (0.0, 0, (0.0, 0.0));
        for (score, count) in warped.iter().zip(counts) {
            let expected = f64::from(*score).exp() / sum * DRAWS as f64;
            assert!(expected > 0.0 || count == 0, "case {number}: a token that was left out");
            if expected < 8.0 {
                rest = (rest.0 + expected, rest.1 + count as f64);
            } else {
                statistic += (count as f64 - expected).powi(2) / expected;
                cells += 1;
            }
        }
        if rest.0 >= 8.0 {
            statistic += (rest.1 - rest.0).powi(2) / rest.0;
            cells += 1;
        }
        if cells > 1 {
            let limit = limit(f64::from(cells - 1));
            assert!(statistic < limit, "case {number}: {statistic:.1} of {limit:.1}, {cells}");
            tested += 1;
        }
    }
    assert!(tested > 60, "{tested} distributions");
}

#[test]
fn a_seed_draws_the_same_for_ever() {
    let flat = || vec![0.0f32; 1_000];
    let options = |seed| Sampling { top_k: 0, seed, ..Sampling::default() };
    let drawn = |seed| {
        let mut sampler = Sampler::new(options(seed));
        (0..6).map(|_| sampler.draw(&mut flat()).unwrap()).collect::<Vec<u32>>()
    };
    // ChaCha8's first 64-bit words for the all-zero key are 0x..., known from its test vectors:
    // 3e00ef2f895f40d6 7f5bb8e81f09a5a1 ... as bytes.
    let first = (u64::from_le_bytes(*b"\x3e\x00\xef\x2f\x89\x5f\x40\xd6") >> 11) as f64
        / (1u64 << 53) as f64;
    assert_eq!(drawn(0)[0], (first * 1_000.0) as u32);
    assert_eq!(drawn(7), drawn(7));
    assert_ne!(drawn(7), drawn(8));
    assert_ne!(drawn(0), drawn(1 << 40));
}

#[test]
fn the_best_is_the_lowest_id_of_equals() {
    assert_eq!(greedy(&[0.0, 2.0, 2.0, 1.0]), 1);
    assert_eq!(greedy(&[f32::NEG_INFINITY, -3.0]), 1);
    let mut decoding = Decoding::new(&GenerationOptions::greedy(1), vec![1], &[0]);
    for wrong in [&[f32::NAN, 1.0][..], &[f32::NEG_INFINITY; 2], &[f32::INFINITY, 0.0], &[]] {
        assert_eq!(decoding.advance(&[wrong]).unwrap_err().kind(), Kind::Internal);
    }
    assert!(decoding.advance(&[]).is_err());
}

#[test]
fn options_that_leave_no_token_are_told() {
    let sampling = Some(Sampling::default());
    let options =
        GenerationOptions { no_repeat_ngram_size: 1, sampling, ..GenerationOptions::default() };
    let mut decoding = Decoding::new(&options, vec![0, 1], &[1]);
    assert_eq!(decoding.advance(&[&[0.5, 0.25]]).unwrap_err().kind(), Kind::InvalidInput);
}

#[test]
fn what_cannot_be_followed_is_refused_in_numbers() {
    let default = GenerationOptions::default;
    let drawn = |sampling| GenerationOptions { sampling: Some(sampling), ..default() };
    for (options, name) in [
        (GenerationOptions::greedy(0), "max_new_tokens is 0"),
        (GenerationOptions { min_new_tokens: 33, ..default() }, "min_new_tokens is 33"),
        (GenerationOptions { num_beams: 0, ..default() }, "num_beams is 0"),
        (GenerationOptions { repetition_penalty: 0.0, ..default() }, "repetition_penalty is 0"),
        (GenerationOptions { repetition_penalty: f64::NAN, ..default() }, "is NaN"),
        (GenerationOptions { length_penalty: f64::INFINITY, ..default() }, "length_penalty is inf"),
        (drawn(Sampling { temperature: -1.0, ..Sampling::default() }), "temperature is -1"),
        (drawn(Sampling { top_p: 1.5, ..Sampling::default() }), "top_p is 1.5"),
        (drawn(Sampling { top_p: f64::NAN, ..Sampling::default() }), "top_p is NaN"),
        (GenerationOptions { num_beams: 2, ..drawn(Sampling::default()) }, "num_beams is 2"),
    ] {
        let error = options.check().unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidInput);
        assert!(error.message().contains(name), "{error}");
    }
    default().check().unwrap();
    drawn(Sampling::default()).check().unwrap();
}
