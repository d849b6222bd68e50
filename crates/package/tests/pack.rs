//! Packages of a repository of the demo captioner: their bytes, their members, what is refused.
#![allow(missing_docs)]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use imprompt_error::Kind;
use imprompt_package::{PackRequest, Packed, pack};
use imprompt_repository::{BuildRequest, Manifest, ModelFolder, Silent, build};
use sha2::{Digest as _, Sha256};

fn repository(folder: &Path) -> PathBuf {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo-blip2");
    let out = folder.join("repository");
    let request = BuildRequest {
        captioner: Some(ModelFolder::open(&model).unwrap()),
        split_captioner: true,
        ..BuildRequest::new(&out)
    };
    build(&request, &Silent).unwrap();
    out
}

/// The least that is a library: an ELF header (System V ABI, chapter 4) for x86-64 that loads nothing.
fn library(code: &str) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    // Type, machine, version; sizes of this header and of one that would load something.
    for (at, value) in [(16, 3), (18, 62), (20, 1), (52, 64), (54, 56)] {
        bytes[at] = value;
    }
    bytes.extend_from_slice(code.as_bytes());
    bytes
}

/// A request for `caption`.
fn request(folder: &Path) -> PackRequest {
    let library = folder.join("libtriton_imprompt.so");
    let companion = folder.join("libonnxruntime.so.1.32.0");
    fs::write(&library, self::library("code")).unwrap();
    fs::write(&companion, self::library("other code")).unwrap();
    PackRequest {
        repository: repository(folder),
        ensemble: "caption".to_owned(),
        library,
        companions: vec![companion],
        out: folder.join("model.tar.gz"),
        level: 1,
    }
}

fn packed(request: &PackRequest) -> (Packed, Vec<u8>) {
    (pack(request, &Silent).unwrap(), fs::read(&request.out).unwrap())
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the system's tar, which the platform uses, makes of it.
fn unpacked(package: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    let done = Command::new("tar").arg("-xzf").arg(package).arg("-C").arg(to).status().unwrap();
    assert!(done.success());
}

#[test]
fn the_same_repository_gives_the_same_bytes() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = request(one.path());
    let (packed_first, bytes) = packed(&first);
    assert_eq!(packed_first.bytes, bytes.len() as u64);
    let again = request(other.path());
    assert!(packed(&again) == (packed_first.clone(), bytes.clone()), "elsewhere and later");
    // Another library, and its name is another.
    fs::write(&again.library, library("newer code")).unwrap();
    let (newer, newer_bytes) = packed(&again);
    assert!(newer.library != packed_first.library && newer_bytes != bytes);
    assert!(newer.library.starts_with("libtriton_imprompt-") && newer.library.ends_with(".so"));
}

#[test]
fn it_holds_what_the_ensemble_needs_and_each_file_once() {
    let folder = tempfile::tempdir().unwrap();
    let request = request(folder.path());
    let (packed, bytes) = packed(&request);
    let out = folder.path().join("unpacked");
    unpacked(&request.out, &out);
    let stages = ["preprocess", "caption_vision", "caption_decoder"];
    let mut folders: Vec<_> = fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    folders.sort();
    assert_eq!(
        folders,
        ["caption", "caption_decoder", "caption_vision", "imprompt.json", "preprocess"]
    );
    let manifest = Manifest::read(&out).unwrap();
    assert_eq!(manifest, packed.manifest);
    assert_eq!(manifest.ensembles, ["caption"]);
    assert_eq!(manifest.stages, stages);
    assert!(manifest.files.len() > 15);
    for file in &manifest.files {
        let content = fs::read(out.join(&file.path)).unwrap();
        assert_eq!(file.bytes, content.len() as u64, "{}", file.path);
        assert_eq!(file.sha256.as_deref(), Some(&*sha256(&content)), "{}", file.path);
        let source = request.repository.join(&file.path);
        if source.exists() && !file.path.ends_with("config.pbtxt") {
            assert!(fs::read(source).unwrap() == content, "{}", file.path);
        }
    }
    let inode = |path: &str| fs::metadata(out.join(path)).unwrap().ino();
    let one = |paths: &[String]| assert!(paths.iter().all(|path| inode(path) == inode(&paths[0])));
    one(&stages[1..]
        .iter()
        .map(|stage| format!("{stage}/1/model.safetensors"))
        .collect::<Vec<_>>());
    for library in [packed.library.as_str(), "libonnxruntime.so.1.32.0"] {
        one(&stages.iter().map(|stage| format!("{stage}/{library}")).collect::<Vec<_>>());
    }
    for stage in stages {
        let config = fs::read_to_string(out.join(stage).join("config.pbtxt")).unwrap();
        assert!(config.contains(&format!("\nruntime: \"{}\"\n", packed.library)), "{config}");
    }
    // The weights are in it once: twice they would not fit.
    let weights = fs::metadata(out.join("caption_vision/1/model.safetensors")).unwrap().len();
    assert!((bytes.len() as u64) < weights * 3 / 2, "{} of {weights}", bytes.len());
}

#[test]
fn a_package_that_was_cut_or_changed_on_its_way_is_not_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    let request = request(folder.path());
    let (_, bytes) = packed(&request);
    let unpacks = |bytes: &[u8]| {
        let package = folder.path().join("received.tar.gz");
        fs::write(&package, bytes).unwrap();
        let tar = Command::new("tar").arg("-tzf").arg(&package).output().unwrap();
        tar.status.success()
    };
    assert!(unpacks(&bytes));
    assert!(!unpacks(&bytes[..bytes.len() / 2]));
    assert!(!unpacks(&bytes[..bytes.len() - 8]), "without gzip's own checksum");
    for place in [0, bytes.len() / 3, bytes.len() / 2, bytes.len() - 6] {
        let mut changed = bytes.clone();
        changed[place] ^= 0x10;
        assert!(!unpacks(&changed), "byte {place} of {}", bytes.len());
    }
}

#[test]
fn what_could_lead_elsewhere_or_is_not_there_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = request(folder.path());
    let refused = |request: &PackRequest, kind: Kind, says: &str| {
        let error = pack(request, &Silent).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(says), "{error}");
        assert!(!request.out.exists(), "nothing is left behind");
    };
    let none = PackRequest { ensemble: "interrogate".to_owned(), ..good.clone() };
    refused(&none, Kind::NotFound, "it has caption");
    let stage = PackRequest { ensemble: "../caption".to_owned(), ..good.clone() };
    refused(&stage, Kind::NotFound, "no such ensemble");
    let missing = PackRequest { library: folder.path().join("none.so"), ..good.clone() };
    refused(&missing, Kind::NotFound, "none.so");
    let link = good.repository.join("preprocess/1/link");
    std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
    refused(&good, Kind::Unsupported, "preprocess/1/link: a link");
    fs::remove_file(&link).unwrap();
    let config = good.repository.join("preprocess/config.pbtxt");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}runtime: \"mine.so\"\n")).unwrap();
    refused(&good, Kind::Unsupported, "config.pbtxt: needs one line");
    fs::write(&config, text).unwrap();
    // A package that was there stays when the new one fails, and is replaced when it does not.
    fs::write(&good.out, "before").unwrap();
    pack(&none, &Silent).unwrap_err();
    assert_eq!(fs::read(&good.out).unwrap(), b"before");
    assert!(packed(&good).1.len() > 6);
}
