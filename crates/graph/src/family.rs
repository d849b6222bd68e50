//! The families of models that are known by name, and whether this build writes their graphs.
//! One line a family: who adds the graphs of one changes its `supported` to `true`. A test holds
//! the table against what [`crate::clip_graphs`] and [`crate::caption_graphs`] accept.

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Pictures and texts into one space.
    Clip,
    /// Pictures into text.
    Captioner,
}

/// A family: models that differ in sizes and weights alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// A short name.
    pub name: &'static str,
    /// What it is for.
    pub role: Role,
    /// Its architecture, in words.
    pub architecture: &'static str,
    /// `model_type` of config.json, and that of its `text_config` where it decides; `None` for
    /// what transformers does not have.
    pub model_type: Option<(&'static str, Option<&'static str>)>,
    /// Whether this build writes its graphs.
    pub supported: bool,
}

const fn family(
    name: &'static str,
    role: Role,
    architecture: &'static str,
    model_type: Option<(&'static str, Option<&'static str>)>,
    supported: bool,
) -> Family {
    Family { name, role, architecture, model_type, supported }
}

/// CLIP with two transformers.
pub const CLIP: Family =
    family("clip", Role::Clip, "CLIP (vision transformer)", Some(("clip", None)), true);
/// CLIP with a ResNet.
pub const CLIP_RESNET: Family = family("clip-resnet", Role::Clip, "CLIP (ResNet)", None, false);
/// CLIP with a ConvNeXt.
pub const CLIP_CONVNEXT: Family =
    family("clip-convnext", Role::Clip, "CLIP (ConvNeXt)", None, false);
/// CLIP with another text encoder.
pub const CLIP_ROBERTA: Family =
    family("clip-roberta", Role::Clip, "CLIP (RoBERTa text)", None, false);
/// EVA-CLIP.
pub const EVA: Family = family("eva-clip", Role::Clip, "EVA-CLIP", None, false);
/// Contrastive captioners.
pub const COCA: Family = family("coca", Role::Clip, "CoCa", None, false);
/// SigLIP.
pub const SIGLIP: Family = family("siglip", Role::Clip, "SigLIP", Some(("siglip", None)), true);
/// BLIP.
pub const BLIP: Family = family("blip", Role::Captioner, "BLIP", Some(("blip", None)), true);
/// BLIP-2 with OPT.
pub const BLIP2_OPT: Family =
    family("blip2-opt", Role::Captioner, "BLIP-2 (OPT)", Some(("blip-2", Some("opt"))), true);
/// BLIP-2 with T5.
pub const BLIP2_T5: Family =
    family("blip2-t5", Role::Captioner, "BLIP-2 (Flan-T5)", Some(("blip-2", Some("t5"))), true);
/// InstructBLIP with T5.
pub const INSTRUCTBLIP_T5: Family = family(
    "instructblip-t5",
    Role::Captioner,
    "InstructBLIP (Flan-T5)",
    Some(("instructblip", Some("t5"))),
    true,
);
/// InstructBLIP with Vicuna, which is a LLaMA.
pub const INSTRUCTBLIP_VICUNA: Family = family(
    "instructblip-vicuna",
    Role::Captioner,
    "InstructBLIP (Vicuna)",
    Some(("instructblip", Some("llama"))),
    false,
);
/// GIT.
pub const GIT: Family = family("git", Role::Captioner, "GIT", Some(("git", None)), true);

/// All of them.
pub const FAMILIES: [Family; 13] = [
    CLIP,
    SIGLIP,
    CLIP_RESNET,
    CLIP_CONVNEXT,
    CLIP_ROBERTA,
    EVA,
    COCA,
    BLIP2_OPT,
    BLIP2_T5,
    INSTRUCTBLIP_T5,
    INSTRUCTBLIP_VICUNA,
    BLIP,
    GIT,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{caption_graphs, clip_graphs};
    use imprompt_error::Kind;

    /// A folder that has only the configuration's first keys: where the architecture is known,
    /// something else is missed.
    #[test]
    fn the_table_says_what_is_accepted() {
        for family in FAMILIES {
            let Some((model_type, text_type)) = family.model_type else {
                assert!(!family.supported, "{}: say how its config.json begins", family.name);
                continue;
            };
            let folder = tempfile::tempdir().unwrap();
            let mut config = serde_json::json!({ "model_type": model_type });
            if let Some(text_type) = text_type {
                config["text_config"] = serde_json::json!({ "model_type": text_type });
            }
            std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
            let error = match family.role {
                Role::Clip => clip_graphs(folder.path()).map(|_| ()).unwrap_err(),
                Role::Captioner => caption_graphs(folder.path()).map(|_| ()).unwrap_err(),
            };
            let accepted = error.kind() != Kind::Unsupported;
            assert_eq!(
                accepted, family.supported,
                "{}: its `supported` in family.rs is wrong: {error}",
                family.name
            );
        }
    }
}
