//! Prompts made of ranked terms: modes fast and classic (`interrogate_fast`,
//! `interrogate_classic` and `_truncate_to_fit` of clip_interrogator.py).

use std::ops::Range;

use imprompt_error::{Error, Result};

use crate::encoder::PromptEncoder;
use crate::report::Term;
use crate::table_ranker::Cosines;
use crate::vocabulary::{Merged, Table};

/// The merged tables with the cosine of every label.
pub(crate) struct Ranking<'a, 'r> {
    pub(crate) merged: Merged<'a>,
    pub(crate) cosines: Cosines<'r>,
    pub(crate) chunk_size: usize,
}

/// Terms to be put behind a caption, and what comes before each.
pub(crate) type Terms = Vec<(&'static str, Term)>;

/// A prompt of ranked terms, cut to the length limit.
pub(crate) struct Ranked {
    pub(crate) prompt: String,
    pub(crate) terms: Vec<Term>,
    /// True when something was cut off.
    pub(crate) cut: bool,
}

impl Ranking<'_, '_> {
    /// The best `count` labels in `range` of the merged table.
    fn best(&mut self, range: Range<usize>, count: usize) -> Result<Vec<Term>> {
        let best = self.cosines.rank(range, self.chunk_size, count, false)?;
        let term = |(index, similarity)| {
            let (table, label) = self.merged.label(index);
            Term { term: label.to_owned(), table: table.name(), similarity }
        };
        Ok(best.into_iter().map(term).collect())
    }

    /// The best `count` labels of one table.
    fn best_of(&mut self, table: Table, count: usize) -> Result<Vec<Term>> {
        let range = self.merged.range(table);
        if range.is_empty() {
            return Err(Error::not_found(format!(
                "mode `classic` needs a label in the table `{}`, which has none",
                table.name()
            )));
        }
        self.best(range, count)
    }

    /// The `max_flavors` best labels of all tables.
    pub(crate) fn fast(&mut self, max_flavors: usize) -> Result<Terms> {
        if self.cosines.len() == 0 {
            return Err(Error::not_found("mode `fast` needs a label: every label table is empty"));
        }
        let best = self.best(0..self.cosines.len(), max_flavors)?;
        Ok(best.into_iter().map(|term| (", ", term)).collect())
    }

    /// `MEDIUM ARTIST, TRENDING, MOVEMENT, FLAVORS`, without the medium when the caption
    /// starts with it.
    pub(crate) fn classic(&mut self, caption: &str, max_flavors: usize) -> Result<Terms> {
        let mut terms = Terms::new();
        for medium in self.best_of(Table::Mediums, 1)? {
            if !caption.starts_with(&medium.term) {
                terms.push((", ", medium));
            }
        }
        // A blank, not a comma, before the artist.
        for (table, count, separator) in [
            (Table::Artists, 1, " "),
            (Table::Trendings, 1, ", "),
            (Table::Movements, 1, ", "),
            (Table::Flavors, max_flavors, ", "),
        ] {
            terms.extend(self.best_of(table, count)?.into_iter().map(|term| (separator, term)));
        }
        Ok(terms)
    }
}

impl Ranked {
    /// The caption with `terms` behind it.
    pub(crate) fn new(caption: &str, terms: Terms, encoder: &dyn PromptEncoder) -> Self {
        let mut draft = Draft::new(caption);
        for (separator, term) in terms {
            draft.add(separator, term);
        }
        draft.truncate_to_fit(encoder)
    }
}

/// A prompt being written, with the place where each term ends.
struct Draft {
    text: String,
    terms: Vec<(usize, Term)>,
}

impl Draft {
    fn new(caption: &str) -> Self {
        Draft { text: caption.to_owned(), terms: Vec::new() }
    }

    fn add(&mut self, separator: &str, term: Term) {
        self.text.push_str(separator);
        self.text.push_str(&term.term);
        self.terms.push((self.text.len(), term));
    }

    fn truncate_to_fit(mut self, encoder: &dyn PromptEncoder) -> Ranked {
        let length = fitting_length(&self.text, encoder);
        let cut = length < self.text.len();
        self.text.truncate(length);
        let kept = self.terms.into_iter().take_while(|(end, _)| *end <= length);
        Ranked { prompt: self.text, terms: kept.map(|(_, term)| term).collect(), cut }
    }
}

/// How many bytes of `text` remain when parts that do not fit are cut off (`_truncate_to_fit`).
///
/// A part is what lies between two `", "`, whatever terms it came from. The reference tests the
/// text so far and the next part *glued together*, so the count is approximate: the result may be
/// over the limit by a token or two. The first part is never tested.
fn fitting_length(text: &str, encoder: &dyn PromptEncoder) -> usize {
    const SEPARATOR: &str = ", ";
    let mut parts = text.split(SEPARATOR);
    let mut length = parts.next().map_or(0, str::len);
    for part in parts {
        if encoder.is_at_max_length(&format!("{}{part}", &text[..length])) {
            break;
        }
        length += SEPARATOR.len() + part.len();
    }
    length
}
