//! The header of a safetensors file.
//!
//! Format: <https://huggingface.co/docs/safetensors>: eight bytes of header
//! length (little endian), a JSON header, the data.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

use imprompt_error::{Error, Result};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::{DType, MAX_HEADER_BYTES, Weight, open_file};

#[derive(Deserialize)]
struct Entry {
    dtype: DType,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header's entries; a name that appears twice is an error, which a map
/// would hide.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// Where the tensors of the safetensors file `file` of `folder` lie.
pub(super) fn read(folder: &Path, file: &str) -> Result<BTreeMap<String, Weight>> {
    let path = folder.join(file);
    let wrong = |what: String| Error::bad_model(format!("{}: {what}", path.display()));
    let mut source = open_file(&path)?;
    let file_length = source.metadata().map_err(|e| wrong(e.to_string()))?.len();
    let mut prefix = [0; 8];
    source
        .read_exact(&mut prefix)
        .map_err(|_| wrong(format!("has {file_length} bytes, too few for a safetensors header")))?;
    let header_length = u64::from_le_bytes(prefix);
    let rest = file_length.saturating_sub(8);
    if header_length > MAX_HEADER_BYTES.min(rest) {
        return Err(wrong(format!(
            "claims a header of {header_length} bytes; the file has {rest} after the length, and \
             at most {MAX_HEADER_BYTES} are allowed"
        )));
    }
    let mut header = vec![0; header_length as usize];
    source.read_exact(&mut header).map_err(|e| wrong(format!("header cannot be read: {e}")))?;
    let entries: Entries = serde_json::from_slice(&header)
        .map_err(|e| wrong(format!("header is not that of a safetensors file: {e}")))?;
    place(entries, file, header_length + 8, file_length).map_err(wrong)
}

/// The entries as places in the file; the error says what is wrong.
fn place(
    Entries(entries): Entries,
    file: &str,
    data_start: u64,
    file_length: u64,
) -> Result<BTreeMap<String, Weight>, String> {
    let data_length = file_length - data_start;
    let mut spans = Vec::with_capacity(entries.len());
    let mut tensors = BTreeMap::new();
    for (name, Entry { dtype, shape, data_offsets: [begin, end] }) in entries {
        if begin > end || end > data_length {
            return Err(format!(
                "tensor {name} lies at bytes {begin} to {end}, the data has {data_length} bytes"
            ));
        }
        let length = end - begin;
        let needed = shape.iter().try_fold(dtype.size(), |product, &dim| product.checked_mul(dim));
        if needed != Some(length) {
            return Err(format!(
                "tensor {name} of type {dtype:?} and shape {shape:?} has {length} bytes"
            ));
        }
        if length > 0 {
            spans.push((begin, end));
        }
        let weight =
            Weight { file: file.to_owned(), dtype, shape, offset: data_start + begin, length };
        if tensors.insert(name.clone(), weight).is_some() {
            return Err(format!("tensor {name} appears twice"));
        }
    }
    spans.sort_unstable();
    if let Some(pair) = spans.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        return Err(format!(
            "two tensors overlap at bytes {} to {} of the data",
            pair[1].0, pair[0].1
        ));
    }
    Ok(tensors)
}
