//! A label table: labels and their float16 embeddings, in clip-interrogator's cache format.

use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use imprompt_error::{Cancellation, Error, Result};
use safetensors::{Dtype, SafeTensors};

use crate::encoder::PromptEncoder;
use crate::labels::label_hash;

/// Bytes owned by someone else, such as a mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Labels embedded in one call of the encoder: the grain of progress and of cancellation. It does
/// not change the result.
const ENCODE_BATCH: usize = 256;

/// The rows of a table, float16 `[n, D]`, row-major.
#[derive(Clone)]
enum Embeds {
    Owned(Vec<f16>),
    /// A part of a file of embeddings, aligned for float16 (checked when it is made).
    Shared(SharedBytes, Range<usize>),
}

/// A named list of labels with one float16 embedding each.
#[derive(Clone)]
pub struct LabelTable {
    name: String,
    labels: Vec<String>,
    dimension: usize,
    embeds: Embeds,
}

impl std::fmt::Debug for LabelTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LabelTable({}: {} x {})", self.name, self.labels.len(), self.dimension)
    }
}

impl LabelTable {
    /// A table of `labels` with `embeds` (float16 `[labels, dimension]`, row-major).
    ///
    /// # Errors
    /// When the number of values is another.
    pub fn new(
        name: impl Into<String>,
        labels: Vec<String>,
        dimension: usize,
        embeds: Vec<f16>,
    ) -> Result<Self> {
        let name = name.into();
        if embeds.len() != labels.len() * dimension {
            return Err(Error::internal(format!(
                "label table `{name}`: {} values for {} labels of {dimension} values each",
                embeds.len(),
                labels.len()
            )));
        }
        Ok(LabelTable { name, labels, dimension, embeds: Embeds::Owned(embeds) })
    }

    /// Embeds `labels` with `encoder` and rounds each value to float16.
    ///
    /// `progress` is told the number of labels done, after each batch.
    ///
    /// # Errors
    /// Those of the encoder, and a cancellation.
    pub fn compute(
        name: impl Into<String>,
        labels: Vec<String>,
        encoder: &mut dyn PromptEncoder,
        cancel: &dyn Cancellation,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let dimension = encoder.dimension();
        let mut embeds = Vec::with_capacity(labels.len() * dimension);
        for batch in labels.chunks(ENCODE_BATCH) {
            cancel.check()?;
            let texts: Vec<&str> = batch.iter().map(String::as_str).collect();
            let rows = encoder.encode(&texts, cancel)?;
            let start = embeds.len();
            embeds.resize(start + rows.len(), f16::ZERO);
            embeds[start..].convert_from_f32_slice(&rows);
            progress(embeds.len() / dimension.max(1));
        }
        Self::new(name, labels, dimension, embeds)
    }

    /// The table kept in `file`: the bytes of a safetensors file with the tensors `embeds`
    /// (float16 `[n, d]`) and `hash` (int8 `[64]`, the ASCII codes of [`label_hash`]).
    ///
    /// The rows are used where they lie, without a copy, when they are aligned for float16.
    ///
    /// # Errors
    /// [`imprompt_error::Kind::BadModel`] when the file is damaged, lacks a tensor, or belongs to
    /// other labels or to another embedding width. The caller computes the table anew then.
    pub fn from_safetensors(
        name: impl Into<String>,
        labels: Vec<String>,
        dimension: usize,
        file: SharedBytes,
    ) -> Result<Self> {
        let name = name.into();
        let wrong = |what: String| Error::bad_model(format!("label table `{name}`: {what}"));
        let bytes = (*file).as_ref();
        let tensors = SafeTensors::deserialize(bytes)
            .map_err(|error| wrong(format!("not a safetensors file: {error}")))?;
        let tensor = |tensor: &str, dtype: Dtype| {
            let view = tensors
                .tensor(tensor)
                .map_err(|_| wrong(format!("the file has no tensor `{tensor}`")))?;
            if view.dtype() != dtype {
                return Err(wrong(format!("`{tensor}` is {}, not {dtype}", view.dtype())));
            }
            Ok(view)
        };
        let hash = tensor("hash", Dtype::I8)?;
        let embeds = tensor("embeds", Dtype::F16)?;
        if hash.data() != label_hash(&labels).as_bytes() {
            return Err(wrong(format!(
                "the file belongs to other labels than these {}",
                labels.len()
            )));
        }
        if embeds.shape() != [labels.len(), dimension] {
            return Err(wrong(format!(
                "`embeds` has shape {:?}, the labels and the model need [{}, {dimension}]",
                embeds.shape(),
                labels.len()
            )));
        }
        let data = embeds.data();
        let embeds = match bytemuck::try_cast_slice::<u8, f16>(data) {
            Ok(_) => {
                let start = data.as_ptr().addr() - bytes.as_ptr().addr();
                Embeds::Shared(file.clone(), start..start + data.len())
            }
            Err(_) => Embeds::Owned(
                data.chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]])).collect(),
            ),
        };
        Ok(LabelTable { name, labels, dimension, embeds })
    }

    /// Writes the table to `path` in the format of [`Self::from_safetensors`], byte for byte as
    /// clip-interrogator 0.6.0 writes it. The file appears whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.write(path).map_err(|error| {
            Error::internal(format!("label table `{}`: {}: {error}", self.name, path.display()))
        })
    }

    fn write(&self, path: &Path) -> std::io::Result<()> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".label-table-");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // A server may run under another user than the one who built the repository.
            builder.permissions(std::fs::Permissions::from_mode(0o644));
        }
        let mut file = builder.tempfile_in(directory)?;
        file.write_all(&self.header())?;
        file.write_all(bytemuck::cast_slice(self.rows()))?;
        file.write_all(label_hash(&self.labels).as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        #[cfg(unix)]
        std::fs::File::open(directory)?.sync_all()?;
        Ok(())
    }

    /// The safetensors header: its length, then JSON padded with blanks to a multiple of eight.
    fn header(&self) -> Vec<u8> {
        let end = size_of_val(self.rows());
        let json = format!(
            r#"{{"embeds":{{"dtype":"F16","shape":[{},{}],"data_offsets":[0,{end}]}},"hash":{{"dtype":"I8","shape":[64],"data_offsets":[{end},{}]}}}}"#,
            self.labels.len(),
            self.dimension,
            end + 64
        );
        let length = json.len().next_multiple_of(8);
        let mut header = (length as u64).to_le_bytes().to_vec();
        header.extend_from_slice(json.as_bytes());
        header.resize(8 + length, b' ');
        header
    }

    /// The table's name, such as `flavors`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The labels, in order, exactly as written.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Number of labels.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True when the table has no labels.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Width D of an embedding.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// All rows: float16 `[n, D]`, row-major.
    pub fn rows(&self) -> &[f16] {
        match &self.embeds {
            Embeds::Owned(rows) => rows,
            Embeds::Shared(bytes, range) => {
                bytemuck::cast_slice(&(**bytes).as_ref()[range.clone()])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use imprompt_error::{Kind, Uncancellable};

    use super::*;

    struct Lengths;

    impl PromptEncoder for Lengths {
        fn dimension(&self) -> usize {
            2
        }
        fn token_count(&self, text: &str) -> usize {
            text.len()
        }
        fn encode(&mut self, texts: &[&str], _: &dyn Cancellation) -> Result<Vec<f32>> {
            Ok(texts.iter().flat_map(|text| [text.len() as f32, 0.1]).collect())
        }
    }

    fn labels(count: usize) -> Vec<String> {
        (0..count).map(|i| "x".repeat(i % 7)).collect()
    }

    fn table(count: usize) -> LabelTable {
        LabelTable::compute("flavors", labels(count), &mut Lengths, &Uncancellable, &mut |_| ())
            .unwrap()
    }

    /// A copy of `bytes` that starts `shift` bytes after an address aligned for float16.
    struct Shifted(Vec<u8>, Range<usize>);

    impl AsRef<[u8]> for Shifted {
        fn as_ref(&self) -> &[u8] {
            &self.0[self.1.clone()]
        }
    }

    fn shifted(bytes: &[u8], shift: usize) -> SharedBytes {
        let mut buffer = vec![0; bytes.len() + 2];
        let start = buffer.as_ptr().addr() % 2 + shift;
        buffer[start..start + bytes.len()].copy_from_slice(bytes);
        Arc::new(Shifted(buffer, start..start + bytes.len()))
    }

    #[test]
    fn computing_reports_progress_and_rounds_to_float16() {
        let mut seen = Vec::new();
        let table = LabelTable::compute("t", labels(600), &mut Lengths, &Uncancellable, &mut |n| {
            seen.push(n);
        })
        .unwrap();
        assert_eq!(seen, [256, 512, 600]);
        assert_eq!(table.rows()[1], f16::from_bits(0x2e66), "0.1 rounds to 0.099976");
        assert_eq!(table.rows()[2 * 599], f16::from_f32((599 % 7) as f32));
    }

    #[test]
    fn a_saved_table_loads_with_and_without_alignment() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flavors.safetensors");
        let table = table(13);
        table.save(&path).unwrap();
        table.save(&path).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        let bytes = std::fs::read(&path).unwrap();
        for shift in [0, 1] {
            let loaded =
                LabelTable::from_safetensors("flavors", labels(13), 2, shifted(&bytes, shift))
                    .unwrap();
            assert_eq!(loaded.rows(), table.rows());
            assert_eq!(matches!(loaded.embeds, Embeds::Shared(..)), shift == 0);
        }
    }

    #[test]
    fn files_that_do_not_fit_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.safetensors");
        table(5).save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let load = |labels: Vec<String>, dimension, bytes: &[u8]| {
            let error = LabelTable::from_safetensors("t", labels, dimension, shifted(bytes, 0))
                .unwrap_err();
            assert_eq!(error.kind(), Kind::BadModel);
            error.message().to_owned()
        };
        assert!(load(labels(4), 2, &bytes).contains("other labels than these 4"));
        assert!(load(labels(5), 3, &bytes).contains("shape [5, 2]"));
        assert!(load(labels(5), 2, &bytes[..40]).contains("not a safetensors file"));
        assert!(load(labels(5), 2, &bytes[..bytes.len() - 1]).contains("not a safetensors file"));
        assert!(load(labels(5), 2, b"").contains("not a safetensors file"));
        let header = |from: &str, to: &str| {
            let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let json = std::str::from_utf8(&bytes[8..end]).unwrap().replace(from, to);
            [&bytes[..8], json.as_bytes(), &bytes[end..]].concat()
        };
        assert!(load(labels(5), 2, &header("\"hash\"", "\"hush\"")).contains("no tensor `hash`"));
        assert!(load(labels(5), 2, &header("\"I8\"", "\"U8\"")).contains("`hash` is U8, not I8"));
    }

    #[test]
    fn a_wrong_number_of_values_is_an_error() {
        let error = LabelTable::new("t", labels(2), 3, vec![f16::ZERO; 5]).unwrap_err();
        assert_eq!(error.message(), "label table `t`: 5 values for 2 labels of 3 values each");
    }
}
