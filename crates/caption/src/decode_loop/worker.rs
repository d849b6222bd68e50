//! The thread of a decoding loop.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use imprompt_error::{Error, Result, catch};

use super::{Job, Load, News, Seat, Shared, Watch};
use crate::captioner::Generated;
use crate::scheduler::{Event, Limits, Model, Scheduler, Stop, Ticket};

/// What the thread owns.
pub(super) struct Worker<P, M, O> {
    shared: Arc<Shared<P>>,
    /// None when it panicked and could not be opened again yet.
    model: Option<M>,
    reopen: O,
    watch: Arc<dyn Watch>,
    scheduler: Scheduler<P>,
    slots: usize,
    /// Who waits for each sequence of the scheduler.
    seats: BTreeMap<Ticket, Seat>,
    /// The ticket of the next sequence.
    next: Ticket,
    /// The load that was told last.
    load: Load,
}

/// A sequence that has ended.
type Ended = (Seat, Result<Stop>);

impl<P, M, O> Worker<P, M, O>
where
    M: Model<Prompt = P>,
    O: FnMut() -> Result<M>,
{
    pub(super) fn new(
        shared: Arc<Shared<P>>,
        model: M,
        limits: Limits,
        reopen: O,
        watch: Arc<dyn Watch>,
    ) -> Self {
        Worker {
            shared,
            model: Some(model),
            reopen,
            watch,
            slots: limits.slots,
            scheduler: Scheduler::new(limits),
            seats: BTreeMap::new(),
            next: 0,
            load: Load::default(),
        }
    }

    /// Works until the loop is closed.
    pub(super) fn run(mut self) {
        // However this ends, nobody must wait for it in vain.
        let _closing = Closing(self.shared.clone());
        self.tell_load();
        while self.take_in() {
            if self.model.is_none()
                && let Err(error) = self.open()
            {
                self.end_all(&error);
                continue;
            }
            let Some(model) = &mut self.model else { continue };
            let (scheduler, seats, now) = (&mut self.scheduler, &self.seats, Instant::now());
            let mut check =
                |ticket: Ticket| seats.get(&ticket).map_or(Ok(()), |seat| seat.check(now));
            match catch("decode", || Ok(scheduler.tick(model, &mut check))) {
                Ok(events) => self.deliver(events),
                Err(error) => self.recover(&error),
            }
        }
    }

    /// Waits until there is something to do and takes in what has come. False when the loop is
    /// to end.
    fn take_in(&mut self) -> bool {
        let mut state = self.shared.lock();
        while !state.is_closed && state.arrived.is_empty() && self.scheduler.is_idle() {
            state = self.shared.arrival.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_closed {
            return false;
        }
        let arrived = mem::take(&mut state.arrived);
        drop(state);
        let mut refused = Vec::new();
        for Job { sequence, seat } in arrived {
            match self.scheduler.submit(self.next, sequence) {
                Ok(()) => {
                    self.seats.insert(self.next, seat);
                    self.next = self.next.wrapping_add(1);
                }
                Err(error) => refused.push((seat, Err(error))),
            }
        }
        self.settle(refused);
        true
    }

    fn deliver(&mut self, events: Vec<Event>) {
        let mut ended = Vec::new();
        for event in events {
            match event {
                Event::Token(ticket, id) => {
                    let Some(seat) = self.seats.get_mut(&ticket) else { continue };
                    seat.ids.push(id);
                    if seat.wants_tokens {
                        // Who is gone has given it up.
                        let _ = seat.news.send(News::Token(seat.place, id));
                    }
                }
                Event::Finished(ticket, outcome) => {
                    ended.extend(self.seats.remove(&ticket).map(|seat| (seat, outcome)));
                }
            }
        }
        self.settle(ended);
    }

    /// Makes room for others, and only then tells who waited: an answer may be followed by the
    /// next question at once.
    fn settle(&mut self, ended: Vec<Ended>) {
        if !ended.is_empty() {
            let mut state = self.shared.lock();
            state.in_flight = state.in_flight.saturating_sub(ended.len());
        }
        self.tell_load();
        for (Seat { place, news, ids, .. }, outcome) in ended {
            let outcome = outcome.map(|stop| Generated { ids, stop });
            let _ = news.send(News::End(place, outcome));
        }
    }

    fn tell_load(&mut self) {
        let load = Load {
            slots_in_use: self.scheduler.slots_in_use(),
            slots: self.slots,
            waiting: self.scheduler.waiting().len(),
        };
        if load != self.load {
            self.load = load;
            self.watch.load(load);
        }
    }

    /// After a panic of the model, which has half-done state: it goes, and those under way end
    /// with `error`. Those that wait were not part of it.
    fn recover(&mut self, error: &Error) {
        self.close_model();
        self.scheduler.abandon();
        let waiting: BTreeSet<Ticket> = self.scheduler.waiting().collect();
        self.end_all_but(&waiting, error);
        self.watch.restarted();
        // At once, so that the next ones do not wait for it; and again then, should it fail.
        let _ = self.open();
    }

    fn close_model(&mut self) {
        let model = self.model.take();
        let _ = catch("drop", || {
            drop(model);
            Ok(())
        });
    }

    fn open(&mut self) -> Result<()> {
        let reopen = &mut self.reopen;
        let opened = catch("open", reopen).map_err(|error| {
            Error::unavailable(format!("the captioner could not be opened again: {error}"))
        });
        self.model = Some(opened?);
        Ok(())
    }

    fn end_all(&mut self, error: &Error) {
        self.scheduler.clear();
        self.end_all_but(&BTreeSet::new(), error);
    }

    fn end_all_but(&mut self, kept: &BTreeSet<Ticket>, error: &Error) {
        let now = Instant::now();
        let (stay, go) = mem::take(&mut self.seats)
            .into_iter()
            .partition::<BTreeMap<Ticket, Seat>, _>(|(ticket, _)| kept.contains(ticket));
        self.seats = stay;
        let ended = go.into_values().map(|seat| {
            let error = seat.check(now).err().unwrap_or_else(|| error.clone());
            (seat, Err(error))
        });
        let ended = ended.collect();
        self.settle(ended);
    }
}

/// Closes the loop when its thread ends.
struct Closing<P>(Arc<Shared<P>>);

impl<P> Drop for Closing<P> {
    fn drop(&mut self) {
        self.0.close();
    }
}
