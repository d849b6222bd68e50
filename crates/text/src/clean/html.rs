//! HTML character references: Python's `html.unescape`, and ftfy's more careful
//! variant of it.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

use super::tables::TABLES;

// Lib/html/__init__.py of Python 3.11.
static REFERENCE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\x0c <&#;]{1,32};?)")
        .expect("a valid expression")
});

// ftfy/chardata.py, HTML_ENTITY_RE.
static CLOSED_REFERENCE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"&#?[0-9A-Za-z]{1,24};").expect("a valid expression"));

/// Python's `html.unescape`: HTML5's named and numeric references, with and
/// without a semicolon, once.
pub fn unescape_html(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    REFERENCE.replace_all(text, |found: &Captures<'_>| {
        let reference = &found[1];
        match reference.strip_prefix('#') {
            Some(number) => numeric(number),
            None => named(reference),
        }
    })
}

fn numeric(reference: &str) -> String {
    let digits = reference.trim_end_matches(';');
    let number = match digits.strip_prefix(['x', 'X']) {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    // What does not fit into 32 bits is no code point either.
    let Ok(number) = number else { return char::REPLACEMENT_CHARACTER.to_string() };
    if let Some(replaced) = TABLES.replaced_references.get(&number) {
        return replaced.clone();
    }
    match char::from_u32(number) {
        None => char::REPLACEMENT_CHARACTER.to_string(),
        Some(_) if TABLES.removed_references.contains(&number) => String::new(),
        Some(found) => found.to_string(),
    }
}

fn named(reference: &str) -> String {
    if let Some(text) = TABLES.entities.get(reference) {
        return text.clone();
    }
    // The longest name of at least two characters that this starts with.
    let ends: Vec<usize> = reference.char_indices().map(|(at, _)| at).collect();
    for &end in ends.iter().skip(2).rev() {
        if let Some(text) = TABLES.entities.get(&reference[..end]) {
            return format!("{text}{}", &reference[end..]);
        }
    }
    format!("&{reference}")
}

/// ftfy's `unescape_html`: only references that end in a semicolon, and some
/// written in capitals.
pub(super) fn unescape_closed(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    CLOSED_REFERENCE.replace_all(text, |found: &Captures<'_>| {
        let whole = &found[0];
        let name = &whole[1..];
        if let Some(text) =
            TABLES.entities.get(name).or_else(|| TABLES.upper_case_entities.get(name))
        {
            return text.clone();
        }
        if name.starts_with('#') {
            let unescaped = unescape_html(whole);
            if !unescaped.contains(';') {
                return unescaped.into_owned();
            }
        }
        whole.to_string()
    })
}
