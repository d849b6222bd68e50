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

use super::{ClipConfig, Layer, Rows};
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

    let batch = graph.dim(&pixel_values, 0);
    let batches = graph.arange(&batch);
    let row_length = graph.int(tokens as i64);
    let class_rows = graph.mul(&batches, &row_length);
    for index in 0..tower.layers {
        let name = format!("vision_model.encoder.layers.{index}");
        graph.set_scope(&name);
        let layer = Layer { tower, name };
        let last = index + 1 == tower.layers;
        let rows = Rows { all: &states, kept: last.then_some(&class_rows) };
        let [query, key, value] = layer.projections(&mut graph, &rows)?;
        let queries = if last { 1 } else { tokens };
        let mut heads = |data: &Value, length: usize| {
            let shape = [-1, length as i64, tower.heads as i64, tower.head_dim() as i64];
            let parted = graph.reshape(data, &shape);
            graph.transpose(&parted, &[0, 2, 1, 3])
        };
        let parts = [heads(&query, queries), heads(&key, tokens), heads(&value, tokens)];
        let scale = 1.0 / (tower.head_dim() as f32).sqrt();
        let [query, key, value] = &parts;
        let attended = graph.attention_decomposed([query, key, value], None, scale);
        let attended = graph.transpose(&attended, &[0, 2, 1, 3]);
        let attended = graph.reshape(&attended, &[-1, tower.width as i64]);
        states = layer.finish(&mut graph, &rows, &attended)?;
    }

    graph.set_scope("visual_projection");
    let name = "vision_model.post_layernorm";
    let pooled = graph.layer_norm(&states, name, tower.width, tower.epsilon)?;
    let projection = LinearWeights {
        name: "visual_projection",
        input: tower.width,
        output: config.projection_dim,
        bias: false,
    };
    let embeds = graph.linear(&pooled, projection)?;
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
