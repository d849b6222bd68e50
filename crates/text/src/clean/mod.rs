//! The cleaning of open_clip's tokenizer: `ftfy.fix_text`, `html.unescape`
//! twice, white space.
//!
//! Written anew after ftfy 6.1.1 (MIT licence, copyright Robyn Speer) and
//! Python 3.11's `html`; their tables are in `data/repair.json`.

mod encoding;
mod html;
mod tables;

pub use html::unescape_html;

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;
use unicode_normalization::{UnicodeNormalization, is_nfc};

use encoding::{fix_c1_controls, fix_encoding};
use html::unescape_closed;
use tables::TABLES;

/// ftfy repeats its fixes until the text stays as it is. Each round undoes one
/// layer of damage; text with more layers than this was made to cost time.
const MAX_ROUNDS: usize = 64;

/// ftfy's `max_decode_length`: longer lines are fixed in parts.
const MAX_SEGMENT_CHARS: usize = 1_000_000;

// ftfy/fixes.py, ANSI_RE. Python's \d is every decimal digit of Unicode.
static TERMINAL_ESCAPE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\x1b\[[\p{Nd};]*[a-zA-Z]").expect("a valid expression"));

/// Python's `str.isspace` for one character: Unicode's White_Space and the four
/// ASCII separators.
pub(crate) fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Python's `str.strip`.
pub fn python_strip(text: &str) -> &str {
    text.trim_matches(is_python_space)
}

/// `whitespace_clean(basic_clean(text)).lower()` of open_clip 2.20.0's
/// tokenizer.py.
pub(crate) fn open_clip(text: &str) -> String {
    if is_plain(text) {
        return collapse_spaces(text).to_ascii_lowercase();
    }
    collapse_spaces(python_strip(&repaired(text))).to_lowercase()
}

/// `canonicalize_text(basic_clean(text))` of open_clip 3.3.0's tokenizer.py.
pub(crate) fn open_clip_canonical(text: &str) -> String {
    let text = if is_plain(text) { Cow::Borrowed(text) } else { Cow::Owned(repaired(text)) };
    let text: String = text
        .chars()
        .map(|c| if c == '_' { ' ' } else { c })
        .filter(|c| !c.is_ascii_punctuation())
        .collect();
    let text = text.to_lowercase();
    let words: Vec<&str> = text.split(is_python_space).filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

/// `html.unescape(html.unescape(ftfy.fix_text(text)))`.
fn repaired(text: &str) -> String {
    unescape_html(&unescape_html(&fix_text(text))).into_owned()
}

/// Nothing in it that any rule before white space would touch.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\t' | b'\n' | b'\x0c') && b != b'&')
}

/// Whether [`open_clip`] changes nothing of `text` but blanks and case, alone and joined with other such texts by
/// a comma and a blank.
///
/// All its rules but one look at single characters, or at what has no blank in it. Whether a text was decoded with
/// the wrong encoding is asked of the whole; but what tells that are a few characters side by side, and none of these
/// patterns goes on behind a comma and a blank.
pub(crate) fn is_settled(text: &str) -> bool {
    const MAX_BYTES: usize = 4096;
    if is_plain(text) {
        return true;
    }
    let is_fine = |text: &str| !encoding::is_bad(text);
    text.len() <= MAX_BYTES
        && !text.contains('\n')
        && repaired(text) == text
        && is_fine(text)
        && is_fine(&format!(", {text}, "))
}

/// `re.sub(r'\s+', ' ', text).strip()` with the `regex` module, whose `\s` is
/// White_Space alone.
fn collapse_spaces(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_space = false;
    for c in text.chars() {
        let space = c.is_whitespace();
        if !space {
            out.push(c);
        } else if !in_space {
            out.push(' ');
        }
        in_space = space;
    }
    let stripped = python_strip(&out);
    if stripped.len() == out.len() { out } else { stripped.to_string() }
}

/// `ftfy.fix_text` of ftfy 6.1.1 with its default settings.
///
/// A text of more than 64 nested layers of damage is left part of the way;
/// ftfy goes on without bound.
pub fn fix_text(text: &str) -> Cow<'_, str> {
    if is_plain(text) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    // A "<" means that this is HTML, whose references stay: from the segment
    // on that has the first one.
    let mut unescape = true;
    for line in text.split_inclusive('\n') {
        let mut rest = line;
        while !rest.is_empty() {
            let end = rest.char_indices().nth(MAX_SEGMENT_CHARS).map_or(rest.len(), |(at, _)| at);
            let (segment, after) = rest.split_at(end);
            unescape = unescape && !segment.contains('<');
            out.push_str(&fix_segment(segment, unescape));
            rest = after;
        }
    }
    Cow::Owned(out)
}

fn fix_segment(segment: &str, unescape: bool) -> String {
    let mut text = segment.to_string();
    for _ in 0..MAX_ROUNDS {
        let unescaped = if unescape { unescape_closed(&text) } else { Cow::Borrowed(&*text) };
        let fixed = fix_encoding(&unescaped);
        let fixed = fix_c1_controls(&fixed);
        let fixed = replace(&fixed, |c| TABLES.ligatures.get(&c).map(String::as_str));
        let fixed = replace(&fixed, |c| TABLES.widths.get(&c).map(String::as_str));
        let fixed = replace(&fixed, straight_quote);
        let fixed = fix_line_breaks(&fixed);
        let fixed = TERMINAL_ESCAPE.replace_all(&fixed, "");
        let fixed = replace(&fixed, |c| is_removed_control(c).then_some(""));
        let fixed: String = if is_nfc(&fixed) { fixed.into_owned() } else { fixed.nfc().collect() };
        if fixed == text {
            break;
        }
        text = fixed;
    }
    text
}

/// Puts `with(c)` in the place of every character that has one.
fn replace<'a, 't>(text: &'a str, with: impl Fn(char) -> Option<&'t str>) -> Cow<'a, str> {
    if text.chars().all(|c| with(c).is_none()) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match with(c) {
            Some(other) => out.push_str(other),
            None => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn straight_quote(c: char) -> Option<&'static str> {
    match c {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => Some("'"),
        '\u{201c}'..='\u{201f}' => Some("\""),
        _ => None,
    }
}

fn fix_line_breaks(text: &str) -> Cow<'_, str> {
    if !text.contains(['\r', '\u{2028}', '\u{2029}', '\u{85}']) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}', '\u{85}'], "\n"))
}

fn is_removed_control(c: char) -> bool {
    matches!(
        c,
        '\0'..='\x08' | '\x0b' | '\x0e'..='\x1f' | '\x7f' | '\u{206a}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffc}'
    )
}
