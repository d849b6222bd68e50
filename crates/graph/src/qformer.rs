//! The Q-Former of BLIP-2 (`Blip2QFormerModel`): learned queries that attend to
//! one another and, in some layers, to the picture. That of InstructBLIP
//! (`InstructBlipQFormerModel`) reads a text besides, to which they attend, too.

use imprompt_error::Result;
use serde_json::json;

use crate::builder::{Activation, AttentionHeads, Dim, GraphBuilder, LinearWeights, Type, Value};
use crate::config::{DESCRIPTIVE_KEYS, GENERATION_KEYS, Section, TRAINING_KEYS};
use crate::decoder::real_keys;

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
    /// The text that it reads.
    pub text: Option<QFormerText>,
}

/// The text half of a Q-Former.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QFormerText {
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Positions that have an embedding.
    pub max_positions: usize,
}

/// What [`QFormer::write`] carries from layer to layer.
struct States {
    /// Rows `[batch * query_tokens, hidden_size]`.
    queries: Value,
    text: Option<TextStates>,
}

/// The text half of [`States`].
struct TextStates {
    /// Rows `[batch * tokens, hidden_size]`.
    rows: Value,
    /// The batch, and the positions of queries and text together: `[1]` each.
    batch: Value,
    count: Value,
    /// Which of the keys are real, for all positions and for the queries alone.
    masks: [Value; 2],
}

impl QFormer {
    /// BLIP-2's `qformer_config`, with transformers 4.33's defaults. As there,
    /// the width of the picture's embeddings is the image encoder's, whatever
    /// `encoder_hidden_size` says.
    ///
    /// # Errors
    /// `Unsupported` naming a key that this build does not do, `BadModel` naming
    /// one that is malformed.
    pub fn of_blip2(
        config: &Section,
        query_tokens: usize,
        encoder_hidden_size: usize,
    ) -> Result<Self> {
        config.only("model_type", &[json!("blip_2_qformer")])?;
        config.only("use_qformer_text_input", &[json!(false)])?;
        Self::from_config(config, query_tokens, encoder_hidden_size, None)
    }

    /// InstructBLIP's `qformer_config`.
    ///
    /// # Errors
    /// As [`Self::of_blip2`].
    pub fn of_instruct_blip(
        config: &Section,
        query_tokens: usize,
        encoder_hidden_size: usize,
    ) -> Result<Self> {
        config.only("model_type", &[json!("instructblip_qformer")])?;
        config.only("use_qformer_text_input", &[json!(true)])?;
        let text = QFormerText {
            vocabulary: config.size("vocab_size", 30522)?,
            max_positions: config.size("max_position_embeddings", 512)?,
        };
        Self::from_config(config, query_tokens, encoder_hidden_size, Some(text))
    }

    fn from_config(
        config: &Section,
        query_tokens: usize,
        encoder_hidden_size: usize,
        text: Option<QFormerText>,
    ) -> Result<Self> {
        config.only("position_embedding_type", &[json!("absolute")])?;
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
            text,
        };
        config.check_heads(qformer.hidden_size, qformer.heads)?;
        let harmless = [
            "classifier_dropout",
            "encoder_hidden_size",
            "use_cache",
            // Of the text half, which takes no part in BLIP-2's captions.
            "max_position_embeddings",
            "vocab_size",
        ];
        config.finish(&[DESCRIPTIVE_KEYS, TRAINING_KEYS, GENERATION_KEYS, &harmless])?;
        Ok(qformer)
    }

    /// Writes the graph: `image_embeds` f32 `[batch, patches, encoder_hidden_size]`
    /// and, where it reads a text, `qformer_input_ids` i64 `[batch, tokens]`
    /// (padded on the right with any id), of which `qformer_lengths` i64 `[batch]`
    /// are real, to `query_embeds` f32 `[batch, query_tokens, output]`, after
    /// `language_projection`.
    ///
    /// # Errors
    /// As [`GraphBuilder::weight`].
    pub fn write(&self, g: &mut GraphBuilder<'_>, output: usize) -> Result<()> {
        let (width, queries) = (self.hidden_size, self.query_tokens);
        let encoder_width = Dim::Fixed(self.encoder_hidden_size);
        let picture =
            g.input("image_embeds", Type::F32, &["batch".into(), "patches".into(), encoder_width]);
        let norm = match self.text {
            None => "qformer.layernorm",
            Some(_) => "qformer.embeddings.layernorm",
        };
        g.set_scope("queries");
        let tokens = g.weight("query_tokens", &[1, queries, width])?;
        let tokens = g.reshape(&tokens, &[-1, width as i64]);
        let rows = g.layer_norm(&tokens, norm, width, self.epsilon)?;
        let mut states = match &self.text {
            None => States { queries: rows, text: None },
            Some(text) => {
                let queries = self.repeat(g, &rows, &picture);
                States { queries, text: Some(self.read(g, text, norm)?) }
            }
        };
        for layer in 0..self.layers {
            g.set_scope(&format!("layer.{layer}"));
            let prefix = format!("qformer.encoder.layer.{layer}");
            let is_last = layer + 1 == self.layers;
            let name = format!("{prefix}.attention");
            states.queries = match &mut states.text {
                None => self.attend_to_queries(g, &name, &states.queries)?,
                Some(text) => self.attend_to_text(g, &name, &states.queries, text, is_last)?,
            };
            if layer == 0 && states.text.is_none() {
                // Up to here nothing depends on the picture: it is computed
                // once, when the graph is loaded.
                states.queries = self.repeat(g, &states.queries, &picture);
            }
            if layer % self.cross_attention_frequency == 0 {
                let name = format!("{prefix}.crossattention");
                states.queries = self.attend_to_picture(g, &name, &states.queries, &picture)?;
            }
            states.queries = self.feed_forward(g, &prefix, "_query", &states.queries)?;
            if let Some(text) = states.text.as_mut().filter(|_| !is_last) {
                text.rows = self.feed_forward(g, &prefix, "", &text.rows)?;
            }
        }
        g.set_scope("language_projection");
        let projection =
            LinearWeights { name: "language_projection", input: width, output, bias: true };
        let embeds = g.linear(&states.queries, projection)?;
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

    /// The inputs of a text, embedded and normalised by `norm`.
    fn read(&self, g: &mut GraphBuilder<'_>, text: &QFormerText, norm: &str) -> Result<TextStates> {
        let width = self.hidden_size;
        let ids = g.input("qformer_input_ids", Type::I64, &["batch".into(), "tokens".into()]);
        let lengths = g.input("qformer_lengths", Type::I64, &["batch".into()]);
        g.set_scope("text");
        let table = "qformer.embeddings.word_embeddings.weight";
        let table = g.stored_weight(table, &[text.vocabulary, width])?;
        let words = g.gather(&table, &ids, 0);
        let words = g.cast(&words, Type::F32);
        let (batch, tokens) = (g.dim(&ids, 0), g.dim(&ids, 1));
        let table = "qformer.embeddings.position_embeddings.weight";
        let table = g.weight(table, &[text.max_positions, width])?;
        let start = g.ints(&[0]);
        let places = g.slice(&table, &start, &tokens, 0);
        let sum = g.add(&words, &places);
        let normed = g.layer_norm(&sum, norm, width, self.epsilon)?;
        let rows = g.reshape(&normed, &[-1, width as i64]);
        let (before, queries) =
            (g.int(self.query_tokens as i64), g.ints(&[self.query_tokens as i64]));
        let count = g.add(&tokens, &queries);
        let positions = g.arange(&count);
        let ends = g.add(&lengths, &before);
        let masks = [&count, &queries].map(|asking| real_keys(g, &positions, &ends, asking));
        Ok(TextStates { rows, batch, count, masks })
    }

    /// Attention among the queries alone.
    fn attend_to_queries(
        &self,
        g: &mut GraphBuilder<'_>,
        prefix: &str,
        rows: &Value,
    ) -> Result<Value> {
        let mut project = |part: &str| {
            let name = format!("{prefix}.attention.{part}");
            let side = self.projected(g, &name, rows, self.hidden_size)?;
            Ok(g.reshape(&side, &[-1, self.query_tokens as i64, self.hidden_size as i64]))
        };
        let sides = [project("query")?, project("key")?, project("value")?];
        self.attended(g, prefix, rows, &sides, None)
    }

    /// Attention among the queries and `text`, whose states it changes; in the
    /// last layer, behind which nothing reads the text, of the queries alone.
    fn attend_to_text(
        &self,
        g: &mut GraphBuilder<'_>,
        prefix: &str,
        queries: &Value,
        text: &mut TextStates,
        is_last: bool,
    ) -> Result<Value> {
        let (width, query_tokens) = (self.hidden_size as i64, self.query_tokens as i64);
        // Rows as `[batch, count, hidden_size]`.
        let parted = |g: &mut GraphBuilder<'_>, rows: &Value, count: &Value| {
            let width = g.ints(&[width]);
            let shape = g.concat(&[&text.batch, count, &width], 0);
            g.reshape_to(rows, &shape)
        };
        let (query_count, rest) = (g.ints(&[query_tokens]), g.ints(&[-1]));
        let (first, second) = (parted(g, queries, &query_count), parted(g, &text.rows, &rest));
        let all = g.concat(&[&first, &second], 1);
        let all = g.reshape(&all, &[-1, width]);
        let (asking, count, mask) = match is_last {
            true => (queries, &query_count, &text.masks[1]),
            false => (&all, &text.count, &text.masks[0]),
        };
        let mut project = |part: &str, rows: &Value, count: &Value| {
            let name = format!("{prefix}.attention.{part}");
            let side = self.projected(g, &name, rows, self.hidden_size)?;
            Ok(parted(g, &side, count))
        };
        let sides = [
            project("query", asking, count)?,
            project("key", &all, &text.count)?,
            project("value", &all, &text.count)?,
        ];
        let rows = self.attended(g, prefix, asking, &sides, Some(mask))?;
        if is_last {
            return Ok(rows);
        }
        let rows = parted(g, &rows, count);
        let mut part = |start: i64, end: i64| {
            let part = g.slice_fixed(&rows, start, end, 1);
            g.reshape(&part, &[-1, width])
        };
        let queries = part(0, query_tokens);
        text.rows = part(query_tokens, i64::MAX);
        Ok(queries)
    }

    /// Attention of the queries towards the picture.
    fn attend_to_picture(
        &self,
        g: &mut GraphBuilder<'_>,
        prefix: &str,
        rows: &Value,
        picture: &Value,
    ) -> Result<Value> {
        let (width, input) = (self.hidden_size, self.encoder_hidden_size);
        let query = self.projected(g, &format!("{prefix}.attention.query"), rows, width)?;
        let query = g.reshape(&query, &[-1, self.query_tokens as i64, width as i64]);
        let seen = g.reshape(picture, &[-1, input as i64]);
        let mut project = |part: &str| {
            let name = format!("{prefix}.attention.{part}");
            let side = self.projected(g, &name, &seen, input)?;
            let (batch, patches) = (g.dim(picture, 0), g.dim(picture, 1));
            let width = g.ints(&[width as i64]);
            let shape = g.concat(&[&batch, &patches, &width], 0);
            Ok(g.reshape_to(&side, &shape))
        };
        let sides = [query, project("key")?, project("value")?];
        self.attended(g, prefix, rows, &sides, None)
    }

    /// `rows` after an attention of `sides` (queries, keys, values, each
    /// `[batch, positions, hidden_size]`) with its output layer.
    fn attended(
        &self,
        g: &mut GraphBuilder<'_>,
        prefix: &str,
        rows: &Value,
        [query, key, value]: &[Value; 3],
        mask: Option<&Value>,
    ) -> Result<Value> {
        let width = self.hidden_size;
        let heads = AttentionHeads { heads: self.heads, head_dim: width / self.heads };
        let context = g.attention([query, key, value], mask, heads);
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

    /// The feed-forward part of the queries (`half` is `_query`) or of the text.
    fn feed_forward(
        &self,
        g: &mut GraphBuilder<'_>,
        prefix: &str,
        half: &str,
        rows: &Value,
    ) -> Result<Value> {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let name = format!("{prefix}.intermediate{half}.dense");
        let inside = LinearWeights { name: &name, input: width, output: inner, bias: true };
        let inside = g.linear(rows, inside)?;
        let inside = g.activation(&inside, self.activation);
        let name = format!("{prefix}.output{half}.dense");
        let outside = LinearWeights { name: &name, input: inner, output: width, bias: true };
        let outside = g.linear(&inside, outside)?;
        let sum = g.add(&outside, rows);
        g.layer_norm(&sum, &format!("{prefix}.output{half}.LayerNorm"), width, self.epsilon)
    }
}
