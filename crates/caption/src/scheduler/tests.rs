use std::cell::Cell;
use std::collections::BTreeMap;

use super::*;
use crate::generation::{EarlyStopping, Sampling};

const END: u32 = 0;
const VOCABULARY: usize = 7;

/// A language model whose next token depends on all that its slot holds: a slip
/// of a slot shows in every token after it.
struct Fake {
    slots: Vec<Vec<u32>>,
    prefills: usize,
    steps: usize,
    widest: usize,
    fail_copies: bool,
    copies: usize,
    fail_prefill: Cell<bool>,
}

impl Fake {
    fn new(slots: usize) -> Self {
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

struct FakeLogits(Vec<f32>);

impl Logits for FakeLogits {
    fn scores(&self) -> Result<&[f32]> {
        Ok(&self.0)
    }
}

fn mix(content: &[u32]) -> u64 {
    content.iter().fold(17u64, |h, t| (h * 31 + u64::from(*t)) % 1_000_003)
}

fn next(content: &[u32]) -> u32 {
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
fn alone(prompt: &[u32], max_new_tokens: usize) -> (Vec<u32>, Stop) {
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

fn scheduler(slots: usize) -> Scheduler<Vec<u32>> {
    Scheduler::new(limits(slots))
}

fn limits(slots: usize) -> Limits {
    Limits { slots, max_length: 64, vocabulary: VOCABULARY, eos_token_ids: vec![END] }
}

fn sequence(prompt: Vec<u32>, options: GenerationOptions) -> Sequence<Vec<u32>> {
    Sequence { length: prompt.len(), context: prompt.clone(), prompt, options }
}

fn greedy(prompt: Vec<u32>, max_new_tokens: usize) -> Sequence<Vec<u32>> {
    sequence(prompt, GenerationOptions::greedy(max_new_tokens))
}

#[derive(Default)]
struct Seen {
    ids: BTreeMap<Ticket, Vec<u32>>,
    finished: BTreeMap<Ticket, Result<Stop>>,
}

impl Seen {
    fn take(&mut self, events: Vec<Event>) {
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

    fn check_alone(&self, ticket: Ticket, prompt: &[u32], max_new_tokens: usize) {
        let (ids, stop) = alone(prompt, max_new_tokens);
        assert_eq!(self.finished[&ticket], Ok(stop));
        assert_eq!(self.ids[&ticket], ids);
    }
}

/// A reproducible sequence of small numbers.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

#[test]
fn sequences_that_come_and_go_say_what_they_say_alone() {
    let mut widest = 0;
    for seed in 0..200 {
        let mut numbers = Numbers(seed);
        let slots = 1 + numbers.below(5);
        let (mut scheduler, mut model) = (scheduler(slots), Fake::new(slots));
        let mut seen = Seen::default();
        let sequences: Vec<(Vec<u32>, usize)> = (0..1 + numbers.below(12))
            .map(|n| {
                let rest = (0..numbers.below(4)).map(|_| 1 + numbers.below(6) as u32).collect();
                ([vec![n as u32], rest].concat(), 1 + numbers.below(20))
            })
            .collect();
        let mut given_up = BTreeMap::new();
        let mut coming = sequences.iter().enumerate();
        let mut ticks = 0;
        loop {
            // Some join together, some while others are under way.
            for (ticket, (prompt, limit)) in coming.by_ref().take(numbers.below(4)) {
                scheduler.submit(ticket, greedy(prompt.clone(), *limit)).unwrap();
                if numbers.below(5) == 0 {
                    given_up.insert(ticket, ticks + numbers.below(10));
                }
            }
            let events = scheduler.tick(&mut model, &mut |ticket| match given_up.get(&ticket) {
                Some(tick) if *tick <= ticks => Err(Error::cancelled()),
                _ => Ok(()),
            });
            seen.take(events);
            assert!(scheduler.slots_in_use() <= slots);
            ticks += 1;
            if scheduler.is_idle() && coming.len() == 0 {
                break;
            }
        }
        for (ticket, (prompt, limit)) in sequences.iter().enumerate() {
            let (ids, stop) = alone(prompt, *limit);
            match &seen.finished[&ticket] {
                Ok(found) => {
                    assert_eq!((*found, &seen.ids[&ticket]), (stop, &ids), "seed {seed}");
                }
                Err(error) => {
                    assert_eq!(error.kind(), imprompt_error::Kind::Cancelled);
                    assert!(given_up.contains_key(&ticket));
                    let said = seen.ids.get(&ticket).map_or(0, Vec::len);
                    assert_eq!(seen.ids.get(&ticket).map_or(&[][..], |v| v), &ids[..said]);
                }
            }
        }
        widest = widest.max(model.widest);
    }
    assert_eq!(widest, 5, "the model was never fully in use");
}

#[test]
fn a_batch_starts_together() {
    let (mut scheduler, mut model) = (scheduler(4), Fake::new(4));
    let mut seen = Seen::default();
    for ticket in 0..4 {
        scheduler.submit(ticket, greedy(vec![ticket as u32 + 1], 9)).unwrap();
    }
    while !scheduler.is_idle() {
        seen.take(scheduler.tick(&mut model, &mut |_| Ok(())));
    }
    assert_eq!(model.prefills, 1);
    let longest = (0..4).map(|t| alone(&[t + 1], 9).0.len()).max().unwrap();
    assert_eq!(model.steps, longest - 1, "the last token is never read");
}

#[test]
fn what_does_not_fit_is_refused_in_numbers() {
    let mut scheduler = scheduler(2);
    assert!(scheduler.submit(0, greedy(vec![1], 0)).is_err());
    assert!(scheduler.submit(0, Sequence { length: 0, ..greedy(vec![1], 4) }).is_err());
    assert!(scheduler.submit(0, greedy(vec![1], usize::MAX)).is_err());
    let error = scheduler.submit(0, greedy(vec![1; 60], 6)).unwrap_err();
    assert_eq!(error.kind(), imprompt_error::Kind::InvalidInput);
    assert!(error.message().contains("65 positions in all, 64 allowed"), "{error}");
    assert!(scheduler.is_idle());
    scheduler.submit(0, greedy(vec![1; 60], 5)).unwrap();
}

#[test]
fn a_failed_run_ends_those_that_took_part() {
    let (mut scheduler, mut model) = (scheduler(3), Fake::new(3));
    let mut seen = Seen::default();
    scheduler.submit(0, greedy(vec![1], 12)).unwrap();
    seen.take(scheduler.tick(&mut model, &mut |_| Ok(())));
    model.fail_prefill.set(true);
    scheduler.submit(1, greedy(vec![2], 12)).unwrap();
    seen.take(scheduler.tick(&mut model, &mut |_| Ok(())));
    assert!(seen.finished[&1].is_err());
    scheduler.submit(2, greedy(vec![3], 12)).unwrap();
    while !scheduler.is_idle() {
        seen.take(scheduler.tick(&mut model, &mut |_| Ok(())));
    }
    seen.check_alone(0, &[1], 12);
    seen.check_alone(2, &[3], 12);
}

#[test]
fn a_slot_that_cannot_move_ends_its_sequence_only() {
    let (mut scheduler, mut model) = (scheduler(3), Fake::new(3));
    model.fail_copies = true;
    let mut seen = Seen::default();
    for ticket in 0..3 {
        scheduler.submit(ticket, greedy(vec![ticket as u32 + 1], 12)).unwrap();
    }
    seen.take(scheduler.tick(&mut model, &mut |_| Ok(())));
    seen.take(
        scheduler.tick(&mut model, &mut |t| if t == 1 { Err(Error::cancelled()) } else { Ok(()) }),
    );
    while !scheduler.is_idle() {
        seen.take(scheduler.tick(&mut model, &mut |_| Ok(())));
    }
    seen.check_alone(0, &[1], 12);
    let kinds: Vec<_> = [1, 2].map(|t| seen.finished[&t].as_ref().unwrap_err().kind()).to_vec();
    assert_eq!(kinds, [imprompt_error::Kind::Cancelled, imprompt_error::Kind::Internal]);
}

#[test]
fn scores_must_be_a_row_of_numbers_for_each() {
    let mut scheduler = Scheduler::new(Limits { vocabulary: VOCABULARY + 1, ..limits(1) });
    scheduler.submit(0, greedy(vec![1], 4)).unwrap();
    let events = scheduler.tick(&mut Fake::new(1), &mut |_| Ok(()));
    assert!(
        matches!(&events[..], [Event::Finished(0, Err(error))] if error.message().contains('8'))
    );
    assert!(scheduler.is_idle() && scheduler.slots_in_use() == 0);
}

/// Options of all kinds that two slots or more can follow.
fn any_options(numbers: &mut Numbers, slots: usize) -> GenerationOptions {
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

fn by_itself(prompt: &[u32], options: GenerationOptions) -> (Vec<u32>, Stop) {
    let slots = options.num_beams;
    let (mut scheduler, mut model) = (scheduler(slots), Fake::new(slots));
    let mut seen = Seen::default();
    scheduler.submit(0, sequence(prompt.to_vec(), options)).unwrap();
    while !scheduler.is_idle() {
        seen.take(scheduler.tick(&mut model, &mut |_| Ok(())));
    }
    (seen.ids.remove(&0).unwrap(), seen.finished[&0].clone().unwrap())
}

#[test]
fn whatever_the_options_neighbours_do_not_matter() {
    let (mut copies, mut with_beams) = (0, 0);
    for seed in 0..300 {
        let mut numbers = Numbers(seed);
        let slots = 2 + numbers.below(6);
        let (mut scheduler, mut model) = (scheduler(slots), Fake::new(slots));
        let mut seen = Seen::default();
        let sequences: Vec<(Vec<u32>, GenerationOptions)> = (0..1 + numbers.below(9))
            .map(|n| {
                let rest = (0..numbers.below(4)).map(|_| 1 + numbers.below(6) as u32).collect();
                ([vec![n as u32], rest].concat(), any_options(&mut numbers, slots))
            })
            .collect();
        let mut given_up = BTreeMap::new();
        let mut coming = sequences.iter().enumerate();
        let mut ticks = 0;
        while ticks == 0 || !scheduler.is_idle() || coming.len() > 0 {
            for (ticket, (prompt, options)) in coming.by_ref().take(numbers.below(4)) {
                scheduler.submit(ticket, sequence(prompt.clone(), *options)).unwrap();
                if numbers.below(5) == 0 {
                    given_up.insert(ticket, ticks + numbers.below(10));
                }
            }
            let events = scheduler.tick(&mut model, &mut |ticket| match given_up.get(&ticket) {
                Some(tick) if *tick <= ticks => Err(Error::cancelled()),
                _ => Ok(()),
            });
            seen.take(events);
            assert!(scheduler.slots_in_use() <= slots);
            ticks += 1;
        }
        assert_eq!(scheduler.slots_in_use(), 0);
        for (ticket, (prompt, options)) in sequences.iter().enumerate() {
            let alone = by_itself(prompt, *options);
            let said = seen.ids.remove(&ticket).unwrap_or_default();
            match &seen.finished[&ticket] {
                Ok(stop) => {
                    assert_eq!((said, *stop), alone, "seed {seed}: {options:?}");
                    with_beams += usize::from(options.num_beams > 1);
                }
                Err(error) => {
                    assert_eq!(error.kind(), imprompt_error::Kind::Cancelled);
                    assert!(given_up.contains_key(&ticket));
                    assert!(alone.0.starts_with(&said));
                }
            }
        }
        copies += model.copies;
    }
    assert!(with_beams > 200 && copies > 1_000, "{with_beams} with beams, {copies} copies");
}

#[test]
fn beams_need_their_slots() {
    let mut scheduler = scheduler(3);
    let options = GenerationOptions { num_beams: 4, ..GenerationOptions::greedy(5) };
    let error = scheduler.submit(0, sequence(vec![1], options)).unwrap_err();
    assert_eq!(error.kind(), imprompt_error::Kind::InvalidInput);
    assert!(error.message().contains("num_beams is 4") && error.message().contains("has 3"));
    assert!(scheduler.is_idle());
}

#[test]
fn who_needs_many_slots_is_not_overtaken() {
    let (mut scheduler, mut model) = (scheduler(3), Fake::new(3));
    let mut seen = Seen::default();
    let beams = GenerationOptions { num_beams: 3, ..GenerationOptions::greedy(6) };
    scheduler.submit(0, greedy(vec![1], 12)).unwrap();
    scheduler.submit(1, sequence(vec![2], beams)).unwrap();
    scheduler.submit(2, greedy(vec![3], 1)).unwrap();
    let mut order = Vec::new();
    while !scheduler.is_idle() {
        let events = scheduler.tick(&mut model, &mut |_| Ok(()));
        order.extend(events.iter().filter_map(|event| match event {
            Event::Finished(ticket, _) => Some(*ticket),
            Event::Token(..) => None,
        }));
        seen.take(events);
    }
    assert_eq!(order, [0, 1, 2]);
}

#[test]
fn a_beam_that_cannot_be_copied_ends_its_sequence_only() {
    let (mut scheduler, mut model) = (scheduler(4), Fake::new(4));
    let mut seen = Seen::default();
    let beams = GenerationOptions { num_beams: 3, ..GenerationOptions::greedy(6) };
    scheduler.submit(0, greedy(vec![1], 12)).unwrap();
    scheduler.submit(1, sequence(vec![2], beams)).unwrap();
    model.fail_copies = true;
    seen.take(scheduler.tick(&mut model, &mut |_| Ok(())));
    assert_eq!(seen.finished[&1].as_ref().unwrap_err().kind(), imprompt_error::Kind::Internal);
    assert_eq!(scheduler.slots_in_use(), 1);
    while !scheduler.is_idle() {
        seen.take(scheduler.tick(&mut model, &mut |_| Ok(())));
    }
    seen.check_alone(0, &[1], 12);
}
