//! The stored label tables of a stage's folder.

use std::path::Path;
use std::sync::Arc;

use imprompt_error::Result;
use imprompt_interrogate::labels::{read_labels, trending_labels};
use imprompt_interrogate::{LabelTable, Table};
use serde::{Deserialize, Serialize};

use crate::files;

/// One label table: its name, its labels, its embeddings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableFile {
    /// The name requests use.
    pub name: String,
    /// The labels, a line each; none for a table whose labels are made in code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The embeddings, in the format of clip-interrogator's cache.
    pub embeddings: String,
}

/// The labels of the table `name`, whose file is `path`: the artists' names become
/// "by X" and "inspired by X" as clip-interrogator has them, its trendings have no file.
///
/// # Errors
/// When the file cannot be read.
pub fn labels(name: &str, path: Option<&Path>) -> Result<Vec<String>> {
    let Some(path) = path else { return Ok(trending_labels()) };
    match Table::by_name(name) {
        Some(table) => table.read(path),
        None => read_labels(path),
    }
}

/// Opens `tables` in `folder`; their rows are mapped, not read.
pub(crate) fn open(
    folder: &Path,
    tables: &[TableFile],
    dimension: usize,
) -> Result<Vec<(String, Arc<LabelTable>)>> {
    let open_one = |table: &TableFile| {
        let path = table.file.as_ref().map(|file| files::inside(folder, file)).transpose()?;
        let labels = labels(&table.name, path.as_deref())?;
        let bytes = imprompt_mapping::map_file(&files::inside(folder, &table.embeddings)?)?;
        let opened = LabelTable::from_safetensors(&table.name, labels, dimension, bytes)
            .map_err(|error| error.context(&table.embeddings))?;
        Ok((table.name.clone(), Arc::new(opened)))
    };
    tables.iter().map(open_one).collect()
}
