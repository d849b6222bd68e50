//! Model repositories: config.pbtxt, building from Hugging Face model folders,
//! label tables, and the same stages run in-process. No Triton, no network.
#![forbid(unsafe_code)]

mod build;
pub mod config;
mod engines;
pub mod files;
mod in_process;
mod layout;
mod manifest;
pub mod parts;
mod precision;
mod progress;
mod source;
mod stage_file;
mod stream;
mod tables;
mod vocabulary;

pub use build::{BuildRequest, build, check_architecture, check_target};
pub use imprompt_engine::Gpu;

pub use engines::{
    COMPUTE_CAPABILITIES, ComputeCapability, GpuEngine, GpuForm, GpuRequest, TENSORRT,
    TENSORRT_FOLDER,
};
pub use imprompt_graph::family;
pub use imprompt_graph::weights::WEIGHT_FILES;
pub use in_process::InProcess;
pub use layout::{CONFIG, MANIFEST};
pub use manifest::{FileEntry, Manifest, Source, TableEntry};
pub use precision::{Bits, Precision, PrecisionChoice};
pub use progress::{Progress, Silent, Unit};
pub use source::{
    CONFIG_FILES, ModelFolder, OPEN_CLIP_FILES, QFORMER_TOKENIZER_FILES, TOKENIZER_FILES,
};
pub use stream::CaptionStream;
pub use vocabulary::{AddTables, add_tables, remove_tables};
