//! What a decoder's cache is made of.

use imprompt_error::{Error, Result};

use crate::ElementType;

/// One slab of a cache: an input of a graph, the output that is written over
/// it, and the sizes that do not change. A graph need not have both: one writes
/// what another reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheEntry {
    /// The input of the graphs that read it.
    pub input: String,
    /// The output of the graphs that write it, bound to the same memory.
    pub output: String,
    /// Positions of a sequence that fit.
    pub max_length: usize,
    /// Heads of keys or values.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// Sizes and names of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// Sequences that fit.
    pub slots: usize,
    /// The type of the elements: [`ElementType::F32`] or [`ElementType::F16`].
    pub element_type: ElementType,
    /// The slabs.
    pub entries: Vec<CacheEntry>,
}

impl CacheSpec {
    /// The cache of a decoder of `layers` equal layers in float32, with the
    /// usual names: `past_key_values.N.key` and `.value`, written as
    /// `present.N.key` and `.value`.
    #[must_use]
    pub fn decoder(
        layers: usize,
        heads: usize,
        head_dim: usize,
        slots: usize,
        max_length: usize,
    ) -> Self {
        let entries = keys_and_values(layers)
            .map(|(layer, kind)| CacheEntry {
                input: format!("past_key_values.{layer}.{kind}"),
                output: format!("present.{layer}.{kind}"),
                max_length,
                heads,
                head_dim,
            })
            .collect();
        CacheSpec { slots, element_type: ElementType::F32, entries }
    }

    /// With as many layers' keys and values of what the decoder looks at by
    /// cross attention, `length` positions of it: `memory.N.key` and `.value`,
    /// written as `present_memory.N.key` and `.value` once a sequence.
    #[must_use]
    pub fn with_memory(
        mut self,
        layers: usize,
        heads: usize,
        head_dim: usize,
        length: usize,
    ) -> Self {
        self.entries.extend(keys_and_values(layers).map(|(layer, kind)| CacheEntry {
            input: format!("memory.{layer}.{kind}"),
            output: format!("present_memory.{layer}.{kind}"),
            max_length: length,
            heads,
            head_dim,
        }));
        self
    }

    /// Elements of one slot of `entry`.
    ///
    /// # Errors
    /// `Internal` when the number does not fit.
    pub fn slot_elements(&self, entry: &CacheEntry) -> Result<usize> {
        entry
            .heads
            .checked_mul(entry.max_length)
            .and_then(|n| n.checked_mul(entry.head_dim))
            .ok_or_else(|| self.too_large())
    }

    /// Bytes of the whole cache.
    ///
    /// # Errors
    /// `Internal` when the number does not fit.
    pub fn bytes(&self) -> Result<usize> {
        self.entries.iter().try_fold(0usize, |total, entry| {
            self.slot_elements(entry)?
                .checked_mul(self.slots)
                .and_then(|n| n.checked_mul(self.element_type.size()))
                .and_then(|n| n.checked_add(total))
                .ok_or_else(|| self.too_large())
        })
    }

    fn too_large(&self) -> Error {
        Error::internal(format!(
            "a cache of {} slots in {} slabs does not fit an address",
            self.slots,
            self.entries.len()
        ))
    }
}

fn keys_and_values(layers: usize) -> impl Iterator<Item = (usize, &'static str)> {
    (0..layers).flat_map(|layer| ["key", "value"].map(|kind| (layer, kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked() {
        let spec = CacheSpec::decoder(2, 3, 4, 5, 6);
        assert_eq!(spec.entries.len(), 4);
        assert_eq!(spec.entries[3].output, "present.1.value");
        assert_eq!(spec.bytes().unwrap(), 4 * 5 * 3 * 6 * 4 * 4);
        let spec = spec.with_memory(2, 3, 4, 10);
        assert_eq!(spec.entries.len(), 8);
        assert_eq!(spec.entries[4].input, "memory.0.key");
        assert_eq!(spec.bytes().unwrap(), 4 * 5 * 3 * (6 + 10) * 4 * 4);
        assert!(CacheSpec::decoder(2, usize::MAX, 4, 5, 6).bytes().is_err());
    }
}
