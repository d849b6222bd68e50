//! Kernels as text: parsed once, then run an instruction at a time.

mod memory;
mod operation;
mod parse;
mod run;

use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) use memory::Global;
use operation::Operation;
pub(crate) use parse::parse;
pub(crate) use run::{Launch, run};

/// The kernels of a module.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) kernels: BTreeMap<String, Arc<Kernel>>,
}

/// A kernel. What an instruction names is a place among the registers of a thread: declared ones,
/// then constants and special registers.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    /// Offset and size of each parameter among the bytes of all.
    pub(crate) parameters: Vec<(usize, usize)>,
    /// Threads of a block at most.
    pub(crate) most_threads: u32,
    registers: usize,
    constants: Vec<(usize, u64)>,
    specials: Vec<(usize, Special)>,
    instructions: Vec<Instruction>,
}

impl Kernel {
    /// Bytes of all parameters.
    pub(crate) fn parameter_bytes(&self) -> usize {
        self.parameters.last().map_or(0, |(offset, size)| offset + size)
    }
}

/// What differs between threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Special {
    Thread,
    Threads,
    Block,
    Blocks,
}

/// Where an address points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Area {
    Global,
    Shared,
    Parameters,
}

/// One or more values side by side in memory.
#[derive(Clone, Debug)]
struct Access {
    area: Area,
    /// Bytes of one value.
    size: usize,
    /// The registers of the values.
    values: Vec<usize>,
    base: usize,
    offset: i64,
}

#[derive(Clone, Debug)]
enum Action {
    Compute {
        operation: Operation,
        to: usize,
        from: [usize; 3],
    },
    Load(Access),
    Store(Access),
    /// `red.global.min.u32`.
    LowerTo(Access),
    Branch(usize),
    Shuffle(Shuffle),
    Barrier,
    Return,
}

/// `shfl.sync.down.b32`.
#[derive(Clone, Copy, Debug)]
struct Shuffle {
    to: usize,
    is_there: Option<usize>,
    from: usize,
    distance: usize,
    bounds: usize,
    members: usize,
}

#[derive(Clone, Debug)]
struct Instruction {
    /// A predicate, and the value at which this is done.
    guard: Option<(usize, bool)>,
    action: Action,
}

#[cfg(test)]
mod tests;
