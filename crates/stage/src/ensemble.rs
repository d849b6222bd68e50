//! The ensembles: which stage's output feeds which stage's input. The shipped
//! config.pbtxt files are made from these, and the `imprompt` command runs
//! them in-process.
//!
//! Every step takes an output of the one before it, if need be as its input `after`, which nobody
//! reads: the steps of one request never run side by side. In Triton before 26.02 a request whose
//! step fails, or is cancelled, while another of its steps runs is never released, and the model
//! is never unloaded (triton-inference-server/core, pull request 466). What it costs is in DESIGN.md.

mod invocations;

use crate::signature::{Dtype, MAX_BATCH_SIZE, Signature, StageKind, TensorSpec};

pub use invocations::{INVOCATIONS, SPLIT_INVOCATIONS};

/// One step: a stage, and for each of its tensors the ensemble's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The stage.
    pub stage: StageKind,
    /// (the stage's input, the ensemble's tensor).
    pub inputs: &'static [(&'static str, &'static str)],
    /// (the stage's output, the ensemble's tensor).
    pub outputs: &'static [(&'static str, &'static str)],
}

/// An ensemble: what users call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ensemble {
    /// The model's name in a repository.
    pub name: &'static str,
    /// Most pictures of a request.
    pub max_batch_size: usize,
    /// The inputs, in the order of the contract.
    pub inputs: &'static [&'static str],
    /// The outputs.
    pub outputs: &'static [&'static str],
    /// The steps; each one's inputs are made by the ones before it.
    pub steps: &'static [Step],
}

const CLIP_PIXELS: Step = Step {
    stage: StageKind::Preprocess,
    inputs: &[("image", "image")],
    outputs: &[("clip_pixel_values", "clip_pixel_values")],
};

/// The interrogator's reference crops as open_clip does, not as transformers does.
const BOTH_PIXELS: Step = Step {
    stage: StageKind::Preprocess,
    inputs: &[("image", "image")],
    outputs: &[
        ("open_clip_pixel_values", "clip_pixel_values"),
        ("caption_pixel_values", "caption_pixel_values"),
    ],
};

const CAPTION_PIXELS: Step = Step {
    stage: StageKind::Preprocess,
    inputs: &[("image", "image")],
    outputs: &[("caption_pixel_values", "caption_pixel_values")],
};

const CLIP_IMAGE: Step = Step {
    stage: StageKind::ClipImage,
    inputs: &[("pixel_values", "clip_pixel_values")],
    outputs: &[("image_embeds", "image_embeds")],
};

const MODE: (&str, &str) = ("mode", "mode");
const GIVEN_CAPTION: (&str, &str) = ("given_caption", "given_caption");
const AFTER_CLIP_IMAGE: (&str, &str) = ("after", "image_embeds");

/// The step of a captioner `$stage` that reads `$picture`, `$own`, and of the ensemble's inputs all of
/// [`crate::generation`] under their names; the number of tokens under `$tokens`.
macro_rules! captions {
    ($stage:ident, $picture:expr, [$($own:expr),*], $caption:literal) => {
        captions!($stage, $picture, "max_new_tokens", [$($own),*], $caption)
    };
    ($stage:ident, $picture:expr, $tokens:literal, [$($own:expr),*], $caption:literal) => {
        Step {
            stage: StageKind::$stage,
            inputs: &[
                $picture,
                ("max_new_tokens", $tokens),
                ("min_new_tokens", "min_new_tokens"),
                ("num_beams", "num_beams"),
                ("temperature", "temperature"),
                ("top_k", "top_k"),
                ("top_p", "top_p"),
                ("seed", "seed"),
                ("repetition_penalty", "repetition_penalty"),
                ("length_penalty", "length_penalty"),
                ("no_repeat_ngram_size", "no_repeat_ngram_size"),
                $($own),*
            ],
            outputs: &[("caption", $caption)],
        }
    };
}

use captions;

const CAPTION_VISION: Step = Step {
    stage: StageKind::CaptionVision,
    inputs: &[("pixel_values", "caption_pixel_values"), MODE, GIVEN_CAPTION, AFTER_CLIP_IMAGE],
    outputs: &[("picture_embeds", "picture_embeds")],
};

const RANK: Step = Step {
    stage: StageKind::Ranker,
    inputs: &[
        ("image_embeds", "image_embeds"),
        ("caption", "plain_caption"),
        ("mode", "mode"),
        ("min_flavors", "min_flavors"),
        ("max_flavors", "max_flavors"),
        ("budget_ms", "budget_ms"),
    ],
    outputs: &[
        ("prompt", "prompt"),
        ("caption", "caption"),
        ("similarity", "similarity"),
        ("report", "report"),
    ],
};

/// Every ensemble of a repository that has both a CLIP and a captioner.
pub const ENSEMBLES: [Ensemble; 5] = [
    Ensemble {
        name: "interrogate",
        max_batch_size: MAX_BATCH_SIZE,
        inputs: &[
            "image",
            "mode",
            "given_caption",
            "min_flavors",
            "max_flavors",
            "budget_ms",
            "max_new_tokens",
            "min_new_tokens",
            "num_beams",
            "temperature",
            "top_k",
            "top_p",
            "seed",
            "repetition_penalty",
            "length_penalty",
            "no_repeat_ngram_size",
        ],
        outputs: &["prompt", "caption", "similarity", "report"],
        steps: &[
            BOTH_PIXELS,
            CLIP_IMAGE,
            // Not the ensemble's own `caption`: Triton leaves out a step whose only output is one
            // of the ensemble's that the client did not ask for, even when a later step needs
            // it. The ranker hands the caption on.
            captions!(
                Captioner,
                ("pixel_values", "caption_pixel_values"),
                [MODE, GIVEN_CAPTION, AFTER_CLIP_IMAGE],
                "plain_caption"
            ),
            RANK,
        ],
    },
    Ensemble {
        name: "caption",
        max_batch_size: MAX_BATCH_SIZE,
        inputs: &[
            "image",
            "text",
            "max_new_tokens",
            "min_new_tokens",
            "num_beams",
            "temperature",
            "top_k",
            "top_p",
            "seed",
            "repetition_penalty",
            "length_penalty",
            "no_repeat_ngram_size",
        ],
        outputs: &["caption"],
        steps: &[
            CAPTION_PIXELS,
            captions!(
                Captioner,
                ("pixel_values", "caption_pixel_values"),
                [("text", "text")],
                "caption"
            ),
        ],
    },
    Ensemble {
        name: "zero_shot",
        max_batch_size: MAX_BATCH_SIZE,
        inputs: &["image", "labels", "vocabulary", "template", "top_k"],
        outputs: &["label", "probability", "similarity"],
        steps: &[
            CLIP_PIXELS,
            CLIP_IMAGE,
            Step {
                stage: StageKind::Tagger,
                inputs: &[
                    ("image_embeds", "image_embeds"),
                    ("labels", "labels"),
                    ("vocabulary", "vocabulary"),
                    ("template", "template"),
                    ("top_k", "top_k"),
                ],
                outputs: &[
                    ("label", "label"),
                    ("probability", "probability"),
                    ("similarity", "similarity"),
                ],
            },
        ],
    },
    Ensemble {
        name: "embed_image",
        max_batch_size: MAX_BATCH_SIZE,
        inputs: &["image"],
        outputs: &["embedding"],
        steps: &[
            CLIP_PIXELS,
            Step {
                stage: StageKind::ClipImage,
                inputs: &[("pixel_values", "clip_pixel_values")],
                outputs: &[("image_embeds", "embedding")],
            },
        ],
    },
    Ensemble {
        name: "embed_text",
        max_batch_size: MAX_BATCH_SIZE,
        inputs: &["text"],
        outputs: &["embedding"],
        steps: &[Step {
            stage: StageKind::ClipText,
            inputs: &[("text", "text")],
            outputs: &[("text_embeds", "embedding")],
        }],
    },
];

/// Those of [`ENSEMBLES`] that caption, over a captioner in two stages.
pub const SPLIT_ENSEMBLES: [Ensemble; 2] = [
    Ensemble {
        steps: &[
            BOTH_PIXELS,
            CLIP_IMAGE,
            CAPTION_VISION,
            captions!(
                CaptionDecoder,
                ("picture_embeds", "picture_embeds"),
                [MODE, GIVEN_CAPTION],
                "plain_caption"
            ),
            RANK,
        ],
        ..ENSEMBLES[0]
    },
    Ensemble {
        steps: &[
            CAPTION_PIXELS,
            Step {
                stage: StageKind::CaptionVision,
                inputs: &[("pixel_values", "caption_pixel_values")],
                outputs: &[("picture_embeds", "picture_embeds")],
            },
            captions!(
                CaptionDecoder,
                ("picture_embeds", "picture_embeds"),
                [("text", "text")],
                "caption"
            ),
        ],
        ..ENSEMBLES[1]
    },
];

impl Ensemble {
    /// Every ensemble there may be; of two with one name a repository has one.
    pub fn all() -> impl Iterator<Item = &'static Ensemble> {
        const ALL: [&[Ensemble]; 4] =
            [&ENSEMBLES, &INVOCATIONS, &SPLIT_ENSEMBLES, &SPLIT_INVOCATIONS];
        ALL.into_iter().flatten()
    }

    /// Whether all its stages are among those of a repository.
    pub fn is_possible(&self, has: impl Fn(StageKind) -> bool) -> bool {
        self.steps.iter().all(|step| has(step.stage))
    }

    /// The ensemble's own signature, from the signatures of its stages.
    pub fn signature(&self, of_stage: impl Fn(StageKind) -> Signature) -> Signature {
        let inputs = self.inputs.iter().map(|name| self.tensor(name, false, &of_stage)).collect();
        let outputs = self.outputs.iter().map(|name| self.tensor(name, true, &of_stage)).collect();
        Signature { inputs, outputs, decoupled: false, on_gpu: false, shares_model: false }
    }

    /// The spec of the ensemble's tensor `name`, taken from a stage that makes
    /// (`is_output`) or takes it. Every name of `inputs` and `outputs` is in a step:
    /// a test of this crate checks it.
    fn tensor(
        &self,
        name: &'static str,
        is_output: bool,
        of_stage: &impl Fn(StageKind) -> Signature,
    ) -> TensorSpec {
        for step in self.steps {
            let map = if is_output { step.outputs } else { step.inputs };
            let signature = of_stage(step.stage);
            let specs = if is_output { signature.outputs } else { signature.inputs };
            let found = map
                .iter()
                .find(|(_, outer)| *outer == name)
                .and_then(|(inner, _)| specs.into_iter().find(|spec| spec.name == *inner));
            if let Some(spec) = found {
                // Raggedness is the business of a stage's own batcher.
                return TensorSpec { name, ragged: false, ..spec };
            }
        }
        TensorSpec { name, dtype: Dtype::Bytes, dims: vec![], optional: false, ragged: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tensor_comes_from_somewhere_and_every_step_waits_for_the_one_before() {
        for ensemble in Ensemble::all() {
            let mut known: Vec<&str> = ensemble.inputs.to_vec();
            let mut before: Option<&Step> = None;
            for step in ensemble.steps {
                let signature = step.stage.signature();
                for (inner, outer) in step.inputs {
                    assert!(known.contains(outer), "{}: {outer}", ensemble.name);
                    assert!(signature.inputs.iter().any(|spec| spec.name == *inner));
                }
                for spec in signature.inputs.iter().filter(|spec| !spec.optional) {
                    assert!(step.inputs.iter().any(|(inner, _)| *inner == spec.name));
                }
                let takes = |made: &str| step.inputs.iter().any(|(_, outer)| *outer == made);
                let is_next =
                    before.is_none_or(|step| step.outputs.iter().any(|(_, made)| takes(made)));
                assert!(is_next, "{}: {:?} does not wait", ensemble.name, step.stage);
                before = Some(step);
                for (inner, outer) in step.outputs {
                    assert!(signature.outputs.iter().any(|spec| spec.name == *inner));
                    known.push(outer);
                }
            }
            assert!(ensemble.outputs.iter().all(|name| known.contains(name)));
            // Triton refuses an ensemble with a tensor that nobody takes.
            for name in known {
                let taken = |step: &Step| step.inputs.iter().any(|(_, outer)| *outer == name);
                let is_used = ensemble.outputs.contains(&name) || ensemble.steps.iter().any(taken);
                assert!(is_used, "{}: {name} is unused", ensemble.name);
            }
            let signature = ensemble.signature(StageKind::signature);
            assert!(signature.inputs.iter().chain(&signature.outputs).all(|s| !s.dims.is_empty()));
        }
    }
}
