//! Memory of a GPU.

use cudarc::driver::{CudaSlice, DevicePtr as _, DriverError, sys};
use imprompt_error::{Error, Result};

use crate::Stream;

/// Bytes on a device, freed when dropped, after the work that its stream was given before.
#[derive(Debug)]
pub struct Buffer {
    slice: CudaSlice<u8>,
    stream: Stream,
}

impl Buffer {
    pub(crate) fn new(slice: CudaSlice<u8>, stream: Stream) -> Self {
        Buffer { slice, stream }
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slice.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slice.is_empty()
    }

    /// Where they are on the device.
    #[must_use]
    pub fn address(&self) -> u64 {
        let (address, _synced) = self.slice.device_ptr(&self.stream.stream);
        address
    }

    /// The stream that it belongs to.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The `len` bytes from byte `start` on.
    ///
    /// # Errors
    /// `Internal` when they reach out of the buffer.
    pub fn span(&self, start: usize, len: usize) -> Result<Span<'_>> {
        if !fits(start, len, self.len()) {
            return Err(Error::internal(format!(
                "{len} bytes from byte {start} on of {} on the GPU",
                self.len()
            )));
        }
        Ok(Span { stream: &self.stream, address: self.address() + start as u64, len })
    }
}

/// Whether `len` bytes from byte `start` on lie within `whole`.
fn fits(start: usize, len: usize, whole: usize) -> bool {
    start.checked_add(len).is_some_and(|end| end <= whole)
}

/// Bytes on a device that are allocated as long as it lives, and written by work of one stream alone.
#[derive(Clone, Copy, Debug)]
pub struct Span<'b> {
    stream: &'b Stream,
    address: u64,
    len: usize,
}

impl<'b> Span<'b> {
    /// The `len` bytes at `address`, of memory that something else owns.
    ///
    /// # Safety
    /// They are allocated as long as `'b` lasts, and what writes them was given to `stream`; memory
    /// that is freed after that is used by work of `stream` alone.
    #[must_use]
    pub unsafe fn over(stream: &'b Stream, address: u64, len: usize) -> Self {
        Span { stream, address, len }
    }

    /// The `len` of them from byte `start` on.
    ///
    /// # Errors
    /// `Internal` when they reach out of it.
    pub fn part(self, start: usize, len: usize) -> Result<Self> {
        if !fits(start, len, self.len) {
            return Err(Error::internal(format!(
                "{len} bytes from byte {start} on of {} on the GPU",
                self.len
            )));
        }
        Ok(Span { address: self.address + start as u64, len, ..self })
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where they are on the device.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The stream that writes them.
    #[must_use]
    pub fn stream(&self) -> &'b Stream {
        self.stream
    }

    /// Copies them to `into`, which is as long, and waits for them.
    ///
    /// # Errors
    /// `Internal` when it is not as long; what went wrong in the work that was given before.
    pub fn read(&self, into: &mut [u8]) -> Result<()> {
        if into.len() != self.len {
            return Err(Error::internal(format!("{} bytes for {}", into.len(), self.len)));
        }
        // SAFETY: as many are allocated, and all that writes them is given to the stream.
        unsafe { self.stream.read(self.address(), into) }
    }

    /// Copies them to `address` of the same device, and waits until they are there.
    ///
    /// # Safety
    /// As many bytes are allocated there, and nothing else uses them meanwhile.
    ///
    /// # Errors
    /// What went wrong in the work that was given before; what the driver says.
    pub unsafe fn copy_to(&self, address: u64) -> Result<()> {
        // SAFETY: the caller's word for `address`; as many are allocated here, and all that writes them
        // is given to the stream.
        unsafe { self.stream.copy(self.address, address, self.len)? };
        self.stream.synchronize()
    }
}

/// Rows that lie in equal distances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pitch {
    /// How many.
    pub rows: usize,
    /// Bytes of a row that count.
    pub width: usize,
    /// Bytes from the start of one to that of the next.
    pub stride: usize,
}

impl Pitch {
    /// Bytes from the start of the first row to the end of the last one.
    pub(crate) fn reach(&self) -> Option<usize> {
        if self.width > self.stride {
            return None;
        }
        self.rows.checked_sub(1)?.checked_mul(self.stride)?.checked_add(self.width)
    }

    /// Whether a row at `from` and one at `to` have a byte in common.
    pub(crate) fn overlaps(&self, from: usize, to: usize) -> bool {
        let apart = from.abs_diff(to);
        let Some(rows) = apart.checked_div(self.stride) else { return apart == 0 };
        // The rows that far apart, and the next ones.
        let behind = apart % self.stride;
        rows < self.rows && behind < self.width
            || rows + 1 < self.rows && self.stride - behind < self.width
    }

    /// Copies the rows at `from` to `to`.
    ///
    /// # Safety
    /// Both are allocated on the device as far as [`Self::reach`] says, and do not overlap.
    pub(crate) unsafe fn copy(
        &self,
        from: u64,
        to: u64,
        stream: sys::CUstream,
    ) -> std::result::Result<(), DriverError> {
        let device = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        let host = std::ptr::null_mut();
        let copy = sys::CUDA_MEMCPY2D_st {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: device,
            srcHost: host,
            srcDevice: from,
            srcArray: std::ptr::null_mut(),
            srcPitch: self.stride,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: device,
            dstHost: host,
            dstDevice: to,
            dstArray: std::ptr::null_mut(),
            dstPitch: self.stride,
            WidthInBytes: self.width,
            Height: self.rows,
        };
        // SAFETY: the description is complete, the memory the caller's word.
        unsafe { sys::cuMemcpy2DAsync_v2(&copy, stream) }.result()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_lies_inside() {
        assert!(fits(0, 0, 0) && fits(3, 4, 7) && fits(7, 0, 7));
        assert!(!fits(4, 4, 7) && !fits(8, 0, 7) && !fits(usize::MAX, 2, 7));
    }

    #[test]
    fn rows_reach_to_the_end_of_the_last() {
        assert_eq!(Pitch { rows: 3, width: 4, stride: 10 }.reach(), Some(24));
        assert_eq!(Pitch { rows: 1, width: 10, stride: 10 }.reach(), Some(10));
        assert_eq!(Pitch { rows: 2, width: 11, stride: 10 }.reach(), None);
        assert_eq!(Pitch { rows: 0, width: 1, stride: 10 }.reach(), None);
        assert_eq!(Pitch { rows: 3, width: 4, stride: usize::MAX }.reach(), None);
    }

    #[test]
    fn rows_overlap_where_they_have_a_byte_in_common() {
        for pitch in [
            Pitch { rows: 1, width: 4, stride: 4 },
            Pitch { rows: 1, width: 3, stride: 7 },
            Pitch { rows: 3, width: 1, stride: 5 },
            Pitch { rows: 3, width: 4, stride: 5 },
            Pitch { rows: 3, width: 5, stride: 5 },
        ] {
            let bytes = |start: usize| {
                (0..pitch.rows).flat_map(move |row| {
                    (0..pitch.width).map(move |byte| start + row * pitch.stride + byte)
                })
            };
            for to in 0..40 {
                let expected = bytes(15).any(|byte| bytes(to).any(|other| other == byte));
                assert_eq!(pitch.overlaps(15, to), expected, "{pitch:?} {to}");
                assert_eq!(pitch.overlaps(to, 15), expected, "{pitch:?} {to}");
            }
        }
    }
}
