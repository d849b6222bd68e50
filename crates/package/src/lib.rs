//! One ensemble of a repository as one file: the `model.tar.gz` that SageMaker's single-model and
//! multi-model endpoints unpack and Triton serves.
//!
//! What is in it, in this order: the folder of the ensemble and of every stage that it needs, by
//! name, and at the end `imprompt.json` with the SHA-256 of every file before it. In each stage's
//! folder lies the backend's library under a name of its own (`libtriton_imprompt-VERSION-HASH.so`,
//! told to Triton by `runtime` of config.pbtxt): a server that has loaded another version under
//! the same package name cannot serve the old one's code. Files that are one file in the
//! repository (weights that several stages link to) are one in the package, and so are the
//! libraries: the others are hard links. Unpacked, a package is a repository.
//!
//! The same input gives the same bytes: times are 0, owners are 0, modes are 0644 and 0755, names
//! are sorted, and the gzip header has neither name nor time.
#![forbid(unsafe_code)]

mod archive;
mod library;
mod members;
mod pack;

pub use pack::{PackRequest, Packed, pack};
