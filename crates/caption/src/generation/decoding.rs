//! One sequence's choices, step by step.

use imprompt_error::{Error, Result};

use super::beams::Beams;
use super::options::GenerationOptions;
use super::processors::Processors;
use super::sampling::Sampler;
use crate::scheduler::Stop;

/// How a beam goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Branch {
    /// The beam, of those before, that it continues.
    pub(crate) parent: usize,
    /// The token that it continues it with.
    pub(crate) token: u32,
}

/// What a step brought about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Advance {
    /// The tokens that are certain now. Beams are certain of none before the end.
    pub(crate) said: Vec<u32>,
    /// How each beam goes on, or why the sequence has ended.
    pub(crate) next: Result<Vec<Branch>, Stop>,
}

/// The state of a sequence's choices.
#[derive(Clone, Debug)]
pub(crate) struct Decoding {
    processors: Processors,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    One(One),
    Beams(Option<Beams>),
}

/// A sequence without beams.
#[derive(Clone, Debug)]
struct One {
    /// The context and what was said.
    ids: Vec<u32>,
    remaining: usize,
    sampler: Option<Box<Sampler>>,
    eos_token_ids: Vec<u32>,
}

impl Decoding {
    /// `context`: the ids that processors see in front of the new ones.
    pub(crate) fn new(
        options: &GenerationOptions,
        context: Vec<u32>,
        eos_token_ids: &[u32],
    ) -> Self {
        let processors = Processors::new(options, context.len(), eos_token_ids);
        let kind = if options.num_beams > 1 {
            Kind::Beams(Some(Beams::new(options, context, eos_token_ids)))
        } else {
            Kind::One(One {
                ids: context,
                remaining: options.max_new_tokens,
                sampler: options.sampling.map(Sampler::new).map(Box::new),
                eos_token_ids: eos_token_ids.to_vec(),
            })
        };
        Decoding { processors, kind }
    }

    /// Takes the model's scores of the next token, a row a beam (at first one row).
    ///
    /// # Errors
    /// `Internal` when they are not numbers; `InvalidInput` when the options leave no token.
    pub(crate) fn advance(&mut self, rows: &[&[f32]]) -> Result<Advance> {
        if rows.is_empty() || !rows.iter().all(|row| are_numbers(row)) {
            return Err(Error::internal("the decoder's scores are not finite numbers"));
        }
        match &mut self.kind {
            Kind::One(one) => one.advance(rows[0], &self.processors),
            Kind::Beams(beams) => {
                let mut under_way =
                    beams.take().ok_or_else(|| Error::internal("the beams have ended before"))?;
                Ok(match under_way.advance(rows, &self.processors)? {
                    Some(next) => {
                        *beams = Some(under_way);
                        Advance { said: Vec::new(), next: Ok(next) }
                    }
                    None => {
                        let (said, stop) = under_way.best();
                        Advance { said, next: Err(stop) }
                    }
                })
            }
        }
    }
}

impl One {
    fn advance(&mut self, row: &[f32], processors: &Processors) -> Result<Advance> {
        let token = if self.sampler.is_none() && processors.is_idle(&self.ids) {
            greedy(row)
        } else {
            let mut scores = row.to_vec();
            processors.apply(&self.ids, &mut scores);
            match &mut self.sampler {
                Some(sampler) => sampler.draw(&mut scores)?,
                None => greedy(&scores),
            }
        };
        self.ids.push(token);
        self.remaining -= 1;
        let next = if self.eos_token_ids.contains(&token) {
            Err(Stop::End)
        } else if self.remaining == 0 {
            Err(Stop::Length)
        } else {
            Ok(vec![Branch { parent: 0, token }])
        };
        Ok(Advance { said: vec![token], next })
    }
}

fn are_numbers(scores: &[f32]) -> bool {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    highest.is_finite() && !scores.iter().any(|score| score.is_nan())
}

/// The token of the highest score, the lowest id of equals.
pub(super) fn greedy(scores: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &score) in scores.iter().enumerate() {
        if score > best.1 {
            best = (id, score);
        }
    }
    best.0 as u32
}
