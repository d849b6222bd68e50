//! config.pbtxt of every model, made from the signatures of the stages and from
//! the table of ensembles. The files in the project's `model_repository/` are
//! exactly what [`stage_config`] and [`ensemble_config`] give with [`Sizes::default`]:
//! a test compares them.

use std::fmt::Write as _;

use imprompt_graph::Probability;
use imprompt_stage::ensemble::{Ensemble, Step};
use imprompt_stage::signature::MAX_BATCH_SIZE;
use imprompt_stage::{Parameters, Signature, StageKind, TensorSpec};

/// Requests that may be at a model at a time which instances share: as many as a captioner's cache has slots.
const JOINED_REQUESTS: usize = MAX_BATCH_SIZE;

/// Instances of `tagger`: the labels of one request may be thousands. Others have another instance, and their turns at
/// the text tower.
const TAGGING: usize = 2;

/// Instances of `preprocess`: from two clients on two take up to 6% more requests than one on two cores, and
/// one client as many (docs/benchmarks.md).
const DECODING: usize = 2;

/// The sizes (`None` is written as -1) and the kind of probability that a certain pair of models
/// has.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sizes {
    /// Height and width of CLIP's `pixel_values`.
    pub clip_pixels: Option<[usize; 2]>,
    /// Height and width of the captioner's `pixel_values`.
    pub caption_pixels: Option<[usize; 2]>,
    /// Positions and width of what `caption_vision` makes of a picture.
    pub picture_embeds: Option<[usize; 2]>,
    /// Length of CLIP's embeddings.
    pub embedding: Option<usize>,
    /// Which probability `zero_shot` gives.
    pub probability: Probability,
}

/// The signature of `kind` with the sizes filled in, and without the outputs
/// for which the repository has no model.
pub fn stage_signature(kind: StageKind, sizes: &Sizes, has: Models) -> Signature {
    let mut signature = kind.signature();
    if kind == StageKind::Preprocess {
        signature.outputs.retain(|spec| match spec.name {
            "clip_pixel_values" | "open_clip_pixel_values" => has.clip,
            "caption_pixel_values" => has.captioner,
            _ => true,
        });
    }
    for spec in signature.inputs.iter_mut().chain(&mut signature.outputs) {
        fill(kind, spec, sizes);
    }
    signature
}

/// Which models a repository has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Models {
    /// A CLIP.
    pub clip: bool,
    /// A captioner.
    pub captioner: bool,
}

impl Models {
    /// Both of them, as the shipped configurations have it.
    pub const BOTH: Models = Models { clip: true, captioner: true };
}

fn fill(kind: StageKind, spec: &mut TensorSpec, sizes: &Sizes) {
    let pixels = match (kind, spec.name) {
        (_, "clip_pixel_values" | "open_clip_pixel_values")
        | (StageKind::ClipImage, "pixel_values") => sizes.clip_pixels,
        (_, "caption_pixel_values")
        | (StageKind::Captioner | StageKind::CaptionVision, "pixel_values") => sizes.caption_pixels,
        _ => None,
    };
    if let (Some([height, width]), [_, rows, columns]) = (pixels, spec.dims.as_mut_slice()) {
        (*rows, *columns) = (dim(height), dim(width));
    }
    if let ("picture_embeds", Some([positions, width]), [rows, columns]) =
        (spec.name, sizes.picture_embeds, spec.dims.as_mut_slice())
    {
        (*rows, *columns) = (dim(positions), dim(width));
    }
    let is_embedding = matches!(spec.name, "image_embeds" | "text_embeds");
    if let (true, Some(embedding), [only]) = (is_embedding, sizes.embedding, &mut spec.dims[..]) {
        *only = dim(embedding);
    }
}

fn dim(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(-1)
}

/// What a stage's configuration says of where and how it computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Computing {
    /// Threads of one instance on the processor; 0: one a core.
    pub threads: usize,
    /// Whether instances compute on a GPU where the machine has one.
    pub gpu: bool,
}

/// config.pbtxt of the stage `kind`, which computes as `computing` says.
pub fn stage_config(kind: StageKind, sizes: &Sizes, has: Models, computing: Computing) -> String {
    let signature = stage_signature(kind, sizes, has);
    let mut out = String::new();
    comment(&mut out, purpose(kind));
    comment(&mut out, "The files of this stage are in 1/; 1/stage.json says what they are.");
    out.push_str("backend: \"imprompt\"\n");
    let _ = writeln!(out, "max_batch_size: {MAX_BATCH_SIZE}");
    tensors(&mut out, "input", &signature.inputs);
    tensors(&mut out, "output", &signature.outputs);
    out.push('\n');
    comment(
        &mut out,
        match kind {
            StageKind::Preprocess => "Instances decode side by side.",
            StageKind::ClipText | StageKind::Tagger => {
                "Instances share one text tower and take turns at it."
            }
            StageKind::Invocation | StageKind::Answer => "It takes microseconds: one will do.",
            StageKind::Ranker => {
                "Instances share one text tower and take turns at it: as many requests are under way."
            }
            _ if signature.shares_model => {
                "Instances share one captioner and its KV cache: as many requests are joined at a time."
            }
            _ => "Each instance has an engine session of its own; the weights are shared.",
        },
    );
    let device = match computing.gpu && kind.has_engines() {
        true => {
            comment(
                &mut out,
                "On every GPU, and on the processor where there is none; KIND_GPU demands one.",
            );
            "KIND_AUTO"
        }
        false => "KIND_CPU",
    };
    let count = match kind {
        _ if signature.shares_model => JOINED_REQUESTS,
        StageKind::Preprocess => DECODING,
        StageKind::Tagger => TAGGING,
        _ => 1,
    };
    let _ = writeln!(out, "instance_group [ {{ count: {count} kind: {device} }} ]\n");
    if signature.shares_model {
        comment(
            &mut out,
            "No dynamic_batching: requests meet at what is shared, step by step. Those of a batch",
        );
        comment(&mut out, "would wait for one another.");
        out.push('\n');
    } else {
        // No queue policy: with any, Triton stops prefetching, and a request that comes in the moment
        // an instance ends its batch may wait for 500 ms (docs/backend.md has the measurement).
        comment(
            &mut out,
            "Requests that wait are run together. `default_queue_policy { max_queue_size: N }`",
        );
        comment(&mut out, "bounds their number, at a price in latency: docs/backend.md.");
        out.push_str("dynamic_batching { }\n\n");
    }
    if signature.decoupled {
        comment(&mut out, "A request is answered piece by piece.");
        out.push_str("model_transaction_policy { decoupled: true }\n\n");
    }
    for (key, value, note) in parameters(kind, computing.threads) {
        comment(&mut out, note);
        parameter(&mut out, key, &value);
    }
    out
}

/// config.pbtxt of an ensemble.
pub fn ensemble_config(ensemble: &Ensemble, sizes: &Sizes, has: Models) -> String {
    let mut signature = ensemble.signature(|kind| stage_signature(kind, sizes, has));
    // A client sees one length: the raggedness of a stage's batch is the stage's business.
    for spec in signature.inputs.iter_mut().chain(&mut signature.outputs) {
        spec.ragged = false;
    }
    let mut out = String::new();
    comment(&mut out, ensemble_purpose(ensemble.name));
    // Literally this: SageMaker's front end searches the text for it.
    out.push_str("platform: \"ensemble\"\n");
    let _ = writeln!(out, "max_batch_size: {}", ensemble.max_batch_size);
    tensors(&mut out, "input", &signature.inputs);
    tensors(&mut out, "output", &signature.outputs);
    out.push_str("ensemble_scheduling {\n  step [\n");
    for (index, step) in ensemble.steps.iter().enumerate() {
        one_step(&mut out, step, has, index + 1 == ensemble.steps.len());
    }
    out.push_str("  ]\n}\n");
    if signature.outputs.iter().any(|spec| spec.name == "probability") {
        let (note, value) = match sizes.probability {
            Probability::Softmax => ("over all labels of a request: they add up to 1", "softmax"),
            Probability::Sigmoid { .. } => {
                ("of each label alone: they need not add up to 1", "sigmoid")
            }
        };
        out.push('\n');
        comment(&mut out, &format!("What `probability` is: {note}. For clients to read."));
        parameter(&mut out, "probability", value);
    }
    out
}

fn parameter(out: &mut String, key: &str, value: &str) {
    let _ = writeln!(out, "parameters {{");
    let _ = writeln!(out, "  key: \"{key}\"\n  value: {{ string_value: \"{value}\" }}\n}}");
}

fn one_step(out: &mut String, step: &Step, has: Models, is_last: bool) {
    let _ = writeln!(out, "    {{\n      model_name: \"{}\"", step.stage.name());
    out.push_str("      model_version: -1\n");
    for (inner, outer) in step.inputs {
        let _ = writeln!(out, "      input_map {{ key: \"{inner}\" value: \"{outer}\" }}");
    }
    let signature = stage_signature(step.stage, &Sizes::default(), has);
    for (inner, outer) in step.outputs {
        if signature.outputs.iter().any(|spec| spec.name == *inner) {
            let _ = writeln!(out, "      output_map {{ key: \"{inner}\" value: \"{outer}\" }}");
        }
    }
    out.push_str(if is_last { "    }\n" } else { "    },\n" });
}

fn comment(out: &mut String, text: &str) {
    let _ = writeln!(out, "# {text}");
}

fn tensors(out: &mut String, field: &str, specs: &[TensorSpec]) {
    let _ = writeln!(out, "{field} [");
    for (index, spec) in specs.iter().enumerate() {
        let dims: Vec<String> = spec.dims.iter().map(i64::to_string).collect();
        let _ = writeln!(out, "  {{\n    name: \"{}\"", spec.name);
        let _ = writeln!(out, "    data_type: {}", spec.dtype.config_name());
        let _ = writeln!(out, "    dims: [ {} ]", dims.join(", "));
        if spec.optional {
            out.push_str("    optional: true\n");
        }
        if spec.ragged {
            out.push_str("    allow_ragged_batch: true\n");
        }
        out.push_str(if index + 1 == specs.len() { "  }\n" } else { "  },\n" });
    }
    out.push_str("]\n");
}

fn purpose(kind: StageKind) -> &'static str {
    match kind {
        StageKind::Invocation => {
            "The body of a request, a JSON document or a picture, to the picture and what is asked of it."
        }
        StageKind::Answer => "What the other stages found, in the form that the body asks for.",
        StageKind::Preprocess => {
            "Decodes and orients a picture, and resizes it as CLIP and the captioner want it."
        }
        StageKind::ClipImage => "CLIP's image tower: pixels to an L2-normalised embedding.",
        StageKind::ClipText => "CLIP's text tower: a text to an L2-normalised embedding.",
        StageKind::Captioner => "The caption model: pixels, and an optional prompt, to a caption.",
        StageKind::CaptionVision => {
            "The first half of a caption model: pixels to what caption_decoder reads of a picture."
        }
        StageKind::CaptionDecoder => {
            "The second half of a caption model: a picture's embeddings, and an optional prompt, to a caption."
        }
        StageKind::CaptionStream => {
            "A picture to a caption, told as it is said: over gRPC streams and generate_stream."
        }
        StageKind::Ranker => {
            "CLIP Interrogator: ranks the label tables against a picture and chains terms to a prompt."
        }
        StageKind::Tagger => "Zero-shot labels: of the request, or of a stored label table.",
    }
}

fn ensemble_purpose(name: &str) -> &'static str {
    match name {
        "interrogate" => "A picture to the prompt that would draw it.",
        "caption" => "A picture to a caption, or to the continuation of a text.",
        "zero_shot" => {
            "A picture and labels to probabilities: send `labels`, or the name of a stored \
             `vocabulary`."
        }
        "embed_image" => "A picture to its CLIP embedding.",
        "embed_text" => "A text to its CLIP embedding.",
        "invocations" => {
            "The body of a request as SageMaker's clients send it to the answer as JSON: a prompt, \
             probabilities or labels."
        }
        "invocations_interrogate" => {
            "The body of a request as SageMaker's clients send it to a prompt, as JSON."
        }
        "invocations_zero_shot" => {
            "The body of a request as SageMaker's clients send it to probabilities or labels, as JSON."
        }
        "invocations_generate" => {
            "A picture to a prompt, by the names that Triton's generate extension finds in a body."
        }
        _ => "An ensemble of the stages beside it.",
    }
}

/// (key, value, why one would change it) of the parameters worth showing.
fn parameters(kind: StageKind, threads: usize) -> Vec<(&'static str, String, &'static str)> {
    let default = Parameters::default();
    let session = ("threads", threads.to_string(), "Threads of one instance; 0: one a core.");
    let shared = ("threads", threads.to_string(), "Threads of the captioner; 0: one a core.");
    let tower = ("threads", threads.to_string(), "Threads of the text tower; 0: one a core.");
    let text = (
        "max_text_bytes",
        default.max_text_bytes.to_string(),
        "Most bytes of one text of a request.",
    );
    let deadline = (
        "deadline_ms",
        default.deadline_ms.to_string(),
        "Milliseconds after which a request is given up between two steps; 0: never.",
    );
    let waiting = (
        "max_waiting_captions",
        default.max_waiting_captions.to_string(),
        "Captions that may wait for slots; more are refused as unavailable.",
    );
    let picture = [
        (
            "max_image_bytes",
            default.max_image_bytes.to_string(),
            "Most bytes of an encoded picture.",
        ),
        ("max_image_side", default.max_image_side.to_string(), "Most pixels on a side."),
        (
            "max_image_pixels",
            default.max_image_pixels.to_string(),
            "Most pixels of a picture, known from its header before it is decoded.",
        ),
    ];
    let labels = ("max_labels", default.max_labels.to_string(), "Most labels of one request.");
    match kind {
        StageKind::Answer => vec![],
        StageKind::Invocation => vec![picture[0].clone(), labels, text],
        StageKind::Preprocess => picture.to_vec(),
        StageKind::CaptionStream => {
            [vec![shared], picture.to_vec(), vec![text, waiting, deadline]].concat()
        }
        StageKind::ClipImage => vec![session],
        StageKind::CaptionVision => vec![session, text],
        StageKind::ClipText => vec![tower, text],
        StageKind::Captioner | StageKind::CaptionDecoder => vec![shared, text, waiting, deadline],
        StageKind::Ranker => vec![tower, text, deadline],
        StageKind::Tagger => vec![
            tower,
            text,
            labels,
            (
                "label_cache_size",
                default.label_cache_size.to_string(),
                "Label embeddings kept for requests to come.",
            ),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imprompt_graph::Probability;
    use imprompt_stage::ensemble::{ENSEMBLES, INVOCATIONS};
    use std::path::PathBuf;

    /// Every shipped configuration: (path under `model_repository/`, text).
    fn shipped() -> Vec<(String, String)> {
        let sizes = Sizes::default();
        // Made by `--split-captioner` alone, in the place of `captioner`.
        let halves = [StageKind::CaptionVision, StageKind::CaptionDecoder];
        let stages = StageKind::ALL.into_iter().filter(|kind| !halves.contains(kind)).map(|kind| {
            (kind.name().to_owned(), stage_config(kind, &sizes, Models::BOTH, Computing::default()))
        });
        let ensembles = ENSEMBLES.iter().chain(&INVOCATIONS).map(|ensemble| {
            (ensemble.name.to_owned(), ensemble_config(ensemble, &sizes, Models::BOTH))
        });
        stages.chain(ensembles).map(|(name, text)| (format!("{name}/config.pbtxt"), text)).collect()
    }

    /// `IMPROMPT_WRITE_CONFIGS=1 cargo test -p imprompt-repository shipped` writes them anew.
    #[test]
    fn shipped_files_equal_the_rendering() {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../model_repository");
        let configs = shipped();
        for (path, text) in &configs {
            let file = root.join(path);
            if std::env::var_os("IMPROMPT_WRITE_CONFIGS").is_some() {
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::fs::write(&file, text).unwrap();
            }
            let found = std::fs::read_to_string(&file).unwrap_or_default();
            assert_eq!(&found, text, "{path} differs from its rendering");
        }
        let folders = std::fs::read_dir(&root)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir());
        assert_eq!(folders.count(), configs.len());
    }

    #[test]
    fn a_request_of_every_instance_finds_room_in_the_queue() {
        let most = Parameters::default().max_waiting_captions + MAX_BATCH_SIZE;
        assert!(JOINED_REQUESTS * MAX_BATCH_SIZE <= most);
    }

    #[test]
    fn sizes_replace_minus_one() {
        let sizes = Sizes {
            clip_pixels: Some([224, 224]),
            caption_pixels: Some([364, 280]),
            picture_embeds: Some([32, 768]),
            embedding: Some(512),
            probability: Probability::Sigmoid { bias: -10.0 },
        };
        let preprocess =
            stage_config(StageKind::Preprocess, &sizes, Models::BOTH, Computing::default());
        assert!(preprocess.contains("dims: [ 3, 224, 224 ]"), "{preprocess}");
        assert!(preprocess.contains("dims: [ 3, 364, 280 ]"));
        let vision =
            stage_config(StageKind::CaptionVision, &sizes, Models::BOTH, Computing::default());
        assert!(vision.contains("dims: [ 32, 768 ]") && vision.contains("dims: [ 3, 364, 280 ]"));
        let named = |name| ENSEMBLES.iter().find(|ensemble| ensemble.name == name).unwrap();
        assert!(
            ensemble_config(named("embed_text"), &sizes, Models::BOTH).contains("dims: [ 512 ]")
        );
        let zero_shot = ensemble_config(named("zero_shot"), &sizes, Models::BOTH);
        assert!(zero_shot.contains("  value: { string_value: \"sigmoid\" }"), "{zero_shot}");
        let tagger = stage_config(
            StageKind::Tagger,
            &sizes,
            Models::BOTH,
            Computing { threads: 3, ..Computing::default() },
        );
        assert!(tagger.contains("dims: [ -1 ]\n    optional: true\n    allow_ragged_batch: true"));
        assert!(tagger.contains("key: \"threads\"\n  value: { string_value: \"3\" }"));
        for kind in StageKind::ALL {
            let text = stage_config(kind, &sizes, Models::BOTH, Computing::default());
            // Lists of labels, and the input `after`.
            let open = match kind {
                StageKind::Tagger => 4 + 1,
                StageKind::Answer => 3,
                StageKind::Captioner | StageKind::CaptionVision => 1,
                _ => 0,
            };
            assert_eq!(text.matches("[ -1 ]").count(), open, "{text}");
        }
    }

    #[test]
    fn a_repository_without_a_captioner_has_no_caption_pixels() {
        let has = Models { clip: true, captioner: false };
        let text =
            stage_config(StageKind::Preprocess, &Sizes::default(), has, Computing::default());
        assert!(text.contains("\"clip_pixel_values\"") && !text.contains("caption_pixel_values"));
    }

    #[test]
    fn every_parameter_shown_is_one_that_a_stage_takes() {
        for kind in StageKind::ALL {
            let mut taken = Parameters::default();
            for (key, value, _) in parameters(kind, 0) {
                taken.set(key, &value).unwrap();
            }
            assert_eq!(taken, Parameters::default());
        }
    }
}
