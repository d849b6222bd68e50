//! How exactly a graph's float32 is multiplied, told in the model's `metadata_props`: who does not know it multiplies whole
//! float32.

use crate::{Model, StringEntry};

/// The entry's key, PyTorch's name.
const KEY: &str = "float32_matmul_precision";
/// Its only value.
const HIGH: &str = "high";

impl Model {
    /// Says that half of float32's products will do: those of a number's first sixteen bits, of 24.
    pub fn set_high_precision(&mut self) {
        let entry = StringEntry { key: Some(KEY.to_owned()), value: Some(HIGH.to_owned()) };
        self.metadata_props.push(entry);
    }

    /// Whether that is said.
    #[must_use]
    pub fn is_high_precision(&self) -> bool {
        let of = |entry: &StringEntry| entry.key() == KEY && entry.value() == HIGH;
        self.metadata_props.iter().any(of)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn is_read_back() {
        let mut model = Model::default();
        assert!(!model.is_high_precision());
        model.set_high_precision();
        let read = Model::decode(model.encode_to_vec().as_slice()).unwrap();
        assert!(read.is_high_precision() && read == model);
    }
}
