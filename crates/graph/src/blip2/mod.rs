//! BLIP-2 (`transformers/models/blip_2/modeling_blip_2.py`): an image encoder,
//! a Q-Former whose queries look at the picture, and a language model that
//! reads the queries as if they were words.

mod vision;

use std::path::Path;

use imprompt_error::{Error, Kind, Result};
use serde_json::{Map, Value as Json, json};

use crate::builder::{Graph, GraphBuilder};
use crate::captioner::{
    CaptionFacts, CaptionFamily, CaptionGraphs, DECODER_GRAPH, QFORMER_GRAPH, VISION_GRAPH,
};
use crate::config::{DESCRIPTIVE_KEYS, GENERATION_KEYS, Section, TRAINING_KEYS};
use crate::opt::Opt;
use crate::qformer::QFormer;
use crate::weights::WeightIndex;

pub use vision::BlipVision;

/// The longest `generation_config.json` that is read.
const MAX_GENERATION_CONFIG_BYTES: u64 = 1 << 20;

/// A BLIP-2 model as its configuration describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Blip2 {
    /// The image encoder.
    pub vision: BlipVision,
    /// The Q-Former.
    pub qformer: QFormer,
    /// The language model.
    pub text: Opt,
}

impl Blip2 {
    /// The model of `folder`, whose `config.json` is `config`.
    ///
    /// # Errors
    /// `Unsupported` naming a key that this build does not do, `BadModel` naming
    /// one that is malformed.
    pub fn open(folder: &Path, config: Section) -> Result<Self> {
        config.only("use_decoder_only_language_model", &[json!(true)])?;
        let section = |key: &str| -> Result<Section> {
            let empty = || Section::new(&format!("{}: {key}", config.path()), Map::new());
            Ok(config.section(key)?.unwrap_or_else(empty))
        };
        let text = section("text_config")?;
        // The reference's default is OPT, too.
        let language_model = text.text("model_type", "opt")?;
        if language_model != "opt" {
            return Err(Error::unsupported(format!(
                "{}: model_type is {language_model:?}; supported: \"opt\"",
                text.path()
            )));
        }
        let vision = BlipVision::from_config(&section("vision_config")?)?;
        let query_tokens = config.size("num_query_tokens", 32)?;
        let qformer =
            QFormer::from_config(&section("qformer_config")?, query_tokens, vision.hidden_size)?;
        greedy_only(&text)?;
        let text = Opt::from_config(&text)?;
        if let Some(generation) = generation_config(folder)? {
            greedy_only(&generation)?;
        }
        // Where newer processors leave room for the queries in the token ids:
        // here they are put in front directly, which is the same sequence. The
        // other two are overwritten by text_config's in the reference.
        config.finish(&[
            DESCRIPTIVE_KEYS,
            GENERATION_KEYS,
            &["image_token_index", "image_token_id", "image_text_hidden_size"],
        ])?;
        Ok(Blip2 { vision, qformer, text })
    }

    /// Its three graphs.
    ///
    /// # Errors
    /// `BadModel` naming a tensor that is missing or has another shape,
    /// `Unsupported` naming one whose type is none of F32, F16 and BF16.
    pub fn graphs(&self, weights: &WeightIndex) -> Result<CaptionGraphs> {
        let mut vision = GraphBuilder::new("caption_vision", weights);
        self.vision.write(&mut vision, "vision_model")?;
        let mut qformer = GraphBuilder::new("caption_qformer", weights);
        self.qformer.write(&mut qformer, self.text.word_embed_proj_dim)?;
        let files = vec![
            (VISION_GRAPH, vision.finish()),
            (QFORMER_GRAPH, qformer.finish()),
            (DECODER_GRAPH, self.decoder(weights)?),
        ];
        Ok(CaptionGraphs { facts: self.facts(), files })
    }

    fn decoder(&self, weights: &WeightIndex) -> Result<Graph> {
        let mut decoder = GraphBuilder::new("caption_decoder", weights);
        self.text.write(&mut decoder, "language_model")?;
        Ok(decoder.finish())
    }

    fn facts(&self) -> CaptionFacts {
        CaptionFacts {
            family: CaptionFamily::Blip2Opt,
            image_size: self.vision.image_size,
            query_tokens: self.qformer.query_tokens,
            embedding_width: self.text.word_embed_proj_dim,
            layers: self.text.layers,
            heads: self.text.heads,
            head_dim: self.text.hidden_size / self.text.heads,
            vocabulary: self.text.vocabulary,
            max_positions: self.text.max_positions,
            bos_token_id: self.text.bos_token_id,
            eos_token_ids: self.text.eos_token_ids.clone(),
        }
    }
}

/// `generation_config.json` of `folder`, where it has one.
fn generation_config(folder: &Path) -> Result<Option<Section>> {
    let path = folder.join("generation_config.json");
    let wrong = |what: String| Error::bad_model(format!("{}: {what}", path.display()));
    let length = match std::fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::new(Kind::BadModel, format!("{}: {e}", path.display()))),
    };
    if length > MAX_GENERATION_CONFIG_BYTES {
        return Err(wrong(format!(
            "has {length} bytes, at most {MAX_GENERATION_CONFIG_BYTES} allowed"
        )));
    }
    let text = std::fs::read(&path).map_err(|e| wrong(e.to_string()))?;
    match serde_json::from_slice(&text) {
        Ok(Json::Object(values)) => Ok(Some(Section::new(&path.display().to_string(), values))),
        Ok(_) => Err(wrong("is not a JSON object".to_owned())),
        Err(e) => Err(wrong(format!("is not JSON: {e}"))),
    }
}

/// Refuses every generation key under which the reference would not decode
/// greedily. (What only acts with sampling or beams is harmless without them;
/// limits of the length come with each request.)
fn greedy_only(section: &Section) -> Result<()> {
    let zero = [json!(0), json!(0.0)];
    let one = [json!(1), json!(1.0)];
    for key in ["num_beams", "num_beam_groups", "num_return_sequences", "repetition_penalty"] {
        section.only(key, &one)?;
    }
    for key in ["encoder_repetition_penalty", "guidance_scale"] {
        section.only(key, &one)?;
    }
    for key in ["min_length", "min_new_tokens", "penalty_alpha"] {
        section.only(key, &zero)?;
    }
    for key in ["no_repeat_ngram_size", "encoder_no_repeat_ngram_size"] {
        section.only(key, &zero)?;
    }
    section.only("do_sample", &[json!(false)])?;
    for key in [
        "bad_words_ids",
        "begin_suppress_tokens",
        "constraints",
        "exponential_decay_length_penalty",
        "force_words_ids",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "max_time",
        "prompt_lookup_num_tokens",
        "sequence_bias",
        "stop_strings",
        "suppress_tokens",
    ] {
        section.only(key, &[])?;
    }
    Ok(())
}

/// Keys that change no result in any part of the model.
pub(crate) const HARMLESS: &[&[&str]] = &[DESCRIPTIVE_KEYS, TRAINING_KEYS, GENERATION_KEYS];
