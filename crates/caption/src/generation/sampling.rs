//! Drawing a token (`LogitsWarper` and `multinomial` of the reference).

use imprompt_error::{Error, Result};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::Sampling;

/// Draws one sequence's tokens.
///
/// The random numbers are those of ChaCha with 8 rounds, whose key is the seed as
/// eight little-endian bytes and then zeros: the cipher's definition, not a
/// library's version, says what a seed draws. Each token takes 64 bits of the
/// stream; their upper 53 as a fraction of 1 are held against the tokens'
/// probabilities, added up in the order of the ids. No other sequence's draws touch the stream.
#[derive(Clone, Debug)]
pub(super) struct Sampler {
    options: Sampling,
    random: ChaCha8Rng,
}

impl Sampler {
    pub(super) fn new(options: Sampling) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&options.seed.to_le_bytes());
        Sampler { options, random: ChaCha8Rng::from_seed(key) }
    }

    /// The next token by `scores`, which are warped in place.
    ///
    /// # Errors
    /// `InvalidInput` when the options have left no token.
    pub(super) fn draw(&mut self, scores: &mut [f32]) -> Result<u32> {
        warp(&self.options, scores);
        let fraction = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        pick(scores, fraction)
    }
}

/// Temperature, then `top_k`, then `top_p`; a token that is left out has the score
/// negative infinity.
pub(super) fn warp(options: &Sampling, scores: &mut [f32]) {
    if options.temperature != 1.0 {
        let temperature = options.temperature as f32;
        for score in scores.iter_mut() {
            *score /= temperature;
        }
    }
    if options.top_k > 0 && options.top_k < scores.len() {
        let mut sorted = scores.to_vec();
        let (_, kth, _) = sorted.select_nth_unstable_by(options.top_k - 1, |a, b| b.total_cmp(a));
        let kth = *kth;
        // Equals of the last one stay, as in the reference.
        leave_out(scores, |score| score < kth);
    }
    if options.top_p < 1.0 {
        keep_probable(scores, options.top_p);
    }
}

fn leave_out(scores: &mut [f32], is_out: impl Fn(f32) -> bool) {
    for score in scores {
        if is_out(*score) {
            *score = f32::NEG_INFINITY;
        }
    }
}

/// Leaves out the least probable tokens that together have at most `1 - top_p`; never
/// the most probable one.
fn keep_probable(scores: &mut [f32], top_p: f64) {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    let Some((&best, others)) = order.split_last() else { return };
    let highest = scores[best];
    let weight = |score: f32| f64::from((score - highest).exp());
    let total: f64 = scores.iter().map(|score| weight(*score)).sum();
    let most = (1.0 - top_p) * total;
    let mut sum = 0.0;
    for &id in others {
        sum += weight(scores[id]);
        if sum > most {
            break;
        }
        scores[id] = f32::NEG_INFINITY;
    }
}

/// The token in whose part of the probabilities `fraction` (0 to below 1) falls.
fn pick(scores: &[f32], fraction: f64) -> Result<u32> {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !highest.is_finite() {
        return Err(Error::invalid("the options leave no token that could be said"));
    }
    let weight = |score: f32| f64::from(score - highest).exp();
    let total: f64 = scores.iter().map(|score| weight(*score)).sum();
    let wanted = fraction * total;
    let (mut sum, mut last) = (0.0, 0);
    for (id, score) in scores.iter().enumerate().filter(|(_, score)| score.is_finite()) {
        sum += weight(*score);
        last = id;
        if wanted < sum {
            break;
        }
    }
    Ok(last as u32)
}
