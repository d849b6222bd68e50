//! What a stream does.

use std::ptr;
use std::sync::Arc;

use crate::ptx::{Kernel, Launch, run};
use crate::space::{POISON, Pinned, Space};

/// A piece of work, with all that it needs but the memory.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Allocate(u64),
    Free(u64),
    Fill { address: u64, value: u8, length: usize },
    ToDevice { to: u64, from: usize, length: usize },
    ToHost { to: usize, from: u64, length: usize },
    Rows(Rows),
    Kernel(Arc<Call>),
    Graph(Arc<Vec<Work>>),
}

/// Rows that are copied inside a device's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub(crate) from: u64,
    pub(crate) from_pitch: usize,
    pub(crate) to: u64,
    pub(crate) to_pitch: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// A kernel and what it was given.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    pub(crate) shared: usize,
    pub(crate) parameters: Vec<u8>,
}

impl Work {
    /// Does it. What the host has is read and written now, whatever it was when the work was given.
    pub(crate) fn perform(&self, space: &mut Space, pinned: &Pinned) -> Result<(), String> {
        match self {
            Work::Allocate(address) => space.begin(*address),
            Work::Free(address) => space.end(*address),
            Work::Fill { address, value, length } => {
                space.bytes(*address, *length)?.fill(*value);
                Ok(())
            }
            Work::ToDevice { to, from, length } => {
                let (bytes, from) = (space.bytes(*to, *length)?, host(pinned, *from, *length)?);
                // SAFETY: as many bytes are pinned there.
                unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), *length) };
                Ok(())
            }
            Work::ToHost { to, from, length } => {
                let (bytes, to) = (space.bytes(*from, *length)?, host(pinned, *to, *length)?);
                // SAFETY: as many bytes are pinned there.
                unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, *length) };
                Ok(())
            }
            Work::Rows(rows) => rows.copy(space),
            Work::Kernel(call) => {
                let Call { kernel, blocks, threads, shared, parameters } = &**call;
                let (blocks, threads, shared) = (*blocks, *threads, *shared);
                let launch = Launch { kernel, blocks, threads, shared, parameters, poison: POISON };
                run(&launch, space)
            }
            Work::Graph(all) => all.iter().try_for_each(|work| work.perform(space, pinned)),
        }
    }
}

/// Pinned memory at `address`.
fn host(pinned: &Pinned, address: usize, length: usize) -> Result<*mut u8, String> {
    if pinned.reach(address) < length {
        return Err(format!("{length} bytes of the host at {address:#x}, which are not pinned"));
    }
    Ok(ptr::with_exposed_provenance_mut(address))
}

impl Rows {
    fn copy(&self, space: &mut Space) -> Result<(), String> {
        if let Some((from, to)) = self.overlap() {
            return Err(format!("row {from} of a copy overlaps with the row {to} it is copied to"));
        }
        for row in 0..self.height {
            let (from, to) = self.row(row);
            let bytes = space.bytes(from, self.width)?.to_vec();
            space.bytes(to, self.width)?.copy_from_slice(&bytes);
        }
        Ok(())
    }

    fn row(&self, row: usize) -> (u64, u64) {
        (self.from + (row * self.from_pitch) as u64, self.to + (row * self.to_pitch) as u64)
    }

    /// A row that is read and one that is written, of which bytes are the same.
    fn overlap(&self) -> Option<(usize, usize)> {
        let (mut read, mut written) = (0, 0);
        while read < self.height && written < self.height {
            let (from, to) = (self.row(read).0, self.row(written).1);
            if from.abs_diff(to) < self.width as u64 {
                return Some((read, written));
            }
            if from < to { read += 1 } else { written += 1 }
        }
        None
    }
}
