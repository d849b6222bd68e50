//! The image encoder of GIT (`GitVisionModel`): CLIP's, all of whose patches are
//! read after the last norm.

use imprompt_error::Result;
use serde_json::json;

use crate::builder::{Activation, Dim, GraphBuilder, LinearWeights, Type, Value};
use crate::clip::{Layer, Rows, Tower};
use crate::config::{DESCRIPTIVE_KEYS, GENERATION_KEYS, Section, TRAINING_KEYS};
use crate::decoder::Heads;

/// The image encoder as `vision_config` describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct GitVision {
    /// Its layers.
    pub tower: Tower,
    /// Height and width of the picture.
    pub image_size: usize,
    /// Height and width of a patch.
    pub patch_size: usize,
}

impl GitVision {
    /// `vision_config`, with transformers 4.33's defaults.
    ///
    /// # Errors
    /// `Unsupported` naming a key that this build does not do, `BadModel` naming
    /// one that is malformed.
    pub fn from_config(config: &Section) -> Result<Self> {
        config.only("model_type", &[json!("git_vision_model")])?;
        config.only("num_channels", &[json!(3)])?;
        let defaults = Tower {
            width: 768,
            hidden: 3072,
            layers: 12,
            heads: 12,
            activation: Activation::QuickGelu,
            epsilon: 1e-5,
        };
        let vision = GitVision {
            tower: Tower::read(config, &defaults)?,
            image_size: config.size("image_size", 224)?,
            patch_size: config.size("patch_size", 16)?,
        };
        config.check_patch(vision.patch_size, vision.image_size)?;
        config.finish(&[DESCRIPTIVE_KEYS, TRAINING_KEYS, GENERATION_KEYS, &["projection_dim"]])?;
        Ok(vision)
    }

    /// Patches and the class token.
    #[must_use]
    pub fn positions(&self) -> usize {
        (self.image_size / self.patch_size).pow(2) + 1
    }

    /// The input `pixel_values` f32 `[batch, 3, size, size]`, and from it rows
    /// `[batch * positions, width]` after `post_layernorm`.
    ///
    /// # Errors
    /// As [`GraphBuilder::weight`].
    pub(crate) fn write(&self, g: &mut GraphBuilder<'_>, prefix: &str) -> Result<Value> {
        let (tower, size) = (&self.tower, Dim::Fixed(self.image_size));
        let pixels =
            g.input("pixel_values", Type::F32, &["batch".into(), Dim::Fixed(3), size, size]);
        g.set_scope("embeddings");
        let mut rows = self.embed(g, prefix, &pixels)?;
        let heads = Heads::scaled(tower.heads, tower.head_dim());
        let (batch, count) = (g.dim(&pixels, 0), g.ints(&[self.positions() as i64]));
        for index in 0..tower.layers {
            g.set_scope(&format!("layers.{index}"));
            let layer = Layer { tower, name: format!("{prefix}.encoder.layers.{index}") };
            let all = Rows { all: &rows, kept: None };
            let sides = layer.projections(g, &all)?;
            let attended =
                heads.attend_rows(g, sides.each_ref().map(|side| (side, [&batch, &count])), None);
            rows = layer.finish(g, &all, &attended)?;
        }
        g.set_scope("post_layernorm");
        g.layer_norm(&rows, &format!("{prefix}.post_layernorm"), tower.width, tower.epsilon)
    }

    /// The class token and the patches, with their positions, normalised.
    fn embed(&self, g: &mut GraphBuilder<'_>, prefix: &str, pixels: &Value) -> Result<Value> {
        let width = self.tower.width;
        let name = format!("{prefix}.embeddings.patch_embedding");
        let convolution = LinearWeights { name: &name, input: 3, output: width, bias: false };
        let patches = g.patch_convolution(pixels, convolution, self.patch_size)?;
        let patches = g.reshape(&patches, &[0, width as i64, -1]);
        let patches = g.transpose(&patches, &[0, 2, 1]);
        let class = g.weight(&format!("{prefix}.embeddings.class_embedding"), &[width])?;
        let batch = g.dim(pixels, 0);
        let rest = g.ints(&[1, width as i64]);
        let shape = g.concat(&[&batch, &rest], 0);
        let class = g.expand(&class, &shape);
        let states = g.concat(&[&class, &patches], 1);
        let name = format!("{prefix}.embeddings.position_embedding.weight");
        let positions = g.weight(&name, &[self.positions(), width])?;
        let states = g.add(&states, &positions);
        let states = g.reshape(&states, &[-1, width as i64]);
        g.layer_norm(&states, &format!("{prefix}.pre_layrnorm"), width, self.tower.epsilon)
    }
}
