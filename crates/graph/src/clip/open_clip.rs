//! A CLIP as open_clip keeps it on the hub: `open_clip_config.json` and
//! `open_clip_model.safetensors`.
//!
//! The towers are those of [`super::vision`] and [`super::text`], with other
//! names, queries, keys and values in one matrix (`in_proj_weight`, of which
//! each third is a place in the file like any other), and the last matrices
//! stored as `[width, embed_dim]`. Reference: `open_clip/model.py` (`CLIP`,
//! `CustomTextCLIP`) and `transformer.py`, 2.20.0; keys that came later are
//! refused unless they have their defaults. SigLIP, whose image tower is
//! timm's, is read by `open_clip_siglip`.

use std::path::Path;

use imprompt_error::{Error, Kind, Result};
use serde_json::{Value, json};

use super::EosRule;
use super::config::{ClipConfig, Projection, Tower};
use super::open_clip_siglip;
use super::siglip::SiglipConfig;
use crate::builder::Activation;
use crate::config::Section;
use crate::weights::WeightIndex;

/// The configuration's file.
pub const CONFIG: &str = "open_clip_config.json";

/// The weights' file.
pub const WEIGHTS: &str = "open_clip_model.safetensors";

/// The same weights in a format that is not read.
const PICKLED: &str = "open_clip_pytorch_model.bin";

/// `epsilon` of `torch.nn.LayerNorm`.
pub(super) const EPSILON: f32 = 1e-5;

/// True for a folder whose CLIP is open_clip's: it has open_clip's
/// configuration, and no model of transformers besides.
#[must_use]
pub fn is_folder(folder: &Path) -> bool {
    if !folder.join(CONFIG).is_file() {
        return false;
    }
    // A timm image tower may lie there too, whose config.json has no model_type.
    let has_type = Section::open(folder).is_ok_and(|config| config.get("model_type").is_some());
    let has_weights = ["model.safetensors", "model.safetensors.index.json"]
        .iter()
        .any(|name| folder.join(name).is_file());
    !(has_type && has_weights)
}

/// What a folder's configuration says.
#[derive(Clone, Debug, PartialEq)]
pub enum Config {
    /// Two towers of open_clip.
    Clip(ClipConfig),
    /// SigLIP, whose image tower is timm's.
    Siglip(SiglipConfig),
}

/// The configuration, and the weights under the names that the graphs use.
///
/// # Errors
/// Those of [`super::clip_graphs`].
pub fn read(folder: &Path) -> Result<(Config, WeightIndex)> {
    let mut config = read_config(&Section::open_file(&folder.join(CONFIG))?)?;
    if !folder.join(WEIGHTS).is_file() {
        let pickled = match folder.join(PICKLED).is_file() {
            true => format!(" ({PICKLED} is not read: save the model as safetensors)"),
            false => String::new(),
        };
        let what = format!("{} has no {WEIGHTS}{pickled}", folder.display());
        return Err(Error::new(Kind::NotFound, what));
    }
    let mut weights = WeightIndex::open_files(folder, &[WEIGHTS.to_owned()])?;
    match &mut config {
        Config::Clip(config) => rename(config, &mut weights)?,
        Config::Siglip(config) => open_clip_siglip::rename(config, &mut weights)?,
    }
    Ok((config, weights))
}

/// `model_cfg`, with the defaults of open_clip for absent keys.
fn read_config(file: &Section) -> Result<Config> {
    let needed = |section: &Section, key: &str| {
        section
            .section(key)?
            .ok_or_else(|| Error::bad_model(format!("{}: {key} is missing", section.path())))
    };
    let model = needed(file, "model_cfg")?;
    let (vision, text) = (needed(&model, "vision_cfg")?, needed(&model, "text_cfg")?);
    if let Some(trunk) = open_clip_siglip::named(&vision) {
        let config = open_clip_siglip::read_config(&model, &vision, &text, trunk)?;
        return Ok(Config::Siglip(config));
    }
    let activation = match model.flag("quick_gelu", false)? {
        true => Activation::QuickGelu,
        false => Activation::Gelu,
    };
    let (image_tower, image_size, patch_size) = read_vision(&vision, activation)?;
    let config = ClipConfig {
        projection: Projection::Matrix,
        projection_dim: model.size("embed_dim", 512)?,
        text: read_text(&text, activation)?,
        vocabulary: text.size("vocab_size", 49408)?,
        context_length: text.size("context_length", 77)?,
        eos: EosRule::HighestId,
        vision: image_tower,
        image_size,
        patch_size,
        channels: 3,
    };
    if model.get("embed_dim").is_none() {
        return Err(Error::bad_model(format!("{}: embed_dim is missing", model.path())));
    }
    text.finish(&[TEXT_HARMLESS])?;
    vision.finish(&[VISION_HARMLESS])?;
    model.finish(&[MODEL_HARMLESS])?;
    Ok(Config::Clip(config))
}

fn read_vision(section: &Section, activation: Activation) -> Result<(Tower, usize, usize)> {
    refuse_if_set(section, "timm_model_name", "an image tower of timm other than SigLIP's")?;
    if section.get("layers").is_some_and(Value::is_array) {
        return Err(Error::unsupported(format!(
            "{}: layers is a list, that of a ResNet; a vision transformer is supported",
            section.path()
        )));
    }
    for key in ["input_patchnorm", "global_average_pool", "attentional_pool", "no_ln_pre"] {
        section.only(key, &[json!(false)])?;
    }
    section.only("pool_type", &[json!("tok")])?;
    section.only("pos_embed_type", &[json!("learnable")])?;
    refuse_variants(section)?;
    let width = section.size("width", 768)?;
    let head_width = section.size("head_width", 64)?;
    if head_width > width {
        return Err(Error::bad_model(format!(
            "{}: head_width {head_width} is larger than width {width}",
            section.path()
        )));
    }
    let tower = Tower {
        width,
        hidden: hidden(section, width)?,
        layers: section.size("layers", 12)?,
        heads: width / head_width,
        activation,
        epsilon: EPSILON,
    };
    check_heads(section, &tower)?;
    let (image_size, patch_size) =
        (square(section, "image_size", 224)?, square(section, "patch_size", 16)?);
    section.check_patch(patch_size, image_size)?;
    Ok((tower, image_size, patch_size))
}

fn read_text(section: &Section, activation: Activation) -> Result<Tower> {
    refuse_if_set(section, "hf_model_name", "a text tower of transformers")?;
    refuse_if_set(section, "tokenizer_kwargs", "another tokenizer than CLIP's")?;
    section.only("text_arch", &[json!("clip")])?;
    section.only("pool_type", &[json!("argmax")])?;
    section.only("proj_type", &[json!("linear")])?;
    section.only("tokenizer_type", &[json!("")])?;
    for key in ["embed_cls", "no_causal_mask", "proj_bias", "variable_text"] {
        section.only(key, &[json!(false)])?;
    }
    refuse_variants(section)?;
    text_tower(section, activation, EPSILON)
}

/// The sizes of a text tower, with open_clip's defaults.
pub(super) fn text_tower(section: &Section, activation: Activation, epsilon: f32) -> Result<Tower> {
    let width = section.size("width", 512)?;
    let tower = Tower {
        width,
        hidden: hidden(section, width)?,
        layers: section.size("layers", 12)?,
        heads: section.size("heads", 8)?,
        activation,
        epsilon,
    };
    check_heads(section, &tower)?;
    Ok(tower)
}

/// Refuses what both towers of later versions can have besides.
fn refuse_variants(section: &Section) -> Result<()> {
    for key in ["ls_init_value", "act_kwargs", "norm_kwargs"] {
        refuse_if_set(section, key, "layers of another kind")?;
    }
    section.only("block_type", &[json!("default")])?;
    for key in [
        "output_tokens",
        "final_ln_after_pool",
        "qk_norm",
        "scaled_cosine_attn",
        "scale_heads",
        "scale_attn_inner",
        "scale_attn",
        "scale_fc",
    ] {
        section.only(key, &[json!(false)])?;
    }
    Ok(())
}

/// Refuses a `key` that is there: it means `what`.
pub(super) fn refuse_if_set(section: &Section, key: &str, what: &str) -> Result<()> {
    match section.get(key) {
        None => Ok(()),
        Some(value) => Err(Error::unsupported(format!(
            "{}: {key} is {value}: {what} is not supported",
            section.path()
        ))),
    }
}

/// `int(width * mlp_ratio)`.
fn hidden(section: &Section, width: usize) -> Result<usize> {
    let ratio = section.number("mlp_ratio", 4.0)?;
    let hidden = width as f64 * ratio;
    if (1.0..=f64::from(1 << 30)).contains(&hidden) {
        return Ok(hidden as usize);
    }
    Err(Error::bad_model(format!("{}: mlp_ratio is {ratio}", section.path())))
}

pub(super) fn check_heads(section: &Section, tower: &Tower) -> Result<()> {
    if tower.width.is_multiple_of(tower.heads) {
        return Ok(());
    }
    Err(Error::bad_model(format!(
        "{}: width {} cannot be parted into {} heads",
        section.path(),
        tower.width,
        tower.heads
    )))
}

/// A side of a square, given as one number or as two that are equal.
pub(super) fn square(section: &Section, key: &str, default: usize) -> Result<usize> {
    match section.get(key) {
        Some(Value::Array(sides)) => match sides.as_slice() {
            [height, width] if height == width => {
                let mut one = serde_json::Map::new();
                one.insert(key.to_owned(), height.clone());
                Section::new(section.path(), one).size(key, default)
            }
            _ => Err(Error::unsupported(format!(
                "{}: {key} is no square; squares are supported",
                section.path()
            ))),
        },
        _ => section.size(key, default),
    }
}

/// Keys of `model_cfg` that choose outputs, or how training starts.
pub(super) const MODEL_HARMLESS: &[&str] = &["custom_text", "init_logit_scale", "output_dict"];

/// Keys that act in training, or for towers that [`read_vision`] refuses.
pub(super) const VISION_HARMLESS: &[&str] = &[
    "attn_pooler_heads",
    "attn_pooler_queries",
    "n_queries",
    "patch_dropout",
    "timm_drop",
    "timm_drop_path",
    "timm_model_pretrained",
    "timm_pool",
    "timm_proj",
    "timm_proj_bias",
];

/// Keys for towers that [`read_text`] refuses, and the name of the tokenizer:
/// the folder's is used.
pub(super) const TEXT_HARMLESS: &[&str] = &[
    "hf_model_pretrained",
    "hf_pooler_type",
    "hf_proj_type",
    "hf_tokenizer_name",
    "pad_id",
    "pooler_type",
    "proj",
];

/// Gives every tensor the name that it has in a `CLIPModel`.
fn rename(config: &ClipConfig, weights: &mut WeightIndex) -> Result<()> {
    // A `CustomTextCLIP` has its text tower apart.
    let text = match weights.contains("text.token_embedding.weight") {
        true => "text.",
        false => "",
    };
    let alias = |weights: &mut WeightIndex, stored: &str, name: &str| {
        weights.alias(&format!("{text}{stored}"), &format!("text_model.{name}"))
    };
    alias(weights, "token_embedding.weight", "embeddings.token_embedding.weight")?;
    alias(weights, "positional_embedding", "embeddings.position_embedding.weight")?;
    weights.alias(&format!("{text}text_projection"), "text_projection")?;
    let alias = |weights: &mut WeightIndex, stored: &str, name: &str| {
        weights.alias(&format!("visual.{stored}"), &format!("vision_model.{name}"))
    };
    alias(weights, "class_embedding", "embeddings.class_embedding")?;
    alias(weights, "positional_embedding", "embeddings.position_embedding.weight")?;
    alias(weights, "conv1.weight", "embeddings.patch_embedding.weight")?;
    weights.alias("visual.proj", "visual_projection")?;
    let norms = [
        (format!("{text}ln_final"), "text_model.final_layer_norm"),
        ("visual.ln_pre".to_owned(), "vision_model.pre_layrnorm"),
        ("visual.ln_post".to_owned(), "vision_model.post_layernorm"),
    ];
    for (stored, name) in norms {
        both(weights, &stored, name)?;
    }
    for (tower, stored, name) in [
        (&config.text, format!("{text}transformer"), "text_model"),
        (&config.vision, "visual.transformer".to_owned(), "vision_model"),
    ] {
        rename_layers(weights, tower.layers, &stored, name)?;
    }
    Ok(())
}

/// The layers of a `Transformer` that the file calls `stored`.
pub(super) fn rename_layers(
    weights: &mut WeightIndex,
    layers: usize,
    stored: &str,
    name: &str,
) -> Result<()> {
    for layer in 0..layers {
        let stored = format!("{stored}.resblocks.{layer}");
        let name = format!("{name}.encoder.layers.{layer}");
        for (part, known) in LAYER {
            both(weights, &format!("{stored}.{part}"), &format!("{name}.{known}"))?;
        }
        for kind in ["weight", "bias"] {
            let thirds = ["q", "k", "v"].map(|one| format!("{name}.self_attn.{one}_proj.{kind}"));
            weights.split_rows(&format!("{stored}.attn.in_proj_{kind}"), &thirds)?;
        }
    }
    Ok(())
}

/// The parts of a layer, by both names.
const LAYER: [(&str, &str); 5] = [
    ("ln_1", "layer_norm1"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
];

/// Weight and bias.
pub(super) fn both(weights: &mut WeightIndex, stored: &str, name: &str) -> Result<()> {
    for kind in ["weight", "bias"] {
        weights.alias(&format!("{stored}.{kind}"), &format!("{name}.{kind}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ClipConfig> {
        let Value::Object(values) = serde_json::from_str(text).unwrap() else { panic!() };
        match read_config(&Section::new(CONFIG, values))? {
            Config::Clip(config) => Ok(config),
            Config::Siglip(_) => panic!("a SigLIP"),
        }
    }

    /// `model_cfg` with these keys in its sections.
    fn with(model: &str, vision: &str, text: &str) -> Result<ClipConfig> {
        read(&format!(
            r#"{{"model_cfg": {{"embed_dim": 640 {model}, "vision_cfg": {{"patch_size": 32 {vision}}},
                "text_cfg": {{"width": 640 {text}}}}}, "preprocess_cfg": {{}}}}"#
        ))
    }

    #[test]
    fn absent_keys_have_the_defaults_of_open_clip() {
        let config = with("", "", "").unwrap();
        assert_eq!((config.projection_dim, config.projection), (640, Projection::Matrix));
        assert_eq!((config.vocabulary, config.context_length), (49408, 77));
        assert_eq!((config.image_size, config.patch_size, config.channels), (224, 32, 3));
        assert_eq!(config.eos, EosRule::HighestId);
        let Tower { width, hidden, layers, heads, activation, epsilon } = config.text;
        assert_eq!((width, hidden, layers, heads), (640, 2560, 12, 8));
        assert_eq!((activation, epsilon), (Activation::Gelu, 1e-5));
        let Tower { width, hidden, layers, heads, activation, .. } = config.vision;
        assert_eq!((width, hidden, layers, heads), (768, 3072, 12, 12));
        assert_eq!(activation, Activation::Gelu);
    }

    #[test]
    fn values_are_honoured() {
        // ViT-bigG-14, whose ratio is no whole number of columns.
        let vision = r#", "layers": 48, "width": 1664, "head_width": 104, "mlp_ratio": 4.9231,
            "image_size": [336, 336], "ls_init_value": null, "timm_model_name": null"#;
        let config =
            with(r#", "quick_gelu": true"#, vision, r#", "heads": 10, "layers": 3"#).unwrap();
        let Tower { width, hidden, layers, heads, activation, .. } = config.vision;
        assert_eq!((width, hidden, layers, heads), (1664, 8192, 48, 16));
        assert_eq!((activation, config.text.activation), (Activation::QuickGelu, activation));
        assert_eq!((config.image_size, config.text.heads, config.text.layers), (336, 10, 3));
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let refused = |result: Result<ClipConfig>, key: &str| {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported, "{error}");
            assert!(error.message().contains(key), "{error}");
        };
        for key in ["multimodal_cfg", "init_logit_bias", "nonscalar_logit_scale"] {
            refused(with(&format!(r#", "{key}": 1"#), "", ""), key);
        }
        for (key, value) in [
            ("timm_model_name", r#""vit_base_patch16_siglip_gap_224""#),
            ("layers", "[3, 4, 6, 3]"),
            ("attentional_pool", "true"),
            ("global_average_pool", "true"),
            ("pool_type", r#""avg""#),
            ("no_ln_pre", "true"),
            ("ls_init_value", "0.1"),
            ("image_size", "[224, 336]"),
            ("qk_norm", "true"),
            ("something_new", "1"),
        ] {
            refused(with("", &format!(r#", "{key}": {value}"#), ""), key);
        }
        for (key, value) in [
            ("hf_model_name", r#""xlm-roberta-base""#),
            ("tokenizer_kwargs", r#"{"clean": "canonicalize"}"#),
            ("embed_cls", "true"),
            ("no_causal_mask", "true"),
            ("proj_bias", "true"),
            ("pool_type", r#""last""#),
            ("act_kwargs", r#"{"approximate": "tanh"}"#),
        ] {
            refused(with("", "", &format!(r#", "{key}": {value}"#)), key);
        }
        let bad = |result: Result<ClipConfig>| {
            assert_eq!(result.unwrap_err().kind(), Kind::BadModel);
        };
        bad(with("", r#", "head_width": 1000"#, ""));
        bad(with("", r#", "mlp_ratio": -1"#, ""));
        bad(with("", r#", "width": 100, "head_width": 30"#, ""));
        bad(with("", "", r#", "heads": 7"#));
        bad(read(r#"{"model_cfg": {"embed_dim": 3}}"#));
        bad(read("{}"));
    }
}
