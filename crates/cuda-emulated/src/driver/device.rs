//! Devices and their contexts.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::ptr;

use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute, CUresult};

use super::{Out, functions};
use crate::space::DEVICE_BYTES;
use crate::state::{CURRENT, DEVICES, Outcome, State};

/// The version of CUDA: the oldest whose kernels `crates/cuda` has.
const VERSION: c_int = 12020;

/// What the cards' instructions are: the oldest that the kernels are for.
const COMPUTE_CAPABILITY: (c_int, c_int) = (7, 5);

const NAME: &CStr = c"Emulated GPU";

/// The number of a device.
fn number(state: &mut State, device: CUdevice) -> Outcome<usize> {
    match usize::try_from(device) {
        Ok(device) if device < DEVICES => Ok(device),
        _ => state.wrong(CUresult::CUDA_ERROR_INVALID_DEVICE, format_args!("no GPU {device}")),
    }
}

/// The handle of a device's context.
fn context(device: usize) -> CUcontext {
    ptr::without_provenance_mut(device + 1)
}

functions! {
    fn cuInit(_state, _flags: c_uint) {
        Ok(())
    }

    fn cuDriverGetVersion(_state, version: Out<c_int>) {
        version.put(VERSION)
    }

    fn cuGetErrorString(_state, code: CUresult, words: Out<*const c_char>) {
        let text = match code {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => c"out of memory",
            CUresult::CUDA_ERROR_INVALID_VALUE => c"invalid argument",
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS => c"an illegal memory access was encountered",
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED => {
                c"operation not permitted when stream is capturing"
            }
            CUresult::CUDA_ERROR_CAPTURED_EVENT => {
                c"operation not permitted on an event last recorded in a capturing stream"
            }
            _ => return Err(CUresult::CUDA_ERROR_INVALID_VALUE),
        };
        words.put(text.as_ptr())
    }

    fn cuDeviceGetCount(_state, count: Out<c_int>) {
        count.put(DEVICES as c_int)
    }

    fn cuDeviceGet(state, device: Out<CUdevice>, ordinal: c_int) {
        number(state, ordinal)?;
        device.put(ordinal)
    }

    fn cuDeviceGetName(state, name: *mut c_char, room: c_int, device: CUdevice) {
        number(state, device)?;
        let bytes = NAME.to_bytes_with_nul();
        if bytes.len() > usize::try_from(room).unwrap_or(0) {
            return state.wrong(CUresult::CUDA_ERROR_INVALID_VALUE, "no room for a name");
        }
        // SAFETY: the caller has as much room, as was checked.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), name.cast(), bytes.len()) };
        Ok(())
    }

    fn cuDeviceGetAttribute(
        state,
        value: Out<c_int>,
        attribute: CUdevice_attribute,
        device: CUdevice,
    ) {
        number(state, device)?;
        value.put(match attribute {
            CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED => 1,
            CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR => {
                COMPUTE_CAPABILITY.0
            }
            CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR => {
                COMPUTE_CAPABILITY.1
            }
            _ => {
                let what = format_args!("{attribute:?} is not emulated");
                return state.wrong(CUresult::CUDA_ERROR_NOT_SUPPORTED, what);
            }
        })
    }

    fn cuDevicePrimaryCtxRetain(state, into: Out<CUcontext>, device: CUdevice) {
        let device = number(state, device)?;
        state.contexts[device].retained += 1;
        into.put(context(device))
    }

    fn cuDevicePrimaryCtxRelease_v2(state, device: CUdevice) {
        let device = number(state, device)?;
        let Some(rest) = state.contexts[device].retained.checked_sub(1) else {
            return state.wrong(CUresult::CUDA_ERROR_INVALID_CONTEXT, "released too often");
        };
        state.contexts[device].retained = rest;
        Ok(())
    }

    fn cuCtxGetCurrent(_state, into: Out<CUcontext>) {
        into.put(CURRENT.get().map_or(ptr::null_mut(), context))
    }

    fn cuCtxSetCurrent(state, to: CUcontext) {
        let device = (0..DEVICES).find(|device| context(*device) == to);
        if device.is_none() && !to.is_null() {
            return state.wrong(CUresult::CUDA_ERROR_INVALID_CONTEXT, "no context");
        }
        CURRENT.set(device);
        Ok(())
    }

    fn cuCtxSynchronize(state) {
        let device = state.current()?;
        state.wait_for_context(device)
    }

    fn cuMemGetInfo_v2(state, free: Out<usize>, all: Out<usize>) {
        let device = state.current()?;
        free.put(DEVICE_BYTES - state.space.used(device))?;
        all.put(DEVICE_BYTES)
    }
}
