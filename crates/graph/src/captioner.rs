//! Caption models: from a model folder to its graphs, whatever the family.

use std::path::Path;

use imprompt_error::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::blip::Blip;
use crate::blip2::Blip2;
use crate::builder::Graph;
use crate::config::Section;
use crate::generation::{GenerationFacts, generation_config};
use crate::git::Git;
use crate::weights::WeightIndex;

/// File of the image encoder: `pixel_values` f32 `[batch, 3, size, size]` to
/// `image_embeds` f32 `[batch, patches + 1, width]`.
pub const VISION_GRAPH: &str = "caption_vision.onnx";

/// File of the Q-Former: `image_embeds` and, where it reads the text,
/// `qformer_input_ids` i64 `[batch, tokens]` (padded on the right with any id) and
/// `qformer_lengths` i64 `[batch]` (how many are real, from 1) to `query_embeds`
/// f32 `[batch, queries, width]`, ready to stand in front of word embeddings.
pub const QFORMER_GRAPH: &str = "caption_qformer.onnx";

/// File of what writes the memory that the decoder's cross attention looks at:
/// `picture_embeds` f32 `[batch, picture_positions, picture_width]` and, where
/// the memory holds the text, `input_ids` i64 `[batch, tokens]` (padded on the
/// right with any id) and `lengths` i64 `[batch]` (how many are real, from 1) to
/// `present_memory.N.key` and `.value` f32
/// `[batch, heads, memory_length, head_dim]`.
pub const MEMORY_GRAPH: &str = "caption_memory.onnx";

/// File of the decoder, prefill and decode step in one: see [`crate::decoder`].
pub const DECODER_GRAPH: &str = "caption_decoder.onnx";

/// The kinds of caption model that graphs are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CaptionFamily {
    /// `BlipForConditionalGeneration`.
    Blip,
    /// `BlipForQuestionAnswering`.
    BlipVqa,
    /// `Blip2ForConditionalGeneration` with an OPT language model.
    Blip2Opt,
    /// `Blip2ForConditionalGeneration` with a T5 language model.
    Blip2T5,
    /// `InstructBlipForConditionalGeneration` with a T5 language model.
    InstructBlipT5,
    /// `GitForCausalLM`.
    Git,
}

/// What one who runs the graphs must know of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptionFacts {
    /// What the model is.
    pub family: CaptionFamily,
    /// Height and width of `pixel_values`.
    pub image_size: usize,
    /// Embeddings that the encoders make of a picture.
    pub picture_positions: usize,
    /// Width of each.
    pub picture_width: usize,
    /// Whether a Q-Former follows the image encoder.
    pub qformer: bool,
    /// Where the Q-Former reads the text: as what, by a tokenizer of its own.
    pub qformer_text: Option<QFormerTextFacts>,
    /// What the decoder looks at by cross attention. Without it a picture's
    /// embeddings stand in front of the text.
    pub memory: Option<MemoryFacts>,
    /// How a text's token ids are read.
    pub text: TextFacts,
    /// Layers of the decoder.
    pub layers: usize,
    /// Attention heads of a decoder layer.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Positions that the decoder knows, where they have an end: the picture's,
    /// where it stands in front, and all tokens but the last generated one.
    pub max_positions: Option<usize>,
    /// What the decoder starts with where the text stands elsewhere.
    pub bos_token_id: u32,
    /// A caption ends with any of these.
    pub eos_token_ids: Vec<u32>,
    /// How captions are generated where a request says nothing.
    pub generation: GenerationFacts,
}

impl CaptionFacts {
    /// Positions of a picture in front of the decoder's tokens.
    #[must_use]
    pub fn prefix_positions(&self) -> usize {
        if self.memory.is_none() { self.picture_positions } else { 0 }
    }

    /// Positions and width of what the graphs that read no text make of a picture: what a
    /// `caption_vision` stage hands to a `caption_decoder`.
    #[must_use]
    pub fn encoded_shape(&self) -> [usize; 2] {
        self.qformer_text.map_or([self.picture_positions, self.picture_width], |text| {
            [text.image_positions, text.image_width]
        })
    }

    /// Whether the graph `name` reads no text, and so belongs to [`Self::encoded_shape`].
    #[must_use]
    pub fn is_encoder(&self, name: &str) -> bool {
        name == VISION_GRAPH || (name == QFORMER_GRAPH && self.qformer_text.is_none())
    }

    /// Whether the text stands in the memory, and not in front of what the
    /// decoder says.
    #[must_use]
    pub fn memory_holds_text(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.holds_text)
    }
}

/// What a Q-Former that reads the text reads, and looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QFormerTextFacts {
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Most tokens of a text.
    pub max_tokens: usize,
    /// Embeddings that the image encoder makes of a picture.
    pub image_positions: usize,
    /// Width of each.
    pub image_width: usize,
}

/// What a decoder looks at by cross attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryFacts {
    /// Positions of it that a picture takes.
    pub picture_positions: usize,
    /// Whether the text follows there.
    pub holds_text: bool,
    /// Most tokens of a text that its encoder has positions for.
    pub max_text: Option<usize>,
}

/// How a text's token ids, special tokens included as its tokenizer gives them,
/// become what the model reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextFacts {
    /// Takes the place of the first id.
    pub first: Option<u32>,
    /// Ids at the end that are not read: the end token, behind which nothing
    /// would be said.
    pub dropped: usize,
    /// What is read where there is no text; nothing where the model needs one.
    pub absent: Vec<u32>,
}

impl TextFacts {
    /// What the model reads; empty where it needs a text and has none.
    #[must_use]
    pub fn read(&self, ids: Option<&[u32]>) -> Vec<u32> {
        let Some(ids) = ids else { return self.absent.clone() };
        let mut read = ids[..ids.len().saturating_sub(self.dropped)].to_vec();
        if let (Some(id), Some(first)) = (self.first, read.first_mut()) {
            *first = id;
        }
        read
    }
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
    let weights = || WeightIndex::open(folder);
    let mut graphs = match config.text("model_type", "")?.as_str() {
        "blip" => Blip::from_config(&config)?.graphs(&weights()?),
        "blip-2" => Blip2::from_config(&config)?.graphs(&weights()?),
        "instructblip" => Blip2::of_instruct_blip(&config)?.graphs(&weights()?),
        "git" => Git::from_config(&config)?.graphs(&weights()?),
        other => Err(Error::unsupported(format!(
            "{}: model_type {other:?} is no caption model of this build; supported: \"blip\", \
             \"blip-2\" with an OPT or T5 language model, \"instructblip\" with a T5 one, and \
             \"git\"",
            config.path()
        ))),
    }?;
    if let Some(section) = generation_config(folder)? {
        graphs.facts.generation.read(&section)?;
    }
    Ok(graphs)
}
