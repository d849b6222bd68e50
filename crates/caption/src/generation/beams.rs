//! Beam search (`beam_search` and `BeamSearchScorer` of the reference).

use imprompt_error::{Error, Result};

use super::decoding::Branch;
use super::options::{EarlyStopping, GenerationOptions};
use super::processors::Processors;
use crate::scheduler::Stop;

/// What the reference starts every beam but the first with, so that only the first counts.
const UNSTARTED: f32 = -1e9;

/// The beams of one sequence, and the hypotheses that have ended.
#[derive(Clone, Debug)]
pub(super) struct Beams {
    options: GenerationOptions,
    context: usize,
    eos_token_ids: Vec<u32>,
    /// The ids of each beam, the context included: all of one length.
    ids: Vec<Vec<u32>>,
    /// The sum of each beam's log-probabilities.
    scores: Vec<f32>,
    /// The best that have ended, at most one a beam.
    ended: Vec<Hypothesis>,
    /// No more than the score of any of `ended`.
    worst: f64,
}

#[derive(Clone, Debug)]
struct Hypothesis {
    score: f64,
    /// Without the end token.
    ids: Vec<u32>,
}

/// A token that one of the beams could go on with.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    score: f32,
    beam: usize,
    token: u32,
}

impl Beams {
    pub(super) fn new(
        options: &GenerationOptions,
        context: Vec<u32>,
        eos_token_ids: &[u32],
    ) -> Self {
        let mut scores = vec![UNSTARTED; options.num_beams];
        scores[0] = 0.0;
        Beams {
            options: *options,
            context: context.len(),
            eos_token_ids: eos_token_ids.to_vec(),
            ids: vec![context; options.num_beams],
            scores,
            ended: Vec::new(),
            worst: 1e9,
        }
    }

    /// Takes the scores of the next token of each beam (before the first step: one row,
    /// all beams being the same). Gives each beam's next token and the beam it
    /// continues; none when the search has ended.
    pub(super) fn advance(
        &mut self,
        rows: &[&[f32]],
        processors: &Processors,
    ) -> Result<Option<Vec<Branch>>> {
        let candidates = self.candidates(rows, processors);
        let best = candidates.first().map_or(f32::NEG_INFINITY, |candidate| candidate.score);
        let length = self.ids[0].len() + 1;
        let mut next: Vec<Candidate> = Vec::with_capacity(self.ids.len());
        for (rank, candidate) in candidates.into_iter().enumerate() {
            if !self.eos_token_ids.contains(&candidate.token) {
                next.push(candidate);
            } else if rank < self.ids.len() {
                let ids = self.ids[candidate.beam].clone();
                self.end(ids, candidate.score);
            }
            if next.len() == self.ids.len() {
                break;
            }
        }
        if next.len() < self.ids.len() {
            return Err(Error::internal(format!("{} tokens for {}", next.len(), self.ids.len())));
        }
        self.ids = next
            .iter()
            .map(|candidate| {
                let mut ids = Vec::with_capacity(length);
                ids.extend_from_slice(&self.ids[candidate.beam]);
                ids.push(candidate.token);
                ids
            })
            .collect();
        self.scores = next.iter().map(|candidate| candidate.score).collect();
        if self.is_done(f64::from(best), length) {
            return Ok(None);
        }
        if length == self.max_length() {
            for (ids, score) in std::mem::take(&mut self.ids).into_iter().zip(self.scores.clone()) {
                self.end(ids, score);
            }
            return Ok(None);
        }
        // Of one row, all beams are children.
        let last = rows.len() - 1;
        let branch = |c: &Candidate| Branch { parent: c.beam.min(last), token: c.token };
        Ok(Some(next.iter().map(branch).collect()))
    }

    /// What the best hypothesis says after the context, and why it ended.
    pub(super) fn best(self) -> (Vec<u32>, Stop) {
        let full = self.max_length();
        // Of equals the last, as the reference's `sorted(...).pop()` has it.
        let best = self.ended.into_iter().max_by(|a, b| a.score.total_cmp(&b.score));
        let mut ids = best.map_or(Vec::new(), |hypothesis| hypothesis.ids);
        let stop = if ids.len() < full { Stop::End } else { Stop::Length };
        let mut said = ids.split_off(self.context.min(ids.len()));
        if stop == Stop::End {
            said.extend(self.eos_token_ids.first());
        }
        (said, stop)
    }

    fn max_length(&self) -> usize {
        self.context + self.options.max_new_tokens
    }

    /// The best continuations of all beams, best first: enough of them that as many
    /// as there are beams do not end.
    fn candidates(&self, rows: &[&[f32]], processors: &Processors) -> Vec<Candidate> {
        let count = self.ids.len() * (1 + self.eos_token_ids.len()).max(2);
        let mut best: Vec<Candidate> = Vec::with_capacity(count + 1);
        for (beam, ids) in self.ids.iter().enumerate() {
            let mut scores = log_softmax(rows.get(beam).copied().unwrap_or(rows[0]));
            processors.apply(ids, &mut scores);
            for (token, score) in scores.into_iter().enumerate() {
                let score = score + self.scores[beam];
                let is_full = best.len() == count;
                if is_full && best.last().is_none_or(|last| score <= last.score) {
                    continue;
                }
                // Of equals the first comes first.
                let place = best.partition_point(|candidate| candidate.score >= score);
                if is_full {
                    best.pop();
                }
                best.insert(place, Candidate { score, beam, token: token as u32 });
            }
        }
        best
    }

    /// `BeamHypotheses.add`.
    fn end(&mut self, ids: Vec<u32>, sum: f32) {
        let score = f64::from(sum) / (ids.len() as f64).powf(self.options.length_penalty);
        if self.ended.len() == self.scores.len() && score <= self.worst {
            return;
        }
        self.ended.push(Hypothesis { score, ids });
        if self.ended.len() <= self.scores.len() {
            self.worst = self.worst.min(score);
            return;
        }
        let lowest = |ended: &[Hypothesis]| {
            (0..ended.len()).min_by(|a, b| ended[*a].score.total_cmp(&ended[*b].score))
        };
        if let Some(worst) = lowest(&self.ended) {
            self.ended.remove(worst);
        }
        if let Some(worst) = lowest(&self.ended) {
            self.worst = self.ended[worst].score;
        }
    }

    /// `BeamHypotheses.is_done`: `best` is the highest sum of the step, `length` that of
    /// the beams now.
    fn is_done(&self, best: f64, length: usize) -> bool {
        if self.ended.len() < self.scores.len() {
            return false;
        }
        let penalty = self.options.length_penalty;
        let length = match self.options.early_stopping {
            EarlyStopping::Always => return true,
            EarlyStopping::Never if penalty > 0.0 => self.max_length(),
            _ => length,
        };
        self.worst >= best / (length as f64).powf(penalty)
    }
}

fn log_softmax(scores: &[f32]) -> Vec<f32> {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores.iter().map(|score| f64::from((score - highest).exp())).sum();
    let shift = sum.ln() as f32;
    scores.iter().map(|score| score - highest - shift).collect()
}
