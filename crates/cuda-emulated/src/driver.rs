//! The functions of `libcuda` that `crates/cuda` calls by way of cudarc. One that is missing ends the
//! test: cudarc names it.
#![allow(non_snake_case, reason = "CUDA's names")]

mod device;
mod graph;
mod memory;
mod module;
mod stream;

use cudarc::driver::sys::CUresult;

use crate::state::{Outcome, State, with};

/// Where a caller wants a value to be put. There are none but those that callers hand over.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    fn put(self, value: T) -> Outcome {
        if self.0.is_null() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: the caller's pointer, for a value of this type.
        unsafe { self.0.write(value) };
        Ok(())
    }
}

/// Runs a function of the driver.
fn call(name: &'static str, body: impl FnOnce(&mut State) -> Outcome) -> CUresult {
    with(|state| {
        state.called = name;
        body(state).err().unwrap_or(CUresult::CUDA_SUCCESS)
    })
}

/// Functions that are exported under their names, with the state as a first argument.
macro_rules! functions {
    ($(fn $name:ident($state:ident $(, $argument:ident: $kind:ty)* $(,)?) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        pub(super) extern "C" fn $name($($argument: $kind),*) -> cudarc::driver::sys::CUresult {
            super::call(stringify!($name), |$state| $body)
        }
    )*};
}
use functions;

#[cfg(test)]
mod tests;
