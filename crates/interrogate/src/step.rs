//! One step of a chain: which of many phrases makes the best prompt.
//!
//! Where the encoder offers a screen ([`PromptEncoder::screen`]), that scores every candidate first,
//! and the encoder itself those that may be the best: the [`LEAST`] best of the screen, and all others
//! whose error would have to be within [`DEVIATIONS`] standard deviations to make them the best. The error is
//! what the candidates that were scored twice show, so the rule holds whatever the model's cosines
//! and the screen's precision.

use imprompt_error::{Cancellation, Error, Result};

use crate::encoder::PromptEncoder;
use crate::rank::first_greatest;

/// Candidates that are scored again at least.
const LEAST: usize = 32;
/// Candidates that are scored again at most, but for equal ones: where hundreds are as good as the best to
/// the screen, it says nothing, and the step should not cost twice.
const MOST: usize = 256;
/// How many standard deviations of the screen's error a candidate may lack of the best.
const DEVIATIONS: f32 = 4.0;
/// From so many candidates on a screen pays.
const WORTH_IT: usize = 4 * LEAST;

/// A step of a chain.
#[derive(Clone, Copy, Debug)]
pub struct ChainStep<'a> {
    /// The picture's embedding: float32 `[D]`, L2-normalised.
    pub image: &'a [f32],
    /// The prompt so far; `None` in the first step of a chain without one.
    pub prompt: Option<&'a str>,
    /// What may come next. Of equally good ones the first is chosen.
    pub phrases: &'a [&'a str],
    /// Whether the lowest cosine is the best.
    pub away: bool,
}

/// The best phrase of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Its place among the phrases.
    pub index: usize,
    /// Cosine of the prompt with it, as the encoder itself has it.
    pub similarity: f32,
    /// Candidates that the encoder itself has scored.
    pub scored: usize,
}

impl ChainStep<'_> {
    /// The best phrase; `None` without phrases.
    ///
    /// # Errors
    /// Those of the encoder and of its screen; `Internal` when one gives a wrong number of
    /// similarities, or one that is not finite.
    pub fn choose(
        &self,
        encoder: &mut dyn PromptEncoder,
        cancel: &dyn Cancellation,
    ) -> Result<Option<Choice>> {
        let all: Vec<usize> = (0..self.phrases.len()).collect();
        if let Some(screen) = encoder.screen()
            && all.len() >= WORTH_IT
        {
            let rough = self.values(screen, &all, cancel)?;
            let choice = choose_screened(&rough, &mut |members| {
                cancel.check()?;
                self.values(encoder, members, cancel)
            })?;
            return Ok(Some(self.unsigned(choice)));
        }
        let values = self.values(encoder, &all, cancel)?;
        let best = first_greatest(values.iter().copied());
        let choice = |index| Choice { index, similarity: values[index], scored: values.len() };
        Ok(best.map(|index| self.unsigned(choice(index))))
    }

    fn sign(&self) -> f32 {
        if self.away { -1.0 } else { 1.0 }
    }

    fn unsigned(&self, choice: Choice) -> Choice {
        Choice { similarity: self.sign() * choice.similarity, ..choice }
    }

    /// How good the candidates `members` are: cosines, negated where the lowest is the best.
    fn values(
        &self,
        encoder: &mut dyn PromptEncoder,
        members: &[usize],
        cancel: &dyn Cancellation,
    ) -> Result<Vec<f32>> {
        if members.is_empty() {
            return Ok(Vec::new());
        }
        let phrases: Vec<&str> = members.iter().map(|&member| self.phrases[member]).collect();
        let values = match self.prompt {
            None => encoder.similarities(self.image, &phrases, cancel),
            Some(prompt) => encoder.continuation_similarities(self.image, prompt, &phrases, cancel),
        };
        let mut values = checked(values?, phrases.len())?;
        values.iter_mut().for_each(|value| *value *= self.sign());
        Ok(values)
    }
}

/// One finite value for each text.
pub(crate) fn checked(values: Vec<f32>, texts: usize) -> Result<Vec<f32>> {
    if values.len() != texts {
        return Err(Error::internal(format!(
            "the text encoder gave {} similarities for {texts} texts",
            values.len()
        )));
    }
    if values.iter().any(|value| !value.is_finite()) {
        return Err(Error::internal("the text encoder gave a similarity that is not finite"));
    }
    Ok(values)
}

/// The greatest of the values that `score` gives for candidates, the first of equal ones, where
/// `rough` has a value near each.
fn choose_screened(
    rough: &[f32],
    score: &mut dyn FnMut(&[usize]) -> Result<Vec<f32>>,
) -> Result<Choice> {
    let mut order: Vec<usize> = (0..rough.len()).collect();
    order.sort_by(|&one, &other| rough[other].total_cmp(&rough[one]));
    let reaching = |bound: f32| order.partition_point(|&member| rough[member] >= bound);
    // With those equal to the last of them: equal rows are equal to both encoders.
    let with_equals = |count: usize| match order.get(count.wrapping_sub(1)) {
        Some(&last) => reaching(rough[last]),
        None => 0,
    };
    let mut values: Vec<(usize, f32)> = Vec::new();
    let mut wanted = with_equals(LEAST.min(order.len()));
    let most = with_equals(MOST.min(order.len()));
    loop {
        let mut members = order[values.len()..wanted].to_vec();
        // In their own order, so that the encoder sees what is alike side by side.
        members.sort_unstable();
        let found = score(&members)?;
        values.extend(members.into_iter().zip(found));
        let best = values.iter().map(|(_, value)| *value).fold(f32::NEG_INFINITY, f32::max);
        let (mean, deviation) = error(rough, &values);
        wanted = reaching(best - mean - DEVIATIONS * deviation).min(most);
        if wanted <= values.len() {
            break;
        }
    }
    let scored = values.len();
    values.sort_unstable_by_key(|(member, _)| *member);
    let best = first_greatest(values.iter().map(|(_, value)| *value))
        .ok_or_else(|| Error::internal("a step without candidates"))?;
    let (index, similarity) = values[best];
    Ok(Choice { index, similarity, scored })
}

/// Mean and standard deviation of what the rough values lack.
fn error(rough: &[f32], values: &[(usize, f32)]) -> (f32, f32) {
    let count = values.len().max(1) as f32;
    let lacks = || values.iter().map(|&(member, value)| value - rough[member]);
    let mean = lacks().sum::<f32>() / count;
    let variance = lacks().map(|lack| (lack - mean).powi(2)).sum::<f32>() / count;
    (mean, variance.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chooses among `exact` by way of `rough`: the place, and how many were scored.
    fn choose(rough: &[f32], exact: &[f32]) -> (usize, usize) {
        let mut seen = vec![false; exact.len()];
        let choice = choose_screened(rough, &mut |members| {
            assert!(members.is_sorted() && !members.is_empty());
            for member in members {
                assert!(!std::mem::replace(&mut seen[*member], true), "scored twice");
            }
            Ok(members.iter().map(|&member| exact[member]).collect())
        })
        .unwrap();
        assert_eq!(choice.similarity, exact[choice.index]);
        assert_eq!(choice.scored, seen.iter().filter(|seen| **seen).count());
        (choice.index, choice.scored)
    }

    /// Numbers of -1 to 1.
    fn noise(count: usize, mut state: u64) -> Vec<f32> {
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    #[test]
    fn a_screen_that_is_exact_but_for_a_shift_has_the_fewest_scored() {
        let exact: Vec<f32> = (0..1000).map(|i| ((i * 389) % 1000) as f32 / 1024.0).collect();
        let rough: Vec<f32> = exact.iter().map(|value| value - 0.25).collect();
        let best = exact.iter().position(|value| *value == 999.0 / 1024.0).unwrap();
        assert_eq!(choose(&rough, &exact), (best, LEAST));
    }

    #[test]
    fn noise_widens_what_is_scored_and_the_best_is_found() {
        let mut scored_more = 0;
        for seed in 1..40 {
            let exact = noise(2000, seed * 77);
            let error = noise(2000, seed * 1_234_567);
            let rough: Vec<f32> =
                exact.iter().zip(&error).map(|(value, error)| value + 0.02 * error).collect();
            let best = first_greatest(exact.iter().copied()).unwrap();
            let (chosen, scored) = choose(&rough, &exact);
            assert_eq!(chosen, best, "seed {seed}");
            scored_more += usize::from(scored > LEAST);
            assert!(scored <= MOST);
        }
        assert!(scored_more > 30, "{scored_more}");
    }

    #[test]
    fn a_screen_that_knows_nothing_does_not_cost_everything() {
        assert_eq!(choose(&noise(2000, 5), &noise(2000, 6)).1, MOST);
    }

    #[test]
    fn equal_candidates_stay_together_and_the_first_is_chosen() {
        let (mut rough, mut exact) = (vec![0.0; 2000], vec![0.0; 2000]);
        // More equal ones than are scored at most, all of them the best, beside a worse one.
        rough[700..1100].fill(0.5);
        exact[700..1100].fill(0.5);
        (rough[0], exact[0]) = (0.6, 0.4);
        assert_eq!(choose(&rough, &exact), (700, 401));
    }
}
