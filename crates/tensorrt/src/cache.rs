//! A decoder's cache on the device.

use std::any::Any;
use std::ops::Range;

use imprompt_cuda::{Buffer, Pitch, Span, Stream};
use imprompt_engine::{Cache, CacheEntry, CacheSpec, SlotLength};
use imprompt_error::{Error, Result};

/// Slots begin at multiples of this: TensorRT takes no other addresses.
const ALIGNMENT: usize = 256;

/// One zeroed buffer an entry. TensorRT's update of a cache in place wants what it reads and what it
/// writes at the same address: a run is given the same span for both.
#[derive(Debug)]
pub(crate) struct TensorRtCache {
    spec: CacheSpec,
    slabs: Vec<Buffer>,
}

impl TensorRtCache {
    /// Allocates it.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` when the sizes do not fit; `Unsupported` when a slot is no multiple
    /// of what TensorRT wants.
    pub(crate) fn new(spec: &CacheSpec, stream: &Stream) -> Result<Self> {
        let sizes = slab_sizes(spec)?;
        let slabs = sizes.into_iter().map(|bytes| stream.zeros(bytes)).collect::<Result<_>>()?;
        Ok(TensorRtCache { spec: spec.clone(), slabs })
    }

    /// The stream that its memory is ordered by.
    pub(crate) fn stream(&self) -> Option<&Stream> {
        self.slabs.first().map(Buffer::stream)
    }

    /// The memory of `slots` of every entry, and its shape.
    ///
    /// # Errors
    /// `Internal` when `slots` is empty or out of range.
    pub(crate) fn spans(
        &self,
        slots: &Range<usize>,
    ) -> Result<Vec<(&CacheEntry, Span<'_>, [usize; 4])>> {
        check_slots(&self.spec, slots)?;
        let entries = self.spec.entries.iter().zip(&self.slabs);
        entries
            .map(|(entry, slab)| {
                let bytes = slot_bytes(&self.spec, entry)?;
                let span = slab.span(slots.start * bytes, slots.len() * bytes)?;
                let shape = [slots.len(), entry.heads, entry.max_length, entry.head_dim];
                Ok((entry, span, shape))
            })
            .collect()
    }
}

impl Cache for TensorRtCache {
    fn spec(&self) -> &CacheSpec {
        &self.spec
    }

    fn copy_slot(&mut self, from: usize, to: usize, length: SlotLength) -> Result<()> {
        for (slab, rows) in self.slabs.iter_mut().zip(rows(&self.spec, from, to, length)?) {
            let stream = slab.stream().clone();
            stream.copy_rows(slab, rows.from, rows.to, rows.pitch)?;
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

fn slot_bytes(spec: &CacheSpec, entry: &CacheEntry) -> Result<usize> {
    Ok(spec.slot_elements(entry)? * spec.element_type.size())
}

/// Bytes of each entry's memory.
fn slab_sizes(spec: &CacheSpec) -> Result<Vec<usize>> {
    // That the whole fits an address is checked, and so does every part.
    spec.bytes()?;
    let size = |entry: &CacheEntry| {
        let bytes = slot_bytes(spec, entry)?;
        if spec.slots > 1 && !bytes.is_multiple_of(ALIGNMENT) {
            return Err(Error::unsupported(format!(
                "{}: a slot of {bytes} bytes; TensorRT takes multiples of {ALIGNMENT}",
                entry.input
            )));
        }
        Ok(spec.slots * bytes)
    };
    spec.entries.iter().map(size).collect()
}

fn check_slots(spec: &CacheSpec, slots: &Range<usize>) -> Result<()> {
    if slots.is_empty() || slots.end > spec.slots {
        return Err(Error::internal(format!(
            "slots {} to {} of a cache of {}",
            slots.start, slots.end, spec.slots
        )));
    }
    Ok(())
}

/// What is copied in one entry's memory.
#[derive(Debug, PartialEq, Eq)]
struct Rows {
    from: usize,
    to: usize,
    pitch: Pitch,
}

/// What is copied where slot `from` is copied to slot `to`: of each head the positions in use.
fn rows(spec: &CacheSpec, from: usize, to: usize, length: SlotLength) -> Result<Vec<Rows>> {
    let CacheSpec { slots, element_type, .. } = *spec;
    let fits = |entry: &CacheEntry| length.of(entry) <= entry.max_length;
    if from.max(to) >= slots || !spec.entries.iter().all(fits) {
        return Err(Error::internal(format!(
            "{} positions and {} of memory of slots {from} and {to} of a cache of {slots}",
            length.positions, length.memory
        )));
    }
    let entry_rows = |entry: &CacheEntry| {
        let slot = slot_bytes(spec, entry)?;
        let position = entry.head_dim * element_type.size();
        let pitch = Pitch {
            rows: entry.heads,
            width: length.of(entry) * position,
            stride: position * entry.max_length,
        };
        Ok(Rows { from: from * slot, to: to * slot, pitch })
    };
    spec.entries.iter().map(entry_rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use imprompt_engine::ElementType;
    use imprompt_error::Kind;

    fn spec() -> CacheSpec {
        let spec = CacheSpec::decoder(1, 2, 32, 3, 8).with_memory(1, 2, 32, 4);
        CacheSpec { element_type: ElementType::F16, ..spec }
    }

    #[test]
    fn slots_are_copied_head_by_head() {
        let copied = rows(&spec(), 2, 0, SlotLength { positions: 5, memory: 4 }).unwrap();
        let of = |stride: usize, width: usize| Rows {
            from: 2 * 2 * stride,
            to: 0,
            pitch: Pitch { rows: 2, width, stride },
        };
        // Keys and values, then those of the memory.
        let entries = [of(512, 320), of(512, 320), of(256, 256), of(256, 256)];
        assert_eq!(copied, entries);
        let refused = |from, to, positions| {
            let length = SlotLength { positions, memory: 0 };
            assert_eq!(rows(&spec(), from, to, length).unwrap_err().kind(), Kind::Internal);
        };
        refused(3, 0, 1);
        refused(0, 3, 1);
        refused(0, 1, 9);
    }

    #[test]
    fn slots_are_in_range_and_begin_where_tensorrt_reads() {
        assert_eq!(slab_sizes(&spec()).unwrap(), [3072, 3072, 1536, 1536]);
        check_slots(&spec(), &(1..3)).unwrap();
        assert!(check_slots(&spec(), &(1..1)).is_err());
        assert!(check_slots(&spec(), &(2..4)).is_err());
        let odd = CacheSpec { element_type: ElementType::F16, ..CacheSpec::decoder(1, 1, 8, 2, 9) };
        let error = slab_sizes(&odd).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.message().contains("past_key_values.0.key: a slot of 144 bytes"), "{error}");
        assert!(slab_sizes(&CacheSpec { slots: 1, ..odd }).is_ok());
    }
}
