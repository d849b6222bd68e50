//! CLIP's text side as three stages use it: the tokenizer and the text tower.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use imprompt_clip::{TextEncoder, TextOptions};
use imprompt_engine::Runtime;
use imprompt_error::{Cancellation, Result};
use imprompt_graph::ClipFacts;
use imprompt_interrogate::PromptEncoder;
use imprompt_text::ClipTokenizer;

pub use imprompt_text::Cleaning;

use crate::{Parameters, engine};

/// What the instances of a stage share of the text side.
pub struct TextModel {
    folder: PathBuf,
    facts: ClipFacts,
    tokenizer: Arc<ClipTokenizer>,
    runtime: &'static dyn Runtime,
    parameters: Parameters,
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
        let tokenizer = ClipTokenizer::load(folder, cleaning, facts.context_length)?;
        Ok(TextModel {
            folder: folder.to_owned(),
            facts,
            tokenizer: Arc::new(tokenizer),
            runtime: engine::runtime(parameters)?,
            parameters: parameters.clone(),
        })
    }

    /// A text side with a session of its own.
    ///
    /// # Errors
    /// What the engine says of the graph.
    pub fn side(&self) -> Result<TextSide> {
        let options =
            TextOptions { engine: engine::options(&self.parameters), ..TextOptions::default() };
        let encoder = TextEncoder::open(&self.folder, self.facts.clone(), self.runtime, &options)?;
        Ok(TextSide { tokenizer: self.tokenizer.clone(), encoder })
    }
}

/// One instance's text side: texts to embeddings.
pub struct TextSide {
    tokenizer: Arc<ClipTokenizer>,
    encoder: TextEncoder,
}

impl PromptEncoder for TextSide {
    fn dimension(&self) -> usize {
        self.encoder.facts().projection_dim
    }

    fn context_length(&self) -> usize {
        self.tokenizer.context_length()
    }

    fn token_count(&self, text: &str) -> usize {
        // A text that cannot be tokenised is refused where it is embedded.
        self.tokenizer.encode(text).map_or(0, |ids| ids.len().saturating_sub(2))
    }

    fn encode(&mut self, texts: &[&str], cancel: &dyn Cancellation) -> Result<Vec<f32>> {
        let rows: Vec<Vec<u32>> =
            texts.iter().map(|text| Ok(self.tokenizer.tokens(text)?.ids)).collect::<Result<_>>()?;
        self.encoder.encode(&rows, cancel)
    }
}
