//! Which tensor of a model lies where: an index over the headers of the weight
//! files of a Hugging Face folder: safetensors, or what `torch.save` writes. No
//! weight is read, so a 15 GB model costs what its header costs.

mod pickle;
mod safetensors;
mod torch;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use imprompt_error::{Error, Kind, Result};
use serde::Deserialize;

/// The longest header that is read; the limit of the reference reader.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The longest tensor that [`WeightIndex::read_floats`] reads.
pub const MAX_READ_ELEMENTS: usize = 1 << 20;

/// What to do with weights that are not read as they are.
const CONVERT: &str = "load the model with transformers and save it with \
                       save_pretrained(folder, safe_serialization=True)";

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
    unusable: BTreeMap<String, Unusable>,
    /// What the file calls a tensor that was given another name, for messages.
    stored_as: BTreeMap<String, String>,
}

/// A tensor that cannot be used where it lies. It is an error only for one who asks for it:
/// checkpoints hold buffers that no graph needs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unusable {
    file: String,
    /// Follows the tensor's name in the error.
    why: String,
}

/// What one weight file holds.
#[derive(Debug, Default)]
struct Contents {
    tensors: BTreeMap<String, Weight>,
    unusable: BTreeMap<String, Unusable>,
}

/// Names that a model's weights have in its folder, the single file and the index of shards; the
/// first that is there is taken, so safetensors go before what `torch.save` wrote.
pub const WEIGHT_FILES: [(&str, &str); 2] = [
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
];

impl WeightIndex {
    /// The index of `folder`: its `model.safetensors`, the shards named by
    /// `model.safetensors.index.json`, or the same of `pytorch_model.bin`. A single
    /// file wins over shards, and safetensors over the others, as in the reference.
    ///
    /// # Errors
    /// `NotFound` when the folder has none; `BadModel` naming the file when a
    /// header is malformed, a tensor lies outside its file or over another, or
    /// a shard lacks what the index promises; `Unsupported` when a `.bin` file is
    /// of a kind that is not read.
    pub fn open(folder: &Path) -> Result<Self> {
        for (single, index) in WEIGHT_FILES {
            if folder.join(single).is_file() {
                return Self::open_files(folder, &[single.to_owned()]);
            }
            let index = folder.join(index);
            if index.is_file() {
                return Self::open_shards(folder, &index);
            }
        }
        let names: Vec<&str> =
            WEIGHT_FILES.iter().flat_map(|(one, index)| [*one, *index]).collect();
        Err(Error::not_found(format!(
            "{} has no weights (none of {})",
            folder.display(),
            names.join(", ")
        )))
    }

    fn open_shards(folder: &Path, index: &Path) -> Result<Self> {
        let promised = read_shard_index(index)?;
        let mut files: Vec<String> = promised.values().cloned().collect();
        files.sort();
        files.dedup();
        let this = Self::open_files(folder, &files)?;
        for (name, file) in &promised {
            let place = this.tensors.get(name).map(|weight| &weight.file);
            let place = place.or(this.unusable.get(name).map(|unusable| &unusable.file));
            if place != Some(file) {
                return Err(Error::bad_model(format!(
                    "{}: tensor {name} is promised in {file}, which does not hold it",
                    index.display()
                )));
            }
        }
        Ok(this)
    }

    /// The index of these files of `folder`: a name that ends in `.bin` is read as
    /// what `torch.save` writes, any other as safetensors.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_files(folder: &Path, files: &[String]) -> Result<Self> {
        let mut this = WeightIndex { folder: folder.to_owned(), ..WeightIndex::default() };
        for file in files {
            let contents = match file.ends_with(".bin") {
                true => torch::read(folder, file)?,
                false => {
                    Contents { tensors: safetensors::read(folder, file)?, ..Contents::default() }
                }
            };
            for (name, weight) in contents.tensors {
                if let Some(other) = this.tensors.insert(name.clone(), weight) {
                    return Err(Error::bad_model(format!(
                        "{}: tensor {name} is in {} and in {file}",
                        folder.display(),
                        other.file
                    )));
                }
            }
            this.unusable.extend(contents.unusable);
        }
        Ok(this)
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
        self.tensors.contains_key(name) || self.unusable.contains_key(name)
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// `BadModel` when there is none; `Unsupported` when it cannot be used where it lies.
    pub fn get(&self, name: &str) -> Result<&Weight> {
        if let Some(weight) = self.tensors.get(name) {
            return Ok(weight);
        }
        Err(match self.unusable.get(name) {
            Some(Unusable { file, why }) => Error::unsupported(format!(
                "{}: tensor {name} {why}; {CONVERT}",
                self.folder.join(file).display()
            )),
            None => {
                Error::bad_model(format!("{}: there is no tensor {name}", self.folder.display()))
            }
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

    /// [`Self::alias`] for a tensor with one entry along its first dimension,
    /// which the further name is for.
    ///
    /// # Errors
    /// `BadModel` when there is no tensor `stored`, or it has several entries.
    pub fn alias_only_entry(&mut self, stored: &str, name: &str) -> Result<()> {
        let mut weight = self.get(stored)?.clone();
        if weight.shape.first() != Some(&1) {
            return Err(Error::bad_model(format!(
                "{}: tensor {stored} has shape {:?}, its first dimension must be 1",
                self.folder.join(&weight.file).display(),
                weight.shape
            )));
        }
        weight.shape.remove(0);
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
