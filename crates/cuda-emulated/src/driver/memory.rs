//! Allocating, freeing, copying.

use std::ffi::{c_uchar, c_uint, c_void};
use std::{ptr, slice};

use cudarc::driver::sys::{
    CUDA_MEMCPY2D, CUdeviceptr, CUmemorytype, CUpointer_attribute, CUresult, CUstream,
};

use super::{Out, functions};
use crate::state::{Outcome, State};
use crate::work::{Rows, Work};

/// The handle that a pointer is.
pub(super) fn handle<T>(pointer: *mut T) -> u64 {
    pointer.addr() as u64
}

/// Refuses memory of the host that is not pinned: a copy of such is waited for in one driver and not
/// in the next.
fn check_pinned(state: &mut State, address: usize, length: usize) -> Outcome {
    if state.pinned.reach(address) < length {
        let what = format_args!("{length} bytes of the host at {address:#x} are not pinned");
        return state.wrong(CUresult::CUDA_ERROR_INVALID_VALUE, what);
    }
    Ok(())
}

functions! {
    fn cuMemAllocAsync(state, into: Out<CUdeviceptr>, length: usize, stream: CUstream) {
        let device = state.current()?;
        if state.is_recording(handle(stream))? {
            // It would be the graph's, and there while that runs.
            return state.wrong(CUresult::CUDA_ERROR_NOT_SUPPORTED, "memory of recorded work");
        }
        if length == 0 {
            return state.wrong(CUresult::CUDA_ERROR_INVALID_VALUE, "no bytes");
        }
        state.set_aside()?;
        let address = state.space.allocate(length, device);
        let address = address.ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
        state.give(handle(stream), Work::Allocate(address))?;
        into.put(address)
    }

    fn cuMemFreeAsync(state, address: CUdeviceptr, stream: CUstream) {
        state.free(handle(stream), address)
    }

    fn cuMemHostAlloc(state, into: Out<*mut c_void>, length: usize, _flags: c_uint) {
        state.current()?;
        if length == 0 {
            return state.wrong(CUresult::CUDA_ERROR_INVALID_VALUE, "no bytes");
        }
        state.set_aside()?;
        into.put(state.pinned.allocate(length).ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)?)
    }

    fn cuMemFreeHost(state, address: *mut c_void) {
        state.current()?;
        if !state.pinned.free(address.addr()) {
            return state.wrong(CUresult::CUDA_ERROR_INVALID_VALUE, "no pinned memory");
        }
        Ok(())
    }

    fn cuMemsetD8Async(
        state,
        address: CUdeviceptr,
        value: c_uchar,
        length: usize,
        stream: CUstream,
    ) {
        state.give(handle(stream), Work::Fill { address, value, length })
    }

    fn cuMemcpyHtoDAsync_v2(
        state,
        to: CUdeviceptr,
        from: *const c_void,
        length: usize,
        stream: CUstream,
    ) {
        let from = from.expose_provenance();
        check_pinned(state, from, length)?;
        state.give(handle(stream), Work::ToDevice { to, from, length })
    }

    fn cuMemcpyDtoHAsync_v2(
        state,
        to: *mut c_void,
        from: CUdeviceptr,
        length: usize,
        stream: CUstream,
    ) {
        let to = to.expose_provenance();
        check_pinned(state, to, length)?;
        state.give(handle(stream), Work::ToHost { to, from, length })
    }

    // As with memory that is not pinned: the host's bytes are read at once, and arrive later.
    fn cuMemcpyHtoD_v2(state, to: CUdeviceptr, from: *const c_void, length: usize) {
        let device = state.current()?;
        if length > 0 {
            // SAFETY: the caller's memory, of as many bytes.
            let bytes = unsafe { slice::from_raw_parts(from.cast::<u8>(), length) };
            state.contexts[device].begun.push((to, bytes.to_vec()));
        }
        Ok(())
    }

    fn cuMemcpyDtoH_v2(state, to: *mut c_void, from: CUdeviceptr, length: usize) {
        let device = state.current()?;
        state.finish_copies(device)?;
        state.space.acting = device;
        match state.space.bytes(from, length) {
            _ if length == 0 => Ok(()),
            Err(message) => state.wrong(CUresult::CUDA_ERROR_INVALID_VALUE, message),
            Ok(bytes) => {
                // SAFETY: the caller's memory, of as many bytes, none of which is a device's.
                unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast(), length) };
                Ok(())
            }
        }
    }

    fn cuMemcpyDtoDAsync_v2(
        state,
        to: CUdeviceptr,
        from: CUdeviceptr,
        length: usize,
        stream: CUstream,
    ) {
        let (from_pitch, to_pitch) = (length, length);
        let rows = Rows { from, from_pitch, to, to_pitch, width: length, height: 1 };
        state.give(handle(stream), Work::Rows(rows))
    }

    fn cuMemcpy2DAsync_v2(state, copy: *const CUDA_MEMCPY2D, stream: CUstream) {
        // SAFETY: the caller's description of a copy.
        let copy = unsafe { &*copy };
        let device = CUmemorytype::CU_MEMORYTYPE_DEVICE;
        let is_inside = copy.srcMemoryType == device && copy.dstMemoryType == device;
        let begins = [copy.srcXInBytes, copy.srcY, copy.dstXInBytes, copy.dstY];
        if !is_inside || begins != [0; 4] {
            let what = "copies of rows are emulated inside a device's memory alone";
            return state.wrong(CUresult::CUDA_ERROR_NOT_SUPPORTED, what);
        }
        if copy.WidthInBytes > copy.srcPitch.min(copy.dstPitch) {
            return state.wrong(CUresult::CUDA_ERROR_INVALID_VALUE, "rows wider than their pitch");
        }
        let rows = Rows {
            from: copy.srcDevice,
            from_pitch: copy.srcPitch,
            to: copy.dstDevice,
            to_pitch: copy.dstPitch,
            width: copy.WidthInBytes,
            height: copy.Height,
        };
        state.give(handle(stream), Work::Rows(rows))
    }

    fn cuPointerGetAttribute(
        state,
        value: Out<CUmemorytype>,
        attribute: CUpointer_attribute,
        address: CUdeviceptr,
    ) {
        if attribute != CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE {
            let what = format_args!("{attribute:?} is not emulated");
            return state.wrong(CUresult::CUDA_ERROR_NOT_SUPPORTED, what);
        }
        if state.space.around(address).is_some() {
            return value.put(CUmemorytype::CU_MEMORYTYPE_DEVICE);
        }
        if state.pinned.reach(address as usize) > 0 {
            return value.put(CUmemorytype::CU_MEMORYTYPE_HOST);
        }
        // Any address may be asked about.
        Err(CUresult::CUDA_ERROR_INVALID_VALUE)
    }
}
