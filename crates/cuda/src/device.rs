//! Which GPUs there are.

use std::fmt;
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::{CUresult, is_culib_present};
use cudarc::driver::{CudaContext, DriverError, result};
use imprompt_error::{Error, Kind, Result};

/// What a card's instructions are, such as 8.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComputeCapability {
    /// 8 of 8.6.
    pub major: u32,
    /// 6 of 8.6.
    pub minor: u32,
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A GPU. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Device {
    pub(crate) context: Arc<CudaContext>,
    name: String,
    compute_capability: ComputeCapability,
}

/// Whether there is a driver. What calls it where there is none panics, so this is asked first.
fn has_driver() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    // SAFETY: opening the driver's library runs its initialisers: it is the one that the system
    // keeps under the driver's name.
    *FOUND.get_or_init(|| unsafe { is_culib_present() })
}

impl Device {
    /// How many GPUs the driver shows; 0 where there is no driver.
    ///
    /// # Errors
    /// `Internal` with the driver's words when it does not answer.
    pub fn count() -> Result<usize> {
        if !has_driver() {
            return Ok(0);
        }
        match CudaContext::device_count() {
            Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
            Err(error) if error.0 == CUresult::CUDA_ERROR_NO_DEVICE => Ok(0),
            Err(error) => Err(failed(&error, "counting the GPUs")),
        }
    }

    /// Opens GPU `ordinal`, counted from 0 in the driver's order.
    ///
    /// # Errors
    /// `NotFound` where there is no driver or no such GPU, with how many there are; what the driver
    /// says.
    pub fn open(ordinal: usize) -> Result<Self> {
        if !has_driver() {
            return Err(Error::not_found("no NVIDIA driver is on this machine (no libcuda.so.1)"));
        }
        let count = Self::count()?;
        if ordinal >= count {
            return Err(Error::not_found(format!(
                "GPU {ordinal} was asked for, the driver shows {count}"
            )));
        }
        let what = || format!("GPU {ordinal}");
        let context = CudaContext::new(ordinal).map_err(|error| failed(&error, &what()))?;
        // SAFETY: tracking orders work of several streams on the same memory. Memory here belongs to
        // one stream (`Buffer`), which orders what is done with it.
        unsafe { context.disable_event_tracking() };
        let name = context.name().map_err(|error| failed(&error, &what()))?;
        let (major, minor) =
            context.compute_capability().map_err(|error| failed(&error, &what()))?;
        let number = |part: i32| u32::try_from(part).unwrap_or(0);
        let compute_capability = ComputeCapability { major: number(major), minor: number(minor) };
        Ok(Device { context, name, compute_capability })
    }

    /// Makes this thread one that may give work: CUDA's current context is a thread's own.
    ///
    /// # Errors
    /// What the driver says.
    pub fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|error| failed(&error, "the GPU's context"))
    }

    /// Its number in the driver's order.
    #[must_use]
    pub fn ordinal(&self) -> usize {
        self.context.ordinal()
    }

    /// Its name, such as `NVIDIA L4`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its instructions are.
    #[must_use]
    pub fn compute_capability(&self) -> ComputeCapability {
        self.compute_capability
    }

    /// Copies the `into.len()` bytes at `address` of the device to the host, and waits for them.
    ///
    /// # Safety
    /// As many bytes are allocated there, and what wrote them is done.
    ///
    /// # Errors
    /// What the driver says.
    pub unsafe fn read(&self, address: u64, into: &mut [u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller's word.
        unsafe { result::memcpy_dtoh_sync(into, address) }
            .map_err(|error| failed(&error, "reading from the GPU"))
    }

    /// Copies `from` to `address` of the device, and waits until it is there.
    ///
    /// # Safety
    /// As many bytes are allocated there, and nothing else uses them meanwhile.
    ///
    /// # Errors
    /// What the driver says.
    pub unsafe fn write(&self, address: u64, from: &[u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller's word. The copy of memory that is not pinned may end after the call, and
        // is work of the default stream. All the context's work is not waited for: that would break
        // what another stream records meanwhile.
        unsafe { result::memcpy_htod_sync(address, from) }
            .and_then(|()| self.context.default_stream().synchronize())
            .map_err(|error| failed(&error, "writing to the GPU"))
    }

    /// Bytes of its memory: free ones, and all.
    ///
    /// # Errors
    /// What the driver says.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.mem_get_info().map_err(|error| failed(&error, "the GPU's memory"))
    }
}

/// What the driver reports of `what`, as an error of this project.
pub(crate) fn failed(error: &DriverError, what: &str) -> Error {
    let words = error
        .error_string()
        .map_or_else(|_| format!("{:?}", error.0), |words| words.to_string_lossy().into_owned());
    match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            Error::out_of_memory(format_args!("{what}: on the GPU"))
        }
        CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_INVALID_DEVICE => {
            Error::not_found(format!("{what}: {words}"))
        }
        _ => Error::new(Kind::Internal, format!("{what}: CUDA: {words}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_is_not_there_is_refused() {
        let count = Device::count().unwrap();
        let error = Device::open(count).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        let words = if count == 0 { "GPU" } else { "the driver shows" };
        assert!(error.message().contains(words) || error.message().contains("driver"), "{error}");
    }

    #[test]
    fn a_capability_is_written_with_a_point() {
        assert_eq!(ComputeCapability { major: 12, minor: 0 }.to_string(), "12.0");
    }
}
