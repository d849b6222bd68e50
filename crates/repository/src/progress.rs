//! How a build tells what it does; who shows it, and where, is the caller's business.

/// What a count of progress counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of a file.
    Bytes,
    /// Labels of a table.
    Labels,
    /// Steps of an engine's building.
    Steps,
}

/// Told about the steps of a build.
pub trait Progress {
    /// One step begins or one thing is worth knowing.
    fn say(&self, text: &str);

    /// A step of `total` units begins; the one before it is over.
    fn start(&self, what: &str, total: u64, unit: Unit);

    /// `by` more units are done.
    fn advance(&self, by: u64);

    /// The step is over.
    fn finish(&self);
}

/// Says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn say(&self, _text: &str) {}
    fn start(&self, _what: &str, _total: u64, _unit: Unit) {}
    fn advance(&self, _by: u64) {}
    fn finish(&self) {}
}
