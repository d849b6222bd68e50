//! The one guard around every entry point.

use imprompt_error::Result;

use super::bindings::TRITONSERVER_Error;
use super::error;

/// Runs an entry point: `Ok` is null, `Err` an error that Triton will own, and a
/// panic such an error too. Nothing unwinds past here.
pub(super) fn guard(entry: &str, run: impl FnOnce() -> Result<()>) -> *mut TRITONSERVER_Error {
    match imprompt_host::catch(entry, run) {
        Ok(()) => std::ptr::null_mut(),
        Err(error) => error::to_triton(&error),
    }
}
