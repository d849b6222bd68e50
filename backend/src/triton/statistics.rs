//! The four moments of an execution, on the clock that Triton counts with.

use imprompt_error::Result;

use super::bindings::{self as sys, TRITONBACKEND_ModelInstance, TRITONBACKEND_Request};
use super::error::check;

/// Nanoseconds of the monotonic clock, which is Triton's steady clock.
pub(super) fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Both parts are never negative on this clock.
    u64::try_from(now.tv_sec)
        .unwrap_or(0)
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// When an execution began, computed and ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) exec_start: u64,
    pub(super) compute_start: u64,
    pub(super) compute_end: u64,
    pub(super) exec_end: u64,
}

impl Times {
    /// An execution that has just begun; the other moments are set as they come.
    pub(super) fn begin() -> Self {
        let now = now();
        Times { exec_start: now, compute_start: now, compute_end: now, exec_end: now }
    }

    /// Reports one request, which must not have been released.
    ///
    /// # Safety
    /// `instance` and `request` are live.
    pub(super) unsafe fn report_request(
        &self,
        instance: *mut TRITONBACKEND_ModelInstance,
        request: *mut TRITONBACKEND_Request,
        success: bool,
    ) -> Result<()> {
        // SAFETY: the caller's word.
        check("ModelInstanceReportStatistics", unsafe {
            sys::TRITONBACKEND_ModelInstanceReportStatistics(
                instance,
                request,
                success,
                self.exec_start,
                self.compute_start,
                self.compute_end,
                self.exec_end,
            )
        })
    }

    /// Reports one execution of `batch_size` items.
    ///
    /// # Safety
    /// `instance` is live.
    pub(super) unsafe fn report_batch(
        &self,
        instance: *mut TRITONBACKEND_ModelInstance,
        batch_size: u64,
    ) -> Result<()> {
        // SAFETY: the caller's word.
        check("ModelInstanceReportBatchStatistics", unsafe {
            sys::TRITONBACKEND_ModelInstanceReportBatchStatistics(
                instance,
                batch_size,
                self.exec_start,
                self.compute_start,
                self.compute_end,
                self.exec_end,
            )
        })
    }
}
