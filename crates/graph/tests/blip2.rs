//! BLIP-2's configuration and graphs, without running them: what is refused and
//! how, what is read and what is not. (What the graphs compute is compared with
//! transformers in `crates/caption/tests/blip2.rs`.)

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use imprompt_error::{Error, Kind};
use imprompt_graph::captioner::{DECODER_GRAPH, QFORMER_GRAPH, VISION_GRAPH};
use imprompt_graph::{CaptionFacts, CaptionFamily, EarlyStoppingFact, caption_graphs};
use serde_json::{Value, json};

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/blip2").join(model)
}

/// The InstructBLIP that is refused in parts.
const INSTRUCT: &str = "../captioners/instruct_plain";

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
    refusal_of("plain", file, path, value)
}

/// The error of `model` with `value` put at `path` of its `file`.
fn refusal_of(model: &str, file: &str, path: &str, value: Value) -> Error {
    let folder = headers_only(model);
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
    assert_eq!((facts.image_size, facts.picture_positions, facts.picture_width), (32, 4, 20));
    assert_eq!((facts.layers, facts.heads, facts.head_dim), (2, 2, 16));
    assert_eq!((facts.vocabulary, facts.max_positions, facts.bos_token_id), (96, Some(64), 2));
    let text = serde_json::to_string(&facts).unwrap();
    assert_eq!(serde_json::from_str::<CaptionFacts>(&text).unwrap(), facts);

    // transformers' defaults, where config.json says nothing.
    let facts = caption_graphs(&golden("defaults")).unwrap().facts;
    assert_eq!((facts.picture_positions, facts.heads, facts.max_positions), (32, 12, Some(2048)));
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
        ("model_type", json!("llava"), "\"blip-2\""),
        ("text_config/model_type", json!("llama"), "supported: \"opt\", \"t5\""),
        ("use_decoder_only_language_model", json!(false), "use_decoder_only_language_model"),
        ("text_config/activation_function", json!("gelu_10"), "activation_function"),
        ("text_config/num_beam_groups", json!(2), "num_beam_groups is 2; supported: 1"),
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
    for (key, value) in [("guidance_scale", json!(4)), ("bad_words_ids", json!([[4]]))] {
        let error = refusal("generation_config.json", key, value);
        assert_eq!(error.kind(), Kind::Unsupported, "{key}: {error}");
        assert!(error.message().contains("generation_config.json"), "{error}");
        assert!(error.message().contains(key), "{error}");
    }
}

#[test]
fn instruct_blip_is_refused_where_it_is_another() {
    for (path, value, named) in [
        ("text_config/model_type", json!("llama"), "\"llama\"; supported: \"t5\""),
        ("text_config/model_type", json!("opt"), "\"opt\"; supported: \"t5\""),
        ("qformer_config/position_embedding_type", json!("relative_key"), "relative_key"),
        ("qformer_config/use_qformer_text_input", json!(false), "use_qformer_text_input"),
        ("qformer_config/model_type", json!("blip_2_qformer"), "instructblip_qformer"),
        ("vision_config/use_swiglu", json!(true), "use_swiglu"),
        ("num_frames", json!(4), "num_frames"),
    ] {
        let error = refusal_of(INSTRUCT, "config.json", path, value);
        assert_eq!(error.kind(), Kind::Unsupported, "{path}: {error}");
        assert!(error.message().contains(named), "{path}: {error}");
    }
    let error = refusal_of(INSTRUCT, "config.json", "qformer_config/vocab_size", json!(102));
    assert_eq!(error.kind(), Kind::BadModel);
    assert!(error.message().contains("qformer.embeddings.word_embeddings.weight"), "{error}");
}

#[test]
fn generation_is_as_the_checkpoint_asks() {
    let folder = headers_only("plain");
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["text_config"]["num_beams"] = json!(5);
    config["text_config"]["min_length"] = json!(8);
    fs::write(&path, config.to_string()).unwrap();
    let generation = json!({"num_beams": 3, "length_penalty": -1, "early_stopping": "never"});
    fs::write(folder.path().join("generation_config.json"), generation.to_string()).unwrap();
    let facts = caption_graphs(folder.path()).unwrap().facts;
    let found = (facts.generation.num_beams, facts.generation.min_length);
    assert_eq!(found, (3, 8), "generation_config.json comes last");
    assert_eq!(facts.generation.length_penalty, -1.0);
    assert_eq!(facts.generation.early_stopping, EarlyStoppingFact::Never);
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

/// Name and shape of every tensor of `Salesforce/blip2-opt-2.7b` that is read.
fn tensors_of_opt_2_7b() -> Vec<(String, Vec<u64>)> {
    let (vision, qformer, text) = (1408, 768, 2560);
    let mut tensors: Vec<(String, Vec<u64>)> = Vec::new();
    let mut add = |name: String, shape: &[u64]| tensors.push((name, shape.to_vec()));
    add("query_tokens".into(), &[1, 32, qformer]);
    add("vision_model.embeddings.class_embedding".into(), &[1, 1, vision]);
    add("vision_model.embeddings.position_embedding".into(), &[1, 257, vision]);
    add("vision_model.embeddings.patch_embedding.weight".into(), &[vision, 3, 14, 14]);
    add("vision_model.embeddings.patch_embedding.bias".into(), &[vision]);
    let mut linears: Vec<(String, u64, u64)> = Vec::new();
    let mut norms: Vec<(String, u64)> = vec![
        ("vision_model.post_layernorm".into(), vision),
        ("qformer.layernorm".into(), qformer),
        ("language_model.model.decoder.final_layer_norm".into(), text),
    ];
    for layer in 0..39 {
        let at = format!("vision_model.encoder.layers.{layer}");
        norms.extend(["layer_norm1", "layer_norm2"].map(|n| (format!("{at}.{n}"), vision)));
        linears.push((format!("{at}.self_attn.qkv"), vision, 3 * vision));
        linears.push((format!("{at}.self_attn.projection"), vision, vision));
        linears.push((format!("{at}.mlp.fc1"), vision, 6144));
        linears.push((format!("{at}.mlp.fc2"), 6144, vision));
    }
    for layer in 0..12 {
        let at = format!("qformer.encoder.layer.{layer}");
        let mut attentions = vec![(format!("{at}.attention"), qformer)];
        if layer % 2 == 0 {
            attentions.push((format!("{at}.crossattention"), vision));
        }
        for (attention, width) in attentions {
            linears.push((format!("{attention}.attention.query"), qformer, qformer));
            linears.push((format!("{attention}.attention.key"), width, qformer));
            linears.push((format!("{attention}.attention.value"), width, qformer));
            linears.push((format!("{attention}.output.dense"), qformer, qformer));
            norms.push((format!("{attention}.output.LayerNorm"), qformer));
        }
        linears.push((format!("{at}.intermediate_query.dense"), qformer, 3072));
        linears.push((format!("{at}.output_query.dense"), 3072, qformer));
        norms.push((format!("{at}.output_query.LayerNorm"), qformer));
    }
    linears.push(("language_projection".into(), qformer, text));
    for layer in 0..32 {
        let at = format!("language_model.model.decoder.layers.{layer}");
        for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            linears.push((format!("{at}.self_attn.{projection}"), text, text));
        }
        linears.push((format!("{at}.fc1"), text, 10240));
        linears.push((format!("{at}.fc2"), 10240, text));
        let names = ["self_attn_layer_norm", "final_layer_norm"];
        norms.extend(names.map(|n| (format!("{at}.{n}"), text)));
    }
    for (name, input, output) in linears {
        add(format!("{name}.weight"), &[output, input]);
        add(format!("{name}.bias"), &[output]);
    }
    for (name, width) in norms {
        add(format!("{name}.weight"), &[width]);
        add(format!("{name}.bias"), &[width]);
    }
    add("language_model.model.decoder.embed_tokens.weight".into(), &[50304, text]);
    add("language_model.model.decoder.embed_positions.weight".into(), &[2050, text]);
    tensors
}

#[test]
fn a_model_of_15_gb_is_built_from_its_header() {
    let folder = tempfile::tempdir().unwrap();
    // As the hub's config.json has it: what is missing are transformers' defaults.
    let config = json!({
        "architectures": ["Blip2ForConditionalGeneration"],
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "model_type": "blip-2",
        "num_query_tokens": 32,
        "qformer_config": {"classifier_dropout": null, "model_type": "blip_2_qformer"},
        "text_config": {
            "_name_or_path": "facebook/opt-2.7b",
            "activation_dropout": 0.0,
            "architectures": ["OPTForCausalLM"],
            "eos_token_id": 50118,
            "ffn_dim": 10240,
            "hidden_size": 2560,
            "model_type": "opt",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "prefix": "</s>",
            "torch_dtype": "float16",
            "vocab_size": 50304,
            "word_embed_proj_dim": 2560
        },
        "torch_dtype": "float32",
        "use_decoder_only_language_model": true,
        "vision_config": {"dropout": 0.0, "model_type": "blip_2_vision_model", "projection_dim": 512}
    });
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors_of_opt_2_7b() {
        let begin = end;
        end += 4 * shape.iter().product::<u64>();
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]});
        header.insert(name, entry);
    }
    assert!(end > 14_900_000_000, "{end} bytes");
    let header = Value::Object(header).to_string();
    let mut file = File::create(folder.path().join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();

    let start = std::time::Instant::now();
    let graphs = caption_graphs(folder.path()).unwrap();
    let seconds = start.elapsed().as_secs_f32();
    let bytes: usize = graphs.files.iter().map(|(_, graph)| graph.bytes.len()).sum();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
    println!("{end} bytes: {seconds:.2} s, graphs of {bytes} bytes, at most {most}");
    let kilobytes: u64 = most.trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes < 300 * 1024, "{most}");
    assert!(bytes < 4 << 20, "{bytes} bytes of graphs");
    assert_eq!((graphs.facts.layers, graphs.facts.head_dim), (32, 80));
    assert_eq!(graphs.facts.eos_token_ids, [50118]);
}
