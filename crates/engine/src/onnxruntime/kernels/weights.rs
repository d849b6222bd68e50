//! Weights where they lie: in files that all sessions of the process map once.

use std::path::Path;
use std::sync::Arc;

use imprompt_error::{Error, Kind, Result};
use imprompt_kernel::{Weight, Weights};
use imprompt_mapping::{Mmap, map_shared};
use imprompt_onnx::External;

/// A piece of a file.
#[derive(Clone, Debug)]
pub(in super::super) struct Piece {
    file: Arc<Mmap>,
    offset: usize,
    length: usize,
}

impl Piece {
    /// `piece` of a file in `folder`.
    ///
    /// # Errors
    /// `BadModel` naming the file when it is missing or ends before.
    pub(super) fn open(folder: &Path, piece: External<'_>) -> Result<Self> {
        let External { location, offset, length } = piece;
        let path = folder.join(location);
        let file = map_shared(&path).map_err(|error| match error.kind() {
            Kind::NotFound => Error::bad_model(error.message()),
            _ => error,
        })?;
        match offset.checked_add(length) {
            Some(end) if end <= file.len() as u64 => {
                Ok(Piece { file, offset: offset as usize, length: length as usize })
            }
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
