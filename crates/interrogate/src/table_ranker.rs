//! Cosines of pictures with label tables, here or elsewhere.

use std::ops::Range;

use imprompt_error::{Error, Result};

use crate::interrogator::Config;
use crate::rank::Stages;
use crate::table::LabelTable;

/// Compares pictures with label tables and ranks the labels elsewhere than on the processor, such as
/// on a GPU that has the tables: to the same bits.
pub trait TableRanker {
    /// Computes the cosines of `images` (float32 `[n, D]`) with the labels of `tables`, for each
    /// image one list over all tables in order, as [`imprompt_similarity::similarities`] has them. They stay where they
    /// are until the next call, or until texts are compared.
    ///
    /// # Errors
    /// When it does not have a table, the images have another width, and what it computes on says.
    fn compare(&mut self, tables: &[&LabelTable], images: &[f32]) -> Result<()>;

    /// All cosines of the last call of [`Self::compare`].
    ///
    /// # Errors
    /// What it computes on says.
    fn similarities(&mut self) -> Result<Vec<f32>>;

    /// The place of the first cosine that is not finite, if there is one.
    ///
    /// # Errors
    /// What it computes on says.
    fn first_wrong(&mut self) -> Result<Option<usize>> {
        Ok(first_wrong(&self.similarities()?))
    }

    /// The first stage of ranking the cosines `range`: [`Stages::begin`].
    ///
    /// # Errors
    /// `Internal` when there are not so many; what it computes on says.
    fn best(
        &mut self,
        range: Range<usize>,
        stages: Stages,
        reverse: bool,
    ) -> Result<Vec<(usize, f32)>> {
        best_here(self, range, stages, reverse)
    }
}

/// [`TableRanker::best`] on the processor, of the cosines that `ranker` has.
///
/// # Errors
/// As [`TableRanker::best`].
pub fn best_here<R: TableRanker + ?Sized>(
    ranker: &mut R,
    range: Range<usize>,
    stages: Stages,
    reverse: bool,
) -> Result<Vec<(usize, f32)>> {
    let all = ranker.similarities()?;
    let values = all.get(range).ok_or_else(|| Error::internal("cosines that are not there"))?;
    Ok(stages.begin(values, reverse))
}

/// Whether two lists are the same numbers to the last bit.
#[must_use]
pub fn same_bits(one: &[f32], other: &[f32]) -> bool {
    one.iter().map(|value| value.to_bits()).eq(other.iter().map(|value| value.to_bits()))
}

/// Whether `ranker` gives the processor's very bits and ranks as it does: tried with all of `tables`, which it has, and with
/// a label as the picture. Takes milliseconds.
///
/// # Errors
/// Those of the ranker.
pub fn is_exact(ranker: &mut dyn TableRanker, tables: &[&LabelTable]) -> Result<bool> {
    let largest = tables.iter().max_by_key(|table| table.len()).filter(|table| !table.is_empty());
    let Some(largest) = largest else { return Ok(true) };
    let dimension = largest.dimension();
    let middle = &largest.rows()[largest.len() / 2 * dimension..][..dimension];
    let image: Vec<f32> = middle.iter().map(|value| value.to_f32()).collect();
    let rows: Vec<_> = tables.iter().map(|table| table.rows()).collect();
    let here = imprompt_similarity::similarities(&rows, &image, dimension, 0).concat();
    ranker.compare(tables, &image)?;
    if !same_bits(&ranker.similarities()?, &here) || ranker.first_wrong()? != first_wrong(&here) {
        return Ok(false);
    }
    let Config { chunk_size, flavor_intermediate_count: count, .. } = Config::default();
    let stages = Stages::new(here.len(), chunk_size, count);
    for reverse in [false, true] {
        let there = ranker.best(0..here.len(), stages, reverse)?;
        if stages.finish(there) != stages.finish(stages.begin(&here, reverse)) {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(crate) fn first_wrong(values: &[f32]) -> Option<usize> {
    values.iter().position(|value| !value.is_finite())
}

/// Cosines of one picture.
pub(crate) enum Cosines<'r> {
    Here(Vec<f32>),
    /// So many, where the ranker has them.
    There(usize, &'r mut dyn TableRanker),
}

impl Cosines<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Cosines::Here(values) => values.len(),
            Cosines::There(count, _) => *count,
        }
    }

    /// The best of those in `range` by [`crate::rank::rank`]'s rule: places in the whole, and cosines.
    pub(crate) fn rank(
        &mut self,
        range: Range<usize>,
        chunk_size: usize,
        count: usize,
        reverse: bool,
    ) -> Result<Vec<(usize, f32)>> {
        let start = range.start;
        let stages = Stages::new(range.len(), chunk_size, count);
        let kept = match self {
            Cosines::Here(values) => stages.begin(&values[range], reverse),
            Cosines::There(_, ranker) => ranker.best(range, stages, reverse)?,
        };
        let best = stages.finish(kept);
        Ok(best.into_iter().map(|(index, value)| (start + index, value)).collect())
    }
}
