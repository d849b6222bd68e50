//! The label tables of a built repository: add, remove, list.

use std::path::{Path, PathBuf};

use imprompt_error::{Error, Result};
use imprompt_stage::{StageFile, StageKind};

use crate::files;
use crate::layout::VERSION;
use crate::manifest::{Manifest, TableEntry};
use crate::progress::Progress;
use crate::stage_file;
use crate::tables::{self, Encoding};

/// What to add.
#[derive(Clone, Debug)]
pub struct AddTables {
    /// Label tables, or folders of them.
    pub sources: Vec<PathBuf>,
    /// Replaces tables of the same name.
    pub replace: bool,
    /// The ONNX Runtime library; `None`: looked for.
    pub onnxruntime: Option<PathBuf>,
}

/// Adds label tables to `repository`, and returns what it added. A server that has the
/// repository loaded sees them when it loads `tagger` and `ranker` again.
///
/// # Errors
/// [`imprompt_error::Kind::InvalidInput`] for a repository without a CLIP, and for tables that
/// are there already, unless they are to be replaced; what embedding and writing fail with.
pub fn add_tables(
    repository: &Path,
    request: &AddTables,
    progress: &dyn Progress,
) -> Result<Vec<TableEntry>> {
    let mut manifest = Manifest::read(repository)?;
    let mut raw = tables::read_folders(&request.sources)?;
    let tagger = version(repository, StageKind::Tagger);
    if !tagger.is_dir() {
        return Err(Error::invalid("the repository has no CLIP: nothing could embed the labels"));
    }
    let is_there = |name: &str| manifest.tables.iter().any(|entry| entry.name == name);
    if let Some(table) = raw.iter().find(|table| is_there(&table.name))
        && !request.replace
    {
        return Err(Error::invalid(format!("the repository has a table `{}` already", table.name)));
    }
    // The first table of the interrogator brings the trendings with it.
    raw = tables::with_trendings(&raw)
        .into_iter()
        .filter(|table| table.source != tables::OWN || !is_there(&table.name))
        .collect();
    let text_folder = version(repository, StageKind::ClipText);
    let text = stage_file::read_text(&text_folder)?;
    let encoding = Encoding {
        text_folder: &text_folder,
        facts: &text.facts,
        cleaning: tables::cleaning(text.cleaning),
        threads: 0,
        onnxruntime: request.onnxruntime.as_deref(),
    };
    let added = tables::make(&raw, &encoding, &tagger, None, progress)?;
    manifest.tables.retain(|entry| !added.iter().any(|new| new.name == entry.name));
    manifest.tables.extend(added.iter().cloned());
    let ranker = version(repository, StageKind::Ranker);
    if ranker.is_dir() {
        tables::link_interrogator(&tagger, &ranker, &added)?;
    }
    relist(repository, &manifest.tables)?;
    manifest.write(repository)?;
    Ok(added)
}

/// Removes label tables from `repository`.
///
/// # Errors
/// [`imprompt_error::Kind::NotFound`] for a name that no table has: nothing is removed then.
pub fn remove_tables(repository: &Path, names: &[String], progress: &dyn Progress) -> Result<()> {
    let mut manifest = Manifest::read(repository)?;
    for name in names {
        if !manifest.tables.iter().any(|entry| entry.name == *name) {
            return Err(tables::unknown(name, &manifest.tables));
        }
    }
    manifest.tables.retain(|entry| !names.contains(&entry.name));
    // First the stages stop naming the files, then the files go.
    relist(repository, &manifest.tables)?;
    for kind in [StageKind::Tagger, StageKind::Ranker] {
        let folder = version(repository, kind).join(crate::layout::TABLES);
        for name in names {
            for file in [tables::text_file(name), tables::embeddings_file(name)] {
                let path = folder.join(file);
                if path.exists() {
                    std::fs::remove_file(&path)
                        .map_err(|error| files::io("remove", &path, &error))?;
                }
            }
        }
    }
    if version(repository, StageKind::Ranker).is_dir() {
        tables::tell_missing(&manifest.tables, progress);
    }
    manifest.write(repository)
}

fn version(repository: &Path, kind: StageKind) -> PathBuf {
    repository.join(kind.name()).join(VERSION)
}

/// Writes the list of tables into stage.json of the stages that have any.
fn relist(repository: &Path, entries: &[TableEntry]) -> Result<()> {
    for kind in [StageKind::Tagger, StageKind::Ranker] {
        let folder = version(repository, kind);
        if !folder.is_dir() {
            continue;
        }
        let mut file = stage_file::read(&folder)?;
        match &mut file {
            StageFile::Tagger(file) => file.tables = tables::listed(&folder, entries),
            StageFile::Ranker(file) => {
                let is_own = |entry: &&TableEntry| tables::interrogator(&entry.name).is_some();
                let own: Vec<_> = entries.iter().filter(is_own).cloned().collect();
                file.tables = tables::listed(&folder, &own);
            }
            _ => return Err(stage_file::wrong(&folder)),
        }
        stage_file::write(&folder, &file)?;
    }
    Ok(())
}
