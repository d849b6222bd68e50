//! Which TensorRT this was compiled for: TensorRT-RTX, or with the feature `enterprise` that of data
//! centres. Each is compiled against headers of its own, and their tables of functions differ: one
//! binary has one of them. Both files of this room have the same items, and nothing else asks which
//! flavour it is.

#[cfg_attr(feature = "enterprise", path = "enterprise.rs")]
#[cfg_attr(not(feature = "enterprise"), path = "rtx.rs")]
mod chosen;

pub use chosen::*;

/// The files of a TensorRT, and the versions of it that are known here.
pub(crate) struct Names {
    /// What the libraries are called, but for a version behind.
    pub(crate) runtime: &'static str,
    pub(crate) parser: &'static str,
    /// The versions whose interface is known: this one, and later ones of its major version.
    pub(crate) known: (i32, i32),
}
