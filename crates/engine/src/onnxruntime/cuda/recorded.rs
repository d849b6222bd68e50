//! Runs that a GPU has recorded: a decoder's step or an image tower is a thousand small kernels, and
//! giving them one by one takes longer than computing them.
//!
//! What is recorded are addresses. So a recording serves a run whose inputs, cache and outputs are
//! where they were, and only while nothing else is alive that the session has made: what it computes
//! with in between lies in the session's arena, which may have given that memory to an output since.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use imprompt_cuda::Graph;

use crate::onnxruntime::held::RawValue;

/// Runs that are remembered: shapes of a decoder's steps with as many sequences as there are slots,
/// or batches of pictures.
const MOST: usize = 64;

/// What a recording serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Each input by its place: where it is on the device, and its shape.
    pub(super) inputs: Vec<(usize, u64, Vec<usize>)>,
    /// The outputs that are asked for, by their places.
    pub(super) outputs: Vec<usize>,
    /// Where the cache is, and the slots of it.
    pub(super) cache: Option<(usize, Range<usize>)>,
}

/// A recorded run and the outputs that it writes.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) graph: Graph,
    pub(super) outputs: Vec<Arc<RawValue>>,
}

/// How a run is best given.
pub(super) enum Way<'r, R> {
    /// One kernel after the other.
    Plain,
    /// So that it is recorded: the same was run before.
    Record,
    /// As it was recorded.
    Again(&'r mut R),
}

/// The recordings of one engine.
#[derive(Debug)]
pub(super) struct Recorded<R = Recording> {
    is_on: bool,
    /// Nothing where a run was seen once.
    runs: HashMap<Key, Option<R>>,
    /// Held by every output that is alive.
    alive: Arc<()>,
}

impl<R> Recorded<R> {
    pub(super) fn new(is_on: bool) -> Self {
        Recorded { is_on, runs: HashMap::new(), alive: Arc::new(()) }
    }

    /// Whether runs are recorded at all.
    pub(super) fn is_on(&self) -> bool {
        self.is_on
    }

    /// What an output holds as long as it is alive.
    pub(super) fn alive(&self) -> Arc<()> {
        self.alive.clone()
    }

    /// How the run of `key` is given.
    pub(super) fn way(&mut self, key: &Key) -> Way<'_, R> {
        if !self.is_on || Arc::strong_count(&self.alive) > 1 {
            return Way::Plain;
        }
        if !self.runs.contains_key(key) {
            if self.runs.len() >= MOST {
                // First what was seen once: a run whose inputs are never in the same place would
                // cost all others their recordings.
                self.runs.retain(|_, recording| recording.is_some());
            }
            if self.runs.len() >= MOST {
                self.runs.clear();
            }
            self.runs.insert(key.clone(), None);
            return Way::Plain;
        }
        match self.runs.get_mut(key) {
            Some(Some(recording)) => Way::Again(recording),
            _ => Way::Record,
        }
    }

    /// Keeps what was recorded.
    pub(super) fn keep(&mut self, key: Key, recording: R) -> &mut R {
        self.runs.entry(key).or_default().insert(recording)
    }

    /// Records nothing any more.
    pub(super) fn stop(&mut self) {
        self.is_on = false;
        self.runs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(address: u64) -> Key {
        Key { inputs: vec![(0, address, vec![1, 2])], outputs: vec![0], cache: Some((7, 0..1)) }
    }

    #[test]
    fn the_second_run_of_a_key_is_recorded() {
        let mut recorded = Recorded::<()>::new(true);
        assert!(matches!(recorded.way(&key(1)), Way::Plain));
        assert!(matches!(recorded.way(&key(2)), Way::Plain));
        assert!(matches!(recorded.way(&key(1)), Way::Record));
        let output = recorded.alive();
        assert!(matches!(recorded.way(&key(1)), Way::Plain));
        drop(output);
        assert!(matches!(recorded.way(&key(1)), Way::Record));
        recorded.stop();
        assert!(matches!(recorded.way(&key(1)), Way::Plain));
        assert!(matches!(recorded.way(&key(1)), Way::Plain));
    }

    #[test]
    fn runs_that_come_once_cost_no_recording() {
        let mut recorded = Recorded::<()>::new(true);
        recorded.way(&key(0));
        assert!(matches!(recorded.way(&key(0)), Way::Record));
        recorded.keep(key(0), ());
        for address in 1..3 * MOST as u64 {
            recorded.way(&key(address));
        }
        assert!(matches!(recorded.way(&key(0)), Way::Again(_)));
    }

    #[test]
    fn recordings_are_bounded() {
        let mut recorded = Recorded::<()>::new(true);
        for address in 0..3 * MOST as u64 {
            recorded.way(&key(address));
            assert!(recorded.runs.len() <= MOST);
        }
    }
}
