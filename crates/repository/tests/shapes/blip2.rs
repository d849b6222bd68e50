//! BLIP-2 with OPT 2.7b.

use serde_json::{Map, Value, json};

use super::Tensors;

/// The sizes of its config.json.
const VISION: (usize, usize) = (1408, 6144);
const QFORMER: (usize, usize) = (768, 3072);
const OPT: (usize, usize) = (2560, 10240);
/// Layers of image encoder, Q-Former and language model.
pub type Layers = [usize; 3];
/// It has so many.
pub const LAYERS: Layers = [39, 12, 32];
const QUERIES: usize = 32;
/// Ids of the language model.
const WORDS: usize = 50304;
const POSITIONS: usize = 2048;

/// All tensors, in the order of the files.
pub fn tensors([vision, qformer, language]: Layers) -> Tensors {
    let mut tensors = Tensors::default();
    tensors.vision(vision);
    tensors.qformer(qformer);
    tensors.language(language);
    tensors
}

impl Tensors {
    fn vision(&mut self, layers: usize) {
        let (width, hidden) = VISION;
        let embeddings = "vision_model.embeddings";
        self.tensor(&format!("{embeddings}.class_embedding"), &[1, 1, width]);
        self.tensor(&format!("{embeddings}.position_embedding"), &[1, 257, width]);
        self.tensor(&format!("{embeddings}.patch_embedding.weight"), &[width, 3, 14, 14]);
        self.tensor(&format!("{embeddings}.patch_embedding.bias"), &[width]);
        for layer in 0..layers {
            let at = format!("vision_model.encoder.layers.{layer}");
            self.linear(&format!("{at}.self_attn.qkv"), 3 * width, width);
            self.linear(&format!("{at}.self_attn.projection"), width, width);
            self.norm(&format!("{at}.layer_norm1"), width);
            self.norm(&format!("{at}.layer_norm2"), width);
            self.linear(&format!("{at}.mlp.fc1"), hidden, width);
            self.linear(&format!("{at}.mlp.fc2"), width, hidden);
        }
        self.norm("vision_model.post_layernorm", width);
    }

    fn qformer(&mut self, layers: usize) {
        let (width, hidden) = QFORMER;
        self.tensor("query_tokens", &[1, QUERIES, width]);
        self.norm("qformer.layernorm", width);
        for layer in 0..layers {
            let at = format!("qformer.encoder.layer.{layer}");
            let mut attention = |kind: &str, of: usize| {
                self.linear(&format!("{at}.{kind}.attention.query"), width, width);
                self.linear(&format!("{at}.{kind}.attention.key"), width, of);
                self.linear(&format!("{at}.{kind}.attention.value"), width, of);
                self.linear(&format!("{at}.{kind}.output.dense"), width, width);
                self.norm(&format!("{at}.{kind}.output.LayerNorm"), width);
            };
            attention("attention", width);
            if layer % 2 == 0 {
                attention("crossattention", VISION.0);
            }
            self.linear(&format!("{at}.intermediate_query.dense"), hidden, width);
            self.linear(&format!("{at}.output_query.dense"), width, hidden);
            self.norm(&format!("{at}.output_query.LayerNorm"), width);
        }
    }

    fn language(&mut self, layers: usize) {
        let (width, hidden) = OPT;
        self.linear("language_projection", width, QFORMER.0);
        let decoder = "language_model.model.decoder";
        self.tensor(&format!("{decoder}.embed_tokens.weight"), &[WORDS, width]);
        self.tensor(&format!("{decoder}.embed_positions.weight"), &[POSITIONS + 2, width]);
        for layer in 0..layers {
            let at = format!("{decoder}.layers.{layer}");
            for part in ["k_proj", "v_proj", "q_proj", "out_proj"] {
                self.linear(&format!("{at}.self_attn.{part}"), width, width);
            }
            self.norm(&format!("{at}.self_attn_layer_norm"), width);
            self.linear(&format!("{at}.fc1"), hidden, width);
            self.linear(&format!("{at}.fc2"), width, hidden);
            self.norm(&format!("{at}.final_layer_norm"), width);
        }
        self.norm(&format!("{decoder}.final_layer_norm"), width);
    }
}

pub fn config([vision, qformer, language]: Layers) -> Value {
    json!({
        "architectures": ["Blip2ForConditionalGeneration"],
        "model_type": "blip-2",
        "num_query_tokens": QUERIES,
        "tie_word_embeddings": false,
        "use_decoder_only_language_model": true,
        "qformer_config": { "model_type": "blip_2_qformer", "num_hidden_layers": qformer },
        "vision_config": { "model_type": "blip_2_vision_model", "num_hidden_layers": vision },
        "text_config": {
            "model_type": "opt",
            "activation_function": "relu",
            "do_layer_norm_before": true,
            "ffn_dim": OPT.1,
            "hidden_size": OPT.0,
            "max_position_embeddings": POSITIONS,
            "num_attention_heads": 32,
            "num_hidden_layers": language,
            "vocab_size": WORDS,
            "word_embed_proj_dim": OPT.0,
            "prefix": "</s>",
            "eos_token_id": 50118
        }
    })
}

/// A tokenizer whose token n is the word "wn".
pub fn tokenizer() -> Value {
    let vocabulary: Map<String, Value> =
        (0..WORDS).map(|id| (format!("w{id}"), id.into())).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w3" }
    })
}
