//! A driver of GPUs that are not there, for tests: the functions of `libcuda` that `crates/cuda`
//! calls, done by the processor, and kernels run from the very text that is shipped.
//!
//! It is as unfriendly as a GPU may be. Device addresses can not be touched by the host. Work is done
//! when it is waited for and no sooner, and reads what the host has then. Fresh memory is full of
//! garbage, and an address that was freed is never given again. What no real GPU
//! would do as it was meant is noted, and fails the test in the end ([`Gpu`]).
//!
//! Nothing of it is shipped: the shared library is opened by the tests that ask for it, and by nobody
//! else.

mod control;
mod driver;
mod gpu;
mod ptx;
mod space;
mod state;
mod work;

pub use gpu::{Emulated, Gpu};
