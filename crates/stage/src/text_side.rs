//! CLIP's text side as three stages use it: the tokenizer and the text tower.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use imprompt_clip::{TextEncoder, TextOptions};
use imprompt_engine::{EngineOptions, Runtime};
use imprompt_error::{Cancellation, Error, Result};
use imprompt_graph::clip::TEXT_GRAPH;
use imprompt_graph::{ClipFacts, ClipFamily};
use imprompt_interrogate::{PromptEncoder, TableRanker, encoded_similarities, same_bits};
use imprompt_text::{ClipTokenizer, SiglipTokenizer, Tokens};

pub use imprompt_text::Cleaning;

use crate::on_gpu::{GpuRanker, GpuTables};
use crate::{Parameters, Placement, engine, files};

/// The tokenizer of a model's family.
enum TextTokenizer {
    Clip(ClipTokenizer),
    Siglip(SiglipTokenizer),
}

impl TextTokenizer {
    /// The tokenizer in `folder`.
    fn load(folder: &Path, facts: &ClipFacts, cleaning: Cleaning) -> Result<Self> {
        let slots = facts.context_length;
        let (tokenizer, ids) = match facts.family {
            ClipFamily::Clip => {
                let tokenizer = ClipTokenizer::load(folder, cleaning, slots)?;
                let ids = tokenizer.vocab_size();
                (TextTokenizer::Clip(tokenizer), ids)
            }
            ClipFamily::Siglip => {
                let tokenizer = SiglipTokenizer::load(folder, cleaning, slots)?;
                let ids = tokenizer.vocab_size();
                (TextTokenizer::Siglip(tokenizer), ids)
            }
        };
        if ids > facts.vocabulary {
            return Err(Error::bad_model(format!(
                "tokenizer of {}: {ids} tokens, the model knows {}",
                folder.display(),
                facts.vocabulary
            )));
        }
        Ok(tokenizer)
    }

    fn tokens(&self, text: &str) -> Result<Tokens> {
        match self {
            TextTokenizer::Clip(tokenizer) => tokenizer.tokens(text),
            TextTokenizer::Siglip(tokenizer) => tokenizer.tokens(text),
        }
    }

    /// Token rows of `texts`.
    fn rows(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        texts.iter().map(|text| Ok(self.tokens(text)?.ids)).collect()
    }

    /// Tokens of a text, neither cut nor padded.
    fn count(&self, text: &str) -> Result<usize> {
        let ids = match self {
            TextTokenizer::Clip(tokenizer) => tokenizer.encode(text)?,
            TextTokenizer::Siglip(tokenizer) => tokenizer.encode(text)?,
        };
        Ok(ids.len())
    }

    /// Tokens that every text has: start and end token of CLIP, the end token of SigLIP.
    fn frame(&self) -> usize {
        match self {
            TextTokenizer::Clip(_) => 2,
            TextTokenizer::Siglip(_) => 1,
        }
    }
}

/// Checks that `folder` has the tokenizer that a model of these facts needs.
///
/// # Errors
/// `BadModel` naming the file that is missing or wrong, or the sizes that do not fit.
pub fn check_tokenizer(folder: &Path, facts: &ClipFacts, cleaning: Cleaning) -> Result<()> {
    TextTokenizer::load(folder, facts, cleaning).map(drop)
}

/// Tokens of one run on a GPU: each run is a few hundred kernels, which must be large enough to be
/// worth giving.
const GPU_TOKENS_PER_RUN: usize = 32_768;

/// Most terms have two to eight tokens: a run or two serve all of a chain's step.
const GPU_LENGTH_STEP: usize = 8;

/// What the instances of a stage share of the text side.
pub struct TextModel {
    folder: PathBuf,
    facts: ClipFacts,
    tokenizer: Arc<TextTokenizer>,
    parameters: Parameters,
    /// The file of the same tower in 8 bits.
    screen: Option<PathBuf>,
}

impl TextModel {
    /// The text side whose graph, weights and tokenizer lie in `folder`.
    ///
    /// # Errors
    /// `BadModel` naming the file that is missing or wrong.
    pub fn open(
        folder: &Path,
        facts: ClipFacts,
        cleaning: Cleaning,
        parameters: &Parameters,
    ) -> Result<Self> {
        engine::check(parameters)?;
        let tokenizer = TextTokenizer::load(folder, &facts, cleaning)?;
        Ok(TextModel {
            folder: folder.to_owned(),
            facts,
            tokenizer: Arc::new(tokenizer),
            parameters: parameters.clone(),
            screen: None,
        })
    }

    /// With the same tower in 8 bits, in the graph `screen` of the folder, to sort out candidates
    /// ([`PromptEncoder::screen`]); where such a tower is not faster on this machine, without.
    ///
    /// # Errors
    /// `BadModel` when the name leads out of the folder.
    pub fn with_screen(mut self, screen: Option<&str>) -> Result<Self> {
        let pays = self.parameters.screen && engine::multiplies_bytes(&self.parameters);
        let screen = screen.map(|file| files::inside(&self.folder, file)).transpose()?;
        self.screen = screen.filter(|_| pays);
        Ok(self)
    }

    /// A text side with sessions of its own. On a GPU there is no screen: its 8 bits are the
    /// processor's.
    ///
    /// # Errors
    /// What the engine says of a graph.
    pub fn side(&self, placement: Placement) -> Result<TextSide> {
        let runtime = engine::runtime(&self.parameters, placement, &self.folder)?;
        self.side_of(&*runtime, placement)
    }

    /// [`Self::side`], which on a GPU compares pictures with texts and with `tables` there. Where the
    /// GPU cannot, the processor does.
    ///
    /// # Errors
    /// As [`Self::side`].
    pub(crate) fn ranking_side(
        &self,
        placement: Placement,
        tables: &GpuTables,
    ) -> Result<TextSide> {
        let runtime = engine::runtime(&self.parameters, placement, &self.folder)?;
        let mut side = self.side_of(&*runtime, placement)?;
        if let Placement::Gpu(ordinal) = placement {
            let ranker = runtime.ranking().and_then(|ranking| {
                ranking.map(|ranking| GpuRanker::new(ranking, ordinal, tables)).transpose()
            });
            side.ranker = ranker.unwrap_or_else(|error| {
                tracing::warn!(ordinal, "labels are ranked on the processor: {error}");
                None
            });
        }
        Ok(side)
    }

    fn side_of(&self, runtime: &dyn Runtime, placement: Placement) -> Result<TextSide> {
        let mut side = self.open_graph(runtime, placement, &self.folder.join(TEXT_GRAPH))?;
        let screen = self.screen.as_deref().filter(|_| placement == Placement::Cpu);
        let screen = screen.map(|path| self.open_graph(runtime, placement, path));
        side.screen = screen.transpose()?.map(Box::new);
        Ok(side)
    }

    fn open_graph(
        &self,
        runtime: &dyn Runtime,
        placement: Placement,
        path: &Path,
    ) -> Result<TextSide> {
        let options =
            TextOptions { engine: engine::options(&self.parameters), ..TextOptions::default() };
        let options = match placement {
            Placement::Cpu => options,
            Placement::Gpu(_) => TextOptions {
                // Texts come in too many shapes for one of them to come again soon.
                engine: EngineOptions { cuda_graphs: false, ..options.engine },
                tokens_per_run: GPU_TOKENS_PER_RUN,
                length_step: GPU_LENGTH_STEP,
            },
        };
        let facts = self.facts.clone();
        let encoder = TextEncoder::open_graph(path, facts, runtime, &options)?;
        Ok(TextSide { tokenizer: self.tokenizer.clone(), encoder, screen: None, ranker: None })
    }
}

/// One instance's text side: texts to embeddings.
pub struct TextSide {
    tokenizer: Arc<TextTokenizer>,
    encoder: TextEncoder,
    screen: Option<Box<TextSide>>,
    /// On the encoder's GPU.
    ranker: Option<GpuRanker>,
}

impl PromptEncoder for TextSide {
    fn dimension(&self) -> usize {
        self.encoder.facts().projection_dim
    }

    fn context_length(&self) -> usize {
        self.encoder.facts().context_length
    }

    fn token_count(&self, text: &str) -> usize {
        // A text that cannot be tokenised is refused where it is embedded.
        let count = self.tokenizer.count(text).unwrap_or(0);
        count.saturating_sub(self.tokenizer.frame())
    }

    fn screen(&mut self) -> Option<&mut dyn PromptEncoder> {
        self.screen.as_deref_mut().map(|screen| screen as &mut dyn PromptEncoder)
    }

    fn is_at_max_length(&self, text: &str) -> bool {
        self.token_count(text) + self.tokenizer.frame() >= self.context_length()
    }

    fn encode(&mut self, texts: &[&str], cancel: &dyn Cancellation) -> Result<Vec<f32>> {
        self.encoder.encode(&self.tokenizer.rows(texts)?, cancel)
    }

    /// On a GPU the embeddings stay there: only the cosines are read.
    fn similarities(
        &mut self,
        image: &[f32],
        texts: &[&str],
        cancel: &dyn Cancellation,
    ) -> Result<Vec<f32>> {
        let Some(ranker) = &self.ranker else {
            return encoded_similarities(self, image, texts, cancel);
        };
        if ranker.is_proven {
            return self.similarities_there(image, texts, cancel);
        }
        // The first texts are compared here too.
        let here = encoded_similarities(self, image, texts, cancel)?;
        let there = self.similarities_there(image, texts, cancel)?;
        let is_exact = same_bits(&here, &there);
        match &mut self.ranker {
            Some(ranker) if is_exact => ranker.is_proven = !here.is_empty(),
            _ => {
                tracing::warn!("the GPU compares texts with other bits: the processor ranks");
                self.ranker = None;
            }
        }
        Ok(here)
    }

    fn table_ranker(&mut self) -> Option<&mut dyn TableRanker> {
        self.ranker.as_mut().map(|ranker| ranker as &mut dyn TableRanker)
    }
}

impl TextSide {
    /// [`PromptEncoder::similarities`] where the encoder computes.
    fn similarities_there(
        &mut self,
        image: &[f32],
        texts: &[&str],
        cancel: &dyn Cancellation,
    ) -> Result<Vec<f32>> {
        let dimension = self.dimension();
        let Some(ranker) = &mut self.ranker else {
            return Err(Error::internal("nothing to compare with"));
        };
        if image.len() != dimension {
            return Err(Error::internal(format!(
                "an image of {} values, texts have {dimension}",
                image.len()
            )));
        }
        let rows = self.tokenizer.rows(texts)?;
        ranker.compare_texts(image, rows.len())?;
        let places = self.encoder.encode_in_place(&rows, cancel, &mut |run| ranker.add(run))?;
        let found = ranker.similarities()?;
        let of_place = |place: usize| {
            found.get(place).copied().ok_or_else(|| Error::internal("a text without a cosine"))
        };
        places.into_iter().map(of_place).collect()
    }
}
