//! OpenAI's CLIP ViT-L/14 and LAION's ViT-H/14, in the form of transformers.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Tensors;

const WORDS: usize = 49408;
const POSITIONS: usize = 77;
const SIDE: usize = 224;
const PATCH: usize = 14;

/// The sizes of its config.json.
#[derive(Clone, Copy)]
pub struct Clip {
    pub text: Tower,
    pub image: Tower,
    pub dim: usize,
    pub activation: &'static str,
}

#[derive(Clone, Copy)]
pub struct Tower {
    pub width: usize,
    pub heads: usize,
    pub layers: usize,
}

pub const VIT_L_14: Clip = Clip {
    text: Tower { width: 768, heads: 12, layers: 12 },
    image: Tower { width: 1024, heads: 16, layers: 24 },
    dim: 768,
    activation: "quick_gelu",
};

pub const VIT_H_14: Clip = Clip {
    text: Tower { width: 1024, heads: 16, layers: 24 },
    image: Tower { width: 1280, heads: 16, layers: 32 },
    dim: 1024,
    activation: "gelu",
};

impl Clip {
    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> Tensors {
        let (text, image) = (self.text.width, self.image.width);
        let mut tensors = Tensors::default();
        tensors.tensor("logit_scale", &[]);
        let embeddings = "text_model.embeddings";
        tensors.tensor(&format!("{embeddings}.token_embedding.weight"), &[WORDS, text]);
        tensors.tensor(&format!("{embeddings}.position_embedding.weight"), &[POSITIONS, text]);
        tensors.tower("text_model", self.text);
        tensors.norm("text_model.final_layer_norm", text);
        let embeddings = "vision_model.embeddings";
        let places = (SIDE / PATCH).pow(2) + 1;
        tensors.tensor(&format!("{embeddings}.class_embedding"), &[image]);
        tensors.tensor(&format!("{embeddings}.patch_embedding.weight"), &[image, 3, PATCH, PATCH]);
        tensors.tensor(&format!("{embeddings}.position_embedding.weight"), &[places, image]);
        tensors.norm("vision_model.pre_layrnorm", image);
        tensors.tower("vision_model", self.image);
        tensors.norm("vision_model.post_layernorm", image);
        tensors.tensor("visual_projection.weight", &[self.dim, image]);
        tensors.tensor("text_projection.weight", &[self.dim, text]);
        tensors
    }

    pub fn config(&self) -> Value {
        let section = |tower: Tower| {
            json!({
                "hidden_size": tower.width,
                "intermediate_size": 4 * tower.width,
                "num_attention_heads": tower.heads,
                "num_hidden_layers": tower.layers,
                "hidden_act": self.activation,
                "projection_dim": self.dim
            })
        };
        let (mut text, mut image) = (section(self.text), section(self.image));
        text["vocab_size"] = WORDS.into();
        text["max_position_embeddings"] = POSITIONS.into();
        text["eos_token_id"] = (WORDS - 1).into();
        image["image_size"] = SIDE.into();
        image["patch_size"] = PATCH.into();
        json!({
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": self.dim,
            "text_config": text,
            "vision_config": image
        })
    }
}

impl Tensors {
    fn tower(&mut self, tower: &str, Tower { width, layers, .. }: Tower) {
        for layer in 0..layers {
            let at = format!("{tower}.encoder.layers.{layer}");
            for part in ["k_proj", "v_proj", "q_proj", "out_proj"] {
                self.linear(&format!("{at}.self_attn.{part}"), width, width);
            }
            self.norm(&format!("{at}.layer_norm1"), width);
            self.linear(&format!("{at}.mlp.fc1"), 4 * width, width);
            self.linear(&format!("{at}.mlp.fc2"), width, 4 * width);
            self.norm(&format!("{at}.layer_norm2"), width);
        }
    }
}

/// The merges of the demo CLIP.
pub const MERGES: &str = include_str!("../../../../models/demo-clip/merges.txt");

/// The tokens of the demo CLIP, and unused ones up to CLIP's number: its special tokens are the last
/// two, as they must be. A text has more tokens than with CLIP's merges.
pub fn vocabulary() -> BTreeMap<String, usize> {
    let demo = include_str!("../../../../models/demo-clip/vocab.json");
    let mut vocabulary: BTreeMap<String, usize> = serde_json::from_str(demo).expect("a vocabulary");
    let specials = ["<|startoftext|>", "<|endoftext|>"];
    vocabulary.retain(|token, _| !specials.contains(&&**token));
    let unused = vocabulary.len()..WORDS - specials.len();
    vocabulary.extend(unused.map(|id| (format!("unused{id}</w>"), id)));
    vocabulary.extend(specials.into_iter().zip(WORDS - 2..).map(|(one, id)| (one.to_owned(), id)));
    vocabulary
}

pub fn tokenizer_config() -> Value {
    let end = "<|endoftext|>";
    json!({
        "bos_token": "<|startoftext|>", "eos_token": end, "pad_token": end, "unk_token": end,
        "do_lower_case": true, "model_max_length": POSITIONS, "tokenizer_class": "CLIPTokenizer"
    })
}
