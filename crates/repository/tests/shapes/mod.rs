//! The shapes of BLIP-2 OPT 2.7b, for what tries a model of its size without its weights.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

/// BLIP-2 with OPT 2.7b, the sizes of its config.json.
const VISION: (usize, usize) = (1408, 6144);
const QFORMER: (usize, usize) = (768, 3072);
const OPT: (usize, usize) = (2560, 10240);
/// Layers of image encoder, Q-Former and language model.
pub type Layers = [usize; 3];
const QUERIES: usize = 32;
/// Ids of the language model.
pub const WORDS: usize = 50304;
const POSITIONS: usize = 2048;

/// Names and shapes, in the order of the file.
#[derive(Default)]
pub struct Tensors(Vec<(String, Vec<usize>)>);

impl Tensors {
    fn tensor(&mut self, name: &str, shape: &[usize]) {
        self.0.push((name.to_owned(), shape.to_vec()));
    }

    /// A linear layer: weight [out, in] and bias.
    fn linear(&mut self, name: &str, out: usize, inner: usize) {
        self.tensor(&format!("{name}.weight"), &[out, inner]);
        self.tensor(&format!("{name}.bias"), &[out]);
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.tensor(&format!("{name}.weight"), &[width]);
        self.tensor(&format!("{name}.bias"), &[width]);
    }

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

    /// All of them, in the order of the files.
    pub fn of_layers([vision, qformer, language]: Layers) -> Self {
        let mut tensors = Tensors::default();
        tensors.vision(vision);
        tensors.qformer(qformer);
        tensors.language(language);
        tensors
    }

    /// `count` safetensors files of elements of `size` bytes that are called `dtype`.
    pub fn shards(&self, count: usize, dtype: &str, size: u64) -> Vec<Shard> {
        let parts = self.0.chunks(self.0.len().div_ceil(count)).enumerate();
        let shard = |(number, part): (usize, &[(String, Vec<usize>)])| {
            let (mut header, mut end) =
                (String::from("{\"__metadata__\":{\"format\":\"pt\"}"), 0u64);
            for (name, shape) in part {
                let bytes = size * shape.iter().product::<usize>() as u64;
                let _ = write!(
                    header,
                    ",\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{end},{}]}}",
                    end + bytes
                );
                end += bytes;
            }
            header.push('}');
            header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
            let mut start = (header.len() as u64).to_le_bytes().to_vec();
            start.extend(header.into_bytes());
            let file = format!("model-{:05}-of-{count:05}.safetensors", number + 1);
            Shard { file, start, tensors: part.to_vec(), bytes: end }
        };
        parts.map(shard).collect()
    }
}

/// One weight file.
pub struct Shard {
    /// Its name.
    pub file: String,
    /// What stands in front of the elements.
    pub start: Vec<u8>,
    /// Names and shapes of its tensors.
    pub tensors: Vec<(String, Vec<usize>)>,
    /// Bytes of their elements.
    pub bytes: u64,
}

/// Writes the configurations and the index of `shards` to `folder`.
pub fn write_configurations(
    folder: &Path,
    shards: &[Shard],
    layers: Layers,
) -> std::io::Result<()> {
    let map: BTreeMap<&str, &str> = shards
        .iter()
        .flat_map(|shard| shard.tensors.iter().map(|(name, _)| (&**name, &*shard.file)))
        .collect();
    let total: u64 = shards.iter().map(|shard| shard.bytes).sum();
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    let processor = json!({
        "image_processor_type": "BlipImageProcessor", "do_resize": true, "do_rescale": true,
        "do_normalize": true, "do_convert_rgb": true, "resample": 3,
        "rescale_factor": 0.00392156862745098, "size": { "height": 224, "width": 224 },
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711]
    });
    for (name, content) in [
        ("model.safetensors.index.json", index),
        ("config.json", config(layers)),
        ("preprocessor_config.json", processor),
    ] {
        std::fs::write(folder.join(name), content.to_string())?;
    }
    Ok(())
}

fn config([vision, qformer, language]: Layers) -> Value {
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
