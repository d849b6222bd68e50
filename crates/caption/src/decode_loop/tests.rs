use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use imprompt_error::Uncancellable;

use super::*;
use crate::fake::{Fake, FakeLogits, Numbers, any_options, by_itself, limits, sequence};
use crate::generation::GenerationOptions;

type Prompt = Vec<u32>;

/// What befalls a run of the model.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    Error,
    Panic,
}

/// A [`Fake`] that takes its time, and to which things happen.
struct Faulty {
    fake: Fake,
    befall: Arc<dyn Fn() -> Fault + Send + Sync>,
}

impl Faulty {
    fn befall(&self) -> Result<()> {
        match (self.befall)() {
            Fault::None => Ok(()),
            Fault::Error => Err(Error::out_of_memory("a test")),
            // Without the hook, which would fill the tests' output.
            Fault::Panic => resume_unwind(Box::new("as told")),
        }
    }
}

impl Model for Faulty {
    type Prompt = Prompt;
    type Logits = FakeLogits;

    fn prefill(&mut self, slots: std::ops::Range<usize>, prompts: &[Prompt]) -> Result<FakeLogits> {
        self.befall()?;
        self.fake.prefill(slots, prompts)
    }

    fn step(&mut self, lengths: &[usize], tokens: &[u32]) -> Result<FakeLogits> {
        self.befall()?;
        self.fake.step(lengths, tokens)
    }

    fn copy_slot(&mut self, from: usize, to: usize, length: usize) -> Result<()> {
        self.befall()?;
        self.fake.copy_slot(from, to, length)
    }
}

/// What a loop told of itself.
#[derive(Default)]
struct Watched {
    last: Mutex<Load>,
    most_in_use: AtomicUsize,
    most_waiting: AtomicUsize,
    restarts: AtomicUsize,
}

impl Watch for Watched {
    fn load(&self, load: Load) {
        self.most_in_use.fetch_max(load.slots_in_use, Ordering::Relaxed);
        self.most_waiting.fetch_max(load.waiting, Ordering::Relaxed);
        *self.last.lock().unwrap() = load;
    }

    fn restarted(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }
}

fn start(
    slots: usize,
    max_waiting: usize,
    befall: impl Fn() -> Fault + Send + Sync + 'static,
) -> (DecodeLoop<Prompt>, Arc<Watched>) {
    let (watched, befall) = (Arc::new(Watched::default()), Arc::new(befall));
    let open = move || Faulty { fake: Fake::new(slots), befall: befall.clone() };
    let (model, reopen) = (open(), move || Ok(open()));
    let started = DecodeLoop::start(model, limits(slots), reopen, max_waiting, watched.clone());
    (started.unwrap(), watched)
}

/// One that takes `microseconds` for each run.
fn slow(slots: usize, max_waiting: usize, microseconds: u64) -> (DecodeLoop<Prompt>, Arc<Watched>) {
    start(slots, max_waiting, move || {
        thread::sleep(Duration::from_micros(microseconds));
        Fault::None
    })
}

/// Exactly `tokens` tokens after `prompt`.
fn of_length(prompt: u32, tokens: usize) -> Sequence<Prompt> {
    let options = GenerationOptions { min_new_tokens: tokens, ..GenerationOptions::greedy(tokens) };
    sequence(vec![prompt], options)
}

fn member<'a>(sequence: Sequence<Prompt>, cancel: &'a dyn Cancellation) -> Member<'a, Prompt> {
    Member { owner: 0, sequence: Ok(sequence), cancel }
}

fn one(
    decode_loop: &DecodeLoop<Prompt>,
    sequence: Sequence<Prompt>,
    cancel: &dyn Cancellation,
) -> Result<Generated> {
    decode_loop.generate(vec![member(sequence, cancel)], None).remove(0)
}

fn kind(outcome: &Result<Generated>) -> Option<Kind> {
    outcome.as_ref().err().map(Error::kind)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        thread::sleep(Duration::from_micros(200));
    }
}

impl DecodeLoop<Prompt> {
    fn in_flight(&self) -> usize {
        self.shared.lock().in_flight
    }
}

/// Cancelled at its n-th look, or at a moment.
struct Ends {
    looks: AtomicUsize,
    most: usize,
    deadline: Option<Instant>,
}

impl Cancellation for Ends {
    fn is_cancelled(&self) -> bool {
        self.looks.fetch_add(1, Ordering::Relaxed) >= self.most
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

/// How often each kind of end was met.
#[derive(Default)]
struct Met {
    whole: AtomicUsize,
    refused: AtomicUsize,
    cancelled: AtomicUsize,
    late: AtomicUsize,
    failed: AtomicUsize,
    panicked: AtomicUsize,
    callers_gone: AtomicUsize,
}

/// One call of a caller with random sequences, checked.
fn ask(decode_loop: &DecodeLoop<Prompt>, slots: usize, numbers: &mut Numbers, met: &Met) {
    let wanted: Vec<(Prompt, GenerationOptions)> = (0..1 + numbers.below(4))
        .map(|_| {
            let prompt = (0..1 + numbers.below(4)).map(|_| 1 + numbers.below(6) as u32).collect();
            (prompt, any_options(numbers, slots))
        })
        .collect();
    let ends: Vec<Ends> = wanted
        .iter()
        .map(|_| Ends {
            looks: AtomicUsize::new(0),
            most: if numbers.below(6) == 0 { 1 + numbers.below(12) } else { usize::MAX },
            deadline: (numbers.below(8) == 0)
                .then(|| Instant::now() + Duration::from_micros(numbers.below(2_000) as u64)),
        })
        .collect();
    let members =
        wanted.iter().zip(&ends).enumerate().map(|(place, ((prompt, options), cancel))| {
            let sequence = Ok(sequence(prompt.clone(), *options));
            Member { owner: place / 2, sequence, cancel }
        });
    let mut told: Vec<(Vec<u32>, Option<Result<Generated>>)> =
        vec![Default::default(); wanted.len()];
    let goes_after = if numbers.below(10) == 0 { numbers.below(20) } else { usize::MAX };
    let mut heard = 0;
    let mut tell = |place: usize, news: Told<'_>| {
        let (ids, end) = &mut told[place];
        assert!(end.is_none(), "more after the end");
        match news {
            Told::Token(id) => ids.push(id),
            Told::End(outcome) => *end = Some(outcome.clone()),
        }
        heard += 1;
        if heard > goes_after {
            resume_unwind(Box::new("the caller goes"));
        }
    };
    let members = members.collect();
    let called = catch_unwind(AssertUnwindSafe(|| decode_loop.generate(members, Some(&mut tell))));
    let Ok(outcomes) = called else {
        met.callers_gone.fetch_add(1, Ordering::Relaxed);
        return;
    };
    assert_eq!(outcomes.len(), wanted.len());
    let count = |counter: &AtomicUsize| {
        counter.fetch_add(1, Ordering::Relaxed);
    };
    for (place, (outcome, (ids, end))) in outcomes.iter().zip(&told).enumerate() {
        let (prompt, options) = &wanted[place];
        let (whole, stop) = by_itself(prompt, *options);
        match outcome {
            Ok(generated) => {
                assert_eq!(*generated, Generated { ids: whole.clone(), stop }, "{options:?}");
                assert_eq!(*ids, whole);
                count(&met.whole);
            }
            Err(error) => {
                assert!(whole.starts_with(ids), "{ids:?} of {whole:?}");
                match error.kind() {
                    Kind::Unavailable => count(&met.refused),
                    Kind::OutOfMemory => count(&met.failed),
                    Kind::Internal => count(&met.panicked),
                    Kind::Cancelled => {
                        assert!(ends[place].most < usize::MAX);
                        count(&met.cancelled);
                    }
                    Kind::DeadlineExceeded => {
                        assert!(ends[place].deadline.unwrap() <= Instant::now());
                        count(&met.late);
                    }
                    _ => panic!("{error:?}"),
                }
            }
        }
        match end {
            Some(end) => assert_eq!(end, outcome),
            None => assert_eq!(kind(outcome), Some(Kind::Unavailable), "no end was told"),
        }
    }
}

#[test]
fn every_sequence_ends_once_and_as_it_does_alone() {
    let met = Met::default();
    let (mut restarts, mut waited) = (0, 0);
    for seed in 0..60 {
        let mut numbers = Numbers(seed);
        let slots = 2 + numbers.below(5);
        let (max_waiting, callers) = (numbers.below(8), 1 + numbers.below(6));
        // Every third loop has a model that fails and panics now and then.
        let (faults, drawn) = (seed % 3 == 0, Mutex::new(Numbers(seed)));
        let (decode_loop, watched) = start(slots, max_waiting, move || {
            let mut numbers = drawn.lock().unwrap();
            thread::sleep(Duration::from_micros(numbers.below(60) as u64));
            match numbers.below(60) {
                0 if faults => Fault::Error,
                1 if faults => Fault::Panic,
                _ => Fault::None,
            }
        });
        thread::scope(|scope| {
            for caller in 0..callers {
                let (decode_loop, met) = (&decode_loop, &met);
                scope.spawn(move || {
                    let mut numbers = Numbers(1_000 * seed + caller as u64);
                    for _ in 0..8 {
                        ask(decode_loop, slots, &mut numbers, met);
                    }
                });
            }
        });
        // Those of a caller that went have ended, or end at the next step.
        until("nothing is in flight", || decode_loop.in_flight() == 0);
        until("nothing is in use", || {
            *watched.last.lock().unwrap() == Load { slots_in_use: 0, slots, waiting: 0 }
        });
        assert!(watched.most_in_use.load(Ordering::Relaxed) <= slots);
        // At most all that were let in at once.
        assert!(watched.most_waiting.load(Ordering::Relaxed) <= slots + max_waiting);
        restarts += watched.restarts.load(Ordering::Relaxed);
        waited = waited.max(watched.most_waiting.load(Ordering::Relaxed));
        assert!(faults || watched.restarts.load(Ordering::Relaxed) == 0);
        // It works on, unless that hits a fault of its own.
        let last = one(&decode_loop, of_length(3, 4), &Uncancellable);
        assert!(faults || last.is_ok(), "{last:?}");
    }
    let Met { whole, refused, cancelled, late, failed, panicked, callers_gone } = met;
    let met = [whole, refused, cancelled, late, failed, panicked, callers_gone];
    let met = met.map(AtomicUsize::into_inner);
    assert!(met.iter().all(|count| *count > 20) && restarts > 20 && waited > 3, "{met:?}");
}

#[test]
fn a_late_short_one_does_not_wait_for_an_early_long_one() {
    let (decode_loop, _) = slow(2, 0, 500);
    let (begun, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut tell = |_: usize, _: Told<'_>| begun.store(true, Ordering::Release);
            let members = vec![member(of_length(1, 60), &Uncancellable)];
            decode_loop.generate(members, Some(&mut tell)).remove(0).unwrap();
            ended.store(true, Ordering::Release);
        });
        until("the long one begins", || begun.load(Ordering::Acquire));
        let short = one(&decode_loop, of_length(2, 3), &Uncancellable).unwrap();
        assert_eq!(short.ids.len(), 3);
        assert!(!ended.load(Ordering::Acquire), "it waited for the long one");
    });
}

#[test]
fn a_full_queue_refuses_owners_as_a_whole() {
    let (decode_loop, watched) = slow(1, 2, 500);
    let flag = CancelFlag::default();
    thread::scope(|scope| {
        let first = scope.spawn(|| one(&decode_loop, of_length(1, 60), &flag));
        let second = scope.spawn(|| one(&decode_loop, of_length(2, 60), &flag));
        until("one runs and one waits", || {
            *watched.last.lock().unwrap() == Load { slots_in_use: 1, slots: 1, waiting: 1 }
        });
        let two = || [of_length(3, 2), of_length(4, 2)].map(|s| member(s, &Uncancellable)).into();
        // There is room for one of the two.
        let error = decode_loop.generate(two(), None).remove(1).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.message().contains("2 are under way or wait, 2 more are asked for, 3"));
        let mut others: Vec<Member<'_, Prompt>> = two();
        others[1].owner = 1;
        // What is refused alone takes no room.
        others[0].sequence = Err(Error::invalid("a test"));
        flag.cancel();
        let kinds: Vec<_> = decode_loop.generate(others, None).iter().map(kind).collect();
        assert_eq!(kinds, [Some(Kind::InvalidInput), None]);
        for call in [first, second] {
            assert_eq!(kind(&call.join().unwrap()), Some(Kind::Cancelled));
        }
    });
    assert_eq!(decode_loop.in_flight(), 0);
}

#[test]
fn those_that_wait_are_given_up_as_well() {
    let (decode_loop, _) = slow(1, 4, 500);
    let flag = CancelFlag::default();
    thread::scope(|scope| {
        let long = scope.spawn(|| one(&decode_loop, of_length(1, 60), &flag));
        until("it runs", || decode_loop.in_flight() == 1);
        let deadline = Some(Instant::now() + Duration::from_millis(2));
        let never = Ends { looks: AtomicUsize::new(0), most: usize::MAX, deadline };
        assert_eq!(
            kind(&one(&decode_loop, of_length(2, 60), &never)),
            Some(Kind::DeadlineExceeded)
        );
        let soon = Ends { looks: AtomicUsize::new(0), most: 2, deadline: None };
        assert_eq!(kind(&one(&decode_loop, of_length(2, 60), &soon)), Some(Kind::Cancelled));
        assert_eq!(decode_loop.in_flight(), 1, "the long one is still under way");
        flag.cancel();
        assert_eq!(kind(&long.join().unwrap()), Some(Kind::Cancelled));
    });
}

#[test]
fn a_caller_that_goes_leaves_no_work_behind() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let (decode_loop, _) = start(2, 0, move || {
        counted.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(2));
        Fault::None
    });
    let members = [1, 2].map(|prompt| member(of_length(prompt, 60), &Uncancellable)).into();
    let mut tell = |_: usize, _: Told<'_>| resume_unwind(Box::new("the caller goes"));
    let call = AssertUnwindSafe(|| decode_loop.generate(members, Some(&mut tell)));
    assert!(catch_unwind(call).is_err());
    until("its slots are free", || decode_loop.in_flight() == 0);
    let runs = runs.load(Ordering::Relaxed);
    assert!(runs < 50, "{runs} runs for nobody");
}

#[test]
fn a_panic_costs_those_under_way_and_the_model_is_opened_again() {
    let (panics, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let befall: Arc<dyn Fn() -> Fault + Send + Sync> = {
        let panics = panics.clone();
        Arc::new(move || {
            thread::sleep(Duration::from_micros(500));
            if panics.swap(false, Ordering::AcqRel) { Fault::Panic } else { Fault::None }
        })
    };
    let open = move || Faulty { fake: Fake::new(1), befall: befall.clone() };
    let (model, watched) = (open(), Arc::new(Watched::default()));
    let reopen = {
        let opened = opened.clone();
        // The third time and the fourth there is no memory.
        move || match opened.fetch_add(1, Ordering::AcqRel) {
            1 | 2 => Err(Error::out_of_memory("the model")),
            _ => Ok(open()),
        }
    };
    let decode_loop = DecodeLoop::start(model, limits(1), reopen, 4, watched.clone()).unwrap();
    thread::scope(|scope| {
        let first = scope.spawn(|| one(&decode_loop, of_length(1, 60), &Uncancellable));
        until("one runs", || watched.last.lock().unwrap().slots_in_use == 1);
        let second = scope.spawn(|| one(&decode_loop, of_length(2, 5), &Uncancellable));
        until("one waits", || watched.last.lock().unwrap().waiting == 1);
        panics.store(true, Ordering::Release);
        assert_eq!(kind(&first.join().unwrap()), Some(Kind::Internal));
        // It had no part in it.
        assert_eq!(second.join().unwrap().unwrap().ids.len(), 5);
    });
    assert_eq!(opened.load(Ordering::Acquire), 1);
    panics.store(true, Ordering::Release);
    assert_eq!(kind(&one(&decode_loop, of_length(1, 5), &Uncancellable)), Some(Kind::Internal));
    until("it is tried at once", || opened.load(Ordering::Acquire) == 2);
    let unavailable = one(&decode_loop, of_length(1, 5), &Uncancellable);
    assert_eq!(kind(&unavailable), Some(Kind::Unavailable));
    one(&decode_loop, of_length(1, 5), &Uncancellable).unwrap();
    assert_eq!(opened.load(Ordering::Acquire), 4);
    assert_eq!(watched.restarts.load(Ordering::Relaxed), 2);
    assert_eq!(decode_loop.in_flight(), 0);
}

#[test]
fn a_loop_whose_thread_has_ended_keeps_nobody_waiting() {
    struct Fatal;
    impl Watch for Fatal {
        fn load(&self, load: Load) {
            if load.slots_in_use > 0 {
                resume_unwind(Box::new("not of the model"));
            }
        }
        fn restarted(&self) {}
    }
    let open = || Ok(Faulty { fake: Fake::new(1), befall: Arc::new(|| Fault::None) });
    let decode_loop =
        DecodeLoop::start(open().unwrap(), limits(1), open, 1, Arc::new(Fatal)).unwrap();
    let outcome = one(&decode_loop, of_length(1, 5), &Uncancellable);
    assert_eq!(kind(&outcome), Some(Kind::Internal));
    until("it is closed", || decode_loop.shared.lock().is_closed);
    let outcome = one(&decode_loop, of_length(1, 5), &Uncancellable);
    assert_eq!(kind(&outcome), Some(Kind::Unavailable));
}
