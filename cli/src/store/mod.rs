//! Object stores: addresses, what is there, and uploads that go on where they stopped.

pub mod address;
pub mod files;
pub mod open;
pub mod parts;
pub mod push;

pub use open::Store;
