//! The chain: a prompt grown term by term (`Interrogator.chain` of clip_interrogator.py).

use std::collections::HashSet;

use imprompt_error::Result;

use crate::interrogator::{NegativeSign, Next, View};
use crate::report::Term;
use crate::request::FlavorCounts;
use crate::step::Choice;
use crate::vocabulary::Table;

/// A phrase the chain may add. Its place in the tables decides between equal ones.
#[derive(Clone, Copy)]
pub(crate) struct Phrase<'a> {
    pub(crate) index: usize,
    pub(crate) table: Table,
    pub(crate) text: &'a str,
}

impl Phrase<'_> {
    fn term(&self, similarity: f32) -> Term {
        Term { term: self.text.to_owned(), table: self.table.name(), similarity }
    }
}

/// Which way a chain climbs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Towards the picture.
    Similar,
    /// Away from it.
    Dissimilar(NegativeSign),
}

/// The prompt of a chain, its cosine, and its terms.
pub(crate) struct Chained {
    pub(crate) prompt: String,
    pub(crate) similarity: f32,
    pub(crate) terms: Vec<Term>,
    /// False when the budget ended it.
    pub(crate) complete: bool,
}

/// Grows a prompt from `start` (a prompt and its cosine), or, when that is empty, from the best of
/// `phrases`.
///
/// Each step adds the phrase that gives the best prompt. It is accepted if it improves on the
/// current prompt or is one of the first `counts.min`; otherwise the chain ends. It also ends when
/// a prompt fills the last token slot, or when the budget is over. The result is the best prompt on the way, not the last.
pub(crate) fn chain(
    view: &mut View<'_>,
    phrases: Vec<Phrase<'_>>,
    start: (&str, f32),
    counts: FlavorCounts,
    direction: Direction,
) -> Result<Chained> {
    let away = direction != Direction::Similar;
    let sign = if away { -1.0 } else { 1.0 };
    let mut phrases = distinct(phrases);
    let mut texts: Vec<&str> = phrases.iter().map(|phrase| phrase.text).collect();
    let mut terms = Vec::new();
    let mut prompt = start.0.to_owned();
    // Both are compared with signed values; `best` also remembers the cosine itself.
    let mut current = start.1;
    if prompt.is_empty()
        && let Some(Choice { index, similarity, .. }) = view.first(&texts, away)?
    {
        let phrase = phrases.remove(index);
        prompt = texts.remove(index).to_owned();
        terms.push(phrase.term(similarity));
        // The reference does not turn the sign of the first cosine.
        current = match direction {
            Direction::Dissimilar(NegativeSign::Fixed) => -similarity,
            _ => similarity,
        };
    }
    let mut best = current;
    let mut best_similarity = terms.last().map_or(start.1, |term| term.similarity);
    let mut complete = true;
    let (mut best_length, mut best_terms) = (prompt.len(), terms.len());
    for step in 0..counts.max {
        view.cancel.check()?;
        let Choice { index, similarity, .. } = match view.behind(&prompt, &texts, away)? {
            Next::Best(choice) => choice,
            Next::Nothing => break,
            Next::Over => {
                complete = false;
                break;
            }
        };
        let value = sign * similarity;
        if !(value > current || step < counts.min) {
            // `best` is never below `current`: a refused prompt cannot be the best.
            break;
        }
        let phrase = phrases.remove(index);
        texts.remove(index);
        prompt.push_str(", ");
        prompt.push_str(phrase.text);
        terms.push(phrase.term(similarity));
        current = value;
        if value > best {
            best = value;
            best_similarity = similarity;
            (best_length, best_terms) = (prompt.len(), terms.len());
        }
        if view.encoder.is_at_max_length(&prompt) {
            break;
        }
    }
    prompt.truncate(best_length);
    terms.truncate(best_terms);
    Ok(Chained { prompt, similarity: best_similarity, terms, complete })
}

/// The phrases in order of index, each text once, at its lowest index: the reference makes a set
/// of them, whose order changes from process to process.
fn distinct(mut phrases: Vec<Phrase<'_>>) -> Vec<Phrase<'_>> {
    phrases.sort_unstable_by_key(|phrase| phrase.index);
    let mut seen = HashSet::with_capacity(phrases.len());
    phrases.retain(|phrase| seen.insert(phrase.text));
    phrases
}
