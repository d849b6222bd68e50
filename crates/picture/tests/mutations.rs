//! No input makes the decoder panic, hang or take memory beyond its limits.

mod common;

use common::{file, goldens};
use imprompt_error::Kind;
use imprompt_picture::{Limits, decode};
use proptest::prelude::*;

/// Small enough that a header that lies costs little.
const LIMITS: Limits = Limits { encoded_bytes: 1 << 20, side: 512, pixels: 1 << 16 };

/// A panic inside a decoding library would be told as this; it is caught, and still a fault.
fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    match decode(bytes, &LIMITS) {
        Ok(image) => {
            prop_assert!(image.width() <= 512 && image.height() <= 512);
            prop_assert_eq!(image.pixels().len(), image.width() * image.height() * 3);
        }
        Err(error) => {
            prop_assert_eq!(error.kind(), Kind::InvalidInput, "{}", error);
            prop_assert!(
                error.message().starts_with("input `image`: ") && error.message().is_ascii()
            );
        }
    }
    Ok(())
}

fn small_files() -> Vec<Vec<u8>> {
    let mut names: Vec<_> = std::fs::read_dir(goldens().join("files"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with("exif_64k"))
        .collect();
    names.sort();
    assert!(names.len() > 90, "{} files", names.len());
    names.iter().map(|name| file(name)).filter(|bytes| bytes.len() < 16_000).collect()
}

/// One change of a file: a byte, a run removed, a run doubled, an end cut.
#[derive(Clone, Debug)]
enum Change {
    Byte(prop::sample::Index, u8),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
    Cut(prop::sample::Index),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        match self {
            Change::Byte(place, value) => {
                let place = place.index(bytes.len());
                bytes[place] = *value;
            }
            Change::Remove(place, length) => {
                let start = place.index(bytes.len());
                bytes.drain(start..(start + length).min(bytes.len()));
            }
            Change::Repeat(place, length) => {
                let start = place.index(bytes.len());
                let run = bytes[start..(start + length).min(bytes.len())].to_vec();
                bytes.splice(start..start, run);
            }
            Change::Cut(place) => bytes.truncate(place.index(bytes.len())),
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(place, value)| Change::Byte(place, value)),
        1 => (any::<prop::sample::Index>(), 1..40_usize).prop_map(|(place, length)| Change::Remove(place, length)),
        1 => (any::<prop::sample::Index>(), 1..40_usize).prop_map(|(place, length)| Change::Repeat(place, length)),
        1 => any::<prop::sample::Index>().prop_map(Change::Cut),
    ]
}

/// Makes a PNG's CRCs right again, so that changes reach what lies behind them.
fn mend(bytes: &mut [u8]) {
    let mut place = 8;
    while let Some(length) = bytes.get(place..place + 4) {
        let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
        let end = place.saturating_add(8).saturating_add(length);
        let Some(body) = bytes.get(place + 4..end) else { return };
        let crc = crc32fast::hash(body).to_be_bytes();
        let Some(stored) = bytes.get_mut(end..end + 4) else { return };
        stored.copy_from_slice(&crc);
        place = end + 4;
    }
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(3000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        check(&bytes)?;
    }

    #[test]
    fn arbitrary_bytes_after_a_magic(
        magic in prop::sample::select(vec![
            &b"\xff\xd8\xff"[..], b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"RIFF\xff\0\0\0WEBP", b"GIF89a",
            b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0", b"data:image/png;base64,", b"iVBORw0KGgo",
        ]),
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        check(&[magic, &bytes].concat())?;
    }

    #[test]
    fn changed_files(
        bytes in prop::sample::select(small_files()),
        changes in prop::collection::vec(change(), 1..6),
        mended in any::<bool>(),
    ) {
        let mut bytes = bytes;
        for change in &changes {
            change.apply(&mut bytes);
        }
        if mended && bytes.starts_with(b"\x89PNG") {
            mend(&mut bytes);
        }
        check(&bytes)?;
    }
}
