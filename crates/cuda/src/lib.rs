//! The GPU as the rest of imprompt sees it: a [`Device`], a [`Stream`] of work on it, and memory.
//!
//! The driver (`libcuda`) is opened at run time, when a device is asked for the first time: nothing
//! of CUDA is linked, and where it is missing [`Device::count`] is 0 and [`Device::open`] says so.
//! All work of one instance goes to one stream, in the order in which it is given: what one call
//! writes the next one reads, without waiting on the host.

mod device;
mod feed;
mod graph;
mod memory;
mod ranking;
mod rate;
mod stream;
mod table;

pub use device::{ComputeCapability, Device};
pub use feed::{Feed, Part};
pub use graph::Graph;
pub use memory::{Buffer, Pitch, Span};
pub use ranking::{Chunks, Ranking};
pub use stream::Stream;
pub use table::Table;
