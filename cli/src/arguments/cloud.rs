//! The flags of the commands that talk to object stores and SageMaker.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// `imprompt push`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
        imprompt push interrogate.tar.gz s3://my-models/endpoint/\n  \
        imprompt push models s3://my-models/repository --delete\n  \
        imprompt push models gs://my-models/repository --json > pushed.jsonl\n\n\
        A package (*.tar.gz) gets the address itself where that ends in .tar.gz, else its own name in that \
        folder. A repository becomes a folder that Triton serves from the store itself \
        (--model-repository s3://...); the server then needs libtriton_imprompt.so in its backend directory, \
        since Triton loads no backend from a store.\n\n\
        What the store has already, by length and SHA-256, is not sent again. Large files go in parts; a push \
        that was interrupted goes on when the same command is run again (S3 and Google).\n\n\
        Credentials: AWS's usual chain (environment, profile, SSO, container, instance), AWS_REGION and \
        AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3; GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_NAME \
        with AZURE_STORAGE_ACCOUNT_KEY, a SAS token or an identity. They are never printed.\n\n\
        --json: one object a line: url, done (uploaded, copied, unchanged, deleted), bytes, sha256.")]
pub struct Push {
    /// A package that `imprompt pack` made, or a repository
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,
    /// s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX
    #[arg(value_name = "URL")]
    pub url: String,
    /// Remove what else lies in the folder of a repository, such as models of an earlier one
    #[arg(long)]
    pub delete: bool,
    /// One JSON object a line and object of the store
    #[arg(long)]
    pub json: bool,
    /// Parts, or files, that are under way at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub parallel: u8,
    /// Mebibytes of a part; that times --parallel is the memory it takes
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = clap::value_parser!(u16).range(5..=1024))]
    pub part_size: u16,
    /// AWS's region [default: AWS_REGION, or the profile's]
    #[arg(long, value_name = "NAME")]
    pub region: Option<String>,
    /// Also without encryption to another machine (http)
    #[arg(long)]
    pub allow_http: bool,
}

/// `imprompt deploy`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
        imprompt deploy --name prompts --model-data s3://my-models/interrogate.tar.gz --ensemble interrogate \\\n      \
            --role arn:aws:iam::123456789012:role/sagemaker --instance-type ml.c6i.2xlarge \\\n      \
            --image 763104351884.dkr.ecr.us-east-1.amazonaws.com/sagemaker-tritonserver:25.04-py3\n  \
        imprompt deploy --name many --model-data s3://my-models/packages/ --multi-model --role ... --image ... \\\n      \
            --instance-type ml.m6i.4xlarge --autoscale 1..4 --autoscale-target 60 --dry-run\n\n\
        Makes the endpoint, or moves it to what is said here: model and configuration get names that follow \
        from what is in them, so that the same command again changes nothing. Those of before are removed when \
        the endpoint has moved. Another package at the same address is the same to SageMaker until it is said \
        with --revision, such as the package's SHA-256.\n\n\
        --dry-run prints each request as a line of JSON (when, method, url, headers, body) and asks nobody.")]
pub struct Deploy {
    /// The endpoint's name
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// A package, s3://BUCKET/MODEL.tar.gz; with --multi-model the folder of packages, s3://BUCKET/FOLDER/
    #[arg(long, value_name = "URL")]
    pub model_data: String,
    /// Serve every package of a folder, each loaded when it is asked for
    #[arg(long)]
    pub multi_model: bool,
    /// Whether a multi-model endpoint keeps the models it has loaded [SageMaker's default: enabled]
    #[arg(long, value_enum, value_name = "SETTING", requires = "multi_model")]
    pub model_cache: Option<ModelCache>,
    /// The ensemble in the package of a single-model endpoint
    #[arg(long, value_name = "NAME", conflicts_with = "multi_model")]
    pub ensemble: Option<String>,
    /// The role that SageMaker takes: it must read the package and pull the image
    #[arg(long, value_name = "ARN")]
    pub role: String,
    /// The Triton container of SageMaker, in the endpoint's region
    #[arg(long, value_name = "URI")]
    pub image: String,
    /// Such as ml.g5.xlarge
    #[arg(long, value_name = "TYPE")]
    pub instance_type: String,
    /// Instances to begin with
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub instance_count: u32,
    /// Gigabytes of disk an instance has for models [SageMaker's default follows the instance]
    #[arg(long, value_name = "GB", value_parser = clap::value_parser!(u32).range(1..=512))]
    pub volume_size: Option<u32>,
    /// Seconds in which the container has to become healthy [SageMaker's default: 300]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(60..=3600))]
    pub health_check_timeout: Option<u32>,
    /// Seconds in which the package has to be downloaded and unpacked [SageMaker's default: 3600]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(60..=3600))]
    pub model_download_timeout: Option<u32>,
    /// A variable of the container's environment; repeatable
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Let AWS choose between so many instances [default: always --instance-count]
    #[arg(long, value_name = "MIN..MAX")]
    pub autoscale: Option<String>,
    /// Requests a minute that each instance shall have
    #[arg(long, value_name = "N", default_value_t = 60.0, requires = "autoscale")]
    pub autoscale_target: f64,
    /// Keep requests and answers, pictures among them, at this address [default: not kept]
    #[arg(long, value_name = "URL")]
    pub data_capture: Option<String>,
    /// How many of a hundred requests to keep
    #[arg(long, value_name = "N", default_value_t = 100, requires = "data_capture", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub data_capture_percent: u8,
    /// Any text; another one makes a new model of the same arguments
    #[arg(long, value_name = "TEXT")]
    pub revision: Option<String>,
    /// Keep models and configurations of before
    #[arg(long)]
    pub keep_old: bool,
    /// Seconds to wait for the endpoint to be in service; 0: do not wait
    #[arg(long, value_name = "S", default_value_t = 3600)]
    pub wait: u32,
    /// Print the requests and make none
    #[arg(long)]
    pub dry_run: bool,
    /// One JSON object at the end: endpoint, status, config, model, done, removed
    #[arg(long)]
    pub json: bool,
    /// AWS's region [default: AWS_REGION, or the profile's]
    #[arg(long, value_name = "NAME")]
    pub region: Option<String>,
}

/// Whether loaded models are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModelCache {
    /// Until memory is needed
    Enabled,
    /// Each is unloaded after its request
    Disabled,
}

/// `imprompt delete`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
        imprompt delete --endpoint prompts --dry-run\n  \
        imprompt delete --endpoint prompts --yes\n\n\
        Removes the endpoint, its configuration and models, those of earlier deployments, and its \
        autoscaling; asks before. Packages in S3 stay.")]
pub struct Delete {
    /// The endpoint's name
    #[arg(long, value_name = "NAME")]
    pub endpoint: String,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Print the requests that would delete, and make none of them
    #[arg(long)]
    pub dry_run: bool,
    /// Seconds to wait for the endpoint to be gone
    #[arg(long, value_name = "S", default_value_t = 1800)]
    pub wait: u32,
    /// AWS's region [default: AWS_REGION, or the profile's]
    #[arg(long, value_name = "NAME")]
    pub region: Option<String>,
}

/// What an endpoint serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Task {
    Interrogate,
    Caption,
    ZeroShot,
    EmbedImage,
}

/// `imprompt invoke`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
        imprompt invoke --endpoint prompts croissant.png\n  \
        imprompt invoke --endpoint prompts photos/ --mode best,fast,classic,negative,caption --json\n  \
        imprompt invoke --endpoint many --target-model tags.tar.gz photo.jpg --labels cat,dog --top-k 1\n\n\
        Output is as that of `interrogate`, `tag`, `caption` and `embed`; with several modes the mode comes \
        before the prompt. A model that is loaded for the first time may take minutes: the command waits.")]
pub struct Invoke {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub pictures: super::Pictures,
    /// The endpoint's name
    #[arg(long, value_name = "NAME")]
    pub endpoint: String,
    /// Of a multi-model endpoint the package, as it is called in its folder
    #[arg(long, value_name = "PACKAGE")]
    pub target_model: Option<String>,
    /// What the package holds [default: zero_shot with --labels or --vocabulary, else interrogate]
    #[arg(long, value_enum, value_name = "NAME")]
    pub ensemble: Option<Task>,
    /// How prompts are made; several separated by commas [default: best]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "MODE")]
    pub mode: Vec<super::Mode>,
    /// Use this caption instead of making one
    #[arg(long, value_name = "TEXT")]
    pub given_caption: Option<String>,
    /// Terms that best mode adds at least [server's default: 8]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub min_flavors: Option<i32>,
    /// Terms that are added at most [server's default: 32, classic mode 3]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub max_flavors: Option<i32>,
    /// Milliseconds that best and negative look for terms at most
    #[arg(long, value_name = "MS", allow_negative_numbers = true)]
    pub budget_ms: Option<i32>,
    /// Labels of `zero_shot`, separated by commas
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', conflicts_with = "vocabulary")]
    pub labels: Vec<String>,
    /// A label table in the package, for `zero_shot`
    #[arg(long, value_name = "NAME")]
    pub vocabulary: Option<String>,
    /// A text with {} where the label goes, for `zero_shot`
    #[arg(long, value_name = "TEXT")]
    pub template: Option<String>,
    /// A text that the answer of `caption` continues
    #[arg(long, value_name = "TEXT")]
    pub text: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub generation: super::Generation,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
    /// AWS's region [default: AWS_REGION, or the profile's]
    #[arg(long, value_name = "NAME")]
    pub region: Option<String>,
}

/// `imprompt restyle`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
        imprompt restyle croissant.png --style van-gogh/the-starry-night --repo models > request.json\n  \
        imprompt restyle croissant.png --style hokusai/the-great-wave-off-kanagawa --repo models \\\n      \
            --endpoint sdxl --out wave.png\n  \
        imprompt restyle croissant.png --template 'a watercolour, {prompt}' --seed 7 --server http://localhost:8000\n\n\
        Interrogates the picture, puts the prompt into the style's sentence, adds what `interrogate` finds in \
        mode negative with a negative weight, and prints the request of Stability's SDXL 1.0 as JSON. With \
        --endpoint that is sent to a deployed one and the picture written. The picture itself is sent with \
        --init-image alone.\n\n\
        Styles: van-gogh/the-starry-night, hokusai/the-great-wave-off-kanagawa, monet/water-lilies, \
        klimt/the-kiss, munch/the-scream, seurat/la-grande-jatte, vermeer/girl-with-a-pearl-earring, \
        kandinsky/composition-viii.")]
pub struct Restyle {
    /// The picture
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
    /// A known style, ARTIST/PAINTING
    #[arg(long, value_name = "NAME", required_unless_present = "template")]
    pub style: Option<String>,
    /// A text with {prompt}, and {artist} and {style} if there is a style
    #[arg(long, value_name = "TEXT")]
    pub template: Option<String>,
    /// How the prompt is made
    #[arg(long, value_enum, default_value_t = super::Mode::Best)]
    pub mode: super::Mode,
    /// Use this caption instead of making one
    #[arg(long, value_name = "TEXT")]
    pub given_caption: Option<String>,
    /// Use this prompt instead of interrogating
    #[arg(long, value_name = "TEXT", conflicts_with = "given_caption")]
    pub prompt: Option<String>,
    /// What shall not be seen [default: the prompt of mode negative]
    #[arg(long, value_name = "TEXT", conflicts_with = "no_negative")]
    pub negative: Option<String>,
    /// No negative prompt
    #[arg(long)]
    pub no_negative: bool,
    /// The weight of what shall not be seen
    #[arg(long, value_name = "X", default_value_t = -1.0, allow_negative_numbers = true)]
    pub negative_weight: f64,
    /// The same seed draws the same picture; 0: any [default: that of the AWS sample]
    #[arg(long, value_name = "N", default_value_t = 418, hide_default_value = true)]
    pub seed: u32,
    /// Width, one of SDXL's with its height [default: the nearest to the picture's shape]
    #[arg(long, value_name = "PIXELS", requires = "height", conflicts_with = "init_image")]
    pub width: Option<u32>,
    /// Height
    #[arg(long, value_name = "PIXELS", requires = "width")]
    pub height: Option<u32>,
    /// How closely the prompt is followed, 0 to 35
    #[arg(long, value_name = "X", default_value_t = 7.0, allow_negative_numbers = true)]
    pub cfg_scale: f64,
    /// Steps of diffusion, 10 to 150
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub steps: u32,
    /// Pictures to draw, 1 to 10
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub samples: u32,
    /// SDXL's sampler, such as K_DPMPP_2M [default: the endpoint's choice]
    #[arg(long, value_name = "NAME")]
    pub sampler: Option<String>,
    /// SDXL's own style, such as photographic or digital-art
    #[arg(long, value_name = "NAME")]
    pub style_preset: Option<String>,
    /// SDXL's CLIP guidance, such as FAST_BLUE
    #[arg(long, value_name = "NAME")]
    pub clip_guidance_preset: Option<String>,
    /// A picture to begin from, of one of SDXL's sizes
    #[arg(long, value_name = "FILE")]
    pub init_image: Option<PathBuf>,
    /// How what --init-image weighs is said
    #[arg(long, value_enum, default_value_t = InitImageMode::ImageStrength, requires = "init_image")]
    pub init_image_mode: InitImageMode,
    /// How much of --init-image stays, 0 to 1 [default: 0.35]
    #[arg(long, value_name = "X", requires = "init_image", allow_negative_numbers = true)]
    pub image_strength: Option<f64>,
    /// With step-schedule: where to begin, 0 to 1
    #[arg(long, value_name = "X", requires = "init_image", allow_negative_numbers = true)]
    pub step_schedule_start: Option<f64>,
    /// With step-schedule: where to end, 0 to 1
    #[arg(long, value_name = "X", requires = "init_image", allow_negative_numbers = true)]
    pub step_schedule_end: Option<f64>,
    /// A SageMaker endpoint of SDXL that draws the picture
    #[arg(long, value_name = "NAME", requires = "out")]
    pub endpoint: Option<String>,
    /// The picture to write; of several FILE-2, FILE-3 and so on
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    pub out: Option<PathBuf>,
    /// AWS's region [default: AWS_REGION, or the profile's]
    #[arg(long, value_name = "NAME")]
    pub region: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub place: super::Where,
}

/// How the weight of a first picture is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InitImageMode {
    /// By --image-strength
    ImageStrength,
    /// By --step-schedule-start and --step-schedule-end
    StepSchedule,
}
