//! A decoder's cache: slabs of memory, and the values over them.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::ffi::c_void;
use std::ops::Range;
use std::ptr::NonNull;

use imprompt_error::{Error, Result};
use ort::memory::MemoryInfo;

use super::held::RawValue;
use super::ports::Ports;
use crate::{Cache, CacheEntry, CacheSpec, SlotLength};

/// Alignment of a slab: a cache line, and the widest vector register.
const ALIGNMENT: usize = 64;

/// Where a graph reads an entry of the cache, and where it writes it.
pub(super) type Places = (Option<usize>, Option<usize>);

/// Rows of bytes in equal distances.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    /// How many.
    pub(super) count: usize,
    /// Bytes of one that count.
    pub(super) width: usize,
    /// Bytes from one to the next.
    pub(super) stride: usize,
}

/// One entry's memory.
pub(super) trait Slab: Send + 'static {
    /// Where it begins, on whatever device it is.
    fn start(&self) -> *mut c_void;

    /// Copies `rows` at byte `from` to byte `to`.
    ///
    /// # Safety
    /// Both lie inside the slab.
    unsafe fn copy_rows(&mut self, from: usize, to: usize, rows: Rows) -> Result<()>;
}

/// Memory of the host.
pub(super) struct HostSlab {
    memory: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is owned, and only methods of `&mut self` and runs that hold the cache's
// `&mut` touch it.
unsafe impl Send for HostSlab {}

impl HostSlab {
    /// `bytes` zeros.
    pub(super) fn new(bytes: usize) -> Result<Self> {
        let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT)
            .map_err(|_| Error::internal(format!("a slab of {bytes} bytes")))?;
        // SAFETY: the layout has a size of at least one byte.
        let memory = unsafe { alloc_zeroed(layout) };
        let memory = NonNull::new(memory)
            .ok_or_else(|| Error::out_of_memory(format_args!("{bytes} bytes of a cache")))?;
        Ok(HostSlab { memory, layout })
    }
}

impl Slab for HostSlab {
    fn start(&self) -> *mut c_void {
        self.memory.as_ptr().cast()
    }

    unsafe fn copy_rows(&mut self, from: usize, to: usize, rows: Rows) -> Result<()> {
        for start in (0..rows.count).map(|row| row * rows.stride) {
            // SAFETY: the caller's word; `copy` allows both to be the same.
            unsafe {
                let memory = self.memory.as_ptr();
                std::ptr::copy(memory.add(from + start), memory.add(to + start), rows.width);
            }
        }
        Ok(())
    }
}

impl Drop for HostSlab {
    fn drop(&mut self) {
        // SAFETY: the memory was allocated with this layout.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

/// The cache: values over the slots that ran last are kept for the next run,
/// which in a decoding loop is over the same ones.
pub(super) struct OnnxCache<S> {
    spec: CacheSpec,
    bound: Option<(Range<usize>, Vec<RawValue>)>,
    slabs: Vec<S>,
    memory: MemoryInfo<'static>,
}

// SAFETY: the slabs are sent, the values over them are tied to no thread, and the description of the
// memory is only read.
unsafe impl<S: Slab> Send for OnnxCache<S> {}

impl<S> std::fmt::Debug for OnnxCache<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnnxCache").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl<S: Slab> OnnxCache<S> {
    /// Allocates it, each slab by `allocate`, in the memory that `memory` describes.
    pub(super) fn new(
        spec: &CacheSpec,
        memory: MemoryInfo<'static>,
        allocate: impl Fn(usize) -> Result<S>,
    ) -> Result<Self> {
        spec.bytes()?;
        let slabs = spec
            .entries
            .iter()
            .map(|entry| allocate(spec.slots * slot_bytes(spec, entry)?))
            .collect::<Result<_>>()?;
        Ok(OnnxCache { spec: spec.clone(), bound: None, slabs, memory })
    }

    /// Where the first slab begins.
    pub(super) fn start(&self) -> usize {
        self.slabs.first().map_or(0, |slab| slab.start() as usize)
    }

    /// A value for each entry over these slots, and where a graph reads and writes it.
    pub(super) fn bind(
        &mut self,
        slots: &Range<usize>,
        inputs: &Ports,
        outputs: &Ports,
    ) -> Result<Vec<(Places, &RawValue)>> {
        if slots.is_empty() || slots.end > self.spec.slots {
            return Err(Error::internal(format!(
                "slots {} to {} of a cache of {}",
                slots.start, slots.end, self.spec.slots
            )));
        }
        let values = match self.bound.take() {
            Some((bound, values)) if bound == *slots => values,
            _ => self.values(slots)?,
        };
        let values = &self.bound.insert((slots.clone(), values)).1;
        let places =
            |entry: &CacheEntry| (inputs.place(&entry.input), outputs.place(&entry.output));
        Ok(self.spec.entries.iter().map(places).zip(values).collect())
    }

    fn values(&self, slots: &Range<usize>) -> Result<Vec<RawValue>> {
        let value = |(slab, entry): (&S, &CacheEntry)| {
            let bytes = slot_bytes(&self.spec, entry)?;
            let shape =
                [slots.len(), entry.heads, entry.max_length, entry.head_dim].map(|d| d as i64);
            // SAFETY: the slots lie inside the slab (checked by `bind`), which
            // is aligned, initialised, in this memory, and dropped after the values; runs
            // are given the values only while they hold `&mut self`.
            unsafe {
                RawValue::over(
                    &self.memory,
                    slab.start().cast::<u8>().wrapping_add(slots.start * bytes).cast(),
                    slots.len() * bytes,
                    &shape,
                    self.spec.element_type,
                )
            }
        };
        self.slabs.iter().zip(&self.spec.entries).map(value).collect()
    }
}

fn slot_bytes(spec: &CacheSpec, entry: &CacheEntry) -> Result<usize> {
    Ok(spec.slot_elements(entry)? * spec.element_type.size())
}

impl<S: Slab> Cache for OnnxCache<S> {
    fn spec(&self) -> &CacheSpec {
        &self.spec
    }

    fn copy_slot(&mut self, from: usize, to: usize, length: SlotLength) -> Result<()> {
        let CacheSpec { slots, element_type, .. } = self.spec;
        let fits = |entry: &CacheEntry| length.of(entry) <= entry.max_length;
        if from.max(to) >= slots || !self.spec.entries.iter().all(fits) {
            return Err(Error::internal(format!(
                "{} positions and {} of memory of slots {from} and {to} of a cache of {slots}",
                length.positions, length.memory
            )));
        }
        for (slab, entry) in self.slabs.iter_mut().zip(&self.spec.entries) {
            let slot = slot_bytes(&self.spec, entry)?;
            let position = entry.head_dim * element_type.size();
            let rows = Rows {
                count: entry.heads,
                width: length.of(entry) * position,
                stride: position * entry.max_length,
            };
            // SAFETY: both slots lie inside the slab, a slot is its heads one after the other, and
            // the copied positions lie inside a head.
            unsafe { slab.copy_rows(from * slot, to * slot, rows)? };
        }
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
