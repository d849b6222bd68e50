//! The character tables of the cleaning rules, read once out of
//! `data/repair.json` (made by `goldens/text/make_tables.py` from ftfy 6.1.1
//! and Python's `html` module).

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use regex::Regex;
use serde::Deserialize;

#[derive(Deserialize)]
struct File {
    badness: String,
    encodings: Vec<(String, String)>,
    windows_1252: String,
    clues: Clues<String>,
    ligatures: HashMap<char, String>,
    widths: HashMap<char, String>,
    entities: HashMap<String, String>,
    upper_case_entities: HashMap<String, String>,
    replaced_references: HashMap<u32, String>,
    removed_references: HashSet<u32>,
}

/// Characters that bytes of UTF-8 turn into under single-byte encodings.
#[derive(Deserialize)]
pub(super) struct Clues<Set> {
    pub(super) utf8_first_of_2: Set,
    pub(super) utf8_first_of_3: Set,
    pub(super) utf8_first_of_4: Set,
    pub(super) utf8_continuation: Set,
    pub(super) utf8_continuation_strict: Set,
}

/// A single-byte encoding, from character to byte.
pub(super) struct Encoding {
    /// The first in the list, whose bytes are the first 256 code points.
    pub(super) latin_1: bool,
    /// Unassigned bytes stand for themselves, and U+FFFD is byte 0x1A.
    pub(super) sloppy: bool,
    bytes: HashMap<char, u8>,
}

impl Encoding {
    /// The text's bytes, when each of its characters has one.
    pub(super) fn encode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars()
            .map(|c| match c {
                '\x1a' => self.bytes.get(&c).copied(),
                '\0'..='\x7f' => Some(c as u8),
                _ => self.bytes.get(&c).copied(),
            })
            .collect()
    }
}

pub(super) struct Tables {
    pub(super) badness: Regex,
    pub(super) encodings: Vec<Encoding>,
    /// Bytes 0x80 to 0xFF in Windows-1252; `None` where it assigns nothing.
    pub(super) windows_1252: Vec<Option<char>>,
    pub(super) clues: Clues<HashSet<char>>,
    pub(super) ligatures: HashMap<char, String>,
    pub(super) widths: HashMap<char, String>,
    /// HTML5's named references, without `&`, with `;` where it is required.
    pub(super) entities: HashMap<String, String>,
    /// The names in capitals that ftfy takes besides.
    pub(super) upper_case_entities: HashMap<String, String>,
    /// Numeric references with a meaning of their own.
    pub(super) replaced_references: HashMap<u32, String>,
    /// Numeric references that mean nothing.
    pub(super) removed_references: HashSet<u32>,
}

/// The tables. The file is part of the build and every part of it is read by
/// the tests, so that it parses.
pub(super) static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let file: File = serde_json::from_str(include_str!("../../data/repair.json"))
        .expect("the built-in tables are JSON");
    let set = |text: String| text.chars().collect::<HashSet<char>>();
    Tables {
        badness: Regex::new(&file.badness).expect("the built-in expression is valid"),
        encodings: file
            .encodings
            .iter()
            .map(|(name, text)| Encoding {
                latin_1: name == "latin-1",
                sloppy: name.starts_with("sloppy"),
                bytes: text.chars().zip((0x80..=0xff).chain([0x1a])).collect(),
            })
            .collect(),
        windows_1252: file.windows_1252.chars().map(|c| (c != '\0').then_some(c)).collect(),
        clues: Clues {
            utf8_first_of_2: set(file.clues.utf8_first_of_2),
            utf8_first_of_3: set(file.clues.utf8_first_of_3),
            utf8_first_of_4: set(file.clues.utf8_first_of_4),
            utf8_continuation: set(file.clues.utf8_continuation),
            utf8_continuation_strict: set(file.clues.utf8_continuation_strict),
        },
        ligatures: file.ligatures,
        widths: file.widths,
        entities: file.entities,
        upper_case_entities: file.upper_case_entities,
        replaced_references: file.replaced_references,
        removed_references: file.removed_references,
    }
});
