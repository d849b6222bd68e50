//! A decoder's cache in host memory.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::ops::Range;
use std::ptr::NonNull;

use imprompt_error::{Error, Result};
use ort::memory::MemoryInfo;

use super::held::RawValue;
use crate::{Cache, CacheEntry, CacheSpec};

/// Alignment of a slab: a cache line, and the widest vector register.
const ALIGNMENT: usize = 64;

/// One entry's memory.
struct Slab {
    memory: NonNull<u8>,
    layout: Layout,
}

impl Slab {
    fn new(bytes: usize) -> Result<Self> {
        let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT)
            .map_err(|_| Error::internal(format!("a slab of {bytes} bytes")))?;
        // SAFETY: the layout has a size of at least one byte.
        let memory = unsafe { alloc_zeroed(layout) };
        let memory = NonNull::new(memory)
            .ok_or_else(|| Error::out_of_memory(format_args!("{bytes} bytes of a cache")))?;
        Ok(Slab { memory, layout })
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: the memory was allocated with this layout.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

/// The cache: values over the slots that ran last are kept for the next run,
/// which in a decoding loop is over the same ones.
pub struct OnnxCache {
    spec: CacheSpec,
    bound: Option<(Range<usize>, Vec<RawValue>)>,
    slabs: Vec<Slab>,
    memory: MemoryInfo<'static>,
}

// SAFETY: the slabs are owned memory that only methods of `&mut self` and runs
// holding `&mut self` touch.
unsafe impl Send for OnnxCache {}

impl std::fmt::Debug for OnnxCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnnxCache").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl OnnxCache {
    /// Allocates it.
    pub fn new(spec: &CacheSpec, memory: MemoryInfo<'static>) -> Result<Self> {
        spec.bytes()?;
        let slabs = spec
            .entries
            .iter()
            .map(|entry| Slab::new(spec.slots * slot_bytes(spec, entry)?))
            .collect::<Result<_>>()?;
        Ok(OnnxCache { spec: spec.clone(), bound: None, slabs, memory })
    }

    /// A value for each entry over these slots.
    pub fn bind(&mut self, slots: &Range<usize>) -> Result<&[RawValue]> {
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
        Ok(&self.bound.insert((slots.clone(), values)).1)
    }

    fn values(&self, slots: &Range<usize>) -> Result<Vec<RawValue>> {
        let value = |(slab, entry): (&Slab, &CacheEntry)| {
            let bytes = slot_bytes(&self.spec, entry)?;
            let shape =
                [slots.len(), entry.heads, entry.max_length, entry.head_dim].map(|d| d as i64);
            // SAFETY: the slots lie inside the slab (checked by `bind`), which
            // is aligned, initialised, and dropped after the values; runs are
            // given the values only while they hold `&mut self`.
            unsafe {
                RawValue::over(
                    &self.memory,
                    slab.memory.as_ptr().add(slots.start * bytes).cast(),
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

impl Cache for OnnxCache {
    fn spec(&self) -> &CacheSpec {
        &self.spec
    }

    fn copy_slot(&mut self, from: usize, to: usize) -> Result<()> {
        if from.max(to) >= self.spec.slots {
            return Err(Error::internal(format!(
                "slots {from} and {to} of a cache of {}",
                self.spec.slots
            )));
        }
        for (slab, entry) in self.slabs.iter().zip(&self.spec.entries) {
            let bytes = slot_bytes(&self.spec, entry)?;
            let memory = slab.memory.as_ptr();
            // SAFETY: both slots lie inside the slab; `copy` allows them to be
            // the same.
            unsafe { std::ptr::copy(memory.add(from * bytes), memory.add(to * bytes), bytes) }
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
