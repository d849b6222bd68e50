//! SentencePiece unigrams, as `sentencepiece` itself runs them.
//!
//! Reference: sentencepiece 0.2.1, `normalizer.cc` (`Normalize`,
//! `NormalizePrefix`) and `unigram_model.cc` (`EncodeOptimized`), whose float32
//! sums are kept: two ways of parting a text may be that near.

use std::collections::HashMap;

use imprompt_error::{Error, Result};
use prost::Message;

/// What stands for a blank in a piece.
pub(crate) const SPACE: char = '\u{2581}';

/// What an unknown character costs beside the least likely piece.
const UNKNOWN_PENALTY: f32 = 10.0;

/// The largest model file that is read; SigLIP's multilingual one has 4 MB.
pub(crate) const MAX_BYTES: u64 = 64 << 20;

/// `sentencepiece_model.proto`, what of it counts here.
#[derive(Clone, PartialEq, Message)]
struct ModelFile {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    treat_whitespace_as_suffix: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}

/// `TrainerSpec.ModelType.UNIGRAM`.
const UNIGRAM: i32 = 1;

/// `SentencePiece.Type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const UNUSED: i32 = 5;

/// A unigram model without the dummy prefix, which SigLIP switches off.
pub(crate) struct SentencePiece {
    /// Id and score of the pieces that a text may be made of.
    pieces: HashMap<String, (u32, f32)>,
    /// Ids by name, of control pieces too.
    ids: HashMap<String, u32>,
    /// Bytes of the longest piece.
    longest: usize,
    unknown: u32,
    unknown_score: f32,
    remove_extra_whitespaces: bool,
    charsmap: Option<Charsmap>,
}

impl SentencePiece {
    /// The model in the bytes of a `spiece.model`.
    ///
    /// # Errors
    /// `BadModel` when it is none, `Unsupported` for models of other kinds.
    pub(crate) fn new(bytes: &[u8]) -> Result<Self> {
        let file = ModelFile::decode(bytes)
            .map_err(|error| Error::bad_model(format!("no SentencePiece model: {error}")))?;
        let trainer = file.trainer.unwrap_or_default();
        let normalizer = file.normalizer.unwrap_or_default();
        if trainer.model_type.unwrap_or(UNIGRAM) != UNIGRAM {
            return Err(Error::unsupported(
                "a SentencePiece model that is not of unigrams; save the tokenizer as tokenizer.json",
            ));
        }
        if trainer.treat_whitespace_as_suffix == Some(true)
            || normalizer.escape_whitespaces == Some(false)
        {
            return Err(Error::unsupported(
                "a SentencePiece model with blanks elsewhere than in front of a word; save the \
                 tokenizer as tokenizer.json",
            ));
        }
        let mut this = SentencePiece {
            pieces: HashMap::with_capacity(file.pieces.len()),
            ids: HashMap::with_capacity(file.pieces.len()),
            longest: 0,
            unknown: u32::MAX,
            unknown_score: 0.0,
            remove_extra_whitespaces: normalizer.remove_extra_whitespaces.unwrap_or(true),
            charsmap: normalizer
                .charsmap
                .filter(|map| !map.is_empty())
                .map(Charsmap::new)
                .transpose()?,
        };
        let mut least = f32::MAX;
        for (id, Piece { piece, score, kind }) in (0..).zip(file.pieces) {
            let (name, score) = (piece.unwrap_or_default(), score.unwrap_or(0.0));
            this.ids.insert(name.clone(), id);
            match kind.unwrap_or(NORMAL) {
                NORMAL => {
                    least = least.min(score);
                    this.longest = this.longest.max(name.len());
                    this.pieces.insert(name, (id, score));
                }
                UNKNOWN => this.unknown = id,
                CONTROL | UNUSED => {}
                _ => {
                    return Err(Error::unsupported(
                        "a SentencePiece model with pieces for bytes or with symbols of its user; \
                         save the tokenizer as tokenizer.json",
                    ));
                }
            }
        }
        if this.unknown == u32::MAX || this.pieces.is_empty() {
            return Err(Error::bad_model(
                "a SentencePiece model without an unknown piece, or without any",
            ));
        }
        this.unknown_score = least - UNKNOWN_PENALTY;
        Ok(this)
    }

    /// The id of a piece by its name.
    pub(crate) fn id(&self, piece: &str) -> Option<u32> {
        self.ids.get(piece).copied()
    }

    /// Number of ids.
    pub(crate) fn size(&self) -> usize {
        self.ids.len()
    }

    /// The ids of `text`; a run of unknown characters is one.
    pub(crate) fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        for id in self.best_path(&self.normalize(text)) {
            if id != self.unknown || ids.last() != Some(&id) {
                ids.push(id);
            }
        }
        ids
    }

    fn normalize(&self, text: &str) -> String {
        let mut normal = String::with_capacity(text.len());
        let mut after_space = self.remove_extra_whitespaces;
        let mut rest = text;
        while !rest.is_empty() {
            let (replacement, taken) = self.prefix(rest);
            let mut part = replacement;
            if after_space {
                part = part.trim_start_matches(' ');
            }
            normal.extend(part.chars().map(|c| if c == ' ' { SPACE } else { c }));
            if !part.is_empty() {
                after_space = part.ends_with(' ');
            }
            if !self.remove_extra_whitespaces {
                after_space = false;
            }
            rest = &rest[taken..];
        }
        if self.remove_extra_whitespaces {
            normal.truncate(normal.trim_end_matches(SPACE).len());
        }
        normal
    }

    /// What the start of `text` becomes, and how many bytes that start has.
    fn prefix<'a>(&'a self, text: &'a str) -> (&'a str, usize) {
        let found = self.charsmap.as_ref().and_then(|map| map.longest_prefix(text));
        found.unwrap_or_else(|| {
            let first = text.chars().next().map_or(0, char::len_utf8);
            (&text[..first], first)
        })
    }

    /// The pieces of the likeliest way to part `text`.
    fn best_path(&self, text: &str) -> Vec<u32> {
        #[derive(Clone, Copy)]
        struct Best {
            id: u32,
            score: f32,
            start: usize,
        }
        let mut ends: Vec<Option<Best>> = vec![None; text.len() + 1];
        for (start, first) in text.char_indices() {
            let here = if start == 0 { 0.0 } else { ends[start].map_or(0.0, |best| best.score) };
            let mut offer = |end: usize, id: u32, score: f32| {
                let score = score + here;
                if ends[end].is_none_or(|best| score > best.score) {
                    ends[end] = Some(Best { id, score, start });
                }
            };
            let mut has_single = false;
            let rest = &text[start..];
            for (at, c) in rest.char_indices() {
                let length = at + c.len_utf8();
                if length > self.longest {
                    break;
                }
                if let Some(&(id, score)) = self.pieces.get(&rest[..length]) {
                    offer(start + length, id, score);
                    has_single |= at == 0;
                }
            }
            if !has_single {
                offer(start + first.len_utf8(), self.unknown, self.unknown_score);
            }
        }
        let mut path = Vec::new();
        let mut end = text.len();
        while let Some(best) = ends[end] {
            path.push(best.id);
            end = best.start;
        }
        path.reverse();
        path
    }
}

/// Which beginnings of a text are replaced by what: a double array of darts-clone
/// and the replacements, each ended by a zero byte.
struct Charsmap {
    units: Vec<u32>,
    replacements: String,
}

impl Charsmap {
    fn new(bytes: Vec<u8>) -> Result<Self> {
        let bad =
            || Error::bad_model("a SentencePiece model with a malformed precompiled_charsmap");
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(bad)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (trie, replacements) = rest.split_at_checked(length).ok_or_else(bad)?;
        let (units, odd) = trie.as_chunks::<4>();
        if !odd.is_empty() || units.is_empty() {
            return Err(bad());
        }
        Ok(Charsmap {
            units: units.iter().map(|unit| u32::from_le_bytes(*unit)).collect(),
            replacements: String::from_utf8(replacements.to_vec()).map_err(|_| bad())?,
        })
    }

    /// The replacement of the longest beginning of `text` that has one, and that
    /// beginning's length.
    fn longest_prefix(&self, text: &str) -> Option<(&str, usize)> {
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut place = offset(self.units[0]);
        let mut found = None;
        for (at, byte) in text.bytes().enumerate() {
            place ^= usize::from(byte);
            let Some(&unit) = self.units.get(place) else { break };
            // The label has the top bit set where the unit is a leaf.
            if unit & ((1 << 31) | 0xff) != u32::from(byte) {
                break;
            }
            place ^= offset(unit);
            if (unit >> 8) & 1 == 1
                && let Some(&leaf) = self.units.get(place)
            {
                found = Some((leaf & 0x7fff_ffff, at + 1));
            }
        }
        let (start, length) = found?;
        let replacement = self.replacements.get(start as usize..)?.split('\0').next()?;
        text.is_char_boundary(length).then_some((replacement, length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(pieces: &[(&str, f32, i32)]) -> Vec<u8> {
        let pieces = pieces.iter().map(|(piece, score, kind)| Piece {
            piece: Some((*piece).to_owned()),
            score: Some(*score),
            kind: Some(*kind),
        });
        ModelFile { pieces: pieces.collect(), ..ModelFile::default() }.encode_to_vec()
    }

    #[test]
    fn the_likeliest_way_is_taken_and_unknown_runs_are_one() {
        let pieces = [
            ("<unk>", 0.0, UNKNOWN),
            ("</s>", 0.0, CONTROL),
            ("a", -1.0, NORMAL),
            ("ab", -1.5, NORMAL),
            ("b", -1.0, NORMAL),
            ("\u{2581}", -3.0, NORMAL),
            ("gone", 0.0, UNUSED),
        ];
        let model = SentencePiece::new(&model(&pieces)).unwrap();
        assert_eq!(model.encode("ab"), [3]);
        assert_eq!(model.encode(" a  xy b "), [2, 5, 0, 5, 4]);
        assert_eq!(model.encode("</s>gone"), [0]);
        assert_eq!(model.encode(""), [0u32; 0]);
        assert_eq!((model.id("</s>"), model.id("c"), model.size()), (Some(1), None, 7));
    }

    #[test]
    fn other_models_are_refused() {
        assert!(SentencePiece::new(b"\xff\xff").is_err());
        assert!(SentencePiece::new(&model(&[("a", 0.0, NORMAL)])).is_err());
        let symbols = model(&[("<unk>", 0.0, UNKNOWN), ("a", 0.0, NORMAL), ("@", 0.0, 4)]);
        assert!(SentencePiece::new(&symbols).is_err());
        let byte_pairs = ModelFile {
            trainer: Some(Trainer { model_type: Some(2), ..Trainer::default() }),
            ..ModelFile::default()
        };
        assert!(SentencePiece::new(&byte_pairs.encode_to_vec()).is_err());
        for map in [vec![1], vec![4, 0, 0, 0, 1], vec![0, 0, 0, 0], vec![9, 9, 9, 9, 9]] {
            assert!(Charsmap::new(map).is_err());
        }
    }
}
