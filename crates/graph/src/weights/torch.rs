//! Weights as `torch.save` writes them since PyTorch 1.6: a zip archive, not compressed, with one
//! pickle that says what tensors there are, and a file of raw bytes for each storage. The tensors
//! stay where they are, as those of safetensors do.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use imprompt_error::{Error, Result};
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{self, Storage, Tensor};
use super::{CONVERT, Contents, Unusable, Weight, open_file};

/// How a pickle of torch's old format begins: protocol 2, then an integer of ten bytes.
const OLD_FORMAT: [u8; 4] = [0x80, 2, 0x8a, 10];

/// Where the tensors of the file `file` of `folder` lie.
///
/// # Errors
/// `NotFound` when there is no such file; `Unsupported` when it is of PyTorch's old format, a
/// TorchScript program, or made on a big-endian machine; `BadModel` for anything else that is
/// wrong with it.
pub(super) fn read(folder: &Path, file: &str) -> Result<Contents> {
    let path = folder.join(file);
    let source = open_file(&path)?;
    let wrong = |what: String| Error::bad_model(format!("{}: {what}", path.display()));
    let io = |error: std::io::Error| wrong(format!("cannot be read: {error}"));
    let unsupported =
        |what: &str| Error::unsupported(format!("{}: {what}; {CONVERT}", path.display()));
    let mut magic = [0; 4];
    match source.read_exact_at(&mut magic, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            return Err(wrong("is too short for what torch.save writes".to_owned()));
        }
        Err(error) => return Err(io(error)),
    }
    if magic == OLD_FORMAT {
        return Err(unsupported("is in the format of PyTorch before 1.6, which is not read"));
    }
    let length = source.metadata().map_err(io)?.len();
    let mut archive = Archive::open(source, length).map_err(wrong)?;
    if archive.has("constants.pkl") {
        return Err(unsupported("is a TorchScript program, which is not read"));
    }
    if archive.has("byteorder") && archive.text("byteorder").map_err(wrong)? != "little" {
        return Err(unsupported("was written on a big-endian machine"));
    }
    let bytes = archive.bytes("data.pkl", pickle::MAX_BYTES).map_err(wrong)?;
    let entries = pickle::read(&bytes).map_err(wrong)?;
    let mut contents = Contents::default();
    for (name, tensor) in entries {
        let placed = match tensor {
            Some(tensor) => place(&mut archive, &tensor, file)
                .map_err(|what| wrong(format!("tensor {} {what}", shown(name))))?,
            None => Err("is no tensor".to_owned()),
        };
        let is_first =
            !contents.tensors.contains_key(name) && !contents.unusable.contains_key(name);
        if !is_first {
            return Err(wrong(format!("tensor {} appears twice", shown(name))));
        }
        match placed {
            Ok(weight) => drop(contents.tensors.insert(name.to_owned(), weight)),
            Err(why) => {
                let unusable = Unusable { file: file.to_owned(), why };
                contents.unusable.insert(name.to_owned(), unusable);
            }
        }
    }
    Ok(contents)
}

/// A name that may be long.
fn shown(name: &str) -> String {
    name.chars().take(200).collect()
}

/// Where `tensor` lies in the file; the inner error says why it cannot be used there, the outer
/// one what is wrong with the file.
fn place(
    archive: &mut Archive,
    tensor: &Tensor<'_>,
    file: &str,
) -> Result<Result<Weight, String>, String> {
    let Tensor { storage, offset, shape, strides } = tensor;
    let start = archive.storage(storage)?;
    let too_large = || format!("of shape {shape:?} is larger than any file");
    let count = shape.iter().try_fold(1u64, |count, &dim| count.checked_mul(dim));
    let count = count.ok_or_else(too_large)?;
    // The last element that the strides reach.
    let mut last = *offset;
    for (&dim, &stride) in shape.iter().zip(strides) {
        let reach = dim.saturating_sub(1).checked_mul(stride);
        last = reach.and_then(|reach| last.checked_add(reach)).ok_or_else(too_large)?;
    }
    if *offset > storage.elements || (count > 0 && last >= storage.elements) {
        return Err(format!(
            "reaches element {last} of its storage, which has {}",
            storage.elements
        ));
    }
    if !is_contiguous(shape, strides) {
        return Ok(Err(format!("of shape {shape:?} is a view with the strides {strides:?}")));
    }
    // Inside the storage, and that inside the file: no overflow.
    let size = storage.dtype.size();
    let offset = start + offset * size;
    if !offset.is_multiple_of(size) {
        return Ok(Err(format!("begins at byte {offset}, which is no multiple of {size}")));
    }
    Ok(Ok(Weight {
        file: file.to_owned(),
        dtype: storage.dtype,
        shape: shape.clone(),
        offset,
        length: count * size,
    }))
}

/// Whether the elements lie one after the other. Dimensions of length 1 may have any stride.
fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&dim, &stride)| {
        let fits = dim == 1 || stride == expected;
        expected *= dim;
        fits
    })
}

/// The zip archive of a checkpoint.
struct Archive {
    zip: ZipArchive<BufReader<File>>,
    file: File,
    /// The folder that everything lies in, with its slash.
    root: String,
    /// Bytes of the file.
    length: u64,
    /// Start and length of the storages seen.
    storages: HashMap<String, (u64, u64)>,
}

impl Archive {
    fn open(file: File, length: u64) -> Result<Self, String> {
        let other = file.try_clone().map_err(|error| format!("cannot be read: {error}"))?;
        let zip = ZipArchive::new(BufReader::new(other))
            .map_err(|error| format!("is not what torch.save writes (a zip archive): {error}"))?;
        let mut roots = Vec::new();
        for name in zip.file_names() {
            let name = name.map_err(|error| format!("has a file without a name: {error}"))?;
            match name.strip_suffix("data.pkl") {
                Some(root) if root.ends_with('/') => roots.push(root.to_owned()),
                _ => {}
            }
        }
        match <[String; 1]>::try_from(roots) {
            Ok([root]) => Ok(Archive { zip, file, root, length, storages: HashMap::new() }),
            Err(roots) => Err(format!(
                "is not what torch.save writes: it has {} files data.pkl, not one",
                roots.len()
            )),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.zip.index_for_name(&format!("{}{name}", self.root)).is_some()
    }

    /// First byte and length of the file `name` of the archive.
    fn find(&mut self, name: &str) -> Result<(u64, u64), String> {
        let wrong = |what: String| format!("file {} of the archive {what}", shown(name));
        let index = self
            .zip
            .index_for_name(&format!("{}{name}", self.root))
            .ok_or_else(|| wrong("is missing".to_owned()))?;
        let entry = self.zip.by_index_raw(index).map_err(|error| wrong(error.to_string()))?;
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err(wrong("is compressed or encrypted".to_owned()));
        }
        let (start, size) = (entry.data_start(), entry.size());
        let start = start.ok_or_else(|| wrong("has no place".to_owned()))?;
        if start.checked_add(size).is_none_or(|end| end > self.length) {
            return Err(wrong(format!(
                "lies at byte {start} with {size} bytes, the whole has {}",
                self.length
            )));
        }
        Ok((start, size))
    }

    /// The bytes of a file of the archive, at most `limit`.
    fn bytes(&mut self, name: &str, limit: u64) -> Result<Vec<u8>, String> {
        let (start, size) = self.find(name)?;
        if size > limit {
            return Err(format!("file {name} of the archive has {size} bytes, {limit} allowed"));
        }
        let mut bytes = vec![0; size as usize];
        self.file
            .read_exact_at(&mut bytes, start)
            .map_err(|error| format!("file {name} of the archive cannot be read: {error}"))?;
        Ok(bytes)
    }

    /// A short text file of the archive.
    fn text(&mut self, name: &str) -> Result<String, String> {
        Ok(String::from_utf8_lossy(&self.bytes(name, 64)?).trim().to_owned())
    }

    /// The first byte of a storage, which the archive holds whole.
    fn storage(&mut self, storage: &Storage<'_>) -> Result<u64, String> {
        let (start, size) = match self.storages.get(storage.key) {
            Some(place) => *place,
            None => {
                let place = self.find(&format!("data/{}", storage.key))?;
                self.storages.insert(storage.key.to_owned(), place);
                place
            }
        };
        let needed = storage.elements.checked_mul(storage.dtype.size());
        if needed.is_none_or(|needed| needed > size) {
            return Err(format!(
                "has a storage of {} elements of type {:?}, its file has {size} bytes",
                storage.elements, storage.dtype
            ));
        }
        Ok(start)
    }
}
