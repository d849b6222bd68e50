//! SigLIP and SigLIP 2 of one resolution: `SiglipModel` of transformers.
//!
//! Image tower:
//!
//! | tensor | type | shape |
//! |---|---|---|
//! | in `pixel_values` | f32 | `[batch, channels, size, size]` |
//! | out `image_embeds` | f32 | `[batch, projection_dim]`, L2-normalised |
//!
//! There is no class token: after all layers a learned probe attends to every
//! patch. Text tower:
//!
//! | tensor | type | shape |
//! |---|---|---|
//! | in `input_ids` | i64 | `[batch, context_length]`: all slots, padding included |
//! | out `text_embeds` | f32 | `[batch, projection_dim]`, L2-normalised |
//!
//! Every token sees every other, padding too, and the last slot is read; its
//! row alone is computed in the last layer. Reference:
//! `transformers/models/siglip/modeling_siglip.py`, 4.57.6.

use std::path::Path;

use imprompt_error::{Error, Result};
use serde_json::json;

use super::config::{TOP_KEYS, TOWER_KEYS, Tower};
use super::layers::{Encoder, attend, feed_forward, linear};
use super::{ClipFacts, ClipFamily, ClipGraphs, EosRule, Probability, logit_scale, scalar};
use crate::builder::{Activation, Graph, GraphBuilder, LinearWeights, Type, Value};
use crate::config::{DESCRIPTIVE_KEYS, GENERATION_KEYS, Section, TRAINING_KEYS};
use crate::weights::WeightIndex;

/// What `model_type` says of this family. The second is refused with its reason.
pub(super) const MODEL_TYPES: [&str; 2] = ["siglip", NAFLEX];

/// SigLIP 2 for pictures of any size. (Those of one size call themselves `siglip`.)
const NAFLEX: &str = "siglip2";

/// What of `config.json` makes a SigLIP.
#[derive(Clone, Debug, PartialEq)]
pub struct SiglipConfig {
    /// Width of the joint embedding space: that of the image tower.
    pub projection_dim: usize,
    /// Whether a last linear layer follows the text tower.
    pub text_projection: bool,
    /// The text tower.
    pub text: Tower,
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Token slots of a text.
    pub context_length: usize,
    /// The image tower.
    pub vision: Tower,
    /// Height and width of a picture.
    pub image_size: usize,
    /// Height and width of a patch.
    pub patch_size: usize,
    /// Planes of a picture.
    pub channels: usize,
}

impl SiglipConfig {
    /// Reads it, with the defaults transformers 4.57.6 has for absent keys.
    ///
    /// # Errors
    /// `Unsupported` naming a key or architecture not done by this build,
    /// `BadModel` naming a key whose value is no such thing.
    pub fn read(config: &Section) -> Result<Self> {
        if config.get("model_type").is_some_and(|kind| kind == NAFLEX) {
            return Err(Error::unsupported(format!(
                "{}: model_type is {NAFLEX:?}, a NaFlex model for pictures of any size; the SigLIP 2 \
                 models of one size, whose model_type is \"siglip\", are supported",
                config.path()
            )));
        }
        config.only("model_type", &[json!("siglip")])?;
        config.only("architectures", &[json!(["SiglipModel"])])?;
        let defaults = Tower {
            width: 768,
            hidden: 3072,
            layers: 12,
            heads: 12,
            activation: Activation::GeluTanh,
            epsilon: 1e-6,
        };
        let empty = |name: &str| Section::new(name, serde_json::Map::new());
        let text = config.section("text_config")?.unwrap_or_else(|| empty("text_config"));
        let vision = config.section("vision_config")?.unwrap_or_else(|| empty("vision_config"));
        text.only("model_type", &[json!("siglip_text_model")])?;
        vision.only("model_type", &[json!("siglip_vision_model")])?;
        vision.only("vision_use_head", &[json!(true)])?;
        let text_tower = Tower::read(&text, &defaults)?;
        let vision_tower = Tower::read(&vision, &defaults)?;
        let this = SiglipConfig {
            projection_dim: text.size("projection_size", text_tower.width)?,
            text_projection: true,
            vocabulary: text.size("vocab_size", 32000)?,
            context_length: text.size("max_position_embeddings", 64)?,
            text: text_tower,
            image_size: vision.size("image_size", 224)?,
            patch_size: vision.size("patch_size", 16)?,
            channels: vision.size("num_channels", 3)?,
            vision: vision_tower,
        };
        if this.projection_dim != this.vision.width {
            return Err(Error::bad_model(format!(
                "{}: texts have {} values, pictures {} (projection_size, hidden_size)",
                config.path(),
                this.projection_dim,
                this.vision.width
            )));
        }
        vision.check_patch(this.patch_size, this.image_size)?;
        let harmless = &[DESCRIPTIVE_KEYS, TRAINING_KEYS, GENERATION_KEYS, TOWER_KEYS];
        text.finish(harmless)?;
        vision.finish(harmless)?;
        config.finish(&[DESCRIPTIVE_KEYS, GENERATION_KEYS, TOP_KEYS])?;
        Ok(this)
    }

    fn patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }
}

/// The graphs of the SigLIP in `folder`, whose configuration is `section`.
pub(super) fn graphs(section: &Section, folder: &Path) -> Result<ClipGraphs> {
    let config = SiglipConfig::read(section)?;
    let mut weights = WeightIndex::open(folder)?;
    for kind in ["weight", "bias"] {
        let thirds = ["q", "k", "v"].map(|one| format!("{POOLING}.{one}_proj.{kind}"));
        weights.split_rows(&format!("{POOLING}.in_proj_{kind}"), &thirds)?;
    }
    towers(&config, &weights)
}

/// The graphs over `weights`, by the names of a `SiglipModel`, where queries,
/// keys and values are tensors of their own.
pub(super) fn towers(config: &SiglipConfig, weights: &WeightIndex) -> Result<ClipGraphs> {
    let facts = ClipFacts {
        family: ClipFamily::Siglip,
        projection_dim: config.projection_dim,
        image_size: config.image_size,
        channels: config.channels,
        vocabulary: config.vocabulary,
        context_length: config.context_length,
        text_layers: config.text.layers,
        text_heads: config.text.heads,
        text_head_dim: config.text.head_dim(),
        eos: EosRule::LastSlot,
        logit_scale: logit_scale(weights)?,
        probability: Probability::Sigmoid { bias: scalar(weights, "logit_bias")? },
    };
    let (image, text) = (image_graph(config, weights)?, text_graph(config, weights)?);
    Ok(ClipGraphs { facts, image, text })
}

/// The attention of the pooling head.
const POOLING: &str = "vision_model.head.attention";

fn image_graph(config: &SiglipConfig, weights: &WeightIndex) -> Result<Graph> {
    let mut graph = GraphBuilder::new("clip_image", weights);
    let (tower, size, patches) = (&config.vision, config.image_size, config.patches());
    let width = tower.width;
    let shape = ["batch".into(), config.channels.into(), size.into(), size.into()];
    let pixel_values = graph.input("pixel_values", Type::F32, &shape);

    graph.set_scope("vision_model.embeddings");
    let convolution = LinearWeights {
        name: "vision_model.embeddings.patch_embedding",
        input: config.channels,
        output: width,
        bias: true,
    };
    let states = graph.patch_convolution(&pixel_values, convolution, config.patch_size)?;
    let states = graph.reshape(&states, &[0, width as i64, -1]);
    let states = graph.transpose(&states, &[0, 2, 1]);
    let name = "vision_model.embeddings.position_embedding.weight";
    let positions = graph.weight(name, &[patches, width])?;
    let states = graph.add(&states, &positions);
    let states = graph.reshape(&states, &[-1, width as i64]);
    let encoder = Encoder { tower, prefix: "vision_model", length: patches };
    let states = encoder.write(&mut graph, states, None)?;
    let name = "vision_model.post_layernorm";
    let states = graph.layer_norm(&states, name, width, tower.epsilon)?;

    graph.set_scope("vision_model.head");
    let pooled = pooling_head(&mut graph, tower, &states, patches)?;
    embeds(&mut graph, &pooled, "image_embeds", config.projection_dim);
    Ok(graph.finish())
}

/// `[batch, width]` of patches `[batch * patches, width]`: what a learned probe
/// sees of them, and a feed-forward part.
fn pooling_head(
    graph: &mut GraphBuilder<'_>,
    tower: &Tower,
    states: &Value,
    patches: usize,
) -> Result<Value> {
    let width = tower.width;
    let probe = graph.weight("vision_model.head.probe", &[1, 1, width])?;
    let probe = graph.reshape(&probe, &[1, width as i64]);
    let project = |graph: &mut GraphBuilder<'_>, rows: &Value, part: &str| {
        graph.linear(rows, linear(&format!("{POOLING}.{part}"), width, width))
    };
    let query = project(graph, &probe, "q_proj")?;
    let key = project(graph, states, "k_proj")?;
    let value = project(graph, states, "v_proj")?;
    let seen = attend(graph, tower, &[query, key, value], [1, patches]);
    let states = project(graph, &seen, "out_proj")?;
    let name = "vision_model.head.layernorm";
    let normal = graph.layer_norm(&states, name, width, tower.epsilon)?;
    let inner = feed_forward(graph, tower, "vision_model.head.mlp", &normal)?;
    Ok(graph.add(&states, &inner))
}

fn text_graph(config: &SiglipConfig, weights: &WeightIndex) -> Result<Graph> {
    let mut graph = GraphBuilder::new("clip_text", weights);
    let (tower, length) = (&config.text, config.context_length);
    let width = tower.width;
    let input_ids = graph.input("input_ids", Type::I64, &["batch".into(), length.into()]);

    graph.set_scope("text_model.embeddings");
    let name = "text_model.embeddings.token_embedding.weight";
    let table = graph.stored_weight(name, &[config.vocabulary, width])?;
    let states = graph.gather(&table, &input_ids, 0);
    let states = graph.cast(&states, Type::F32);
    let name = "text_model.embeddings.position_embedding.weight";
    let positions = graph.weight(name, &[length, width])?;
    let states = graph.add(&states, &positions);
    let states = graph.reshape(&states, &[-1, width as i64]);
    let encoder = Encoder { tower, prefix: "text_model", length };
    let last = graph.int(length as i64 - 1);
    let first_rows = encoder.first_rows(&mut graph, &input_ids);
    let last_rows = graph.add(&first_rows, &last);
    let states = encoder.write(&mut graph, states, Some(&last_rows))?;

    graph.set_scope("text_model.head");
    let name = "text_model.final_layer_norm";
    let mut pooled = graph.layer_norm(&states, name, width, tower.epsilon)?;
    if config.text_projection {
        let head = linear("text_model.head", width, config.projection_dim);
        pooled = graph.linear(&pooled, head)?;
    }
    embeds(&mut graph, &pooled, "text_embeds", config.projection_dim);
    Ok(graph.finish())
}

fn embeds(graph: &mut GraphBuilder<'_>, pooled: &Value, name: &str, width: usize) {
    let embeds = graph.l2_normalize(pooled);
    graph.output(&embeds, name, Type::F32, &["batch".into(), width.into()]);
}

#[cfg(test)]
mod tests {
    use imprompt_error::Kind;
    use serde_json::Value;

    use super::*;

    fn read(config: &Value) -> Result<SiglipConfig> {
        let Value::Object(values) = config else { panic!("not an object") };
        SiglipConfig::read(&Section::new("config.json", values.clone()))
    }

    #[test]
    fn absent_keys_have_the_defaults_of_transformers() {
        let config = read(&json!({"model_type": "siglip"})).unwrap();
        assert_eq!(
            (config.projection_dim, config.vocabulary, config.context_length),
            (768, 32000, 64)
        );
        assert_eq!((config.image_size, config.patch_size, config.channels), (224, 16, 3));
        let Tower { width, hidden, layers, heads, activation, epsilon } = config.text;
        assert_eq!((width, hidden, layers, heads), (768, 3072, 12, 12));
        assert_eq!((activation, epsilon), (Activation::GeluTanh, 1e-6));
        assert_eq!(config.vision, config.text);
    }

    #[test]
    fn the_giant_model_projects_its_texts() {
        // siglip2-giant-opt: the text tower is narrower than the image tower.
        let config = read(&json!({"model_type": "siglip",
            "text_config": {"hidden_size": 1152, "num_attention_heads": 16, "projection_size": 1536},
            "vision_config": {"hidden_size": 1536, "num_attention_heads": 16}}))
        .unwrap();
        assert_eq!((config.projection_dim, config.text.width), (1536, 1152));
    }

    #[test]
    fn what_would_change_the_result_is_refused_by_name() {
        let refused = |config: Value, key: &str, kind: Kind| {
            let error = read(&config).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.message().contains(key), "{error}");
        };
        refused(json!({"model_type": "siglip2"}), "NaFlex", Kind::Unsupported);
        let classes = json!({"architectures": ["SiglipForImageClassification"]});
        refused(classes, "architectures", Kind::Unsupported);
        let no_head = json!({"vision_config": {"vision_use_head": false}});
        refused(no_head, "vision_use_head", Kind::Unsupported);
        refused(json!({"vision_config": {"rope": 1}}), "rope", Kind::Unsupported);
        refused(json!({"text_config": {"projection_size": 40}}), "40 values", Kind::BadModel);
        refused(json!({"vision_config": {"patch_size": 300}}), "patch_size", Kind::BadModel);
    }
}
