//! Streams and events.

use std::ffi::c_uint;
use std::ptr;

use cudarc::driver::sys::{CUevent, CUstream};

use super::memory::handle;
use super::{Out, functions};

functions! {
    fn cuStreamCreate(state, into: Out<CUstream>, _flags: c_uint) {
        let device = state.current()?;
        state.set_aside()?;
        into.put(ptr::without_provenance_mut(state.add_stream(device) as usize))
    }

    fn cuStreamDestroy_v2(state, stream: CUstream) {
        state.destroy_stream(handle(stream))
    }

    fn cuStreamSynchronize(state, stream: CUstream) {
        if stream.is_null() {
            // What blocking calls give; no other stream waits for it.
            let device = state.current()?;
            return state.finish_copies(device);
        }
        state.wait_for_stream(handle(stream))
    }

    fn cuEventCreate(state, into: Out<CUevent>, _flags: c_uint) {
        let device = state.current()?;
        state.set_aside()?;
        into.put(ptr::without_provenance_mut(state.add_event(device) as usize))
    }

    fn cuEventDestroy_v2(state, event: CUevent) {
        state.destroy_event(handle(event))
    }

    fn cuEventRecord(state, event: CUevent, stream: CUstream) {
        state.record_event(handle(event), handle(stream))
    }

    fn cuEventSynchronize(state, event: CUevent) {
        state.wait_for_event(handle(event))
    }
}
