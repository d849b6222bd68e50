//! The inner loops in AVX2, where the processor has it; the results are the same bytes as those
//! of the portable code beside which each is used.
//!
//! The only file of this crate with `unsafe`: to call code for instructions that were found at
//! run time. The loops themselves are safe.
#![allow(unsafe_code)]

use std::cell::Cell;

#[cfg(target_arch = "x86_64")]
mod avx2;

thread_local! {
    static PORTABLE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with portable code alone: for tests, which compare it with the code that is
/// otherwise chosen.
#[doc(hidden)]
pub fn portably<T>(work: impl FnOnce() -> T) -> T {
    PORTABLE.set(true);
    let result = work();
    PORTABLE.set(false);
    result
}

/// What the processor has. Made by [`Simd::best`] alone, so that it is true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Simd {
    avx2: bool,
}

impl Simd {
    pub(crate) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        let avx2 = !PORTABLE.get() && std::arch::is_x86_feature_detected!("avx2");
        #[cfg(not(target_arch = "x86_64"))]
        let avx2 = false;
        Simd { avx2 }
    }
}

/// `Simd::NAME(arguments)`: does the work and says so, or says that portable code is to do it.
macro_rules! dispatch {
    ($($(#[$attribute:meta])* $name:ident($($argument:ident: $kind:ty),* $(,)?);)*) => {
        impl Simd {
            $(
                $(#[$attribute])*
                #[inline]
                #[must_use]
                pub(crate) fn $name(self, $($argument: $kind),*) -> bool {
                    #[cfg(target_arch = "x86_64")]
                    if self.avx2 {
                        // SAFETY: `best` found AVX2.
                        unsafe { avx2::$name($($argument),*) };
                        return true;
                    }
                    let _ = ($($argument,)*);
                    false
                }
            )*
        }
    };
}

dispatch! {
    /// `transform::inverse_dct`.
    inverse_dct(block: &[i16; 64], quantization: &[i16; 64], plane: &mut [u8], stride: usize);
    /// The middle of `transform::spread` for two sums of both ways; `done` is the number of
    /// sums behind the first whose two levels are written.
    spread_both(sums: &[i16], out: &mut [u8], done: &mut usize);
    /// The same for plain samples.
    spread_across(sums: &[i16], out: &mut [u8], done: &mut usize);
    /// `3 * near + far`.
    weigh(near: &[u8], far: &[u8], sums: &mut [i16]);
    /// The first pixels of `transform::ycc_row`: all but fewer than 16.
    ycc_row(luma: &[u8], blue: &[u8], red: &[u8], out: &mut [u8]);
    /// The first pixels of `resize::split_planes`: all but fewer than 16.
    split_planes(row: &[u8], red: &mut [i16], green: &mut [i16], blue: &mut [i16]);
    /// `resize::narrow_row`. Each pixel has as many factors in `high` and `low`, a multiple of 16.
    narrow_row(
        bounds: &[(usize, usize)],
        high: &[i16],
        low: &[i16],
        planes: &[i16],
        row: &mut [u8],
    );
    /// The first levels of `resize::lower_row`: all but fewer than 16.
    lower_row(old_rows: &[u8], high: &[i16], low: &[i16], new_row: &mut [u8]);
}
