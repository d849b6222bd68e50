//! Memory of a GPU.

use cudarc::driver::{CudaSlice, DevicePtr as _, DriverError, sys};

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

    /// Copies the rows at `from` to `to`.
    ///
    /// # Safety
    /// Both are allocated on the device as far as [`Self::reach`] says, and do not overlap.
    pub(crate) unsafe fn copy(
        &self,
        from: u64,
        to: u64,
        stream: sys::CUstream,
    ) -> Result<(), DriverError> {
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
    fn rows_reach_to_the_end_of_the_last() {
        assert_eq!(Pitch { rows: 3, width: 4, stride: 10 }.reach(), Some(24));
        assert_eq!(Pitch { rows: 1, width: 10, stride: 10 }.reach(), Some(10));
        assert_eq!(Pitch { rows: 2, width: 11, stride: 10 }.reach(), None);
        assert_eq!(Pitch { rows: 0, width: 1, stride: 10 }.reach(), None);
        assert_eq!(Pitch { rows: 3, width: 4, stride: usize::MAX }.reach(), None);
    }
}
