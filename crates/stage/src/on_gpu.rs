//! Label tables on a GPU, and what is compared there.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use imprompt_engine::{ElementType, GpuChunks, GpuRanking, GpuTable, Held};
use imprompt_error::{Error, Result};
use imprompt_interrogate::rank::Stages;
use imprompt_interrogate::{LabelTable, TableRanker, best_here};

/// A stage's label tables, which its instances on one GPU share there.
pub(crate) struct GpuTables {
    tables: Vec<Arc<LabelTable>>,
    /// By the GPU's number.
    there: Mutex<HashMap<usize, Weak<Uploaded>>>,
}

/// The tables on one GPU, one behind the other.
struct Uploaded {
    /// Each with its rows. Held, so that a table's address is its own.
    tables: Vec<(Arc<LabelTable>, Range<usize>)>,
    there: Arc<GpuTable>,
}

impl GpuTables {
    pub(crate) fn new(tables: Vec<Arc<LabelTable>>) -> Self {
        GpuTables { tables, there: Mutex::default() }
    }

    /// Those on GPU `ordinal`, where `ranking` brings them unless an instance has them there.
    fn on(&self, ordinal: usize, ranking: &GpuRanking) -> Result<Arc<Uploaded>> {
        // Whoever comes meanwhile waits for them.
        let mut there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(uploaded) = there.get(&ordinal).and_then(Weak::upgrade) {
            return Ok(uploaded);
        }
        let uploaded = Arc::new(Uploaded::new(&self.tables, ranking)?);
        there.insert(ordinal, Arc::downgrade(&uploaded));
        Ok(uploaded)
    }
}

impl Uploaded {
    fn new(tables: &[Arc<LabelTable>], ranking: &GpuRanking) -> Result<Self> {
        let parts: Vec<_> = tables.iter().map(|table| table.rows()).collect();
        // Without tables any width will do.
        let dimension = tables.first().map_or(1, |table| table.dimension());
        let there = Arc::new(ranking.upload(&parts, dimension)?);
        let mut end = 0;
        let placed = |table: &Arc<LabelTable>| {
            let start = end;
            end += table.len();
            (table.clone(), start..end)
        };
        Ok(Uploaded { tables: tables.iter().map(placed).collect(), there })
    }
}

/// The rows of each of `wanted` among `tables`; those that lie one behind the other as one.
fn ranges(
    tables: &[(Arc<LabelTable>, Range<usize>)],
    wanted: &[&LabelTable],
) -> Result<Vec<Range<usize>>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for wanted in wanted {
        let found = tables.iter().find(|(table, _)| std::ptr::eq(&**table, *wanted));
        let (_, range) = found.ok_or_else(|| {
            Error::internal(format!("label table `{}`: it is not on the GPU", wanted.name()))
        })?;
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range.clone()),
        }
    }
    Ok(ranges)
}

/// What compares on the GPU of one instance.
pub(crate) struct GpuRanker {
    ranking: GpuRanking,
    uploaded: Arc<Uploaded>,
    /// Whether texts that it compared had the processor's bits.
    pub(crate) is_proven: bool,
}

impl GpuRanker {
    /// `ranking`, on GPU `ordinal`, with `tables`, which it has compared with the processor's bits.
    ///
    /// # Errors
    /// `Unsupported` where they were others; what the driver says.
    pub(crate) fn new(ranking: GpuRanking, ordinal: usize, tables: &GpuTables) -> Result<Self> {
        let uploaded = tables.on(ordinal, &ranking)?;
        let mut ranker = GpuRanker { ranking, uploaded, is_proven: false };
        let tables: Vec<&LabelTable> = tables.tables.iter().map(|table| &**table).collect();
        match imprompt_interrogate::is_exact(&mut ranker, &tables)? {
            true => Ok(ranker),
            false => Err(Error::unsupported("the GPU compares and ranks with other bits")),
        }
    }

    /// Begins to compare `image` with up to `most` texts.
    pub(crate) fn compare_texts(&mut self, image: &[f32], most: usize) -> Result<()> {
        self.ranking.compare_texts(image, most)
    }

    /// Compares it with the texts that have `embeds`.
    pub(crate) fn add(&mut self, embeds: &dyn Held) -> Result<()> {
        if embeds.element_type() != ElementType::F32 {
            return Err(Error::internal("embeddings that are not float32"));
        }
        let span = embeds.on_gpu()?;
        self.ranking.add(span.ok_or_else(|| Error::internal("embeddings that are on no GPU"))?)
    }
}

impl TableRanker for GpuRanker {
    fn compare(&mut self, tables: &[&LabelTable], images: &[f32]) -> Result<()> {
        let ranges = ranges(&self.uploaded.tables, tables)?;
        self.ranking.compare(&self.uploaded.there, &ranges, images)
    }

    fn similarities(&mut self) -> Result<Vec<f32>> {
        self.ranking.similarities()
    }

    fn first_wrong(&mut self) -> Result<Option<usize>> {
        self.ranking.first_wrong()
    }

    fn best(
        &mut self,
        range: Range<usize>,
        stages: Stages,
        reverse: bool,
    ) -> Result<Vec<(usize, f32)>> {
        // One chunk may be allowed to be larger than it is.
        let size = stages.chunk.min(range.len()).max(1);
        if size > GpuRanking::MOST_CHUNK {
            return best_here(self, range, stages, reverse);
        }
        self.ranking.best(range, GpuChunks { size, keep: stages.keep }, reverse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, count: usize) -> Arc<LabelTable> {
        let labels = (0..count).map(|label| label.to_string()).collect();
        Arc::new(LabelTable::new(name, labels, 0, Vec::new()).unwrap())
    }

    #[test]
    fn neighbouring_tables_are_compared_as_one() {
        let [one, two, three] = [("one", 3), ("two", 0), ("three", 5)].map(|(n, c)| table(n, c));
        let placed = [(one.clone(), 0..3), (two.clone(), 3..3), (three.clone(), 3..8)];
        let whole = 0..8;
        for wanted in [&[&*one, &*two, &*three][..], &[&*one, &*three]] {
            assert_eq!(ranges(&placed, wanted).unwrap(), std::slice::from_ref(&whole));
        }
        assert_eq!(ranges(&placed, &[&three, &one]).unwrap(), [3..8, 0..3]);
        assert!(ranges(&placed, &[]).unwrap().is_empty());
        // One of the same labels is another table.
        let error = ranges(&placed, &[&table("one", 3)]).unwrap_err();
        assert!(error.message().contains("`one`"), "{error}");
    }
}
