//! The flags of the commands that measure and compare.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Mode, Pictures, Where};

/// `imprompt check`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
        imprompt check photos/ --repo repository --device gpu\n  \
        imprompt check photos/ --repo repository --device gpu:1 --gpu-engine cuda --json\n\n\
        Every picture is embedded, captioned and interrogated on the processor and on the device, in \
        this process, and the answers are compared. Ends with 1 where an embedding's cosine is \
        below --least-cosine or a caption differs; prompts, whose terms may hang on the last digit \
        of a float16, are counted.")]
pub struct Check {
    #[command(flatten)]
    pub pictures: Pictures,
    /// Cosine that an embedding on the device has at least with that of the processor
    #[arg(long, value_name = "X", default_value_t = 0.999)]
    pub least_cosine: f32,
    /// Tokens of each caption at most
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub max_new_tokens: i32,
    #[command(flatten)]
    pub place: Where,
    /// One JSON object a comparison instead of the table
    #[arg(long)]
    pub json: bool,
}

/// `imprompt bench`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
        imprompt bench croissant.png --repo models\n  \
        imprompt bench photos/ --part zero_shot --labels cat,dog --concurrency 1,8,64 --requests 400 \\\n      \
            --server http://localhost:8000 --json\n  \
        imprompt bench --part text,chain,image --repo models\n  \
        imprompt bench croissant.png --part all --sweep labels,batch --html report.html --repo models\n\n\
        Requests go round the pictures; each of --concurrency callers waits for its answer before it \
        asks again (closed loop). Percentiles are of single requests, warm-up not counted.\n\n\
        interrogate, caption, zero_shot and embed_image are whole requests, of a server or in this \
        process. The other parts are measured alone, in this process: text (texts to embeddings), chain \
        (a step of the chain), image (CLIP's image tower), captioner (encoders and tokens), picture \
        (decoding and resizing, needs no repository) and rank (a label table against a picture; without \
        --table one of random rows, which needs no repository either).")]
pub struct Bench {
    /// A picture (JPEG, PNG, WebP, GIF, BMP), or a folder of pictures
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// What to measure; several separated by commas, or `all`
    #[arg(
        long,
        value_enum,
        alias = "ensemble",
        value_delimiter = ',',
        value_name = "PART",
        default_values_t = [Part::Interrogate]
    )]
    pub part: Vec<Part>,
    /// The mode of `interrogate`
    #[arg(long, value_enum, default_value_t = Mode::Best)]
    pub mode: Mode,
    /// The caption that `interrogate` starts from, instead of making one
    #[arg(long, value_name = "TEXT")]
    pub given_caption: Option<String>,
    /// Terms that mode best adds at least [server's default: 8]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub min_flavors: Option<i32>,
    /// Terms that are added at most [server's default: 32, classic mode 3]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub max_flavors: Option<i32>,
    /// The labels of `zero_shot`, separated by commas [default: ten]
    #[arg(long, value_name = "A,B,C", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Tokens of each caption: no fewer, no more [default: the model ends it; 20 for `captioner`]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub tokens: Option<u16>,
    /// Texts, phrases, pictures or table rows of one request [default: text 256, chain 2048, rank
    /// 111867, else 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub batch: Option<u32>,
    /// The texts of `text` and the phrases of `chain`, a line each [default: labels of the repository]
    #[arg(long, value_name = "FILE")]
    pub texts: Option<PathBuf>,
    /// The prompt that `chain` continues [default: one of about 30 tokens]
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// A label table for `rank`: clip-interrogator's cache format, its labels 0, 1, 2 ..., and in it
    /// `image_embeds` (FP32), the picture
    #[arg(long, value_name = "FILE")]
    pub table: Option<PathBuf>,
    /// Requests that are measured, at most
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub requests: u32,
    /// Requests before that
    #[arg(long, default_value_t = 3)]
    pub warm_up: u32,
    /// Seconds after which no request is begun any more, warm-up apart
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub limit: u32,
    /// Callers at the same time; several numbers separated by commas are measured one after the other
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_values_t = [1],
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    pub concurrency: Vec<u16>,
    /// Measure how cost grows; several separated by commas
    #[arg(long, value_enum, value_name = "WITH", value_delimiter = ',')]
    pub sweep: Vec<Sweep>,
    /// Write a report with plots, a page that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// One JSON object a measurement instead of the tables
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub place: Where,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Part {
    Interrogate,
    Caption,
    ZeroShot,
    EmbedImage,
    Text,
    Chain,
    Image,
    Captioner,
    Picture,
    Rank,
    All,
}

impl Part {
    /// The name, of an ensemble that in a repository.
    pub fn name(self) -> &'static str {
        match self {
            Part::Interrogate => "interrogate",
            Part::Caption => "caption",
            Part::ZeroShot => "zero_shot",
            Part::EmbedImage => "embed_image",
            Part::Text => "text",
            Part::Chain => "chain",
            Part::Image => "image",
            Part::Captioner => "captioner",
            Part::Picture => "picture",
            Part::Rank => "rank",
            Part::All => "all",
        }
    }

    /// True of whole requests, which a server answers too.
    pub fn is_ensemble(self) -> bool {
        matches!(self, Part::Interrogate | Part::Caption | Part::ZeroShot | Part::EmbedImage)
    }

    /// True where pictures are needed.
    pub fn needs_pictures(self) -> bool {
        self.is_ensemble() || self == Part::Picture
    }
}

/// What cost may grow with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Sweep {
    /// Labels of a stored table, 10 to 1,000,000, and labels of a request, new and known ones
    Labels,
    /// Phrases of a chain's step
    Candidates,
    /// Pictures of a batch: image tower and captioner
    Batch,
    /// Callers of a server
    Clients,
}
