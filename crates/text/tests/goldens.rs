//! Every golden string of `goldens/text/` against the ids of the Python
//! references (open_clip 2.20.0, transformers 4.33.1).

use std::path::PathBuf;

use imprompt_text::{CaptionTokenizer, Cleaning, ClipTokenizer, SiglipTokenizer};
use serde::Deserialize;
use serde::de::DeserializeOwned;

fn goldens(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens/text").join(name)
}

fn rows<T: DeserializeOwned>(name: &str) -> Vec<T> {
    let text = std::fs::read_to_string(goldens(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn clip(folder: &str, cleaning: Cleaning) -> ClipTokenizer {
    ClipTokenizer::load(&goldens(folder), cleaning, 77).unwrap()
}

/// Fails with the first differences rather than the first alone.
fn compare<'a>(
    name: &str,
    least: usize,
    cases: impl Iterator<Item = (&'a str, Vec<u32>, Vec<u32>)>,
) {
    let (mut count, mut wrong) = (0, Vec::new());
    for (text, found, expected) in cases {
        count += 1;
        if found != expected {
            wrong.push(format!("{text:?}\n   found {found:?}\nexpected {expected:?}"));
        }
    }
    let shown = wrong.iter().take(25).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{name}: {} of {count} differ\n{shown}", wrong.len());
    assert!(count >= least, "{name}: only {count} rows");
    println!("{name}: {count} rows equal");
}

#[derive(Deserialize)]
struct ClipRow {
    t: String,
    o: Vec<u32>,
    h: Option<Vec<u32>>,
}

impl ClipRow {
    fn ids(&self, cleaning: Cleaning) -> &[u32] {
        match (cleaning, &self.h) {
            (Cleaning::HuggingFace, Some(ids)) => ids,
            _ => &self.o,
        }
    }
}

fn clip_rows(name: &str, folder: &str, cleaning: Cleaning, least: usize) {
    let tokenizer = clip(folder, cleaning);
    let rows: Vec<ClipRow> = rows(name);
    let cases = rows.iter().map(|row| {
        let ids = tokenizer.encode(&row.t).unwrap();
        let mut expected = vec![tokenizer.start_id()];
        expected.extend(row.ids(cleaning));
        expected.push(tokenizer.end_id());
        (&*row.t, ids, expected)
    });
    compare(&format!("{name} {cleaning:?}"), least, cases);
}

#[test]
fn open_clip_ids_are_equal() {
    clip_rows("clip.jsonl", "clip-vocabulary", Cleaning::OpenClip, 8_800);
}

#[test]
fn hugging_face_ids_are_equal() {
    clip_rows("clip.jsonl", "clip-vocabulary", Cleaning::HuggingFace, 8_800);
}

#[test]
fn a_small_vocabulary_out_of_a_tokenizer_json() {
    for cleaning in [Cleaning::OpenClip, Cleaning::HuggingFace] {
        clip_rows("clip-small.jsonl", "clip-small", cleaning, 260);
    }
    assert_eq!(clip("clip-small", Cleaning::OpenClip).vocab_size(), 512 + 1000 + 2);
}

#[test]
fn over_long_texts_keep_the_end_token() {
    let open_clip = clip("clip-vocabulary", Cleaning::OpenClip);
    let hugging_face = clip("clip-vocabulary", Cleaning::HuggingFace);
    let rows: Vec<ClipRow> = rows("truncated.jsonl");
    assert_eq!(rows.len(), 12);
    for row in &rows {
        let tokens = open_clip.tokens(&row.t).unwrap();
        let mut padded = tokens.ids.clone();
        padded.resize(77, 0);
        assert_eq!(padded, row.o, "{:?}", row.t);
        assert_eq!(open_clip.is_at_max_length(&row.t).unwrap(), row.o[76] != 0, "{:?}", row.t);
        assert_eq!(tokens.truncated, open_clip.encode(&row.t).unwrap().len() > 77);
        assert_eq!(hugging_face.tokens(&row.t).unwrap().ids, row.h.as_deref().unwrap());
    }
    // 75 tokens between start and end just fit.
    let fits = open_clip.tokens(&"cat ".repeat(75)).unwrap();
    assert!(!fits.truncated && fits.ids.len() == 77);
    assert!(open_clip.is_at_max_length(&"cat ".repeat(75)).unwrap());
    assert!(!open_clip.is_at_max_length(&"cat ".repeat(74)).unwrap());
}

#[test]
fn clip_facts() {
    let tokenizer = clip("clip-vocabulary", Cleaning::OpenClip);
    assert_eq!((tokenizer.start_id(), tokenizer.end_id()), (49406, 49407));
    assert_eq!(tokenizer.vocab_size(), 49408);
    assert_eq!(tokenizer.context_length(), 77);
}

#[derive(Deserialize)]
struct OptRow {
    t: String,
    ids: Vec<u32>,
}

#[test]
fn opt_ids_are_equal_from_either_layout() {
    for folder in ["opt-small", "opt-small-fast"] {
        let tokenizer = CaptionTokenizer::load(&goldens(folder)).unwrap();
        assert_eq!(
            (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()),
            (Some(2), Some(2), Some(1))
        );
        assert_eq!(tokenizer.vocab_size(), 1200);
        let rows: Vec<OptRow> = rows("opt.jsonl");
        let cases =
            rows.iter().map(|row| (&*row.t, tokenizer.encode(&row.t).unwrap(), row.ids.clone()));
        compare(folder, 1_200, cases);
    }
}

#[derive(Deserialize)]
struct DecodeRow {
    ids: Vec<u32>,
    all: String,
    text: String,
    strip: String,
}

#[test]
fn opt_texts_are_equal_from_either_layout() {
    for folder in ["opt-small", "opt-small-fast"] {
        let tokenizer = CaptionTokenizer::load(&goldens(folder)).unwrap();
        let rows: Vec<DecodeRow> = rows("opt-decode.jsonl");
        assert!(rows.len() > 500);
        for row in &rows {
            assert_eq!(tokenizer.decode(&row.ids, false).unwrap(), row.all, "{:?}", row.ids);
            assert_eq!(tokenizer.decode(&row.ids, true).unwrap(), row.text, "{:?}", row.ids);
            assert_eq!(tokenizer.caption(&row.ids).unwrap(), row.strip, "{:?}", row.ids);
        }
    }
}

#[derive(Deserialize)]
struct BertRow {
    f: String,
    t: String,
    ids: Vec<u32>,
    said: Vec<u32>,
    strip: String,
}

#[test]
fn bert_ids_and_texts_are_equal_without_a_tokenizer_json() {
    let rows: Vec<BertRow> = rows("bert.jsonl");
    for folder in ["bert-small", "bert-small-cased"] {
        let tokenizer = CaptionTokenizer::load(&goldens(folder)).unwrap();
        let own: Vec<&BertRow> = rows.iter().filter(|row| row.f == folder).collect();
        let cases =
            own.iter().map(|row| (&*row.t, tokenizer.encode(&row.t).unwrap(), row.ids.clone()));
        compare(folder, 1_200, cases);
        for row in own {
            assert_eq!(tokenizer.caption(&row.said).unwrap(), row.strip, "{:?}", row.said);
        }
    }
}

#[derive(Deserialize)]
struct SiglipRow {
    t: String,
    ids: Vec<u32>,
}

fn siglip_rows(name: &str, folder: &str, cleaning: Cleaning) {
    let tokenizer = SiglipTokenizer::load(&goldens(folder), cleaning, 16).unwrap();
    let rows: Vec<SiglipRow> = rows(name);
    let cases = rows.iter().map(|row| {
        let tokens = tokenizer.tokens(&row.t).unwrap();
        assert_eq!(tokens.truncated, tokenizer.encode(&row.t).unwrap().len() > 16);
        (&*row.t, tokens.ids, row.ids.clone())
    });
    compare(name, 750, cases);
}

#[test]
fn siglip_rows_are_equal() {
    siglip_rows("../siglip/tokens-spiece.jsonl", "../siglip/siglip", Cleaning::HuggingFace);
}

#[test]
fn siglip_2_rows_are_equal() {
    siglip_rows("../siglip/tokens-gemma.jsonl", "../siglip/siglip2", Cleaning::HuggingFace);
}

#[test]
fn siglip_rows_of_open_clip_are_equal() {
    siglip_rows("../open_clip/tokens-t5.jsonl", "../open_clip/siglip", Cleaning::Canonical);
}

#[test]
fn a_siglip_folder_without_a_tokenizer_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let load =
        || SiglipTokenizer::load(folder.path(), Cleaning::HuggingFace, 64).map(|_| ()).unwrap_err();
    assert!(load().message().contains("neither spiece.model nor tokenizer.json"), "{}", load());
    std::fs::write(folder.path().join("spiece.model"), b"not a model").unwrap();
    assert!(load().message().contains("spiece.model"), "{}", load());
    std::fs::copy(goldens("../siglip/siglip/spiece.model"), folder.path().join("spiece.model"))
        .unwrap();
    let tokenizer = SiglipTokenizer::load(folder.path(), Cleaning::HuggingFace, 64).unwrap();
    assert_eq!((tokenizer.tokens("").unwrap().ids, tokenizer.vocab_size()), (vec![1; 64], 600));
    let one_slot =
        SiglipTokenizer::load(folder.path(), Cleaning::HuggingFace, 1).map(|_| ()).unwrap_err();
    assert!(one_slot.message().contains("1 slots"), "{one_slot}");
}
