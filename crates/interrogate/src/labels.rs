//! Label lists: how their files are read, which lists are derived, and their hash
//! (`load_list`, `load_clip_model` and `LabelTable` of clip_interrogator.py).

use std::path::Path;

use imprompt_error::{Error, Kind, Result};
use sha2::{Digest, Sha256};

/// The 18 sites of the trending phrases, in order. `dribble` is spelt as in the 0.6.0 wheel: the
/// label hash, and with it every cache file made by that version, depends on it.
const TRENDING_SITES: [&str; 18] = [
    "Artstation",
    "behance",
    "cg society",
    "cgsociety",
    "deviantart",
    "dribble",
    "flickr",
    "instagram",
    "pexels",
    "pinterest",
    "pixabay",
    "pixiv",
    "polycount",
    "reddit",
    "shutterstock",
    "tumblr",
    "unsplash",
    "zbrush central",
];

/// Splits the bytes of a label file into labels, a label a line.
///
/// As the reference reads it: UTF-8 with each malformed sequence replaced by U+FFFD, lines ended by
/// `\n`, `\r\n` or `\r`, white space of both ends stripped, empty lines kept, and no label after the
/// last line end.
pub fn parse_labels(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let mut rest = text.as_ref();
    let mut labels = Vec::new();
    while !rest.is_empty() {
        let (line, tail) = match rest.find(['\n', '\r']) {
            Some(end) if rest[end..].starts_with("\r\n") => (&rest[..end], &rest[end + 2..]),
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => (rest, ""),
        };
        labels.push(line.trim_matches(is_python_space).to_owned());
        rest = tail;
    }
    labels
}

/// `str.isspace` of Python: Unicode's White_Space and the four ASCII separators.
fn is_python_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// Reads a label file, see [`parse_labels`].
///
/// # Errors
/// [`Kind::NotFound`] when the file does not exist, [`Kind::BadModel`] when it cannot be read.
pub fn read_labels(path: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(path).map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            _ => Kind::BadModel,
        };
        Error::new(kind, format!("label file {}: {error}", path.display()))
    })?;
    Ok(parse_labels(&bytes))
}

/// The labels of the artists table: every `by NAME`, then every `inspired by NAME`.
pub fn artist_labels(names: &[String]) -> Vec<String> {
    let by = names.iter().map(|name| format!("by {name}"));
    by.chain(names.iter().map(|name| format!("inspired by {name}"))).collect()
}

/// The 72 labels of the trendings table, which has no file.
pub fn trending_labels() -> Vec<String> {
    let sites = || TRENDING_SITES.iter();
    sites()
        .map(|site| (*site).to_owned())
        .chain(sites().map(|site| format!("trending on {site}")))
        .chain(sites().map(|site| format!("featured on {site}")))
        .chain(sites().map(|site| format!("{site} contest winner")))
        .collect()
}

/// The hash that ties a file of embeddings to its labels: SHA-256 of the labels joined by `,`, as
/// 64 lower-case hexadecimal digits.
pub fn label_hash(labels: &[String]) -> String {
    let mut digest = Sha256::new();
    for (index, label) in labels.iter().enumerate() {
        if index > 0 {
            digest.update(b",");
        }
        digest.update(label.as_bytes());
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_python_reads_them() {
        assert_eq!(parse_labels(b""), [""; 0]);
        assert_eq!(parse_labels(b"a\n"), ["a"]);
        assert_eq!(parse_labels(b"a\n\nb "), ["a", "", "b"]);
        assert_eq!(parse_labels(b"a\r\nb\rc\n\r"), ["a", "b", "c", ""]);
        assert_eq!(parse_labels("\u{1c}\u{a0}a b\u{3000}\x0b\n".as_bytes()), ["a b"]);
        assert_eq!(parse_labels("\u{feff}a\u{2028}b".as_bytes()), ["\u{feff}a\u{2028}b"]);
        assert_eq!(
            parse_labels(b"caf\xe9\n\xed\xa0\x80"),
            ["caf\u{fffd}", "\u{fffd}\u{fffd}\u{fffd}"]
        );
    }

    #[test]
    fn artists_come_in_two_blocks() {
        let labels = artist_labels(&["A".to_owned(), "B, Jr.".to_owned()]);
        assert_eq!(labels, ["by A", "by B, Jr.", "inspired by A", "inspired by B, Jr."]);
    }

    #[test]
    fn trendings_have_the_hash_of_the_wheel() {
        let labels = trending_labels();
        assert_eq!(labels.len(), 72);
        assert_eq!(
            label_hash(&labels),
            "7e8797d72ab579ead27ce9a5a87ee2c17bd47a2783caaf789cb3ad8f747b44de"
        );
    }

    #[test]
    fn the_hash_of_no_labels_is_that_of_nothing() {
        assert!(label_hash(&[]).starts_with("e3b0c44298fc1c149afbf4c8996fb924"));
    }
}
