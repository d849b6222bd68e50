//! Label tables: read from folders, embedded once, kept beside the stages that use them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use imprompt_error::{Error, Kind, Result, Uncancellable};
use imprompt_graph::ClipFacts;
use imprompt_interrogate::{
    LabelTable, Table,
    labels::{label_hash, read_labels, trending_labels},
};
use imprompt_stage::Parameters;
use imprompt_stage::tables::TableFile;
use imprompt_stage::text_side::{Cleaning, TextModel, TextSide};
use sha2::{Digest as _, Sha256};

use crate::files;
use crate::layout::{TABLES, VERSION};
use crate::manifest::{Manifest, TableEntry};
use crate::progress::{Progress, Unit};

/// A table before it is embedded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawTable {
    /// What the table is called.
    pub(crate) name: String,
    /// The lines of its file; `None` for the trendings, which have none.
    pub(crate) lines: Option<Vec<String>>,
    /// Its labels, as they are embedded.
    pub(crate) labels: Vec<String>,
    /// Where it came from, for messages.
    pub(crate) source: String,
}

/// The source of a table that imprompt makes itself.
pub(crate) const OWN: &str = "imprompt";

/// How terms of the interrogator are read where labels are read by `labels`: as
/// open_clip reads them, whatever the model.
pub(crate) fn cleaning(labels: Cleaning) -> Cleaning {
    match labels {
        Cleaning::Canonical => Cleaning::Canonical,
        _ => Cleaning::OpenClip,
    }
}

/// What embeds labels.
pub(crate) struct Encoding<'a> {
    /// A folder with the graph, weights and tokenizer of CLIP's text tower.
    pub(crate) text_folder: &'a Path,
    pub(crate) facts: &'a ClipFacts,
    /// How terms are read: see [`cleaning`].
    pub(crate) cleaning: Cleaning,
    pub(crate) threads: usize,
    pub(crate) onnxruntime: Option<&'a Path>,
}

impl Encoding<'_> {
    /// Opens the text tower.
    fn open(&self) -> Result<TextSide> {
        let parameters = Parameters {
            threads: self.threads,
            onnxruntime: self.onnxruntime.map(Into::into),
            ..Parameters::default()
        };
        TextModel::open(self.text_folder, self.facts.clone(), self.cleaning, &parameters)?
            .side(imprompt_stage::Placement::Cpu)
    }
}

/// The table of the interrogator that is called `name`.
pub(crate) fn interrogator(name: &str) -> Option<Table> {
    Table::ALL.into_iter().find(|table| table.name() == name)
}

/// The table in the file `path`, called like the file.
pub(crate) fn read_file(path: &Path) -> Result<RawTable> {
    let bad = |why: &str| Error::invalid(format!("{}: {why}", path.display()));
    let name = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .filter(|stem| is_name(stem))
        .ok_or_else(|| bad("a table's name is letters, digits, `-`, `_`, `.` and blanks"))?;
    if interrogator(name) == Some(Table::Trendings) {
        return Err(bad("`trendings` is made by imprompt itself"));
    }
    let lines = read_labels(path)?;
    if lines.is_empty() {
        return Err(bad("no labels"));
    }
    let labels = imprompt_stage::tables::labels(name, Some(path))?;
    let source = path.display().to_string();
    Ok(RawTable { name: name.to_owned(), lines: Some(lines), labels, source })
}

fn is_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_alphanumeric() || "-_. ".contains(c);
    !name.starts_with('.') && name.len() <= 100 && name.chars().all(is_allowed)
}

/// Every `*.txt` of the folders, by name; a source may be such a file itself.
pub(crate) fn read_folders(sources: &[PathBuf]) -> Result<Vec<RawTable>> {
    let mut tables: Vec<RawTable> = Vec::new();
    for source in sources {
        for path in text_files(source)? {
            let table = read_file(&path)?;
            if let Some(other) = tables.iter().find(|other| other.name == table.name) {
                return Err(Error::invalid(format!(
                    "two tables are called `{}`: {} and {}",
                    table.name, other.source, table.source
                )));
            }
            tables.push(table);
        }
    }
    Ok(tables)
}

fn text_files(source: &Path) -> Result<Vec<PathBuf>> {
    if source.is_file() {
        return Ok(vec![source.to_owned()]);
    }
    let failed = |error: &std::io::Error| files::io("list", source, error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(source).map_err(|error| failed(&error))? {
        let path = entry.map_err(|error| failed(&error))?.path();
        if path.extension().is_some_and(|extension| extension == "txt") && path.is_file() {
            found.push(path);
        }
    }
    if found.is_empty() {
        return Err(Error::not_found(format!(
            "{}: no label tables (*.txt) in this folder",
            source.display()
        )));
    }
    found.sort();
    Ok(found)
}

/// A label a line. A label has no line end: the file it came from was split at them.
fn lines(labels: &[String]) -> String {
    labels.iter().map(|label| format!("{label}\n")).collect()
}

/// `raw`, and the trendings when there is any other table of the interrogator.
pub(crate) fn with_trendings(raw: &[RawTable]) -> Vec<RawTable> {
    let mut tables = raw.to_vec();
    if raw.iter().any(|table| interrogator(&table.name).is_some()) {
        tables.push(RawTable {
            name: Table::Trendings.name().to_owned(),
            lines: None,
            labels: trending_labels(),
            source: OWN.to_owned(),
        });
    }
    tables
}

/// Writes each table (`NAME.txt`, `NAME.safetensors`) into the `tables/` of the version folder
/// `folder`. Embeddings that the repository `before` has of the same labels, made by the same
/// encoder, are taken from there.
pub(crate) fn make(
    raw: &[RawTable],
    encoding: &Encoding<'_>,
    folder: &Path,
    before: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Vec<TableEntry>> {
    if raw.is_empty() {
        return Ok(vec![]);
    }
    let target = folder.join(TABLES);
    files::create_dir(&target)?;
    let identity = identity(encoding.text_folder)?;
    let known = before.and_then(|root| Some((root, Manifest::read(root).ok()?)));
    let mut encoder = None;
    let mut entries = Vec::with_capacity(raw.len());
    for table in raw {
        let entry = TableEntry {
            name: table.name.clone(),
            labels: table.labels.len(),
            hash: label_hash(&table.labels),
            encoder: identity.clone(),
        };
        let embeddings = target.join(embeddings_file(&table.name));
        let is_kept = known.as_ref().is_some_and(|(root, manifest)| {
            let old = tagger_tables(root).join(embeddings_file(&table.name));
            manifest.tables.contains(&entry)
                && is_of(&old, table, encoding.facts)
                && std::fs::hard_link(&old, &embeddings).is_ok()
        });
        if !is_kept {
            let encoder = match &mut encoder {
                Some(encoder) => encoder,
                none => none.insert(encoding.open()?),
            };
            compute(table, encoder, &embeddings, progress)?;
        }
        if let Some(text) = &table.lines {
            files::write(&target.join(text_file(&table.name)), lines(text).as_bytes())?;
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// True when `file` holds embeddings of this table: the manifest may be older than the file.
fn is_of(file: &Path, table: &RawTable, facts: &ClipFacts) -> bool {
    files::read(file).is_ok_and(|bytes| {
        let labels = table.labels.clone();
        LabelTable::from_safetensors(&table.name, labels, facts.projection_dim, Arc::new(bytes))
            .is_ok()
    })
}

fn compute(
    table: &RawTable,
    encoder: &mut TextSide,
    target: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    let total = table.labels.len();
    progress.start(
        &format!("embedding {total} labels of {}", table.name),
        total as u64,
        Unit::Labels,
    );
    let mut told = 0;
    let made = LabelTable::compute(
        &table.name,
        table.labels.clone(),
        encoder,
        &Uncancellable,
        &mut |done| {
            progress.advance((done - told) as u64);
            told = done;
        },
    );
    progress.finish();
    made?.save(target)
}

pub(crate) fn text_file(name: &str) -> String {
    format!("{name}.txt")
}

pub(crate) fn embeddings_file(name: &str) -> String {
    format!("{name}.safetensors")
}

/// The `tables/` folder of the tagger, which has every table.
pub(crate) fn tagger_tables(root: &Path) -> PathBuf {
    root.join("tagger").join(VERSION).join(TABLES)
}

/// What stage.json says of the tables that are in the version folder `folder`.
pub(crate) fn listed(folder: &Path, entries: &[TableEntry]) -> Vec<TableFile> {
    let tables = folder.join(TABLES);
    let has = |file: &str| tables.join(file).exists();
    let present = entries.iter().filter(|entry| has(&embeddings_file(&entry.name)));
    let listed = present.map(|entry| {
        let (text, embeddings) = (text_file(&entry.name), embeddings_file(&entry.name));
        TableFile {
            name: entry.name.clone(),
            file: has(&text).then(|| format!("{TABLES}/{text}")),
            embeddings: format!("{TABLES}/{embeddings}"),
        }
    });
    listed.collect()
}

/// Puts the interrogator's tables of `from` (a version folder) into `to`: the same files.
pub(crate) fn link_interrogator(from: &Path, to: &Path, entries: &[TableEntry]) -> Result<()> {
    let (from, to) = (from.join(TABLES), to.join(TABLES));
    files::create_dir(&to)?;
    for entry in entries.iter().filter(|entry| interrogator(&entry.name).is_some()) {
        for file in [text_file(&entry.name), embeddings_file(&entry.name)] {
            if from.join(&file).exists() {
                replace_with(&from.join(&file), &to.join(&file))?;
            }
        }
    }
    Ok(())
}

/// `target` becomes the same file as `source`, or a copy where links cannot be made.
fn replace_with(source: &Path, target: &Path) -> Result<()> {
    let aside = target.with_extension("new");
    let _ = std::fs::remove_file(&aside);
    std::fs::hard_link(source, &aside)
        .or_else(|_| std::fs::copy(source, &aside).map(drop))
        .and_then(|()| std::fs::rename(&aside, target))
        .map_err(|error| files::io("write", target, &error))
}

/// Says which modes of `interrogate` will be refused for want of tables.
pub(crate) fn tell_missing(entries: &[TableEntry], progress: &dyn Progress) {
    let missing: Vec<&str> = Table::ALL
        .into_iter()
        .map(Table::name)
        .filter(|name| !entries.iter().any(|entry| entry.name == *name))
        .collect();
    if !missing.is_empty() {
        progress.say(&format!(
            "interrogate will refuse modes that need the tables {}: no --vocabulary has them",
            missing.join(", ")
        ));
    }
}

/// Identity of the text tower in `folder`: SHA-256 over its graph, tokenizer and weights.
fn identity(folder: &Path) -> Result<String> {
    let failed = |error: &std::io::Error| files::io("list", folder, error);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| failed(&error))? {
        paths.push(entry.map_err(|error| failed(&error))?.path());
    }
    paths.sort();
    let mut hasher = Sha256::new();
    for path in paths.iter().filter(|path| path.is_file()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        hasher.update(name.as_bytes());
        files::sample(path, &mut hasher)?;
    }
    Ok(files::hex(&hasher.finalize()))
}

/// The error of a name that no table has.
pub(crate) fn unknown(name: &str, entries: &[TableEntry]) -> Error {
    let names: Vec<&str> = entries.iter().map(|entry| &*entry.name).collect();
    let has = if names.is_empty() { "it has none".to_owned() } else { names.join(", ") };
    Error::new(
        Kind::NotFound,
        format!("no label table is called `{name}`; the repository's: {has}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn tables_are_named_like_their_files_and_artists_are_expanded() {
        let one =
            folder(&[("artists.txt", "A\nB\n"), ("moods.txt", " calm \n\n"), ("notes.md", "x")]);
        let tables = read_folders(&[one.path().to_owned()]).unwrap();
        assert_eq!(tables[0].labels, ["by A", "by B", "inspired by A", "inspired by B"]);
        assert_eq!(
            (&*tables[1].name, &tables[1].labels[..]),
            ("moods", &["calm".into(), String::new()][..])
        );
        let names: Vec<_> = with_trendings(&tables).into_iter().map(|table| table.name).collect();
        assert_eq!(names, ["artists", "moods", "trendings"]);
        assert_eq!(with_trendings(&tables[1..]).len(), 1);
    }

    #[test]
    fn equal_names_and_bad_sources_are_refused() {
        let (one, two) = (folder(&[("moods.txt", "a")]), folder(&[("moods.txt", "b")]));
        let error = read_folders(&[one.path().into(), two.path().into()]).unwrap_err();
        assert!(error.message().starts_with("two tables are called `moods`: "), "{error}");
        for (name, text) in [("empty.txt", ""), ("trendings.txt", "a"), ("a\"b.txt", "a")] {
            let bad = folder(&[(name, text)]);
            assert!(read_folders(&[bad.path().to_owned()]).is_err(), "{name}");
        }
        assert_eq!(read_folders(&[folder(&[]).path().into()]).unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn lines_are_read_back_as_the_same_labels() {
        let labels: Vec<String> = ["", "a b", "", "caf\u{fffd}", ""].map(str::to_owned).into();
        let file = folder(&[("x.txt", &lines(&labels))]);
        assert_eq!(read_labels(&file.path().join("x.txt")).unwrap(), labels);
    }

    #[test]
    fn the_identity_follows_every_sampled_byte() {
        let model = folder(&[("clip_text.onnx", "graph"), ("model.safetensors", "weights")]);
        let before = identity(model.path()).unwrap();
        assert_eq!(identity(model.path()).unwrap(), before);
        std::fs::write(model.path().join("model.safetensors"), "weightz").unwrap();
        assert_ne!(identity(model.path()).unwrap(), before);
        let large = std::fs::File::create(model.path().join("model.safetensors")).unwrap();
        large.set_len(files::SAMPLES * files::SAMPLE_BYTES * 40).unwrap();
        let sparse = identity(model.path()).unwrap();
        use std::os::unix::fs::FileExt as _;
        large.write_at(b"x", files::SAMPLE_BYTES * 40 * 3).unwrap();
        assert_ne!(identity(model.path()).unwrap(), sparse);
    }
}
