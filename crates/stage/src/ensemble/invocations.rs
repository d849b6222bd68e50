//! The ensembles of SageMaker's existing clients: one input, the body of a request as it is, and one
//! output, the answer as JSON. And the same as named tensors, for Triton's generate extension.
//!
//! The first answers every form of body; the others are parts of it, for packages that hold less.

use super::{AFTER_CLIP_IMAGE, CLIP_IMAGE, Ensemble, GIVEN_CAPTION, MODE, Step, captions};
use crate::signature::{MAX_BATCH_SIZE, StageKind};

const INVOCATION: Step = Step {
    stage: StageKind::Invocation,
    inputs: &[("body", "body")],
    outputs: &[("image", "image"), ("invocation", "invocation")],
};

const CLIP_PIXELS: Step = Step {
    stage: StageKind::Preprocess,
    inputs: &[("image", "image"), ("invocation", "invocation")],
    outputs: &[("clip_pixel_values", "clip_pixel_values")],
};

const BOTH_PIXELS: Step = Step {
    outputs: &[
        ("clip_pixel_values", "clip_pixel_values"),
        ("caption_pixel_values", "caption_pixel_values"),
    ],
    ..CLIP_PIXELS
};

const CAPTIONER: Step = Step {
    stage: StageKind::Captioner,
    inputs: &[
        ("pixel_values", "caption_pixel_values"),
        ("invocation", "invocation"),
        AFTER_CLIP_IMAGE,
    ],
    outputs: &[("caption", "caption")],
};

const CAPTION_VISION: Step = Step {
    stage: StageKind::CaptionVision,
    outputs: &[("picture_embeds", "picture_embeds")],
    ..CAPTIONER
};

const CAPTION_DECODER: Step = Step {
    stage: StageKind::CaptionDecoder,
    inputs: &[("picture_embeds", "picture_embeds"), ("invocation", "invocation")],
    outputs: &[("caption", "caption")],
};

const RANK: Step = Step {
    stage: StageKind::Ranker,
    inputs: &[
        ("image_embeds", "image_embeds"),
        ("caption", "caption"),
        ("invocation", "invocation"),
    ],
    outputs: &[("prompt", "prompt")],
};

const RANK_BEFORE_TAG: Step =
    Step { outputs: &[("prompt", "prompt"), ("similarity", "prompt_similarity")], ..RANK };

const TAG: Step = Step {
    stage: StageKind::Tagger,
    inputs: &[("image_embeds", "image_embeds"), ("invocation", "invocation")],
    outputs: &[("label", "label"), ("probability", "probability"), ("similarity", "similarity")],
};

const TAG_AFTER_RANK: Step = Step {
    inputs: &[
        ("image_embeds", "image_embeds"),
        ("invocation", "invocation"),
        ("after", "prompt_similarity"),
    ],
    ..TAG
};

const ANSWER_PROMPT: Step = Step {
    stage: StageKind::Answer,
    inputs: &[("invocation", "invocation"), ("prompt", "prompt")],
    outputs: &[("outputs", "outputs")],
};

const ANSWER_LABELS: Step = Step {
    inputs: &[
        ("invocation", "invocation"),
        ("label", "label"),
        ("probability", "probability"),
        ("similarity", "similarity"),
    ],
    ..ANSWER_PROMPT
};

const ANSWER_BOTH: Step = Step {
    inputs: &[
        ("invocation", "invocation"),
        ("prompt", "prompt"),
        ("label", "label"),
        ("probability", "probability"),
        ("similarity", "similarity"),
    ],
    ..ANSWER_PROMPT
};

/// A body has no room for a batch.
const WHOLE: Ensemble = Ensemble {
    name: "invocations",
    max_batch_size: 1,
    inputs: &["body"],
    outputs: &["outputs"],
    steps: &[],
};

const PROMPTS: Ensemble = Ensemble { name: "invocations_interrogate", ..WHOLE };

/// `interrogate` under the names of the AWS sample.
const GENERATE: Ensemble = Ensemble {
    name: "invocations_generate",
    max_batch_size: MAX_BATCH_SIZE,
    inputs: &[
        "inputs",
        "mode",
        "given_caption",
        "min_flavors",
        "max_flavors",
        "budget_ms",
        "max_length",
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
    outputs: &["outputs"],
    steps: &[],
};

const GENERATE_PIXELS: Step = Step { inputs: &[("image", "inputs")], ..super::BOTH_PIXELS };

const GENERATE_RANK: Step = Step { outputs: &[("prompt", "outputs")], ..super::RANK };

/// Those of a repository that has a CLIP and a captioner in one stage; the last needs the CLIP
/// alone.
pub const INVOCATIONS: [Ensemble; 4] = [
    Ensemble {
        steps: &[
            INVOCATION,
            BOTH_PIXELS,
            CLIP_IMAGE,
            CAPTIONER,
            RANK_BEFORE_TAG,
            TAG_AFTER_RANK,
            ANSWER_BOTH,
        ],
        ..WHOLE
    },
    Ensemble {
        steps: &[INVOCATION, BOTH_PIXELS, CLIP_IMAGE, CAPTIONER, RANK, ANSWER_PROMPT],
        ..PROMPTS
    },
    Ensemble {
        steps: &[
            GENERATE_PIXELS,
            CLIP_IMAGE,
            captions!(
                Captioner,
                ("pixel_values", "caption_pixel_values"),
                "max_length",
                [MODE, GIVEN_CAPTION, AFTER_CLIP_IMAGE],
                "plain_caption"
            ),
            GENERATE_RANK,
        ],
        ..GENERATE
    },
    Ensemble {
        name: "invocations_zero_shot",
        steps: &[INVOCATION, CLIP_PIXELS, CLIP_IMAGE, TAG, ANSWER_LABELS],
        ..WHOLE
    },
];

/// Those of [`INVOCATIONS`] that caption, over a captioner in two stages.
pub const SPLIT_INVOCATIONS: [Ensemble; 3] = [
    Ensemble {
        steps: &[
            INVOCATION,
            BOTH_PIXELS,
            CLIP_IMAGE,
            CAPTION_VISION,
            CAPTION_DECODER,
            RANK_BEFORE_TAG,
            TAG_AFTER_RANK,
            ANSWER_BOTH,
        ],
        ..WHOLE
    },
    Ensemble {
        steps: &[
            INVOCATION,
            BOTH_PIXELS,
            CLIP_IMAGE,
            CAPTION_VISION,
            CAPTION_DECODER,
            RANK,
            ANSWER_PROMPT,
        ],
        ..PROMPTS
    },
    Ensemble {
        steps: &[
            GENERATE_PIXELS,
            CLIP_IMAGE,
            super::CAPTION_VISION,
            captions!(
                CaptionDecoder,
                ("picture_embeds", "picture_embeds"),
                "max_length",
                [MODE, GIVEN_CAPTION],
                "plain_caption"
            ),
            GENERATE_RANK,
        ],
        ..GENERATE
    },
];
