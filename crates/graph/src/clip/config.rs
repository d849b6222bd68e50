//! `config.json` of a `CLIPModel`.

use imprompt_error::{Error, Result};
use serde_json::json;

use super::EosRule;
use crate::builder::Activation;
use crate::config::{DESCRIPTIVE_KEYS, GENERATION_KEYS, Section, TRAINING_KEYS};

/// The sizes of one tower.
#[derive(Clone, Debug, PartialEq)]
pub struct Tower {
    /// Width of a token's state.
    pub width: usize,
    /// Width inside the feed-forward part.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Heads of a layer.
    pub heads: usize,
    /// The feed-forward part's activation.
    pub activation: Activation,
    /// What keeps a layer normalisation from dividing by zero.
    pub epsilon: f32,
}

impl Tower {
    /// Width of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.width / self.heads
    }

    pub(crate) fn read(section: &Section, defaults: &Tower) -> Result<Self> {
        let activation = match section.get("hidden_act") {
            None => defaults.activation,
            Some(_) => Activation::from_name(
                &format!("{}: hidden_act", section.path()),
                &section.text("hidden_act", "")?,
            )?,
        };
        let tower = Tower {
            width: section.size("hidden_size", defaults.width)?,
            hidden: section.size("intermediate_size", defaults.hidden)?,
            layers: section.size("num_hidden_layers", defaults.layers)?,
            heads: section.size("num_attention_heads", defaults.heads)?,
            activation,
            epsilon: section.number("layer_norm_eps", f64::from(defaults.epsilon))? as f32,
        };
        if !tower.width.is_multiple_of(tower.heads) {
            return Err(Error::bad_model(format!(
                "{}: hidden_size {} is not a multiple of num_attention_heads {}",
                section.path(),
                tower.width,
                tower.heads
            )));
        }
        section.only("pruned_heads", &[json!({})])?;
        Ok(tower)
    }
}

/// How a tower's last matrix lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projection {
    /// A linear layer, `NAME.weight` `[projection_dim, width]`.
    Linear,
    /// A matrix, `NAME` `[width, projection_dim]`.
    Matrix,
}

/// What of `config.json` makes a CLIP.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipConfig {
    /// How the towers' last matrices lie.
    pub projection: Projection,
    /// Width of the joint embedding space.
    pub projection_dim: usize,
    /// The text tower.
    pub text: Tower,
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Token slots of a text.
    pub context_length: usize,
    /// Where a text's embedding is read.
    pub eos: EosRule,
    /// The image tower.
    pub vision: Tower,
    /// Height and width of a picture.
    pub image_size: usize,
    /// Height and width of a patch.
    pub patch_size: usize,
    /// Planes of a picture.
    pub channels: usize,
}

impl ClipConfig {
    /// Reads it, with the defaults transformers 4.33.1 has for absent keys.
    ///
    /// # Errors
    /// `Unsupported` naming a key or architecture not done by this build,
    /// `BadModel` naming a key whose value is no such thing.
    pub fn read(config: &Section) -> Result<Self> {
        config.only("model_type", &[json!("clip")])?;
        config.only("architectures", &[json!(["CLIPModel"])])?;
        let projection_dim = config.size("projection_dim", 512)?;
        let mut this = ClipConfig {
            projection: Projection::Linear,
            projection_dim,
            text: Tower {
                width: 512,
                hidden: 2048,
                layers: 12,
                heads: 8,
                activation: Activation::QuickGelu,
                epsilon: 1e-5,
            },
            vocabulary: 49408,
            context_length: 77,
            eos: EosRule::FirstOf(49407),
            vision: Tower {
                width: 768,
                hidden: 3072,
                layers: 12,
                heads: 12,
                activation: Activation::QuickGelu,
                epsilon: 1e-5,
            },
            image_size: 224,
            patch_size: 32,
            channels: 3,
        };
        let defaults = this.clone();
        // Old configurations have a second copy of each section. Where it is,
        // the reference takes every value from it, its defaults included.
        for key in ["text_config", "text_config_dict"] {
            if let Some(section) = config.section(key)? {
                this.read_text(&section, &defaults)?;
            }
        }
        for key in ["vision_config", "vision_config_dict"] {
            if let Some(section) = config.section(key)? {
                this.read_vision(&section, &defaults)?;
            }
        }
        config.finish(&[DESCRIPTIVE_KEYS, GENERATION_KEYS, TOP_KEYS])?;
        Ok(this)
    }

    fn read_text(&mut self, section: &Section, defaults: &ClipConfig) -> Result<()> {
        section.only("model_type", &[json!("clip_text_model"), json!("clip")])?;
        self.text = Tower::read(section, &defaults.text)?;
        self.vocabulary = section.size("vocab_size", defaults.vocabulary)?;
        self.context_length = section.size("max_position_embeddings", defaults.context_length)?;
        self.eos = match section.index("eos_token_id", 49407)? {
            2 => EosRule::HighestId,
            id => EosRule::FirstOf(id),
        };
        section.finish(&[DESCRIPTIVE_KEYS, TRAINING_KEYS, GENERATION_KEYS, TOWER_KEYS])
    }

    fn read_vision(&mut self, section: &Section, defaults: &ClipConfig) -> Result<()> {
        section.only("model_type", &[json!("clip_vision_model"), json!("clip")])?;
        self.vision = Tower::read(section, &defaults.vision)?;
        self.image_size = section.size("image_size", defaults.image_size)?;
        self.patch_size = section.size("patch_size", defaults.patch_size)?;
        self.channels = section.size("num_channels", defaults.channels)?;
        section.check_patch(self.patch_size, self.image_size)?;
        section.finish(&[DESCRIPTIVE_KEYS, TRAINING_KEYS, GENERATION_KEYS, TOWER_KEYS])
    }
}

/// The value `logit_scale` starts training from.
pub(super) const TOP_KEYS: &[&str] = &["logit_scale_init_value"];

/// A section's `projection_dim` belongs to the towers used alone; here the one
/// at the top counts.
pub(super) const TOWER_KEYS: &[&str] = &["projection_dim"];
