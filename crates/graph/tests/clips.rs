//! The configurations that public CLIPs have, as their hub folders have them: each is accepted,
//! with weights of which the header alone is real. What the graphs compute is compared with the
//! references in `crates/clip/tests/goldens.rs`.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use imprompt_graph::{ClipFamily, ClipGraphs, EosRule, Probability, clip_graphs};
use serde_json::{Value, json};

/// Names and shapes, in the order of the file, and its scalars.
#[derive(Default)]
struct Tensors(Vec<(String, Vec<usize>)>);

impl Tensors {
    fn tensor(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.push((name.into(), shape.to_vec()));
    }

    fn linear(&mut self, name: &str, out: usize, inner: usize) {
        self.tensor(format!("{name}.weight"), &[out, inner]);
        self.tensor(format!("{name}.bias"), &[out]);
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.tensor(format!("{name}.weight"), &[width]);
        self.tensor(format!("{name}.bias"), &[width]);
    }

    fn transformers_layers(&mut self, tower: &str, [width, hidden, layers]: [usize; 3]) {
        for layer in 0..layers {
            let at = format!("{tower}.encoder.layers.{layer}");
            for part in ["k_proj", "v_proj", "q_proj", "out_proj"] {
                self.linear(&format!("{at}.self_attn.{part}"), width, width);
            }
            self.norm(&format!("{at}.layer_norm1"), width);
            self.linear(&format!("{at}.mlp.fc1"), hidden, width);
            self.linear(&format!("{at}.mlp.fc2"), width, hidden);
            self.norm(&format!("{at}.layer_norm2"), width);
        }
    }

    fn open_clip_layers(&mut self, tower: &str, [width, hidden, layers]: [usize; 3]) {
        for layer in 0..layers {
            let at = format!("{tower}.resblocks.{layer}");
            self.tensor(format!("{at}.attn.in_proj_weight"), &[3 * width, width]);
            self.tensor(format!("{at}.attn.in_proj_bias"), &[3 * width]);
            self.linear(&format!("{at}.attn.out_proj"), width, width);
            self.norm(&format!("{at}.ln_1"), width);
            self.linear(&format!("{at}.mlp.c_fc"), hidden, width);
            self.linear(&format!("{at}.mlp.c_proj"), width, hidden);
            self.norm(&format!("{at}.ln_2"), width);
        }
    }

    /// Writes a sparse file of elements of type `dtype`, whose data are zeros, and whole numbers
    /// for `position_ids` as old checkpoints have them.
    fn write(&self, path: &Path, dtype: &str) {
        let size = if dtype == "F32" { 4 } else { 2 };
        let (mut header, mut end) = (String::from("{\"__metadata__\":{\"format\":\"pt\"}"), 0);
        for (name, shape) in &self.0 {
            let (dtype, size) =
                if name.ends_with("position_ids") { ("I64", 8) } else { (dtype, size) };
            let bytes = size * shape.iter().product::<usize>() as u64;
            let _ = write!(
                header,
                ",\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{end},{}]}}",
                end + bytes
            );
            end += bytes;
        }
        header.push('}');
        let mut out = File::create(path).unwrap();
        out.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        out.write_all(header.as_bytes()).unwrap();
        out.set_len(8 + header.len() as u64 + end).unwrap();
    }
}

/// The sizes of a tower: width, width of the feed-forward part, layers.
type Sizes = [usize; 3];

/// The tensors of a `CLIPModel`.
fn clip_tensors(dim: usize, text: Sizes, image: Sizes, [size, patch]: [usize; 2]) -> Tensors {
    let mut tensors = Tensors::default();
    let positions = (size / patch).pow(2) + 1;
    tensors.tensor("logit_scale", &[]);
    let embeddings = "text_model.embeddings";
    tensors.tensor(format!("{embeddings}.position_ids"), &[1, 77]);
    tensors.tensor(format!("{embeddings}.token_embedding.weight"), &[49408, text[0]]);
    tensors.tensor(format!("{embeddings}.position_embedding.weight"), &[77, text[0]]);
    tensors.transformers_layers("text_model", text);
    tensors.norm("text_model.final_layer_norm", text[0]);
    tensors.tensor("text_projection.weight", &[dim, text[0]]);
    let embeddings = "vision_model.embeddings";
    tensors.tensor(format!("{embeddings}.position_ids"), &[1, positions]);
    tensors.tensor(format!("{embeddings}.class_embedding"), &[image[0]]);
    tensors.tensor(format!("{embeddings}.patch_embedding.weight"), &[image[0], 3, patch, patch]);
    tensors.tensor(format!("{embeddings}.position_embedding.weight"), &[positions, image[0]]);
    tensors.norm("vision_model.pre_layrnorm", image[0]);
    tensors.transformers_layers("vision_model", image);
    tensors.norm("vision_model.post_layernorm", image[0]);
    tensors.tensor("visual_projection.weight", &[dim, image[0]]);
    tensors
}

/// The tensors of open_clip's `CLIP`, with `prefix` before the text tower's.
fn open_clip_tensors(
    dim: usize,
    prefix: &str,
    text: Sizes,
    image: Sizes,
    [size, patch]: [usize; 2],
) -> Tensors {
    let mut tensors = Tensors::default();
    let positions = (size / patch).pow(2) + 1;
    tensors.tensor(format!("{prefix}positional_embedding"), &[77, text[0]]);
    tensors.tensor(format!("{prefix}text_projection"), &[text[0], dim]);
    tensors.tensor("logit_scale", &[]);
    tensors.tensor("visual.class_embedding", &[image[0]]);
    tensors.tensor("visual.positional_embedding", &[positions, image[0]]);
    tensors.tensor("visual.proj", &[image[0], dim]);
    tensors.tensor("visual.conv1.weight", &[image[0], 3, patch, patch]);
    tensors.norm("visual.ln_pre", image[0]);
    tensors.open_clip_layers("visual.transformer", image);
    tensors.norm("visual.ln_post", image[0]);
    tensors.open_clip_layers(&format!("{prefix}transformer"), text);
    tensors.tensor(format!("{prefix}token_embedding.weight"), &[49408, text[0]]);
    tensors.norm(&format!("{prefix}ln_final"), text[0]);
    tensors
}

/// The tensors of a `SiglipModel`.
fn siglip_tensors(words: usize, text: Sizes, image: Sizes, [size, patch]: [usize; 2]) -> Tensors {
    let mut tensors = Tensors::default();
    tensors.tensor("logit_scale", &[1]);
    tensors.tensor("logit_bias", &[1]);
    let embeddings = "text_model.embeddings";
    tensors.tensor(format!("{embeddings}.token_embedding.weight"), &[words, text[0]]);
    tensors.tensor(format!("{embeddings}.position_embedding.weight"), &[64, text[0]]);
    tensors.transformers_layers("text_model", text);
    tensors.norm("text_model.final_layer_norm", text[0]);
    tensors.linear("text_model.head", image[0], text[0]);
    let embeddings = "vision_model.embeddings";
    tensors.tensor(format!("{embeddings}.patch_embedding.weight"), &[image[0], 3, patch, patch]);
    tensors.tensor(format!("{embeddings}.patch_embedding.bias"), &[image[0]]);
    let positions = (size / patch).pow(2);
    tensors.tensor(format!("{embeddings}.position_embedding.weight"), &[positions, image[0]]);
    tensors.transformers_layers("vision_model", image);
    tensors.norm("vision_model.post_layernorm", image[0]);
    let head = "vision_model.head";
    tensors.tensor(format!("{head}.probe"), &[1, 1, image[0]]);
    tensors.tensor(format!("{head}.attention.in_proj_weight"), &[3 * image[0], image[0]]);
    tensors.tensor(format!("{head}.attention.in_proj_bias"), &[3 * image[0]]);
    tensors.linear(&format!("{head}.attention.out_proj"), image[0], image[0]);
    tensors.norm(&format!("{head}.layernorm"), image[0]);
    tensors.linear(&format!("{head}.mlp.fc1"), image[1], image[0]);
    tensors.linear(&format!("{head}.mlp.fc2"), image[0], image[1]);
    tensors
}

/// The tensors of open_clip's `CustomTextCLIP` with an image tower of timm.
fn timm_tensors(
    [words, slots]: [usize; 2],
    text: Sizes,
    image: Sizes,
    [size, patch]: [usize; 2],
    has_projection: bool,
) -> Tensors {
    let mut tensors = Tensors::default();
    let width = image[0];
    tensors.tensor("logit_scale", &[]);
    tensors.tensor("logit_bias", &[]);
    let trunk = "visual.trunk";
    tensors.tensor(format!("{trunk}.pos_embed"), &[1, (size / patch).pow(2), width]);
    tensors.tensor(format!("{trunk}.patch_embed.proj.weight"), &[width, 3, patch, patch]);
    tensors.tensor(format!("{trunk}.patch_embed.proj.bias"), &[width]);
    for layer in 0..image[2] {
        let at = format!("{trunk}.blocks.{layer}");
        tensors.norm(&format!("{at}.norm1"), width);
        tensors.linear(&format!("{at}.attn.qkv"), 3 * width, width);
        tensors.linear(&format!("{at}.attn.proj"), width, width);
        tensors.norm(&format!("{at}.norm2"), width);
        tensors.linear(&format!("{at}.mlp.fc1"), image[1], width);
        tensors.linear(&format!("{at}.mlp.fc2"), width, image[1]);
    }
    tensors.norm(&format!("{trunk}.norm"), width);
    let pool = format!("{trunk}.attn_pool");
    tensors.tensor(format!("{pool}.latent"), &[1, 1, width]);
    tensors.linear(&format!("{pool}.q"), width, width);
    tensors.linear(&format!("{pool}.kv"), 2 * width, width);
    tensors.linear(&format!("{pool}.proj"), width, width);
    tensors.norm(&format!("{pool}.norm"), width);
    tensors.linear(&format!("{pool}.mlp.fc1"), image[1], width);
    tensors.linear(&format!("{pool}.mlp.fc2"), width, image[1]);
    tensors.tensor("text.positional_embedding", &[slots, text[0]]);
    tensors.tensor("text.token_embedding.weight", &[words, text[0]]);
    tensors.open_clip_layers("text.transformer", text);
    tensors.norm("text.ln_final", text[0]);
    if has_projection {
        tensors.linear("text.text_projection", width, text[0]);
    }
    tensors
}

fn graphs(config: (&str, &Value), weights: &str, tensors: &Tensors, dtype: &str) -> ClipGraphs {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(config.0), config.1.to_string()).unwrap();
    tensors.write(&folder.path().join(weights), dtype);
    clip_graphs(folder.path()).unwrap()
}

/// What a section has besides its own keys, as `save_pretrained` of transformers 4.16 to 4.30 wrote
/// it: every key that all configurations have, with its default.
const SECTION: &str = r#"{
    "_name_or_path": "", "add_cross_attention": false, "architectures": null,
    "attention_dropout": 0.0, "bad_words_ids": null, "begin_suppress_tokens": null,
    "chunk_size_feed_forward": 0, "cross_attention_hidden_size": null,
    "decoder_start_token_id": null, "diversity_penalty": 0.0, "do_sample": false, "dropout": 0.0,
    "early_stopping": false, "encoder_no_repeat_ngram_size": 0, "eos_token_id": null,
    "exponential_decay_length_penalty": null, "finetuning_task": null,
    "forced_bos_token_id": null, "forced_eos_token_id": null,
    "id2label": { "0": "LABEL_0", "1": "LABEL_1" }, "initializer_factor": 1.0,
    "initializer_range": 0.02, "is_decoder": false, "is_encoder_decoder": false,
    "label2id": { "LABEL_0": 0, "LABEL_1": 1 }, "layer_norm_eps": 1e-05, "length_penalty": 1.0,
    "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1,
    "num_beams": 1, "num_return_sequences": 1, "output_attentions": false,
    "output_hidden_states": false, "output_scores": false, "pad_token_id": null, "prefix": null,
    "problem_type": null, "projection_dim": 512, "pruned_heads": {},
    "remove_invalid_values": false, "repetition_penalty": 1.0, "return_dict": true,
    "return_dict_in_generate": false, "sep_token_id": null, "suppress_tokens": null,
    "task_specific_params": null, "temperature": 1.0, "tf_legacy_loss": false,
    "tie_encoder_decoder": false, "tie_word_embeddings": true, "tokenizer_class": null,
    "top_k": 50, "top_p": 1.0, "torch_dtype": null, "torchscript": false,
    "transformers_version": "4.24.0", "typical_p": 1.0, "use_bfloat16": false
}"#;

fn section(kind: &str, own: Value) -> Value {
    let mut section: Value = serde_json::from_str(SECTION).unwrap();
    section["model_type"] = kind.into();
    section.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
    section
}

/// One `CLIPModel`: sizes of the towers, of the picture, and how its file says it.
struct Clip {
    name: &'static str,
    dim: usize,
    text: Sizes,
    text_heads: usize,
    image: Sizes,
    image_heads: usize,
    picture: [usize; 2],
    activation: &'static str,
    /// `eos_token_id` of a file written before transformers 4.31 (2) or after.
    eos: u32,
    dtype: &'static str,
}

const fn openai(name: &'static str, picture: [usize; 2]) -> Clip {
    Clip {
        name,
        dim: 512,
        text: [512, 2048, 12],
        text_heads: 8,
        image: [768, 3072, 12],
        image_heads: 12,
        picture,
        activation: "quick_gelu",
        eos: 2,
        dtype: "F32",
    }
}

const fn large(name: &'static str, picture: [usize; 2]) -> Clip {
    Clip {
        dim: 768,
        text: [768, 3072, 12],
        text_heads: 12,
        image: [1024, 4096, 24],
        image_heads: 16,
        ..openai(name, picture)
    }
}

const CLIPS: [Clip; 9] = [
    openai("openai/clip-vit-base-patch32", [224, 32]),
    openai("openai/clip-vit-base-patch16", [224, 16]),
    large("openai/clip-vit-large-patch14", [224, 14]),
    large("openai/clip-vit-large-patch14-336", [336, 14]),
    Clip { activation: "gelu", ..large("laion/CLIP-ViT-L-14-laion2B-s32B-b82K", [224, 14]) },
    Clip {
        name: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        dim: 1024,
        text: [1024, 4096, 24],
        text_heads: 16,
        image: [1280, 5120, 32],
        image_heads: 16,
        activation: "gelu",
        ..openai("", [224, 14])
    },
    Clip {
        name: "laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
        dim: 1024,
        text: [1024, 4096, 24],
        text_heads: 16,
        image: [1408, 6144, 40],
        image_heads: 16,
        activation: "gelu",
        dtype: "F16",
        ..openai("", [224, 14])
    },
    Clip {
        name: "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
        dim: 1280,
        text: [1280, 5120, 32],
        text_heads: 20,
        image: [1664, 8192, 48],
        image_heads: 16,
        activation: "gelu",
        dtype: "BF16",
        ..openai("", [224, 14])
    },
    // facebook/metaclip-*: written after 4.31, with the end token's real id.
    Clip { eos: 49407, ..large("facebook/metaclip-l14-fullcc2.5b", [224, 14]) },
];

impl Clip {
    fn config(&self) -> Value {
        let own = |[width, hidden, layers]: Sizes, heads: usize| {
            json!({ "hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers,
                "num_attention_heads": heads, "hidden_act": self.activation })
        };
        let with = |mut one: Value, other: Value| {
            one.as_object_mut().unwrap().extend(other.as_object().unwrap().clone());
            one
        };
        let text = json!({ "vocab_size": 49408, "max_position_embeddings": 77,
            "bos_token_id": 0,
            "pad_token_id": 1, "eos_token_id": self.eos });
        let text = section("clip_text_model", with(own(self.text, self.text_heads), text));
        let picture = json!({ "image_size": self.picture[0], "patch_size": self.picture[1],
            "num_channels": 3 });
        let vision = with(own(self.image, self.image_heads), picture);
        let vision = section("clip_vision_model", vision);
        // The short second copies that conversions of laion's models left behind.
        let copy = |section: &Value| {
            let long = self.activation == "gelu";
            if long { section.clone() } else { Value::Null }
        };
        json!({
            "_commit_hash": null, "architectures": ["CLIPModel"], "initializer_factor": 1.0,
            "logit_scale_init_value": 2.6592, "model_type": "clip", "projection_dim": self.dim,
            "text_config_dict": copy(&text), "vision_config_dict": copy(&vision),
            "text_config": text, "vision_config": vision,
            "torch_dtype": "float32", "transformers_version": null
        })
    }
}

#[test]
fn every_size_of_a_clip_model_is_accepted() {
    for clip in CLIPS {
        let tensors = clip_tensors(clip.dim, clip.text, clip.image, clip.picture);
        let config = clip.config();
        let graphs = graphs(("config.json", &config), "model.safetensors", &tensors, clip.dtype);
        let facts = &graphs.facts;
        let name = clip.name;
        assert_eq!((facts.projection_dim, facts.image_size), (clip.dim, clip.picture[0]), "{name}");
        assert_eq!(
            (facts.text_layers, facts.text_heads),
            (clip.text[2], clip.text_heads),
            "{name}"
        );
        let eos = if clip.eos == 2 { EosRule::HighestId } else { EosRule::FirstOf(clip.eos) };
        assert_eq!((facts.eos, facts.family), (eos, ClipFamily::Clip), "{name}");
        assert_eq!(facts.probability, Probability::Softmax);
        // Only exact `gelu` is an operator of its own; QuickGELU is a sigmoid.
        let has_gelu = graphs.image.bytes.windows(4).any(|window| window == b"Gelu");
        assert_eq!(has_gelu, clip.activation == "gelu", "{name}");
    }
}

#[test]
fn open_clip_folders_of_the_hub_are_accepted() {
    // (name, quick_gelu, dimension, prefix, text heads, text, head width, ratio, image, picture)
    type Row =
        (&'static str, bool, usize, &'static str, usize, Sizes, usize, f64, Sizes, [usize; 2]);
    const ROWS: [Row; 7] = [
        (
            "timm/vit_base_patch32_clip_224.openai",
            true,
            512,
            "",
            8,
            [512, 2048, 12],
            64,
            4.0,
            [768, 3072, 12],
            [224, 32],
        ),
        (
            "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
            false,
            512,
            "",
            8,
            [512, 2048, 12],
            64,
            4.0,
            [768, 3072, 12],
            [224, 16],
        ),
        (
            "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K",
            false,
            512,
            "",
            8,
            [512, 2048, 12],
            64,
            4.0,
            [768, 3072, 12],
            [256, 32],
        ),
        (
            "apple/DFN5B-CLIP-ViT-H-14-378",
            true,
            1024,
            "",
            16,
            [1024, 4096, 24],
            80,
            4.0,
            [1280, 5120, 32],
            [378, 14],
        ),
        (
            "laion/CLIP-ViT-g-14-laion2B-s34B-b88K",
            false,
            1024,
            "",
            16,
            [1024, 4096, 24],
            88,
            4.3637,
            [1408, 6144, 40],
            [224, 14],
        ),
        (
            "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
            false,
            1280,
            "",
            20,
            [1280, 5120, 32],
            104,
            4.9231,
            [1664, 8192, 48],
            [224, 14],
        ),
        (
            "a model with its text tower apart",
            false,
            512,
            "text.",
            8,
            [512, 2048, 12],
            64,
            4.0,
            [768, 3072, 12],
            [224, 16],
        ),
    ];
    for (name, quick_gelu, dim, prefix, heads, text, head_width, ratio, image, picture) in ROWS {
        let mut model = json!({
            "embed_dim": dim,
            "vision_cfg": { "image_size": picture[0], "layers": image[2], "width": image[0],
                "head_width": head_width, "mlp_ratio": ratio, "patch_size": picture[1] },
            "text_cfg": { "context_length": 77, "vocab_size": 49408, "width": text[0],
                "heads": heads, "layers": text[2] }
        });
        if quick_gelu {
            model["quick_gelu"] = true.into();
        }
        if !prefix.is_empty() {
            model["custom_text"] = true.into();
        }
        let config = json!({ "model_cfg": model, "preprocess_cfg": {} });
        let tensors = open_clip_tensors(dim, prefix, text, image, picture);
        let config = ("open_clip_config.json", &config);
        let graphs = graphs(config, "open_clip_model.safetensors", &tensors, "F32");
        let facts = &graphs.facts;
        assert_eq!((facts.projection_dim, facts.image_size), (dim, picture[0]), "{name}");
        assert_eq!((facts.text_heads, facts.eos), (heads, EosRule::HighestId), "{name}");
        let has_gelu = graphs.text.bytes.windows(4).any(|window| window == b"Gelu");
        assert_eq!(has_gelu, !quick_gelu, "{name}");
    }
}

#[test]
fn siglip_folders_of_the_hub_are_accepted() {
    const BASE: Sizes = [768, 3072, 12];
    const LARGE: Sizes = [1024, 4096, 24];
    const SO400M: Sizes = [1152, 4304, 27];
    // (name, words, text, image, heads of both, picture)
    type Row = (&'static str, usize, Sizes, Sizes, [usize; 2], [usize; 2]);
    const ROWS: [Row; 8] = [
        ("google/siglip-base-patch16-224", 32000, BASE, BASE, [12, 12], [224, 16]),
        ("google/siglip-base-patch16-256-multilingual", 250_000, BASE, BASE, [12, 12], [256, 16]),
        ("google/siglip-large-patch16-384", 32000, LARGE, LARGE, [16, 16], [384, 16]),
        ("google/siglip-so400m-patch14-384", 32000, SO400M, SO400M, [16, 16], [384, 14]),
        ("google/siglip2-base-patch16-512", 256_000, BASE, BASE, [12, 12], [512, 16]),
        ("google/siglip2-base-patch32-256", 256_000, BASE, BASE, [12, 12], [256, 32]),
        ("google/siglip2-so400m-patch14-384", 256_000, SO400M, SO400M, [16, 16], [384, 14]),
        (
            "google/siglip2-giant-opt-patch16-384",
            256_000,
            SO400M,
            [1536, 6144, 40],
            [16, 16],
            [384, 16],
        ),
    ];
    for (name, words, text, image, heads, picture) in ROWS {
        let own = |kind: &str, [width, hidden, layers]: Sizes, heads: usize| {
            json!({ "model_type": kind, "hidden_size": width, "intermediate_size": hidden,
                "num_hidden_layers": layers, "num_attention_heads": heads })
        };
        let mut text_config = own("siglip_text_model", text, heads[0]);
        text_config["vocab_size"] = words.into();
        text_config["projection_size"] = image[0].into();
        let mut vision_config = own("siglip_vision_model", image, heads[1]);
        vision_config["image_size"] = picture[0].into();
        vision_config["patch_size"] = picture[1].into();
        let config = json!({ "architectures": ["SiglipModel"], "initializer_factor": 1.0,
            "model_type": "siglip", "torch_dtype": "float32", "transformers_version": "4.49.0.dev0",
            "text_config": text_config, "vision_config": vision_config });
        let tensors = siglip_tensors(words, text, image, picture);
        let graphs = graphs(("config.json", &config), "model.safetensors", &tensors, "F32");
        let facts = &graphs.facts;
        assert_eq!((facts.projection_dim, facts.context_length), (image[0], 64), "{name}");
        assert_eq!((facts.vocabulary, facts.image_size), (words, picture[0]), "{name}");
        assert_eq!(facts.family, ClipFamily::Siglip, "{name}");
        assert_eq!(facts.probability, Probability::Sigmoid { bias: 0.0 }, "{name}");
    }
}

#[test]
fn siglip_folders_of_timm_are_accepted() {
    const BASE: Sizes = [768, 3072, 12];
    const LARGE: Sizes = [1024, 4096, 24];
    const SO400M: Sizes = [1152, 4304, 27];
    const GIANT: Sizes = [1536, 6144, 40];
    // (name, timm's name, words and slots, text, image, heads of the text, picture, tanh in
    // the text tower, and in the image tower)
    type Row = (&'static str, &'static str, [usize; 2], Sizes, Sizes, usize, [usize; 2], [bool; 2]);
    #[rustfmt::skip]
    const ROWS: [Row; 9] = [
        ("ViT-B-16-SigLIP", "vit_base_patch16_siglip_224", [32000, 64], BASE, BASE, 12, [224, 16], [false, false]),
        ("ViT-B-16-SigLIP-i18n-256", "vit_base_patch16_siglip_256", [250_000, 64], BASE, BASE, 12, [256, 16], [false, false]),
        ("ViT-L-16-SigLIP-384", "vit_large_patch16_siglip_384", [32000, 64], LARGE, LARGE, 16, [384, 16], [false, false]),
        ("ViT-SO400M-14-SigLIP", "vit_so400m_patch14_siglip_224", [32000, 16], SO400M, SO400M, 16, [224, 14], [false, false]),
        ("ViT-SO400M-14-SigLIP-384", "vit_so400m_patch14_siglip_384", [32000, 64], SO400M, SO400M, 16, [384, 14], [false, false]),
        ("ViT-SO400M-16-SigLIP-i18n-256", "vit_so400m_patch16_siglip_256", [250_000, 64], SO400M, SO400M, 16, [256, 16], [false, true]),
        ("ViT-B-32-SigLIP2-256", "vit_base_patch32_siglip_256", [256_000, 64], BASE, BASE, 12, [256, 32], [true, true]),
        ("ViT-B-16-SigLIP2-512", "vit_base_patch16_siglip_512", [256_000, 64], BASE, BASE, 12, [512, 16], [true, false]),
        ("ViT-gopt-16-SigLIP2-384", "vit_giantopt_patch16_siglip_384", [256_000, 64], SO400M, GIANT, 16, [384, 16], [true, true]),
    ];
    for (name, trunk, [words, slots], text, image, heads, picture, tanh) in ROWS {
        // The one whose text tower ends without a matrix.
        let has_projection = name != "ViT-SO400M-16-SigLIP-i18n-256";
        let mut text_cfg = json!({
            "context_length": slots, "vocab_size": words, "hf_tokenizer_name": format!("timm/{name}"),
            "tokenizer_kwargs": { "clean": "canonicalize" }, "width": text[0], "heads": heads,
            "layers": text[2], "no_causal_mask": true, "pool_type": "last",
            "norm_kwargs": { "eps": 1e-6 }
        });
        match has_projection {
            true => text_cfg["proj_bias"] = true.into(),
            false => text_cfg["proj_type"] = "none".into(),
        }
        if text[0] == 1152 {
            text_cfg["mlp_ratio"] = 3.7362.into();
        }
        if tanh[0] {
            text_cfg["act_kwargs"] = json!({ "approximate": "tanh" });
        }
        let config = json!({
            "model_cfg": {
                "embed_dim": image[0], "init_logit_bias": -10, "custom_text": true,
                "vision_cfg": { "image_size": picture[0], "timm_model_name": trunk,
                    "timm_model_pretrained": false, "timm_pool": "map", "timm_proj": "none" },
                "text_cfg": text_cfg
            },
            "preprocess_cfg": { "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
                "interpolation": "bicubic", "resize_mode": "squash" }
        });
        let tensors = timm_tensors([words, slots], text, image, picture, has_projection);
        let config = ("open_clip_config.json", &config);
        let graphs = graphs(config, "open_clip_model.safetensors", &tensors, "F32");
        let facts = &graphs.facts;
        assert_eq!((facts.projection_dim, facts.context_length), (image[0], slots), "{name}");
        assert_eq!((facts.vocabulary, facts.image_size), (words, picture[0]), "{name}");
        assert_eq!(facts.family, ClipFamily::Siglip, "{name}");
        assert_eq!(facts.probability, Probability::Sigmoid { bias: 0.0 }, "{name}");
        for (graph, is_tanh) in [(&graphs.text, tanh[0]), (&graphs.image, tanh[1])] {
            let has_tanh = graph.bytes.windows(4).any(|window| window == b"tanh");
            assert_eq!(has_tanh, is_tanh, "{name}");
        }
    }
}

#[test]
fn a_folder_with_both_forms_is_that_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let clip = &CLIPS[0];
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    write("open_clip_config.json", "{}".to_owned());
    write("config.json", clip.config().to_string());
    let weights = folder.path().join("model.safetensors");
    clip_tensors(clip.dim, clip.text, clip.image, clip.picture).write(&weights, "F32");
    assert_eq!(clip_graphs(folder.path()).unwrap().facts.projection_dim, 512);
    // A timm image tower beside open_clip's model is no model of transformers.
    write("config.json", r#"{"architecture": "vit_base_patch32_clip_224"}"#.to_owned());
    let error = clip_graphs(folder.path()).unwrap_err();
    assert!(error.message().contains("model_cfg is missing"), "{error}");
    // What is wrong is named as the file names it.
    let tensors = open_clip_tensors(512, "", clip.text, clip.image, [224, 16]);
    tensors.write(&folder.path().join("open_clip_model.safetensors"), "F32");
    let config = json!({ "model_cfg": { "embed_dim": 512, "vision_cfg": { "patch_size": 32 },
        "text_cfg": { "layers": 13 } } });
    write("open_clip_config.json", config.to_string());
    let error = clip_graphs(folder.path()).unwrap_err();
    assert!(error.message().contains("no tensor transformer.resblocks.12.ln_1.weight"), "{error}");
    write("open_clip_config.json", config.to_string().replace("13", "12"));
    let error = clip_graphs(folder.path()).unwrap_err();
    assert!(error.message().contains("tensor visual.conv1.weight has shape"), "{error}");
}
