//! What each Triton model of the repository does, without a word of Triton: a
//! stage takes the tensors of a batch of requests and gives the tensors of
//! their responses. The backend feeds it from Triton; the `imprompt` command
//! runs the same stages in-process, in the order [`ensemble`] has them.
//!
//! A stage's folder (the model's version folder) holds [`STAGE_FILE`], which
//! says what kind of stage it is, and the files it needs. A stage never knows
//! under which name it is served: SageMaker renames models.
#![forbid(unsafe_code)]

pub mod answer;
pub mod caption_stream;
pub mod caption_vision;
pub mod captioner;
pub mod clip_image;
pub mod clip_text;
mod deadline;
mod engine;
pub mod ensemble;
mod files;
pub mod generation;
pub mod invocation;
mod invoked;
mod modes;
mod on_gpu;
mod parameters;
mod placement;
pub mod preprocess;
pub mod ranker;
mod request;
pub mod signature;
mod slots;
pub mod tables;
pub mod tagger;
pub mod text_side;
mod tokenizer;

use std::path::Path;

use imprompt_error::{Error, Result};
use serde::{Deserialize, Serialize};

pub use imprompt_caption::{Load, Watch};
pub use imprompt_engine::{Gpu, GpuBuffer, GpuStream, Held, HeldRows};
pub use parameters::Parameters;
pub use placement::{GpuEngine, Placement};
pub use request::{Data, Request, Response, Tensor};
pub use signature::{Dtype, Signature, StageKind, TensorSpec};
pub use slots::Slots;

/// The file of a stage's folder that says what the stage is: `{"stage": KIND, ...}`.
pub const STAGE_FILE: &str = "stage.json";

/// What all instances of one stage share: tables, tokenizers, caches, facts.
pub trait StageModel: Send + Sync {
    /// Names, types and shapes of the inputs and outputs.
    fn signature(&self) -> &Signature;

    /// A worker of its own, with its own engine session, or a share in one where the stage has
    /// [`Self::slots`], that computes where `placement` says. A stage without engines computes on
    /// the processor whatever it says.
    ///
    /// # Errors
    /// What the engines say of the graphs; `NotFound` and `Unsupported` where there is no such GPU,
    /// or nothing that runs the graphs there.
    fn instance(&self, placement: Placement) -> Result<Box<dyn Stage>>;

    /// The slots that all instances share, in a stage that has such: to be watched before the
    /// first instance is made.
    fn slots(&self) -> Option<&Slots> {
        None
    }
}

/// One instance of a stage: executes one batch at a time.
pub trait Stage: Send {
    /// Answers every request of the batch, in order: `out.len() == requests.len()`.
    /// A bad request costs its own answer only.
    fn execute(&mut self, requests: &[Request<'_>]) -> Vec<Result<Response>>;

    /// Answers every request of the batch through `sink`. What a decoupled stage (see
    /// [`Signature::decoupled`]) is called by; any other answers once.
    fn stream(&mut self, requests: &[Request<'_>], sink: &mut dyn Sink) {
        for (index, outcome) in self.execute(requests).into_iter().enumerate() {
            sink.end(index, outcome);
        }
    }
}

/// Where a decoupled stage puts its responses: for each request, by its index in the
/// batch, any number and then the last.
pub trait Sink {
    /// One more response; others follow.
    ///
    /// # Errors
    /// When it could not be sent: then the last is all that is to follow.
    fn send(&mut self, request: usize, response: Response) -> Result<()>;

    /// The last response, or why there is none. Once a request.
    fn end(&mut self, request: usize, outcome: Result<Response>);
}

/// The stage file: what kind of stage a folder holds, and what that kind needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub enum StageFile {
    /// [`invocation`].
    Invocation(invocation::InvocationFile),
    /// [`preprocess`].
    Preprocess(preprocess::PreprocessFile),
    /// [`clip_image`].
    ClipImage(clip_image::ClipImageFile),
    /// [`clip_text`].
    ClipText(clip_text::ClipTextFile),
    /// [`captioner`].
    Captioner(captioner::CaptionerFile),
    /// [`caption_vision`].
    CaptionVision(caption_vision::CaptionVisionFile),
    /// [`captioner`] behind a `caption_vision`.
    CaptionDecoder(captioner::CaptionerFile),
    /// [`caption_stream`].
    CaptionStream(caption_stream::CaptionStreamFile),
    /// [`ranker`].
    Ranker(ranker::RankerFile),
    /// [`tagger`].
    Tagger(tagger::TaggerFile),
    /// [`answer`].
    Answer(answer::AnswerFile),
}

impl StageFile {
    /// The kind of stage.
    pub fn kind(&self) -> StageKind {
        match self {
            StageFile::Invocation(_) => StageKind::Invocation,
            StageFile::Preprocess(_) => StageKind::Preprocess,
            StageFile::ClipImage(_) => StageKind::ClipImage,
            StageFile::ClipText(_) => StageKind::ClipText,
            StageFile::Captioner(_) => StageKind::Captioner,
            StageFile::CaptionVision(_) => StageKind::CaptionVision,
            StageFile::CaptionDecoder(_) => StageKind::CaptionDecoder,
            StageFile::CaptionStream(_) => StageKind::CaptionStream,
            StageFile::Ranker(_) => StageKind::Ranker,
            StageFile::Tagger(_) => StageKind::Tagger,
            StageFile::Answer(_) => StageKind::Answer,
        }
    }
}

/// Opens the stage in `folder` (the model's version folder).
///
/// # Errors
/// `BadModel` naming the file that is missing or wrong; what the engine says of
/// the graphs.
pub fn open(folder: &Path, parameters: &Parameters) -> Result<Box<dyn StageModel>> {
    files::check_folder(folder)?;
    let text = files::text(folder, STAGE_FILE)?;
    let file: StageFile = serde_json::from_str(&text)
        .map_err(|error| Error::bad_model(format!("{STAGE_FILE}: {error}")))?;
    let library_folders = [Some(folder), folder.parent()].into_iter().flatten();
    let library_folders = library_folders.map(Path::to_owned).collect();
    let parameters = &Parameters { library_folders, ..parameters.clone() };
    let kind = file.kind();
    let model: Box<dyn StageModel> = match file {
        StageFile::Invocation(_) => Box::new(invocation::InvocationModel::open(parameters)),
        StageFile::Answer(_) => Box::new(answer::AnswerModel::open()),
        StageFile::Preprocess(file) => {
            Box::new(preprocess::PreprocessModel::open(folder, &file, parameters)?)
        }
        StageFile::ClipImage(file) => {
            Box::new(clip_image::ClipImageModel::open(folder, file, parameters)?)
        }
        StageFile::ClipText(file) => {
            Box::new(clip_text::ClipTextModel::open(folder, file, parameters)?)
        }
        StageFile::Captioner(file) => {
            Box::new(captioner::CaptionerModel::open(folder, file, parameters)?)
        }
        StageFile::CaptionVision(file) => {
            Box::new(caption_vision::CaptionVisionModel::open(folder, file, parameters)?)
        }
        StageFile::CaptionDecoder(file) => {
            Box::new(captioner::CaptionerModel::open_decoder(folder, file, parameters)?)
        }
        StageFile::CaptionStream(file) => {
            Box::new(caption_stream::CaptionStreamModel::open(folder, file, parameters)?)
        }
        StageFile::Ranker(file) => Box::new(ranker::RankerModel::open(folder, file, parameters)?),
        StageFile::Tagger(file) => Box::new(tagger::TaggerModel::open(folder, file, parameters)?),
    };
    let is_invoked = model.signature().inputs.iter().any(|spec| spec.name == invoked::INVOCATION);
    Ok(match kind {
        StageKind::Answer => model,
        _ if is_invoked => Box::new(invoked::InvokedModel::new(kind, model)),
        _ => model,
    })
}
