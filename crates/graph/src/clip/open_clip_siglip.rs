//! SigLIP as open_clip keeps it on the hub: an image tower of timm, and
//! open_clip's text tower without a causal mask.
//!
//! The graphs are those of [`super::siglip`], whose tensors have other names
//! here; queries, keys and values lie in one matrix. The activation is not
//! always SigLIP's own: the tower's name decides it, and `act_kwargs` of the
//! text tower. References: open_clip 3.3.0 (`timm_model.py`, `transformer.py`)
//! and timm 1.0.31 (`models/vision_transformer.py`, `layers/attention_pool.py`).

use imprompt_error::{Error, Result};
use serde_json::{Value, json};

use super::config::Tower;
use super::open_clip::{
    MODEL_HARMLESS, TEXT_HARMLESS, VISION_HARMLESS, both, check_heads, refuse_if_set, square,
    text_tower,
};
use super::siglip::SiglipConfig;
use crate::builder::Activation;
use crate::config::Section;
use crate::weights::WeightIndex;

/// An image tower of timm with attention pooling.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trunk {
    name: &'static str,
    image_size: usize,
    patch_size: usize,
    heads: usize,
    activation: Activation,
}

const fn trunk(
    name: &'static str,
    [image_size, patch_size]: [usize; 2],
    heads: usize,
    activation: Activation,
) -> Trunk {
    Trunk { name, image_size, patch_size, heads, activation }
}

use Activation::{Gelu, GeluTanh};

/// What timm builds by each name; width and layers are those of the weights.
/// The towers that came first have the exact GELU, though they were trained
/// with the other: so has the reference.
const TRUNKS: [Trunk; 16] = [
    trunk("vit_base_patch16_siglip_224", [224, 16], 12, Gelu),
    trunk("vit_base_patch16_siglip_256", [256, 16], 12, Gelu),
    trunk("vit_base_patch16_siglip_384", [384, 16], 12, Gelu),
    trunk("vit_base_patch16_siglip_512", [512, 16], 12, Gelu),
    trunk("vit_base_patch32_siglip_256", [256, 32], 12, GeluTanh),
    trunk("vit_large_patch16_siglip_256", [256, 16], 16, Gelu),
    trunk("vit_large_patch16_siglip_384", [384, 16], 16, Gelu),
    trunk("vit_large_patch16_siglip_512", [512, 16], 16, GeluTanh),
    trunk("vit_so400m_patch14_siglip_224", [224, 14], 16, Gelu),
    trunk("vit_so400m_patch14_siglip_378", [378, 14], 16, Gelu),
    trunk("vit_so400m_patch14_siglip_384", [384, 14], 16, Gelu),
    trunk("vit_so400m_patch16_siglip_256", [256, 16], 16, GeluTanh),
    trunk("vit_so400m_patch16_siglip_384", [384, 16], 16, GeluTanh),
    trunk("vit_so400m_patch16_siglip_512", [512, 16], 16, GeluTanh),
    trunk("vit_giantopt_patch16_siglip_256", [256, 16], 16, GeluTanh),
    trunk("vit_giantopt_patch16_siglip_384", [384, 16], 16, GeluTanh),
];

/// `epsilon` of timm's towers.
const EPSILON: f32 = 1e-6;

/// The tower that `vision_cfg` names, if it is one of SigLIP's.
pub(super) fn named(vision: &Section) -> Option<Trunk> {
    let name = vision.get("timm_model_name")?;
    TRUNKS.into_iter().find(|trunk| name == trunk.name)
}

/// A configuration whose image tower is `trunk`, but for its sizes.
pub(super) fn read_config(
    model: &Section,
    vision: &Section,
    text: &Section,
    trunk: Trunk,
) -> Result<SiglipConfig> {
    model.only("quick_gelu", &[json!(false)])?;
    let needed = |section: &Section, key: &str| match section.get(key) {
        Some(_) => Ok(()),
        None => Err(Error::bad_model(format!("{}: {key} is missing", section.path()))),
    };
    // Without it there is no bias, and the model is no SigLIP.
    needed(model, "init_logit_bias")?;
    needed(model, "embed_dim")?;
    let projection_dim = model.size("embed_dim", 0)?;
    needed(vision, "timm_pool")?;
    vision.only("timm_pool", &[json!("map")])?;
    needed(vision, "timm_proj")?;
    vision.only("timm_proj", &[json!("none")])?;
    let image_size = square(vision, "image_size", 224)?;
    if image_size != trunk.image_size {
        return Err(Error::bad_model(format!(
            "{}: image_size is {image_size}, {} takes {}",
            vision.path(),
            trunk.name,
            trunk.image_size
        )));
    }
    let text_tower = read_text(text)?;
    let config = SiglipConfig {
        projection_dim,
        text_projection: has_projection(text)?,
        vocabulary: text.size("vocab_size", 49408)?,
        context_length: text.size("context_length", 77)?,
        text: text_tower,
        image_size,
        patch_size: trunk.patch_size,
        channels: 3,
        vision: Tower {
            width: projection_dim,
            hidden: 0,
            layers: 0,
            heads: trunk.heads,
            activation: trunk.activation,
            epsilon: EPSILON,
        },
    };
    check_heads(vision, &config.vision)?;
    if !config.text_projection && config.text.width != projection_dim {
        return Err(Error::bad_model(format!(
            "{}: width is {} and embed_dim {projection_dim}, which must be equal where proj_type \
             is \"none\"",
            text.path(),
            config.text.width
        )));
    }
    text.finish(&[TEXT_HARMLESS])?;
    vision.finish(&[VISION_HARMLESS])?;
    model.finish(&[MODEL_HARMLESS])?;
    Ok(config)
}

fn read_text(section: &Section) -> Result<Tower> {
    refuse_if_set(section, "hf_model_name", "a text tower of transformers")?;
    refuse_if_set(section, "ls_init_value", "layers of another kind")?;
    for (key, value) in [
        ("no_causal_mask", json!(true)),
        ("pool_type", json!("last")),
        // Any other is read as another text than the tokenizer here makes of it.
        ("tokenizer_kwargs", json!({ "clean": "canonicalize" })),
    ] {
        if section.get(key).is_none() {
            return Err(Error::unsupported(format!(
                "{}: {key} is missing; supported beside an image tower of SigLIP: {value}",
                section.path()
            )));
        }
        section.only(key, &[value])?;
    }
    for key in ["embed_cls", "output_tokens", "final_ln_after_pool"] {
        section.only(key, &[json!(false)])?;
    }
    let epsilon = match section.section("norm_kwargs")? {
        None => super::open_clip::EPSILON,
        Some(keys) => {
            let epsilon = keys.number("eps", f64::from(super::open_clip::EPSILON))? as f32;
            keys.finish(&[])?;
            epsilon
        }
    };
    let activation = match section.section("act_kwargs")? {
        None => Gelu,
        Some(keys) => {
            keys.only("approximate", &[json!("tanh"), json!("none")])?;
            let is_tanh = keys.get("approximate").and_then(Value::as_str) == Some("tanh");
            keys.finish(&[])?;
            if is_tanh { GeluTanh } else { Gelu }
        }
    };
    text_tower(section, activation, epsilon)
}

/// Whether a linear layer follows the text tower.
fn has_projection(section: &Section) -> Result<bool> {
    section.only("proj_type", &[json!("linear"), json!("none")])?;
    if section.get("proj_type").is_some_and(|kind| kind == "none") {
        section.only("proj_bias", &[json!(true), json!(false)])?;
        return Ok(false);
    }
    if section.get("proj_bias") != Some(&json!(true)) {
        return Err(Error::unsupported(format!(
            "{}: proj_bias is not true; a text tower of SigLIP with a bias, or with the proj_type \
             \"none\", is supported",
            section.path()
        )));
    }
    Ok(true)
}

/// Takes the image tower's sizes from the weights, and gives every tensor the
/// name that it has in a `SiglipModel`.
pub(super) fn rename(config: &mut SiglipConfig, weights: &mut WeightIndex) -> Result<()> {
    let first = weights.get("visual.trunk.blocks.0.mlp.fc1.weight")?;
    config.vision.hidden = first.shape.first().map_or(0, |rows| *rows as usize);
    let has_layer =
        |layer: &usize| weights.contains(&format!("visual.trunk.blocks.{layer}.norm1.weight"));
    config.vision.layers = (0..).take_while(has_layer).count();

    rename_text(config, weights)?;
    let vision = "vision_model";
    let trunk = "visual.trunk";
    both(weights, &format!("{trunk}.patch_embed.proj"), "vision_model.embeddings.patch_embedding")?;
    weights.alias_only_entry(
        &format!("{trunk}.pos_embed"),
        "vision_model.embeddings.position_embedding.weight",
    )?;
    both(weights, &format!("{trunk}.norm"), "vision_model.post_layernorm")?;
    for layer in 0..config.vision.layers {
        let (stored, name) =
            (format!("{trunk}.blocks.{layer}"), format!("{vision}.encoder.layers.{layer}"));
        for (part, known) in [
            ("norm1", "layer_norm1"),
            ("attn.proj", "self_attn.out_proj"),
            ("norm2", "layer_norm2"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        ] {
            both(weights, &format!("{stored}.{part}"), &format!("{name}.{known}"))?;
        }
        for kind in ["weight", "bias"] {
            let thirds = ["q", "k", "v"].map(|one| format!("{name}.self_attn.{one}_proj.{kind}"));
            weights.split_rows(&format!("{stored}.attn.qkv.{kind}"), &thirds)?;
        }
    }
    let (stored, name) = (format!("{trunk}.attn_pool"), format!("{vision}.head"));
    weights.alias(&format!("{stored}.latent"), &format!("{name}.probe"))?;
    for (part, known) in [
        ("q", "attention.q_proj"),
        ("proj", "attention.out_proj"),
        ("norm", "layernorm"),
        ("mlp.fc1", "mlp.fc1"),
        ("mlp.fc2", "mlp.fc2"),
    ] {
        both(weights, &format!("{stored}.{part}"), &format!("{name}.{known}"))?;
    }
    for kind in ["weight", "bias"] {
        let halves = ["k", "v"].map(|one| format!("{name}.attention.{one}_proj.{kind}"));
        weights.split_rows(&format!("{stored}.kv.{kind}"), &halves)?;
    }
    Ok(())
}

fn rename_text(config: &SiglipConfig, weights: &mut WeightIndex) -> Result<()> {
    let embeddings = "text_model.embeddings";
    weights
        .alias("text.token_embedding.weight", &format!("{embeddings}.token_embedding.weight"))?;
    weights
        .alias("text.positional_embedding", &format!("{embeddings}.position_embedding.weight"))?;
    both(weights, "text.ln_final", "text_model.final_layer_norm")?;
    if config.text_projection {
        both(weights, "text.text_projection", "text_model.head")?;
    }
    super::open_clip::rename_layers(weights, config.text.layers, "text.transformer", "text_model")
}

#[cfg(test)]
mod tests {
    use super::*;
    use imprompt_error::Kind;

    /// timm/ViT-B-16-SigLIP with `value` at `key` of a section; null takes the key away.
    fn with(section: &str, key: &str, value: Value) -> Result<SiglipConfig> {
        let mut file = json!({
            "model": { "embed_dim": 768, "init_logit_bias": -10, "custom_text": true },
            "vision": { "image_size": 224, "timm_model_name": "vit_base_patch16_siglip_224",
                "timm_model_pretrained": false, "timm_pool": "map", "timm_proj": "none" },
            "text": { "context_length": 64, "vocab_size": 32000, "width": 768, "heads": 12,
                "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
                "tokenizer_kwargs": { "clean": "canonicalize" }, "no_causal_mask": true,
                "proj_bias": true, "pool_type": "last", "norm_kwargs": { "eps": 1e-6 } },
        });
        file[section][key] = value;
        let part = |name: &str| Section::new(name, file[name].as_object().unwrap().clone());
        let vision = part("vision");
        let trunk = named(&vision).unwrap();
        read_config(&part("model"), &vision, &part("text"), trunk)
    }

    #[test]
    fn what_is_said_is_honoured() {
        let config = with("text", "mlp_ratio", json!(3.7362)).unwrap();
        assert_eq!((config.patch_size, config.vision.heads), (16, 12));
        assert_eq!((config.text.hidden, config.text.epsilon), (2869, 1e-6));
        assert_eq!((config.text.activation, config.vision.activation), (Gelu, Gelu));
        let tanh = with("text", "act_kwargs", json!({ "approximate": "tanh" })).unwrap();
        assert_eq!((tanh.text.activation, tanh.vision.activation), (GeluTanh, Gelu));
        let other = with("text", "norm_kwargs", Value::Null).unwrap();
        assert_eq!((other.text.epsilon, other.vision.epsilon), (1e-5, 1e-6));
        let none = with("text", "proj_type", json!("none")).unwrap();
        assert!(config.text_projection && !none.text_projection);
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for (section, key, value) in [
            ("model", "quick_gelu", json!(true)),
            ("model", "multimodal_cfg", json!({})),
            ("model", "nonscalar_logit_scale", json!(true)),
            ("vision", "timm_pool", json!("avg")),
            ("vision", "timm_proj", json!("linear")),
            ("vision", "image_size", json!([224, 256])),
            ("vision", "width", json!(768)),
            ("text", "tokenizer_kwargs", Value::Null),
            ("text", "tokenizer_kwargs", json!({ "clean": "lower" })),
            ("text", "no_causal_mask", Value::Null),
            ("text", "pool_type", json!("argmax")),
            ("text", "proj_bias", json!(false)),
            ("text", "proj_type", json!("mlp")),
            ("text", "norm_kwargs", json!({ "bias": false })),
            ("text", "act_kwargs", json!({ "approximate": "erf" })),
            ("text", "hf_model_name", json!("roberta-base")),
            ("text", "ls_init_value", json!(0.1)),
            ("text", "embed_cls", json!(true)),
            ("text", "correct_cls_mask", json!(true)),
        ] {
            let error = with(section, key, value).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported, "{key}: {error}");
            let named = error.message().contains(key) || error.message().contains("norm_kwargs");
            assert!(named, "{key}: {error}");
        }
        for (section, key, value) in [
            ("model", "init_logit_bias", Value::Null),
            ("model", "embed_dim", Value::Null),
            ("model", "embed_dim", json!(770)),
            ("vision", "timm_pool", Value::Null),
            ("vision", "image_size", json!(256)),
            ("text", "heads", json!(7)),
        ] {
            let error = with(section, key, value).unwrap_err();
            assert_eq!(error.kind(), Kind::BadModel, "{key}: {error}");
        }
        let narrow = with("text", "width", json!(384)).unwrap();
        assert!(narrow.text_projection, "a matrix makes up for it");
        let towers = json!("vit_base_patch16_siglip_gap_224");
        let one = [("timm_model_name".to_owned(), towers)].into_iter().collect();
        assert!(named(&Section::new("vision_cfg", one)).is_none());
    }
}
