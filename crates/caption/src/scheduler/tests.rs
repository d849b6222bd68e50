use std::collections::BTreeMap;

use super::*;
use crate::fake::{
    Fake, Numbers, Seen, VOCABULARY, alone, any_options, by_itself, greedy, limits, scheduler,
    sequence,
};

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
    // A step, and then the start.
    for _ in 0..2 {
        seen.take(scheduler.tick(&mut model, &mut |_| Ok(())));
    }
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

#[test]
fn those_under_way_do_not_stand_still_while_others_come_and_go() {
    let (mut scheduler, mut model) = (scheduler(2), Fake::new(2));
    let mut seen = Seen::default();
    let long = GenerationOptions { min_new_tokens: 20, ..GenerationOptions::greedy(20) };
    scheduler.submit(0, sequence(vec![1], long)).unwrap();
    let mut ticks = 0;
    while !seen.finished.contains_key(&0) {
        ticks += 1;
        scheduler.submit(ticks, greedy(vec![2], 1)).unwrap();
        seen.take(scheduler.tick(&mut model, &mut |_| Ok(())));
        assert!(ticks <= 40, "it waits for those that came later");
    }
    assert!(seen.finished.len() > 15, "the others wait for it");
}

#[test]
fn an_abandoned_scheduler_keeps_those_that_wait() {
    let (mut scheduler, mut model) = (scheduler(2), Fake::new(2));
    let mut seen = Seen::default();
    for ticket in 0..4 {
        scheduler.submit(ticket, greedy(vec![ticket as u32 + 1], 9)).unwrap();
    }
    seen.take(scheduler.tick(&mut model, &mut |_| Ok(())));
    scheduler.abandon();
    assert_eq!((scheduler.slots_in_use(), scheduler.waiting().collect()), (0, vec![2, 3]));
    model = Fake::new(2);
    while !scheduler.is_idle() {
        seen.take(scheduler.tick(&mut model, &mut |_| Ok(())));
    }
    seen.check_alone(2, &[3], 9);
    seen.check_alone(3, &[4], 9);
    assert!(!seen.finished.contains_key(&0) && !seen.finished.contains_key(&1));
    scheduler.submit(4, greedy(vec![5], 9)).unwrap();
    scheduler.clear();
    assert!(scheduler.is_idle());
}
