//! Which tensor of a model lies where: an index over the safetensors headers
//! of a Hugging Face folder. No weight is read, so a 15 GB model costs what its
//! header costs.
//!
//! Format: <https://huggingface.co/docs/safetensors>: eight bytes of header
//! length (little endian), a JSON header, the data.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use imprompt_error::{Error, Kind, Result};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

/// The longest header that is read; the limit of the reference reader.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The longest tensor that [`WeightIndex::read_floats`] reads.
pub const MAX_READ_ELEMENTS: usize = 1 << 20;

/// The type of a stored tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[allow(missing_docs)]
pub enum DType {
    BOOL,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    BF16,
    F32,
    F64,
    #[serde(rename = "F8_E4M3")]
    F8E4M3,
    #[serde(rename = "F8_E5M2")]
    F8E5M2,
}

impl DType {
    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> u64 {
        match self {
            DType::BOOL | DType::U8 | DType::I8 | DType::F8E4M3 | DType::F8E5M2 => 1,
            DType::U16 | DType::I16 | DType::F16 | DType::BF16 => 2,
            DType::U32 | DType::I32 | DType::F32 => 4,
            DType::U64 | DType::I64 | DType::F64 => 8,
        }
    }
}

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// The file's name, inside the model's folder.
    pub file: String,
    /// The type of its elements.
    pub dtype: DType,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// Its first byte, counted from the start of the file.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// All tensors of a model folder by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightIndex {
    folder: PathBuf,
    tensors: BTreeMap<String, Weight>,
    /// What the file calls a tensor that was given another name, for messages.
    stored_as: BTreeMap<String, String>,
}

impl WeightIndex {
    /// The index of `folder`: `model.safetensors`, or the shards named by
    /// `model.safetensors.index.json`. A single file wins, as in the reference.
    ///
    /// # Errors
    /// `NotFound` when the folder has neither; `BadModel` naming the file when a
    /// header is malformed, a tensor lies outside its file or over another, or
    /// a shard lacks what the index promises.
    pub fn open(folder: &Path) -> Result<Self> {
        let single = folder.join("model.safetensors");
        if single.is_file() {
            return Self::open_files(folder, &["model.safetensors".to_owned()]);
        }
        let index = folder.join("model.safetensors.index.json");
        if !index.is_file() {
            return Err(Error::not_found(format!(
                "{} has neither model.safetensors nor model.safetensors.index.json (weights in \
                 other formats, such as pytorch_model.bin, are not read)",
                folder.display()
            )));
        }
        let promised = read_shard_index(&index)?;
        let mut files: Vec<String> = promised.values().cloned().collect();
        files.sort();
        files.dedup();
        let this = Self::open_files(folder, &files)?;
        for (name, file) in &promised {
            if this.tensors.get(name).is_none_or(|tensor| tensor.file != *file) {
                return Err(Error::bad_model(format!(
                    "{}: tensor {name} is promised in {file}, which does not hold it",
                    index.display()
                )));
            }
        }
        Ok(this)
    }

    /// The index of these files of `folder`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_files(folder: &Path, files: &[String]) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for file in files {
            for (name, weight) in read_header(folder, file)? {
                if let Some(other) = tensors.insert(name.clone(), weight) {
                    return Err(Error::bad_model(format!(
                        "{}: tensor {name} is in {} and in {file}",
                        folder.display(),
                        other.file
                    )));
                }
            }
        }
        Ok(WeightIndex { folder: folder.to_owned(), tensors, stored_as: BTreeMap::new() })
    }

    /// The model's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names and places, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Weight)> {
        self.tensors.iter().map(|(name, weight)| (name.as_str(), weight))
    }

    /// Whether there is a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// `BadModel` when there is none.
    pub fn get(&self, name: &str) -> Result<&Weight> {
        self.tensors.get(name).ok_or_else(|| {
            Error::bad_model(format!("{}: there is no tensor {name}", self.folder.display()))
        })
    }

    /// The tensor `name`, which must have this shape.
    ///
    /// # Errors
    /// `BadModel` when there is none or its shape is another.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<&Weight> {
        let weight = self.get(name)?;
        let same = weight.shape.len() == shape.len()
            && weight.shape.iter().zip(shape).all(|(&have, &want)| have == want as u64);
        if same {
            return Ok(weight);
        }
        Err(Error::bad_model(format!(
            "{}: tensor {} has shape {:?}, the configuration asks for {shape:?}",
            self.folder.join(&weight.file).display(),
            self.stored_name(name),
            weight.shape
        )))
    }

    /// What the file calls the tensor `name`.
    fn stored_name<'n>(&'n self, name: &'n str) -> &'n str {
        self.stored_as.get(name).map_or(name, String::as_str)
    }

    /// Gives the tensor that the file calls `stored` the further name `name`,
    /// by which a graph knows it.
    ///
    /// # Errors
    /// `BadModel` when there is no tensor `stored`.
    pub fn alias(&mut self, stored: &str, name: &str) -> Result<()> {
        let weight = self.get(stored)?.clone();
        self.stored_as.insert(name.to_owned(), stored.to_owned());
        self.tensors.insert(name.to_owned(), weight);
        Ok(())
    }

    /// The rows of the tensor that the file calls `stored` in equal parts, each
    /// a tensor of its own under one of `names`: rows lie one after the other,
    /// so a part is a place in the file like any other.
    ///
    /// # Errors
    /// `BadModel` when there is no tensor `stored`, or its rows cannot be parted so.
    pub fn split_rows(&mut self, stored: &str, names: &[String]) -> Result<()> {
        let whole = self.get(stored)?.clone();
        let parts = names.len().max(1) as u64;
        let rows = whole.shape.first().copied().filter(|rows| rows.is_multiple_of(parts));
        let Some(rows) = rows.map(|rows| rows / parts) else {
            return Err(Error::bad_model(format!(
                "{}: tensor {stored} has shape {:?}, whose rows are no {parts} equal parts",
                self.folder.join(&whole.file).display(),
                whole.shape
            )));
        };
        let length = whole.length / parts;
        for (index, name) in (0..parts).zip(names) {
            let mut part = whole.clone();
            part.shape[0] = rows;
            part.offset += index * length;
            part.length = length;
            let label = format!("{stored} (part {} of {parts})", index + 1);
            self.stored_as.insert(name.clone(), label);
            self.tensors.insert(name.clone(), part);
        }
        Ok(())
    }

    /// The elements of the small tensor `name`, widened to float32.
    ///
    /// # Errors
    /// `BadModel` when there is none, its elements are not floats, it has more
    /// than [`MAX_READ_ELEMENTS`], or the file cannot be read.
    pub fn read_floats(&self, name: &str) -> Result<Vec<f32>> {
        let weight = self.get(name)?;
        let path = self.folder.join(&weight.file);
        let wrong =
            |what: String| Error::bad_model(format!("{}: tensor {name} {what}", path.display()));
        let count = weight.length / weight.dtype.size();
        if count > MAX_READ_ELEMENTS as u64 {
            return Err(wrong(format!(
                "has {count} elements, at most {MAX_READ_ELEMENTS} allowed"
            )));
        }
        let mut bytes = vec![0; weight.length as usize];
        let mut file = open_file(&path)?;
        file.seek(SeekFrom::Start(weight.offset))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|e| wrong(format!("cannot be read: {e}")))?;
        match weight.dtype {
            DType::F32 => Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            DType::F16 => {
                Ok(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect())
            }
            DType::BF16 => {
                Ok(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect())
            }
            other => {
                Err(wrong(format!("has elements of type {other:?}, F32, F16 or BF16 allowed")))
            }
        }
    }
}

fn open_file(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| {
        let kind = match e.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            _ => Kind::BadModel,
        };
        Error::new(kind, format!("{} cannot be opened: {e}", path.display()))
    })
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

fn read_shard_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let wrong = |what: String| Error::bad_model(format!("{}: {what}", path.display()));
    let file = open_file(path)?;
    let length = file.metadata().map_err(|e| wrong(e.to_string()))?.len();
    if length > MAX_HEADER_BYTES {
        return Err(wrong(format!("has {length} bytes, at most {MAX_HEADER_BYTES} allowed")));
    }
    let index: ShardIndex = serde_json::from_reader(std::io::BufReader::new(file))
        .map_err(|e| wrong(format!("is not a shard index: {e}")))?;
    for file in index.weight_map.values() {
        let plain = Path::new(file).file_name().is_some_and(|name| name == file.as_str());
        if !plain {
            return Err(wrong("a shard's name is not a plain file name".to_owned()));
        }
    }
    if index.weight_map.is_empty() {
        return Err(wrong("names no tensor".to_owned()));
    }
    Ok(index.weight_map)
}

#[derive(Deserialize)]
struct Entry {
    dtype: DType,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header's entries; a name that appears twice is an error, which a map
/// would hide.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

fn read_header(folder: &Path, file: &str) -> Result<BTreeMap<String, Weight>> {
    let path = folder.join(file);
    let wrong = |what: String| Error::bad_model(format!("{}: {what}", path.display()));
    let mut source = open_file(&path)?;
    let file_length = source.metadata().map_err(|e| wrong(e.to_string()))?.len();
    let mut prefix = [0; 8];
    source
        .read_exact(&mut prefix)
        .map_err(|_| wrong(format!("has {file_length} bytes, too few for a safetensors header")))?;
    let header_length = u64::from_le_bytes(prefix);
    let rest = file_length.saturating_sub(8);
    if header_length > MAX_HEADER_BYTES.min(rest) {
        return Err(wrong(format!(
            "claims a header of {header_length} bytes; the file has {rest} after the length, and \
             at most {MAX_HEADER_BYTES} are allowed"
        )));
    }
    let mut header = vec![0; header_length as usize];
    source.read_exact(&mut header).map_err(|e| wrong(format!("header cannot be read: {e}")))?;
    let entries: Entries = serde_json::from_slice(&header)
        .map_err(|e| wrong(format!("header is not that of a safetensors file: {e}")))?;
    place(entries, file, header_length + 8, file_length).map_err(wrong)
}

/// The entries as places in the file; the error says what is wrong.
fn place(
    Entries(entries): Entries,
    file: &str,
    data_start: u64,
    file_length: u64,
) -> Result<BTreeMap<String, Weight>, String> {
    let data_length = file_length - data_start;
    let mut spans = Vec::with_capacity(entries.len());
    let mut tensors = BTreeMap::new();
    for (name, Entry { dtype, shape, data_offsets: [begin, end] }) in entries {
        if begin > end || end > data_length {
            return Err(format!(
                "tensor {name} lies at bytes {begin} to {end}, the data has {data_length} bytes"
            ));
        }
        let length = end - begin;
        let needed = shape.iter().try_fold(dtype.size(), |product, &dim| product.checked_mul(dim));
        if needed != Some(length) {
            return Err(format!(
                "tensor {name} of type {dtype:?} and shape {shape:?} has {length} bytes"
            ));
        }
        if length > 0 {
            spans.push((begin, end));
        }
        let weight =
            Weight { file: file.to_owned(), dtype, shape, offset: data_start + begin, length };
        if tensors.insert(name.clone(), weight).is_some() {
            return Err(format!("tensor {name} appears twice"));
        }
    }
    spans.sort_unstable();
    if let Some(pair) = spans.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        return Err(format!(
            "two tensors overlap at bytes {} to {} of the data",
            pair[1].0, pair[0].1
        ));
    }
    Ok(tensors)
}
