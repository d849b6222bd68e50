//! Token rows to embeddings, with as little work as the tower allows.
//!
//! Equal rows are run once, so that equal texts have equal embeddings to the
//! last bit and ties are ties. Of a causal tower besides:
//!
//! * Slots after the end token are never computed; rows are run with rows of
//!   their own length, so there is no padding either.
//! * What all rows begin with (the start token at least, the whole prompt so
//!   far in a chain step) is run once; the others attend to its keys and values.
//!
//! A tower in which every token sees every other (SigLIP's) is given whole rows,
//! padding included.
//!
//! What a call gives depends on its rows alone, not on calls before it or beside it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use imprompt_engine::{Engine, Held, TensorView};
use imprompt_error::{Cancellation, Error, Result};
use imprompt_graph::{ClipFacts, ClipFamily};

use crate::tower::TextTower;

/// Tokens that rows share in front, and what the tower's layers keep of them.
#[derive(Debug, Default)]
struct Prefix {
    tokens: Vec<u32>,
    /// `[layers, heads, tokens, head_dim]`.
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// One user of a text tower, with what its own rows share in front.
#[derive(Debug)]
pub struct TextEncoder {
    tower: Arc<TextTower>,
    /// What the rows at work share in front; the next call often has it too.
    prefix: Prefix,
}

impl TextEncoder {
    /// An encoder that takes its turns at `tower`.
    #[must_use]
    pub fn new(tower: Arc<TextTower>) -> Self {
        TextEncoder { tower, prefix: Prefix::default() }
    }

    /// What the model is.
    #[must_use]
    pub fn facts(&self) -> &ClipFacts {
        &self.tower.facts
    }

    /// The embeddings of `rows`: float32 `[rows, D]`, rows of length 1. A row is
    /// a text's tokens as the model's tokenizer gives them, start and end token
    /// included, cut to the context length, padded or not; of a SigLIP all slots.
    ///
    /// # Errors
    /// `BadModel` when a token is not in the model's vocabulary, `Internal` when
    /// a row has no length that the tower takes, `Cancelled` between two runs of the tower,
    /// or what the engine reports.
    pub fn encode<R: AsRef<[u32]>>(
        &mut self,
        rows: &[R],
        cancel: &dyn Cancellation,
    ) -> Result<Vec<f32>> {
        let dimension = self.tower.facts.projection_dim;
        let mut embeds: Vec<f32> = Vec::with_capacity(rows.len() * dimension);
        let places = self.encode_in_place(rows, cancel, &mut |run| {
            embeds.extend_from_slice(run.as_slice::<f32>()?);
            Ok(())
        })?;
        let mut all = Vec::with_capacity(places.len() * dimension);
        for place in places {
            all.extend_from_slice(&embeds[place * dimension..][..dimension]);
        }
        Ok(all)
    }

    /// As [`Self::encode`], but the embeddings stay where the engine computes: `take` is given those of
    /// one run after the other (float32 `[n, D]`). For each of `rows` the place of its embedding among
    /// all that were given.
    ///
    /// # Errors
    /// As [`Self::encode`], and those of `take`.
    pub fn encode_in_place<R: AsRef<[u32]>>(
        &mut self,
        rows: &[R],
        cancel: &dyn Cancellation,
        take: &mut dyn FnMut(&dyn Held) -> Result<()>,
    ) -> Result<Vec<usize>> {
        let trimmed: Vec<&[u32]> =
            rows.iter().map(|row| self.trim(row.as_ref())).collect::<Result<_>>()?;
        let (distinct, of_row) = distinct(&trimmed);
        if self.tower.facts.family == ClipFamily::Clip {
            self.set_prefix(&distinct, cancel)?;
        }
        let TextTower { tokens_per_run, length_step, most_rows, .. } = *self.tower;
        let dimension = self.tower.facts.projection_dim;
        let mut places = vec![0; distinct.len()];
        let mut given = 0;
        let shared = self.prefix.tokens.len();
        let most = self.tower.facts.context_length - shared;
        let run_length = |row: &[u32]| (row.len() - shared).next_multiple_of(length_step).min(most);
        let mut turn = self.tower.turn();
        for (length, members) in by_length(&distinct, run_length) {
            for chunk in chunks(&members, (tokens_per_run / length).clamp(1, most_rows)) {
                let engine = turn.engine();
                // What it had to wait for may have taken a while.
                cancel.check()?;
                let rows: Vec<&[u32]> = chunk.iter().map(|&index| distinct[index]).collect();
                let run = self.run(engine, &rows, length)?;
                if run.shape() != [rows.len(), dimension] {
                    return Err(Error::internal(format!(
                        "text_embeds of shape {:?} for {} rows",
                        run.shape(),
                        rows.len()
                    )));
                }
                take(run.as_ref())?;
                for &index in chunk {
                    places[index] = given;
                    given += 1;
                }
            }
        }
        Ok(of_row.into_iter().map(|index| places[index]).collect())
    }

    /// Runs what `rows` share in front, unless the last call did. A single row
    /// shares nothing.
    fn set_prefix(&mut self, rows: &[&[u32]], cancel: &dyn Cancellation) -> Result<()> {
        let tokens = &rows.first().copied().unwrap_or_default()[..shared_length(rows)];
        if self.prefix.tokens == tokens {
            return Ok(());
        }
        self.prefix = Prefix::default();
        if tokens.is_empty() {
            return Ok(());
        }
        let mut turn = self.tower.turn();
        cancel.check()?;
        let kept: Vec<i64> = (0..tokens.len() as i64).collect();
        let outputs =
            self.run_tower(turn.engine(), (&[tokens], tokens.len()), &kept, &["keys", "values"])?;
        let [keys, values] = outputs.as_slice() else {
            return Err(Error::internal("the text tower gave no keys and values"));
        };
        self.prefix = Prefix {
            keys: keys.as_slice::<f32>()?.to_vec(),
            values: values.as_slice::<f32>()?.to_vec(),
            tokens: tokens.to_vec(),
        };
        Ok(())
    }

    /// The embeddings of rows that have up to `length` tokens each behind the prefix.
    fn run(
        &self,
        engine: &mut dyn Engine,
        rows: &[&[u32]],
        length: usize,
    ) -> Result<Box<dyn Held>> {
        let outputs = self.run_tower(engine, (rows, length), &[], &["text_embeds"])?;
        outputs.into_iter().next().ok_or_else(|| Error::internal("no text_embeds"))
    }

    fn run_tower(
        &self,
        engine: &mut dyn Engine,
        (rows, length): (&[&[u32]], usize),
        kept_rows: &[i64],
        outputs: &[&str],
    ) -> Result<Vec<Box<dyn Held>>> {
        let shared = self.prefix.tokens.len();
        let mut input_ids: Vec<i64> = Vec::with_capacity(rows.len() * length);
        for (number, row) in rows.iter().enumerate() {
            input_ids.extend(row[shared..].iter().map(|&id| i64::from(id)));
            // Behind the end token stands anything: no token sees what is after it.
            input_ids.resize((number + 1) * length, 0);
        }
        if self.tower.facts.family == ClipFamily::Siglip {
            let shape = [rows.len(), length];
            let ids = TensorView::new(&shape, &input_ids)?;
            return engine.run(&[("input_ids", ids.into())], outputs);
        }
        let last_index: Vec<i64> =
            rows.iter().map(|row| row.len() as i64 - shared as i64 - 1).collect();
        let ClipFacts { text_layers, text_heads, text_head_dim, .. } = self.tower.facts;
        let prefix_shape = [text_layers, text_heads, shared, text_head_dim];
        let (ids_shape, rows_shape, kept_shape) =
            ([rows.len(), length], [rows.len()], [kept_rows.len()]);
        let inputs = [
            ("input_ids", TensorView::new(&ids_shape, &input_ids)?.into()),
            ("last_index", TensorView::new(&rows_shape, &last_index)?.into()),
            ("prefix_keys", TensorView::new(&prefix_shape, &self.prefix.keys)?.into()),
            ("prefix_values", TensorView::new(&prefix_shape, &self.prefix.values)?.into()),
            ("kept_rows", TensorView::new(&kept_shape, kept_rows)?.into()),
        ];
        engine.run(&inputs, outputs)
    }

    /// The row up to the slot that is pooled.
    fn trim<'r>(&self, row: &'r [u32]) -> Result<&'r [u32]> {
        let end = self.tower.facts.eos.position(row) + 1;
        let kept = row.get(..end).ok_or_else(|| Error::internal("a token row is empty"))?;
        let slots = self.tower.facts.context_length;
        let fits = match self.tower.facts.family {
            ClipFamily::Clip => end <= slots,
            ClipFamily::Siglip => end == slots,
        };
        if !fits {
            return Err(Error::internal(format!(
                "a row of {end} tokens, the model has {slots} slots"
            )));
        }
        match kept.iter().find(|&&id| id as usize >= self.tower.facts.vocabulary) {
            Some(id) => Err(Error::bad_model(format!(
                "the tokenizer gives token {id}, the model knows {} tokens",
                self.tower.facts.vocabulary
            ))),
            None => Ok(kept),
        }
    }
}

/// The rows without repetitions, in the order of their first appearance, and
/// for each row its place among them.
fn distinct<'r>(rows: &[&'r [u32]]) -> (Vec<&'r [u32]>, Vec<usize>) {
    let mut places = HashMap::with_capacity(rows.len());
    let mut distinct = Vec::new();
    let of_row = rows
        .iter()
        .map(|&row| {
            *places.entry(row).or_insert_with(|| {
                distinct.push(row);
                distinct.len() - 1
            })
        })
        .collect();
    (distinct, of_row)
}

/// How many tokens in front all rows share, such that each has one of its own
/// left; 0 for a single row, which would gain nothing.
fn shared_length(rows: &[&[u32]]) -> usize {
    let (Some((first, others)), true) = (rows.split_first(), rows.len() > 1) else { return 0 };
    others.iter().fold(first.len().saturating_sub(1), |shared, other| {
        let limit = shared.min(other.len().saturating_sub(1));
        first[..limit].iter().zip(*other).take_while(|(left, right)| left == right).count()
    })
}

/// The places of the rows of each length that `run_length` gives.
fn by_length(rows: &[&[u32]], run_length: impl Fn(&[u32]) -> usize) -> BTreeMap<usize, Vec<usize>> {
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        groups.entry(run_length(row)).or_default().push(index);
    }
    groups
}

/// `members` in chunks of about equal size, none above `limit`: a small rest
/// would run at a bad rate.
fn chunks(members: &[usize], limit: usize) -> impl Iterator<Item = &[usize]> {
    let count = members.len().div_ceil(limit).max(1);
    members.chunks(members.len().div_ceil(count).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_told_apart() {
        let rows: [&[u32]; 4] = [&[1, 2], &[1, 3], &[1, 2], &[1, 2, 3]];
        let (distinct, of_row) = distinct(&rows);
        assert_eq!(distinct, [&[1, 2][..], &[1, 3], &[1, 2, 3]]);
        assert_eq!(of_row, [0, 1, 0, 2]);
    }

    #[test]
    fn every_row_keeps_a_token_of_its_own() {
        assert_eq!(shared_length(&[]), 0);
        assert_eq!(shared_length(&[&[1, 2, 3]]), 0);
        assert_eq!(shared_length(&[&[1, 2, 3], &[1, 2, 4]]), 2);
        assert_eq!(shared_length(&[&[1, 2, 3], &[1, 2]]), 1);
        assert_eq!(shared_length(&[&[1, 2], &[1, 2, 3], &[1, 2, 4]]), 1);
        assert_eq!(shared_length(&[&[1], &[1, 2]]), 0);
        assert_eq!(shared_length(&[&[1, 2], &[2, 2]]), 0);
    }

    #[test]
    fn rows_of_about_one_length_are_run_together() {
        let rows: [&[u32]; 4] = [&[1], &[1, 2, 3], &[1, 2, 3, 4, 5], &[7, 8, 9, 9]];
        let groups = by_length(&rows, |row| row.len().next_multiple_of(4));
        assert_eq!(groups, BTreeMap::from([(4, vec![0, 1, 3]), (8, vec![2])]));
    }

    #[test]
    fn chunks_are_even() {
        let members: Vec<usize> = (0..10).collect();
        let sizes = |limit| chunks(&members, limit).map(<[usize]>::len).collect::<Vec<_>>();
        assert_eq!(sizes(4), [4, 4, 2]);
        assert_eq!(sizes(6), [5, 5]);
        assert_eq!(sizes(100), [10]);
        assert_eq!(chunks(&[], 3).count(), 0);
    }
}
