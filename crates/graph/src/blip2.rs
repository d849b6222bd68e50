//! BLIP-2 (`transformers/models/blip_2/modeling_blip_2.py`): an image encoder,
//! a Q-Former whose queries look at the picture, and a language model that
//! reads the queries as if they were words. InstructBLIP
//! (`models/instructblip/modeling_instructblip.py`) is the same with a Q-Former
//! that reads the text, too.

use imprompt_error::{Error, Result};
use serde_json::json;

use crate::blip::BlipVision;
use crate::builder::GraphBuilder;
use crate::captioner::{
    CaptionFacts, CaptionFamily, CaptionGraphs, DECODER_GRAPH, MEMORY_GRAPH, MemoryFacts,
    QFORMER_GRAPH, QFormerTextFacts, TextFacts, VISION_GRAPH,
};
use crate::config::{DESCRIPTIVE_KEYS, GENERATION_KEYS, Section};
use crate::generation::GenerationFacts;
use crate::opt::Opt;
use crate::qformer::QFormer;
use crate::t5::T5;
use crate::weights::WeightIndex;

/// What the names of the language model's tensors start with.
const LANGUAGE_MODEL: &str = "language_model";

/// A BLIP-2 or InstructBLIP model as its configuration describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Blip2 {
    /// The image encoder.
    pub vision: BlipVision,
    /// The Q-Former.
    pub qformer: QFormer,
    /// The language model.
    pub text: LanguageModel,
    /// How it generates by default.
    pub generation: GenerationFacts,
}

/// The language models that a BLIP-2 has; InstructBLIP has T5 alone.
#[derive(Clone, Debug, PartialEq)]
pub enum LanguageModel {
    /// A decoder that reads the queries in front of the words.
    Opt(Opt),
    /// An encoder that reads them, and a decoder that answers.
    T5(T5),
}

impl LanguageModel {
    /// Width of a word's embedding.
    fn width(&self) -> usize {
        match self {
            LanguageModel::Opt(opt) => opt.word_embed_proj_dim,
            LanguageModel::T5(t5) => t5.d_model,
        }
    }
}

impl Blip2 {
    /// The BLIP-2 whose `config.json` is `config`.
    ///
    /// # Errors
    /// `Unsupported` naming a key that this build does not do, `BadModel` naming
    /// one that is malformed.
    pub fn from_config(config: &Section) -> Result<Self> {
        let vision = BlipVision::of_blip2(&config.section_or_empty("vision_config")?)?;
        Self::with_parts(config, vision, QFormer::of_blip2, &["opt", "t5"])
    }

    /// The InstructBLIP whose `config.json` is `config`.
    ///
    /// # Errors
    /// As [`Self::from_config`].
    pub fn of_instruct_blip(config: &Section) -> Result<Self> {
        let vision = BlipVision::of_instruct_blip(&config.section_or_empty("vision_config")?)?;
        Self::with_parts(config, vision, QFormer::of_instruct_blip, &["t5"])
    }

    /// The model with the language models `known`.
    fn with_parts(
        config: &Section,
        vision: BlipVision,
        qformer: fn(&Section, usize, usize) -> Result<QFormer>,
        known: &[&str],
    ) -> Result<Self> {
        let text_config = config.section_or_empty("text_config")?;
        let mut generation = GenerationFacts::default();
        generation.read(&text_config)?;
        // The reference's default is OPT, too.
        let model_type = text_config.text("model_type", "opt")?;
        let text = match model_type.as_str() {
            "opt" if known.contains(&"opt") => LanguageModel::Opt(Opt::from_config(&text_config)?),
            "t5" => LanguageModel::T5(T5::from_config(&text_config)?),
            other => {
                let known: Vec<String> = known.iter().map(|name| format!("{name:?}")).collect();
                return Err(Error::unsupported(format!(
                    "{}: model_type is {other:?}; supported: {}",
                    text_config.path(),
                    known.join(", ")
                )));
            }
        };
        let decoder_only = matches!(text, LanguageModel::Opt(_));
        config.only("use_decoder_only_language_model", &[json!(decoder_only)])?;
        let query_tokens = config.size("num_query_tokens", 32)?;
        let qformer_config = config.section_or_empty("qformer_config")?;
        let qformer = qformer(&qformer_config, query_tokens, vision.hidden_size)?;
        // Where newer processors leave room for the queries in the token ids:
        // here they are put in front directly, which is the same sequence.
        config.finish(&[
            DESCRIPTIVE_KEYS,
            GENERATION_KEYS,
            &["image_token_index", "image_token_id", "image_text_hidden_size"],
            &["video_token_index", "video_token_id"],
        ])?;
        Ok(Blip2 { vision, qformer, text, generation })
    }

    /// Its graphs.
    ///
    /// # Errors
    /// `BadModel` naming a tensor that is missing or has another shape,
    /// `Unsupported` naming one whose type is none of F32, F16 and BF16.
    pub fn graphs(&self, weights: &WeightIndex) -> Result<CaptionGraphs> {
        let mut vision = GraphBuilder::new("caption_vision", weights);
        self.vision.write(&mut vision, "vision_model")?;
        let mut qformer = GraphBuilder::new("caption_qformer", weights);
        self.qformer.write(&mut qformer, self.text.width())?;
        let mut files = vec![(VISION_GRAPH, vision.finish()), (QFORMER_GRAPH, qformer.finish())];
        let mut decoder = GraphBuilder::new("caption_decoder", weights);
        match &self.text {
            LanguageModel::Opt(opt) => opt.write(&mut decoder, LANGUAGE_MODEL)?,
            LanguageModel::T5(t5) => {
                let mut memory = GraphBuilder::new("caption_memory", weights);
                t5.write_memory(&mut memory, LANGUAGE_MODEL, self.qformer.query_tokens)?;
                files.push((MEMORY_GRAPH, memory.finish()));
                t5.write_decoder(&mut decoder, LANGUAGE_MODEL)?;
            }
        }
        files.push((DECODER_GRAPH, decoder.finish()));
        Ok(CaptionGraphs { facts: self.facts(), files })
    }

    fn facts(&self) -> CaptionFacts {
        let picture_positions = self.qformer.query_tokens;
        let (image_size, picture_width) = (self.vision.image_size, self.text.width());
        let qformer_text = self.qformer.text.as_ref().map(|text| QFormerTextFacts {
            vocabulary: text.vocabulary,
            max_tokens: text.max_positions,
            image_positions: self.vision.positions(),
            image_width: self.vision.hidden_size,
        });
        let text = |absent| TextFacts { first: None, dropped: 0, absent };
        match &self.text {
            LanguageModel::Opt(opt) => CaptionFacts {
                family: CaptionFamily::Blip2Opt,
                image_size,
                picture_positions,
                picture_width,
                qformer: true,
                qformer_text,
                memory: None,
                text: text(vec![opt.bos_token_id]),
                layers: opt.layers,
                heads: opt.heads,
                head_dim: opt.hidden_size / opt.heads,
                vocabulary: opt.vocabulary,
                max_positions: Some(opt.max_positions),
                bos_token_id: opt.bos_token_id,
                eos_token_ids: opt.eos_token_ids.clone(),
                generation: self.generation.clone(),
            },
            LanguageModel::T5(t5) => CaptionFacts {
                family: match qformer_text {
                    None => CaptionFamily::Blip2T5,
                    Some(_) => CaptionFamily::InstructBlipT5,
                },
                image_size,
                picture_positions,
                picture_width,
                qformer: true,
                qformer_text,
                memory: Some(MemoryFacts { picture_positions, holds_text: true, max_text: None }),
                // A Q-Former that reads needs something to read.
                text: text(match qformer_text {
                    None => t5.bos_token_id.into_iter().collect(),
                    Some(_) => Vec::new(),
                }),
                layers: t5.decoder_layers,
                heads: t5.heads,
                head_dim: t5.d_kv,
                vocabulary: t5.vocabulary,
                max_positions: None,
                bos_token_id: t5.decoder_start_token_id,
                eos_token_ids: t5.eos_token_ids.clone(),
                generation: self.generation.clone(),
            },
        }
    }
}
