//! Parts measured alone, in this process.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use imprompt_repository::parts::{self, CaptionerPart, ImagePart, PicturePart, RankPart, TextPart};
use imprompt_stage::Parameters;
use safetensors::SafeTensors;
use serde_json::{Value, json};

use super::Bencher;
use super::measurement::{Latency, Measurement, Plan, Sample, stage_times};
use crate::arguments::Part;
use crate::ask;
use crate::talk::{Failure, Result};

/// Texts of a request where nothing is said.
const TEXTS: usize = 256;

/// Phrases of a chain's step: clip-interrogator's `flavor_intermediate_count`.
pub const CANDIDATES: usize = 2_048;

/// Rows of clip-interrogator's merged table.
const ROWS: usize = 111_867;

/// Width of the embeddings where no repository says it: CLIP ViT-L/14's.
const DIMENSION: usize = 768;

/// Tokens of a caption where nothing is said.
const TOKENS: usize = 20;

/// How many of the best rows are asked for: `top_k` of `zero_shot`.
const TOP_K: usize = 10;

/// What a chain's step continues where nothing is said: about 30 tokens.
const PROMPT: &str = "a painting of a small wooden house beside a lake in the mountains, morning light, by \
     a painter of the nineteenth century, highly detailed, warm colors, soft shadows";

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Numbers of -2 to 2 without a pattern: the time does not depend on them.
fn noise(count: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1_u64 << 24) as f32) * 4.0 - 2.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// A part, opened: what one request does.
pub enum Opened {
    Text { part: TextPart, texts: Vec<String> },
    Chain { part: TextPart, phrases: Vec<String>, prompt: String, image: Vec<f32> },
    Image { part: ImagePart },
    Captioner { part: CaptionerPart, tokens: usize },
    Picture { part: PicturePart, pictures: Vec<Vec<u8>> },
    Rank { table: RankTable },
}

/// The table that is ranked, made or opened for as many rows as asked for.
pub struct RankTable {
    dimension: usize,
    image: Vec<f32>,
    file: Option<std::path::PathBuf>,
    opened: Option<(usize, RankPart)>,
}

impl RankTable {
    fn of(&mut self, rows: usize) -> Result<&RankPart> {
        if self.opened.as_ref().is_none_or(|(has, _)| *has != rows) {
            // The old table goes before the new one comes.
            self.opened = None;
            let part = match &self.file {
                Some(file) => RankPart::open(file, rows, self.dimension)?,
                None => RankPart::random(rows, self.dimension)?,
            };
            self.opened = Some((rows, part));
        }
        match &self.opened {
            Some((_, part)) => Ok(part),
            None => Err(Failure::new("no table")),
        }
    }
}

/// Lines of a file, or the labels of the repository.
fn texts(file: Option<&Path>, repository: &Path) -> Result<Vec<String>> {
    let texts = match file {
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
            text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
        }
        None => parts::phrases(repository)?,
    };
    match texts.is_empty() {
        false => Ok(texts),
        true => Err(Failure::new("there are no texts to measure with").hint(
            "pass a file of them with --texts FILE, or build the repository with --vocabulary",
        )),
    }
}

impl Opened {
    /// Opens `part` as the command line says.
    pub fn open(bencher: &Bencher<'_>, part: Part) -> Result<Self> {
        let arguments = bencher.arguments;
        if arguments.place.server.is_some() {
            return Err(Failure::usage(format!(
                "part `{}` is measured in this process",
                part.name()
            ))
            .hint("leave --server out, and name a repository with --repo REPO"));
        }
        let place = || ask::repository(&arguments.place);
        let prompt = || arguments.prompt.clone().unwrap_or_else(|| PROMPT.to_owned());
        Ok(match part {
            Part::Text => {
                let (repository, parameters) = place()?;
                let texts = texts(arguments.texts.as_deref(), &repository)?;
                Opened::Text { part: TextPart::open(&repository, &parameters)?, texts }
            }
            Part::Chain => {
                let (repository, parameters) = place()?;
                let phrases = texts(arguments.texts.as_deref(), &repository)?;
                let part = TextPart::open(&repository, &parameters)?;
                let image = noise(part.dimension());
                Opened::Chain { part, phrases, prompt: prompt(), image }
            }
            Part::Image => {
                let (repository, parameters) = place()?;
                Opened::Image { part: ImagePart::open(&repository, &parameters)? }
            }
            Part::Captioner => {
                let (repository, parameters) = place()?;
                let tokens = arguments.tokens.map_or(TOKENS, usize::from);
                Opened::Captioner { part: CaptionerPart::open(&repository, &parameters)?, tokens }
            }
            Part::Picture => {
                Opened::Picture { part: PicturePart::new()?, pictures: bencher.pictures.clone() }
            }
            Part::Rank => Opened::Rank { table: rank_table(bencher)? },
            _ => return Err(Failure::new(format!("`{}` is no part", part.name()))),
        })
    }

    /// What `--batch` means here when it is not given.
    fn default_batch(&self) -> usize {
        match self {
            Opened::Text { .. } => TEXTS,
            Opened::Chain { .. } => CANDIDATES,
            Opened::Rank { .. } => ROWS,
            Opened::Image { .. } | Opened::Captioner { .. } | Opened::Picture { .. } => 1,
        }
    }

    /// The greatest batch there is enough for.
    pub fn most(&self) -> Option<usize> {
        match self {
            Opened::Chain { phrases, .. } => Some(phrases.len()),
            _ => None,
        }
    }

    fn part(&self) -> Part {
        match self {
            Opened::Text { .. } => Part::Text,
            Opened::Chain { .. } => Part::Chain,
            Opened::Image { .. } => Part::Image,
            Opened::Captioner { .. } => Part::Captioner,
            Opened::Picture { .. } => Part::Picture,
            Opened::Rank { .. } => Part::Rank,
        }
    }

    /// Measures requests of `batch` items.
    pub fn measure(
        &mut self,
        bencher: &Bencher<'_>,
        batch: Option<usize>,
        plan: Plan,
    ) -> Result<Measurement> {
        let batch = batch.unwrap_or_else(|| self.default_batch());
        let mut answers = Vec::new();
        let (samples, seconds) = self.samples(batch, plan, &mut answers)?;
        let mut times: Vec<f64> = samples.iter().map(|sample| sample.ms).collect();
        let Some(latency_ms) = Latency::of(&mut times) else {
            return Err(Failure::new("nothing was measured"));
        };
        let stages = stage_times(&samples);
        let rate = batch as f64 * 1e3 / latency_ms.p50;
        let per_second = match self {
            Opened::Text { .. } => vec![("texts", rate)],
            Opened::Chain { .. } => vec![("phrases", rate)],
            Opened::Image { .. } | Opened::Picture { .. } => vec![("images", rate)],
            Opened::Captioner { .. } => {
                let token = stages.iter().find(|time| time.stage == "token");
                let tokens = token.and_then(|time| time.p50_ms).map(|ms| batch as f64 * 1e3 / ms);
                let tokens = tokens.map(|rate| ("tokens", rate));
                std::iter::once(("captions", rate)).chain(tokens).collect()
            }
            Opened::Rank { .. } => vec![("rows", rate)],
        };
        let pictures = if self.part() == Part::Picture { bencher.pictures.len() } else { 0 };
        Ok(Measurement {
            pictures,
            batch,
            requests: times.len(),
            seconds,
            requests_per_second: times.len() as f64 / seconds,
            per_second: BTreeMap::from_iter(per_second),
            latency_ms,
            stages,
            answers,
            times,
            ..bencher.empty(self.part())
        })
    }

    fn samples(
        &mut self,
        batch: usize,
        plan: Plan,
        answers: &mut Vec<Value>,
    ) -> Result<(Vec<Sample>, f64)> {
        let plain = |started: Instant| Sample { ms: ms(started.elapsed()), stages: vec![] };
        match self {
            Opened::Text { part, texts } => {
                let mut texts = texts.iter().cycle();
                plan.run(|_| {
                    // Every request has texts of its own, as far as there are so many.
                    let texts: Vec<&str> = texts.by_ref().take(batch).map(String::as_str).collect();
                    let started = Instant::now();
                    part.encode(&texts)?;
                    Ok(plain(started))
                })
            }
            Opened::Chain { part, phrases, prompt, image } => {
                let spread = (phrases.len() / batch.max(1)).max(1);
                let phrases: Vec<&str> = phrases.iter().map(String::as_str).collect();
                let chosen: Vec<&str> =
                    phrases.iter().step_by(spread).copied().take(batch).collect();
                if chosen.len() < batch {
                    return Err(Failure::new(format!(
                        "{} phrases are there, {batch} were asked for",
                        chosen.len()
                    )));
                }
                plan.run(|_| {
                    let started = Instant::now();
                    let found = part.chain_step(image, prompt, &chosen)?;
                    let sample = plain(started);
                    let best = (0..found.len()).max_by(|a, b| found[*a].total_cmp(&found[*b]));
                    *answers = best.map(|best| json!(best)).into_iter().collect();
                    Ok(sample)
                })
            }
            Opened::Image { part } => {
                let size = part.image_size();
                let pixel_values = noise(batch * 3 * size * size);
                plan.run(|_| {
                    let started = Instant::now();
                    part.encode(batch, &pixel_values)?;
                    Ok(plain(started))
                })
            }
            Opened::Captioner { part, tokens } => {
                let size = part.image_size();
                let pixel_values = noise(batch * 3 * size * size);
                plan.run(|_| {
                    let times = part.caption(batch, &pixel_values, *tokens)?;
                    *answers = vec![json!(times.ids)];
                    let mut stages =
                        vec![("encode", ms(times.encode)), ("first_token", ms(times.first_token))];
                    let mut later: Vec<f64> = times.tokens.iter().copied().map(ms).collect();
                    stages.extend(Latency::of(&mut later).map(|later| ("token", later.p50)));
                    Ok(Sample { ms: ms(times.total), stages })
                })
            }
            Opened::Picture { part, pictures } => plan.run(|index| {
                let times = part.run(&pictures[index % pictures.len()])?;
                let stages = vec![
                    ("decode", ms(times.decode)),
                    ("resize", ms(times.resize)),
                    ("pixel_values", ms(times.pixel_values)),
                ];
                Ok(Sample { ms: ms(times.decode + times.resize), stages })
            }),
            Opened::Rank { table } => {
                let image = table.image.clone();
                let part = table.of(batch)?;
                plan.run(|_| {
                    let started = Instant::now();
                    let best = part.best(&image, TOP_K)?;
                    let top_k = ms(started.elapsed());
                    let started = Instant::now();
                    let candidates = part.candidates(&image)?;
                    let two_stages = ms(started.elapsed());
                    *answers = vec![json!(best), json!(candidates)];
                    let stages = vec![("top_k", top_k), ("two_stages", two_stages)];
                    Ok(Sample { ms: top_k, stages })
                })
            }
        }
    }
}

fn rank_table(bencher: &Bencher<'_>) -> Result<RankTable> {
    let arguments = bencher.arguments;
    let Some(file) = &arguments.table else {
        let repository = ask::repository(&arguments.place);
        let dimension = repository.ok().and_then(|(path, _)| parts::dimension(&path).ok());
        let dimension = dimension.unwrap_or(DIMENSION);
        return Ok(RankTable { dimension, image: noise(dimension), file: None, opened: None });
    };
    let wrong = |what: &dyn std::fmt::Display| Failure::new(format!("{}: {what}", file.display()));
    let bytes = std::fs::read(file).map_err(|error| wrong(&error))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| wrong(&error))?;
    let image = tensors.tensor("image_embeds").map_err(|error| wrong(&error))?;
    let image: Vec<f32> = image
        .data()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        .collect();
    let dimension = image.len();
    Ok(RankTable { dimension, image, file: Some(file.clone()), opened: None })
}

/// Milliseconds of the first request for labels that were never seen, and of the same request again:
/// `zero_shot` with `count` labels.
pub fn labels_of_a_request(
    bencher: &Bencher<'_>,
    repository: &Path,
    parameters: &Parameters,
    count: usize,
) -> Result<(Sample, Sample)> {
    use imprompt_error::Uncancellable;
    use imprompt_repository::InProcess;
    use imprompt_stage::Tensor;

    let parameters = Parameters {
        max_labels: count.max(parameters.max_labels),
        label_cache_size: count.max(parameters.label_cache_size),
        ..parameters.clone()
    };
    let mut ensemble = InProcess::open(repository, "zero_shot", &parameters)?;
    let picture = bencher.pictures.first().cloned().unwrap_or_default();
    let mut ask = |labels: Vec<String>| {
        let labels: Vec<_> = labels.into_iter().map(|label| label.into_bytes().into()).collect();
        let inputs = vec![
            Tensor::bytes("image", vec![1, 1], vec![picture.clone().into()]),
            Tensor::bytes("labels", vec![1, labels.len()], labels),
        ];
        let started = Instant::now();
        ensemble.run(inputs, &Uncancellable)?;
        Ok::<_, Failure>(Sample { ms: ms(started.elapsed()), stages: vec![] })
    };
    // The first request of a process is slower for other reasons.
    ask(vec!["warm".to_owned()])?;
    // Two words of a few thousand: no label was seen before.
    let words = ["red", "old", "small", "wet", "loud", "round", "green", "tall", "warm", "plain"];
    let label = |n: usize| {
        format!(
            "{} {} {} thing {}",
            words[n % 10],
            words[n / 10 % 10],
            words[n / 100 % 10],
            n / 1000
        )
    };
    let first = ask((0..count).map(label).collect())?;
    let again = ask((0..count).map(label).collect())?;
    Ok((first, again))
}
