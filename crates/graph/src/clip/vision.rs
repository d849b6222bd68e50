//! The image tower.
//!
//! | tensor | type | shape |
//! |---|---|---|
//! | in `pixel_values` | f32 | `[batch, channels, size, size]` |
//! | out `image_embeds` | f32 | `[batch, projection_dim]`, L2-normalised |
//!
//! `CLIPVisionTransformer` and `visual_projection`. The last layer computes the
//! class token's row alone: nothing reads the patches after it.

use imprompt_error::Result;

use super::ClipConfig;
use super::layers::Encoder;
use crate::builder::{Graph, GraphBuilder, LinearWeights, Type, Value};
use crate::weights::WeightIndex;

/// Writes it.
///
/// # Errors
/// `BadModel` naming the tensor that is missing or has another shape.
pub fn graph(config: &ClipConfig, weights: &WeightIndex) -> Result<Graph> {
    let mut graph = GraphBuilder::new("clip_image", weights);
    let size = config.image_size;
    let tower = &config.vision;
    let shape = ["batch".into(), config.channels.into(), size.into(), size.into()];
    let pixel_values = graph.input("pixel_values", Type::F32, &shape);
    let side = size / config.patch_size;
    let tokens = side * side + 1;

    graph.set_scope("vision_model.embeddings");
    let mut states = embeddings(&mut graph, config, &pixel_values, tokens)?;
    // [batch * tokens, width] from here on: every linear layer is one product.
    states = graph.reshape(&states, &[-1, tower.width as i64]);

    let encoder = Encoder { tower, prefix: "vision_model", length: tokens };
    let class_rows = encoder.first_rows(&mut graph, &pixel_values);
    states = encoder.write(&mut graph, states, Some(&class_rows))?;

    graph.set_scope("visual_projection");
    let name = "vision_model.post_layernorm";
    let pooled = graph.layer_norm(&states, name, tower.width, tower.epsilon)?;
    let embeds = config.project(&mut graph, &pooled, "visual_projection", tower.width)?;
    let embeds = graph.l2_normalize(&embeds);
    let shape = ["batch".into(), config.projection_dim.into()];
    graph.output(&embeds, "image_embeds", Type::F32, &shape);
    Ok(graph.finish())
}

/// `[batch, tokens, width]`: the class token and the patches, with their
/// positions, normalised.
fn embeddings(
    graph: &mut GraphBuilder<'_>,
    config: &ClipConfig,
    pixel_values: &Value,
    tokens: usize,
) -> Result<Value> {
    let width = config.vision.width;
    let convolution = LinearWeights {
        name: "vision_model.embeddings.patch_embedding",
        input: config.channels,
        output: width,
        bias: false,
    };
    let patches = graph.patch_convolution(pixel_values, convolution, config.patch_size)?;
    let patches = graph.reshape(&patches, &[0, width as i64, -1]);
    let patches = graph.transpose(&patches, &[0, 2, 1]);
    let class = graph.weight("vision_model.embeddings.class_embedding", &[width])?;
    let batch = graph.dim(pixel_values, 0);
    let rest = graph.ints(&[1, width as i64]);
    let shape = graph.concat(&[&batch, &rest], 0);
    let class = graph.expand(&class, &shape);
    let states = graph.concat(&[&class, &patches], 1);
    let name = "vision_model.embeddings.position_embedding.weight";
    let positions = graph.weight(name, &[tokens, width])?;
    let states = graph.add(&states, &positions);
    graph.layer_norm(&states, "vision_model.pre_layrnorm", width, config.vision.epsilon)
}
