//! The matrix products of the CPU path, where a processor has AVX-512.
//!
//! Why own kernels, when ONNX Runtime has good ones? Because of what they do
//! around the product:
//!
//! * Weights are read where they lie in the mapped file, `[outputs, inputs]` as
//!   checkpoints keep them, in float32, float16, bfloat16 or the quantised forms of
//!   [`quantized`]. Nothing is laid out anew when a model is loaded and kept
//!   beside the file, and instances share the pages.
//! * One row (decoding a token) reads each weight once, at the memory's speed,
//!   and in as few bytes as it is stored in.
//! * Bias, activation and residual are applied while the results are in the
//!   cache ([`Finish`]).
//!
//! * AMX multiplies in float32's precision ([`Instructions::Amx`]).
//!
//! [`Linear::run`] picks the kernel by the number of rows. [`is_supported`] says
//! whether this processor can run them; where not, the caller has another way.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod cached;
#[cfg(target_arch = "x86_64")]
mod dot;
mod finish;
#[cfg(target_arch = "x86_64")]
mod lanes;
mod linear;
pub mod quantized;
#[cfg(target_arch = "x86_64")]
mod rounded;
#[cfg(target_arch = "x86_64")]
mod tile;

pub use attention::{Attention, PrefixAttention, Queries};
pub use cached::CachedAttention;
pub use finish::{Activation, Finish};
pub use linear::{Linear, Parallel, Serial, Weight, Weights};

/// The instructions that matrix products may use, where the processor has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Instructions {
    /// Vectors alone, AVX-512.
    Avx512,
    /// AMX too, for many rows.
    #[default]
    Amx,
    /// AMX, and of a float32 the first sixteen of its 24 bits: half the products. What PyTorch's
    /// `float32_matmul_precision` "high" is.
    AmxHigh,
}

/// Whether this process may use AMX: Intel's servers since Sapphire Rapids, Linux since 5.16.
#[must_use]
pub fn has_amx() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        amx::is_usable()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Whether this processor has what the kernels need: AVX-512 F, BW, DQ and VL (Intel's
/// servers since 2017, AMD's since Zen 4). Weights in 8 and 4 bits need VNNI besides (since
/// Cascade Lake); without, they are multiplied slowly.
#[must_use]
pub fn is_supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx512vl")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Whether products of bytes (weights in 8 and 4 bits) take less time here than those of floats:
/// VNNI besides.
#[must_use]
pub fn multiplies_bytes() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_supported() && std::arch::is_x86_feature_detected!("avx512vnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Whether this processor is Intel's. Its own prefetching ends with each page, so that what is read once, in order, is
/// asked for some pages ahead; AMD's reads slower for that.
#[cfg(target_arch = "x86_64")]
pub(crate) fn is_intel() -> bool {
    // Asked once: under a hypervisor the question takes many microseconds.
    static IS_INTEL: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        let leaf = std::arch::x86_64::__cpuid(0);
        let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
        name.as_flattened() == b"GenuineIntel"
    });
    *IS_INTEL
}
