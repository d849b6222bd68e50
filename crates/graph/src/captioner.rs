//! Caption models: from a model folder to its graphs, whatever the family.

use std::path::Path;

use imprompt_error::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::blip2::Blip2;
use crate::builder::Graph;
use crate::config::Section;
use crate::weights::WeightIndex;

/// File of the image encoder: `pixel_values` f32 `[batch, 3, size, size]` to
/// `image_embeds` f32 `[batch, patches + 1, width]`.
pub const VISION_GRAPH: &str = "caption_vision.onnx";

/// File of the Q-Former: `image_embeds` to `query_embeds` f32
/// `[batch, queries, width]`, ready to stand in front of word embeddings.
pub const QFORMER_GRAPH: &str = "caption_qformer.onnx";

/// File of the decoder, prefill and decode step in one: see [`crate::opt`].
pub const DECODER_GRAPH: &str = "caption_decoder.onnx";

/// The kinds of caption model that graphs are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CaptionFamily {
    /// `Blip2ForConditionalGeneration` with an OPT language model.
    Blip2Opt,
}

/// What one who runs the graphs must know of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptionFacts {
    /// Which graphs there are and how they work together.
    pub family: CaptionFamily,
    /// Height and width of `pixel_values`.
    pub image_size: usize,
    /// Positions that a picture takes in front of the text.
    pub query_tokens: usize,
    /// Width of a query's and of a word's embedding.
    pub embedding_width: usize,
    /// Layers of the decoder.
    pub layers: usize,
    /// Attention heads of a decoder layer.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Positions that the model knows: queries, prompt and all generated
    /// tokens but the last.
    pub max_positions: usize,
    /// What a text starts with, and the whole prompt where none is given.
    pub bos_token_id: u32,
    /// A caption ends with any of these.
    pub eos_token_ids: Vec<u32>,
}

/// The graphs of a caption model.
#[derive(Clone, Debug)]
pub struct CaptionGraphs {
    /// What they are.
    pub facts: CaptionFacts,
    /// File names and graphs.
    pub files: Vec<(&'static str, Graph)>,
}

/// The graphs of the caption model in `folder`. Reads `config.json`,
/// `generation_config.json` and the headers of the weights.
///
/// # Errors
/// `Unsupported` naming the architecture or the key of the configuration that
/// this build does not do; `BadModel` naming the tensor or key that is wrong;
/// `NotFound` when a file is missing.
pub fn caption_graphs(folder: &Path) -> Result<CaptionGraphs> {
    let config = Section::open(folder)?;
    match config.text("model_type", "")?.as_str() {
        "blip-2" => Blip2::open(folder, config)?.graphs(&WeightIndex::open(folder)?),
        other => Err(Error::unsupported(format!(
            "{}: model_type {other:?} is no caption model of this build; supported: \"blip-2\" \
             with an OPT language model",
            config.path()
        ))),
    }
}
