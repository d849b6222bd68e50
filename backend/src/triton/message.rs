//! Triton's messages: JSON in both directions.

use std::ffi::c_char;
use std::ptr;

use imprompt_error::{Error, Result};
use serde_json::Value;

use super::bindings::{self as sys, TRITONSERVER_Message};
use super::error::check;

/// A message that is ours to delete.
pub(super) struct Message(*mut TRITONSERVER_Message);

impl Message {
    /// Takes over a message that Triton gave us to keep.
    ///
    /// # Safety
    /// `message` is a live message that nobody else deletes.
    pub(super) unsafe fn from_raw(message: *mut TRITONSERVER_Message) -> Self {
        Message(message)
    }

    /// A new message that says `value`.
    pub(super) fn new(value: &Value) -> Result<Self> {
        let json = value.to_string();
        let mut message = ptr::null_mut();
        // SAFETY: Triton copies the `json.len()` bytes of `json`.
        check("MessageNewFromSerializedJson", unsafe {
            sys::TRITONSERVER_MessageNewFromSerializedJson(
                &mut message,
                json.as_ptr().cast::<c_char>(),
                json.len(),
            )
        })?;
        Ok(Message(message))
    }

    /// The message, for a call that does not take it.
    pub(super) fn as_ptr(&self) -> *mut TRITONSERVER_Message {
        self.0
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: ours, and deleted only here.
        let _ = check("MessageDelete", unsafe { sys::TRITONSERVER_MessageDelete(self.0) });
    }
}

/// What a message says.
///
/// # Safety
/// `message` is live during the call.
pub(super) unsafe fn read(message: *mut TRITONSERVER_Message) -> Result<Value> {
    let (mut base, mut len) = (ptr::null(), 0usize);
    // SAFETY: the caller's word; base and len are read on success only.
    check("MessageSerializeToJson", unsafe {
        sys::TRITONSERVER_MessageSerializeToJson(message, &mut base, &mut len)
    })?;
    if base.is_null() {
        return Err(Error::internal("MessageSerializeToJson: no text"));
    }
    // SAFETY: Triton gave `len` bytes at `base`, which live as long as the message.
    let json = unsafe { std::slice::from_raw_parts(base.cast::<u8>(), len) };
    serde_json::from_slice(json)
        .map_err(|error| Error::internal(format!("a message of the server is not JSON: {error}")))
}
