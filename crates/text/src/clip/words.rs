//! Clean text to words: open_clip's expression
//! `<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+`
//! with IGNORECASE, as Python's `regex` module matches it.

use std::sync::LazyLock;

use regex_syntax::hir::{Class as HirClass, HirKind};

/// The two tokens that the expression names, in the lower case that texts have.
pub(super) const START: &str = "<start_of_text>";
/// See [`START`].
pub(super) const END: &str = "<end_of_text>";

const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];

/// U+0345 is no letter but has an upper case that is one, so that IGNORECASE
/// takes it out of the third class too: nothing matches it.
const UNMATCHED: char = '\u{345}';

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Other,
    Dropped,
}

/// The sorted, separate ranges of a general category.
struct Ranges(Vec<(char, char)>);

impl Ranges {
    fn of(property: &str) -> Self {
        let parsed = regex_syntax::parse(property).expect("a valid expression");
        let HirKind::Class(HirClass::Unicode(class)) = parsed.kind() else {
            unreachable!("a general category is a class of characters")
        };
        Ranges(class.iter().map(|range| (range.start(), range.end())).collect())
    }

    fn contains(&self, c: char) -> bool {
        let after = self.0.partition_point(|(start, _)| *start <= c);
        after > 0 && c <= self.0[after - 1].1
    }
}

static LETTERS: LazyLock<Ranges> = LazyLock::new(|| Ranges::of(r"\p{L}"));
static NUMBERS: LazyLock<Ranges> = LazyLock::new(|| Ranges::of(r"\p{N}"));

fn class(c: char) -> Class {
    if c.is_ascii() {
        return match c {
            'a'..='z' | 'A'..='Z' => Class::Letter,
            '0'..='9' => Class::Number,
            '\t'..='\r' | ' ' => Class::Dropped,
            _ => Class::Other,
        };
    }
    if LETTERS.contains(c) {
        Class::Letter
    } else if NUMBERS.contains(c) {
        Class::Number
    } else if c.is_whitespace() || c == UNMATCHED {
        Class::Dropped
    } else {
        Class::Other
    }
}

/// The words of a clean text in order.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let first = rest.chars().next()?;
            let len = match first {
                '<' => literal(rest, START).or_else(|| literal(rest, END)),
                '\'' => CONTRACTIONS.iter().find_map(|word| literal(rest, word)),
                _ => None,
            };
            let len = len.unwrap_or_else(|| match class(first) {
                Class::Number => first.len_utf8(),
                Class::Dropped => 0,
                class @ (Class::Letter | Class::Other) => run(rest, class),
            });
            if len == 0 {
                rest = &rest[first.len_utf8()..];
                continue;
            }
            let (word, after) = rest.split_at(len);
            rest = after;
            return Some(word);
        }
    })
}

/// Bytes of the characters of one class at the start of `text`.
fn run(text: &str, wanted: Class) -> usize {
    text.char_indices().find(|(_, c)| class(*c) != wanted).map_or(text.len(), |(at, _)| at)
}

/// Bytes that the lower-case ASCII `word` takes at the start of `text`, in any
/// case; the long s is a case of "s".
fn literal(text: &str, word: &str) -> Option<usize> {
    let mut chars = text.chars();
    for wanted in word.chars() {
        let found = chars.next()?;
        if found.to_ascii_lowercase() != wanted && !(wanted == 's' && found == 'ſ') {
            return None;
        }
    }
    Some(text.len() - chars.as_str().len())
}

#[cfg(test)]
mod tests {
    use super::words;

    fn split(text: &str) -> Vec<&str> {
        words(text).collect()
    }

    #[test]
    fn splits_like_the_expression() {
        assert_eq!(
            split("it's 12 cats, don't!"),
            ["it", "'s", "1", "2", "cats", ",", "don", "'t", "!"]
        );
        assert_eq!(split("!'s <end_of_text>x"), ["!'", "s", "<end_of_text>", "x"]);
        assert_eq!(split("!<end_of_text>"), ["!<", "end", "_", "of", "_", "text", ">"]);
        assert_eq!(split("a\u{345}b"), ["a", "b"]);
        assert_eq!(split("'ſ"), ["'ſ"]);
        assert!(split(" \u{a0}\u{2028}").is_empty());
    }
}
