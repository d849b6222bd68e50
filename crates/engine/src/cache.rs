//! What a decoder's cache is made of.

use imprompt_error::{Error, Result};

use crate::ElementType;

/// One slab of a cache: an input of the graph, the output that is written over
/// it, and the sizes that do not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheEntry {
    /// The graph's input.
    pub input: String,
    /// The graph's output, bound to the same memory.
    pub output: String,
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
    /// Tokens of a sequence that fit.
    pub max_length: usize,
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
        let entries = (0..layers)
            .flat_map(|layer| ["key", "value"].map(|kind| (layer, kind)))
            .map(|(layer, kind)| CacheEntry {
                input: format!("past_key_values.{layer}.{kind}"),
                output: format!("present.{layer}.{kind}"),
                heads,
                head_dim,
            })
            .collect();
        CacheSpec { slots, max_length, element_type: ElementType::F32, entries }
    }

    /// Elements of one slot of `entry`.
    ///
    /// # Errors
    /// `Internal` when the number does not fit.
    pub fn slot_elements(&self, entry: &CacheEntry) -> Result<usize> {
        entry
            .heads
            .checked_mul(self.max_length)
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
            "a cache of {} slots of {} tokens in {} slabs does not fit an address",
            self.slots,
            self.max_length,
            self.entries.len()
        ))
    }
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
        assert!(CacheSpec::decoder(2, usize::MAX, 4, 5, 6).bytes().is_err());
    }
}
