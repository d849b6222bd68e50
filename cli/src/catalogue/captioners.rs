//! The caption models that are known by name: clip-interrogator's `CAPTION_MODELS`, and their
//! sisters. Parameters were counted on the architectures as transformers 4.33.1 builds them; sizes
//! are those that clip-interrogator's source gives beside the names.

use imprompt_repository::family::{
    BLIP, BLIP2_OPT, BLIP2_T5, Family, GIT, INSTRUCTBLIP_T5, INSTRUCTBLIP_VICUNA,
};

/// A caption model.
pub(super) struct Captioner {
    pub(super) name: &'static str,
    pub(super) hub_id: &'static str,
    pub(super) family: Family,
    /// Millions.
    pub(super) parameters: f64,
    /// Of the weights, in bytes.
    pub(super) disk: Option<u64>,
    pub(super) licence: &'static str,
    pub(super) good_for: &'static str,
}

const MIT: &str = "MIT";
const BSD: &str = "BSD-3-Clause";
/// Of LLaMA and Vicuna.
const VICUNA: &str = "other";

pub(super) const CAPTIONERS: [Captioner; 13] = [
    Captioner {
        name: "blip-base",
        hub_id: "Salesforce/blip-image-captioning-base",
        family: BLIP,
        parameters: 247.41,
        disk: Some(990_000_000),
        licence: BSD,
        good_for: "short captions, little memory",
    },
    Captioner {
        name: "blip-large",
        hub_id: "Salesforce/blip-image-captioning-large",
        family: BLIP,
        parameters: 469.73,
        disk: Some(1_900_000_000),
        licence: BSD,
        good_for: "clip-interrogator's default",
    },
    Captioner {
        name: "blip2-2.7b",
        hub_id: "Salesforce/blip2-opt-2.7b",
        family: BLIP2_OPT,
        parameters: 3744.68,
        disk: Some(15_500_000_000),
        licence: MIT,
        good_for: "better captions, questions; the AWS sample's default",
    },
    Captioner {
        name: "blip2-flan-t5-xl",
        hub_id: "Salesforce/blip2-flan-t5-xl",
        family: BLIP2_T5,
        parameters: 3942.45,
        disk: Some(15_770_000_000),
        licence: MIT,
        good_for: "questions and instructions",
    },
    Captioner {
        name: "git-large-coco",
        hub_id: "microsoft/git-large-coco",
        family: GIT,
        parameters: 394.2,
        disk: Some(1_580_000_000),
        licence: MIT,
        good_for: "captions in the manner of COCO",
    },
    Captioner {
        name: "blip2-2.7b-coco",
        hub_id: "Salesforce/blip2-opt-2.7b-coco",
        family: BLIP2_OPT,
        parameters: 3744.68,
        disk: None,
        licence: MIT,
        good_for: "captions in the manner of COCO",
    },
    Captioner {
        name: "blip2-6.7b",
        hub_id: "Salesforce/blip2-opt-6.7b",
        family: BLIP2_OPT,
        parameters: 7752.74,
        disk: None,
        licence: MIT,
        good_for: "as blip2-2.7b, with a larger language model",
    },
    Captioner {
        name: "blip2-6.7b-coco",
        hub_id: "Salesforce/blip2-opt-6.7b-coco",
        family: BLIP2_OPT,
        parameters: 7752.74,
        disk: None,
        licence: MIT,
        good_for: "captions in the manner of COCO",
    },
    Captioner {
        name: "blip2-flan-t5-xxl",
        hub_id: "Salesforce/blip2-flan-t5-xxl",
        family: BLIP2_T5,
        parameters: 12229.6,
        disk: None,
        licence: MIT,
        good_for: "as blip2-flan-t5-xl, with a larger language model",
    },
    Captioner {
        name: "instructblip-flan-t5-xl",
        hub_id: "Salesforce/instructblip-flan-t5-xl",
        family: INSTRUCTBLIP_T5,
        parameters: 4022.97,
        disk: None,
        licence: MIT,
        good_for: "instructions and questions in whole sentences",
    },
    Captioner {
        name: "instructblip-flan-t5-xxl",
        hub_id: "Salesforce/instructblip-flan-t5-xxl",
        family: INSTRUCTBLIP_T5,
        parameters: 12310.12,
        disk: None,
        licence: MIT,
        good_for: "as instructblip-flan-t5-xl, with a larger language model",
    },
    Captioner {
        name: "instructblip-vicuna-7b",
        hub_id: "Salesforce/instructblip-vicuna-7b",
        family: INSTRUCTBLIP_VICUNA,
        parameters: 7913.21,
        disk: None,
        licence: VICUNA,
        good_for: "long descriptions",
    },
    Captioner {
        name: "instructblip-vicuna-13b",
        hub_id: "Salesforce/instructblip-vicuna-13b",
        family: INSTRUCTBLIP_VICUNA,
        parameters: 14191.45,
        disk: None,
        licence: VICUNA,
        good_for: "as instructblip-vicuna-7b, with a larger language model",
    },
];
