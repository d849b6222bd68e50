//! OPT (`transformers/models/opt/modeling_opt.py`) as a decoder that reads
//! given embeddings and then tokens.
//!
//! Inputs and outputs: [`crate::decoder`]. The width of `picture_embeds` is
//! `word_embed_proj_dim`.

use imprompt_error::Result;
use serde_json::json;

use crate::builder::{Activation, Attribute, Dim, GraphBuilder, LinearWeights, Type, Value};
use crate::config::{DESCRIPTIVE_KEYS, GENERATION_KEYS, Section, TRAINING_KEYS};
use crate::decoder::{Heads, Inputs, Step};

/// Rows of the position table in front of position 0.
const POSITION_OFFSET: usize = 2;

/// `nn.LayerNorm`'s own epsilon, which OPT leaves as it is.
const EPSILON: f32 = 1e-5;

/// OPT as `text_config` describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Opt {
    /// Width of the decoder.
    pub hidden_size: usize,
    /// Width of a word's embedding.
    pub word_embed_proj_dim: usize,
    /// Width inside the MLP.
    pub ffn_dim: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Positions that have an embedding.
    pub max_positions: usize,
    /// The MLP's activation.
    pub activation: Activation,
    /// Norms stand before attention and MLP, or after them.
    pub norm_before: bool,
    /// Whether a norm follows the last layer.
    pub final_norm: bool,
    /// Whether norms have weights.
    pub affine: bool,
    /// Whether linear layers have biases.
    pub bias: bool,
    /// Whether the head's matrix is the word embeddings.
    pub tied: bool,
    /// What a text starts with.
    pub bos_token_id: u32,
    /// A text ends with any of these.
    pub eos_token_ids: Vec<u32>,
}

impl Opt {
    /// `text_config`, with transformers 4.33's defaults. Token ids come from
    /// here and not from `generation_config.json`, as in the reference, whose
    /// language model never sees that file.
    ///
    /// # Errors
    /// `Unsupported` naming a key that this build does not do, `BadModel` naming
    /// one that is malformed.
    pub fn from_config(config: &Section) -> Result<Self> {
        config.only("model_type", &[json!("opt")])?;
        let hidden_size = config.size("hidden_size", 768)?;
        let norm_before = config.flag("do_layer_norm_before", true)?;
        let opt = Opt {
            hidden_size,
            word_embed_proj_dim: config.size("word_embed_proj_dim", hidden_size)?,
            ffn_dim: config.size("ffn_dim", 3072)?,
            layers: config.size("num_hidden_layers", 12)?,
            heads: config.size("num_attention_heads", 12)?,
            vocabulary: config.size("vocab_size", 50272)?,
            max_positions: config.size("max_position_embeddings", 2048)?,
            activation: Activation::from_name(
                &format!("{}: activation_function", config.path()),
                &config.text("activation_function", "relu")?,
            )?,
            norm_before,
            final_norm: norm_before && !config.flag("_remove_final_layer_norm", false)?,
            affine: config.flag("layer_norm_elementwise_affine", true)?,
            bias: config.flag("enable_bias", true)?,
            tied: config.flag("tie_word_embeddings", true)?,
            bos_token_id: config.index("bos_token_id", 2)?,
            eos_token_ids: config.token_ids("eos_token_id", 2)?,
        };
        config.check_heads(hidden_size, opt.heads)?;
        let ids = std::iter::once(&opt.bos_token_id).chain(&opt.eos_token_ids);
        config.check_token_ids(ids, opt.vocabulary)?;
        let harmless = ["activation_dropout", "init_std", "use_cache", "_remove_final_layer_norm"];
        config.finish(&[DESCRIPTIVE_KEYS, TRAINING_KEYS, GENERATION_KEYS, &harmless])?;
        Ok(opt)
    }

    /// Writes the graph that [`crate::decoder`] describes. `prefix` is what the tensors' names
    /// start with.
    ///
    /// # Errors
    /// As [`GraphBuilder::weight`].
    pub fn write(&self, g: &mut GraphBuilder<'_>, prefix: &str) -> Result<()> {
        let inputs = Inputs::new(g, Some(self.word_embed_proj_dim));
        let decoder = format!("{prefix}.model.decoder");

        g.set_scope("embeddings");
        let words = self.word_embeddings(g, prefix, &inputs.input_ids)?;
        let front = inputs.picture_embeds.iter();
        let embeds = g.concat(&front.chain([&words]).collect::<Vec<_>>(), 1);
        let count = g.dim(&embeds, 1);
        let heads = Heads::scaled(self.heads, self.hidden_size / self.heads);
        let step = Step::new(g, &inputs, heads, count);
        let mut rows = self.rows(g, &embeds, self.word_embed_proj_dim);
        if self.word_embed_proj_dim != self.hidden_size {
            let name = format!("{decoder}.project_in");
            rows = g.linear(
                &rows,
                LinearWeights {
                    name: &name,
                    input: self.word_embed_proj_dim,
                    output: self.hidden_size,
                    bias: false,
                },
            )?;
        }
        let position = self.position_embeddings(g, &decoder, &step.positions)?;
        rows = g.add(&rows, &position);

        for layer in 0..self.layers {
            g.set_scope(&format!("layers.{layer}"));
            rows = self.layer(g, &format!("{decoder}.layers.{layer}"), layer, &rows, &step)?;
        }

        g.set_scope("head");
        let last = step.last(g, &rows, self.hidden_size);
        let logits = self.head(g, prefix, &last)?;
        let shape = ["batch".into(), Dim::Fixed(self.vocabulary)];
        g.output(&logits, "logits", Type::F32, &shape);
        Ok(())
    }

    fn rows(&self, g: &mut GraphBuilder<'_>, data: &Value, width: usize) -> Value {
        g.reshape(data, &[-1, width as i64])
    }

    /// The name of the matrix that is word embeddings and head in one: the
    /// writer of a checkpoint keeps either.
    fn tied_name(&self, g: &GraphBuilder<'_>, prefix: &str) -> String {
        let words = format!("{prefix}.model.decoder.embed_tokens.weight");
        let head = format!("{prefix}.lm_head.weight");
        if !g.weights().contains(&words) && g.weights().contains(&head) { head } else { words }
    }

    fn word_embeddings(
        &self,
        g: &mut GraphBuilder<'_>,
        prefix: &str,
        ids: &Value,
    ) -> Result<Value> {
        let shape = [self.vocabulary, self.word_embed_proj_dim];
        if self.tied {
            // The head needs the table in float32 in any case: share it.
            let name = self.tied_name(g, prefix);
            let table = g.weight(&name, &shape)?;
            return Ok(g.gather(&table, ids, 0));
        }
        let name = format!("{prefix}.model.decoder.embed_tokens.weight");
        let table = g.stored_weight(&name, &shape)?;
        let words = g.gather(&table, ids, 0);
        Ok(g.cast(&words, Type::F32))
    }

    /// The embedding of each position as rows. Padding may lie behind the
    /// table's end: it takes the last row.
    fn position_embeddings(
        &self,
        g: &mut GraphBuilder<'_>,
        decoder: &str,
        positions: &Value,
    ) -> Result<Value> {
        let name = format!("{decoder}.embed_positions.weight");
        let shape = [self.max_positions + POSITION_OFFSET, self.hidden_size];
        let table = g.stored_weight(&name, &shape)?;
        let offset = g.int(POSITION_OFFSET as i64);
        let end = g.int((self.max_positions + POSITION_OFFSET - 1) as i64);
        let index = g.add(positions, &offset);
        let index = g.node("Min", &[&index, &end], &[]);
        let embeds = g.gather(&table, &index, 0);
        let embeds = g.cast(&embeds, Type::F32);
        Ok(self.rows(g, &embeds, self.hidden_size))
    }

    fn layer(
        &self,
        g: &mut GraphBuilder<'_>,
        prefix: &str,
        layer: usize,
        rows: &Value,
        step: &Step,
    ) -> Result<Value> {
        let name = format!("{prefix}.self_attn_layer_norm");
        let normed = self.norm_if(g, self.norm_before, rows, &name)?;
        let attended = self.attend(g, &format!("{prefix}.self_attn"), layer, &normed, step)?;
        let rows = g.add(rows, &attended);
        let rows = self.norm_if(g, !self.norm_before, &rows, &name)?;

        let name = format!("{prefix}.final_layer_norm");
        let normed = self.norm_if(g, self.norm_before, &rows, &name)?;
        let inside = self.linear(g, &format!("{prefix}.fc1"), &normed, self.ffn_dim)?;
        let inside = g.activation(&inside, self.activation);
        let outside = g.linear(
            &inside,
            LinearWeights {
                name: &format!("{prefix}.fc2"),
                input: self.ffn_dim,
                output: self.hidden_size,
                bias: self.bias,
            },
        )?;
        let rows = g.add(&rows, &outside);
        self.norm_if(g, !self.norm_before, &rows, &name)
    }

    /// Attention of the appended positions to the whole sequence, through the
    /// cache.
    fn attend(
        &self,
        g: &mut GraphBuilder<'_>,
        prefix: &str,
        layer: usize,
        rows: &Value,
        step: &Step,
    ) -> Result<Value> {
        let width = self.hidden_size;
        let mut project = |name: &str| self.linear(g, &format!("{prefix}.{name}"), rows, width);
        let (query, key, value) = (project("q_proj")?, project("k_proj")?, project("v_proj")?);
        let context = step.attend(g, layer, [&query, &key, &value]);
        self.linear(g, &format!("{prefix}.out_proj"), &context, width)
    }

    /// A linear layer from the decoder's width.
    fn linear(
        &self,
        g: &mut GraphBuilder<'_>,
        name: &str,
        rows: &Value,
        output: usize,
    ) -> Result<Value> {
        let layer = LinearWeights { name, input: self.hidden_size, output, bias: self.bias };
        g.linear(rows, layer)
    }

    fn norm_if(
        &self,
        g: &mut GraphBuilder<'_>,
        here: bool,
        rows: &Value,
        name: &str,
    ) -> Result<Value> {
        match (here, self.affine) {
            (false, _) => Ok(rows.clone()),
            (true, true) => g.layer_norm(rows, name, self.hidden_size, EPSILON),
            (true, false) => {
                let ones = g.floats(&[self.hidden_size], &vec![1.0; self.hidden_size])?;
                let attributes =
                    [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(EPSILON))];
                Ok(g.node("LayerNormalization", &[rows, &ones], &attributes))
            }
        }
    }

    /// The last position's hidden state to logits.
    fn head(&self, g: &mut GraphBuilder<'_>, prefix: &str, last: &Value) -> Result<Value> {
        let decoder = format!("{prefix}.model.decoder");
        let mut last =
            self.norm_if(g, self.final_norm, last, &format!("{decoder}.final_layer_norm"))?;
        if self.word_embed_proj_dim != self.hidden_size {
            last = g.linear(
                &last,
                LinearWeights {
                    name: &format!("{decoder}.project_out"),
                    input: self.hidden_size,
                    output: self.word_embed_proj_dim,
                    bias: false,
                },
            )?;
        }
        let name = match self.tied {
            true => self.tied_name(g, prefix),
            false => format!("{prefix}.lm_head.weight"),
        };
        let matrix = g.weight(&name, &[self.vocabulary, self.word_embed_proj_dim])?;
        Ok(g.gemm(&last, &matrix, None))
    }
}
