//! What holds for any text, and what a folder may not be.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use imprompt_error::Kind;
use imprompt_text::{CaptionTokenizer, Cleaning, ClipTokenizer, Tokens, fix_text, unescape_html};
use proptest::prelude::*;

fn goldens(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens/text").join(name)
}

static CLIP: LazyLock<[ClipTokenizer; 2]> = LazyLock::new(|| {
    [Cleaning::OpenClip, Cleaning::HuggingFace]
        .map(|cleaning| ClipTokenizer::load(&goldens("clip-small"), cleaning, 16).unwrap())
});
static OPT: LazyLock<CaptionTokenizer> =
    LazyLock::new(|| CaptionTokenizer::load(&goldens("opt-small")).unwrap());

/// Texts that meet the rules: references, escapes, wrong encodings.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        any::<char>().prop_map(String::from),
        (0x80u32..0x100).prop_map(|c| char::from_u32(c).unwrap().to_string()),
        prop::sample::select(vec![
            "&amp;",
            "&",
            "&#",
            ";",
            "&#x",
            "<",
            "\n",
            "\x1b[",
            "m",
            "Ã",
            "©",
            "â€",
            "™",
            "ï¿½",
            "'s",
            "<|endoftext|>",
            "<end_of_text>",
            "</s>",
            " ",
            "\u{1a}",
            "í\u{a0}\u{80}",
            "À",
            "cat",
            "㋀",
        ])
        .prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// Mostly such as the rules leave alone, and what a wrong encoding is told by.
fn phrase() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-zA-Z0-9 ,.!?'<>-]{0,6}",
        2 => (0xa0u32..0x180).prop_map(|c| char::from_u32(c).unwrap().to_string()),
        1 => prop::sample::select(vec!["Â ", "Ã", "Σ", "ГўВЂВ", "é", "\u{301}", "&", "&lt", "&EACUTE;", "\u{345}", " "])
            .prop_map(String::from),
        1 => any::<char>().prop_map(String::from),
    ];
    prop_oneof![text(), prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn what_continues_a_prompt_has_the_tokens_of_the_whole(
        prompt in phrase(),
        phrases in prop::collection::vec(phrase(), 1..6),
    ) {
        for tokenizer in CLIP.iter() {
            let phrases: Vec<&str> = phrases.iter().map(String::as_str).collect();
            let whole = phrases.iter().map(|phrase| tokenizer.tokens(&format!("{prompt}, {phrase}")));
            let whole: Vec<Tokens> = whole.collect::<Result<_, _>>().unwrap();
            // New ones, and kept ones.
            for _ in 0..2 {
                prop_assert_eq!(&tokenizer.continued(&prompt, &phrases).unwrap(), &whole);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_text_has_tokens(text in text()) {
        for tokenizer in CLIP.iter() {
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(ids[0], tokenizer.start_id());
            prop_assert_eq!(*ids.last().unwrap(), tokenizer.end_id());
            prop_assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
            // A second run comes out of the cache.
            prop_assert_eq!(&ids, &tokenizer.encode(&text).unwrap());
            let tokens = tokenizer.tokens(&text).unwrap();
            prop_assert_eq!(tokens.truncated, ids.len() > 16);
            prop_assert_eq!(tokens.ids.len(), ids.len().min(16));
            prop_assert_eq!(tokens.ids.last(), ids.last());
            prop_assert_eq!(&tokens.ids[..tokens.ids.len() - 1], &ids[..tokens.ids.len() - 1]);
        }
    }

    #[test]
    fn fixing_ends_and_leaves_nothing_to_fix(text in text()) {
        let fixed = fix_text(&text).into_owned();
        // Each line is fixed to the end; the html rule looks at all lines.
        if !fixed.contains('<') && !fixed.contains('\n') {
            prop_assert_eq!(fix_text(&fixed), &*fixed);
        }
        let _ = unescape_html(&text);
    }

    #[test]
    fn language_model_text_comes_back(text in "[a-zA-Z0-9é中👍]{0,6}( [a-zA-Zéß]{1,6}){0,6}") {
        let ids = OPT.encode(&text).unwrap();
        prop_assert_eq!(ids[0], OPT.bos_id().unwrap());
        prop_assert_eq!(OPT.decode(&ids, true).unwrap(), text);
    }

    #[test]
    fn any_ids_have_text(ids in prop::collection::vec(any::<u32>().prop_map(|id| id % 1300), 0..20)) {
        OPT.decode(&ids, false).unwrap();
        OPT.caption(&ids).unwrap();
        check_settled(&ids);
    }

    /// Texts in which the clean-up of spaces reaches over tokens, and characters of several.
    #[test]
    fn what_is_settled_stays(
        pieces in prop::collection::vec(
            prop::sample::select(vec![
                " ", "  ", "'", " '", " ' ", "n't", " n", "'", "t", "'m", " 've", "v", "ve", "e", ".",
                " .", ",", " !", "?", "re", "cat", " a", "é", "👍", "中", "</s>", "\n", "\u{fffd}",
            ]),
            0..16,
        )
    ) {
        check_settled(&OPT.encode(&pieces.concat()).unwrap());
    }
}

/// What is settled after each id is how the whole begins, and never less than before.
fn check_settled(ids: &[u32]) {
    let whole = OPT.caption(ids).unwrap();
    let mut before = String::new();
    for end in 0..=ids.len() {
        let settled = OPT.settled(&ids[..end]).unwrap();
        assert!(whole.starts_with(&settled), "{settled:?} of {whole:?}");
        assert!(settled.starts_with(&before), "{settled:?} after {before:?}");
        before = settled;
    }
}

#[test]
fn little_is_held_back() {
    let ids = OPT.encode("a cat's 👍 hat").unwrap();
    let told: Vec<String> = (1..=ids.len()).map(|end| OPT.settled(&ids[..end]).unwrap()).collect();
    assert_eq!(told.last().unwrap(), "a cat's 👍 hat");
    // The token of a blank and a letter is told at once, the bytes of a character together.
    assert!(told.iter().any(|text| text.ends_with("cat's 👍")), "{told:?}");
    assert!(!told.iter().any(|text| text.contains(char::REPLACEMENT_CHARACTER)));
}

#[test]
fn long_words_take_no_quadratic_time() {
    let started = std::time::Instant::now();
    let ids = CLIP[0].encode(&"ab".repeat(500_000)).unwrap();
    assert!(ids.len() > 100_000);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

#[test]
fn deep_nesting_is_bounded() {
    let started = std::time::Instant::now();
    let nested = format!("&{}lt;", "amp;".repeat(50_000));
    assert!(fix_text(&nested).len() < nested.len());
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

#[test]
fn many_threads_share_a_tokenizer() {
    let expected = CLIP[0].encode("a painting of a cat, by someone").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..200 {
                    CLIP[0].encode(&format!("word{round}")).unwrap();
                    assert_eq!(
                        CLIP[0].encode("a painting of a cat, by someone").unwrap(),
                        expected
                    );
                }
            });
        }
    });
}

fn refused(folder: &Path) -> String {
    let error = ClipTokenizer::load(folder, Cleaning::OpenClip, 77).err().unwrap();
    assert_eq!(error.kind(), Kind::BadModel);
    error.message().to_string()
}

#[test]
fn a_wrong_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    assert!(
        refused(folder.path()).ends_with("neither tokenizer.json nor vocab.json with merges.txt")
    );
    assert_eq!(CaptionTokenizer::load(folder.path()).err().unwrap().kind(), Kind::BadModel);
    write("vocab.json", r#"{"<|startoftext|>": 0}"#);
    write("merges.txt", "#version: 0.2\na b\n");
    assert!(refused(folder.path()).ends_with("no eos_token in the vocabulary"));
    write("vocab.json", r#"{"<|startoftext|>": 0, "<|endoftext|>": 1}"#);
    assert!(refused(folder.path()).contains("the vocabulary lacks"));
    write("merges.txt", "#version: 0.2\na b\nabc\n");
    assert!(refused(folder.path()).ends_with("merges.txt: line 3 is no pair"));
    write("tokenizer.json", "{");
    assert!(refused(folder.path()).contains("tokenizer.json: EOF"));
    // Another family's tokenizer has other first and last tokens.
    let opt = ClipTokenizer::load(&goldens("opt-small-fast"), Cleaning::HuggingFace, 77);
    assert!(opt.err().unwrap().message().contains("the empty text has 1 tokens"));
    let short = ClipTokenizer::load(&goldens("clip-small"), Cleaning::OpenClip, 1);
    assert_eq!(short.err().unwrap().kind(), Kind::BadModel);
}
