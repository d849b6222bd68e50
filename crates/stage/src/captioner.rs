//! `captioner`: a picture to a caption, or to the continuation of a text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use imprompt_caption::{CaptionRequest, Captioner, CaptionerOptions};
use imprompt_engine::Runtime;
use imprompt_error::{Error, Result};
use imprompt_graph::CaptionFacts;
use imprompt_interrogate::Mode;
use imprompt_text::CaptionTokenizer;
use serde::{Deserialize, Serialize};

use crate::deadline::Deadline;
use crate::engine;
use crate::modes::mode;
use crate::signature::MAX_BATCH_SIZE;
use crate::{Parameters, Request, Response, Signature, Stage, StageKind, StageModel, Tensor};

/// Caption tokens at most when a request does not say: clip-interrogator's `caption_max_length`.
pub const DEFAULT_MAX_NEW_TOKENS: usize = 32;
/// Most caption tokens a request may ask for.
pub const MAX_NEW_TOKENS: usize = 256;

/// The stage file of `captioner`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptionerFile {
    /// What the graphs of this folder are.
    pub facts: CaptionFacts,
}

struct Shared {
    folder: PathBuf,
    facts: CaptionFacts,
    tokenizer: CaptionTokenizer,
    runtime: &'static dyn Runtime,
    parameters: Parameters,
}

pub(crate) struct CaptionerModel {
    shared: Arc<Shared>,
    signature: Signature,
}

impl CaptionerModel {
    pub(crate) fn open(
        folder: &Path,
        file: CaptionerFile,
        parameters: &Parameters,
    ) -> Result<Self> {
        let facts = file.facts;
        let mut signature = StageKind::Captioner.signature();
        let size = facts.image_size as i64;
        signature.set_dims("pixel_values", &[3, size, size]);
        let shared = Shared {
            folder: folder.to_owned(),
            facts,
            tokenizer: CaptionTokenizer::load(folder)?,
            runtime: engine::runtime(parameters)?,
            parameters: parameters.clone(),
        };
        Ok(CaptionerModel { shared: Arc::new(shared), signature })
    }
}

impl StageModel for CaptionerModel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn instance(&self) -> Result<Box<dyn Stage>> {
        let shared = self.shared.clone();
        let facts = shared.facts.clone();
        let options = CaptionerOptions {
            engine: engine::options(&shared.parameters),
            slots: MAX_BATCH_SIZE,
            max_text_positions: shared.parameters.max_caption_positions,
            ..CaptionerOptions::default()
        };
        let captioner = Captioner::open(&shared.folder, facts, shared.runtime, &options)?;
        Ok(Box::new(CaptionerStage { shared, captioner }))
    }
}

struct CaptionerStage {
    shared: Arc<Shared>,
    captioner: Captioner,
}

/// What is said of one item of a request.
enum Item {
    /// Nothing is to be computed: the caption was given, or none is needed.
    Known(String),
    /// To be generated, from these prompt tokens.
    Asked { prompt_ids: Option<Vec<u32>>, max_new_tokens: usize },
}

impl Stage for CaptionerStage {
    fn execute(&mut self, requests: &[Request<'_>]) -> Vec<Result<Response>> {
        let read: Vec<Result<(&[f32], Vec<Item>)>> =
            requests.iter().map(|request| self.shared.read(request)).collect();
        let milliseconds = self.shared.parameters.deadline_ms;
        let deadlines: Vec<Deadline<'_>> = requests
            .iter()
            .map(|request| Deadline::new(request.cancellation, milliseconds))
            .collect();

        // The pictures of all requests are captioned side by side.
        let size = self.shared.picture_len();
        let mut batch = Vec::new();
        for (read, deadline) in read.iter().zip(&deadlines) {
            let Ok((pixel_values, items)) = read else { continue };
            for (item, pixel_values) in items.iter().zip(pixel_values.chunks_exact(size)) {
                if let Item::Asked { prompt_ids, max_new_tokens } = item {
                    batch.push(CaptionRequest {
                        pixel_values,
                        prompt_ids: prompt_ids.as_deref(),
                        max_new_tokens: *max_new_tokens,
                        cancel: deadline,
                    });
                }
            }
        }
        let mut generated = self.captioner.caption(&batch).into_iter();
        drop(batch);

        let tokenizer = &self.shared.tokenizer;
        read.into_iter()
            .map(|read| {
                let (_, items) = read?;
                // Every generated caption is taken, also behind one that failed: the next
                // request's must not be taken for this one's.
                let captions: Vec<Result<String>> = items
                    .into_iter()
                    .map(|item| match item {
                        Item::Known(caption) => Ok(caption),
                        Item::Asked { .. } => match generated.next() {
                            Some(Ok(generated)) => tokenizer.caption(&generated.ids),
                            Some(Err(error)) => Err(error),
                            None => Err(Error::internal("a picture was left out")),
                        },
                    })
                    .collect();
                let captions = captions.into_iter().collect::<Result<Vec<String>>>()?;
                Ok(vec![Tensor::texts("caption", captions)])
            })
            .collect()
    }
}

impl Shared {
    fn picture_len(&self) -> usize {
        3 * self.facts.image_size * self.facts.image_size
    }

    /// The pixels of a request, and what is asked of each item.
    fn read<'a>(&self, request: &'a Request<'_>) -> Result<(&'a [f32], Vec<Item>)> {
        let pixel_values = request.f32("pixel_values", self.picture_len())?;
        let most = self.parameters.max_text_bytes;
        let texts = request.optional_texts("text", most)?;
        let modes = request.optional_texts("mode", most)?;
        let given = request.optional_texts("given_caption", most)?;
        let lengths = request.optional_i32("max_new_tokens")?;
        let items = (0..request.batch).map(|item| {
            let max_new_tokens = match lengths.map(|lengths| lengths[item]) {
                None => DEFAULT_MAX_NEW_TOKENS,
                Some(length) => max_new_tokens(length)?,
            };
            if mode(modes.as_deref(), item)? == Mode::Negative {
                return Ok(Item::Known(String::new()));
            }
            // As the reference has it, an empty caption is generated anew.
            if let Some(caption) = given.as_ref().map(|given| given[item]).filter(|c| !c.is_empty())
            {
                return Ok(Item::Known(caption.to_owned()));
            }
            let prompt_ids = match texts.as_ref().map(|texts| texts[item]) {
                None => None,
                Some(text) => Some(self.tokenizer.encode(text)?),
            };
            Ok(Item::Asked { prompt_ids, max_new_tokens })
        });
        Ok((pixel_values, items.collect::<Result<_>>()?))
    }
}

fn max_new_tokens(length: i32) -> Result<usize> {
    match usize::try_from(length) {
        Ok(length) if (1..=MAX_NEW_TOKENS).contains(&length) => Ok(length),
        _ => Err(Error::invalid(format!(
            "input `max_new_tokens`: {length}, allowed: 1 to {MAX_NEW_TOKENS}"
        ))),
    }
}
