//! Our values behind Triton's `void*` states.

use std::ffi::c_void;

use imprompt_error::{Error, Result};

/// A state to hand to Triton, which gives it back until [`take`] frees it.
pub(super) fn give<T>(value: T) -> *mut c_void {
    Box::into_raw(Box::new(value)).cast()
}

/// The value behind a state.
///
/// # Errors
/// `Internal` when there is none.
///
/// # Safety
/// `state` is null or came from [`give`] of the same type and is not taken during `'a`.
pub(super) unsafe fn borrow<'a, T>(state: *mut c_void) -> Result<&'a T> {
    // SAFETY: the caller's word.
    unsafe { state.cast::<T>().as_ref() }.ok_or_else(missing)
}

/// The value behind a state, to change.
///
/// # Errors
/// `Internal` when there is none.
///
/// # Safety
/// As [`borrow`], and nobody else looks at the value during `'a`.
pub(super) unsafe fn borrow_mut<'a, T>(state: *mut c_void) -> Result<&'a mut T> {
    // SAFETY: the caller's word.
    unsafe { state.cast::<T>().as_mut() }.ok_or_else(missing)
}

/// The value itself; `None` when there is none.
///
/// # Safety
/// As [`borrow`], and the state is not used again.
pub(super) unsafe fn take<T>(state: *mut c_void) -> Option<Box<T>> {
    let state = state.cast::<T>();
    // SAFETY: the caller's word.
    (!state.is_null()).then(|| unsafe { Box::from_raw(state) })
}

fn missing() -> Error {
    Error::internal("Triton gave an object without its state")
}
