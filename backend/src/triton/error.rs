//! Errors, ours and Triton's.

use std::ffi::{CStr, CString};

use imprompt_error::{Error, Kind, Result};

use super::bindings::{self as sys, TRITONSERVER_Error, TRITONSERVER_Error_Code};

/// The one table of kinds and Triton's codes.
fn code(kind: Kind) -> TRITONSERVER_Error_Code {
    match kind {
        Kind::InvalidInput => sys::TRITONSERVER_ERROR_INVALID_ARG,
        Kind::NotFound => sys::TRITONSERVER_ERROR_NOT_FOUND,
        Kind::Unsupported => sys::TRITONSERVER_ERROR_UNSUPPORTED,
        Kind::Unavailable | Kind::DeadlineExceeded => sys::TRITONSERVER_ERROR_UNAVAILABLE,
        Kind::Cancelled => sys::TRITONSERVER_ERROR_CANCELLED,
        Kind::OutOfMemory | Kind::BadModel | Kind::Internal => sys::TRITONSERVER_ERROR_INTERNAL,
    }
}

/// `error` as an error of Triton's; whoever takes it deletes it.
pub(super) fn to_triton(error: &Error) -> *mut TRITONSERVER_Error {
    let bytes: Vec<u8> =
        imprompt_host::client_message(error).bytes().filter(|&byte| byte != 0).collect();
    let message = CString::new(bytes).unwrap_or_default();
    // SAFETY: the message is a C string that Triton copies.
    unsafe { sys::TRITONSERVER_ErrorNew(code(error.kind()), message.as_ptr()) }
}

/// An error that is ours to delete.
pub(super) struct OwnedError(*mut TRITONSERVER_Error);

impl OwnedError {
    /// `error` as an error of Triton's.
    pub(super) fn new(error: &Error) -> Self {
        OwnedError(to_triton(error))
    }

    /// The error, for a call that does not take it.
    pub(super) fn as_ptr(&self) -> *mut TRITONSERVER_Error {
        self.0
    }
}

impl Drop for OwnedError {
    fn drop(&mut self) {
        // SAFETY: made by `ErrorNew` or given to us by Triton, and deleted only here.
        unsafe { sys::TRITONSERVER_ErrorDelete(self.0) };
    }
}

/// The outcome of `call`, a function of Triton's: its error is read and deleted.
pub(super) fn check(call: &str, error: *mut TRITONSERVER_Error) -> Result<()> {
    if error.is_null() {
        return Ok(());
    }
    let error = OwnedError(error);
    // SAFETY: the error lives until `error` is dropped; its message with it.
    let message = unsafe { text(sys::TRITONSERVER_ErrorMessage(error.0)) };
    Err(Error::internal(format!("{call}: {message}")))
}

/// A C string of Triton's; null reads as empty.
///
/// # Safety
/// `text` is null or a C string that outlives this call.
pub(super) unsafe fn text(text: *const std::ffi::c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's word.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
