//! CLIP's text side as three stages use it: the tokenizer and the text tower.
//!
//! Instances of a stage share the tower and take turns at it ([`imprompt_clip::TextTower`]): none waits for what
//! another one does in many runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use imprompt_clip::{TextEncoder, TextOptions, TextTower};
use imprompt_engine::{EngineOptions, Runtime};
use imprompt_error::{Cancellation, Error, Result};
use imprompt_graph::ClipFacts;
use imprompt_graph::clip::TEXT_GRAPH;
use imprompt_interrogate::{PromptEncoder, TableRanker, cosines, same_bits};

pub use crate::tokenizer::check_tokenizer;
pub use imprompt_text::Cleaning;

use crate::on_gpu::{GpuRanker, GpuTables};
use crate::placement::Shared;
use crate::tokenizer::TextTokenizer;
use crate::{Parameters, Placement, engine, files};

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
    towers: Shared<Towers>,
}

/// What instances of one placement share.
#[derive(Clone)]
struct Towers {
    /// What opened them.
    runtime: Arc<dyn Runtime>,
    tower: Arc<TextTower>,
    screen: Option<Arc<TextTower>>,
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
            towers: Shared::default(),
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

    /// A text side of its own at the shared towers. On a GPU there is no screen: its 8 bits are the
    /// processor's.
    ///
    /// # Errors
    /// What the engine says of a graph.
    pub fn side(&self, placement: Placement) -> Result<TextSide> {
        Ok(self.side_of(self.towers(placement)?))
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
        let towers = self.towers(placement)?;
        // In order with the tower's work: on its stream.
        let runtime = towers.runtime.clone();
        let mut side = self.side_of(towers);
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

    fn side_of(&self, Towers { tower, screen, .. }: Towers) -> TextSide {
        let side = |tower| TextSide {
            tokenizer: self.tokenizer.clone(),
            encoder: TextEncoder::new(tower),
            screen: None,
            ranker: None,
        };
        TextSide { screen: screen.map(|screen| Box::new(side(screen))), ..side(tower) }
    }

    fn towers(&self, placement: Placement) -> Result<Towers> {
        self.towers.get(placement, || {
            let runtime = engine::runtime(&self.parameters, placement, &self.folder)?;
            let open = |path: &Path| self.open_graph(&*runtime, placement, path).map(Arc::new);
            let tower = open(&self.folder.join(TEXT_GRAPH))?;
            let screen = self.screen.as_deref().filter(|_| placement == Placement::Cpu);
            let screen = screen.map(open).transpose()?;
            Ok(Towers { runtime, tower, screen })
        })
    }

    fn open_graph(
        &self,
        runtime: &dyn Runtime,
        placement: Placement,
        path: &Path,
    ) -> Result<TextTower> {
        let options =
            TextOptions { engine: engine::options(&self.parameters), ..TextOptions::default() };
        let options = match placement {
            Placement::Cpu => options,
            Placement::Gpu(_) => TextOptions {
                // Texts come in too many shapes for one of them to come again soon.
                engine: EngineOptions { cuda_graphs: false, ..options.engine },
                tokens_per_run: GPU_TOKENS_PER_RUN,
                length_step: GPU_LENGTH_STEP,
                ..options
            },
        };
        TextTower::open_graph(path, self.facts.clone(), runtime, &options)
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

    fn similarities(
        &mut self,
        image: &[f32],
        texts: &[&str],
        cancel: &dyn Cancellation,
    ) -> Result<Vec<f32>> {
        self.compared(image, &self.tokenizer.rows(texts)?, cancel)
    }

    fn continuation_similarities(
        &mut self,
        image: &[f32],
        prompt: &str,
        phrases: &[&str],
        cancel: &dyn Cancellation,
    ) -> Result<Vec<f32>> {
        self.compared(image, &self.tokenizer.continued(prompt, phrases)?, cancel)
    }

    fn table_ranker(&mut self) -> Option<&mut dyn TableRanker> {
        self.ranker.as_mut().map(|ranker| ranker as &mut dyn TableRanker)
    }
}

impl TextSide {
    /// Cosines of `image` with the texts of `rows`. On a GPU the embeddings stay there: only the
    /// cosines are read.
    fn compared(
        &mut self,
        image: &[f32],
        rows: &[Vec<u32>],
        cancel: &dyn Cancellation,
    ) -> Result<Vec<f32>> {
        let dimension = self.dimension();
        if image.len() != dimension {
            return Err(Error::internal(format!(
                "an image of {} values, texts have {dimension}",
                image.len()
            )));
        }
        let is_proven = self.ranker.as_ref().map(|ranker| ranker.is_proven);
        if is_proven == Some(true) {
            return self.compared_there(image, rows, cancel);
        }
        let here = cosines(image, &self.encoder.encode(rows, cancel)?);
        if is_proven.is_none() {
            return Ok(here);
        }
        // The first texts are compared at both places.
        let there = self.compared_there(image, rows, cancel)?;
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

    /// [`Self::compared`] where the encoder computes.
    fn compared_there(
        &mut self,
        image: &[f32],
        rows: &[Vec<u32>],
        cancel: &dyn Cancellation,
    ) -> Result<Vec<f32>> {
        let Some(ranker) = &mut self.ranker else {
            return Err(Error::internal("nothing to compare with"));
        };
        ranker.compare_texts(image, rows.len())?;
        let places = self.encoder.encode_in_place(rows, cancel, &mut |run| ranker.add(run))?;
        let found = ranker.similarities()?;
        let of_place = |place: usize| {
            found.get(place).copied().ok_or_else(|| Error::internal("a text without a cosine"))
        };
        places.into_iter().map(of_place).collect()
    }
}
