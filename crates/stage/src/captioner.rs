//! `captioner`: a picture to a caption, or to the continuation of a text. Split in two,
//! `caption_decoder` is what is left of it behind a `caption_vision`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use imprompt_caption::{
    CaptionRequest, Captioner, CaptionerOptions, GenerationOptions, SharedCaptioner, Tell, Told,
};
use imprompt_engine::Floats;
use imprompt_error::{Error, Result};
use imprompt_graph::CaptionFacts;
use imprompt_interrogate::Mode;
use imprompt_text::CaptionTokenizer;
use serde::{Deserialize, Serialize};

use crate::deadline::Deadline;
use crate::engine;
use crate::generation::Asked;
use crate::modes::mode;
use crate::placement;
use crate::signature::MAX_BATCH_SIZE;
use crate::slots::Slots;
use crate::{
    Parameters, Placement, Request, Response, Signature, Stage, StageKind, StageModel, Tensor,
};

/// The subfolder with the tokenizer of a Q-Former that reads the text, as
/// transformers' `InstructBlipProcessor` keeps it.
pub const QFORMER_TOKENIZER: &str = "qformer_tokenizer";

/// The stage file of `captioner`, and of `caption_decoder`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptionerFile {
    /// What the graphs of this folder are.
    pub facts: CaptionFacts,
}

/// What comes in: a picture's pixels, or what an encoder has made of them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Picture {
    PixelValues,
    Embeds,
}

impl Picture {
    /// The name of the input.
    fn name(self) -> &'static str {
        match self {
            Picture::PixelValues => "pixel_values",
            Picture::Embeds => "picture_embeds",
        }
    }

    /// The shape of one item of it.
    fn shape(self, facts: &CaptionFacts) -> Vec<usize> {
        match self {
            Picture::PixelValues => vec![3, facts.image_size, facts.image_size],
            Picture::Embeds => facts.encoded_shape().to_vec(),
        }
    }
}

struct Shared {
    picture: Picture,
    folder: PathBuf,
    facts: CaptionFacts,
    tokenizer: Arc<CaptionTokenizer>,
    /// Where the Q-Former reads the text: its own.
    qformer_tokenizer: Option<CaptionTokenizer>,
    parameters: Parameters,
}

pub(crate) struct CaptionerModel {
    shared: Arc<Shared>,
    signature: Signature,
    slots: Arc<Slots>,
    captioners: placement::Shared<Arc<SharedCaptioner>>,
}

impl CaptionerModel {
    pub(crate) fn open(
        folder: &Path,
        file: CaptionerFile,
        parameters: &Parameters,
    ) -> Result<Self> {
        Self::reading(Picture::PixelValues, folder, file, parameters)
    }

    /// The model of a `caption_decoder`.
    pub(crate) fn open_decoder(
        folder: &Path,
        file: CaptionerFile,
        parameters: &Parameters,
    ) -> Result<Self> {
        Self::reading(Picture::Embeds, folder, file, parameters)
    }

    fn reading(
        picture: Picture,
        folder: &Path,
        file: CaptionerFile,
        parameters: &Parameters,
    ) -> Result<Self> {
        engine::check(parameters)?;
        let facts = file.facts;
        let mut signature = match picture {
            Picture::PixelValues => StageKind::Captioner.signature(),
            Picture::Embeds => StageKind::CaptionDecoder.signature(),
        };
        let dims: Vec<i64> = picture.shape(&facts).into_iter().map(|size| size as i64).collect();
        signature.set_dims(picture.name(), &dims);
        let qformer_tokenizer = facts
            .qformer_text
            .map(|_| CaptionTokenizer::load(&folder.join(QFORMER_TOKENIZER)))
            .transpose()?;
        let shared = Shared {
            picture,
            folder: folder.to_owned(),
            facts,
            tokenizer: Arc::new(CaptionTokenizer::load(folder)?),
            qformer_tokenizer,
            parameters: parameters.clone(),
        };
        Ok(CaptionerModel {
            shared: Arc::new(shared),
            signature,
            slots: Arc::default(),
            captioners: placement::Shared::default(),
        })
    }
}

impl StageModel for CaptionerModel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn instance(&self, placement: Placement) -> Result<Box<dyn Stage>> {
        Ok(Box::new(self.stage(placement)?))
    }

    fn slots(&self) -> Option<&Slots> {
        Some(&self.slots)
    }
}

impl CaptionerModel {
    /// [`StageModel::instance`], for a stage that has a captioner of its own.
    pub(crate) fn stage(&self, placement: Placement) -> Result<CaptionerStage> {
        let captioner = self.captioners.get(placement, || {
            let shared = self.shared.clone();
            let most = shared.parameters.max_waiting_captions;
            let open = move || shared.open(placement);
            SharedCaptioner::open(open, most, self.slots.clone()).map(Arc::new)
        })?;
        Ok(CaptionerStage { shared: self.shared.clone(), captioner })
    }
}

/// The captioner in `folder` alone, opened as its stage opens it: to be measured.
///
/// # Errors
/// As [`crate::open`].
pub fn alone(folder: &Path, file: CaptionerFile, parameters: &Parameters) -> Result<Captioner> {
    CaptionerModel::open(folder, file, parameters)?.shared.open(parameters.placement)
}

/// An instance: it asks the captioner that all of them share.
pub(crate) struct CaptionerStage {
    shared: Arc<Shared>,
    captioner: Arc<SharedCaptioner>,
}

/// What is said of one item of a request.
enum Item {
    /// Nothing is to be computed: the caption was given, or none is needed.
    Known(String),
    /// To be generated, from these prompt tokens.
    Asked {
        prompt_ids: Option<Vec<u32>>,
        qformer_ids: Option<Vec<u32>>,
        options: GenerationOptions,
    },
}

impl Stage for CaptionerStage {
    fn execute(&mut self, requests: &[Request<'_>]) -> Vec<Result<Response>> {
        self.run(requests, None)
    }
}

impl CaptionerStage {
    /// The tokenizer that the captions are told with.
    pub(crate) fn tokenizer(&self) -> Arc<CaptionTokenizer> {
        self.shared.tokenizer.clone()
    }

    /// [`Stage::execute`]; `tell` hears of each item that is generated, by its request, on
    /// this thread.
    pub(crate) fn run(
        &mut self,
        requests: &[Request<'_>],
        tell: Option<&mut Tell<'_>>,
    ) -> Vec<Result<Response>> {
        let read: Vec<Result<(Vec<Floats<'_>>, Vec<Item>)>> =
            requests.iter().map(|request| self.shared.read(request)).collect();
        let milliseconds = self.shared.parameters.deadline_ms;
        let deadlines: Vec<Deadline<'_>> = requests
            .iter()
            .map(|request| Deadline::new(request.cancellation, milliseconds))
            .collect();

        // The pictures of all requests are captioned side by side.
        let (mut batch, mut owners) = (Vec::new(), Vec::new());
        for (index, (read, deadline)) in read.iter().zip(&deadlines).enumerate() {
            let Ok((pictures, items)) = read else { continue };
            for (item, picture) in items.iter().zip(pictures) {
                if let Item::Asked { prompt_ids, qformer_ids, options } = item {
                    owners.push(index);
                    batch.push(CaptionRequest {
                        picture: picture.clone(),
                        prompt_ids: prompt_ids.as_deref(),
                        qformer_ids: qformer_ids.as_deref(),
                        options: *options,
                        cancel: deadline,
                    });
                }
            }
        }
        let generated = match tell {
            None => self.captioner.caption(&batch, &owners, None),
            Some(tell) => {
                let mut tell = |member: usize, told: Told<'_>| tell(owners[member], told);
                self.captioner.caption(&batch, &owners, Some(&mut tell))
            }
        };
        let mut generated = generated.into_iter();
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
    fn open(&self, placement: Placement) -> Result<Captioner> {
        let runtime = engine::runtime(&self.parameters, placement, &self.folder)?;
        let options = CaptionerOptions {
            engine: engine::options(&self.parameters),
            slots: MAX_BATCH_SIZE,
            max_text_positions: self.parameters.max_caption_positions,
            ..CaptionerOptions::default()
        };
        let open = match self.picture {
            Picture::PixelValues => Captioner::open,
            Picture::Embeds => Captioner::open_decoder,
        };
        open(&self.folder, self.facts.clone(), &*runtime, &options)
    }

    /// The pictures of a request, and what is asked of each item.
    fn read<'a>(&self, request: &'a Request<'_>) -> Result<(Vec<Floats<'a>>, Vec<Item>)> {
        let shape = self.picture.shape(&self.facts);
        let pictures = request.item_floats(self.picture.name(), &shape)?;
        let most = self.parameters.max_text_bytes;
        let texts = request.optional_texts("text", most)?;
        let known = KnownCaptions::new(request, most)?;
        let asked = Asked::new(request, GenerationOptions::from(&self.facts.generation));
        let items = (0..request.batch).map(|item| {
            let options = asked.options(item)?;
            if let Some(caption) = known.of(item)? {
                return Ok(Item::Known(caption.to_owned()));
            }
            let text = texts.as_ref().map(|texts| texts[item]);
            // A Q-Former that reads always has a text: no text is the empty one.
            let text = text.or(self.qformer_tokenizer.as_ref().map(|_| ""));
            let ids = |tokenizer: &CaptionTokenizer| text.map(|text| tokenizer.encode(text));
            Ok(Item::Asked {
                prompt_ids: ids(&self.tokenizer).transpose()?,
                qformer_ids: self.qformer_tokenizer.as_ref().and_then(ids).transpose()?,
                options,
            })
        });
        Ok((pictures, items.collect::<Result<_>>()?))
    }
}

/// What a request says of the captions that need not be generated.
pub(crate) struct KnownCaptions<'a> {
    modes: Option<Vec<&'a str>>,
    given: Option<Vec<&'a str>>,
}

impl<'a> KnownCaptions<'a> {
    /// Reads `mode` and `given_caption`, of at most `most` bytes each.
    pub(crate) fn new(request: &'a Request<'_>, most: usize) -> Result<Self> {
        Ok(KnownCaptions {
            modes: request.optional_texts("mode", most)?,
            given: request.optional_texts("given_caption", most)?,
        })
    }

    /// The caption of an item, where none is to be generated.
    pub(crate) fn of(&self, item: usize) -> Result<Option<&'a str>> {
        if mode(self.modes.as_deref(), item)? == Mode::Negative {
            return Ok(Some(""));
        }
        // As the reference has it, an empty caption is generated anew.
        Ok(self.given.as_ref().map(|given| given[item]).filter(|caption| !caption.is_empty()))
    }
}
