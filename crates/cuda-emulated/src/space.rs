//! The memory of the devices, and pinned memory of the host.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ops::Range;
use std::ptr;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};

use crate::ptx::Global;

/// What is in memory that nobody wrote.
pub(crate) const POISON: u8 = 0xdb;

/// Bytes of a device's memory.
pub(crate) const DEVICE_BYTES: usize = 1 << 30;

/// Addresses that are set aside. None is given twice, so that what was freed is known as such.
const ADDRESSES: usize = 1 << 38;

/// What allocations start at multiples of, as those of CUDA do; and what is between two of them.
const ALIGNMENT: u64 = 512;

/// Pages, and so what pinned memory starts at multiples of.
const PAGE: usize = 4096;

/// What has become of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// A stream was given the allocation and has not come to it yet.
    Asked,
    There,
    Freed,
}

/// Memory of a device.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) start: u64,
    pub(crate) length: usize,
    pub(crate) device: usize,
    pub(crate) state: State,
    /// Whether freeing it was asked for.
    pub(crate) is_given_up: bool,
    bytes: Vec<u8>,
}

/// The memory of all devices, under addresses that the host can not touch.
#[derive(Debug, Default)]
pub(crate) struct Space {
    /// In order of their addresses.
    allocations: Vec<Allocation>,
    /// The addresses that were not given yet.
    free: Range<u64>,
    /// The allocation that was touched last.
    recent: usize,
    /// The device that touches memory now.
    pub(crate) acting: usize,
}

impl Space {
    /// Sets `length` bytes of a device aside; `None` where it has not so many.
    pub(crate) fn allocate(&mut self, length: usize, device: usize) -> Option<u64> {
        if length > DEVICE_BYTES - self.used(device) {
            return None;
        }
        if self.free.end == 0 {
            self.free = reserve()?;
        }
        let start = self.free.start;
        let next = (start + length as u64 + ALIGNMENT).next_multiple_of(ALIGNMENT);
        if next > self.free.end {
            return None;
        }
        self.free.start = next;
        self.allocations.push(Allocation {
            start,
            length,
            device,
            state: State::Asked,
            is_given_up: false,
            bytes: Vec::new(),
        });
        Some(start)
    }

    /// Bytes of a device that are not free.
    pub(crate) fn used(&self, device: usize) -> usize {
        let of = self.allocations.iter().filter(|at| at.device == device);
        of.filter(|at| at.state != State::Freed).map(|at| at.length).sum()
    }

    /// What is not freed.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Allocation> {
        self.allocations.iter().filter(|at| at.state != State::Freed)
    }

    /// The allocation that starts at `address`.
    pub(crate) fn at(&mut self, address: u64) -> Option<&mut Allocation> {
        let place = self.allocations.binary_search_by_key(&address, |at| at.start).ok()?;
        self.allocations.get_mut(place)
    }

    /// The allocation that `address` lies in.
    pub(crate) fn around(&self, address: u64) -> Option<&Allocation> {
        let place = self.allocations.partition_point(|at| at.start <= address).checked_sub(1)?;
        let at = self.allocations.get(place)?;
        (address < at.start + at.length as u64).then_some(at)
    }

    /// What a stream does when it comes to an allocation.
    pub(crate) fn begin(&mut self, address: u64) -> Result<(), String> {
        let at = self.at(address).ok_or_else(|| format!("no allocation at {address:#x}"))?;
        at.state = State::There;
        at.bytes = vec![POISON; at.length];
        Ok(())
    }

    /// What a stream does when it comes to a free.
    pub(crate) fn end(&mut self, address: u64) -> Result<(), String> {
        let at = self.at(address).ok_or_else(|| format!("no allocation at {address:#x}"))?;
        if at.state != State::There {
            return Err(format!("{:?} memory at {address:#x} is freed", at.state));
        }
        at.state = State::Freed;
        at.bytes = Vec::new();
        Ok(())
    }

    /// The bytes `length` from `address` on, all of one allocation.
    pub(crate) fn bytes(&mut self, address: u64, length: usize) -> Result<&mut [u8], String> {
        let is_inside =
            |at: &Allocation| at.start <= address && address - at.start < at.length as u64;
        if !self.allocations.get(self.recent).is_some_and(is_inside) {
            self.recent =
                self.allocations.partition_point(|at| at.start <= address).saturating_sub(1);
        }
        let Some(at) = self.allocations.get_mut(self.recent).filter(|at| is_inside(at)) else {
            return Err(format!("{length} bytes at {address:#x}, where nothing is allocated"));
        };
        let offset = (address - at.start) as usize;
        if at.state != State::There {
            let state = at.state;
            return Err(format!("{length} bytes at {address:#x}, where the memory is {state:?}"));
        }
        if at.device != self.acting {
            return Err(format!("GPU {} touches memory of GPU {}", self.acting, at.device));
        }
        let all = at.length;
        at.bytes
            .get_mut(offset..)
            .and_then(|rest| rest.get_mut(..length))
            .ok_or_else(|| format!("{length} bytes from byte {offset} on of {all}"))
    }
}

impl Space {
    /// Forgets all allocations; their addresses stay used.
    pub(crate) fn clear(&mut self) {
        self.allocations.clear();
    }
}

impl Global for Space {
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), String> {
        into.copy_from_slice(self.bytes(address, into.len())?);
        Ok(())
    }

    fn write(&mut self, address: u64, from: &[u8]) -> Result<(), String> {
        self.bytes(address, from.len())?.copy_from_slice(from);
        Ok(())
    }
}

/// Addresses at which nothing may be read or written.
fn reserve() -> Option<Range<u64>> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: new addresses, chosen by the system.
    let start = unsafe { mmap_anonymous(ptr::null_mut(), ADDRESSES, ProtFlags::empty(), flags) };
    let start = start.ok()?.addr() as u64;
    Some(start.next_multiple_of(ALIGNMENT)..start + ADDRESSES as u64)
}

/// Memory of the host that devices read and write by themselves. Its addresses are never given
/// twice: touching it when it is freed ends the process.
#[derive(Debug, Default)]
pub(crate) struct Pinned {
    /// By address, the bytes of each.
    live: BTreeMap<usize, usize>,
}

impl Pinned {
    pub(crate) fn allocate(&mut self, length: usize) -> Option<*mut c_void> {
        // A page behind it that nobody may touch.
        let pages = length.max(1).checked_next_multiple_of(PAGE)?;
        // SAFETY: new addresses, chosen by the system; the part that is opened and filled lies in
        // them.
        let start = unsafe {
            let all = pages + PAGE;
            let start =
                mmap_anonymous(ptr::null_mut(), all, ProtFlags::empty(), MapFlags::PRIVATE).ok()?;
            mprotect(start, pages, MprotectFlags::READ | MprotectFlags::WRITE).ok()?;
            start.cast::<u8>().write_bytes(POISON, length);
            start
        };
        self.live.insert(start.addr(), length);
        Some(start)
    }

    /// Frees what starts at `address`; whether there was something.
    pub(crate) fn free(&mut self, address: usize) -> bool {
        let Some(length) = self.live.remove(&address) else { return false };
        let start = ptr::with_exposed_provenance_mut::<c_void>(address);
        // SAFETY: memory of this kind alone, which nobody may use any more.
        unsafe { mprotect(start, length.max(1), MprotectFlags::empty()) }.is_ok()
    }

    /// How many bytes are pinned from `address` on.
    pub(crate) fn reach(&self, address: usize) -> usize {
        let found = self.live.range(..=address).next_back();
        found.map_or(0, |(start, length)| (start + length).saturating_sub(address))
    }

    /// Addresses and lengths.
    pub(crate) fn live(&self) -> impl Iterator<Item = (&usize, &usize)> {
        self.live.iter()
    }
}
