//! The shapes of models of full size, for what tries them without their weights.

mod blip2;
mod clip;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use clip::Clip;

/// A model of known shapes.
pub enum Model {
    Blip2(blip2::Layers),
    Clip(Clip),
}

impl Model {
    /// The model called `name`; where `layers` are given each of its parts has so many at most.
    pub fn named(name: &str, layers: Option<usize>) -> Result<Self, String> {
        let most = layers.unwrap_or(usize::MAX);
        let clip = |mut clip: Clip| {
            for tower in [&mut clip.text, &mut clip.image] {
                tower.layers = tower.layers.min(most);
            }
            Model::Clip(clip)
        };
        match name {
            "blip2-opt-2.7b" => Ok(Model::Blip2(blip2::LAYERS.map(|layers| layers.min(most)))),
            "clip-vit-l-14" => Ok(clip(clip::VIT_L_14)),
            "clip-vit-h-14" => Ok(clip(clip::VIT_H_14)),
            _ => Err(format!("{name} is none of blip2-opt-2.7b, clip-vit-l-14, clip-vit-h-14")),
        }
    }

    /// Its safetensors files, of elements of `size` bytes that are called `dtype`.
    pub fn shards(&self, dtype: &str, size: u64) -> Vec<Shard> {
        let (tensors, count) = match self {
            Model::Blip2(layers) => (blip2::tensors(*layers).0, 2),
            Model::Clip(clip) => (clip.tensors().0, 1),
        };
        let parts = tensors.chunks(tensors.len().div_ceil(count)).enumerate();
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
            let file = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
            };
            Shard { file, start, tensors: part.to_vec(), bytes: end }
        };
        parts.map(shard).collect()
    }

    /// Writes what stands beside the weights to `folder`: configurations, tokenizer, index.
    pub fn write_files(&self, folder: &Path, shards: &[Shard]) -> std::io::Result<()> {
        let write =
            |name: &str, content: &Value| std::fs::write(folder.join(name), content.to_string());
        match self {
            Model::Blip2(layers) => {
                write("config.json", &blip2::config(*layers))?;
                write("tokenizer.json", &blip2::tokenizer())?;
                let size = json!({ "height": 224, "width": 224 });
                write("preprocessor_config.json", &processor("BlipImageProcessor", &size))?;
            }
            Model::Clip(clip) => {
                write("config.json", &clip.config())?;
                write("vocab.json", &json!(clip::vocabulary()))?;
                std::fs::write(folder.join("merges.txt"), clip::MERGES)?;
                write("tokenizer_config.json", &clip::tokenizer_config())?;
                let size = json!({ "shortest_edge": 224 });
                let mut processor = processor("CLIPImageProcessor", &size);
                processor["do_center_crop"] = true.into();
                processor["crop_size"] = json!({ "height": 224, "width": 224 });
                write("preprocessor_config.json", &processor)?;
            }
        }
        if shards.len() == 1 {
            return Ok(());
        }
        let map: BTreeMap<&str, &str> = shards
            .iter()
            .flat_map(|shard| shard.tensors.iter().map(|(name, _)| (&**name, &*shard.file)))
            .collect();
        let total: u64 = shards.iter().map(|shard| shard.bytes).sum();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        write("model.safetensors.index.json", &index)
    }
}

fn processor(kind: &str, size: &Value) -> Value {
    json!({
        "image_processor_type": kind, "do_resize": true, "do_rescale": true,
        "do_normalize": true, "do_convert_rgb": true, "resample": 3,
        "rescale_factor": 0.00392156862745098, "size": size,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711]
    })
}

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
}

/// One weight file.
pub struct Shard {
    /// Its name.
    pub file: String,
    /// What stands in front of the elements.
    start: Vec<u8>,
    /// Names and shapes of its tensors.
    pub tensors: Vec<(String, Vec<usize>)>,
    /// Bytes of their elements.
    pub bytes: u64,
}

impl Shard {
    /// Its file in `folder`, of full length, at the first element. All elements are zeros, and a hole.
    pub fn create(&self, folder: &Path) -> std::io::Result<File> {
        let mut file = File::create(folder.join(&self.file))?;
        file.write_all(&self.start)?;
        file.set_len(self.start.len() as u64 + self.bytes)?;
        Ok(file)
    }
}
