//! BLIP-2's configuration and graphs, without running them: what is refused and
//! how, what is read and what is not. (What the graphs compute is compared with
//! transformers in `crates/caption/tests/blip2.rs`.)

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use imprompt_error::{Error, Kind};
use imprompt_graph::captioner::{DECODER_GRAPH, QFORMER_GRAPH, VISION_GRAPH};
use imprompt_graph::{CaptionFacts, CaptionFamily, caption_graphs};
use serde_json::{Value, json};

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/blip2").join(model)
}

/// A copy of a golden folder with its weights' headers alone: the data are holes.
fn headers_only(model: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(model)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let target = folder.path().join(&name);
        if !name.starts_with("model") || !name.ends_with(".safetensors") {
            fs::copy(entry.path(), target).unwrap();
            continue;
        }
        let mut source = File::open(entry.path()).unwrap();
        let mut length = [0; 8];
        source.read_exact(&mut length).unwrap();
        let mut header = vec![0; u64::from_le_bytes(length) as usize];
        source.read_exact(&mut header).unwrap();
        let mut file = File::create(target).unwrap();
        file.write_all(&length).unwrap();
        file.write_all(&header).unwrap();
        file.set_len(source.metadata().unwrap().len()).unwrap();
    }
    folder
}

/// The error of model `plain` with `value` put at `path` of its `file`.
fn refusal(file: &str, path: &str, value: Value) -> Error {
    let folder = headers_only("plain");
    let file = folder.path().join(file);
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let mut at = &mut config;
    for key in path.split('/') {
        at = &mut at[key];
    }
    *at = value;
    fs::write(file, config.to_string()).unwrap();
    caption_graphs(folder.path()).expect_err(path)
}

#[test]
fn only_headers_are_read() {
    for model in ["plain", "no_final_norm", "untied_bf16"] {
        let hollow = headers_only(model);
        let hollow = caption_graphs(hollow.path()).unwrap();
        let whole = caption_graphs(&golden(model)).unwrap();
        assert_eq!(hollow.facts, whole.facts);
        assert_eq!(hollow.files, whole.files, "{model}");
        let names: Vec<_> = whole.files.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, [VISION_GRAPH, QFORMER_GRAPH, DECODER_GRAPH]);
    }
}

#[test]
fn facts_are_those_of_the_configuration() {
    let facts = caption_graphs(&golden("projected")).unwrap().facts;
    assert_eq!(facts.family, CaptionFamily::Blip2Opt);
    assert_eq!((facts.image_size, facts.query_tokens, facts.embedding_width), (32, 4, 20));
    assert_eq!((facts.layers, facts.heads, facts.head_dim), (2, 2, 16));
    assert_eq!((facts.vocabulary, facts.max_positions, facts.bos_token_id), (96, 64, 2));
    let text = serde_json::to_string(&facts).unwrap();
    assert_eq!(serde_json::from_str::<CaptionFacts>(&text).unwrap(), facts);

    // transformers' defaults, where config.json says nothing.
    let facts = caption_graphs(&golden("defaults")).unwrap().facts;
    assert_eq!((facts.query_tokens, facts.heads, facts.max_positions), (32, 12, 2048));
    let folder = headers_only("defaults");
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["text_config"].as_object_mut().unwrap().remove("eos_token_id");
    fs::write(&path, config.to_string()).unwrap();
    assert_eq!(caption_graphs(folder.path()).unwrap().facts.eos_token_ids, [2]);
    config["text_config"]["eos_token_id"] = json!([5, 7]);
    fs::write(&path, config.to_string()).unwrap();
    assert_eq!(caption_graphs(folder.path()).unwrap().facts.eos_token_ids, [5, 7]);
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    let config = "config.json";
    for (path, value, named) in [
        ("model_type", json!("blip"), "\"blip-2\""),
        ("text_config/model_type", json!("t5"), "supported: \"opt\""),
        ("use_decoder_only_language_model", json!(false), "use_decoder_only_language_model"),
        ("text_config/activation_function", json!("gelu_10"), "activation_function"),
        ("text_config/num_beams", json!(5), "num_beams is 5; supported: 1"),
        ("text_config/do_sample", json!(true), "do_sample"),
        ("text_config/min_length", json!(8), "min_length"),
        ("text_config/repetition_penalty", json!(1.5), "repetition_penalty"),
        ("text_config/no_repeat_ngram_size", json!(3), "no_repeat_ngram_size"),
        ("text_config/suppress_tokens", json!([4]), "suppress_tokens"),
        ("text_config/rotary_base", json!(10000), "rotary_base"),
        ("qformer_config/position_embedding_type", json!("relative_key"), "relative_key"),
        ("qformer_config/use_qformer_text_input", json!(true), "use_qformer_text_input"),
        ("vision_config/num_channels", json!(1), "num_channels"),
        ("vision_config/use_swiglu", json!(true), "use_swiglu"),
        ("instruct", json!(1), "instruct"),
    ] {
        let error = refusal(config, path, value);
        assert_eq!(error.kind(), Kind::Unsupported, "{path}: {error}");
        assert!(error.message().contains(named), "{path}: {error}");
    }
    for (key, value) in [("num_beams", json!(4)), ("do_sample", json!(true))] {
        let error = refusal("generation_config.json", key, value);
        assert_eq!(error.kind(), Kind::Unsupported, "{key}: {error}");
        assert!(error.message().contains("generation_config.json"), "{error}");
        assert!(error.message().contains(key), "{error}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let config = "config.json";
    for (path, value, named) in [
        ("vision_config/num_attention_heads", json!(5), "no multiple of num_attention_heads 5"),
        ("qformer_config/num_attention_heads", json!(7), "no multiple of num_attention_heads 7"),
        ("text_config/num_attention_heads", json!(6), "no multiple of num_attention_heads 6"),
        ("vision_config/patch_size", json!(64), "patch_size 64 is larger"),
        ("text_config/eos_token_id", json!(96), "token id 96 is not below vocab_size 96"),
        ("text_config/eos_token_id", json!("</s>"), "eos_token_id"),
        ("num_query_tokens", json!(0), "num_query_tokens"),
        ("num_query_tokens", json!(5), "query_tokens has shape [1, 4, 24]"),
        ("text_config/word_embed_proj_dim", json!(20), "language_projection.weight has shape"),
        ("text_config/tie_word_embeddings", json!(false), "lm_head.weight"),
        ("text_config/num_hidden_layers", json!(3), "layers.2."),
        ("qformer_config/cross_attention_frequency", json!(1), "layer.1.crossattention"),
        ("text_config/max_position_embeddings", json!(60), "embed_positions.weight has shape"),
    ] {
        let error = refusal(config, path, value);
        assert_eq!(error.kind(), Kind::BadModel, "{path}: {error}");
        assert!(error.message().contains(named), "{path}: {error}");
    }
    let folder = headers_only("plain");
    fs::write(folder.path().join("generation_config.json"), "[]").unwrap();
    assert_eq!(caption_graphs(folder.path()).unwrap_err().kind(), Kind::BadModel);
    fs::remove_file(folder.path().join("generation_config.json")).unwrap();
    caption_graphs(folder.path()).unwrap();
}
