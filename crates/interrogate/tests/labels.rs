//! Label lists are read, derived and hashed as clip-interrogator 0.6.0 does it.

mod support;

use std::path::Path;

use imprompt_interrogate::Table;
use imprompt_interrogate::labels::{label_hash, parse_labels};
use support::{golden, golden_json};

#[test]
fn files_are_read_as_the_reference_reads_them() {
    let files = golden_json("labels.json")["files"].clone();
    let files = files.as_array().unwrap();
    assert!(files.len() >= 400);
    for file in files {
        let bytes: Vec<u8> = decode_hex(file[0].as_str().unwrap());
        let expected: Vec<&str> =
            file[1].as_array().unwrap().iter().map(|label| label.as_str().unwrap()).collect();
        assert_eq!(parse_labels(&bytes), expected, "file {}", file[0]);
    }
}

fn decode_hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn check_vocabulary(name: &str, directory: &Path) {
    let hashes = golden_json("labels.json")["hashes"][name].clone();
    for table in Table::ALL {
        let labels = table.labels(directory).unwrap().unwrap();
        let expected = &hashes[table.name()];
        assert_eq!(labels.len() as u64, expected[0].as_u64().unwrap(), "{name} {}", table.name());
        assert_eq!(label_hash(&labels), expected[1].as_str().unwrap(), "{name} {}", table.name());
    }
}

#[test]
fn counts_and_hashes_are_the_references() {
    for name in ["large", "small", "sparse"] {
        check_vocabulary(name, &golden(&format!("vocabulary-{name}")));
    }
}

/// The lists of the 0.6.0 wheel are not kept in this repository. The goldens say what they come
/// to; with the folder of the lists in `IMPROMPT_CLIP_INTERROGATOR_DATA` they are read as well.
#[test]
fn the_wheels_lists_come_out() {
    let hashes = golden_json("labels.json")["hashes"]["wheel"].clone();
    for (table, count, hash) in [
        ("artists", 10530, "d27dcd8c970debac6b1afcea9081ad0e933c687bf3f533de5c043c79113ffdae"),
        ("flavors", 100_970, "bb633ab8d979278bd66fa93c1c668a230f180e299723f4d602a206926d4f87ca"),
        ("mediums", 95, "7fff3ab0b0cf6b850156558b461aace10ffe8df724c9c69cda7960f8478bf74e"),
        ("movements", 200, "c1a02df83850cf77f19d60223fdd32cb01f3ce1d1e815528a3e7aed7087625a4"),
        ("trendings", 72, "7e8797d72ab579ead27ce9a5a87ee2c17bd47a2783caaf789cb3ad8f747b44de"),
        ("negative", 41, "7a92a1eb0c25f06c9ceefec560b9ec68f778aadc5c4831afa98aa5b9eba6afa8"),
    ] {
        assert_eq!(hashes[table], serde_json::json!([count, hash]), "{table}");
    }
    match std::env::var_os("IMPROMPT_CLIP_INTERROGATOR_DATA") {
        Some(directory) => check_vocabulary("wheel", Path::new(&directory)),
        None => eprintln!(
            "not done: the lists of the clip-interrogator 0.6.0 wheel were not read, because \
             IMPROMPT_CLIP_INTERROGATOR_DATA does not name their folder"
        ),
    }
}
