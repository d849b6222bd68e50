//! Which requests a captioner takes, known without its engines.

use std::sync::Arc;

use imprompt_engine::Floats;
use imprompt_error::{Error, Result};
use imprompt_graph::{CaptionFacts, QFormerTextFacts};

use crate::captioner::CaptionRequest;
use crate::decoder::Prompt;
use crate::scheduler::{Limits, Sequence};

/// A picture and its text, as a sequence starts from them.
#[derive(Clone, Debug)]
pub(crate) struct Newcomer {
    /// As [`CaptionRequest::picture`].
    pub(crate) picture: Floats<'static>,
    /// What the Q-Former reads, where it does.
    pub(crate) qformer_ids: Vec<u32>,
    /// What the language model reads.
    pub(crate) prompt: Prompt,
}

/// What a captioner has room for.
#[derive(Debug)]
pub(crate) struct Admission {
    /// The model.
    pub(crate) facts: Arc<CaptionFacts>,
    /// Slots and their length.
    pub(crate) limits: Limits,
    /// Values of a [`CaptionRequest::picture`].
    pub(crate) picture_len: usize,
    /// Tokens of a text that the memory holds.
    pub(crate) max_text: usize,
}

impl Admission {
    /// What is to be generated for `request`.
    ///
    /// # Errors
    /// `InvalidInput` when its picture, its prompt or its length do not fit the model,
    /// what its `cancel` says, `OutOfMemory`.
    pub(crate) fn sequence(&self, request: &CaptionRequest<'_>) -> Result<Sequence<Newcomer>> {
        if request.picture.len() != self.picture_len {
            return Err(Error::invalid(format!(
                "the picture has {} values, {} are needed",
                request.picture.len(),
                self.picture_len
            )));
        }
        let prompt = self.prompt(request)?;
        if let Some(facts) = self.facts.qformer_text {
            check_qformer_ids(facts, request.qformer_ids.unwrap_or_default())?;
        }
        request.cancel.check()?;
        let length = prompt.positions(&self.facts);
        self.limits.fit(length, &request.options)?;
        let picture = request.picture.kept()?;
        let qformer_ids = request.qformer_ids.unwrap_or_default().to_vec();
        Ok(Sequence {
            length,
            context: prompt.context(&self.facts),
            prompt: Newcomer { picture, qformer_ids, prompt },
            options: request.options,
        })
    }

    fn prompt(&self, request: &CaptionRequest<'_>) -> Result<Prompt> {
        let prompt = Prompt::new(&self.facts, request.prompt_ids);
        let ids = prompt.text_ids(&self.facts);
        if ids.is_empty() {
            return Err(Error::invalid(match request.prompt_ids {
                None => "this model answers questions: a text is needed".to_owned(),
                Some(ids) => format!(
                    "the text has {} tokens, at least {} are needed",
                    ids.len(),
                    self.facts.text.dropped + 1
                ),
            }));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.facts.vocabulary) {
            return Err(Error::invalid(format!(
                "the text has token id {id}, ids below {} are allowed",
                self.facts.vocabulary
            )));
        }
        if self.facts.memory_holds_text() && ids.len() > self.max_text {
            return Err(Error::invalid(format!(
                "the text has {} tokens, at most {} are allowed",
                ids.len(),
                self.max_text
            )));
        }
        Ok(prompt)
    }
}

/// Refuses a text that the Q-Former cannot read.
fn check_qformer_ids(facts: QFormerTextFacts, ids: &[u32]) -> Result<()> {
    if ids.is_empty() || ids.len() > facts.max_tokens {
        return Err(Error::invalid(format!(
            "the text has {} tokens for the Q-Former, 1 to {} are allowed",
            ids.len(),
            facts.max_tokens
        )));
    }
    match ids.iter().find(|id| **id as usize >= facts.vocabulary) {
        None => Ok(()),
        Some(id) => Err(Error::invalid(format!(
            "the text has token id {id} for the Q-Former, ids below {} are allowed",
            facts.vocabulary
        ))),
    }
}
