//! Which instructions the processor has, found at run time.

use half::f16;

use crate::kernel::portable;
#[cfg(target_arch = "x86_64")]
use crate::kernel::{avx2, avx512};

/// A set of instructions that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instructions(Set);

/// Private, so that only [`Instructions::available`] says that a set is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Instructions {
    /// What is there, the fastest first.
    pub fn available() -> Vec<Self> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") {
                sets.push(Set::Avx512);
            }
            if has!("avx2") && has!("fma") && has!("f16c") {
                sets.push(Set::Avx2);
            }
        }
        sets.push(Set::Portable);
        sets.into_iter().map(Instructions).collect()
    }

    /// The fastest.
    pub fn best() -> Self {
        Self::available()[0]
    }

    /// The products of some rows (`kernel`).
    pub(crate) fn block(
        self,
        rows: &[f16],
        images: &[f32],
        dimension: usize,
        results: &mut [&mut [f32]],
    ) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => {
                // SAFETY: `available` found AVX-512F, else there were no such `Instructions`.
                unsafe { avx512::block(rows, images, dimension, results) }
            }
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => {
                // SAFETY: `available` found AVX2, FMA and F16C.
                unsafe { avx2::block(rows, images, dimension, results) }
            }
            Set::Portable => portable::block(rows, images, dimension, results),
        }
    }
}
