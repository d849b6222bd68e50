//! Text that was decoded with the wrong encoding ("Ã©" for "é"): ftfy's
//! `fix_encoding`.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::bytes::Regex;

use super::MAX_ROUNDS;
use super::tables::TABLES;

// Sequences that would be UTF-8 if a space were the byte 0xA0
// (ftfy/chardata.py, ALTERED_UTF8_RE).
static ALTERED: LazyLock<Regex> = LazyLock::new(|| {
    bytes_regex(concat!(
        r"[\xc2\xc3\xc5\xce\xd0\xd9]\x20",
        r"|[\xe2\xe3]\x20[\x80-\x84\x86-\x9f\xa1-\xbf]",
        r"|[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf]\x20",
        r"|\xf0\x20[\x80-\xbf][\x80-\xbf]",
        r"|\xf0[\x80-\xbf]\x20[\x80-\xbf]",
        r"|\xf0[\x80-\xbf][\x80-\xbf]\x20",
    ))
});

// Sequences of UTF-8 or CESU-8 that have lost bytes to 0x1A or "?"
// (ftfy/chardata.py, LOSSY_UTF8_RE).
static LOSSY: LazyLock<Regex> = LazyLock::new(|| {
    bytes_regex(concat!(
        r"[\xc2-\xdf]\x1a",
        r"|[\xc2-\xc3][?]",
        r"|\xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]",
        r"|\xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]",
        r"|[\xe0-\xef][\x1a?][\x1a\x80-\xbf]",
        r"|[\xe0-\xef][\x1a\x80-\xbf][\x1a?]",
        r"|[\xf0-\xf4][\x1a?][\x1a\x80-\xbf][\x1a\x80-\xbf]",
        r"|[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]",
        r"|[\xf0-\xf4][\x1a\x80-\xbf][\x1a\x80-\xbf][\x1a?]",
        r"|\x1a",
    ))
});

fn bytes_regex(pattern: &str) -> Regex {
    Regex::new(&format!("(?-u){pattern}")).expect("a valid expression")
}

/// Undoes wrong decodings, again and again until the text stays as it is.
pub(super) fn fix_encoding(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    for _ in 0..MAX_ROUNDS {
        match fix_once(&text) {
            Some(fixed) if fixed != *text => text = Cow::Owned(fixed),
            _ => break,
        }
    }
    text
}

pub(super) fn is_bad(text: &str) -> bool {
    !text.is_ascii() && TABLES.badness.is_match(text)
}

/// One step; `None` when the text is fine or cannot be fixed.
fn fix_once(text: &str) -> Option<String> {
    if !is_bad(text) {
        return None;
    }
    let mut latin_1 = None;
    for encoding in &TABLES.encodings {
        let Some(mut bytes) = encoding.encode(text) else { continue };
        if encoding.latin_1 {
            latin_1 = Some(bytes.clone());
        }
        if ALTERED.is_match(&bytes) {
            bytes = restore_byte_a0(&bytes);
        }
        if encoding.sloppy {
            bytes = LOSSY.replace_all(&bytes, "\u{fffd}".as_bytes()).into_owned();
        }
        let decoded = if bytes.contains(&0xed) || bytes.contains(&0xc0) {
            decode_variants(&bytes)
        } else {
            String::from_utf8(bytes).ok()
        };
        if decoded.is_some() {
            return decoded;
        }
    }
    if let Some(fixed) = decode_inconsistent(text).filter(|fixed| fixed != text) {
        return Some(fixed);
    }
    if let Some(fixed) = latin_1.and_then(|bytes| as_windows_1252(&bytes))
        && fixed != text
    {
        return Some(fixed);
    }
    Some(fix_c1_controls(text).into_owned())
}

/// Bytes of Latin-1 read as Windows-1252, when it assigns all of them.
fn as_windows_1252(bytes: &[u8]) -> Option<String> {
    bytes
        .iter()
        .map(|&byte| match byte.checked_sub(0x80) {
            None => Some(char::from(byte)),
            Some(high) => TABLES.windows_1252[usize::from(high)],
        })
        .collect()
}

/// C1 control characters are what Windows-1252 assigns to their bytes.
pub(super) fn fix_c1_controls(text: &str) -> Cow<'_, str> {
    if !text.contains(|c: char| ('\u{80}'..='\u{9f}').contains(&c)) {
        return Cow::Borrowed(text);
    }
    let fixed = text.chars().map(|c| match c {
        '\u{80}'..='\u{9f}' => TABLES.windows_1252[c as usize - 0x80].unwrap_or(c),
        _ => c,
    });
    Cow::Owned(fixed.collect())
}

/// Puts the byte 0xA0 back where a program made a space of it.
fn restore_byte_a0(bytes: &[u8]) -> Vec<u8> {
    // "Ã " is most often the word "à", whose own space stays; not in "às",
    // "àquele", "àquela", "àquilo" (ftfy/fixes.py, A_GRAVE_WORD_RE).
    let mut spaced = Vec::with_capacity(bytes.len() + 8);
    let mut rest = bytes;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        spaced.push(first);
        if first == 0xc3 && after.first() == Some(&b' ') {
            let word = &after[1..];
            let part = [&b" "[..], b"quele", b"quela", b"quilo", b"s "];
            if !part.iter().any(|start| word.starts_with(start)) {
                spaced.extend_from_slice(b"\xa0 ");
                rest = word;
            }
        }
    }
    let restored = ALTERED.replace_all(&spaced, |found: &regex::bytes::Captures<'_>| {
        found[0].iter().map(|&byte| if byte == b' ' { 0xa0 } else { byte }).collect::<Vec<u8>>()
    });
    restored.into_owned()
}

/// UTF-8, CESU-8 and Java's two-byte NUL, mixed (ftfy's codec
/// "utf-8-variants").
fn decode_variants(bytes: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    loop {
        let special = rest
            .iter()
            .enumerate()
            .position(|(at, &byte)| match byte {
                0xc0 => true,
                0xed => rest.get(at + 1).is_none_or(|next| *next >= 0xa0),
                _ => false,
            })
            .unwrap_or(rest.len());
        text.push_str(std::str::from_utf8(&rest[..special]).ok()?);
        rest = &rest[special..];
        match rest {
            [] => return Some(text),
            // The codec's expression for a cut NUL also matches in front of a
            // line feed that ends the text, and then takes it along.
            [0xc0, 0x80, ..] | [0xc0, b'\n'] => {
                text.push('\0');
                rest = &rest[2..];
            }
            [
                0xed,
                high @ 0xa0..=0xaf,
                low @ 0x80..=0xbf,
                0xed,
                second @ 0xb0..=0xbf,
                last,
                after @ ..,
            ] if (0x80..=0xbf).contains(last) || (*last == b'\n' && after.is_empty()) => {
                let code = (u32::from(high & 0x0f) << 16)
                    + (u32::from(low & 0x3f) << 10)
                    + (u32::from(second & 0x0f) << 6)
                    + u32::from(last & 0x3f)
                    + 0x1_0000;
                text.push(char::from_u32(code)?);
                rest = after;
            }
            _ => return None,
        }
    }
}

/// Looks for runs that are UTF-8 in the wrong encoding inside text that as a
/// whole is not (ftfy/chardata.py, UTF8_DETECTOR_RE).
fn decode_inconsistent(text: &str) -> Option<String> {
    let chars: Vec<(usize, char)> = text.char_indices().collect();
    let offset = |at: usize| chars.get(at).map_or(text.len(), |(offset, _)| *offset);
    let mut out = String::new();
    let (mut at, mut copied) = (0, 0);
    while at < chars.len() {
        let after_clue = at > 0 && TABLES.clues.utf8_continuation_strict.contains(&chars[at - 1].1);
        let end = if after_clue { at } else { run_end(&chars, at) };
        if end == at {
            at += 1;
            continue;
        }
        let run = &text[offset(at)..offset(end)];
        // Shorter than the whole, so that this ends.
        if run.len() < text.len() && is_bad(run) {
            out.push_str(&text[copied..offset(at)]);
            out.push_str(&fix_encoding(run));
            copied = offset(end);
        }
        at = end;
    }
    (copied > 0).then(|| out + &text[copied..])
}

/// Where the run of multi-byte sequences that starts at `at` ends.
fn run_end(chars: &[(usize, char)], at: usize) -> usize {
    let clues = &TABLES.clues;
    let mut end = at;
    loop {
        let Some((_, first)) = chars.get(end) else { return end };
        let starts =
            [(2, &clues.utf8_first_of_2), (3, &clues.utf8_first_of_3), (4, &clues.utf8_first_of_4)];
        let sequence = starts.iter().find(|(len, set)| {
            set.contains(first)
                && chars.get(end + 1..end + len).is_some_and(|rest| {
                    rest.iter().all(|(_, c)| clues.utf8_continuation.contains(c))
                })
        });
        match sequence {
            Some((len, _)) => end += len,
            None => return end,
        }
    }
}
