//! A model of 15 GB is built in seconds and in little memory: only headers are read, and the
//! weights become hard links. The files are sparse; their headers are those of the real model.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use imprompt_repository::{BuildRequest, ModelFolder, Silent, build};
use serde_json::{Map, Value, json};

/// BLIP-2 with OPT 2.7b, the sizes of its config.json.
const VISION: (usize, usize, usize) = (1408, 6144, 39);
const QFORMER: (usize, usize, usize) = (768, 3072, 12);
const OPT: (usize, usize, usize) = (2560, 10240, 32);
const QUERIES: usize = 32;
const WORDS: usize = 50304;
const POSITIONS: usize = 2048;

/// Names and shapes, in the order of the file.
#[derive(Default)]
struct Tensors(Vec<(String, Vec<usize>)>);

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

    fn vision(&mut self) {
        let (width, hidden, layers) = VISION;
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

    fn qformer(&mut self) {
        let (width, hidden, layers) = QFORMER;
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

    fn language(&mut self) {
        let (width, hidden, layers) = OPT;
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

    /// Writes `shards` sparse files of float32 and their index; their size together.
    fn write(&self, folder: &Path, shards: usize) -> u64 {
        let mut index = Map::new();
        let mut total = 0;
        for (number, part) in self.0.chunks(self.0.len().div_ceil(shards)).enumerate() {
            let file = format!("model-{:05}-of-{shards:05}.safetensors", number + 1);
            let (mut header, mut end) =
                (String::from("{\"__metadata__\":{\"format\":\"pt\"}"), 0u64);
            for (name, shape) in part {
                let bytes = 4 * shape.iter().product::<usize>() as u64;
                let _ = write!(
                    header,
                    ",\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape:?},\"data_offsets\":[{end},{}]}}",
                    end + bytes
                );
                end += bytes;
                index.insert(name.clone(), file.clone().into());
            }
            header.push('}');
            header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
            let mut out = File::create(folder.join(file)).unwrap();
            out.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
            out.write_all(header.as_bytes()).unwrap();
            out.set_len(8 + header.len() as u64 + end).unwrap();
            total += end;
        }
        let index = json!({ "metadata": { "total_size": total }, "weight_map": index });
        std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
        total
    }
}

fn config() -> Value {
    json!({
        "architectures": ["Blip2ForConditionalGeneration"],
        "model_type": "blip-2",
        "num_query_tokens": QUERIES,
        "tie_word_embeddings": false,
        "use_decoder_only_language_model": true,
        "qformer_config": { "model_type": "blip_2_qformer" },
        "vision_config": { "model_type": "blip_2_vision_model" },
        "text_config": {
            "model_type": "opt",
            "activation_function": "relu",
            "do_layer_norm_before": true,
            "ffn_dim": OPT.1,
            "hidden_size": OPT.0,
            "max_position_embeddings": POSITIONS,
            "num_attention_heads": 32,
            "num_hidden_layers": OPT.2,
            "vocab_size": WORDS,
            "word_embed_proj_dim": OPT.0,
            "prefix": "</s>",
            "eos_token_id": 50118
        }
    })
}

/// The most memory that this process ever had, in bytes. Nothing else runs in it: this file has
/// one test.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn fifteen_gigabytes_take_seconds_and_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("blip2-opt-2.7b");
    std::fs::create_dir(&model).unwrap();
    let mut tensors = Tensors::default();
    tensors.vision();
    tensors.qformer();
    tensors.language();
    let bytes = tensors.write(&model, 2);
    assert!(bytes > 14_900_000_000, "{bytes}");
    std::fs::write(model.join("config.json"), config().to_string()).unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo-blip2");
    std::fs::copy(demo.join("tokenizer.json"), model.join("tokenizer.json")).unwrap();
    let processor = json!({
        "image_processor_type": "BlipImageProcessor", "do_resize": true, "do_rescale": true,
        "do_normalize": true, "do_convert_rgb": true, "resample": 3,
        "rescale_factor": 0.00392156862745098, "size": { "height": 224, "width": 224 },
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711]
    });
    std::fs::write(model.join("preprocessor_config.json"), processor.to_string()).unwrap();
    let request = BuildRequest {
        clip: None,
        captioner: Some(ModelFolder::open(&model).unwrap()),
        vocabularies: vec![],
        out: folder.path().join("repository"),
        copy: false,
        precision: imprompt_repository::Precision::default(),
        threads: 0,
        onnxruntime: None,
    };
    let started = Instant::now();
    let manifest = build(&request, &Silent).unwrap();
    let (seconds, memory) = (started.elapsed().as_secs_f64(), peak_memory());
    println!("{bytes} bytes of weights: {seconds:.2} s, {} MB at most", memory >> 20);
    assert_eq!(manifest.ensembles, ["caption"]);
    assert!(seconds < 30.0, "{seconds} s");
    assert!(memory < 300 << 20, "{memory} bytes");
    let linked = request.out.join("captioner/1/model-00001-of-00002.safetensors");
    use std::os::unix::fs::MetadataExt as _;
    let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&linked), inode(&model.join("model-00001-of-00002.safetensors")));
}
