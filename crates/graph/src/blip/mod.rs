//! BLIP (`transformers/models/blip/modeling_blip.py`): an image encoder, and a
//! text decoder that looks at the picture by cross attention. For questions
//! (`BlipForQuestionAnswering`) a text encoder looks at the picture, and the
//! decoder at the question's states.

mod vision;

use imprompt_error::{Error, Result};
use serde_json::{Map, json};

use crate::bert::Bert;
use crate::builder::{Activation, Dim, Graph, GraphBuilder, LinearWeights, Type, Value};
use crate::captioner::{
    CaptionFacts, CaptionFamily, CaptionGraphs, DECODER_GRAPH, MEMORY_GRAPH, MemoryFacts,
    TextFacts, VISION_GRAPH,
};
use crate::config::{DESCRIPTIVE_KEYS, GENERATION_KEYS, Section, TRAINING_KEYS};
use crate::decoder::{Heads, Inputs, Memory, Step, real_keys};
use crate::weights::WeightIndex;

pub use vision::BlipVision;

/// Of the text decoder's tensors.
const DECODER: &str = "text_decoder.bert";

/// A BLIP as its configuration describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Blip {
    /// The image encoder.
    pub vision: BlipVision,
    /// The text decoder; the question's encoder has the same sizes.
    pub text: Bert,
    /// Whether it answers questions (`BlipForQuestionAnswering`).
    pub answers: bool,
    /// `[DEC]`, what a caption starts with.
    pub bos_token_id: u32,
    /// `[SEP]`, what a caption ends with.
    pub sep_token_id: u32,
}

impl Blip {
    /// The model whose `config.json` is `config`.
    ///
    /// # Errors
    /// `Unsupported` naming a key that this build does not do, `BadModel` naming
    /// one that is malformed.
    pub fn from_config(config: &Section) -> Result<Self> {
        config.only(
            "architectures",
            &[json!(["BlipForConditionalGeneration"]), json!(["BlipForQuestionAnswering"])],
        )?;
        let answers = config
            .get("architectures")
            .is_some_and(|names| *names == json!(["BlipForQuestionAnswering"]));
        let section = |key: &str| -> Result<Section> {
            let empty = || Section::new(&format!("{}: {key}", config.path()), Map::new());
            Ok(config.section(key)?.unwrap_or_else(empty))
        };
        let vision = BlipVision::of_blip(&section("vision_config")?)?;
        let text_config = section("text_config")?;
        text_config.only("model_type", &[json!("blip_text_model")])?;
        text_config.only("is_decoder", &[json!(true)])?;
        let text = Bert::read(
            &text_config,
            &Bert {
                hidden_size: 768,
                intermediate_size: 3072,
                layers: 12,
                heads: 8,
                vocabulary: 30524,
                max_positions: 512,
                activation: Activation::Gelu,
                epsilon: 1e-12,
            },
        )?;
        let blip = Blip {
            bos_token_id: text_config.index("bos_token_id", 30522)?,
            sep_token_id: text_config.index("sep_token_id", 102)?,
            vision,
            text,
            answers,
        };
        let wrong = |what: String| Err(Error::bad_model(format!("{}: {what}", config.path())));
        for id in [blip.bos_token_id, blip.sep_token_id] {
            if id as usize >= blip.text.vocabulary {
                let size = blip.text.vocabulary;
                return wrong(format!("text_config: token id {id} is not below vocab_size {size}"));
            }
        }
        if answers && blip.text.hidden_size != blip.vision.hidden_size {
            return wrong(format!(
                "the question's states are {} wide and the decoder looks at {} as a picture's are",
                blip.text.hidden_size, blip.vision.hidden_size
            ));
        }
        // As in the reference, the width that cross attention takes is the image
        // encoder's, whatever encoder_hidden_size says.
        let overridden = ["encoder_hidden_size", "projection_dim", "use_cache", "label_smoothing"];
        text_config.finish(&[DESCRIPTIVE_KEYS, TRAINING_KEYS, GENERATION_KEYS, &overridden])?;
        let contrastive = [
            "image_text_hidden_size",
            "label_smoothing",
            "logit_scale_init_value",
            "projection_dim",
        ];
        config.finish(&[DESCRIPTIVE_KEYS, GENERATION_KEYS, &contrastive])?;
        Ok(blip)
    }

    /// Its graphs.
    ///
    /// # Errors
    /// `BadModel` naming a tensor that is missing or has another shape,
    /// `Unsupported` naming one whose type is none of F32, F16 and BF16.
    pub fn graphs(&self, weights: &WeightIndex) -> Result<CaptionGraphs> {
        let mut vision = GraphBuilder::new("caption_vision", weights);
        self.vision.write(&mut vision, "vision_model")?;
        let files = vec![
            (VISION_GRAPH, vision.finish()),
            (MEMORY_GRAPH, self.memory(weights)?),
            (DECODER_GRAPH, self.decoder(weights)?),
        ];
        Ok(CaptionGraphs { facts: self.facts(), files })
    }

    fn facts(&self) -> CaptionFacts {
        let picture_positions = self.vision.positions();
        let (memory, text) = match self.answers {
            false => (
                MemoryFacts { picture_positions, holds_text: false, max_text: None },
                TextFacts {
                    first: Some(self.bos_token_id),
                    dropped: 1,
                    absent: vec![self.bos_token_id],
                },
            ),
            true => (
                MemoryFacts {
                    picture_positions: 0,
                    holds_text: true,
                    max_text: Some(self.text.max_positions),
                },
                TextFacts { first: None, dropped: 0, absent: Vec::new() },
            ),
        };
        CaptionFacts {
            family: if self.answers { CaptionFamily::BlipVqa } else { CaptionFamily::Blip },
            image_size: self.vision.image_size,
            picture_positions,
            picture_width: self.vision.hidden_size,
            qformer: false,
            memory: Some(memory),
            text,
            layers: self.text.layers,
            heads: self.text.heads,
            head_dim: self.text.head_dim(),
            vocabulary: self.text.vocabulary,
            max_positions: Some(self.text.max_positions),
            bos_token_id: self.bos_token_id,
            eos_token_ids: vec![self.sep_token_id],
        }
    }

    fn heads(&self) -> Heads {
        Heads::scaled(self.text.heads, self.text.head_dim())
    }

    /// How many positions the memory has, where that is always the same.
    fn memory_length(&self) -> Option<usize> {
        (!self.answers).then(|| self.vision.positions())
    }

    /// Keys and values of every decoder layer's cross attention: of the picture,
    /// or of the question's states.
    fn memory(&self, weights: &WeightIndex) -> Result<Graph> {
        let mut builder = GraphBuilder::new("caption_memory", weights);
        let g = &mut builder;
        let width = self.vision.hidden_size;
        let shape = ["batch".into(), Dim::Fixed(self.vision.positions()), Dim::Fixed(width)];
        let picture = g.input("picture_embeds", Type::F32, &shape);
        let batch = g.dim(&picture, 0);
        let (rows, count) = match self.answers {
            false => (g.reshape(&picture, &[-1, width as i64]), g.dim(&picture, 1)),
            true => self.question(g, &picture)?,
        };
        for layer in 0..self.text.layers {
            g.set_scope(&format!("layer.{layer}"));
            let prefix = format!("{DECODER}.encoder.layer.{layer}.crossattention");
            for side in ["key", "value"] {
                let side_rows = self.text.project(g, &prefix, side, (&rows, width))?;
                let name = format!("{layer}.{side}");
                let sizes = [&batch, &count];
                Memory::write(g, &name, &side_rows, self.heads(), sizes, self.memory_length());
            }
        }
        Ok(builder.finish())
    }

    /// The states of a question that looks at the picture, as rows, and its
    /// number of positions: the inputs `input_ids` `[batch, tokens]` and
    /// `lengths` `[batch]`.
    fn question(&self, g: &mut GraphBuilder<'_>, picture: &Value) -> Result<(Value, Value)> {
        let (width, heads) = (self.text.hidden_size as i64, self.heads());
        let ids = g.input("input_ids", Type::I64, &["batch".into(), "tokens".into()]);
        let lengths = g.input("lengths", Type::I64, &["batch".into()]);
        let count = g.dim(&ids, 1);
        let positions = g.arange(&count);
        let mask = real_keys(g, &positions, &lengths, &count);
        let shape = g.node("Shape", &[&ids], &[]);
        let all_positions = g.expand(&positions, &shape);
        g.set_scope("question");
        let states = self.text.embed(g, "text_encoder.embeddings", &ids, &all_positions)?;
        let mut rows = g.reshape(&states, &[-1, width]);
        let seen = g.reshape(picture, &[-1, self.vision.hidden_size as i64]);
        let batch = g.dim(picture, 0);
        let patches = g.dim(picture, 1);
        for layer in 0..self.text.layers {
            g.set_scope(&format!("question.layer.{layer}"));
            let prefix = format!("text_encoder.encoder.layer.{layer}");
            let name = format!("{prefix}.attention");
            let [query, key, value] = self.text.projections(g, &name, &rows)?;
            let own = [&batch, &count];
            let sides = [(&query, own), (&key, own), (&value, own)];
            let context = heads.attend_rows(g, sides, Some(&mask));
            let inner = (&context, self.text.hidden_size);
            rows = self.text.join(g, &format!("{name}.output"), &rows, inner)?;

            let name = format!("{prefix}.crossattention");
            let width = self.vision.hidden_size;
            let query = self.text.project(g, &name, "query", (&rows, self.text.hidden_size))?;
            let key = self.text.project(g, &name, "key", (&seen, width))?;
            let value = self.text.project(g, &name, "value", (&seen, width))?;
            let other = [&batch, &patches];
            let sides = [(&query, own), (&key, other), (&value, other)];
            let context = heads.attend_rows(g, sides, None);
            let inner = (&context, self.text.hidden_size);
            rows = self.text.join(g, &format!("{name}.output"), &rows, inner)?;
            rows = self.text.feed_forward(g, &prefix, &rows)?;
        }
        Ok((rows, count))
    }

    fn decoder(&self, weights: &WeightIndex) -> Result<Graph> {
        let mut builder = GraphBuilder::new("caption_decoder", weights);
        let g = &mut builder;
        let width = self.text.hidden_size;
        let inputs = Inputs::new(g, None);
        g.set_scope("embeddings");
        let count = g.dim(&inputs.input_ids, 1);
        let step = Step::new(g, &inputs, self.heads(), count);
        let memory = match self.memory_length() {
            Some(length) => Memory::of_length(length),
            None => Memory::of_text(g, &step),
        };
        let name = format!("{DECODER}.embeddings");
        let states = self.text.embed(g, &name, &inputs.input_ids, &step.positions)?;
        let mut rows = g.reshape(&states, &[-1, width as i64]);
        for layer in 0..self.text.layers {
            g.set_scope(&format!("layer.{layer}"));
            let prefix = format!("{DECODER}.encoder.layer.{layer}");
            let name = format!("{prefix}.attention");
            let [query, key, value] = self.text.projections(g, &name, &rows)?;
            let context = step.attend(g, layer, [&query, &key, &value]);
            rows = self.text.join(g, &format!("{name}.output"), &rows, (&context, width))?;

            let name = format!("{prefix}.crossattention");
            let query = self.text.project(g, &name, "query", (&rows, width))?;
            let context = step.attend_memory(g, layer, &query, &memory);
            rows = self.text.join(g, &format!("{name}.output"), &rows, (&context, width))?;
            rows = self.text.feed_forward(g, &prefix, &rows)?;
        }
        g.set_scope("head");
        let last = step.last(g, &rows, width);
        let logits = self.head(g, &last)?;
        let shape = ["batch".into(), Dim::Fixed(self.text.vocabulary)];
        g.output(&logits, "logits", Type::F32, &shape);
        Ok(builder.finish())
    }

    /// `BlipTextOnlyMLMHead`. Its matrix may be stored as the word embeddings
    /// alone, its bias under either of two names.
    fn head(&self, g: &mut GraphBuilder<'_>, last: &Value) -> Result<Value> {
        let width = self.text.hidden_size;
        let prefix = "text_decoder.cls.predictions";
        let name = format!("{prefix}.transform.dense");
        let dense = LinearWeights { name: &name, input: width, output: width, bias: true };
        let hidden = g.linear(last, dense)?;
        let hidden = g.activation(&hidden, self.text.activation);
        let name = format!("{prefix}.transform.LayerNorm");
        let hidden = g.layer_norm(&hidden, &name, width, self.text.epsilon)?;
        let stored = |g: &GraphBuilder<'_>, name: String, other: String| {
            if g.weights().contains(&name) { name } else { other }
        };
        let words = format!("{DECODER}.embeddings.word_embeddings.weight");
        let matrix = stored(g, format!("{prefix}.decoder.weight"), words);
        let matrix = g.weight(&matrix, &[self.text.vocabulary, width])?;
        let bias = stored(g, format!("{prefix}.bias"), format!("{prefix}.decoder.bias"));
        let bias = g.weight(&bias, &[self.text.vocabulary])?;
        Ok(g.gemm(&hidden, &matrix, Some(&bias)))
    }
}
