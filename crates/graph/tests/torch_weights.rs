//! The reader of `torch.save` files: what PyTorch wrote is found where it lies (goldens of
//! `goldens/torch`), and whatever else the bytes are, nothing runs, panics or leads out of the file.

use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::path::PathBuf;

use imprompt_error::Kind;
use imprompt_graph::weights::{DType, WeightIndex};
use proptest::prelude::*;
use safetensors::SafeTensors;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

const FILE: &str = "pytorch_model.bin";

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens")
}

/// The index of one golden file, as a model's weights.
fn open(name: &str) -> imprompt_error::Result<WeightIndex> {
    WeightIndex::open_files(&goldens().join("torch"), &[name.to_owned()])
}

/// Every tensor's type, shape and bytes.
fn all(weights: &WeightIndex) -> BTreeMap<String, (DType, Vec<u64>, Vec<u8>)> {
    let read = |(name, weight): (&str, &imprompt_graph::weights::Weight)| {
        let file = std::fs::read(weights.folder().join(&weight.file)).unwrap();
        let (start, length) = (weight.offset as usize, weight.length as usize);
        let bytes = file[start..start + length].to_vec();
        (name.to_owned(), (weight.dtype, weight.shape.clone(), bytes))
    };
    weights.iter().map(read).collect()
}

#[test]
fn every_type_and_view_is_found_where_it_lies() {
    let bytes = std::fs::read(goldens().join("torch/mixed.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let weights = open("mixed.bin").unwrap();
    let found = all(&weights);
    let views = ["transposed", "column", "repeated"];
    for (name, view) in expected.tensors() {
        assert!(weights.contains(&name));
        if views.contains(&&*name) {
            let error = weights.get(&name).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported);
            assert!(error.message().contains("is a view with the strides"), "{error}");
            assert!(error.message().contains("safe_serialization=True"), "{error}");
            continue;
        }
        let (dtype, shape, bytes) = &found[&name];
        assert_eq!(format!("{dtype:?}"), format!("{:?}", view.dtype()), "{name}");
        assert!(shape.iter().map(|&dim| dim as usize).eq(view.shape().iter().copied()), "{name}");
        assert_eq!(bytes, view.data(), "{name}");
        assert!(weights.get(&name).unwrap().offset.is_multiple_of(dtype.size()));
    }
    assert_eq!(found.len() + views.len(), expected.len());
    // Shared storages stay shared.
    assert_eq!(weights.get("tied").unwrap(), weights.get("f32").unwrap());
    assert_eq!(weights.get("rows").unwrap().offset, weights.get("f32").unwrap().offset + 32);
}

#[test]
fn a_model_is_the_same_in_both_formats() {
    for name in ["gelu_f16", "sharded_bf16"] {
        let torch = WeightIndex::open(&goldens().join("torch").join(name)).unwrap();
        let safetensors = WeightIndex::open(&goldens().join("clip").join(name)).unwrap();
        assert!(torch.iter().all(|(_, weight)| weight.file.ends_with(".bin")));
        assert_eq!(all(&torch), all(&safetensors), "{name}");
    }
}

#[test]
fn safetensors_go_first() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| {
        std::fs::copy(goldens().join("torch").join(from), folder.path().join(to)).unwrap();
    };
    copy("hostile.bin", FILE);
    copy("mixed.safetensors", "model.safetensors");
    assert_eq!(WeightIndex::open(folder.path()).unwrap().get("f32").unwrap().shape, [6, 4]);
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert!(WeightIndex::open(folder.path()).is_err());
}

#[test]
fn other_formats_are_refused_by_name() {
    for (file, kind, text) in [
        ("old_format.bin", Kind::Unsupported, "is in the format of PyTorch before 1.6"),
        ("program.bin", Kind::Unsupported, "is a TorchScript program"),
        ("hostile.bin", Kind::BadModel, "asks for \"posix.system\""),
        ("no such.bin", Kind::NotFound, "cannot be opened"),
    ] {
        let error = open(file).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(file) && error.message().contains(text), "{error}");
    }
}

/// A checkpoint with this pickle and storage `0` of `storage` bytes.
fn archive(pickle: &[u8], storage: usize) -> Vec<u8> {
    aligned(pickle, storage, 64)
}

fn aligned(pickle: &[u8], storage: usize, alignment: u16) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(vec![]));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment(alignment);
    for (name, bytes) in
        [("m/data.pkl", pickle), ("m/byteorder", b"little"), ("m/data/0", &vec![7; storage])]
    {
        zip.start_file(name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn index(bytes: &[u8]) -> imprompt_error::Result<Vec<(u64, u64)>> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE), bytes).unwrap();
    let weights = WeightIndex::open(folder.path())?;
    Ok(weights.iter().map(|(_, weight)| (weight.offset, weight.length)).collect())
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A 32-bit integer, which may be negative.
fn int(value: i32) -> Vec<u8> {
    [b"J", &value.to_le_bytes()[..]].concat()
}

/// What `torch.save` writes for one float32 tensor of one dimension in storage `key`.
fn tensor(key: &str, elements: i32, offset: i32, size: i32, stride: i32) -> Vec<u8> {
    let parts: [&[u8]; 13] = [
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text(key),
        &text("cpu"),
        &int(elements),
        b"tQ",
        &int(offset),
        &int(size),
        b"\x85",
        &int(stride),
        b"\x85",
        b"\x89ccollections\nOrderedDict\n)RtR",
    ];
    parts.concat()
}

/// A dictionary of these names and values.
fn dictionary(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}(".to_vec();
    for (name, value) in items {
        pickle.extend([text(name), value.clone()].concat());
    }
    pickle.extend(b"u.");
    pickle
}

#[test]
fn tensors_stay_inside_their_storages() {
    let good = archive(&dictionary(&[("a", tensor("0", 4, 1, 3, 1))]), 16);
    let [(offset, length)] = index(&good).unwrap()[..] else { panic!() };
    assert_eq!(length, 12);
    assert_eq!(good[offset as usize..][..12], [7; 12]);
    for (value, what) in [
        (tensor("0", 4, 1, 4, 1), "reaches element 4 of its storage, which has 4"),
        (tensor("0", 4, 0, 2, 4), "reaches element 4"),
        (tensor("0", 4, 5, 0, 1), "reaches element 5"),
        (tensor("0", 5, 0, 1, 1), "its file has 16 bytes"),
        (tensor("0", i32::MAX, 0, 1, 1), "its file has 16 bytes"),
        (tensor("1", 4, 0, 4, 1), "file data/1 of the archive is missing"),
        (tensor("../data.pkl", 4, 0, 4, 1), "is missing"),
        (tensor("0", -1, 0, 1, 1), "a storage that torch.save does not write"),
        (tensor("0", 4, -1, 1, 1), "a tensor that torch.save does not write"),
        (tensor("0", 4, 0, -1, 1), "a tensor that torch.save does not write"),
        (tensor("0", 4, 0, 1, -1), "a tensor that torch.save does not write"),
    ] {
        let error = index(&archive(&dictionary(&[("a", value)]), 16)).unwrap_err();
        assert_eq!(error.kind(), Kind::BadModel);
        assert!(error.message().contains(what), "{what}: {error}");
    }
    let twice = dictionary(&[("a", tensor("0", 4, 0, 4, 1)), ("a", tensor("0", 4, 0, 4, 1))]);
    let error = index(&archive(&twice, 16)).unwrap_err();
    assert!(error.message().contains("tensor a appears twice"), "{error}");
    let mut cut = good.clone();
    cut.truncate(good.len() - 30);
    assert!(index(&cut).unwrap_err().message().contains("a zip archive"));
    // The directory's entry of data/0, the last: its method becomes deflate.
    let mut compressed = good.clone();
    let entry = good.windows(4).rposition(|window| window == b"PK\x01\x02").unwrap();
    compressed[entry + 10] = 8;
    let error = index(&compressed).unwrap_err();
    assert!(error.message().contains("file data/0 of the archive is compressed"), "{error}");
}

#[test]
fn hostile_pickles_are_refused() {
    let depth = 1_000_000;
    let laughs: Vec<u8> = (0..1000u32)
        .flat_map(|i| [&b"r"[..], &i.to_le_bytes(), b"j", &i.to_le_bytes(), b"\x86"].concat())
        .collect();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"".to_vec(), "ends in the middle"),
        (b"\x80\x04.".to_vec(), "is a pickle of protocol 4"),
        (b"\x80\x02.".to_vec(), "takes a value where its pickle has none"),
        (b"\x80\x02)R.".to_vec(), "takes a value"),
        (b"\x80\x02(t(.".to_vec(), "takes a value"),
        (b"\x80\x02cbuiltins\neval\n(X\x01\x00\x00\x001tR.".to_vec(), "asks for \"builtins.eval\""),
        (b"\x80\x02ctorch\nload\n.".to_vec(), "never run"),
        (b"\x80\x02cos\nsystem".to_vec(), "ends in the middle"),
        // INST, OBJ, NEWOBJ, STACK_GLOBAL, EXT1
        (b"\x80\x02(ios\nsystem\n.".to_vec(), "operation 0x69"),
        (b"\x80\x02(o.".to_vec(), "operation 0x6f"),
        (b"\x80\x02\x81.".to_vec(), "operation 0x81"),
        (b"\x80\x02\x93.".to_vec(), "operation 0x93"),
        (b"\x80\x02\x82\x01.".to_vec(), "operation 0x82"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.".to_vec(), "calls OrderedDict with 1"),
        (b"\x80\x02})R.".to_vec(), "calls what is no function"),
        (b"\x80\x02}}b}b.".to_vec(), "is there"),
        (b"\x80\x02N}b.".to_vec(), "sets attributes of what is no dictionary"),
        (b"\x80\x02N(NNu.".to_vec(), "sets items of what is no dictionary"),
        (b"\x80\x02}(Nu.".to_vec(), "a key without a value"),
        (b"\x80\x02}NNs.".to_vec(), "a key that is no text"),
        (b"\x80\x02h\x00.".to_vec(), "refers to a value that is not there"),
        (b"\x80\x02NQ.".to_vec(), "a storage that torch.save does not write"),
        (b"\x80\x02X\xff\xff\xff\xffa.".to_vec(), "ends in the middle"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.".to_vec(), "not UTF-8"),
        (b"\x80\x02\x8a\x09aaaaaaaaa.".to_vec(), "an integer of 9 bytes"),
        ([b"\x80\x02N", &b"\x85".repeat(depth)[..], b"."].concat(), "no dictionary of tensors"),
        ([b"\x80\x02N", &laughs[..], b"."].concat(), "no dictionary of tensors"),
        ([b"\x80\x02", &b"}".repeat(3 << 20)[..], b"."].concat(), "has more than 2097152 values"),
        (vec![b'N'; (16 << 20) + 1], "16777217 bytes, 16777216 allowed"),
    ];
    for (pickle, what) in cases {
        let shown = &pickle[..pickle.len().min(40)];
        let result = index(&archive(&pickle, 16));
        match what {
            // Attributes are passed over.
            "is there" => assert_eq!(result.unwrap(), []),
            _ => {
                let error = result.unwrap_err();
                assert_eq!(error.kind(), Kind::BadModel, "{error}");
                assert!(error.message().contains(what), "{what}: {error} {shown:?}");
            }
        }
    }
    // A dictionary that holds itself.
    assert_eq!(index(&archive(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", 0)).unwrap(), []);
}

#[test]
fn values_that_are_no_tensors_are_named_where_they_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let pickle = dictionary(&[("epoch", int(3)), ("a", tensor("0", 4, 0, 4, 1))]);
    let bytes = archive(&pickle, 16);
    std::fs::write(folder.path().join(FILE), bytes).unwrap();
    let weights = WeightIndex::open(folder.path()).unwrap();
    assert_eq!(weights.read_floats("a").unwrap().len(), 4);
    let error = weights.get("epoch").unwrap_err();
    assert!(error.message().contains("pytorch_model.bin: tensor epoch is no tensor"), "{error}");
}

/// Another tool's archive may begin its files anywhere.
#[test]
fn elements_lie_at_multiples_of_their_size() {
    let folder = tempfile::tempdir().unwrap();
    let mut aligned_ones = 0;
    for extra in 0..4 {
        let name = "a".repeat(extra + 1);
        let pickle = dictionary(&[(&name, tensor("0", 4, 0, 4, 1))]);
        std::fs::write(folder.path().join(FILE), aligned(&pickle, 16, 1)).unwrap();
        match WeightIndex::open(folder.path()).unwrap().get(&name) {
            Ok(weight) => aligned_ones += u32::from(weight.offset % 4 == 0),
            Err(error) => assert!(error.message().contains("no multiple of 4"), "{error}"),
        }
    }
    assert_eq!(aligned_ones, 1);
}

fn mixed() -> &'static [u8] {
    static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    BYTES.get_or_init(|| std::fs::read(goldens().join("torch/mixed.bin")).unwrap())
}

fn lies_inside(bytes: &[u8]) -> bool {
    let fits = |&(offset, length): &(u64, u64)| offset + length <= bytes.len() as u64;
    index(bytes).is_ok_and(|places| places.iter().all(fits))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Damaged files of PyTorch: whatever is accepted lies inside the file.
    #[test]
    fn damage_is_harmless(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let mut bytes = mixed().to_vec();
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        prop_assert!(lies_inside(&bytes) || index(&bytes).is_err());
    }

    /// Pickles of the operations that are known, in any order.
    #[test]
    fn any_pickle_is_read_or_refused(
        steps in prop::collection::vec(
            prop_oneof![
                prop::sample::select(vec![&b"("[..], b"}", b")", b"t", b"\x85", b"\x86", b"\x87", b"u", b"s", b"R", b"Q", b"b", b"N",
                    b"h\x00", b"q\x00", b"h\x01", b"q\x01", b"j\x00\x00\x00\x00", b"K\x01", b"M\x00\x01", b"\x8a\x01\xff",
                    b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n",
                    b"ccollections\nOrderedDict\n", b"X\x01\x00\x00\x000", b"X\x07\x00\x00\x00storage", b"\x88", b"."])
                    .prop_map(<[u8]>::to_vec),
                (0i32..6, -1i32..6, -1i32..6, -1i32..6).prop_map(|(n, o, s, t)| tensor("0", n, o, s, t)),
                any::<u8>().prop_map(|byte| vec![byte]),
            ],
            0..40,
        )
    ) {
        let pickle = [&b"\x80\x02}("[..], &steps.concat(), b"u."].concat();
        let bytes = archive(&pickle, 16);
        prop_assert!(lies_inside(&bytes) || index(&bytes).is_err());
    }
}
