//! CLIP: `CLIPModel` of transformers as two graphs, one for each tower.
//!
//! Reference: `transformers/models/clip/modeling_clip.py` and
//! `configuration_clip.py`, 4.33.1. [`crate::clip::vision`] and
//! [`crate::clip::text`] say what goes in and comes out.

pub mod text;
pub mod vision;

use std::path::Path;

use imprompt_error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::builder::{Activation, Graph, GraphBuilder, LinearWeights, Value};
use crate::config::{DESCRIPTIVE_KEYS, GENERATION_KEYS, Section, TRAINING_KEYS};
use crate::weights::WeightIndex;

/// File of the image tower, see [`vision`].
pub const IMAGE_GRAPH: &str = "clip_image.onnx";

/// File of the text tower, see [`text`].
pub const TEXT_GRAPH: &str = "clip_text.onnx";

/// The slot of a token row whose state becomes the embedding: that of the end
/// token, for which transformers has two rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EosRule {
    /// The first slot with the highest id. Holds where `eos_token_id` is 2, as
    /// in configurations before transformers 4.31.
    HighestId,
    /// The first slot with this id, the first slot of all where it is missing.
    FirstOf(u32),
}

impl EosRule {
    /// The slot of `ids`; 0 for an empty row.
    #[must_use]
    pub fn position(self, ids: &[u32]) -> usize {
        let first_of = |id| ids.iter().position(|&other| other == id).unwrap_or(0);
        match self {
            EosRule::FirstOf(id) => first_of(id),
            EosRule::HighestId => ids.iter().max().map_or(0, |&id| first_of(id)),
        }
    }
}

/// What one who runs the graphs must know of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipFacts {
    /// Width of the joint embedding space.
    pub projection_dim: usize,
    /// Height and width of `pixel_values`.
    pub image_size: usize,
    /// Planes of `pixel_values`.
    pub channels: usize,
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Token slots of a text, start and end token included.
    pub context_length: usize,
    /// Layers of the text tower.
    pub text_layers: usize,
    /// Heads of a layer of the text tower.
    pub text_heads: usize,
    /// Width of a head of the text tower.
    pub text_head_dim: usize,
    /// Where a text's embedding is read.
    pub eos: EosRule,
    /// What cosines are multiplied by before a softmax: `exp(logit_scale)`.
    pub logit_scale: f32,
}

/// The graphs of a CLIP.
#[derive(Clone, Debug)]
pub struct ClipGraphs {
    /// What they are.
    pub facts: ClipFacts,
    /// The image tower.
    pub image: Graph,
    /// The text tower.
    pub text: Graph,
}

/// The graphs of the CLIP in `folder`. Reads `config.json`, the headers of the
/// weights, and one scalar.
///
/// # Errors
/// `Unsupported` naming the architecture or the key of the configuration that
/// this build does not do; `BadModel` naming the tensor or key that is wrong;
/// `NotFound` when a file is missing.
pub fn clip_graphs(folder: &Path) -> Result<ClipGraphs> {
    let config = ClipConfig::read(&Section::open(folder)?)?;
    let weights = WeightIndex::open(folder)?;
    let logit_scale = logit_scale(&weights)?;
    let text = &config.text;
    let facts = ClipFacts {
        projection_dim: config.projection_dim,
        image_size: config.image_size,
        channels: config.channels,
        vocabulary: config.vocabulary,
        context_length: config.context_length,
        text_layers: text.layers,
        text_heads: text.heads,
        text_head_dim: text.head_dim(),
        eos: config.eos,
        logit_scale,
    };
    Ok(ClipGraphs {
        image: vision::graph(&config, &weights)?,
        text: text::graph(&config, &weights)?,
        facts,
    })
}

fn logit_scale(weights: &WeightIndex) -> Result<f32> {
    let values = weights.read_floats("logit_scale")?;
    match values.as_slice() {
        [value] if value.exp().is_finite() => Ok(value.exp()),
        _ => Err(Error::bad_model(format!(
            "{}: logit_scale has {} values, one with a finite exponential is needed",
            weights.folder().display(),
            values.len()
        ))),
    }
}

/// The sizes of one tower.
#[derive(Clone, Debug, PartialEq)]
pub struct Tower {
    /// Width of a token's state.
    pub width: usize,
    /// Width inside the feed-forward part.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Heads of a layer.
    pub heads: usize,
    /// The feed-forward part's activation.
    pub activation: Activation,
    /// What keeps a layer normalisation from dividing by zero.
    pub epsilon: f32,
}

impl Tower {
    /// Width of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.width / self.heads
    }

    pub(crate) fn read(section: &Section, defaults: &Tower) -> Result<Self> {
        let tower = Tower {
            width: section.size("hidden_size", defaults.width)?,
            hidden: section.size("intermediate_size", defaults.hidden)?,
            layers: section.size("num_hidden_layers", defaults.layers)?,
            heads: section.size("num_attention_heads", defaults.heads)?,
            activation: Activation::from_name(
                &format!("{}: hidden_act", section.path()),
                &section.text("hidden_act", "quick_gelu")?,
            )?,
            epsilon: section.number("layer_norm_eps", 1e-5)? as f32,
        };
        if !tower.width.is_multiple_of(tower.heads) {
            return Err(Error::bad_model(format!(
                "{}: hidden_size {} is not a multiple of num_attention_heads {}",
                section.path(),
                tower.width,
                tower.heads
            )));
        }
        section.only("pruned_heads", &[json!({})])?;
        Ok(tower)
    }
}

/// What of `config.json` makes a CLIP.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipConfig {
    /// Width of the joint embedding space.
    pub projection_dim: usize,
    /// The text tower.
    pub text: Tower,
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Token slots of a text.
    pub context_length: usize,
    /// Where a text's embedding is read.
    pub eos: EosRule,
    /// The image tower.
    pub vision: Tower,
    /// Height and width of a picture.
    pub image_size: usize,
    /// Height and width of a patch.
    pub patch_size: usize,
    /// Planes of a picture.
    pub channels: usize,
}

impl ClipConfig {
    /// Reads it, with the defaults transformers 4.33.1 has for absent keys.
    ///
    /// # Errors
    /// `Unsupported` naming a key or architecture not done by this build,
    /// `BadModel` naming a key whose value is no such thing.
    pub fn read(config: &Section) -> Result<Self> {
        config.only("model_type", &[json!("clip")])?;
        config.only("architectures", &[json!(["CLIPModel"])])?;
        let projection_dim = config.size("projection_dim", 512)?;
        let mut this = ClipConfig {
            projection_dim,
            text: Tower {
                width: 512,
                hidden: 2048,
                layers: 12,
                heads: 8,
                activation: Activation::QuickGelu,
                epsilon: 1e-5,
            },
            vocabulary: 49408,
            context_length: 77,
            eos: EosRule::FirstOf(49407),
            vision: Tower {
                width: 768,
                hidden: 3072,
                layers: 12,
                heads: 12,
                activation: Activation::QuickGelu,
                epsilon: 1e-5,
            },
            image_size: 224,
            patch_size: 32,
            channels: 3,
        };
        let defaults = this.clone();
        // Old configurations have a second copy of each section. Where it is,
        // the reference takes every value from it, its defaults included.
        for key in ["text_config", "text_config_dict"] {
            if let Some(section) = config.section(key)? {
                this.read_text(&section, &defaults)?;
            }
        }
        for key in ["vision_config", "vision_config_dict"] {
            if let Some(section) = config.section(key)? {
                this.read_vision(&section, &defaults)?;
            }
        }
        config.finish(&[DESCRIPTIVE_KEYS, GENERATION_KEYS, TOP_KEYS])?;
        Ok(this)
    }

    fn read_text(&mut self, section: &Section, defaults: &ClipConfig) -> Result<()> {
        section.only("model_type", &[json!("clip_text_model"), json!("clip")])?;
        self.text = Tower::read(section, &defaults.text)?;
        self.vocabulary = section.size("vocab_size", defaults.vocabulary)?;
        self.context_length = section.size("max_position_embeddings", defaults.context_length)?;
        self.eos = match section.index("eos_token_id", 49407)? {
            2 => EosRule::HighestId,
            id => EosRule::FirstOf(id),
        };
        section.finish(&[DESCRIPTIVE_KEYS, TRAINING_KEYS, GENERATION_KEYS, TOWER_KEYS])
    }

    fn read_vision(&mut self, section: &Section, defaults: &ClipConfig) -> Result<()> {
        section.only("model_type", &[json!("clip_vision_model"), json!("clip")])?;
        self.vision = Tower::read(section, &defaults.vision)?;
        self.image_size = section.size("image_size", defaults.image_size)?;
        self.patch_size = section.size("patch_size", defaults.patch_size)?;
        self.channels = section.size("num_channels", defaults.channels)?;
        if self.patch_size > self.image_size {
            return Err(Error::bad_model(format!(
                "{}: patch_size {} is larger than image_size {}",
                section.path(),
                self.patch_size,
                self.image_size
            )));
        }
        section.finish(&[DESCRIPTIVE_KEYS, TRAINING_KEYS, GENERATION_KEYS, TOWER_KEYS])
    }
}

/// The value `logit_scale` starts training from.
const TOP_KEYS: &[&str] = &["logit_scale_init_value"];

/// A section's `projection_dim` belongs to the towers used alone; here the one
/// at the top counts.
const TOWER_KEYS: &[&str] = &["projection_dim"];

/// The rows of a layer that are computed: all, or those of `kept` alone, which
/// is enough where nothing reads the others.
pub(crate) struct Rows<'v> {
    pub(crate) all: &'v Value,
    pub(crate) kept: Option<&'v Value>,
}

/// What surrounds a layer's attention: normalisation and projections before,
/// output projection, residual and feed-forward part after.
pub(crate) struct Layer<'t> {
    pub(crate) tower: &'t Tower,
    pub(crate) name: String,
}

impl Layer<'_> {
    fn linear<'n>(&self, name: &'n str, input: usize, output: usize) -> LinearWeights<'n> {
        LinearWeights { name, input, output, bias: true }
    }

    /// Queries (of the kept rows), keys and values (of all), each `[n, width]`.
    pub(crate) fn projections(
        &self,
        graph: &mut GraphBuilder<'_>,
        rows: &Rows<'_>,
    ) -> Result<[Value; 3]> {
        let Tower { width, epsilon, .. } = *self.tower;
        let name = |part: &str| format!("{}.{part}", self.name);
        let normal = graph.layer_norm(rows.all, &name("layer_norm1"), width, epsilon)?;
        let queried = match rows.kept {
            Some(kept) => graph.gather(&normal, kept, 0),
            None => normal.clone(),
        };
        let mut project = |rows: &Value, part: &str| {
            graph.linear(rows, self.linear(&name(&format!("self_attn.{part}")), width, width))
        };
        Ok([project(&queried, "q_proj")?, project(&normal, "k_proj")?, project(&normal, "v_proj")?])
    }

    /// The states after the layer, given what its attention saw.
    pub(crate) fn finish(
        &self,
        graph: &mut GraphBuilder<'_>,
        rows: &Rows<'_>,
        attended: &Value,
    ) -> Result<Value> {
        let Tower { width, hidden, epsilon, activation, .. } = *self.tower;
        let name = |part: &str| format!("{}.{part}", self.name);
        let residual = match rows.kept {
            Some(kept) => graph.gather(rows.all, kept, 0),
            None => rows.all.clone(),
        };
        let out = name("self_attn.out_proj");
        let attended = graph.linear(attended, self.linear(&out, width, width))?;
        let states = graph.add(&residual, &attended);
        let normal = graph.layer_norm(&states, &name("layer_norm2"), width, epsilon)?;
        let inner = graph.linear(&normal, self.linear(&name("mlp.fc1"), width, hidden))?;
        let inner = graph.activation(&inner, activation);
        let outer = graph.linear(&inner, self.linear(&name("mlp.fc2"), hidden, width))?;
        Ok(graph.add(&states, &outer))
    }
}

#[cfg(test)]
mod tests;
