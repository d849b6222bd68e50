//! T5 (`transformers/models/t5/modeling_t5.py`) as the language model of
//! BLIP-2: an encoder that reads a picture's embeddings and a text, and a
//! decoder that looks at its states by cross attention.
//!
//! Attention has no positions but a bias for each head and distance, and its
//! scores are not scaled.

use imprompt_error::{Error, Result};
use serde_json::json;

use crate::builder::{Activation, Attribute, Dim, GraphBuilder, LinearWeights, Type, Value};
use crate::config::{DESCRIPTIVE_KEYS, GENERATION_KEYS, Section, TRAINING_KEYS};
use crate::decoder::{Heads, Inputs, Memory, Step, real_keys};

/// T5 as `text_config` describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct T5 {
    /// Width of a token's state.
    pub d_model: usize,
    /// Width of a head.
    pub d_kv: usize,
    /// Width inside the feed-forward part.
    pub d_ff: usize,
    /// Layers of the encoder.
    pub encoder_layers: usize,
    /// Layers of the decoder.
    pub decoder_layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Biases that the distances share.
    pub buckets: usize,
    /// From this distance on all share one.
    pub max_distance: usize,
    /// The feed-forward part's activation.
    pub activation: Activation,
    /// Whether a second matrix gates it.
    pub gated: bool,
    /// What the mean square of every norm is raised by.
    pub epsilon: f32,
    /// Whether the head's matrix is the word embeddings.
    pub tied: bool,
    /// The text that the reference reads where there is none.
    pub bos_token_id: Option<u32>,
    /// What the decoder starts with.
    pub decoder_start_token_id: u32,
    /// An answer ends with any of these.
    pub eos_token_ids: Vec<u32>,
}

impl T5 {
    /// `text_config`, with transformers 4.33's defaults.
    ///
    /// # Errors
    /// `Unsupported` naming a key that this build does not do, `BadModel` naming
    /// one that is malformed.
    pub fn from_config(config: &Section) -> Result<Self> {
        config.only("model_type", &[json!("t5")])?;
        let layers = config.size("num_layers", 6)?;
        let projection = config.text("feed_forward_proj", "relu")?;
        let (gated, name) = match projection.strip_prefix("gated-") {
            Some(name) => (true, name),
            None => (false, projection.as_str()),
        };
        // The reference's own exception, for checkpoints of before.
        let name = if projection == "gated-gelu" { "gelu_new" } else { name };
        let wrong = |what: String| Error::bad_model(format!("{}: {what}", config.path()));
        let optional = |key: &str| -> Result<Option<u32>> {
            config.get(key).map(|_| config.index(key, 0)).transpose()
        };
        let bos_token_id = optional("bos_token_id")?;
        let decoder_start = optional("decoder_start_token_id")?.or(bos_token_id);
        let t5 = T5 {
            d_model: config.size("d_model", 512)?,
            d_kv: config.size("d_kv", 64)?,
            d_ff: config.size("d_ff", 2048)?,
            encoder_layers: layers,
            decoder_layers: config.size("num_decoder_layers", layers)?,
            heads: config.size("num_heads", 8)?,
            vocabulary: config.size("vocab_size", 32128)?,
            buckets: config.size("relative_attention_num_buckets", 32)?,
            max_distance: config.size("relative_attention_max_distance", 128)?,
            activation: Activation::from_name(
                &format!("{}: feed_forward_proj", config.path()),
                name,
            )?,
            gated,
            epsilon: config.number("layer_norm_epsilon", 1e-6)? as f32,
            tied: config.flag("tie_word_embeddings", true)?,
            bos_token_id,
            decoder_start_token_id: decoder_start
                .ok_or_else(|| wrong("decoder_start_token_id is missing".to_owned()))?,
            eos_token_ids: config.token_ids("eos_token_id", 1)?,
        };
        if t5.buckets < 4 || t5.max_distance <= t5.buckets / 2 {
            return Err(wrong(format!(
                "relative_attention_num_buckets {} (at least 4) and relative_attention_max_distance \
                 {} (more than half of it) do not go together",
                t5.buckets, t5.max_distance
            )));
        }
        let ids = t5.bos_token_id.iter().chain(&t5.eos_token_ids);
        config.check_token_ids(ids.chain([&t5.decoder_start_token_id]), t5.vocabulary)?;
        let harmless = [
            "classifier_dropout",
            // Both follow from feed_forward_proj.
            "dense_act_fn",
            "is_gated_act",
            "dropout_rate",
            "n_positions",
            "output_past",
            "use_cache",
        ];
        config.finish(&[DESCRIPTIVE_KEYS, TRAINING_KEYS, GENERATION_KEYS, &harmless])?;
        Ok(t5)
    }

    /// Heads, whose scores are not scaled.
    fn heads(&self) -> Heads {
        Heads { count: self.heads, width: self.d_kv, is_scaled: false }
    }

    /// Writes the memory graph: the encoder over `picture_embeds` f32
    /// `[batch, picture_positions, d_model]` and behind them `input_ids` i64
    /// `[batch, tokens]`, of which `lengths` `[batch]` are real, and the keys and
    /// values of its states for every layer of the decoder.
    ///
    /// # Errors
    /// As [`GraphBuilder::weight`].
    pub(crate) fn write_memory(
        &self,
        g: &mut GraphBuilder<'_>,
        prefix: &str,
        picture_positions: usize,
    ) -> Result<()> {
        let width = Dim::Fixed(self.d_model);
        let shape = ["batch".into(), Dim::Fixed(picture_positions), width];
        let picture = g.input("picture_embeds", Type::F32, &shape);
        let ids = g.input("input_ids", Type::I64, &["batch".into(), "tokens".into()]);
        let lengths = g.input("lengths", Type::I64, &["batch".into()]);
        g.set_scope("embeddings");
        let words = self.words(g, prefix, &ids)?;
        let states = g.concat(&[&picture, &words], 1);
        let (batch, count) = (g.dim(&states, 0), g.dim(&states, 1));
        let mut rows = g.reshape(&states, &[-1, self.d_model as i64]);

        g.set_scope("mask");
        let positions = g.arange(&count);
        let ahead = g.int(picture_positions as i64);
        let ends = g.add(&lengths, &ahead);
        let real = real_keys(g, &positions, &ends, &count);
        let queries = g.unsqueeze(&positions, &[1]);
        let offsets = g.sub(&positions, &queries);
        let offsets = g.unsqueeze(&offsets, &[0]);
        let bias = self.bias(g, &format!("{prefix}.encoder"), &offsets, true)?;
        let lowest = g.lowest();
        let mask = g.select(&real, &bias, &lowest);
        for layer in 0..self.encoder_layers {
            g.set_scope(&format!("encoder.{layer}"));
            let block = format!("{prefix}.encoder.block.{layer}");
            let attention = format!("{block}.layer.0.SelfAttention");
            let [query, key, value] = self.projections(g, &block, &rows)?;
            let sides = [&query, &key, &value].map(|side| (side, [&batch, &count]));
            let context = self.heads().attend_rows(g, sides, Some(&mask));
            rows = self.out(g, &attention, &rows, &context)?;
            rows = self.feed_forward(g, &format!("{block}.layer.1"), &rows)?;
        }
        let states = self.norm(g, &format!("{prefix}.encoder.final_layer_norm"), &rows)?;
        for layer in 0..self.decoder_layers {
            g.set_scope(&format!("memory.{layer}"));
            let name = format!("{prefix}.decoder.block.{layer}.layer.1.EncDecAttention");
            for (side, part) in [("key", "k"), ("value", "v")] {
                let side_rows = self.project(g, &name, part, &states)?;
                let sizes = [&batch, &count];
                Memory::write(g, &format!("{layer}.{side}"), &side_rows, self.heads(), sizes, None);
            }
        }
        Ok(())
    }

    /// Writes the decoder graph, as [`crate::decoder`] describes it.
    ///
    /// # Errors
    /// As [`GraphBuilder::weight`].
    pub(crate) fn write_decoder(&self, g: &mut GraphBuilder<'_>, prefix: &str) -> Result<()> {
        let inputs = Inputs::new(g, None);
        g.set_scope("embeddings");
        let count = g.dim(&inputs.input_ids, 1);
        let mut step = Step::new(g, &inputs, self.heads(), count);
        let memory = Memory::of_text(g, &step);
        let offsets = step.offsets(g);
        let bias = self.bias(g, &format!("{prefix}.decoder"), &offsets, false)?;
        step.add_bias(g, &bias);
        let words = self.words(g, prefix, &inputs.input_ids)?;
        let mut rows = g.reshape(&words, &[-1, self.d_model as i64]);
        for layer in 0..self.decoder_layers {
            g.set_scope(&format!("decoder.{layer}"));
            let block = format!("{prefix}.decoder.block.{layer}");
            let attention = format!("{block}.layer.0.SelfAttention");
            let [query, key, value] = self.projections(g, &block, &rows)?;
            let context = step.attend(g, layer, [&query, &key, &value]);
            rows = self.out(g, &attention, &rows, &context)?;

            let name = format!("{block}.layer.1");
            let normed = self.norm(g, &format!("{name}.layer_norm"), &rows)?;
            let attention = format!("{name}.EncDecAttention");
            let query = self.project(g, &attention, "q", &normed)?;
            let context = step.attend_memory(g, layer, &query, &memory);
            rows = self.out(g, &attention, &rows, &context)?;
            rows = self.feed_forward(g, &format!("{block}.layer.2"), &rows)?;
        }
        g.set_scope("head");
        let last = step.last(g, &rows, self.d_model);
        let mut last = self.norm(g, &format!("{prefix}.decoder.final_layer_norm"), &last)?;
        let shape = [self.vocabulary, self.d_model];
        let name = match self.tied {
            true => {
                let factor = g.float((self.d_model as f64).powf(-0.5) as f32);
                last = g.mul(&last, &factor);
                format!("{prefix}.shared.weight")
            }
            false => format!("{prefix}.lm_head.weight"),
        };
        let matrix = g.weight(&name, &shape)?;
        let logits = g.gemm(&last, &matrix, None);
        let shape = ["batch".into(), Dim::Fixed(self.vocabulary)];
        g.output(&logits, "logits", Type::F32, &shape);
        Ok(())
    }

    fn words(&self, g: &mut GraphBuilder<'_>, prefix: &str, ids: &Value) -> Result<Value> {
        let table =
            g.stored_weight(&format!("{prefix}.shared.weight"), &[self.vocabulary, self.d_model])?;
        let words = g.gather(&table, ids, 0);
        Ok(g.cast(&words, Type::F32))
    }

    /// The biases of scores whose keys stand `offsets` (`[n, queries, keys]`)
    /// after their queries: `[n, heads, queries, keys]`.
    fn bias(
        &self,
        g: &mut GraphBuilder<'_>,
        stack: &str,
        offsets: &Value,
        both_sides: bool,
    ) -> Result<Value> {
        let name = format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        let table = g.weight(&name, &[self.buckets, self.heads])?;
        let furthest = self.max_distance as i64;
        let rows: Vec<i64> = (-furthest..=furthest)
            .map(|offset| bucket(offset, both_sides, self.buckets, self.max_distance))
            .collect();
        let rows = g.ints(&rows);
        let by_offset = g.gather(&table, &rows, 0);
        let (first, last) = (g.int(-furthest), g.int(furthest));
        let offsets = g.node("Clip", &[offsets, &first, &last], &[]);
        let index = g.sub(&offsets, &first);
        let bias = g.gather(&by_offset, &index, 0);
        Ok(g.transpose(&bias, &[0, 3, 1, 2]))
    }

    /// `T5LayerNorm`: rows over the root of their mean square.
    fn norm(&self, g: &mut GraphBuilder<'_>, name: &str, rows: &Value) -> Result<Value> {
        let weight = g.weight(&format!("{name}.weight"), &[self.d_model])?;
        let square = g.mul(rows, rows);
        let axes = g.ints(&[-1]);
        let mean = g.node("ReduceMean", &[&square, &axes], &[("keepdims", Attribute::Int(1))]);
        let epsilon = g.float(self.epsilon);
        let raised = g.add(&mean, &epsilon);
        let root = g.node("Sqrt", &[&raised], &[]);
        let normed = g.div(rows, &root);
        Ok(g.mul(&weight, &normed))
    }

    /// Queries, keys and values of the self attention of `block`.
    fn projections(
        &self,
        g: &mut GraphBuilder<'_>,
        block: &str,
        rows: &Value,
    ) -> Result<[Value; 3]> {
        let name = format!("{block}.layer.0");
        let normed = self.norm(g, &format!("{name}.layer_norm"), rows)?;
        let mut one = |part| self.project(g, &format!("{name}.SelfAttention"), part, &normed);
        Ok([one("q")?, one("k")?, one("v")?])
    }

    fn project(
        &self,
        g: &mut GraphBuilder<'_>,
        attention: &str,
        part: &str,
        rows: &Value,
    ) -> Result<Value> {
        let name = format!("{attention}.{part}");
        let (input, output) = (self.d_model, self.heads * self.d_kv);
        g.linear(rows, LinearWeights { name: &name, input, output, bias: false })
    }

    /// The states after an attention that saw `context`.
    fn out(
        &self,
        g: &mut GraphBuilder<'_>,
        attention: &str,
        rows: &Value,
        context: &Value,
    ) -> Result<Value> {
        let name = format!("{attention}.o");
        let (input, output) = (self.heads * self.d_kv, self.d_model);
        let out = g.linear(context, LinearWeights { name: &name, input, output, bias: false })?;
        Ok(g.add(rows, &out))
    }

    fn feed_forward(&self, g: &mut GraphBuilder<'_>, layer: &str, rows: &Value) -> Result<Value> {
        let normed = self.norm(g, &format!("{layer}.layer_norm"), rows)?;
        let linear = |g: &mut GraphBuilder<'_>, part: &str, rows: &Value, sizes: (usize, usize)| {
            let name = format!("{layer}.DenseReluDense.{part}");
            let (input, output) = sizes;
            g.linear(rows, LinearWeights { name: &name, input, output, bias: false })
        };
        let inward = (self.d_model, self.d_ff);
        let inside = match self.gated {
            false => {
                let inside = linear(g, "wi", &normed, inward)?;
                g.activation(&inside, self.activation)
            }
            true => {
                let gate = linear(g, "wi_0", &normed, inward)?;
                let gate = g.activation(&gate, self.activation);
                let inside = linear(g, "wi_1", &normed, inward)?;
                g.mul(&gate, &inside)
            }
        };
        let outside = linear(g, "wo", &inside, (self.d_ff, self.d_model))?;
        Ok(g.add(rows, &outside))
    }
}

/// `T5Attention._relative_position_bucket`: the bias that a key has which stands
/// `offset` after its query. Float32, as there.
fn bucket(offset: i64, both_sides: bool, buckets: usize, max_distance: usize) -> i64 {
    let (buckets, first, distance) = match both_sides {
        true => (buckets / 2, if offset > 0 { buckets / 2 } else { 0 }, offset.unsigned_abs()),
        false => (buckets, 0, (-offset).max(0) as u64),
    };
    let exact = buckets / 2;
    if distance < exact as u64 {
        return first as i64 + distance as i64;
    }
    let span = (max_distance as f64 / exact as f64).ln() as f32;
    let further = (distance as f32 / exact as f32).ln() / span * (buckets - exact) as f32;
    first as i64 + (exact as i64 + further as i64).min(buckets as i64 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the reference gives for distances 0 to two beyond the furthest, or for
    /// offsets from two beyond it on the left to two beyond it on the right, as
    /// (bucket, how often) runs.
    #[test]
    fn buckets_are_the_references() {
        // Buckets, the furthest distance, whether both sides count, and the runs.
        type Expected = (usize, usize, bool, Vec<(i64, usize)>);
        let expected: Vec<Expected> = vec![
            (
                32,
                128,
                false,
                vec![
                    (0, 1),
                    (1, 1),
                    (2, 1),
                    (3, 1),
                    (4, 1),
                    (5, 1),
                    (6, 1),
                    (7, 1),
                    (8, 1),
                    (9, 1),
                    (10, 1),
                    (11, 1),
                    (12, 1),
                    (13, 1),
                    (14, 1),
                    (15, 1),
                    (16, 3),
                    (17, 2),
                    (18, 3),
                    (19, 3),
                    (20, 4),
                    (21, 4),
                    (22, 5),
                    (23, 6),
                    (24, 6),
                    (25, 7),
                    (26, 8),
                    (27, 10),
                    (28, 10),
                    (29, 12),
                    (30, 14),
                    (31, 18),
                ],
            ),
            (
                32,
                128,
                true,
                vec![
                    (15, 40),
                    (14, 27),
                    (13, 18),
                    (12, 14),
                    (11, 9),
                    (10, 7),
                    (9, 4),
                    (8, 4),
                    (7, 1),
                    (6, 1),
                    (5, 1),
                    (4, 1),
                    (3, 1),
                    (2, 1),
                    (1, 1),
                    (0, 1),
                    (17, 1),
                    (18, 1),
                    (19, 1),
                    (20, 1),
                    (21, 1),
                    (22, 1),
                    (23, 1),
                    (24, 4),
                    (25, 4),
                    (26, 7),
                    (27, 9),
                    (28, 14),
                    (29, 18),
                    (30, 27),
                    (31, 40),
                ],
            ),
            (8, 20, false, vec![(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (5, 3), (6, 5), (7, 9)]),
            (8, 20, true, vec![(3, 16), (2, 5), (1, 1), (0, 1), (5, 1), (6, 5), (7, 16)]),
            (6, 16, false, vec![(0, 1), (1, 1), (2, 1), (3, 3), (4, 4), (5, 9)]),
            (6, 16, true, vec![(2, 15), (1, 3), (0, 1), (4, 3), (5, 15)]),
            (
                10,
                40,
                false,
                vec![
                    (0, 1),
                    (1, 1),
                    (2, 1),
                    (3, 1),
                    (4, 1),
                    (5, 3),
                    (6, 4),
                    (7, 6),
                    (8, 9),
                    (9, 16),
                ],
            ),
            (
                10,
                40,
                true,
                vec![(4, 28), (3, 9), (2, 4), (1, 1), (0, 1), (6, 1), (7, 4), (8, 9), (9, 28)],
            ),
        ];
        for (buckets, furthest, both_sides, runs) in expected {
            let last = furthest as i64 + 2;
            let offsets: Vec<i64> = match both_sides {
                true => (-last..=last).collect(),
                false => (0..=last).map(|distance| -distance).collect(),
            };
            let found: Vec<i64> = offsets
                .into_iter()
                .map(|offset| bucket(offset, both_sides, buckets, furthest))
                .collect();
            let expected: Vec<i64> =
                runs.iter().flat_map(|(bucket, times)| vec![*bucket; *times]).collect();
            assert_eq!(found, expected, "{buckets} {furthest} {both_sides}");
        }
    }
}
