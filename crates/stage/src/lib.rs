//! What each Triton model of the repository does, without a word of Triton: a
//! stage takes the tensors of a batch of requests and gives the tensors of
//! their responses. The backend feeds it from Triton; the `imprompt` command
//! runs the same stages in-process, in the order [`ensemble`] has them.
//!
//! A stage's folder (the model's version folder) holds [`STAGE_FILE`], which
//! says what kind of stage it is, and the files it needs. A stage never knows
//! under which name it is served: SageMaker renames models.
#![forbid(unsafe_code)]

pub mod ensemble;
mod parameters;
mod request;
pub mod signature;

pub use parameters::Parameters;
pub use request::{Data, Request, Response, Tensor};
pub use signature::{Dtype, Signature, StageKind, TensorSpec};

use std::path::Path;

use imprompt_error::Result;

/// The file of a stage's folder that says what the stage is: `{"stage": KIND, ...}`.
pub const STAGE_FILE: &str = "stage.json";

/// What all instances of one stage share: tables, tokenizers, caches, facts.
pub trait StageModel: Send + Sync {
    /// Names, types and shapes of the inputs and outputs.
    fn signature(&self) -> &Signature;

    /// A worker of its own, with its own engine session.
    fn instance(&self) -> Result<Box<dyn Stage>>;
}

/// One instance of a stage: executes one batch at a time.
pub trait Stage: Send {
    /// Answers every request of the batch, in order: `out.len() == requests.len()`.
    /// A bad request costs its own answer only.
    fn execute(&mut self, requests: &[Request<'_>]) -> Vec<Result<Response>>;
}

/// Opens the stage in `folder` (the model's version folder).
pub fn open(folder: &Path, parameters: &Parameters) -> Result<Box<dyn StageModel>> {
    let _ = (folder, parameters);
    Err(imprompt_error::Error::unsupported("stage"))
}
