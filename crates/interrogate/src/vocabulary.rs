//! The interrogator's six label tables, and several of them seen as one.

use std::path::Path;
use std::sync::Arc;

use imprompt_error::{Error, Kind, Result};

use crate::labels::{artist_labels, read_labels, trending_labels};
use crate::table::{LabelTable, SharedBytes};
use crate::table_ranker::{Cosines, TableRanker, first_wrong};

/// A label table of the interrogator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// `by NAME` and `inspired by NAME` of the names of `artists.txt`.
    Artists,
    /// `flavors.txt`: anything that modifies a prompt.
    Flavors,
    /// `mediums.txt`: a painting, a photograph.
    Mediums,
    /// `movements.txt`: art movements.
    Movements,
    /// Phrases with the names of sites. They have no file.
    Trendings,
    /// `negative.txt`: terms for negative prompts.
    Negative,
}

impl Table {
    /// Every table. The first five, in this order, are the merged table of modes fast and best:
    /// the order decides which labels share a chunk of the ranking, and so the prompt.
    pub const ALL: [Table; 6] = [
        Table::Artists,
        Table::Flavors,
        Table::Mediums,
        Table::Movements,
        Table::Trendings,
        Table::Negative,
    ];

    /// The table's name: that of its files without the ending.
    pub fn name(self) -> &'static str {
        match self {
            Table::Artists => "artists",
            Table::Flavors => "flavors",
            Table::Mediums => "mediums",
            Table::Movements => "movements",
            Table::Trendings => "trendings",
            Table::Negative => "negative",
        }
    }

    /// The table of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }

    /// The labels of the table whose file is `path`: the lines, of artists "by X" and
    /// "inspired by X" for each line X.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(self, path: &Path) -> Result<Vec<String>> {
        let lines = read_labels(path)?;
        Ok(if self == Table::Artists { artist_labels(&lines) } else { lines })
    }

    /// The labels of the table in a vocabulary's folder; `None` when its file does not exist.
    ///
    /// # Errors
    /// When the file exists and cannot be read.
    pub fn labels(self, directory: &Path) -> Result<Option<Vec<String>>> {
        if self == Table::Trendings {
            return Ok(Some(trending_labels()));
        }
        match self.read(&directory.join(format!("{}.txt", self.name()))) {
            Ok(labels) => Ok(Some(labels)),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The label tables of one CLIP model. Any may be missing: a mode that needs it says so.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    dimension: usize,
    tables: [Option<Arc<LabelTable>>; Table::ALL.len()],
}

impl Vocabulary {
    /// A vocabulary without tables, for a CLIP model whose joint space has `dimension` values.
    pub fn new(dimension: usize) -> Self {
        Vocabulary { dimension, tables: Default::default() }
    }

    /// The vocabulary in `directory`: every table that has its labels there (`NAME.txt`; the
    /// trendings need none) and its embeddings (`NAME.safetensors`). A table that lacks either
    /// is missing.
    ///
    /// `bytes` gives the bytes of a file, best mapped into memory: they are used in place.
    ///
    /// # Errors
    /// When a file exists and is not right, with its path.
    pub fn open(
        directory: &Path,
        dimension: usize,
        bytes: &dyn Fn(&Path) -> Result<SharedBytes>,
    ) -> Result<Self> {
        let mut vocabulary = Vocabulary::new(dimension);
        for table in Table::ALL {
            let path = directory.join(format!("{}.safetensors", table.name()));
            let Some(labels) = table.labels(directory)? else { continue };
            if !path.exists() {
                continue;
            }
            let loaded =
                LabelTable::from_safetensors(table.name(), labels, dimension, bytes(&path)?)
                    .map_err(|error| error.context(path.display()))?;
            vocabulary.insert(table, Arc::new(loaded))?;
        }
        Ok(vocabulary)
    }

    /// Puts a table in, in place of the one there.
    ///
    /// # Errors
    /// When its embeddings have another width than the vocabulary's.
    pub fn insert(&mut self, table: Table, labels: Arc<LabelTable>) -> Result<()> {
        if labels.dimension() != self.dimension {
            return Err(Error::bad_model(format!(
                "label table `{}`: embeddings of {} values, the CLIP model has {}",
                table.name(),
                labels.dimension(),
                self.dimension
            )));
        }
        self.tables[table as usize] = Some(labels);
        Ok(())
    }

    /// A table, if it is there.
    pub fn get(&self, table: Table) -> Option<&Arc<LabelTable>> {
        self.tables[table as usize].as_ref()
    }

    /// Width D of the joint space.
    pub fn dimension(&self) -> usize {
        self.dimension
    }
}

/// Several tables as one: their labels in a row, with one index.
pub(crate) struct Merged<'a> {
    parts: Vec<(Table, &'a LabelTable)>,
}

impl<'a> Merged<'a> {
    /// The `tables` of `vocabulary` for the mode `mode`.
    pub(crate) fn new(vocabulary: &'a Vocabulary, tables: &[Table], mode: &str) -> Result<Self> {
        let parts = tables.iter().map(|table| match vocabulary.get(*table) {
            Some(labels) => Ok((*table, labels.as_ref())),
            None => Err(Error::not_found(format!(
                "mode `{mode}` needs the label table `{}`, which this repository lacks",
                table.name()
            ))),
        });
        Ok(Merged { parts: parts.collect::<Result<_>>()? })
    }

    /// Cosines of `image` with every label, in order: by `ranker`, or in one pass over the rows by
    /// at most `threads` threads (0: as many as help).
    pub(crate) fn cosines<'r>(
        &self,
        image: &[f32],
        ranker: Option<&'r mut dyn TableRanker>,
        threads: usize,
    ) -> Result<Cosines<'r>> {
        let (cosines, wrong) = match ranker {
            Some(ranker) => {
                let tables: Vec<_> = self.parts.iter().map(|(_, labels)| *labels).collect();
                ranker.compare(&tables, image)?;
                let wrong = ranker.first_wrong()?;
                let count = tables.iter().map(|labels| labels.len()).sum();
                (Cosines::There(count, ranker), wrong)
            }
            None => {
                let tables: Vec<_> = self.parts.iter().map(|(_, labels)| labels.rows()).collect();
                let values =
                    imprompt_similarity::similarities(&tables, image, image.len(), threads).pop();
                let values = values.unwrap_or_default();
                let wrong = first_wrong(&values);
                (Cosines::Here(values), wrong)
            }
        };
        match wrong {
            None => Ok(cosines),
            Some(index) => Err(Error::bad_model(format!(
                "label table `{}`: an embedding is not finite",
                self.label(index).0.name()
            ))),
        }
    }

    /// The label at `index` of the whole, and its table.
    ///
    /// # Panics
    /// When there are not so many labels.
    pub(crate) fn label(&self, mut index: usize) -> (Table, &'a str) {
        for (table, labels) in &self.parts {
            match labels.labels().get(index) {
                Some(label) => return (*table, label),
                None => index -= labels.len(),
            }
        }
        panic!("no label at {index} after the last table");
    }

    /// Where the labels of `table` lie in the whole.
    pub(crate) fn range(&self, table: Table) -> std::ops::Range<usize> {
        let mut start = 0;
        for (part, labels) in &self.parts {
            if *part == table {
                return start..start + labels.len();
            }
            start += labels.len();
        }
        start..start
    }
}
