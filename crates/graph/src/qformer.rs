//! The Q-Former of BLIP-2 (`Blip2QFormerModel`): learned queries that attend to
//! one another and, in some layers, to the picture.

use imprompt_error::Result;
use serde_json::json;

use crate::builder::{Activation, AttentionHeads, Dim, GraphBuilder, LinearWeights, Type, Value};
use crate::config::{DESCRIPTIVE_KEYS, GENERATION_KEYS, Section, TRAINING_KEYS};

/// The Q-Former as `qformer_config` describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct QFormer {
    /// The number of learned queries (`num_query_tokens` of the whole model).
    pub query_tokens: usize,
    /// Width of the picture's embeddings.
    pub encoder_hidden_size: usize,
    /// Width of a query.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads, of queries and towards the picture.
    pub heads: usize,
    /// Every so many layers, from the first on, look at the picture.
    pub cross_attention_frequency: usize,
    /// The MLP's activation.
    pub activation: Activation,
    /// What the variance of every layer norm is raised by.
    pub epsilon: f32,
}

impl QFormer {
    /// `qformer_config`, with transformers 4.33's defaults. As there, the width
    /// of the picture's embeddings is the image encoder's, whatever
    /// `encoder_hidden_size` says.
    ///
    /// # Errors
    /// `Unsupported` naming a key that this build does not do, `BadModel` naming
    /// one that is malformed.
    pub fn from_config(
        config: &Section,
        query_tokens: usize,
        encoder_hidden_size: usize,
    ) -> Result<Self> {
        config.only("model_type", &[json!("blip_2_qformer")])?;
        config.only("position_embedding_type", &[json!("absolute")])?;
        config.only("use_qformer_text_input", &[json!(false)])?;
        let qformer = QFormer {
            query_tokens,
            encoder_hidden_size,
            hidden_size: config.size("hidden_size", 768)?,
            intermediate_size: config.size("intermediate_size", 3072)?,
            layers: config.size("num_hidden_layers", 12)?,
            heads: config.size("num_attention_heads", 12)?,
            cross_attention_frequency: config.size("cross_attention_frequency", 2)?,
            activation: Activation::from_name(
                &format!("{}: hidden_act", config.path()),
                &config.text("hidden_act", "gelu")?,
            )?,
            epsilon: config.number("layer_norm_eps", 1e-12)? as f32,
        };
        config.check_heads(qformer.hidden_size, qformer.heads)?;
        // The text half of the Q-Former takes no part in captioning.
        let text_half = [
            "classifier_dropout",
            "encoder_hidden_size",
            "max_position_embeddings",
            "use_cache",
            "vocab_size",
        ];
        config.finish(&[DESCRIPTIVE_KEYS, TRAINING_KEYS, GENERATION_KEYS, &text_half])?;
        Ok(qformer)
    }

    /// Writes the graph: `image_embeds` f32 `[batch, patches, encoder_hidden_size]`
    /// to `query_embeds` f32 `[batch, query_tokens, output]`, after
    /// `language_projection`.
    ///
    /// # Errors
    /// As [`GraphBuilder::weight`].
    pub fn write(&self, g: &mut GraphBuilder<'_>, output: usize) -> Result<()> {
        let (width, queries) = (self.hidden_size, self.query_tokens);
        let encoder_width = Dim::Fixed(self.encoder_hidden_size);
        let picture =
            g.input("image_embeds", Type::F32, &["batch".into(), "patches".into(), encoder_width]);
        g.set_scope("queries");
        let tokens = g.weight("query_tokens", &[1, queries, width])?;
        let tokens = g.reshape(&tokens, &[-1, width as i64]);
        let mut hidden = g.layer_norm(&tokens, "qformer.layernorm", width, self.epsilon)?;
        for layer in 0..self.layers {
            g.set_scope(&format!("layer.{layer}"));
            let prefix = format!("qformer.encoder.layer.{layer}");
            hidden = self.attend(g, &format!("{prefix}.attention"), &hidden, None)?;
            if layer == 0 {
                // Up to here nothing depends on the picture: it is computed
                // once, when the graph is loaded.
                hidden = self.repeat(g, &hidden, &picture);
            }
            if layer % self.cross_attention_frequency == 0 {
                let name = format!("{prefix}.crossattention");
                hidden = self.attend(g, &name, &hidden, Some(&picture))?;
            }
            hidden = self.feed_forward(g, &prefix, &hidden)?;
        }
        g.set_scope("language_projection");
        let projection =
            LinearWeights { name: "language_projection", input: width, output, bias: true };
        let embeds = g.linear(&hidden, projection)?;
        let embeds = g.reshape(&embeds, &[-1, queries as i64, output as i64]);
        let shape = ["batch".into(), Dim::Fixed(queries), Dim::Fixed(output)];
        g.output(&embeds, "query_embeds", Type::F32, &shape);
        Ok(())
    }

    /// The rows of one picture for every picture of the batch.
    fn repeat(&self, g: &mut GraphBuilder<'_>, rows: &Value, picture: &Value) -> Value {
        let (width, queries) = (self.hidden_size as i64, self.query_tokens as i64);
        let batch = g.dim(picture, 0);
        let rest = g.ints(&[queries, width]);
        let shape = g.concat(&[&batch, &rest], 0);
        let one = g.reshape(rows, &[1, queries, width]);
        let all = g.expand(&one, &shape);
        g.reshape(&all, &[-1, width])
    }

    /// Attention among the queries, or towards `picture`, with its output layer.
    fn attend(
        &self,
        g: &mut GraphBuilder<'_>,
        prefix: &str,
        rows: &Value,
        picture: Option<&Value>,
    ) -> Result<Value> {
        let width = self.hidden_size;
        let query = self.projected(g, &format!("{prefix}.attention.query"), rows, width)?;
        let query = g.reshape(&query, &[-1, self.query_tokens as i64, width as i64]);
        let mut sides = Vec::with_capacity(2);
        for side in ["key", "value"] {
            let name = format!("{prefix}.attention.{side}");
            sides.push(match picture {
                None => {
                    let side = self.projected(g, &name, rows, width)?;
                    g.reshape(&side, &[-1, self.query_tokens as i64, width as i64])
                }
                Some(picture) => {
                    let input = self.encoder_hidden_size;
                    let rows = g.reshape(picture, &[-1, input as i64]);
                    let side = self.projected(g, &name, &rows, input)?;
                    let (batch, patches) = (g.dim(picture, 0), g.dim(picture, 1));
                    let width = g.ints(&[width as i64]);
                    let shape = g.concat(&[&batch, &patches, &width], 0);
                    g.reshape_to(&side, &shape)
                }
            });
        }
        let heads = AttentionHeads {
            heads: self.heads,
            kv_heads: self.heads,
            scale: ((width / self.heads) as f32).sqrt().recip(),
        };
        let context = g.attention([&query, &sides[0], &sides[1]], None, heads);
        let context = g.reshape(&context, &[-1, width as i64]);
        let dense = self.projected(g, &format!("{prefix}.output.dense"), &context, width)?;
        let sum = g.add(&dense, rows);
        g.layer_norm(&sum, &format!("{prefix}.output.LayerNorm"), width, self.epsilon)
    }

    fn projected(
        &self,
        g: &mut GraphBuilder<'_>,
        name: &str,
        rows: &Value,
        input: usize,
    ) -> Result<Value> {
        g.linear(rows, LinearWeights { name, input, output: self.hidden_size, bias: true })
    }

    fn feed_forward(&self, g: &mut GraphBuilder<'_>, prefix: &str, rows: &Value) -> Result<Value> {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let name = format!("{prefix}.intermediate_query.dense");
        let inside = LinearWeights { name: &name, input: width, output: inner, bias: true };
        let inside = g.linear(rows, inside)?;
        let inside = g.activation(&inside, self.activation);
        let name = format!("{prefix}.output_query.dense");
        let outside = LinearWeights { name: &name, input: inner, output: width, bias: true };
        let outside = g.linear(&inside, outside)?;
        let sum = g.add(&outside, rows);
        g.layer_norm(&sum, &format!("{prefix}.output_query.LayerNorm"), width, self.epsilon)
    }
}
