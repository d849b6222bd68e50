//! BERT's layers as BLIP and GIT have them: normalisation after each part,
//! queries, keys and values as three matrices.
//!
//! Reference: `BlipTextModel` (`models/blip/modeling_blip_text.py`) and
//! `GitModel` (`models/git/modeling_git.py`) of transformers 4.33.1.

use imprompt_error::Result;
use serde_json::json;

use crate::builder::{Activation, GraphBuilder, LinearWeights, Type, Value};
use crate::config::Section;

/// Sizes of a stack of BERT layers with its embeddings.
#[derive(Clone, Debug, PartialEq)]
pub struct Bert {
    /// Width of a token's state.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads, of cross attention too.
    pub heads: usize,
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Positions that have an embedding.
    pub max_positions: usize,
    /// The MLP's activation.
    pub activation: Activation,
    /// What the variance of every layer norm is raised by.
    pub epsilon: f32,
}

impl Bert {
    /// Reads the sizes; `defaults` are those of the configuration's class.
    ///
    /// # Errors
    /// `Unsupported` naming a value that this build does not do, `BadModel`
    /// naming one that is malformed.
    pub(crate) fn read(config: &Section, defaults: &Bert) -> Result<Self> {
        config.only("position_embedding_type", &[json!("absolute")])?;
        let bert = Bert {
            hidden_size: config.size("hidden_size", defaults.hidden_size)?,
            intermediate_size: config.size("intermediate_size", defaults.intermediate_size)?,
            layers: config.size("num_hidden_layers", defaults.layers)?,
            heads: config.size("num_attention_heads", defaults.heads)?,
            vocabulary: config.size("vocab_size", defaults.vocabulary)?,
            max_positions: config.size("max_position_embeddings", defaults.max_positions)?,
            activation: Activation::from_name(
                &format!("{}: hidden_act", config.path()),
                &config.text("hidden_act", "gelu")?,
            )?,
            epsilon: config.number("layer_norm_eps", f64::from(defaults.epsilon))? as f32,
        };
        config.check_heads(bert.hidden_size, bert.heads)?;
        Ok(bert)
    }

    /// Width of a head.
    pub(crate) fn head_dim(&self) -> usize {
        self.hidden_size / self.heads
    }

    /// The embeddings of `ids` at `positions` (`[batch, tokens]` each),
    /// normalised, `[batch, tokens, hidden_size]`. Padding may lie behind the
    /// position table's end: it takes the last row.
    pub(crate) fn embed(
        &self,
        g: &mut GraphBuilder<'_>,
        prefix: &str,
        ids: &Value,
        positions: &Value,
    ) -> Result<Value> {
        let width = self.hidden_size;
        let name = format!("{prefix}.word_embeddings.weight");
        let words = g.stored_weight(&name, &[self.vocabulary, width])?;
        let words = g.gather(&words, ids, 0);
        let words = g.cast(&words, Type::F32);
        let name = format!("{prefix}.position_embeddings.weight");
        let table = g.stored_weight(&name, &[self.max_positions, width])?;
        let (first, last) = (g.int(0), g.int(self.max_positions as i64 - 1));
        let index = g.node("Clip", &[positions, &first, &last], &[]);
        let places = g.gather(&table, &index, 0);
        let places = g.cast(&places, Type::F32);
        let sum = g.add(&words, &places);
        g.layer_norm(&sum, &format!("{prefix}.LayerNorm"), width, self.epsilon)
    }

    /// One of an attention's three projections: rows of width `input` to rows
    /// of all heads. `prefix` names the attention.
    pub(crate) fn project(
        &self,
        g: &mut GraphBuilder<'_>,
        prefix: &str,
        part: &str,
        (rows, input): (&Value, usize),
    ) -> Result<Value> {
        let name = format!("{prefix}.self.{part}");
        g.linear(rows, LinearWeights { name: &name, input, output: self.hidden_size, bias: true })
    }

    /// Queries, keys and values of self attention.
    pub(crate) fn projections(
        &self,
        g: &mut GraphBuilder<'_>,
        prefix: &str,
        rows: &Value,
    ) -> Result<[Value; 3]> {
        let mut one = |part| self.project(g, prefix, part, (rows, self.hidden_size));
        Ok([one("query")?, one("key")?, one("value")?])
    }

    /// The states after an attention or a feed-forward part, whose result
    /// `inner` (rows of width `input`) passes `{prefix}.dense`.
    pub(crate) fn join(
        &self,
        g: &mut GraphBuilder<'_>,
        prefix: &str,
        rows: &Value,
        (inner, input): (&Value, usize),
    ) -> Result<Value> {
        let width = self.hidden_size;
        let name = format!("{prefix}.dense");
        let dense =
            g.linear(inner, LinearWeights { name: &name, input, output: width, bias: true })?;
        let sum = g.add(&dense, rows);
        g.layer_norm(&sum, &format!("{prefix}.LayerNorm"), width, self.epsilon)
    }

    /// The feed-forward part of the layer `prefix`.
    pub(crate) fn feed_forward(
        &self,
        g: &mut GraphBuilder<'_>,
        prefix: &str,
        rows: &Value,
    ) -> Result<Value> {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let name = format!("{prefix}.intermediate.dense");
        let inside = LinearWeights { name: &name, input: width, output: inner, bias: true };
        let inside = g.linear(rows, inside)?;
        let inside = g.activation(&inside, self.activation);
        self.join(g, &format!("{prefix}.output"), rows, (&inside, inner))
    }
}
