//! GIT (`transformers/models/git/modeling_git.py`): one decoder that reads the
//! patches of CLIP's image encoder as if they were words.

mod vision;

use imprompt_error::{Error, Result};
use serde_json::{Map, json};

use crate::bert::Bert;
use crate::builder::{Activation, Dim, Graph, GraphBuilder, LinearWeights, Type};
use crate::captioner::{
    CaptionFacts, CaptionFamily, CaptionGraphs, DECODER_GRAPH, TextFacts, VISION_GRAPH,
};
use crate::config::{DESCRIPTIVE_KEYS, GENERATION_KEYS, Section, TRAINING_KEYS};
use crate::decoder::{Heads, Inputs, Step};
use crate::weights::WeightIndex;

pub use vision::GitVision;

/// A GIT as its configuration describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Git {
    /// The image encoder.
    pub vision: GitVision,
    /// The decoder.
    pub text: Bert,
    /// What a caption starts with.
    pub bos_token_id: u32,
    /// What a caption ends with.
    pub eos_token_ids: Vec<u32>,
}

impl Git {
    /// The model whose `config.json` is `config`.
    ///
    /// # Errors
    /// `Unsupported` naming a key that this build does not do, such as those of
    /// the models for videos; `BadModel` naming one that is malformed.
    pub fn from_config(config: &Section) -> Result<Self> {
        config.only("architectures", &[json!(["GitForCausalLM"])])?;
        // A video's frames have embeddings of their own.
        config.only("num_image_with_embedding", &[])?;
        let empty = || Section::new(&format!("{}: vision_config", config.path()), Map::new());
        let section = config.section("vision_config")?.unwrap_or_else(empty);
        let vision = GitVision::from_config(&section)?;
        let text = Bert::read(
            config,
            &Bert {
                hidden_size: 768,
                intermediate_size: 3072,
                layers: 6,
                heads: 12,
                vocabulary: 30522,
                max_positions: 1024,
                activation: Activation::Gelu,
                epsilon: 1e-12,
            },
        )?;
        let git = Git {
            vision,
            text,
            bos_token_id: config.index("bos_token_id", 101)?,
            eos_token_ids: config.token_ids("eos_token_id", 102)?,
        };
        let mut ids = std::iter::once(&git.bos_token_id).chain(&git.eos_token_ids);
        if let Some(id) = ids.find(|id| **id as usize >= git.text.vocabulary) {
            return Err(Error::bad_model(format!(
                "{}: token id {id} is not below vocab_size {}",
                config.path(),
                git.text.vocabulary
            )));
        }
        config.finish(&[DESCRIPTIVE_KEYS, TRAINING_KEYS, GENERATION_KEYS, &["use_cache"]])?;
        Ok(git)
    }

    /// Its graphs.
    ///
    /// # Errors
    /// `BadModel` naming a tensor that is missing or has another shape,
    /// `Unsupported` naming one whose type is none of F32, F16 and BF16.
    pub fn graphs(&self, weights: &WeightIndex) -> Result<CaptionGraphs> {
        let files =
            vec![(VISION_GRAPH, self.image(weights)?), (DECODER_GRAPH, self.decoder(weights)?)];
        Ok(CaptionGraphs { facts: self.facts(), files })
    }

    fn facts(&self) -> CaptionFacts {
        let picture_positions = self.vision.positions();
        CaptionFacts {
            family: CaptionFamily::Git,
            image_size: self.vision.image_size,
            picture_positions,
            picture_width: self.text.hidden_size,
            qformer: false,
            memory: None,
            text: TextFacts { first: None, dropped: 1, absent: vec![self.bos_token_id] },
            layers: self.text.layers,
            heads: self.text.heads,
            head_dim: self.text.head_dim(),
            vocabulary: self.text.vocabulary,
            // Those of the picture have no embedding.
            max_positions: Some(picture_positions + self.text.max_positions),
            bos_token_id: self.bos_token_id,
            eos_token_ids: self.eos_token_ids.clone(),
        }
    }

    /// The image encoder and what makes words of its patches.
    fn image(&self, weights: &WeightIndex) -> Result<Graph> {
        let mut builder = GraphBuilder::new("caption_vision", weights);
        let g = &mut builder;
        let (from, to) = (self.vision.tower.width, self.text.hidden_size);
        let rows = self.vision.write(g, "git.image_encoder.vision_model")?;
        g.set_scope("visual_projection");
        let name = "git.visual_projection.visual_projection.0";
        let rows = g.linear(&rows, LinearWeights { name, input: from, output: to, bias: true })?;
        let name = "git.visual_projection.visual_projection.1";
        let rows = g.layer_norm(&rows, name, to, self.vision.tower.epsilon)?;
        let tokens = self.vision.positions();
        let embeds = g.reshape(&rows, &[-1, tokens as i64, to as i64]);
        let shape = ["batch".into(), Dim::Fixed(tokens), Dim::Fixed(to)];
        g.output(&embeds, "image_embeds", Type::F32, &shape);
        Ok(builder.finish())
    }

    fn decoder(&self, weights: &WeightIndex) -> Result<Graph> {
        let mut builder = GraphBuilder::new("caption_decoder", weights);
        let g = &mut builder;
        let width = self.text.hidden_size;
        let inputs = Inputs::new(g, Some(width));
        g.set_scope("embeddings");
        let prefix = inputs.picture_embeds.iter();
        let front: Vec<_> = prefix.map(|embeds| g.dim(embeds, 1)).collect();
        let tokens = g.dim(&inputs.input_ids, 1);
        let count = front.iter().fold(tokens.clone(), |sum, front| g.add(&sum, front));
        let mut step = Step::new(
            g,
            &inputs,
            Heads::scaled(self.text.heads, self.text.head_dim()),
            count.clone(),
        );
        // The picture is seen whole by itself and by all words.
        step.see_prefix(g, self.vision.positions());
        // Words count their positions from the first word on.
        let ahead = g.int(self.vision.positions() as i64);
        let positions = g.sub(&step.positions, &ahead);
        let first = g.sub(&count, &tokens);
        let positions = g.slice(&positions, &first, &count, 1);
        let words = self.text.embed(g, "git.embeddings", &inputs.input_ids, &positions)?;
        let parts: Vec<_> = inputs.picture_embeds.iter().chain([&words]).collect();
        let states = g.concat(&parts, 1);
        let mut rows = g.reshape(&states, &[-1, width as i64]);
        for layer in 0..self.text.layers {
            g.set_scope(&format!("layer.{layer}"));
            let prefix = format!("git.encoder.layer.{layer}");
            let name = format!("{prefix}.attention");
            let [query, key, value] = self.text.projections(g, &name, &rows)?;
            let context = step.attend(g, layer, [&query, &key, &value]);
            rows = self.text.join(g, &format!("{name}.output"), &rows, (&context, width))?;
            rows = self.text.feed_forward(g, &prefix, &rows)?;
        }
        g.set_scope("head");
        let last = step.last(g, &rows, width);
        let head = LinearWeights {
            name: "output",
            input: width,
            output: self.text.vocabulary,
            bias: true,
        };
        let logits = g.linear(&last, head)?;
        let shape = ["batch".into(), Dim::Fixed(self.text.vocabulary)];
        g.output(&logits, "logits", Type::F32, &shape);
        Ok(builder.finish())
    }
}
