//! Which sequence has which slots, and what happens between two steps.
//!
//! The scheduler knows nothing of pictures or engines: a [`Model`] appends to
//! slots, the scheduler decides to which, and [`crate::generation`] with what. Sequences
//! join when there are slots for them and leave when they are finished or given up,
//! both at step boundaries, whatever their neighbours do; so one caption and
//! continuous batching are the same code. The slots in use are always the first ones:
//! what a sequence leaves behind is filled from the end.
//!
//! A sequence with beams has a slot for each, wherever they are. The prompt is read once
//! and its slot copied. When a beam is dropped for a second child of another, the
//! child's slot is that of the dropped one: the first child of a beam stays where its parent was.
//! So every copy is from a slot that is kept to one that is not, in any order, and
//! what survives by itself is not moved.

use std::collections::VecDeque;
use std::ops::Range;

use imprompt_error::{Error, Result};

use crate::generation::{Advance, Branch, Decoding, GenerationOptions};

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

    /// What is in slot `from`, `length` positions, is in slot `to` as well from now on.
    ///
    /// # Errors
    /// What the engine reports.
    fn copy_slot(&mut self, from: usize, to: usize, length: usize) -> Result<()>;
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
    /// Whether a prompt of `length` positions may grow as `options` say.
    ///
    /// # Errors
    /// `InvalidInput` when it could outgrow a slot, when it needs more slots than there
    /// are, and those of [`GenerationOptions::check`].
    pub fn fit(&self, length: usize, options: &GenerationOptions) -> Result<()> {
        options.check()?;
        if options.num_beams > self.slots {
            return Err(Error::invalid(format!(
                "num_beams is {}: each takes a slot of the cache, which has {}",
                options.num_beams, self.slots
            )));
        }
        let max_new_tokens = options.max_new_tokens;
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

/// What is to be generated.
#[derive(Clone, Debug)]
pub struct Sequence<P> {
    /// What it starts from.
    pub prompt: P,
    /// Positions that the prompt takes.
    pub length: usize,
    /// The ids that processors see in front of the new ones: see [`crate::generation`].
    pub context: Vec<u32>,
    /// How tokens are chosen.
    pub options: GenerationOptions,
}

#[derive(Debug)]
struct Waiting<P> {
    ticket: Ticket,
    prompt: P,
    length: usize,
    slots: usize,
    decoding: Decoding,
}

#[derive(Debug)]
struct Active {
    ticket: Ticket,
    /// The slot of each beam.
    slots: Vec<usize>,
    /// The token that the next step appends to each beam.
    next: Vec<u32>,
    /// Positions in each of its slots.
    length: usize,
    decoding: Decoding,
}

/// The sequences under way and those that wait for slots.
#[derive(Debug)]
pub struct Scheduler<P> {
    limits: Limits,
    waiting: VecDeque<Waiting<P>>,
    active: Vec<Active>,
    /// Whose each slot is, up to the last one in use; none only within a tick.
    owners: Vec<Option<Ticket>>,
    /// Whether the last run started sequences.
    has_started: bool,
}

impl<P> Scheduler<P> {
    /// A scheduler without sequences.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Scheduler {
            limits,
            waiting: VecDeque::new(),
            active: Vec::new(),
            owners: Vec::new(),
            has_started: false,
        }
    }

    /// Queues a sequence. `ticket` is not in use.
    ///
    /// # Errors
    /// As [`Limits::fit`].
    pub fn submit(&mut self, ticket: Ticket, sequence: Sequence<P>) -> Result<()> {
        let Sequence { prompt, length, context, options } = sequence;
        self.limits.fit(length, &options)?;
        let decoding = Decoding::new(&options, context, &self.limits.eos_token_ids);
        let slots = options.num_beams;
        self.waiting.push_back(Waiting { ticket, prompt, length, slots, decoding });
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
        self.owners.len()
    }

    /// The sequences that wait for slots, in their order.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = Ticket> {
        self.waiting.iter().map(|waiting| waiting.ticket)
    }

    /// Forgets the sequences under way, whose model is gone. Those that wait go on waiting.
    pub fn abandon(&mut self) {
        self.active.clear();
        self.owners.clear();
        self.has_started = false;
    }

    /// Forgets all sequences.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.abandon();
    }

    /// One step boundary and one run of the model: sequences for which `check`
    /// fails end with its error; if there are slots for the first that waits, those
    /// start that there are slots for; else every sequence grows by a token. Between two
    /// starts the sequences under way take a step, so that none stands still
    /// while others come and go. An error of the model ends the sequences that took part in the run.
    pub fn tick<M: Model<Prompt = P>>(
        &mut self,
        model: &mut M,
        check: &mut dyn FnMut(Ticket) -> Result<()>,
    ) -> Vec<Event> {
        let mut events = Vec::new();
        self.drop_cancelled(model, check, &mut events);
        let must_step = self.has_started && !self.active.is_empty();
        let count = if must_step { 0 } else { self.startable() };
        self.has_started = count > 0;
        if count > 0 {
            self.start(model, count, &mut events);
        } else if !self.active.is_empty() {
            self.step(model, &mut events);
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
        for index in (0..self.active.len()).rev() {
            if let Err(error) = check(self.active[index].ticket) {
                self.end(index, Err(error), events);
            }
        }
        self.close_up(model, events);
    }

    /// How many of those that wait, in their order, there are slots for. None overtakes
    /// another: one that needs many slots would wait for ever.
    fn startable(&self) -> usize {
        let mut free = self.limits.slots.saturating_sub(self.owners.len());
        let fits = |waiting: &&Waiting<P>| {
            let rest = free.checked_sub(waiting.slots);
            free = rest.unwrap_or(free);
            rest.is_some()
        };
        self.waiting.iter().take_while(fits).count()
    }

    /// Prefills `count` waiting sequences into the slots behind those in use, one each.
    fn start<M: Model<Prompt = P>>(
        &mut self,
        model: &mut M,
        count: usize,
        events: &mut Vec<Event>,
    ) {
        let first = self.owners.len();
        let mut prompts = Vec::with_capacity(count);
        for Waiting { ticket, prompt, length, decoding, .. } in self.waiting.drain(..count) {
            prompts.push(prompt);
            let slots = vec![self.owners.len()];
            self.active.push(Active { ticket, slots, next: Vec::new(), length, decoding });
            self.owners.push(Some(ticket));
        }
        let logits = model.prefill(first..first + count, &prompts);
        self.accept(model, first, logits, events);
    }

    /// Grows every sequence by its next token.
    fn step<M: Model<Prompt = P>>(&mut self, model: &mut M, events: &mut Vec<Event>) {
        let (mut lengths, mut tokens) = (vec![0; self.owners.len()], vec![0; self.owners.len()]);
        for active in &mut self.active {
            for (slot, token) in active.slots.iter().zip(&active.next) {
                lengths[*slot] = active.length;
                tokens[*slot] = *token;
            }
            active.length += 1;
        }
        let logits = model.step(&lengths, &tokens);
        self.accept(model, 0, logits, events);
    }

    /// Hands the scores of a run over the slots from `first` on to the sequences there.
    fn accept<M: Model<Prompt = P>>(
        &mut self,
        model: &mut M,
        first: usize,
        logits: Result<M::Logits>,
        events: &mut Vec<Event>,
    ) {
        let rows = self.owners.len() - first;
        let width = self.limits.vocabulary;
        let scores = logits.as_ref().map_err(Error::clone).and_then(|logits| {
            let scores = logits.scores()?;
            if width > 0 && scores.len() == rows * width {
                return Ok(scores);
            }
            Err(Error::internal(format!(
                "the decoder gave {} scores for {rows} sequences and {width} tokens",
                scores.len()
            )))
        });
        for index in (0..self.active.len()).rev() {
            // Slots of a run are those of whole sequences.
            if self.active[index].slots.iter().any(|slot| *slot < first || *slot >= first + rows) {
                continue;
            }
            let advanced = scores.as_ref().map_err(Error::clone).and_then(|scores| {
                let row = |slot: &usize| &scores[(slot - first) * width..][..width];
                let active = &mut self.active[index];
                let rows: Vec<&[f32]> = active.slots.iter().map(row).collect();
                active.decoding.advance(&rows)
            });
            match advanced {
                Ok(Advance { said, next }) => {
                    let ticket = self.active[index].ticket;
                    events.extend(said.into_iter().map(|token| Event::Token(ticket, token)));
                    match next {
                        Ok(branches) => {
                            if let Err(error) = self.branch(model, index, &branches) {
                                self.end(index, Err(error), events);
                            }
                        }
                        Err(stop) => self.end(index, Ok(stop), events),
                    }
                }
                Err(error) => self.end(index, Err(error), events),
            }
        }
        self.close_up(model, events);
    }

    /// Gives each branch of a sequence a slot with what its parent has in its own.
    fn branch<M: Model<Prompt = P>>(
        &mut self,
        model: &mut M,
        index: usize,
        branches: &[Branch],
    ) -> Result<()> {
        let active = &mut self.active[index];
        let mut unused: Vec<Option<usize>> = active.slots.iter().copied().map(Some).collect();
        let stays: Vec<Option<usize>> =
            branches.iter().map(|branch| unused[branch.parent].take()).collect();
        let mut unused = unused.into_iter().flatten();
        let mut slots = Vec::with_capacity(branches.len());
        for (branch, stays) in branches.iter().zip(stays) {
            let slot = match stays {
                Some(slot) => slot,
                None => {
                    let to = unused.next().unwrap_or_else(|| {
                        // A beam that was not there before: kept free since the start.
                        self.owners.push(Some(active.ticket));
                        self.owners.len() - 1
                    });
                    model.copy_slot(active.slots[branch.parent], to, active.length)?;
                    to
                }
            };
            slots.push(slot);
        }
        active.slots = slots;
        active.next = branches.iter().map(|branch| branch.token).collect();
        Ok(())
    }

    /// Ends a sequence; its slots are nobody's.
    fn end(&mut self, index: usize, outcome: Result<Stop>, events: &mut Vec<Event>) {
        let ended = self.active.remove(index);
        for owner in &mut self.owners {
            if *owner == Some(ended.ticket) {
                *owner = None;
            }
        }
        events.push(Event::Finished(ended.ticket, outcome));
    }

    /// Moves what is in the last slots into those that are nobody's.
    fn close_up<M: Model<Prompt = P>>(&mut self, model: &mut M, events: &mut Vec<Event>) {
        loop {
            while self.owners.last() == Some(&None) {
                self.owners.pop();
            }
            let Some(free) = self.owners.iter().position(Option::is_none) else { return };
            let last = self.owners.len() - 1;
            let moved = self.active.iter().position(|active| active.slots.contains(&last));
            let Some(index) = moved else {
                // A slot without a sequence is nobody's.
                self.owners[last] = None;
                continue;
            };
            match model.copy_slot(last, free, self.active[index].length) {
                Ok(()) => {
                    self.owners.swap_remove(free);
                    for slot in self.active[index].slots.iter_mut().filter(|slot| **slot == last) {
                        *slot = free;
                    }
                }
                // The one that was to move has lost its cache: it ends as well.
                Err(error) => self.end(index, Err(error), events),
            }
        }
    }
}

#[cfg(test)]
mod tests;
