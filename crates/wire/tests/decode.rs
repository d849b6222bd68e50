//! What the decoder takes and refuses, and properties that hold for any bytes.

use std::borrow::Cow;

use imprompt_error::Kind;
use imprompt_wire::{Limits, PREFIX_BYTES, decode, decode_one, elements, encode};
use proptest::prelude::*;

fn refused(pieces: &[&[u8]], count: usize, limits: &Limits) -> String {
    let error = decode("labels", pieces, count, limits).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidInput);
    if let [piece] = pieces {
        // The borrowing path answers in the same words.
        let borrowed = elements("labels", piece, count, limits).and_then(Iterator::collect);
        assert_eq!(borrowed.map(|found: Vec<_>| found.len()), Err(error.clone()));
    }
    error.message().to_string()
}

#[test]
fn refusals_name_tensor_and_numbers() {
    let any = Limits::default();
    assert_eq!(refused(&[], 0, &any), "labels: 0 elements, at least 1 needed");
    assert_eq!(
        refused(&[], 1, &any),
        "labels: 0 bytes are too few for 1 elements, each has a length of 4 bytes"
    );
    assert_eq!(
        refused(&[b"\x64\0\0\0abc"], 1, &any),
        "labels: element 0 declares 100 bytes, 3 follow"
    );
    assert_eq!(
        refused(&[b"\xff\xff\xff\xffabc"], 1, &any),
        "labels: element 0 declares 4294967295 bytes, 3 follow"
    );
    assert_eq!(
        refused(&[b"\x03\0\0\0abc\x01\0"], 2, &any),
        "labels: 2 bytes where the length of element 1 of 2 should be"
    );
    assert_eq!(
        refused(&[b"\x01\0\0\0abc"], 1, &any),
        "labels: 2 bytes follow the last of 1 elements"
    );
    assert_eq!(
        refused(&[b"\0\0\0\0\0\0\0\0"], 1, &any),
        "labels: 4 bytes follow the last of 1 elements"
    );
    let tight = Limits { max_elements: 2, max_element_bytes: 2, max_bytes: 14, ..any };
    assert_eq!(refused(&[&[0; 12]], 3, &tight), "labels: 3 elements, at most 2 allowed");
    assert_eq!(
        refused(&[b"\x03\0\0\0abc"], 1, &tight),
        "labels: element 0 has 3 bytes, at most 2 allowed"
    );
    assert_eq!(refused(&[&[0; 15]], 2, &tight), "labels: 15 bytes, at most 14 allowed");
    // A count that no memory could hold is refused before anything is reserved.
    assert!(refused(&[&[0; 15]], usize::MAX, &any).contains("too few"));
}

#[test]
fn no_element_at_all_can_be_allowed() {
    let optional = Limits { min_elements: 0, ..Limits::default() };
    assert!(decode("labels", &[], 0, &optional).unwrap().is_empty());
    assert_eq!(refused(&[b"x"], 0, &optional), "labels: 1 bytes follow the last of 0 elements");
}

#[test]
fn one_piece_is_borrowed() {
    let bytes = encode("labels", &["one", "", "three"]).unwrap();
    let found = decode("labels", &[&bytes], 3, &Limits::default()).unwrap();
    assert!(found.iter().all(|element| matches!(element, Cow::Borrowed(_))));
    assert_eq!(found, [&b"one"[..], b"", b"three"]);
}

#[test]
fn one_element_is_borrowed() {
    let limits = Limits::one(5);
    assert_eq!(decode_one("image", b"\x02\0\0\0ab", &limits).unwrap(), b"ab");
    for wrong in [&b""[..], b"\x02\0\0", b"\x03\0\0\0ab", b"\x01\0\0\0ab", b"\x06\0\0\0abcdef"] {
        let one = decode_one("image", wrong, &limits).unwrap_err();
        assert_eq!(one, decode("image", &[wrong], 1, &limits).unwrap_err());
    }
}

#[test]
fn only_a_straddling_element_is_copied() {
    let bytes = encode("labels", &["first", "second"]).unwrap();
    // Cuts the prefix of the second element, and that element itself.
    let pieces = [&bytes[..11], &[], &bytes[11..15], &bytes[15..]];
    let found = decode("labels", &pieces, 2, &Limits::default()).unwrap();
    assert_eq!(found, [&b"first"[..], b"second"]);
    assert!(matches!(found[0], Cow::Borrowed(_)));
    assert!(matches!(found[1], Cow::Owned(_)));
}

fn split(bytes: &[u8], mut cuts: Vec<usize>) -> Vec<&[u8]> {
    cuts.iter_mut().for_each(|cut| *cut %= bytes.len() + 1);
    cuts.sort_unstable();
    let ends = cuts.iter().copied().chain([bytes.len()]);
    let starts = [0].into_iter().chain(cuts.iter().copied());
    starts.zip(ends).map(|(start, end)| &bytes[start..end]).collect()
}

proptest! {
    #[test]
    fn what_was_written_is_read(
        texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..12),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let bytes = encode("labels", &texts).unwrap();
        let pieces = split(&bytes, cuts);
        let found = decode("labels", &pieces, texts.len(), &Limits::default()).unwrap();
        prop_assert_eq!(&found, &texts);
        // And every other count is refused.
        for count in [texts.len() - 1, texts.len() + 1] {
            prop_assert!(decode("labels", &pieces, count, &Limits::default()).is_err());
        }
    }

    #[test]
    fn any_bytes_split_anywhere_give_one_answer(
        bytes in prop::collection::vec(prop_oneof![3 => 0u8..4, 1 => any::<u8>()], 0..80),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
        count in 0usize..8,
        max_element_bytes in 0usize..40,
    ) {
        let limits = Limits { min_elements: 0, max_element_bytes, ..Limits::default() };
        let whole = decode("labels", &[&bytes], count, &limits);
        prop_assert_eq!(&whole, &decode("labels", &split(&bytes, cuts), count, &limits));
        let lazily: Result<Vec<_>, _> =
            elements("labels", &bytes, count, &limits).and_then(Iterator::collect);
        prop_assert_eq!(whole.clone().map(|found| found.len()), lazily.map(|found| found.len()));
        if let Ok(found) = whole {
            // Taken to the last byte: writing it again gives the input.
            prop_assert_eq!(encode("labels", &found).unwrap(), bytes);
        } else if count > bytes.len() / PREFIX_BYTES {
            prop_assert!(whole.unwrap_err().message().contains("too few"));
        }
    }
}
