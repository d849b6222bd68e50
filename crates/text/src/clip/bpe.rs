//! Byte-pair encoding of one word, with CLIP's end-of-word suffix.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{PoisonError, RwLock};

use imprompt_error::{Error, Result};

use super::words::{END, START};
use crate::files::Vocabulary;
use crate::pipeline::byte_symbols;

const END_OF_WORD: &str = "</w>";

/// Words that the cache holds before it starts anew: some 10 MB.
const CACHE_WORDS: usize = 65_536;

/// Longer words are rare, and a request could fill the memory with them.
const CACHE_WORD_BYTES: usize = 64;

#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    id: u32,
}

/// The merges of a vocabulary over token ids, and the words met so far.
pub(super) struct BytePairs {
    merges: HashMap<(u32, u32), Merge>,
    /// The id of each byte inside a word, and as its last.
    bytes: [(u32, u32); 256],
    start_id: u32,
    end_id: u32,
    cache: RwLock<HashMap<Box<str>, Box<[u32]>>>,
}

impl BytePairs {
    pub(super) fn new(vocabulary: &Vocabulary, start_id: u32, end_id: u32) -> Result<Self> {
        let need = |token: &str| {
            vocabulary.id(token).ok_or_else(|| {
                Error::bad_model(format!(
                    "a merge or byte needs a token of {} characters that the vocabulary lacks",
                    token.chars().count()
                ))
            })
        };
        let mut bytes = [(0, 0); 256];
        for (entry, symbol) in bytes.iter_mut().zip(byte_symbols()) {
            *entry = (need(&symbol.to_string())?, need(&format!("{symbol}{END_OF_WORD}"))?);
        }
        let mut merges = HashMap::with_capacity(vocabulary.merges.len());
        for (rank, (left, right)) in vocabulary.merges.iter().enumerate() {
            let rank = u32::try_from(rank).map_err(|_| Error::bad_model("too many merges"))?;
            let id = need(&format!("{left}{right}"))?;
            // The last of two equal merges counts, as in a Python dict.
            merges.insert((need(left)?, need(right)?), Merge { rank, id });
        }
        Ok(BytePairs { merges, bytes, start_id, end_id, cache: RwLock::default() })
    }

    /// Appends the ids of `word`, which is not empty.
    pub(super) fn encode(&self, word: &str, ids: &mut Vec<u32>) {
        match word {
            START => return ids.push(self.start_id),
            END => return ids.push(self.end_id),
            _ => {}
        }
        let fits = word.len() <= CACHE_WORD_BYTES;
        if fits {
            // A panic elsewhere leaves the map whole: it is only inserted into.
            let cache = self.cache.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = cache.get(word) {
                return ids.extend_from_slice(known);
            }
        }
        let from = ids.len();
        self.merge(word.as_bytes(), ids);
        if fits {
            let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
            if cache.len() >= CACHE_WORDS {
                cache.clear();
            }
            cache.insert(word.into(), ids[from..].into());
        }
    }

    /// The merges of one word, lowest rank first. Like the reference, all
    /// places of one pair are merged from left to right before the pairs that
    /// this makes are looked at.
    fn merge(&self, word: &[u8], ids: &mut Vec<u32>) {
        let Some((last, inner)) = word.split_last() else { return };
        let symbols = inner.iter().map(|&b| self.bytes[usize::from(b)].0);
        let mut row = Row::new(symbols.chain([self.bytes[usize::from(*last)].1]));
        let mut queue = BinaryHeap::new();
        for at in 0..row.symbols.len() {
            queue.extend(self.candidate(&row, at));
        }
        let mut fresh = Vec::new();
        while let Some(&Reverse((rank, ..))) = queue.peek() {
            while let Some(&Reverse((next, at, left, right))) = queue.peek()
                && next == rank
            {
                queue.pop();
                if let Some(merge) = self.merges.get(&(left, right))
                    && row.merge(at, (left, right), merge.id)
                {
                    fresh.extend(self.candidate(&row, at));
                    if let Some(before) = row.symbols[at].before {
                        fresh.extend(self.candidate(&row, before));
                    }
                }
            }
            queue.extend(fresh.drain(..));
        }
        row.collect(ids);
    }

    /// The merge of the symbol at `at` with the one after it, if there is one.
    fn candidate(&self, row: &Row, at: usize) -> Option<Reverse<(u32, usize, u32, u32)>> {
        let (left, right) = row.pair(at)?;
        self.merges.get(&(left, right)).map(|merge| Reverse((merge.rank, at, left, right)))
    }
}

/// The symbols of a word as a list that neighbours can be taken out of.
struct Row {
    symbols: Vec<Symbol>,
}

struct Symbol {
    /// `None` once it has been merged into the one before.
    id: Option<u32>,
    before: Option<usize>,
    after: Option<usize>,
}

impl Row {
    fn new(ids: impl Iterator<Item = u32>) -> Self {
        let mut symbols: Vec<Symbol> = ids
            .enumerate()
            .map(|(at, id)| Symbol { id: Some(id), before: at.checked_sub(1), after: Some(at + 1) })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.after = None;
        }
        Row { symbols }
    }

    fn pair(&self, at: usize) -> Option<(u32, u32)> {
        let symbol = &self.symbols[at];
        Some((symbol.id?, self.symbols[symbol.after?].id?))
    }

    /// Makes `id` of the symbol at `at` and the one after, if they still are
    /// `pair`.
    fn merge(&mut self, at: usize, pair: (u32, u32), id: u32) -> bool {
        if self.pair(at) != Some(pair) {
            return false;
        }
        let Some(taken) = self.symbols[at].after else { return false };
        let after = self.symbols[taken].after;
        self.symbols[taken].id = None;
        self.symbols[at].id = Some(id);
        self.symbols[at].after = after;
        if let Some(after) = after {
            self.symbols[after].before = Some(at);
        }
        true
    }

    fn collect(&self, ids: &mut Vec<u32>) {
        ids.extend(self.symbols.iter().filter_map(|symbol| symbol.id));
    }
}
