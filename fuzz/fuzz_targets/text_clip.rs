//! Any text as a label, by both cleanings. Seeds: the strings of
//! `goldens/text/clip.jsonl`.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use imprompt_text::{Cleaning, ClipTokenizer};
use libfuzzer_sys::fuzz_target;

static TOKENIZERS: LazyLock<[ClipTokenizer; 2]> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/text/clip-small");
    [Cleaning::OpenClip, Cleaning::HuggingFace]
        .map(|cleaning| ClipTokenizer::load(&folder, cleaning, 77).unwrap())
});

fuzz_target!(|text: &str| {
    for tokenizer in TOKENIZERS.iter() {
        let tokens = tokenizer.tokens(text).unwrap();
        assert!(tokens.ids.len() <= 77);
        assert_eq!(tokens.ids.first(), Some(&tokenizer.start_id()));
        assert_eq!(tokens.ids.last(), Some(&tokenizer.end_id()));
        assert!(tokens.ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
    }
});
