use std::path::PathBuf;

use imprompt_error::Kind;
use serde_json::{Map, Value, json};

use super::config::{TOP_KEYS, TOWER_KEYS};
use super::*;
use crate::builder::Activation;
use crate::config::{DESCRIPTIVE_KEYS, GENERATION_KEYS, TRAINING_KEYS};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens/clip").join(name)
}

fn read(config: &Value) -> Result<ClipConfig> {
    let Value::Object(values) = config else { panic!("not an object") };
    ClipConfig::read(&Section::new("config.json", values.clone()))
}

fn with(section: &str, key: &str, value: Value) -> Value {
    json!({ section: { key: value } })
}

#[test]
fn absent_keys_have_the_defaults_of_transformers() {
    let config = read(&json!({})).unwrap();
    assert_eq!(config, read(&json!({"text_config": {}, "vision_config": null})).unwrap());
    assert_eq!((config.projection_dim, config.vocabulary, config.context_length), (512, 49408, 77));
    assert_eq!(config.eos, EosRule::FirstOf(49407));
    let Tower { width, hidden, layers, heads, activation, epsilon } = config.text;
    assert_eq!((width, hidden, layers, heads), (512, 2048, 12, 8));
    assert_eq!((activation, epsilon), (Activation::QuickGelu, 1e-5));
    let Tower { width, hidden, layers, heads, .. } = config.vision;
    assert_eq!((width, hidden, layers, heads), (768, 3072, 12, 12));
    assert_eq!((config.image_size, config.patch_size, config.channels), (224, 32, 3));
}

#[test]
fn every_value_is_honoured() {
    let changed = |config: Value| read(&config).unwrap();
    let base = changed(json!({}));
    assert_eq!(changed(json!({"projection_dim": 7})).projection_dim, 7);
    let text = |key: &str, value: Value| changed(with("text_config", key, value));
    assert_eq!(text("hidden_size", json!(64)).text.width, 64);
    assert_eq!(text("intermediate_size", json!(5)).text.hidden, 5);
    assert_eq!(text("num_hidden_layers", json!(5)).text.layers, 5);
    assert_eq!(text("num_attention_heads", json!(4)).text.heads, 4);
    assert_eq!(text("layer_norm_eps", json!(0.25)).text.epsilon, 0.25);
    assert_eq!(text("hidden_act", json!("gelu")).text.activation, Activation::Gelu);
    assert_eq!(text("vocab_size", json!(9)).vocabulary, 9);
    assert_eq!(text("max_position_embeddings", json!(9)).context_length, 9);
    assert_eq!(text("eos_token_id", json!(2)).eos, EosRule::HighestId);
    assert_eq!(text("eos_token_id", json!(9)).eos, EosRule::FirstOf(9));
    assert_eq!(text("hidden_size", json!(64)).vision, base.vision);
    let vision = |key: &str, value: Value| changed(with("vision_config", key, value));
    assert_eq!(vision("hidden_size", json!(48)).vision.width, 48);
    assert_eq!(vision("hidden_act", json!("relu")).vision.activation, Activation::Relu);
    assert_eq!(vision("image_size", json!(56)).image_size, 56);
    assert_eq!(vision("patch_size", json!(14)).patch_size, 14);
    assert_eq!(vision("num_channels", json!(1)).channels, 1);
    assert_eq!(vision("hidden_size", json!(48)).text, base.text);
}

#[test]
fn a_second_section_wins_with_its_defaults() {
    let config = read(&json!({
        "text_config": {"hidden_size": 64, "hidden_act": "gelu", "eos_token_id": 2},
        "text_config_dict": {"hidden_size": 128},
    }))
    .unwrap();
    assert_eq!(config.text.width, 128);
    assert_eq!(config.text.activation, Activation::QuickGelu);
    assert_eq!(config.eos, EosRule::FirstOf(49407));
}

#[test]
fn what_would_change_the_result_is_refused_by_name() {
    let refused = |config: Value, key: &str, kind: Kind| {
        let error = read(&config).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(key), "{error}");
    };
    refused(json!({"model_type": "siglip"}), "model_type", Kind::Unsupported);
    refused(json!({"architectures": ["CLIPTextModel"]}), "architectures", Kind::Unsupported);
    refused(json!({"quantization_config": {}}), "quantization_config", Kind::Unsupported);
    for section in ["text_config", "vision_config"] {
        let unsupported =
            |key: &str, value: Value| refused(with(section, key, value), key, Kind::Unsupported);
        unsupported("hidden_act", json!("tanh"));
        unsupported("pruned_heads", json!({"0": [1]}));
        unsupported("model_type", json!("bert"));
        unsupported("rope_theta", json!(10000.0));
        let bad = |key: &str, value: Value| refused(with(section, key, value), key, Kind::BadModel);
        bad("hidden_size", json!(0));
        bad("hidden_size", json!(63));
        bad("num_hidden_layers", json!(-1));
        bad("num_attention_heads", json!("8"));
        bad("layer_norm_eps", json!("small"));
        bad("hidden_act", json!(1));
    }
    refused(json!({"text_config": 5}), "text_config", Kind::BadModel);
    refused(with("text_config", "eos_token_id", json!([1])), "eos_token_id", Kind::BadModel);
    refused(with("vision_config", "patch_size", json!(225)), "patch_size", Kind::BadModel);
}

#[test]
fn what_does_not_change_the_result_is_passed_over() {
    let lists = [DESCRIPTIVE_KEYS, GENERATION_KEYS];
    let top: Map<String, Value> = lists
        .iter()
        .flat_map(|list| list.iter())
        .chain(TOP_KEYS)
        .filter(|key| !["model_type", "architectures"].contains(key))
        .map(|key| ((*key).to_owned(), json!(1)))
        .collect();
    let section: Map<String, Value> = lists
        .iter()
        .flat_map(|list| list.iter())
        .chain(TRAINING_KEYS)
        .chain(TOWER_KEYS)
        .filter(|key| !["model_type", "eos_token_id"].contains(key))
        .map(|key| ((*key).to_owned(), json!(1)))
        .collect();
    let mut config = top;
    config.insert("text_config".into(), section.clone().into());
    config.insert("vision_config".into(), section.into());
    assert_eq!(read(&config.into()).unwrap(), read(&json!({})).unwrap());
}

#[test]
fn the_end_token_is_found_by_both_rules() {
    assert_eq!(EosRule::HighestId.position(&[1, 9, 3, 9, 0]), 1);
    assert_eq!(EosRule::FirstOf(3).position(&[1, 9, 3, 9, 3]), 2);
    assert_eq!(EosRule::FirstOf(4).position(&[1, 9, 3]), 0);
    assert_eq!(EosRule::HighestId.position(&[]), 0);
}

#[test]
fn the_same_folder_gives_the_same_bytes() {
    for name in ["quick_gelu", "gelu_f16", "sharded_bf16", "section_dicts"] {
        let (first, second) =
            (clip_graphs(&golden(name)).unwrap(), clip_graphs(&golden(name)).unwrap());
        assert_eq!(first.image, second.image);
        assert_eq!(first.text, second.text);
        assert_eq!(first.facts, second.facts);
        // References, not copies.
        assert!(first.text.bytes.len() < 60_000, "{}", first.text.bytes.len());
        let json = serde_json::to_string(&first.facts).unwrap();
        assert_eq!(serde_json::from_str::<ClipFacts>(&json).unwrap(), first.facts);
    }
}

#[test]
fn shards_are_referenced_by_name() {
    let graphs = clip_graphs(&golden("sharded_bf16")).unwrap();
    assert!(graphs.text.weight_files.len() > 1);
    assert!(graphs.text.weight_files.iter().all(|file| file.starts_with("model-0000")));
}

#[test]
fn a_tensor_that_does_not_fit_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let source = golden("quick_gelu");
    std::fs::copy(source.join("model.safetensors"), folder.path().join("model.safetensors"))
        .unwrap();
    let text = std::fs::read_to_string(source.join("config.json")).unwrap();
    let write = |text: String| std::fs::write(folder.path().join("config.json"), text).unwrap();
    write(text.replace("\"projection_dim\": 40", "\"projection_dim\": 41"));
    let error = clip_graphs(folder.path()).unwrap_err();
    assert_eq!(error.kind(), Kind::BadModel);
    assert!(error.message().contains("visual_projection.weight has shape [40, 48]"), "{error}");
    write(text.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4"));
    let error = clip_graphs(folder.path()).unwrap_err();
    assert!(error.message().contains("text_model.encoder.layers.3.layer_norm1.weight"), "{error}");
}
