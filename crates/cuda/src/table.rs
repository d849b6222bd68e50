//! Rows of label tables on a device.

use std::ops::Range;

use half::f16;
use imprompt_error::{Error, Result};

use crate::{Buffer, Stream};

/// Float16 rows of one width on a device, to be read by any stream of it.
#[derive(Debug)]
pub struct Table {
    buffer: Buffer,
    rows: usize,
    dimension: usize,
}

impl Table {
    /// Copies `parts` (each `[rows, dimension]`, row-major), one behind the other, to the device of
    /// `stream`, and waits for them.
    ///
    /// # Errors
    /// `Internal` when a part is not a whole number of rows, or there are more than a kernel can
    /// count; `OutOfMemory`; what the driver says.
    pub fn upload(stream: &Stream, parts: &[&[f16]], dimension: usize) -> Result<Self> {
        let values: usize = parts.iter().map(|part| part.len()).sum();
        let is_whole =
            dimension > 0 && parts.iter().all(|part| part.len().is_multiple_of(dimension));
        let rows = values.checked_div(dimension).unwrap_or(0);
        if !is_whole || u32::try_from(rows).is_err() {
            return Err(Error::internal(format!("{values} values as rows of {dimension}")));
        }
        let buffer = stream.zeros(values * size_of::<f16>())?;
        // What zeros it is done.
        stream.synchronize()?;
        let mut address = buffer.address();
        for part in parts {
            let bytes: &[u8] = bytemuck::cast_slice(part);
            // SAFETY: the buffer has room for all parts and is used by nothing else yet.
            unsafe { stream.device().write(address, bytes)? };
            address += bytes.len() as u64;
        }
        Ok(Table { buffer, rows, dimension })
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// The number of its device.
    pub(crate) fn ordinal(&self) -> usize {
        self.buffer.stream().device().ordinal()
    }

    /// Where the rows `range` are.
    pub(crate) fn address(&self, range: &Range<usize>) -> Result<u64> {
        let row = self.dimension * size_of::<f16>();
        if range.start > range.end || range.end > self.rows {
            return Err(Error::internal(format!("rows {range:?} of a table of {}", self.rows)));
        }
        Ok(self.buffer.address() + (range.start * row) as u64)
    }
}
