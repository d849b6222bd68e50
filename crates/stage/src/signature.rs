//! Names, types and shapes of every stage's tensors: the one place they are
//! written down. config.pbtxt files and auto-completion are made from these.

use std::fmt;

use imprompt_error::{Error, Result};

use crate::generation::INPUTS;
use crate::invoked::INVOCATION;

/// Element types that cross a stage's border.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit float.
    Fp32,
    /// 32-bit signed integer.
    Int32,
    /// Byte strings.
    Bytes,
}

impl Dtype {
    /// The name in config.pbtxt and in a model configuration as JSON.
    pub fn config_name(self) -> &'static str {
        match self {
            Dtype::Fp32 => "TYPE_FP32",
            Dtype::Int32 => "TYPE_INT32",
            Dtype::Bytes => "TYPE_STRING",
        }
    }
}

impl fmt::Display for Dtype {
    /// The name in the KServe v2 protocol.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::Fp32 => "FP32",
            Dtype::Int32 => "INT32",
            Dtype::Bytes => "BYTES",
        })
    }
}

/// One input or output; `dims` without the batch dimension, -1 for any size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name.
    pub name: &'static str,
    /// The element type.
    pub dtype: Dtype,
    /// The shape of one item.
    pub dims: Vec<i64>,
    /// Whether a request may leave it out.
    pub optional: bool,
    /// Whether requests of one batch may differ in its size.
    pub ragged: bool,
}

/// The inputs and outputs of a model that batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The inputs.
    pub inputs: Vec<TensorSpec>,
    /// The outputs.
    pub outputs: Vec<TensorSpec>,
    /// Whether a request is answered by several responses, one after the other.
    pub decoupled: bool,
    /// Whether its instances can compute on a GPU.
    pub on_gpu: bool,
    /// Whether instances share one model, at which requests meet however they come, step by step: those of a
    /// batch would wait for one another, so batches of requests are of use to a single instance alone.
    pub shares_model: bool,
}

impl Signature {
    /// Fills in the dims of the input or output `name`, once a model's sizes are known.
    pub(crate) fn set_dims(&mut self, name: &str, dims: &[i64]) {
        for spec in self.inputs.iter_mut().chain(&mut self.outputs) {
            if spec.name == name {
                spec.dims = dims.to_vec();
            }
        }
    }
}

/// The largest batch a stage takes by default.
pub const MAX_BATCH_SIZE: usize = 8;

/// The kinds of stage, one a Triton model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StageKind {
    /// The body of a request to a picture and what is asked of it.
    Invocation,
    /// Decodes and orients a picture, and resizes it as CLIP and the captioner want it.
    Preprocess,
    /// CLIP's image tower.
    ClipImage,
    /// CLIP's text tower.
    ClipText,
    /// The caption model: vision, qformer, decoder.
    Captioner,
    /// The half of the caption model that reads no text: vision, qformer.
    CaptionVision,
    /// The other half, which reads what `caption_vision` makes.
    CaptionDecoder,
    /// A picture to a caption, told as it is said: preprocessing and caption model in one.
    CaptionStream,
    /// CLIP Interrogator: label tables, chain, modes.
    Ranker,
    /// Zero-shot labels.
    Tagger,
    /// What was found in the form that the body asks for.
    Answer,
}

impl StageKind {
    /// Whether it has graphs that engines compute.
    #[must_use]
    pub fn has_engines(self) -> bool {
        !matches!(self, StageKind::Invocation | StageKind::Preprocess | StageKind::Answer)
    }

    /// Every kind, in the order a request meets them.
    pub const ALL: [StageKind; 11] = [
        StageKind::Invocation,
        StageKind::Preprocess,
        StageKind::ClipImage,
        StageKind::ClipText,
        StageKind::Captioner,
        StageKind::CaptionVision,
        StageKind::CaptionDecoder,
        StageKind::CaptionStream,
        StageKind::Ranker,
        StageKind::Tagger,
        StageKind::Answer,
    ];

    /// The name: of the stage in its [`crate::STAGE_FILE`], and of its model in a repository.
    pub fn name(self) -> &'static str {
        match self {
            StageKind::Invocation => "invocation",
            StageKind::Preprocess => "preprocess",
            StageKind::ClipImage => "clip_image",
            StageKind::ClipText => "clip_text",
            StageKind::Captioner => "captioner",
            StageKind::CaptionVision => "caption_vision",
            StageKind::CaptionDecoder => "caption_decoder",
            StageKind::CaptionStream => "caption_stream",
            StageKind::Ranker => "ranker",
            StageKind::Tagger => "tagger",
            StageKind::Answer => "answer",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
            Error::bad_model(format!("unknown stage; the stages are {}", names.join(", ")))
        })
    }

    /// The signature before the sizes of a certain model are known (-1).
    pub fn signature(self) -> Signature {
        use Dtype::{Bytes, Fp32, Int32};
        let pixel_values = |name| required(name, Fp32, vec![3, -1, -1]);
        let embeds = |name| required(name, Fp32, vec![-1]);
        let text = |name| required(name, Bytes, vec![1]);
        let picture_embeds = required("picture_embeds", Fp32, vec![-1, -1]);
        let invocation = || optional(INVOCATION, Bytes);
        let (inputs, outputs) = match self {
            StageKind::Invocation => (vec![text("body")], vec![text("image"), text(INVOCATION)]),
            StageKind::Answer => (
                vec![
                    text(INVOCATION),
                    optional("prompt", Bytes),
                    list("label", Bytes),
                    list("probability", Fp32),
                    list("similarity", Fp32),
                ],
                vec![text("outputs")],
            ),
            StageKind::Preprocess => (
                vec![text("image"), invocation()],
                vec![
                    pixel_values("clip_pixel_values"),
                    pixel_values("open_clip_pixel_values"),
                    pixel_values("caption_pixel_values"),
                ],
            ),
            StageKind::ClipImage => {
                (vec![pixel_values("pixel_values")], vec![embeds("image_embeds")])
            }
            StageKind::ClipText => (vec![text("text")], vec![embeds("text_embeds")]),
            StageKind::Captioner => (
                [captioner(pixel_values("pixel_values")), vec![after()]].concat(),
                vec![text("caption")],
            ),
            StageKind::CaptionVision => (
                [vec![pixel_values("pixel_values")], caption_is_known(), vec![after()]].concat(),
                vec![picture_embeds.clone()],
            ),
            StageKind::CaptionDecoder => (captioner(picture_embeds), vec![text("caption")]),
            StageKind::CaptionStream => (
                [vec![text("image"), optional("text", Bytes)], generation()].concat(),
                vec![text("caption")],
            ),
            StageKind::Ranker => (
                vec![
                    embeds("image_embeds"),
                    text("caption"),
                    optional("mode", Bytes),
                    optional("min_flavors", Int32),
                    optional("max_flavors", Int32),
                    optional("budget_ms", Int32),
                    invocation(),
                ],
                vec![
                    text("prompt"),
                    text("caption"),
                    required("similarity", Fp32, vec![1]),
                    text("report"),
                ],
            ),
            StageKind::Tagger => (
                vec![
                    embeds("image_embeds"),
                    list("labels", Bytes),
                    optional("vocabulary", Bytes),
                    optional("template", Bytes),
                    optional("top_k", Int32),
                    invocation(),
                    after(),
                ],
                vec![
                    required("label", Bytes, vec![-1]),
                    required("probability", Fp32, vec![-1]),
                    required("similarity", Fp32, vec![-1]),
                ],
            ),
        };
        let shared = [Self::Captioner, Self::CaptionDecoder, Self::CaptionStream, Self::Ranker];
        Signature {
            inputs,
            outputs,
            decoupled: self == StageKind::CaptionStream,
            on_gpu: self.has_engines(),
            shares_model: shared.contains(&self),
        }
    }
}

/// What a captioner takes besides `picture`.
fn captioner(picture: TensorSpec) -> Vec<TensorSpec> {
    [vec![picture, optional("text", Dtype::Bytes)], generation(), caption_is_known()].concat()
}

/// What says that an item needs no caption: the mode, or a caption that is given.
fn caption_is_known() -> Vec<TensorSpec> {
    let known = ["mode", "given_caption", INVOCATION];
    known.map(|name| optional(name, Dtype::Bytes)).to_vec()
}

/// How a caption is generated.
fn generation() -> Vec<TensorSpec> {
    INPUTS.into_iter().map(|(name, dtype)| optional(name, dtype)).collect()
}

/// Read by nobody. A step that takes an output of another one here begins when that one has ended:
/// see [`crate::ensemble`].
fn after() -> TensorSpec {
    list("after", Dtype::Fp32)
}

fn list(name: &'static str, dtype: Dtype) -> TensorSpec {
    TensorSpec { dims: vec![-1], ragged: true, ..optional(name, dtype) }
}

fn required(name: &'static str, dtype: Dtype, dims: Vec<i64>) -> TensorSpec {
    TensorSpec { name, dtype, dims, optional: false, ragged: false }
}

fn optional(name: &'static str, dtype: Dtype) -> TensorSpec {
    TensorSpec { name, dtype, dims: vec![1], optional: true, ragged: false }
}
