//! CLIP and its kin as two graphs, one for each tower.
//!
//! | family | reference |
//! |---|---|
//! | CLIP of transformers: [`ClipConfig`] | `transformers/models/clip/modeling_clip.py`, `configuration_clip.py`, 4.33.1 |
//! | CLIP of open_clip: [`open_clip`] | `open_clip/model.py`, `transformer.py`, 2.20.0 |
//! | SigLIP of open_clip, over timm: [`open_clip`] | `open_clip/timm_model.py`, 3.3.0; `timm/models/vision_transformer.py`, 1.0.31 |
//! | SigLIP and SigLIP 2: [`siglip`] | `transformers/models/siglip/modeling_siglip.py`, 4.57.6 |
//!
//! [`vision`], [`text`] and [`siglip`] say what goes in and comes out.

mod config;
mod layers;
pub mod open_clip;
mod open_clip_siglip;
pub mod siglip;
pub mod text;
pub mod vision;

use std::path::Path;

use imprompt_error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

pub use config::{ClipConfig, Projection, Tower};
pub(crate) use layers::{Layer, Rows};

use crate::builder::{Graph, GraphBuilder, LinearWeights, Value};
use crate::config::Section;
use crate::weights::WeightIndex;

/// File of the image tower, see [`vision`] and [`siglip`].
pub const IMAGE_GRAPH: &str = "clip_image.onnx";

/// File of the text tower, see [`text`] and [`siglip`].
pub const TEXT_GRAPH: &str = "clip_text.onnx";

/// The slot of a token row whose state becomes the embedding. CLIP reads that
/// of the end token, for which transformers has two rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EosRule {
    /// The first slot with the highest id. Holds where `eos_token_id` is 2, as
    /// in configurations before transformers 4.31, and in open_clip.
    HighestId,
    /// The first slot with this id, the first slot of all where it is missing.
    FirstOf(u32),
    /// The last slot, whatever is in it.
    LastSlot,
}

impl EosRule {
    /// The slot of `ids`; 0 for an empty row.
    #[must_use]
    pub fn position(self, ids: &[u32]) -> usize {
        let first_of = |id| ids.iter().position(|&other| other == id).unwrap_or(0);
        match self {
            EosRule::FirstOf(id) => first_of(id),
            EosRule::HighestId => ids.iter().max().map_or(0, |&id| first_of(id)),
            EosRule::LastSlot => ids.len().saturating_sub(1),
        }
    }
}

/// How the text tower reads a row, and which tokenizer makes its rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipFamily {
    /// A causal tower over CLIP's byte pairs: [`text`]. What stands behind the
    /// end token counts for nothing.
    #[default]
    Clip,
    /// A tower in which every token sees every other, over SentencePiece or
    /// Gemma tokens: [`siglip`]. Rows have [`ClipFacts::context_length`] slots,
    /// and the padding counts.
    Siglip,
}

/// How a model turns the cosine of a picture and a text into a probability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probability {
    /// `softmax(logit_scale * cosine)` over all texts: they add up to 1.
    #[default]
    Softmax,
    /// `sigmoid(logit_scale * cosine + bias)` of each text alone.
    Sigmoid {
        /// What is added to the scaled cosine: `logit_bias`.
        bias: f32,
    },
}

impl Probability {
    /// Its name: `softmax` or `sigmoid`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Probability::Softmax => "softmax",
            Probability::Sigmoid { .. } => "sigmoid",
        }
    }
}

/// What one who runs the graphs must know of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipFacts {
    /// How the text tower reads a row.
    #[serde(default)]
    pub family: ClipFamily,
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
    /// What cosines are multiplied by before a softmax or sigmoid:
    /// `exp(logit_scale)`.
    pub logit_scale: f32,
    /// What makes them probabilities.
    #[serde(default)]
    pub probability: Probability,
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

/// The graphs of the CLIP in `folder`. Reads `config.json` (or
/// `open_clip_config.json`), the headers of the weights, and one or two scalars.
///
/// # Errors
/// `Unsupported` naming the architecture or the key of the configuration that
/// this build does not do; `BadModel` naming the tensor or key that is wrong;
/// `NotFound` when a file is missing.
pub fn clip_graphs(folder: &Path) -> Result<ClipGraphs> {
    if open_clip::is_folder(folder) {
        return match open_clip::read(folder)? {
            (open_clip::Config::Clip(config), weights) => towers(&config, &weights),
            (open_clip::Config::Siglip(config), weights) => siglip::towers(&config, &weights),
        };
    }
    let section = Section::open(folder)?;
    if section.get("model_type").is_some_and(|kind| siglip::MODEL_TYPES.iter().any(|t| kind == t)) {
        return siglip::graphs(&section, folder);
    }
    section.only("model_type", &[json!("clip"), json!("siglip")])?;
    towers(&ClipConfig::read(&section)?, &WeightIndex::open(folder)?)
}

fn towers(config: &ClipConfig, weights: &WeightIndex) -> Result<ClipGraphs> {
    let text = &config.text;
    let facts = ClipFacts {
        family: ClipFamily::Clip,
        projection_dim: config.projection_dim,
        image_size: config.image_size,
        channels: config.channels,
        vocabulary: config.vocabulary,
        context_length: config.context_length,
        text_layers: text.layers,
        text_heads: text.heads,
        text_head_dim: text.head_dim(),
        eos: config.eos,
        logit_scale: logit_scale(weights)?,
        probability: Probability::Softmax,
    };
    Ok(ClipGraphs {
        image: vision::graph(config, weights)?,
        text: text::graph(config, weights)?,
        facts,
    })
}

/// The one value of the tensor `name`.
fn scalar(weights: &WeightIndex, name: &str) -> Result<f32> {
    let values = weights.read_floats(name)?;
    match values.as_slice() {
        [value] if value.is_finite() => Ok(*value),
        _ => Err(Error::bad_model(format!(
            "{}: {name} has {} values, one that is finite is needed",
            weights.folder().display(),
            values.len()
        ))),
    }
}

fn logit_scale(weights: &WeightIndex) -> Result<f32> {
    let value = scalar(weights, "logit_scale")?;
    if value.exp().is_finite() {
        return Ok(value.exp());
    }
    Err(Error::bad_model(format!(
        "{}: logit_scale is {value}, whose exponential is not finite",
        weights.folder().display()
    )))
}

impl ClipConfig {
    /// `pooled` `[batch, width]` through the tower's last matrix `name`.
    fn project(
        &self,
        graph: &mut GraphBuilder<'_>,
        pooled: &Value,
        name: &str,
        width: usize,
    ) -> Result<Value> {
        let output = self.projection_dim;
        match self.projection {
            Projection::Linear => {
                graph.linear(pooled, LinearWeights { name, input: width, output, bias: false })
            }
            Projection::Matrix => {
                let matrix = graph.weight(name, &[width, output])?;
                Ok(graph.matmul(pooled, &matrix))
            }
        }
    }
}

#[cfg(test)]
mod tests;
