//! The text tower, behind a prefix whose keys and values are known.
//!
//! | tensor | type | shape |
//! |---|---|---|
//! | in `input_ids` | i64 | `[batch, length]`: the tokens after the prefix |
//! | in `last_index` | i64 | `[batch]`: slot of `input_ids` that is pooled |
//! | in `prefix_keys`, `prefix_values` | f32 | `[layers, heads, prefix_length, head_dim]`, shared by the whole batch; `prefix_length` may be 0 |
//! | in `kept_rows` | i64 | `[kept]`: rows of the flattened `[batch * length]` whose keys and values are given out; may be empty |
//! | out `text_embeds` | f32 | `[batch, projection_dim]`, L2-normalised |
//! | out `keys`, `values` | f32 | `[layers, heads, kept, head_dim]` |
//!
//! `CLIPTextTransformer` and `text_projection`. The tower is causal, so slots
//! after the pooled one are left out, and a beginning that all texts share is
//! run once: its `keys` and `values` (of one run with batch 1 and all rows kept)
//! are the prefix of the next. Heads lie in front, `[heads, batch * length, ..]`,
//! so that the scores against the prefix are one product for each head, whatever
//! the batch, and the prefix is copied for nobody. The last layer computes the
//! pooled rows alone.

use imprompt_error::Result;

use super::layers::{Layer, Rows};
use super::{ClipConfig, Tower};
use crate::builder::{Graph, GraphBuilder, Type, Value};
use crate::weights::WeightIndex;

/// Writes it.
///
/// # Errors
/// `BadModel` naming the tensor that is missing or has another shape.
pub fn graph(config: &ClipConfig, weights: &WeightIndex) -> Result<Graph> {
    let mut graph = GraphBuilder::new("clip_text", weights);
    let inputs = Inputs::new(&mut graph, &config.text);
    graph.set_scope("text_model.embeddings");
    let sizes = Sizes::new(&mut graph, &inputs, &config.text);
    let mut states = embeddings(&mut graph, config, &inputs, &sizes)?;
    let masks = Masks::new(&mut graph, &inputs, &sizes);

    let tower = &config.text;
    let mut kept = Vec::new();
    for index in 0..tower.layers {
        let name = format!("text_model.encoder.layers.{index}");
        graph.set_scope(&name);
        let layer = Layer { tower, name };
        let last = index + 1 == tower.layers;
        let rows = Rows { all: &states, kept: last.then_some(&sizes.pooled_rows) };
        let [query, key, value] = layer.projections(&mut graph, &rows)?;
        let (shape, mask) = match last {
            true => (&sizes.pooled_shape, &masks.pooled),
            false => (&sizes.own_shape, &masks.causal),
        };
        let given =
            [&query, &key, &value, &inputs.prefix_keys, &inputs.prefix_values, &inputs.last_index];
        let attributes =
            [("heads", tower.heads as i64), ("layer", index as i64), ("pooled", i64::from(last))];
        let attended = graph.fused("PrefixAttention", &given.map(Some), &attributes, |graph| {
            let prefix = inputs.prefix(graph, index);
            let mut attention = Attention { tower, sizes: &sizes, prefix, graph };
            let heads = [&query, &key, &value].map(|rows| attention.heads_first(rows));
            attention.attend(&heads, shape, mask)
        });
        kept.push([key, value].map(|all| {
            let rows = graph.gather(&all, &inputs.kept_rows, 0);
            let rows = heads_first(&mut graph, tower, &rows);
            graph.unsqueeze(&rows, &[0])
        }));
        states = layer.finish(&mut graph, &rows, &attended)?;
    }

    graph.set_scope("text_projection");
    let name = "text_model.final_layer_norm";
    let pooled = graph.layer_norm(&states, name, tower.width, tower.epsilon)?;
    let embeds = config.project(&mut graph, &pooled, "text_projection", tower.width)?;
    let embeds = graph.l2_normalize(&embeds);
    let shape = ["batch".into(), config.projection_dim.into()];
    graph.output(&embeds, "text_embeds", Type::F32, &shape);
    let shape = [tower.layers.into(), tower.heads.into(), "kept".into(), tower.head_dim().into()];
    for (which, name) in ["keys", "values"].into_iter().enumerate() {
        let layers: Vec<&Value> = kept.iter().map(|layer| &layer[which]).collect();
        let stacked = graph.concat(&layers, 0);
        graph.output(&stacked, name, Type::F32, &shape);
    }
    Ok(graph.finish())
}

struct Inputs {
    input_ids: Value,
    last_index: Value,
    prefix_keys: Value,
    prefix_values: Value,
    kept_rows: Value,
}

impl Inputs {
    fn new(graph: &mut GraphBuilder<'_>, tower: &Tower) -> Self {
        let prefix = [
            tower.layers.into(),
            tower.heads.into(),
            "prefix_length".into(),
            tower.head_dim().into(),
        ];
        Inputs {
            input_ids: graph.input("input_ids", Type::I64, &["batch".into(), "length".into()]),
            last_index: graph.input("last_index", Type::I64, &["batch".into()]),
            prefix_keys: graph.input("prefix_keys", Type::F32, &prefix),
            prefix_values: graph.input("prefix_values", Type::F32, &prefix),
            kept_rows: graph.input("kept_rows", Type::I64, &["kept".into()]),
        }
    }

    /// Keys and values of a layer, `[heads, prefix_length, head_dim]`.
    fn prefix(&self, graph: &mut GraphBuilder<'_>, layer: usize) -> [Value; 2] {
        let layer = graph.int(layer as i64);
        [&self.prefix_keys, &self.prefix_values].map(|all| graph.gather(all, &layer, 0))
    }
}

/// Lengths and shapes that the layers share.
struct Sizes {
    /// `[1]` each.
    length: Value,
    prefix_length: Value,
    /// Rows of `[batch * length]` that are pooled, `[batch]`.
    pooled_rows: Value,
    /// `[heads, batch, length, head_dim]`, as a shape.
    own_shape: Value,
    /// `[heads, batch, 1, head_dim]`, as a shape.
    pooled_shape: Value,
}

impl Sizes {
    fn new(graph: &mut GraphBuilder<'_>, inputs: &Inputs, tower: &Tower) -> Self {
        let batch = graph.dim(&inputs.input_ids, 0);
        let length = graph.dim(&inputs.input_ids, 1);
        let prefix_length = graph.dim(&inputs.prefix_keys, 2);
        let batches = graph.arange(&batch);
        let starts = graph.mul(&batches, &length);
        let pooled_rows = graph.add(&starts, &inputs.last_index);
        let heads = graph.ints(&[tower.heads as i64]);
        let head_dim = graph.ints(&[tower.head_dim() as i64]);
        let one = graph.ints(&[1]);
        let own_shape = graph.concat(&[&heads, &batch, &length, &head_dim], 0);
        let pooled_shape = graph.concat(&[&heads, &batch, &one, &head_dim], 0);
        Sizes { length, prefix_length, pooled_rows, own_shape, pooled_shape }
    }
}

/// Additive masks of the scores against the own tokens.
struct Masks {
    /// `[length, length]`: a token sees none after itself.
    causal: Value,
    /// `[batch, 1, length]`: the pooled token sees none after itself.
    pooled: Value,
}

impl Masks {
    fn new(graph: &mut GraphBuilder<'_>, inputs: &Inputs, sizes: &Sizes) -> Self {
        let square = graph.concat(&[&sizes.length, &sizes.length], 0);
        let lowest = graph.full(&square, f32::MIN);
        let causal = graph.upper_triangle(&lowest, 1);
        let slots = graph.arange(&sizes.length);
        let ends = graph.unsqueeze(&inputs.last_index, &[1, 2]);
        let after = graph.greater(&slots, &ends);
        let (lowest, zero) = (graph.lowest(), graph.float(0.0));
        let pooled = graph.select(&after, &lowest, &zero);
        Masks { causal, pooled }
    }
}

/// `[batch * length, width]`: the tokens with their positions behind the prefix.
fn embeddings(
    graph: &mut GraphBuilder<'_>,
    config: &ClipConfig,
    inputs: &Inputs,
    sizes: &Sizes,
) -> Result<Value> {
    let width = config.text.width;
    let name = "text_model.embeddings.token_embedding.weight";
    let table = graph.stored_weight(name, &[config.vocabulary, width])?;
    let tokens = graph.gather(&table, &inputs.input_ids, 0);
    // Widened after it is read: the table of a float16 model stays as large as it is.
    let tokens = graph.cast(&tokens, Type::F32);
    let name = "text_model.embeddings.position_embedding.weight";
    let table = graph.weight(name, &[config.context_length, width])?;
    let end = graph.add(&sizes.prefix_length, &sizes.length);
    let positions = graph.slice(&table, &sizes.prefix_length, &end, 0);
    let states = graph.add(&tokens, &positions);
    Ok(graph.reshape(&states, &[-1, width as i64]))
}

/// `[n, width]` as `[heads, n, head_dim]`.
fn heads_first(graph: &mut GraphBuilder<'_>, tower: &Tower, rows: &Value) -> Value {
    // 0 keeps the rows, none of them too.
    let parted = graph.reshape(rows, &[0, tower.heads as i64, tower.head_dim() as i64]);
    graph.transpose(&parted, &[1, 0, 2])
}

/// One layer's attention over prefix and own tokens.
struct Attention<'a, 'g, 'w> {
    graph: &'g mut GraphBuilder<'w>,
    tower: &'a Tower,
    sizes: &'a Sizes,
    prefix: [Value; 2],
}

impl Attention<'_, '_, '_> {
    fn heads_first(&mut self, rows: &Value) -> Value {
        heads_first(self.graph, self.tower, rows)
    }

    /// What the queries see, `[queries, width]`. `shape` is theirs with the
    /// batch apart; `mask` is added to the scores against the own tokens.
    fn attend(&mut self, [query, key, value]: &[Value; 3], shape: &Value, mask: &Value) -> Value {
        let Sizes { length, prefix_length, own_shape, .. } = self.sizes;
        let graph = &mut *self.graph;
        let scale = graph.float(1.0 / (self.tower.head_dim() as f32).sqrt());
        let query = graph.mul(query, &scale);

        // Against the prefix: [heads, queries, prefix_length].
        let [prefix_keys, prefix_values] = &self.prefix;
        let prefix_keys = graph.transpose(prefix_keys, &[0, 2, 1]);
        let prefix_scores = graph.matmul(&query, &prefix_keys);

        // Against the own tokens, each batch entry apart.
        let own_query = graph.reshape_to(&query, shape);
        let own_key = graph.reshape_to(key, own_shape);
        let own_key = graph.transpose(&own_key, &[0, 1, 3, 2]);
        let scores = graph.matmul(&own_query, &own_key);
        let scores = graph.add(&scores, mask);
        let heads = graph.ints(&[self.tower.heads as i64]);
        let rest = graph.ints(&[-1]);
        let flat = graph.concat(&[&heads, &rest, length], 0);
        let own_scores = graph.reshape_to(&scores, &flat);

        let scores = graph.concat(&[&prefix_scores, &own_scores], -1);
        let weights = graph.softmax(&scores, -1);
        let (start, end) = (graph.ints(&[0]), graph.ints(&[i64::MAX]));
        let prefix_weights = graph.slice(&weights, &start, prefix_length, -1);
        let own_weights = graph.slice(&weights, prefix_length, &end, -1);

        let from_prefix = graph.matmul(&prefix_weights, prefix_values);
        let slots = self.slots(shape);
        let graph = &mut *self.graph;
        let own_weights = graph.reshape_to(&own_weights, &slots);
        let own_value = graph.reshape_to(value, own_shape);
        let from_own = graph.matmul(&own_weights, &own_value);
        let wide = graph.ints(&[self.tower.heads as i64, -1, self.tower.head_dim() as i64]);
        let from_own = graph.reshape_to(&from_own, &wide);
        let seen = graph.add(&from_prefix, &from_own);
        let seen = graph.transpose(&seen, &[1, 0, 2]);
        graph.reshape(&seen, &[-1, self.tower.width as i64])
    }

    /// The shape of the weights over the own tokens: `shape` with its last
    /// dimension the tokens'.
    fn slots(&mut self, shape: &Value) -> Value {
        let front = self.graph.slice_fixed(shape, 0, 3, 0);
        self.graph.concat(&[&front, &self.sizes.length], 0)
    }
}
