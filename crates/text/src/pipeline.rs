//! The pipelines that transformers builds for folders without a
//! tokenizer.json (transformers 4.33.1, convert_slow_tokenizer.py).

use imprompt_error::{Error, Result};
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::files::{Folder, Vocabulary};

/// The characters that stand for the bytes 0 to 255 in a byte-level vocabulary
/// (`bytes_to_unicode` of GPT-2 and CLIP).
pub(crate) fn byte_symbols() -> impl Iterator<Item = char> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    (0..=0xff_u32).map(move |byte| {
        let code = if printable(byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
}

/// Runs a pipeline over one text, special tokens added.
pub(crate) fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer
        .encode_fast(text, true)
        // The cause may quote the text.
        .map_err(|_| Error::internal(format!("a text of {} bytes has no tokens", text.len())))?;
    Ok(encoding.get_ids().to_vec())
}

/// `CLIPConverter`.
pub(crate) fn clip(
    folder: &Folder,
    vocabulary: &Vocabulary,
    start_id: u32,
    end_id: u32,
) -> Result<Tokenizer> {
    let token_of =
        |id| vocabulary.ids.iter().find(|(_, found)| **found == id).map(|(token, _)| token);
    let (start, end) = (token_of(start_id), token_of(end_id));
    let unknown = folder.special_token("unk_token")?.unwrap_or_else(|| "<|endoftext|>".into());
    let split = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let parts = json!({
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Removed", "invert": true},
            byte_level,
        ]},
        "post_processor": {
            "type": "RobertaProcessing", "sep": [end, end_id], "cls": [start, start_id],
            "trim_offsets": false, "add_prefix_space": false,
        },
        "decoder": byte_level,
    });
    build(folder, vocabulary, parts, ("</w>", Some(unknown)))
}

/// `GPT2Converter`: `bos` is put in front of every text.
pub(crate) fn gpt2(
    folder: &Folder,
    vocabulary: &Vocabulary,
    bos: Option<String>,
) -> Result<Tokenizer> {
    let add_prefix_space = folder.flag("add_prefix_space")?.unwrap_or(false);
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": true});
    let post_processor = match bos {
        None => {
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true})
        }
        Some(bos) => {
            let id =
                vocabulary.id(&bos).ok_or_else(|| folder.bad("no bos_token in the vocabulary"))?;
            let first = json!({"SpecialToken": {"id": bos, "type_id": 0}});
            let text = json!({"Sequence": {"id": "A", "type_id": 0}});
            let second = json!({"Sequence": {"id": "B", "type_id": 1}});
            json!({
                "type": "TemplateProcessing",
                "single": [first, text], "pair": [first, text, second],
                "special_tokens": {&bos: {"id": &bos, "ids": [id], "tokens": [&bos]}},
            })
        }
    };
    let parts = json!({
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": post_processor,
        "decoder": byte_level,
    });
    build(folder, vocabulary, parts, ("", None))
}

/// `BertConverter`, over the tokens of vocab.txt.
pub(crate) fn bert(folder: &Folder, tokens: &[String]) -> Result<Tokenizer> {
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let id = |token: &str| {
        vocab.get(token).cloned().ok_or_else(|| folder.bad(format!("no {token} in vocab.txt")))
    };
    let (cls, sep) = (id("[CLS]")?, id("[SEP]")?);
    let part = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let special = |token: &str, id: &Value| json!({"id": token, "ids": [id], "tokens": [token]});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let second = json!({"Sequence": {"id": "B", "type_id": 1}});
    let parts = json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true,
            "handle_chinese_chars": folder.flag("tokenize_chinese_chars")?.unwrap_or(true),
            "strip_accents": folder.flag("strip_accents")?,
            "lowercase": folder.flag("do_lower_case")?.unwrap_or(true),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [part("[CLS]"), text, part("[SEP]")],
            "pair": [part("[CLS]"), text, part("[SEP]"), second, part("[SEP]")],
            "special_tokens": {"[CLS]": special("[CLS]", &cls), "[SEP]": special("[SEP]", &sep)},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab,
        },
    });
    let mut tokenizer: Tokenizer = parts.to_string().parse().map_err(|error| folder.bad(error))?;
    folder.add_special_tokens(&mut tokenizer)?;
    Ok(tokenizer)
}

fn build(
    folder: &Folder,
    vocabulary: &Vocabulary,
    mut parts: Value,
    (suffix, unknown): (&str, Option<String>),
) -> Result<Tokenizer> {
    parts["version"] = "1.0".into();
    parts["added_tokens"] = json!([]);
    parts["model"] = json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": "",
        "end_of_word_suffix": suffix, "fuse_unk": false,
        "vocab": vocabulary.ids, "merges": vocabulary.merges,
    });
    let mut tokenizer: Tokenizer = parts.to_string().parse().map_err(|error| folder.bad(error))?;
    folder.add_special_tokens(&mut tokenizer)?;
    Ok(tokenizer)
}
