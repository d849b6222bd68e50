//! Kernels.

use std::ffi::{CStr, c_char, c_uint, c_void};
use std::sync::Arc;
use std::{ptr, slice};

use cudarc::driver::sys::{CUfunction, CUmodule, CUresult, CUstream};

use super::memory::handle;
use super::{Out, functions};
use crate::ptx::parse;
use crate::work::{Call, Work};

/// Bytes of a block's own memory at most, unless a kernel asks for more.
const SHARED: c_uint = 48 << 10;

/// Blocks of a grid at most.
const BLOCKS: c_uint = c_uint::MAX >> 1;

functions! {
    fn cuModuleLoadData(state, into: Out<CUmodule>, image: *const c_void) {
        let device = state.current()?;
        // SAFETY: kernels as text, which ends with a zero.
        let text = unsafe { CStr::from_ptr(image.cast::<c_char>()) };
        let module = match text.to_str().map_err(|error| error.to_string()).and_then(parse) {
            Ok(module) => module,
            Err(message) => return state.wrong(CUresult::CUDA_ERROR_INVALID_PTX, message),
        };
        state.set_aside()?;
        let handle = state.handle();
        state.modules.insert(handle, (device, module));
        into.put(ptr::without_provenance_mut(handle as usize))
    }

    fn cuModuleUnload(state, module: CUmodule) {
        let module = handle(module);
        state.functions.retain(|_, (of, _)| *of != module);
        match state.modules.remove(&module) {
            Some(_) => Ok(()),
            None => state.wrong(CUresult::CUDA_ERROR_INVALID_HANDLE, "no module"),
        }
    }

    fn cuModuleGetFunction(
        state,
        into: Out<CUfunction>,
        module: CUmodule,
        name: *const c_char,
    ) {
        // SAFETY: the caller's text.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let Some((_, found)) = state.modules.get(&handle(module)) else {
            return state.wrong(CUresult::CUDA_ERROR_INVALID_HANDLE, "no module");
        };
        let Some(kernel) = found.kernels.get(&*name).cloned() else {
            return state.wrong(CUresult::CUDA_ERROR_NOT_FOUND, format_args!("no kernel {name}"));
        };
        let function = state.handle();
        state.functions.insert(function, (handle(module), kernel));
        into.put(ptr::without_provenance_mut(function as usize))
    }

    fn cuLaunchKernel(
        state,
        function: CUfunction,
        blocks: c_uint,
        blocks_y: c_uint,
        blocks_z: c_uint,
        threads: c_uint,
        threads_y: c_uint,
        threads_z: c_uint,
        shared: c_uint,
        stream: CUstream,
        given: *mut *mut c_void,
        _extra: *mut *mut c_void,
    ) {
        let device = state.current()?;
        let found = state.functions.get(&handle(function)).cloned();
        let found = found.filter(|(module, _)| {
            state.modules.get(module).is_some_and(|(of, _)| *of == device)
        });
        let Some((_, kernel)) = found else {
            return state.wrong(CUresult::CUDA_ERROR_INVALID_HANDLE, "no kernel of this context");
        };
        if [blocks_y, blocks_z, threads_y, threads_z] != [1; 4] {
            let what = "grids of more than one dimension are not emulated";
            return state.wrong(CUresult::CUDA_ERROR_NOT_SUPPORTED, what);
        }
        let fits = (1..=BLOCKS).contains(&blocks) && (1..=kernel.most_threads).contains(&threads);
        if !fits || shared > SHARED {
            let what = format_args!("{blocks} blocks of {threads} threads, {shared} bytes shared");
            return state.wrong(CUresult::CUDA_ERROR_INVALID_VALUE, what);
        }
        let mut parameters = vec![0; kernel.parameter_bytes()];
        for (number, (offset, size)) in kernel.parameters.iter().enumerate() {
            // SAFETY: the caller has as many values as the kernel takes, of its sizes.
            let value = unsafe { slice::from_raw_parts((*given.add(number)).cast::<u8>(), *size) };
            parameters[*offset..][..*size].copy_from_slice(value);
        }
        let shared = shared as usize;
        let call = Call { kernel, blocks, threads, shared, parameters };
        state.give(handle(stream), Work::Kernel(Arc::new(call)))
    }
}
