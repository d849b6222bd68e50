//! The index over safetensors files: right ones as the reference reader sees
//! them, wrong ones refused, whatever the bytes.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use imprompt_error::Kind;
use imprompt_graph::weights::{DType, WeightIndex};
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

const FILE: &str = "model.safetensors";

/// A file with this header and `data` bytes after it.
fn write(folder: &Path, header: &str, data: usize) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    std::fs::write(folder.join(FILE), bytes).unwrap();
}

fn refused(folder: &Path, text: &str) {
    let error = WeightIndex::open(folder).unwrap_err();
    assert_eq!(error.kind(), Kind::BadModel, "{error}");
    assert!(error.message().contains(FILE), "{error}");
    assert!(error.message().contains(text), "{text}: {error}");
}

#[test]
fn malformed_headers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert_eq!(WeightIndex::open(folder).unwrap_err().kind(), Kind::NotFound);
    for bytes in [&b""[..], b"1234567"] {
        std::fs::write(folder.join(FILE), bytes).unwrap();
        refused(folder, "too few");
    }
    for length in [1u64, 1 << 40, u64::MAX] {
        std::fs::write(folder.join(FILE), length.to_le_bytes()).unwrap();
        refused(folder, &format!("claims a header of {length} bytes"));
    }
    write(folder, "not json", 0);
    refused(folder, "not that of a safetensors file");
    let tensor = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    for (header, text) in [
        (tensor("F99", "[1]", "[0,4]"), "not that of"),
        (tensor("F32", "[-1]", "[0,4]"), "not that of"),
        (tensor("F32", "[1]", "[0,8]"), "has 8 bytes"),
        (tensor("F32", "[3]", "[0,12]"), "the data has 8 bytes"),
        (tensor("F32", "[1]", "[4,0]"), "lies at bytes 4 to 0"),
        (tensor("F32", "[4294967296,4294967296]", "[0,4]"), "has 4 bytes"),
        (tensor("F32", "[1]", "[18446744073709551612,18446744073709551615]"), "lies at"),
    ] {
        write(folder, &header, 8);
        refused(folder, text);
    }
    let entry = r#"{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
    write(folder, &format!(r#"{{"a":{entry},"a":{entry}}}"#), 4);
    refused(folder, "appears twice");
    write(folder, &format!(r#"{{"a":{entry},"b":{}}}"#, entry.replace("[0,4]", "[3,7]")), 8);
    refused(folder, "overlap");
}

#[test]
fn shards_must_hold_what_is_promised() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let index = |map: &str| {
        let text = format!(r#"{{"metadata": {{}}, "weight_map": {map}}}"#);
        std::fs::write(folder.join("model.safetensors.index.json"), text).unwrap();
    };
    let shard = |file: &str, name: &str| {
        let view = TensorView::new(Dtype::F32, vec![2], &[0; 8]).unwrap();
        let bytes = safetensors::serialize([(name, view)], None).unwrap();
        std::fs::write(folder.join(file), bytes).unwrap();
    };
    shard("one", "a");
    shard("two", "b");
    index(r#"{"a": "one", "b": "two"}"#);
    let weights = WeightIndex::open(folder).unwrap();
    assert_eq!(weights.get("b").unwrap().file, "two");
    assert_eq!(weights.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "b"]);
    let message = |map: &str| {
        index(map);
        WeightIndex::open(folder).unwrap_err().message().to_owned()
    };
    assert!(message(r#"{"a": "two", "b": "two"}"#).contains("tensor a is promised in two"));
    assert!(message(r#"{"a": "three"}"#).contains("three cannot be opened"));
    assert!(message(r#"{"a": "../one"}"#).contains("not a plain file name"));
    assert!(message(r#"{"a": "/etc/passwd"}"#).contains("not a plain file name"));
    assert!(message("{}").contains("names no tensor"));
    shard("two", "a");
    assert!(message(r#"{"a": "one", "b": "two"}"#).contains("tensor a is in one and in two"));
}

#[test]
fn small_tensors_are_read_in_every_float_type() {
    let folder = tempfile::tempdir().unwrap();
    let values = [1.5f32, -0.25];
    let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let f16s: Vec<u8> = values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
    let bf16s: Vec<u8> =
        values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    let view = |dtype, data| TensorView::new(dtype, vec![2], data).unwrap();
    let tensors = HashMap::from([
        ("f32", view(Dtype::F32, &f32s)),
        ("f16", view(Dtype::F16, &f16s)),
        ("bf16", view(Dtype::BF16, &bf16s)),
        ("u16", view(Dtype::U16, &f16s)),
    ]);
    let bytes = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(folder.path().join(FILE), bytes).unwrap();
    let weights = WeightIndex::open(folder.path()).unwrap();
    for name in ["f32", "f16", "bf16"] {
        assert_eq!(weights.read_floats(name).unwrap(), values);
    }
    assert!(weights.read_floats("u16").unwrap_err().message().contains("U16"));
    assert!(weights.get("none").unwrap_err().message().contains("no tensor none"));
    let error = weights.expect("f32", &[2, 1]).unwrap_err();
    assert!(
        error.message().contains("has shape [2], the configuration asks for [2, 1]"),
        "{error}"
    );
}

#[test]
fn a_large_file_costs_what_its_header_costs() {
    let folder = tempfile::tempdir().unwrap();
    let (tensors, each) = (1000u64, 15_000_000u64);
    let entries: Vec<String> = (0..tensors)
        .map(|i| {
            let (begin, end) = (i * each, (i + 1) * each);
            format!(
                r#""layers.{i}.weight":{{"dtype":"F16","shape":[{},1000],"data_offsets":[{begin},{end}]}}"#,
                each / 2000
            )
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut file = File::create(folder.path().join(FILE)).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    // Sparse: nothing is written.
    file.set_len(8 + header.len() as u64 + tensors * each).unwrap();
    drop(file);
    let start = std::time::Instant::now();
    let weights = WeightIndex::open(folder.path()).unwrap();
    assert!(start.elapsed().as_secs() < 5);
    let last = weights.get("layers.999.weight").unwrap();
    assert_eq!(last.dtype, DType::F16);
    assert_eq!(last.offset + last.length, 8 + header.len() as u64 + tensors * each);
    assert!(weights.read_floats("layers.0.weight").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Any file the reference writes is indexed as the reference reads it.
    #[test]
    fn it_agrees_with_the_reference(
        shapes in prop::collection::btree_map("[a-z.]{1,12}", (prop::collection::vec(0usize..5, 0..4), 0usize..4), 0..8)
    ) {
        let kinds = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::U8];
        let data = vec![7u8; 5 * 5 * 5 * 4];
        let tensors: Vec<(&String, TensorView<'_>)> = shapes
            .iter()
            .map(|(name, (shape, kind))| {
                let size = [4, 2, 2, 1][*kind] * shape.iter().product::<usize>();
                (name, TensorView::new(kinds[*kind], shape.clone(), &data[..size]).unwrap())
            })
            .collect();
        let bytes = safetensors::serialize(tensors, None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), &bytes).unwrap();
        let weights = WeightIndex::open(folder.path()).unwrap();
        let reference = SafeTensors::deserialize(&bytes).unwrap();
        prop_assert_eq!(weights.iter().count(), reference.len());
        for (name, weight) in weights.iter() {
            let view = reference.tensor(name).unwrap();
            let shape: Vec<u64> = view.shape().iter().map(|&d| d as u64).collect();
            prop_assert_eq!(&weight.shape, &shape);
            let place = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            if !view.data().is_empty() {
                prop_assert_eq!(weight.offset as usize, place);
            }
            prop_assert_eq!(weight.length as usize, view.data().len());
        }
    }

    /// No bytes make it panic, and what it accepts lies inside the file.
    #[test]
    fn it_is_total(
        header in prop_oneof![
            ".{0,200}",
            r#"\{"a":\{"dtype":"(F32|U8)","shape":\[[0-9]{0,20}(,[0-9]{1,20})?\],"data_offsets":\[[0-9]{1,20},[0-9]{1,20}\]\}(,"b":\{\})?\}"#,
        ],
        length in prop_oneof![Just(None), any::<u64>().prop_map(Some), (0u64..300).prop_map(Some)],
        data in 0usize..64,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = length.unwrap_or(header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        std::fs::write(folder.path().join(FILE), &bytes).unwrap();
        if let Ok(weights) = WeightIndex::open(folder.path()) {
            for (_, weight) in weights.iter() {
                prop_assert!(weight.offset + weight.length <= bytes.len() as u64);
            }
        }
    }
}
