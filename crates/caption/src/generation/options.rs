//! What a request or a checkpoint may say about how tokens are chosen.

use imprompt_error::{Error, Result};
use imprompt_graph::{EarlyStoppingFact, GenerationFacts};

/// When a beam search with as many finished hypotheses as beams ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// When no beam, as it is now, scores better than the worst of them (`False`).
    #[default]
    Heuristic,
    /// At once (`True`).
    Always,
    /// When no beam could ever score better (`"never"`).
    Never,
}

/// Drawing a token by its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// What scores are divided by: above 0; 1 changes nothing.
    pub temperature: f64,
    /// Only the tokens of the `top_k` highest scores; 0: all.
    pub top_k: usize,
    /// Only the most probable tokens that together have this probability: above 0, at
    /// most 1, which is all.
    pub top_p: f64,
    /// The same seed draws the same numbers on every machine.
    pub seed: u64,
}

impl Default for Sampling {
    /// As `generate(do_sample=True)` has it; seed 0.
    fn default() -> Self {
        Sampling { temperature: 1.0, top_k: 50, top_p: 1.0, seed: 0 }
    }
}

/// How a sequence is generated. The default is greedy; what a checkpoint's
/// configuration says may override it, and what a request says, that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GenerationOptions {
    /// Most tokens that are said, the end token included.
    pub max_new_tokens: usize,
    /// The end token is not said before as many others.
    pub min_new_tokens: usize,
    /// The same, the context counted.
    pub min_length: usize,
    /// What the score of a token is divided by (multiplied, where it is negative) that
    /// is among the ids already: above 0; 1 changes nothing.
    pub repetition_penalty: f64,
    /// No sequence of so many ids comes twice; 0: no matter.
    pub no_repeat_ngram_size: usize,
    /// Sequences that are followed side by side, a slot each; the best is said. 1: no beams.
    pub num_beams: usize,
    /// The sum of a hypothesis' log-probabilities is divided by its length to this
    /// power: above 0 favours long ones. Without beams it does nothing.
    pub length_penalty: f64,
    /// When beams end.
    pub early_stopping: EarlyStopping,
    /// Draws tokens; `None`: the best is taken.
    pub sampling: Option<Sampling>,
}

impl Default for GenerationOptions {
    /// As `generate` has it; 32 tokens, clip-interrogator's `caption_max_length`.
    fn default() -> Self {
        GenerationOptions {
            max_new_tokens: 32,
            min_new_tokens: 0,
            min_length: 0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            num_beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Heuristic,
            sampling: None,
        }
    }
}

impl From<&GenerationFacts> for GenerationOptions {
    /// What a checkpoint asks for.
    fn from(facts: &GenerationFacts) -> Self {
        GenerationOptions {
            min_new_tokens: facts.min_new_tokens,
            min_length: facts.min_length,
            repetition_penalty: facts.repetition_penalty,
            no_repeat_ngram_size: facts.no_repeat_ngram_size,
            num_beams: facts.num_beams,
            length_penalty: facts.length_penalty,
            early_stopping: match facts.early_stopping {
                EarlyStoppingFact::Heuristic => EarlyStopping::Heuristic,
                EarlyStoppingFact::Always => EarlyStopping::Always,
                EarlyStoppingFact::Never => EarlyStopping::Never,
            },
            sampling: facts.do_sample.then_some(Sampling {
                temperature: facts.temperature,
                top_k: facts.top_k,
                top_p: facts.top_p,
                seed: 0,
            }),
            ..GenerationOptions::default()
        }
    }
}

impl GenerationOptions {
    /// The default with another limit.
    #[must_use]
    pub fn greedy(max_new_tokens: usize) -> Self {
        GenerationOptions { max_new_tokens, ..GenerationOptions::default() }
    }

    /// Whether they can be followed.
    ///
    /// # Errors
    /// `InvalidInput` naming the option, its value and what is allowed.
    pub fn check(&self) -> Result<()> {
        let wrong = |name: &str, value: &dyn std::fmt::Display, allowed: &str| {
            Err(Error::invalid(format!("{name} is {value}, {allowed}")))
        };
        if self.max_new_tokens == 0 {
            return Err(Error::invalid("max_new_tokens is 0, at least 1 is needed"));
        }
        if self.min_new_tokens > self.max_new_tokens {
            let allowed = format!("max_new_tokens ({}) is the most", self.max_new_tokens);
            return wrong("min_new_tokens", &self.min_new_tokens, &allowed);
        }
        let is_positive = |value: f64| value.is_finite() && value > 0.0;
        if !is_positive(self.repetition_penalty) {
            let allowed = "a number above 0 is needed";
            return wrong("repetition_penalty", &self.repetition_penalty, allowed);
        }
        if !self.length_penalty.is_finite() {
            return wrong("length_penalty", &self.length_penalty, "a finite number is needed");
        }
        if self.num_beams == 0 {
            return Err(Error::invalid("num_beams is 0, at least 1 is needed"));
        }
        let Some(sampling) = self.sampling else { return Ok(()) };
        if !is_positive(sampling.temperature) {
            return wrong("temperature", &sampling.temperature, "a number above 0 is needed");
        }
        if !(is_positive(sampling.top_p) && sampling.top_p <= 1.0) {
            return wrong("top_p", &sampling.top_p, "above 0 and at most 1 are allowed");
        }
        if self.num_beams > 1 {
            return Err(Error::invalid(format!(
                "num_beams is {} and tokens are to be drawn: beams are followed by score alone, \
                 give one of the two",
                self.num_beams
            )));
        }
        Ok(())
    }
}
