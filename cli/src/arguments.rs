//! The command line: every flag, with what it means.

mod cloud;
mod device;
mod measure;

pub use cloud::{Delete, Deploy, InitImageMode, Invoke, ModelCache, Push, Restyle, Task};
pub use device::{BuildEngine, BuildForm, Device, RunEngine, placement};
pub use measure::{Bench, Check, Part, Sweep};

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use imprompt_stage::Placement;

/// Turns pictures into text: prompts, captions, tags and embeddings.
#[derive(Debug, Parser)]
#[command(
    name = "imprompt",
    version,
    about = "Turns pictures into text: prompts, captions, tags and embeddings",
    long_about = "Turns pictures into text: prompts, captions, tags and embeddings.\n\n\
        First build a model repository out of a CLIP and a captioner, then use it in this \
        process, or serve it with Triton Inference Server and use it from anywhere.",
    after_long_help = "Examples:\n  \
        imprompt build --clip openai/clip-vit-base-patch32 --captioner Salesforce/blip2-opt-2.7b \\\n      \
            --vocabulary clip-interrogator --out models\n  \
        imprompt interrogate photo.jpg --repo models\n  \
        imprompt serve models\n  \
        imprompt tag photos/ --labels 'a cat,a dog' --server http://localhost:8000 --json\n\n\
        Exit codes: 0 done, 1 failed (also when one picture of many failed), 2 wrong usage.\n\
        Results go to stdout, everything else to stderr.",
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build a model repository from Hugging Face models
    Build(Build),
    /// Serve a repository with Triton Inference Server
    Serve(Serve),
    /// Find the prompt that would draw a picture
    Interrogate(Interrogate),
    /// Give labels to pictures, with probabilities
    Tag(Tag),
    /// Describe pictures, or continue a text about them
    Caption(Caption),
    /// Print CLIP embeddings of pictures or texts, as JSON lines
    Embed(Embed),
    /// List, add and remove the label tables of a repository
    #[command(subcommand)]
    Vocabulary(Vocabulary),
    /// List the models that are known by name
    Models(Models),
    /// Measure latency and throughput
    Bench(Bench),
    /// Compare what a GPU answers with what the processor answers
    Check(Check),
    /// Pack one ensemble as a model.tar.gz for SageMaker
    Pack(Pack),
    /// Put a package or a repository into an object store
    Push(Push),
    /// Make or change a SageMaker endpoint
    Deploy(Deploy),
    /// Ask a SageMaker endpoint about pictures
    Invoke(Invoke),
    /// Remove a SageMaker endpoint with all that was made for it
    Delete(Delete),
    /// Make the request that draws a picture in another style (SDXL)
    Restyle(Restyle),
}

/// `imprompt build`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
        imprompt build --clip models/demo-clip --captioner models/demo-blip2 \\\n      \
            --vocabulary models/demo-vocabulary --out demo-repository\n  \
        imprompt build --clip openai/clip-vit-large-patch14 --vocabulary my-terms/ --out tags-only\n  \
        imprompt build --clip ViT-L-14/openai --captioner blip2-2.7b --out models\n\n\
        A model source is a folder as `save_pretrained` writes it (config.json, model.safetensors or \
        pytorch_model.bin or their shards, tokenizer files, preprocessor_config.json), the hub id of \
        one (OWNER/NAME, optionally @REVISION), or one of the names that `imprompt models` lists. \
        HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they always do.\n\n\
        The build writes the ONNX graphs itself and needs no Python. Weights are not converted and not \
        copied: they are hard links to the source's files where the file system allows. An existing \
        repository is replaced; label embeddings that are still right are kept.")]
pub struct Build {
    /// The CLIP: a folder, a hub id, or a known name such as ViT-L-14/openai
    #[arg(long, value_name = "DIR|HF_ID|NAME", required_unless_present_any = ["captioner", "model_names"])]
    pub clip: Option<String>,
    /// The captioner: a folder, a hub id, or a known name such as blip2-2.7b
    #[arg(long, value_name = "DIR|HF_ID|NAME")]
    pub captioner: Option<String>,
    /// A model_name.json: an object with clip_model_name and caption_model_name
    #[arg(long, value_name = "FILE", conflicts_with_all = ["clip", "captioner"])]
    pub model_names: Option<PathBuf>,
    /// A folder of label tables (*.txt, a label a line), or `clip-interrogator` for that package's five; repeatable
    #[arg(long, value_name = "DIR|clip-interrogator")]
    pub vocabulary: Vec<String>,
    /// The device the models run on
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub device: Device,
    /// Threads of each stage instance; 0: one a core
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub threads: u16,
    /// With --device gpu: what runs the graphs there
    #[arg(long, value_enum, default_value_t = BuildEngine::Tensorrt)]
    pub gpu_engine: BuildEngine,
    /// With --device gpu: the form of the graphs there
    #[arg(long, value_enum, default_value_t = BuildForm::Parts)]
    pub gpu_form: BuildForm,
    /// With --device gpu: the cards that engines are built for, such as 8.6 [default: all that there are engines for]
    #[arg(long, value_name = "X.Y", value_delimiter = ',')]
    pub compute_capability: Vec<imprompt_repository::ComputeCapability>,
    /// With --device gpu: the folder of TensorRT's libraries [default: looked for]
    #[arg(long, value_name = "DIR")]
    pub tensorrt: Option<PathBuf>,
    /// In how many bits weights are kept: f32 (as they are), high (as they are; AMX multiplies 16 of 24 bits), f16 (where lossless), int8, int4; with --device gpu, in which type matrices are multiplied: f16 (where nothing is said), bf16, f32; of all parts, or of one: clip_image, clip_text, captioner; screen=int8: chains of `interrogate` sort candidates out in 8 bits and choose in full precision; repeatable
    #[arg(long, value_name = "P|PART=P", value_delimiter = ',')]
    pub precision: Vec<imprompt_repository::PrecisionChoice>,
    /// Put the captioner into two stages, caption_vision and caption_decoder: each with instances, batches and a place of its own
    #[arg(long)]
    pub split_captioner: bool,
    /// Copy the weights even where hard links would do
    #[arg(long)]
    pub copy: bool,
    /// The repository to write
    #[arg(long, value_name = "REPO")]
    pub out: PathBuf,
    /// The ONNX Runtime library that computes the label embeddings [default: looked for]
    #[arg(long, value_name = "FILE")]
    pub onnxruntime: Option<PathBuf>,
}

/// `imprompt serve`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
        imprompt serve models\n  \
        imprompt serve models -- --http-port=9000 --allow-grpc=false\n\n\
        The server is looked for in $TRITONSERVER, /opt/tritonserver/bin/tritonserver and where the \
        project's scripts install it ($IMPROMPT_HOME); the backend, libtriton_imprompt.so, in \
        $IMPROMPT_BACKEND, beside this command and in /opt/tritonserver/backends/imprompt; ONNX Runtime \
        in $IMPROMPT_ONNXRUNTIME and the places that have it. Ctrl-C stops the server.")]
pub struct Serve {
    /// The repository that `imprompt build` made
    #[arg(value_name = "REPO")]
    pub repository: PathBuf,
    /// Flags for tritonserver
    #[arg(last = true, value_name = "TRITONSERVER FLAGS")]
    pub flags: Vec<String>,
}

/// Who answers: a server, or a repository in this process.
#[derive(Debug, Args)]
pub struct Where {
    /// A Triton server's address, such as http://localhost:8000
    #[arg(long, value_name = "URL", conflicts_with = "repo", help_heading = "Where it runs")]
    pub server: Option<String>,
    /// A built repository, to run in this process [default: $IMPROMPT_REPOSITORY]
    #[arg(long, value_name = "REPO", help_heading = "Where it runs")]
    pub repo: Option<PathBuf>,
    /// Threads of each stage in this process; 0: one a core
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1024), help_heading = "Where it runs")]
    pub threads: u16,
    /// The ONNX Runtime library for this process [default: looked for]
    #[arg(long, value_name = "FILE", help_heading = "Where it runs")]
    pub onnxruntime: Option<PathBuf>,
    /// On what this process computes: cpu, gpu, or gpu:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = placement, help_heading = "Where it runs")]
    pub device: Placement,
    /// On a GPU: what runs the graphs
    #[arg(long, value_enum, default_value_t, help_heading = "Where it runs")]
    pub gpu_engine: RunEngine,
}

/// Pictures.
#[derive(Debug, Args)]
pub struct Pictures {
    /// A picture (JPEG, PNG, WebP, GIF, BMP), or a folder of pictures
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
}

/// The heading of [`Generation`].
const GENERATION: &str = "How the caption is generated";

/// How a caption is generated; each flag is an optional input of the ensembles.
#[derive(Clone, Debug, Default, Args)]
pub struct Generation {
    /// Tokens of the caption at most [server's default: 32]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = GENERATION)]
    pub max_new_tokens: Option<i32>,
    /// Tokens of the caption at least [server's default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = GENERATION)]
    pub min_new_tokens: Option<i32>,
    /// Beams: captions that are followed side by side, of which the best is told [server's default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = GENERATION)]
    pub num_beams: Option<i32>,
    /// Draw tokens: above 1 bolder, below 1 tamer, 0 always the best [server's default: 1 when drawing]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = GENERATION)]
    pub temperature: Option<f32>,
    /// Draw among the K best tokens, 0 all [server's default: 50 when drawing]
    #[arg(long, value_name = "K", allow_negative_numbers = true, help_heading = GENERATION)]
    pub top_k: Option<i32>,
    /// Draw among the best tokens that together have this probability [server's default: 1 when drawing]
    #[arg(long, value_name = "P", allow_negative_numbers = true, help_heading = GENERATION)]
    pub top_p: Option<f32>,
    /// Draw; the same seed draws the same caption [server's default: 0 when drawing]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = GENERATION)]
    pub seed: Option<i32>,
    /// Above 1: tokens that were said are less likely [server's default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = GENERATION)]
    pub repetition_penalty: Option<f32>,
    /// With beams: above 0 favours long captions, below 0 short ones [server's default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = GENERATION)]
    pub length_penalty: Option<f32>,
    /// No N tokens come twice in the same order, 0 no matter [server's default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = GENERATION)]
    pub no_repeat_ngram_size: Option<i32>,
}

/// The modes of CLIP Interrogator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Chain terms to the caption as long as they fit the picture better
    Best,
    /// The caption and the best terms of all tables
    Fast,
    /// The caption and the best term of each table
    Classic,
    /// Terms that fit the picture least, for a negative prompt
    Negative,
    /// The caption alone
    Caption,
}

impl Mode {
    /// The name that `interrogate` takes.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Best => "best",
            Mode::Fast => "fast",
            Mode::Classic => "classic",
            Mode::Negative => "negative",
            Mode::Caption => "caption",
        }
    }
}

/// `imprompt interrogate`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
        imprompt interrogate croissant.png --repo models\n  \
        imprompt interrogate photos/ --mode fast --json --server http://localhost:8000 > prompts.jsonl\n\n\
        Plain output is the prompt; with several pictures PATH, a tab and the prompt. A folder run goes \
        on past a bad picture, reports it, and ends with exit code 1.")]
pub struct Interrogate {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub pictures: Pictures,
    /// How the prompt is made
    #[arg(long, value_enum, default_value_t = Mode::Best)]
    pub mode: Mode,
    /// Use this caption instead of making one
    #[arg(long, value_name = "TEXT")]
    pub given_caption: Option<String>,
    /// Terms that best mode adds at least [server's default: 8]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub min_flavors: Option<i32>,
    /// Terms that are added at most [server's default: 32, classic mode 3]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub max_flavors: Option<i32>,
    /// Milliseconds that best and negative look for terms at most: the best prompt found in time is the answer
    #[arg(long, value_name = "MS", allow_negative_numbers = true)]
    pub budget_ms: Option<i32>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub generation: Generation,
    /// One JSON object a line: image, mode, prompt, caption, similarity, seconds
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub place: Where,
}

/// `imprompt tag`.
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("set").required(true).args(["labels", "vocabulary"]),
    after_long_help = "Examples:\n  \
        imprompt tag photo.jpg --labels 'cat,dog,bird' --template 'a photo of a {}' --repo models\n  \
        imprompt tag photos/ --vocabulary mediums --top-k 3 --json --server http://localhost:8000\n\n\
        Plain output is a line a label: probability, similarity, label, separated by tabs; with several \
        pictures PATH comes first."
)]
pub struct Tag {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub pictures: Pictures,
    /// The labels, separated by commas
    #[arg(long, value_name = "A,B,C", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// A label table of the repository, see `imprompt vocabulary list`
    #[arg(long, value_name = "NAME")]
    pub vocabulary: Option<String>,
    /// A text with {} where the label goes [default: the label as it is]
    #[arg(long, value_name = "TEXT")]
    pub template: Option<String>,
    /// Only the K best, best first [default: all, in the order given]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub top_k: Option<i32>,
    /// One JSON object a line: image, labels (label, probability, similarity)
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub place: Where,
}

/// `imprompt caption`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
        imprompt caption photo.jpg --repo models\n  \
        imprompt caption photo.jpg --text 'Question: what colour is the car? Answer:' --repo models\n  \
        imprompt caption photos/ --num-beams 5 --length-penalty -1 --server http://localhost:8000\n  \
        imprompt caption photo.jpg --temperature 0.8 --seed 7 --repo models\n\n\
        Plain output is the caption; with several pictures PATH, a tab and the caption.")]
pub struct Caption {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub pictures: Pictures,
    /// A prompt or question that the caption continues
    #[arg(long, value_name = "TEXT")]
    pub text: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub generation: Generation,
    /// Print the caption as it comes, one picture after the other
    #[arg(long, conflicts_with = "json")]
    pub stream: bool,
    /// One JSON object a line: image, caption
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub place: Where,
}

/// `imprompt embed`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
        imprompt embed photos/ --repo models > pictures.jsonl\n  \
        imprompt embed --text 'a photo of a cat' 'a photo of a dog' --server http://localhost:8000\n\n\
        One JSON object a line: image (the path) or text, and embedding (L2-normalised).")]
pub struct Embed {
    /// A picture (JPEG, PNG, WebP, GIF, BMP), or a folder of pictures
    #[arg(value_name = "PATH", required_unless_present = "text", conflicts_with = "text")]
    pub paths: Vec<PathBuf>,
    /// Texts to embed instead of pictures
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    pub text: Vec<String>,
    /// JSON lines; this is always so here
    #[arg(long, hide = true)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub place: Where,
}

/// `imprompt pack`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
        imprompt pack models --ensemble interrogate --out interrogate.tar.gz\n  \
        imprompt pack models --ensemble zero_shot --with-onnxruntime --out tags.tar.gz\n\n\
        The package holds the ensemble, the stages it needs, and the backend's library under a name \
        with its version, so that a multi-model endpoint never serves new weights with old code. \
        Files that stages share are in it once. The same repository and library give the same bytes. \
        imprompt.json, its last member, has the SHA-256 of every file; unpacked, a package is a repository.\n\n\
        A single-model endpoint needs SAGEMAKER_TRITON_DEFAULT_MODEL_NAME set to the ensemble's name.")]
pub struct Pack {
    /// The repository
    #[arg(value_name = "REPO")]
    pub repository: PathBuf,
    /// The ensemble to pack
    #[arg(long, value_name = "NAME")]
    pub ensemble: String,
    /// The package to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// The backend's library [default: $IMPROMPT_BACKEND, or the one beside this command]
    #[arg(long, value_name = "FILE")]
    pub backend: Option<PathBuf>,
    /// Put ONNX Runtime's library beside it, for images that have none or an older one
    #[arg(long)]
    pub with_onnxruntime: bool,
    /// The ONNX Runtime library to put there [default: looked for]
    #[arg(long, value_name = "FILE", requires = "with_onnxruntime")]
    pub onnxruntime: Option<PathBuf>,
    /// How hard gzip tries: 0 stores, 1 is fast, 9 is small. Weights hardly shrink
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=9))]
    pub compression: u32,
}

/// `imprompt vocabulary`.
#[derive(Debug, Subcommand)]
pub enum Vocabulary {
    /// Print name, number of labels and hash of each label table
    List {
        /// The repository [default: $IMPROMPT_REPOSITORY]
        #[arg(long, value_name = "REPO")]
        repo: Option<PathBuf>,
        /// One JSON object a line: name, labels, hash
        #[arg(long)]
        json: bool,
    },
    /// Add label tables; restart or reload a running server afterwards
    Add {
        /// A label table (a .txt file), a folder of them, or `clip-interrogator`
        #[arg(value_name = "FILE|DIR|clip-interrogator", required = true)]
        sources: Vec<String>,
        /// Replace tables of the same name
        #[arg(long)]
        replace: bool,
        /// The repository [default: $IMPROMPT_REPOSITORY]
        #[arg(long, value_name = "REPO")]
        repo: Option<PathBuf>,
        /// The ONNX Runtime library that computes the embeddings [default: looked for]
        #[arg(long, value_name = "FILE")]
        onnxruntime: Option<PathBuf>,
    },
    /// Remove label tables
    Remove {
        /// Names of tables
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        /// The repository [default: $IMPROMPT_REPOSITORY]
        #[arg(long, value_name = "REPO")]
        repo: Option<PathBuf>,
    },
}

/// `imprompt models`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
        imprompt models --supported\n  \
        imprompt models vit-l --kind clip\n  \
        imprompt models --json > models.jsonl\n\n\
        IN MEMORY is what all weights take in float32; a run needs some more. A dash is a figure that is \
        not documented. Any other folder or hub id of a supported architecture works too.")]
pub struct Models {
    /// Only names that contain this
    #[arg(value_name = "TEXT")]
    pub filter: Option<String>,
    /// Only one kind
    #[arg(long, value_enum)]
    pub kind: Option<ModelRole>,
    /// Only those whose architecture this build supports
    #[arg(long)]
    pub supported: bool,
    /// One JSON object a line: name, hub_id, kind, architecture, parameters, disk_bytes,
    /// memory_bytes, licence, good_for, supported
    #[arg(long)]
    pub json: bool,
}

/// Kinds of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModelRole {
    /// Embeds pictures and texts
    Clip,
    /// Turns pictures into text
    Captioner,
}
