//! Which instructions the processor has, found at run time.

#[cfg(target_arch = "x86_64")]
use std::sync::LazyLock;

use half::f16;

use crate::kernel::portable;
#[cfg(target_arch = "x86_64")]
use crate::kernel::{avx2, avx512};

/// A set of instructions that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instructions {
    set: Set,
    /// Whether rows are asked for ahead: it pays on Intel's processors, and costs time on AMD's.
    asks: bool,
}

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
        let asks = is_intel();
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
        sets.into_iter().map(|set| Instructions { set, asks }).collect()
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
        match (self.set, self.asks) {
            // SAFETY: `available` found AVX-512F, else there were no such `Instructions`.
            #[cfg(target_arch = "x86_64")]
            (Set::Avx512, true) => unsafe {
                avx512::block::<true>(rows, images, dimension, results);
            },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Set::Avx512, false) => unsafe {
                avx512::block::<false>(rows, images, dimension, results);
            },
            // SAFETY: `available` found AVX2, FMA and F16C.
            #[cfg(target_arch = "x86_64")]
            (Set::Avx2, true) => unsafe { avx2::block::<true>(rows, images, dimension, results) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Set::Avx2, false) => unsafe { avx2::block::<false>(rows, images, dimension, results) },
            (Set::Portable, _) => portable::block::<false>(rows, images, dimension, results),
        }
    }
}

/// Asked once: under a hypervisor the question takes many microseconds.
#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    static IS_INTEL: LazyLock<bool> = LazyLock::new(|| {
        let leaf = std::arch::x86_64::__cpuid(0);
        let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
        name.as_flattened() == b"GenuineIntel"
    });
    *IS_INTEL
}

#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}
