//! One decoding loop for many callers: a thread that owns a model and a
//! [`Scheduler`](crate::scheduler::Scheduler). Callers hand in sequences and wait; sequences join
//! and leave at step boundaries, so nobody waits for the end of what others asked before.
//!
//! What a caller lends, its cancellation and the place that hears of tokens, stays on its own
//! thread: it looks at the one and tells the other while it waits.

mod worker;

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use imprompt_error::{CancelFlag, Cancellation, Error, Kind, Result};

use crate::captioner::{Generated, Tell, Told};
use crate::scheduler::{Limits, Model, Sequence};
use worker::Worker;

/// How often a caller that waits looks whether its client is still there.
const LOOK: Duration = Duration::from_millis(5);

/// What a decoding loop has to do at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Slots of the cache that sequences have.
    pub slots_in_use: usize,
    /// Slots in all.
    pub slots: usize,
    /// Sequences that wait for slots.
    pub waiting: usize,
}

/// Hears of a decoding loop, on its thread.
pub trait Watch: Send + Sync {
    /// The load has changed.
    fn load(&self, load: Load);

    /// The model panicked, which cost the sequences under way, and is opened again.
    fn restarted(&self);
}

/// One sequence that a caller wants.
pub(crate) struct Member<'a, P> {
    /// Members of one owner are let in together or not at all.
    pub(crate) owner: usize,
    /// What is to be generated, or why nothing is.
    pub(crate) sequence: Result<Sequence<P>>,
    /// Asked while it waits and at every step boundary.
    pub(crate) cancel: &'a dyn Cancellation,
}

/// The loop. Dropped, its thread ends.
#[derive(Debug)]
pub(crate) struct DecodeLoop<P> {
    shared: Arc<Shared<P>>,
    thread: Option<JoinHandle<()>>,
}

/// What callers and the loop's thread share.
#[derive(Debug)]
struct Shared<P> {
    state: Mutex<State<P>>,
    arrival: Condvar,
    /// Sequences that may be in flight.
    most: usize,
}

#[derive(Debug)]
struct State<P> {
    /// Those that the loop has not seen yet.
    arrived: Vec<Job<P>>,
    /// Sequences that were let in and have not ended.
    in_flight: usize,
    /// Whether the loop ends, or has ended.
    is_closed: bool,
}

impl<P> Shared<P> {
    fn lock(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets no more sequences in. Those that the loop has not seen are dropped, and so is
    /// their callers' wait.
    fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.arrived.clear();
        self.arrival.notify_all();
    }
}

/// A sequence on its way to the loop.
#[derive(Debug)]
struct Job<P> {
    sequence: Sequence<P>,
    seat: Seat,
}

/// Who waits for a sequence.
#[derive(Debug)]
struct Seat {
    /// Its place among those of its caller.
    place: usize,
    news: Sender<News>,
    wants_tokens: bool,
    /// What it has said.
    ids: Vec<u32>,
    given_up: CancelFlag,
    deadline: Option<Instant>,
}

impl Seat {
    fn check(&self, now: Instant) -> Result<()> {
        self.given_up.check()?;
        match self.deadline {
            Some(deadline) if deadline <= now => {
                Err(Error::new(Kind::DeadlineExceeded, "the request's deadline has passed"))
            }
            _ => Ok(()),
        }
    }
}

/// What a caller hears of its sequences, by their places.
#[derive(Debug)]
enum News {
    Token(usize, u32),
    End(usize, Result<Generated>),
}

/// The sequences that a caller waits for. Dropped, those that have not ended are given up.
struct Waiting {
    news: Receiver<News>,
    given_up: BTreeMap<usize, CancelFlag>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.given_up.values().for_each(CancelFlag::cancel);
    }
}

impl<P: Send + 'static> DecodeLoop<P> {
    /// Starts the loop with `model`, which keeps to `limits`, and opens another one with `reopen`
    /// should it panic. `max_waiting` sequences may wait besides as many as there are slots.
    ///
    /// # Errors
    /// `Unavailable` when there is no thread to be had.
    pub(crate) fn start<M, O>(
        model: M,
        limits: Limits,
        reopen: O,
        max_waiting: usize,
        watch: Arc<dyn Watch>,
    ) -> Result<Self>
    where
        M: Model<Prompt = P> + Send + 'static,
        O: FnMut() -> Result<M> + Send + 'static,
    {
        let state = State { arrived: Vec::new(), in_flight: 0, is_closed: false };
        let most = limits.slots.saturating_add(max_waiting);
        let shared = Arc::new(Shared { state: Mutex::new(state), arrival: Condvar::new(), most });
        let worker = Worker::new(shared.clone(), model, limits, reopen, watch);
        let thread = thread::Builder::new().name("decode-loop".to_owned());
        let thread = thread
            .spawn(move || worker.run())
            .map_err(|error| Error::unavailable(format!("the decoding loop's thread: {error}")))?;
        Ok(DecodeLoop { shared, thread: Some(thread) })
    }

    /// Generates the sequences of `members` and waits for their outcomes, which depend on nobody
    /// else's. `tell` hears of each that was let in what becomes of it, as soon as it is certain.
    pub(crate) fn generate(
        &self,
        members: Vec<Member<'_, P>>,
        mut tell: Option<&mut Tell<'_>>,
    ) -> Vec<Result<Generated>> {
        let cancels: Vec<&dyn Cancellation> = members.iter().map(|member| member.cancel).collect();
        let mut outcomes: Vec<Option<Result<Generated>>> = vec![None; members.len()];
        let mut waiting = self.let_in(members, tell.is_some(), &mut outcomes);
        while !waiting.given_up.is_empty() {
            match waiting.news.recv_timeout(LOOK) {
                Ok(News::Token(place, id)) => {
                    if let Some(tell) = &mut tell {
                        tell(place, Told::Token(id));
                    }
                }
                Ok(News::End(place, outcome)) => {
                    waiting.given_up.remove(&place);
                    // The loop knows that it was given up, the caller knows in which words.
                    let outcome = outcome.map_err(|error| match error.kind() {
                        Kind::Cancelled | Kind::DeadlineExceeded => {
                            cancels[place].check().err().unwrap_or(error)
                        }
                        _ => error,
                    });
                    if let Some(tell) = &mut tell {
                        tell(place, Told::End(&outcome));
                    }
                    outcomes[place] = Some(outcome);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            for (place, given_up) in &waiting.given_up {
                if cancels[*place].is_cancelled() {
                    given_up.cancel();
                }
            }
        }
        let lost = || Err(Error::internal("the decoding loop has ended"));
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(lost)).collect()
    }

    /// Hands the members to the loop, owner by owner. Those that are not let in have an outcome.
    fn let_in(
        &self,
        members: Vec<Member<'_, P>>,
        wants_tokens: bool,
        outcomes: &mut [Option<Result<Generated>>],
    ) -> Waiting {
        let (sender, news) = mpsc::channel();
        let mut waiting = Waiting { news, given_up: BTreeMap::new() };
        let mut owners: BTreeMap<usize, Vec<(usize, Member<'_, P>)>> = BTreeMap::new();
        for (place, member) in members.into_iter().enumerate() {
            owners.entry(member.owner).or_default().push((place, member));
        }
        for members in owners.into_values() {
            let places: Vec<usize> = members.iter().map(|(place, _)| *place).collect();
            let jobs = members.into_iter().map(|(place, Member { sequence, cancel, .. })| {
                let given_up = CancelFlag::default();
                let seat = Seat {
                    place,
                    news: sender.clone(),
                    wants_tokens,
                    ids: Vec::new(),
                    given_up,
                    deadline: cancel.deadline(),
                };
                Ok(Job { sequence: sequence?, seat })
            });
            let jobs: Result<Vec<Job<P>>> = jobs.collect();
            let flags = |job: &Job<P>| (job.seat.place, job.seat.given_up.clone());
            let submitted = jobs.and_then(|jobs| {
                let flags: Vec<_> = jobs.iter().map(flags).collect();
                self.submit(jobs).map(|()| flags)
            });
            match submitted {
                Ok(flags) => waiting.given_up.extend(flags),
                Err(error) => {
                    places.into_iter().for_each(|place| outcomes[place] = Some(Err(error.clone())));
                }
            }
        }
        waiting
    }

    fn submit(&self, jobs: Vec<Job<P>>) -> Result<()> {
        let mut state = self.shared.lock();
        if state.is_closed {
            return Err(Error::unavailable("the decoding loop has ended"));
        }
        let most = self.shared.most;
        match state.in_flight.checked_add(jobs.len()) {
            Some(in_flight) if in_flight <= most => state.in_flight = in_flight,
            _ => {
                return Err(Error::unavailable(format!(
                    "the queue of captions is full: {} are under way or wait, {} more are asked \
                     for, {most} are allowed",
                    state.in_flight,
                    jobs.len()
                )));
            }
        }
        state.arrived.extend(jobs);
        self.shared.arrival.notify_one();
        Ok(())
    }
}

impl<P> Drop for DecodeLoop<P> {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported where it happened.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
