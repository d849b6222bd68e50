//! The layers that all towers have (pre-norm attention and feed-forward part),
//! by the names transformers gives their tensors.

use imprompt_error::Result;

use super::Tower;
use crate::builder::{GraphBuilder, LinearWeights, Value};

/// The rows of a layer that are computed: all, or those of `kept` alone, which
/// is enough where nothing reads the others.
pub(crate) struct Rows<'v> {
    pub(crate) all: &'v Value,
    pub(crate) kept: Option<&'v Value>,
}

/// What surrounds a layer's attention: normalisation and projections before,
/// output projection, residual and feed-forward part after.
pub(crate) struct Layer<'t> {
    pub(crate) tower: &'t Tower,
    pub(crate) name: String,
}

impl Layer<'_> {
    /// Queries (of the kept rows), keys and values (of all), each `[n, width]`.
    pub(crate) fn projections(
        &self,
        graph: &mut GraphBuilder<'_>,
        rows: &Rows<'_>,
    ) -> Result<[Value; 3]> {
        let Tower { width, epsilon, .. } = *self.tower;
        let name = |part: &str| format!("{}.{part}", self.name);
        let normal = graph.layer_norm(rows.all, &name("layer_norm1"), width, epsilon)?;
        let queried = match rows.kept {
            Some(kept) => graph.gather(&normal, kept, 0),
            None => normal.clone(),
        };
        let mut project = |rows: &Value, part: &str| {
            graph.linear(rows, linear(&name(&format!("self_attn.{part}")), width, width))
        };
        Ok([project(&queried, "q_proj")?, project(&normal, "k_proj")?, project(&normal, "v_proj")?])
    }

    /// The states after the layer, given what its attention saw.
    pub(crate) fn finish(
        &self,
        graph: &mut GraphBuilder<'_>,
        rows: &Rows<'_>,
        attended: &Value,
    ) -> Result<Value> {
        let Tower { width, epsilon, .. } = *self.tower;
        let name = |part: &str| format!("{}.{part}", self.name);
        let residual = match rows.kept {
            Some(kept) => graph.gather(rows.all, kept, 0),
            None => rows.all.clone(),
        };
        let out = name("self_attn.out_proj");
        let attended = graph.linear(attended, linear(&out, width, width))?;
        let states = graph.add(&residual, &attended);
        let normal = graph.layer_norm(&states, &name("layer_norm2"), width, epsilon)?;
        let outer = feed_forward(graph, self.tower, &name("mlp"), &normal)?;
        Ok(graph.add(&states, &outer))
    }
}

/// Layers in which every row sees every row of its own batch entry.
pub(super) struct Encoder<'t> {
    pub(super) tower: &'t Tower,
    /// What the layers' names start with, such as `vision_model`.
    pub(super) prefix: &'static str,
    /// Rows of a batch entry.
    pub(super) length: usize,
}

impl Encoder<'_> {
    /// `states` `[batch * length, width]` after all layers. With `pooled`, rows
    /// of `states`, one for each batch entry, the last layer computes these
    /// alone: `[batch, width]`.
    pub(super) fn write(
        &self,
        graph: &mut GraphBuilder<'_>,
        states: Value,
        pooled: Option<&Value>,
    ) -> Result<Value> {
        let Encoder { tower, prefix, length } = *self;
        let mut states = states;
        for index in 0..tower.layers {
            let name = format!("{prefix}.encoder.layers.{index}");
            graph.set_scope(&name);
            let layer = Layer { tower, name };
            let kept = pooled.filter(|_| index + 1 == tower.layers);
            let rows = Rows { all: &states, kept };
            let projections = layer.projections(graph, &rows)?;
            let queries = if kept.is_some() { 1 } else { length };
            let attended = attend(graph, tower, &projections, [queries, length]);
            states = layer.finish(graph, &rows, &attended)?;
        }
        Ok(states)
    }

    /// The first row of each batch entry, `[batch]`; `of` has the batch in front.
    pub(super) fn first_rows(&self, graph: &mut GraphBuilder<'_>, of: &Value) -> Value {
        let batch = graph.dim(of, 0);
        let batches = graph.arange(&batch);
        let length = graph.int(self.length as i64);
        graph.mul(&batches, &length)
    }
}

/// What queries see of keys and values, all as rows `[batch * length, width]`;
/// `lengths` are the rows of a batch entry, of queries and of keys. Queries of
/// one batch entry serve every batch entry of the keys.
pub(super) fn attend(
    graph: &mut GraphBuilder<'_>,
    tower: &Tower,
    [query, key, value]: &[Value; 3],
    [queries, keys]: [usize; 2],
) -> Value {
    let sides = [query, key, value].map(Some);
    let size = |value: usize| value as i64;
    let attributes =
        [("heads", size(tower.heads)), ("queries", size(queries)), ("keys", size(keys))];
    graph.fused("Attention", &sides, &attributes, |graph| {
        look(graph, tower, [query, key, value], [queries, keys])
    })
}

fn look(
    graph: &mut GraphBuilder<'_>,
    tower: &Tower,
    [query, key, value]: [&Value; 3],
    [queries, keys]: [usize; 2],
) -> Value {
    let mut heads = |data: &Value, length: usize| {
        let shape = [-1, length as i64, tower.heads as i64, tower.head_dim() as i64];
        let parted = graph.reshape(data, &shape);
        graph.transpose(&parted, &[0, 2, 1, 3])
    };
    let [query, key, value] = [heads(query, queries), heads(key, keys), heads(value, keys)];
    let scale = 1.0 / (tower.head_dim() as f32).sqrt();
    let attended = graph.attention_decomposed([&query, &key, &value], None, scale);
    let attended = graph.transpose(&attended, &[0, 2, 1, 3]);
    graph.reshape(&attended, &[-1, tower.width as i64])
}

/// `rows` after a feed-forward part with the layers `NAME.fc1` and `NAME.fc2`.
pub(super) fn feed_forward(
    graph: &mut GraphBuilder<'_>,
    tower: &Tower,
    name: &str,
    rows: &Value,
) -> Result<Value> {
    let Tower { width, hidden, activation, .. } = *tower;
    let (inner_name, outer_name) = (format!("{name}.fc1"), format!("{name}.fc2"));
    let inner = linear(&inner_name, width, hidden);
    let inner = graph.linear(rows, inner)?;
    let inner = graph.activation(&inner, activation);
    graph.linear(&inner, linear(&outer_name, hidden, width))
}

/// A linear layer with a bias.
pub(super) fn linear(name: &str, input: usize, output: usize) -> LinearWeights<'_> {
    LinearWeights { name, input, output, bias: true }
}
