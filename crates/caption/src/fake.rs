//! A language model for tests of what stands around one.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;

use imprompt_error::{Error, Result};

use crate::generation::{EarlyStopping, GenerationOptions, Sampling};
use crate::scheduler::{Event, Limits, Logits, Model, Scheduler, Sequence, Stop, Ticket};

pub(crate) const END: u32 = 0;
pub(crate) const VOCABULARY: usize = 7;

/// A language model whose next token depends on all that its slot holds: a slip
/// of a slot shows in every token after it.
pub(crate) struct Fake {
    pub(crate) slots: Vec<Vec<u32>>,
    pub(crate) prefills: usize,
    pub(crate) steps: usize,
    pub(crate) widest: usize,
    pub(crate) fail_copies: bool,
    pub(crate) copies: usize,
    pub(crate) fail_prefill: Cell<bool>,
}

impl Fake {
    pub(crate) fn new(slots: usize) -> Self {
        Fake {
            slots: vec![Vec::new(); slots],
            prefills: 0,
            steps: 0,
            widest: 0,
            fail_copies: false,
            copies: 0,
            fail_prefill: Cell::new(false),
        }
    }

    fn scores(&self, slots: Range<usize>) -> FakeLogits {
        let row = |slot: &Vec<u32>| {
            let mixed = mix(slot);
            let score = |token: u64| (mixed * (token + 3) * 7_919 % 1_009) as f32 / 1_009.0;
            let mut row: Vec<f32> = (0..VOCABULARY as u64).map(score).collect();
            row[next(slot) as usize] = 1.25;
            row
        };
        FakeLogits(self.slots[slots].iter().flat_map(row).collect())
    }
}

pub(crate) struct FakeLogits(Vec<f32>);

impl Logits for FakeLogits {
    fn scores(&self) -> Result<&[f32]> {
        Ok(&self.0)
    }
}

pub(crate) fn mix(content: &[u32]) -> u64 {
    content.iter().fold(17u64, |h, t| (h * 31 + u64::from(*t)) % 1_000_003)
}

pub(crate) fn next(content: &[u32]) -> u32 {
    (mix(content) % VOCABULARY as u64) as u32
}

impl Model for Fake {
    type Prompt = Vec<u32>;
    type Logits = FakeLogits;

    fn prefill(&mut self, slots: Range<usize>, prompts: &[Vec<u32>]) -> Result<FakeLogits> {
        assert_eq!(slots.len(), prompts.len());
        if self.fail_prefill.take() {
            return Err(Error::out_of_memory("the prompt"));
        }
        self.prefills += 1;
        self.slots[slots.clone()].clone_from_slice(prompts);
        Ok(self.scores(slots))
    }

    fn step(&mut self, lengths: &[usize], tokens: &[u32]) -> Result<FakeLogits> {
        self.steps += 1;
        self.widest = self.widest.max(tokens.len());
        for (slot, (length, token)) in lengths.iter().zip(tokens).enumerate() {
            assert_eq!(self.slots[slot].len(), *length, "slot {slot}");
            self.slots[slot].push(*token);
        }
        Ok(self.scores(0..tokens.len()))
    }

    fn copy_slot(&mut self, from: usize, to: usize, length: usize) -> Result<()> {
        if self.fail_copies {
            return Err(Error::internal("the slot cannot be copied"));
        }
        assert_ne!(from, to);
        assert_eq!(self.slots[from].len(), length, "slot {from}");
        self.slots[to] = self.slots[from].clone();
        self.copies += 1;
        Ok(())
    }
}

/// What a sequence says when it is alone.
pub(crate) fn alone(prompt: &[u32], max_new_tokens: usize) -> (Vec<u32>, Stop) {
    let mut content = prompt.to_vec();
    let mut ids = Vec::new();
    for _ in 0..max_new_tokens {
        let token = next(&content);
        ids.push(token);
        if token == END {
            return (ids, Stop::End);
        }
        content.push(token);
    }
    (ids, Stop::Length)
}

pub(crate) fn scheduler(slots: usize) -> Scheduler<Vec<u32>> {
    Scheduler::new(limits(slots))
}

pub(crate) fn limits(slots: usize) -> Limits {
    Limits { slots, max_length: 64, vocabulary: VOCABULARY, eos_token_ids: vec![END] }
}

pub(crate) fn sequence(prompt: Vec<u32>, options: GenerationOptions) -> Sequence<Vec<u32>> {
    Sequence { length: prompt.len(), context: prompt.clone(), prompt, options }
}

pub(crate) fn greedy(prompt: Vec<u32>, max_new_tokens: usize) -> Sequence<Vec<u32>> {
    sequence(prompt, GenerationOptions::greedy(max_new_tokens))
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) ids: BTreeMap<Ticket, Vec<u32>>,
    pub(crate) finished: BTreeMap<Ticket, Result<Stop>>,
}

impl Seen {
    pub(crate) fn take(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Token(ticket, id) => {
                    assert!(!self.finished.contains_key(&ticket), "a token after the end");
                    self.ids.entry(ticket).or_default().push(id);
                }
                Event::Finished(ticket, outcome) => {
                    assert!(self.finished.insert(ticket, outcome).is_none(), "ended twice");
                }
            }
        }
    }

    pub(crate) fn check_alone(&self, ticket: Ticket, prompt: &[u32], max_new_tokens: usize) {
        let (ids, stop) = alone(prompt, max_new_tokens);
        assert_eq!(self.finished[&ticket], Ok(stop));
        assert_eq!(self.ids[&ticket], ids);
    }
}

/// A reproducible sequence of small numbers.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// Options of all kinds that two slots or more can follow.
pub(crate) fn any_options(numbers: &mut Numbers, slots: usize) -> GenerationOptions {
    let max_new_tokens = 1 + numbers.below(14);
    let early = [EarlyStopping::Heuristic, EarlyStopping::Always, EarlyStopping::Never];
    let mut options = GenerationOptions {
        min_new_tokens: numbers.below(max_new_tokens + 1).saturating_sub(5),
        repetition_penalty: [1.0, 1.0, 1.3][numbers.below(3)],
        no_repeat_ngram_size: [0, 0, 2, 3][numbers.below(4)],
        length_penalty: [1.0, 0.0, 2.0][numbers.below(3)],
        early_stopping: early[numbers.below(3)],
        ..GenerationOptions::greedy(max_new_tokens)
    };
    match numbers.below(3) {
        0 => options.num_beams = 1 + numbers.below(slots),
        1 => {
            let seed = numbers.below(50) as u64;
            options.sampling = Some(Sampling { seed, top_k: 3, ..Sampling::default() });
        }
        _ => {}
    }
    options
}

pub(crate) fn by_itself(prompt: &[u32], options: GenerationOptions) -> (Vec<u32>, Stop) {
    let slots = options.num_beams;
    let (mut scheduler, mut model) = (scheduler(slots), Fake::new(slots));
    let mut seen = Seen::default();
    scheduler.submit(0, sequence(prompt.to_vec(), options)).unwrap();
    while !scheduler.is_idle() {
        seen.take(scheduler.tick(&mut model, &mut |_| Ok(())));
    }
    (seen.ids.remove(&0).unwrap(), seen.finished[&0].clone().unwrap())
}
