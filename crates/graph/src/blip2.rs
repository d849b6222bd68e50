//! BLIP-2 (`transformers/models/blip_2/modeling_blip_2.py`): an image encoder,
//! a Q-Former whose queries look at the picture, and a language model that
//! reads the queries as if they were words.

use imprompt_error::{Error, Result};
use serde_json::{Map, json};

use crate::blip::BlipVision;
use crate::builder::{Graph, GraphBuilder};
use crate::captioner::{
    CaptionFacts, CaptionFamily, CaptionGraphs, DECODER_GRAPH, QFORMER_GRAPH, TextFacts,
    VISION_GRAPH,
};
use crate::config::{DESCRIPTIVE_KEYS, GENERATION_KEYS, Section};
use crate::generation::greedy_only;
use crate::opt::Opt;
use crate::qformer::QFormer;
use crate::weights::WeightIndex;

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
    /// The model whose `config.json` is `config`.
    ///
    /// # Errors
    /// `Unsupported` naming a key that this build does not do, `BadModel` naming
    /// one that is malformed.
    pub fn from_config(config: &Section) -> Result<Self> {
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
        let vision = BlipVision::of_blip2(&section("vision_config")?, "blip_2_vision_model")?;
        let query_tokens = config.size("num_query_tokens", 32)?;
        let qformer =
            QFormer::from_config(&section("qformer_config")?, query_tokens, vision.hidden_size)?;
        greedy_only(&text)?;
        let text = Opt::from_config(&text)?;
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
            picture_positions: self.qformer.query_tokens,
            picture_width: self.text.word_embed_proj_dim,
            qformer: true,
            memory: None,
            text: TextFacts { first: None, dropped: 0, absent: vec![self.text.bos_token_id] },
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
