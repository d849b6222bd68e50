//! The image encoder of BLIP, BLIP-2 and InstructBLIP (`BlipVisionModel`,
//! `Blip2VisionModel`, `InstructBlipVisionModel`):
//! a pre-norm ViT whose queries, keys and values come from one matrix.

use imprompt_error::Result;
use serde_json::json;

use crate::builder::{Activation, AttentionHeads, Dim, GraphBuilder, LinearWeights, Type, Value};
use crate::config::{DESCRIPTIVE_KEYS, GENERATION_KEYS, Section, TRAINING_KEYS};

/// The image encoder as `vision_config` describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct BlipVision {
    /// Width of a patch's embedding.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Height and width of the picture.
    pub image_size: usize,
    /// Height and width of a patch.
    pub patch_size: usize,
    /// The MLP's activation.
    pub activation: Activation,
    /// What the variance of every layer norm is raised by.
    pub epsilon: f32,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
}

impl BlipVision {
    /// BLIP's `vision_config`, with transformers 4.33's defaults.
    ///
    /// # Errors
    /// `Unsupported` naming a key that this build does not do, `BadModel` naming
    /// one that is malformed.
    pub fn of_blip(config: &Section) -> Result<Self> {
        config.only("model_type", &[json!("blip_vision_model")])?;
        Self::from_config(
            config,
            BlipVision {
                hidden_size: 768,
                intermediate_size: 3072,
                layers: 12,
                heads: 12,
                image_size: 384,
                patch_size: 16,
                activation: Activation::Gelu,
                epsilon: 1e-5,
                qkv_bias: true,
            },
        )
    }

    /// BLIP-2's `vision_config`, with transformers 4.33's defaults.
    ///
    /// # Errors
    /// As [`Self::of_blip`].
    pub fn of_blip2(config: &Section) -> Result<Self> {
        config.only("model_type", &[json!("blip_2_vision_model")])?;
        Self::of_queries(config, 1e-5)
    }

    /// InstructBLIP's `vision_config`, with transformers 4.33's defaults.
    ///
    /// # Errors
    /// As [`Self::of_blip`].
    pub fn of_instruct_blip(config: &Section) -> Result<Self> {
        config.only("model_type", &[json!("instructblip_vision_model")])?;
        Self::of_queries(config, 1e-6)
    }

    /// The encoder whose output a Q-Former looks at.
    fn of_queries(config: &Section, epsilon: f32) -> Result<Self> {
        let defaults = BlipVision {
            hidden_size: 1408,
            intermediate_size: 6144,
            layers: 39,
            heads: 16,
            image_size: 224,
            patch_size: 14,
            activation: Activation::Gelu,
            epsilon,
            qkv_bias: true,
        };
        let qkv_bias = config.flag("qkv_bias", true)?;
        Ok(BlipVision { qkv_bias, ..Self::from_config(config, defaults)? })
    }

    fn from_config(config: &Section, defaults: BlipVision) -> Result<Self> {
        config.only("num_channels", &[json!(3)])?;
        let vision = BlipVision {
            hidden_size: config.size("hidden_size", defaults.hidden_size)?,
            intermediate_size: config.size("intermediate_size", defaults.intermediate_size)?,
            layers: config.size("num_hidden_layers", defaults.layers)?,
            heads: config.size("num_attention_heads", defaults.heads)?,
            image_size: config.size("image_size", defaults.image_size)?,
            patch_size: config.size("patch_size", defaults.patch_size)?,
            activation: Activation::from_name(
                &format!("{}: hidden_act", config.path()),
                &config.text("hidden_act", "gelu")?,
            )?,
            epsilon: config.number("layer_norm_eps", f64::from(defaults.epsilon))? as f32,
            qkv_bias: defaults.qkv_bias,
        };
        config.check_heads(vision.hidden_size, vision.heads)?;
        config.check_patch(vision.patch_size, vision.image_size)?;
        config.finish(&[DESCRIPTIVE_KEYS, TRAINING_KEYS, GENERATION_KEYS, &["projection_dim"]])?;
        Ok(vision)
    }

    /// Patches and the class token.
    #[must_use]
    pub fn positions(&self) -> usize {
        (self.image_size / self.patch_size).pow(2) + 1
    }

    /// Writes the graph: `pixel_values` f32 `[batch, 3, size, size]` to
    /// `image_embeds` f32 `[batch, positions, hidden_size]`, after
    /// `post_layernorm`. `prefix` is what the tensors' names start with.
    ///
    /// # Errors
    /// As [`GraphBuilder::weight`].
    pub fn write(&self, g: &mut GraphBuilder<'_>, prefix: &str) -> Result<()> {
        let (width, positions) = (self.hidden_size, self.positions());
        let size = Dim::Fixed(self.image_size);
        let pixels =
            g.input("pixel_values", Type::F32, &["batch".into(), Dim::Fixed(3), size, size]);
        g.set_scope("embeddings");
        let mut hidden = self.embed(g, prefix, &pixels)?;
        for layer in 0..self.layers {
            g.set_scope(&format!("layers.{layer}"));
            hidden = self.layer(g, &format!("{prefix}.encoder.layers.{layer}"), &hidden)?;
        }
        g.set_scope("post_layernorm");
        let name = format!("{prefix}.post_layernorm");
        let hidden = g.layer_norm(&hidden, &name, width, self.epsilon)?;
        let hidden = g.reshape(&hidden, &[-1, positions as i64, width as i64]);
        let shape = ["batch".into(), Dim::Fixed(positions), Dim::Fixed(width)];
        g.output(&hidden, "image_embeds", Type::F32, &shape);
        Ok(())
    }

    /// Pixels to rows `[batch * positions, hidden_size]`.
    fn embed(&self, g: &mut GraphBuilder<'_>, prefix: &str, pixels: &Value) -> Result<Value> {
        let (width, positions) = (self.hidden_size, self.positions());
        let name = format!("{prefix}.embeddings.patch_embedding");
        let patches = LinearWeights { name: &name, input: 3, output: width, bias: true };
        let patches = g.patch_convolution(pixels, patches, self.patch_size)?;
        let patches = g.reshape(&patches, &[0, width as i64, -1]);
        let patches = g.transpose(&patches, &[0, 2, 1]);
        let class = g.weight(&format!("{prefix}.embeddings.class_embedding"), &[1, 1, width])?;
        let batch = g.dim(pixels, 0);
        let rest = g.ints(&[1, width as i64]);
        let shape = g.concat(&[&batch, &rest], 0);
        let class = g.expand(&class, &shape);
        let embeddings = g.concat(&[&class, &patches], 1);
        let name = format!("{prefix}.embeddings.position_embedding");
        let position = g.weight(&name, &[1, positions, width])?;
        let embeddings = g.add(&embeddings, &position);
        Ok(g.reshape(&embeddings, &[-1, width as i64]))
    }

    /// One encoder layer on rows.
    fn layer(&self, g: &mut GraphBuilder<'_>, prefix: &str, rows: &Value) -> Result<Value> {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let name = format!("{prefix}.layer_norm1");
        let normed = g.layer_norm(rows, &name, width, self.epsilon)?;
        let name = format!("{prefix}.self_attn.qkv");
        let qkv =
            LinearWeights { name: &name, input: width, output: 3 * width, bias: self.qkv_bias };
        let qkv = g.linear(&normed, qkv)?;
        let qkv = g.reshape(&qkv, &[-1, self.positions() as i64, 3 * width as i64]);
        let sizes = g.ints(&[width as i64; 3]);
        let parts = g.split(&qkv, &sizes, 3, -1);
        let heads = AttentionHeads { heads: self.heads, head_dim: width / self.heads };
        let context = g.attention([&parts[0], &parts[1], &parts[2]], None, heads);
        let context = g.reshape(&context, &[-1, width as i64]);
        let name = format!("{prefix}.self_attn.projection");
        let projection = LinearWeights { name: &name, input: width, output: width, bias: true };
        let attended = g.linear(&context, projection)?;
        let rows = g.add(&attended, rows);
        let name = format!("{prefix}.layer_norm2");
        let normed = g.layer_norm(&rows, &name, width, self.epsilon)?;
        let name = format!("{prefix}.mlp.fc1");
        let inside = LinearWeights { name: &name, input: width, output: inner, bias: true };
        let inside = g.linear(&normed, inside)?;
        let inside = g.activation(&inside, self.activation);
        let name = format!("{prefix}.mlp.fc2");
        let outside = LinearWeights { name: &name, input: inner, output: width, bias: true };
        let outside = g.linear(&inside, outside)?;
        Ok(g.add(&outside, &rows))
    }
}
