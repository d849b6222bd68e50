//! How fast a GPU's memory is.

use std::time::Instant;

use imprompt_error::{Error, Result};

use crate::device::failed;
use crate::{Device, Pitch};

/// Bytes of one copy: larger than any card's cache.
const BYTES: usize = 1 << 30;

/// Copies that are timed.
const COPIES: u32 = 10;

impl Device {
    /// Bytes a second that the device's memory reads and writes while it copies, both counted: what a
    /// step that reads all weights once cannot be faster than.
    ///
    /// # Errors
    /// `OutOfMemory` where 2 GiB are not free; what the driver says.
    pub fn copy_rate(&self) -> Result<f64> {
        let stream = self.stream()?;
        let mut buffer = stream.zeros(2 * BYTES)?;
        let pitch = Pitch { rows: 1, width: BYTES, stride: BYTES };
        stream.copy_rows(&mut buffer, 0, BYTES, pitch)?;
        stream.synchronize()?;
        let started = Instant::now();
        for _ in 0..COPIES {
            stream.copy_rows(&mut buffer, 0, BYTES, pitch)?;
        }
        stream.synchronize()?;
        let seconds = started.elapsed().as_secs_f64();
        if seconds <= 0.0 {
            return Err(Error::internal("the clock stands still"));
        }
        Ok(f64::from(COPIES) * 2.0 * BYTES as f64 / seconds)
    }

    /// The version of CUDA that the driver has, such as 13.0.
    ///
    /// # Errors
    /// What the driver says.
    pub fn driver_version(&self) -> Result<String> {
        let mut version = 0;
        // SAFETY: the out-pointer is live.
        unsafe { cudarc::driver::sys::cuDriverGetVersion(&mut version) }
            .result()
            .map_err(|error| failed(&error, "the driver's version"))?;
        Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
    }
}
