//! Prompts made of ranked terms: modes fast and classic (`interrogate_fast`,
//! `interrogate_classic` and `_truncate_to_fit` of clip_interrogator.py).

use imprompt_error::{Error, Result};

use crate::encoder::PromptEncoder;
use crate::rank::rank;
use crate::report::Term;
use crate::vocabulary::{Merged, Table};

/// The merged tables with the cosine of every label.
pub(crate) struct Ranking<'a> {
    pub(crate) merged: Merged<'a>,
    pub(crate) similarities: Vec<f32>,
    pub(crate) chunk_size: usize,
}

/// A prompt of ranked terms, cut to the length limit.
pub(crate) struct Ranked {
    pub(crate) prompt: String,
    pub(crate) terms: Vec<Term>,
    /// True when something was cut off.
    pub(crate) cut: bool,
}

impl Ranking<'_> {
    /// The term at an index of the merged table.
    fn term(&self, index: usize) -> Term {
        let (table, label) = self.merged.label(index);
        Term { term: label.to_owned(), table: table.name(), similarity: self.similarities[index] }
    }

    /// The best `count` labels of one table.
    fn best_of(&self, table: Table, count: usize) -> Result<Vec<Term>> {
        let range = self.merged.range(table);
        if range.is_empty() {
            return Err(Error::not_found(format!(
                "mode `classic` needs a label in the table `{}`, which has none",
                table.name()
            )));
        }
        let start = range.start;
        let best = rank(&self.similarities[range], self.chunk_size, count, false);
        Ok(best.into_iter().map(|index| self.term(start + index)).collect())
    }

    /// The caption and the `max_flavors` best labels of all tables.
    pub(crate) fn fast(
        &self,
        caption: &str,
        max_flavors: usize,
        encoder: &dyn PromptEncoder,
    ) -> Result<Ranked> {
        if self.similarities.is_empty() {
            return Err(Error::not_found("mode `fast` needs a label: every label table is empty"));
        }
        let mut draft = Draft::new(caption);
        for index in rank(&self.similarities, self.chunk_size, max_flavors, false) {
            draft.add(", ", self.term(index));
        }
        Ok(draft.truncate_to_fit(encoder))
    }

    /// `CAPTION, MEDIUM ARTIST, TRENDING, MOVEMENT, FLAVORS`, without the medium when the caption
    /// starts with it.
    pub(crate) fn classic(
        &self,
        caption: &str,
        max_flavors: usize,
        encoder: &dyn PromptEncoder,
    ) -> Result<Ranked> {
        let mut draft = Draft::new(caption);
        for medium in self.best_of(Table::Mediums, 1)? {
            if !caption.starts_with(&medium.term) {
                draft.add(", ", medium);
            }
        }
        // A blank, not a comma, before the artist.
        for (table, count, separator) in [
            (Table::Artists, 1, " "),
            (Table::Trendings, 1, ", "),
            (Table::Movements, 1, ", "),
            (Table::Flavors, max_flavors, ", "),
        ] {
            for term in self.best_of(table, count)? {
                draft.add(separator, term);
            }
        }
        Ok(draft.truncate_to_fit(encoder))
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
