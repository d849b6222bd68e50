//! Which sequence has which slot, and what happens between two steps.
//!
//! The scheduler knows nothing of pictures or engines: a [`Model`] appends to
//! slots, the scheduler decides to which. Sequences join when a slot is free and
//! leave when they are finished or given up, both at step boundaries, whatever
//! their neighbours do; so one caption and continuous batching are the same
//! code. The slots in use are always the first ones: when a sequence leaves,
//! the last one takes its slot.

use std::collections::VecDeque;
use std::ops::Range;

use imprompt_error::{Error, Result};

/// What a language model must do for the scheduler. Slots are places of its
/// cache.
pub trait Model {
    /// What a sequence starts from.
    type Prompt;

    /// The scores of the next token for each sequence of a run.
    type Logits: Logits;

    /// Starts sequences in `slots`, one for each prompt.
    ///
    /// # Errors
    /// What the engine reports.
    fn prefill(&mut self, slots: Range<usize>, prompts: &[Self::Prompt]) -> Result<Self::Logits>;

    /// Appends `tokens[i]` to the sequence in slot `i`, which has `lengths[i]`
    /// positions.
    ///
    /// # Errors
    /// What the engine reports.
    fn step(&mut self, lengths: &[usize], tokens: &[u32]) -> Result<Self::Logits>;

    /// The sequence in slot `from` goes on in slot `to`.
    ///
    /// # Errors
    /// What the engine reports.
    fn move_slot(&mut self, from: usize, to: usize) -> Result<()>;
}

/// Scores of the next token, a row for each sequence.
pub trait Logits {
    /// The rows, one after the other, each as wide as the vocabulary.
    ///
    /// # Errors
    /// What the engine reports.
    fn scores(&self) -> Result<&[f32]>;
}

/// Names a sequence from [`Scheduler::submit`] until it is finished.
pub type Ticket = usize;

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model said the end token, which is the last of the ids.
    End,
    /// As many tokens as were asked for.
    Length,
}

/// What a [`Scheduler::tick`] brought about.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A sequence grew by a token.
    Token(Ticket, u32),
    /// A sequence ended; its ticket is free.
    Finished(Ticket, Result<Stop>),
}

/// How large sequences may become, and where they end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that are decoded side by side.
    pub slots: usize,
    /// Positions of one slot.
    pub max_length: usize,
    /// Width of a row of scores.
    pub vocabulary: usize,
    /// A sequence ends with any of these.
    pub eos_token_ids: Vec<u32>,
}

impl Limits {
    /// Whether a prompt of `length` positions may grow by `max_new_tokens`.
    ///
    /// # Errors
    /// `InvalidInput` when it could outgrow a slot, or may not grow at all.
    pub fn fit(&self, length: usize, max_new_tokens: usize) -> Result<()> {
        if max_new_tokens == 0 {
            return Err(Error::invalid("max_new_tokens is 0, at least 1 is needed"));
        }
        // The last token is said but never read.
        let positions = length.saturating_add(max_new_tokens - 1);
        if length == 0 || positions > self.max_length {
            return Err(Error::invalid(format!(
                "the picture and the prompt take {length} positions and max_new_tokens is \
                 {max_new_tokens}: {positions} positions in all, {} allowed",
                self.max_length
            )));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Waiting<P> {
    ticket: Ticket,
    prompt: P,
    length: usize,
    remaining: usize,
}

#[derive(Clone, Copy, Debug)]
struct Active {
    ticket: Ticket,
    /// Positions in the cache.
    length: usize,
    /// Tokens it may still grow by.
    remaining: usize,
    /// The token that the next step appends.
    next: u32,
}

/// The sequences under way and those that wait for a slot.
#[derive(Debug)]
pub struct Scheduler<P> {
    limits: Limits,
    waiting: VecDeque<Waiting<P>>,
    /// The sequence of each slot in use: slots `0..active.len()`.
    active: Vec<Active>,
}

impl<P> Scheduler<P> {
    /// A scheduler without sequences.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Scheduler { limits, waiting: VecDeque::new(), active: Vec::new() }
    }

    /// Queues a sequence whose prompt takes `length` positions, to grow by up to
    /// `max_new_tokens`.
    ///
    /// # Errors
    /// As [`Limits::fit`].
    pub fn submit(
        &mut self,
        ticket: Ticket,
        prompt: P,
        length: usize,
        max_new_tokens: usize,
    ) -> Result<()> {
        self.limits.fit(length, max_new_tokens)?;
        self.waiting.push_back(Waiting { ticket, prompt, length, remaining: max_new_tokens });
        Ok(())
    }

    /// Whether nothing is under way and nothing waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.active.is_empty()
    }

    /// Slots in use.
    #[must_use]
    pub fn slots_in_use(&self) -> usize {
        self.active.len()
    }

    /// One step boundary and one run of the model: sequences for which `check`
    /// fails end with its error; if a slot is free and a sequence waits, the
    /// waiting start; else every sequence grows by a token. An error of the
    /// model ends the sequences that took part in the run.
    pub fn tick<M: Model<Prompt = P>>(
        &mut self,
        model: &mut M,
        check: &mut dyn FnMut(Ticket) -> Result<()>,
    ) -> Vec<Event> {
        let mut events = Vec::new();
        self.drop_cancelled(model, check, &mut events);
        let free = self.limits.slots.saturating_sub(self.active.len()).min(self.waiting.len());
        let first = if free > 0 {
            self.start(model, free, &mut events)
        } else if self.active.is_empty() {
            return events;
        } else {
            self.step(model, &mut events)
        };
        if let Some(first) = first {
            self.retire(model, first, &mut events);
        }
        events
    }

    fn drop_cancelled<M: Model<Prompt = P>>(
        &mut self,
        model: &mut M,
        check: &mut dyn FnMut(Ticket) -> Result<()>,
        events: &mut Vec<Event>,
    ) {
        self.waiting.retain(|waiting| match check(waiting.ticket) {
            Ok(()) => true,
            Err(error) => {
                events.push(Event::Finished(waiting.ticket, Err(error)));
                false
            }
        });
        for slot in (0..self.active.len()).rev() {
            if let Err(error) = check(self.active[slot].ticket) {
                self.leave(model, slot, Err(error), events);
            }
        }
    }

    /// Prefills `count` waiting sequences into the slots behind those in use.
    /// Gives the first of those slots, `None` when the run failed.
    fn start<M: Model<Prompt = P>>(
        &mut self,
        model: &mut M,
        count: usize,
        events: &mut Vec<Event>,
    ) -> Option<usize> {
        let first = self.active.len();
        let mut prompts = Vec::with_capacity(count);
        for Waiting { ticket, prompt, length, remaining } in self.waiting.drain(..count) {
            prompts.push(prompt);
            self.active.push(Active { ticket, length, remaining, next: 0 });
        }
        let logits = model.prefill(first..first + count, &prompts);
        self.accept(first, logits, events)
    }

    /// Grows every sequence by its next token.
    fn step<M: Model<Prompt = P>>(
        &mut self,
        model: &mut M,
        events: &mut Vec<Event>,
    ) -> Option<usize> {
        let lengths: Vec<usize> = self.active.iter().map(|a| a.length).collect();
        let tokens: Vec<u32> = self.active.iter().map(|a| a.next).collect();
        let logits = model.step(&lengths, &tokens);
        for active in &mut self.active {
            active.length += 1;
        }
        self.accept(0, logits, events)
    }

    /// Takes the tokens for the sequences from slot `first` on.
    fn accept<L: Logits>(
        &mut self,
        first: usize,
        logits: Result<L>,
        events: &mut Vec<Event>,
    ) -> Option<usize> {
        let tokens =
            logits.and_then(|logits| self.choose(logits.scores()?, self.active.len() - first));
        match tokens {
            Ok(tokens) => {
                for (active, token) in self.active[first..].iter_mut().zip(tokens) {
                    active.next = token;
                    active.remaining -= 1;
                    events.push(Event::Token(active.ticket, token));
                }
                Some(first)
            }
            Err(error) => {
                for active in self.active.drain(first..) {
                    events.push(Event::Finished(active.ticket, Err(error.clone())));
                }
                None
            }
        }
    }

    fn choose(&self, scores: &[f32], rows: usize) -> Result<Vec<u32>> {
        let width = self.limits.vocabulary;
        if scores.len() != rows * width {
            return Err(Error::internal(format!(
                "the decoder gave {} scores for {rows} sequences and {width} tokens",
                scores.len()
            )));
        }
        scores.chunks_exact(width).map(greedy).collect()
    }

    /// Ends the sequences from slot `first` on that are finished.
    fn retire<M: Model<Prompt = P>>(
        &mut self,
        model: &mut M,
        first: usize,
        events: &mut Vec<Event>,
    ) {
        for slot in (first..self.active.len()).rev() {
            let active = self.active[slot];
            if self.limits.eos_token_ids.contains(&active.next) {
                self.leave(model, slot, Ok(Stop::End), events);
            } else if active.remaining == 0 {
                self.leave(model, slot, Ok(Stop::Length), events);
            }
        }
    }

    /// The sequence in `slot` ends; the last one takes its slot.
    fn leave<M: Model<Prompt = P>>(
        &mut self,
        model: &mut M,
        slot: usize,
        outcome: Result<Stop>,
        events: &mut Vec<Event>,
    ) {
        let last = self.active.len() - 1;
        let left = self.active.swap_remove(slot);
        events.push(Event::Finished(left.ticket, outcome));
        if slot == last {
            return;
        }
        if let Err(error) = model.move_slot(last, slot) {
            // The one that was to move has lost its cache: it ends as well.
            self.leave(model, slot, Err(error), events);
        }
    }
}

/// The token of the highest score, the lowest id of equals.
fn greedy(scores: &[f32]) -> Result<u32> {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &score) in scores.iter().enumerate() {
        if score > best.1 {
            best = (id, score);
        }
    }
    if !best.1.is_finite() || scores.iter().any(|score| score.is_nan()) {
        return Err(Error::internal("the decoder's scores are not finite numbers"));
    }
    Ok(best.0 as u32)
}

#[cfg(test)]
mod tests;
