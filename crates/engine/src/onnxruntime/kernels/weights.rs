//! Weights where they lie: in files that all sessions of the process map once.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use imprompt_error::{Error, Result};
use imprompt_kernel::{Weight, Weights};
use imprompt_mapping::map_file;
use memmap2::Mmap;

/// A piece of a file.
#[derive(Clone, Debug)]
pub(in super::super) struct Piece {
    file: Arc<Mmap>,
    offset: usize,
    length: usize,
}

impl Piece {
    /// `length` bytes from `offset` on of `path`.
    ///
    /// # Errors
    /// `BadModel` naming the file when it is missing or ends before.
    pub(super) fn open(path: &Path, offset: usize, length: usize) -> Result<Self> {
        let file = mapped(path)?;
        match offset.checked_add(length) {
            Some(end) if end <= file.len() => Ok(Piece { file, offset, length }),
            _ => Err(Error::bad_model(format!(
                "{}: a weight of {length} bytes at {offset} lies behind the end at {}",
                path.display(),
                file.len()
            ))),
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.file[self.offset..self.offset + self.length]
    }
}

/// How a matrix is stored.
#[derive(Clone, Debug)]
pub(in super::super) enum Stored {
    F32(Piece),
    F16(Piece),
    Bf16(Piece),
    Int8 { values: Piece, scales: Piece },
    Int4 { values: Piece, scales: Piece },
}

/// A matrix `[outputs, inputs]`.
#[derive(Clone, Debug)]
pub(in super::super) struct StoredWeight {
    pub(super) stored: Stored,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

impl StoredWeight {
    /// As the kernels take it.
    pub(super) fn view(&self) -> Weight<'_> {
        let weights = match &self.stored {
            Stored::F32(piece) => Weights::F32(piece.bytes()),
            Stored::F16(piece) => Weights::F16(piece.bytes()),
            Stored::Bf16(piece) => Weights::Bf16(piece.bytes()),
            Stored::Int8 { values, scales } => {
                Weights::Int8 { values: values.bytes(), scales: scales.bytes() }
            }
            Stored::Int4 { values, scales } => {
                Weights::Int4 { values: values.bytes(), scales: scales.bytes() }
            }
        };
        Weight { weights, outputs: self.outputs, inputs: self.inputs }
    }
}

/// Device and inode: the same file under whatever name.
type Identity = (u64, u64);

static MAPPED: Mutex<Option<HashMap<Identity, Weak<Mmap>>>> = Mutex::new(None);

/// The mapping of a file, shared by all who have it open: stages and instances hold the
/// same weights under names of their own.
fn mapped(path: &Path) -> Result<Arc<Mmap>> {
    let failed = |error: std::io::Error| Error::bad_model(format!("{}: {error}", path.display()));
    let metadata = std::fs::metadata(path).map_err(failed)?;
    let identity = (metadata.dev(), metadata.ino());
    let mut mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
    let mapped = mapped.get_or_insert_default();
    if let Some(file) = mapped.get(&identity).and_then(Weak::upgrade)
        && file.len() as u64 == metadata.len()
    {
        return Ok(file);
    }
    mapped.retain(|_, file| file.strong_count() > 0);
    let file = map_file(path)?;
    mapped.insert(identity, Arc::downgrade(&file));
    Ok(file)
}
