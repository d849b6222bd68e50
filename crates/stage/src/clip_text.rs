//! `clip_text`: a text to its L2-normalised embedding.

use std::path::Path;
use std::sync::Arc;

use imprompt_error::{Error, Result, Uncancellable};
use imprompt_graph::ClipFacts;
use imprompt_interrogate::PromptEncoder;
use serde::{Deserialize, Serialize};

use crate::text_side::{Cleaning, TextModel, TextSide};
use crate::{
    Parameters, Placement, Request, Response, Signature, Stage, StageKind, StageModel, Tensor,
};

/// The stage file of `clip_text`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipTextFile {
    /// What the text graph of this folder is.
    pub facts: ClipFacts,
    /// How texts are cleaned before they are tokenised.
    pub cleaning: Cleaning,
}

struct Shared {
    text: TextModel,
    dimension: usize,
    max_text_bytes: usize,
}

pub(crate) struct ClipTextModel {
    shared: Arc<Shared>,
    signature: Signature,
}

impl ClipTextModel {
    pub(crate) fn open(folder: &Path, file: ClipTextFile, parameters: &Parameters) -> Result<Self> {
        let dimension = file.facts.projection_dim;
        let mut signature = StageKind::ClipText.signature();
        signature.set_dims("text_embeds", &[dimension as i64]);
        let text = TextModel::open(folder, file.facts, file.cleaning, parameters)?;
        let shared = Shared { text, dimension, max_text_bytes: parameters.max_text_bytes };
        Ok(ClipTextModel { shared: Arc::new(shared), signature })
    }
}

impl StageModel for ClipTextModel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn instance(&self, placement: Placement) -> Result<Box<dyn Stage>> {
        Ok(Box::new(ClipText {
            text: self.shared.text.side(placement)?,
            shared: self.shared.clone(),
        }))
    }
}

struct ClipText {
    shared: Arc<Shared>,
    text: TextSide,
}

impl Stage for ClipText {
    fn execute(&mut self, requests: &[Request<'_>]) -> Vec<Result<Response>> {
        let most = self.shared.max_text_bytes;
        let read: Vec<Result<Vec<&str>>> = requests
            .iter()
            .map(|request| {
                let texts = request.optional_texts("text", most)?;
                texts.ok_or_else(|| Error::invalid("input `text`: missing"))
            })
            .collect();
        let texts: Vec<&str> = read.iter().flatten().flatten().copied().collect();
        let embeds = self.text.encode(&texts, &Uncancellable);
        let dimension = self.shared.dimension;
        let mut taken = 0;
        read.into_iter()
            .zip(requests)
            .map(|(texts, request)| {
                texts?;
                let embeds = embeds.as_ref().map_err(Error::clone)?;
                let rows = request.batch * dimension;
                let values = embeds[taken..][..rows].to_vec();
                taken += rows;
                Ok(vec![Tensor::f32("text_embeds", vec![request.batch, dimension], values)])
            })
            .collect()
    }
}
