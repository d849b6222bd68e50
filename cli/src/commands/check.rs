//! `imprompt check`: the same questions to the processor and to a GPU.

use std::path::{Path, PathBuf};
use std::time::Instant;

use imprompt_repository::{Gpu, InProcess};
use imprompt_stage::{Data, Parameters, Placement, Response, Tensor};
use serde::Serialize;

use super::run;
use crate::arguments::Check;
use crate::talk::{self, Failure, Result};
use crate::{ask, pictures};

/// Texts whose embeddings are compared, beside the captions.
const TEXTS: [&str; 6] = [
    "a",
    "a photo of a cat",
    "a red apple on a white table",
    "an oil painting of a lighthouse in a storm, dramatic light, highly detailed",
    "trending on artstation",
    "blurry, low quality, a watermark in the corner, cropped, out of frame, jpeg artifacts, grainy",
];

/// The modes of `interrogate` that are compared.
const MODES: [&str; 4] = ["best", "fast", "classic", "negative"];

/// One comparison.
#[derive(Serialize)]
struct Line {
    check: String,
    of: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    least_cosine: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_cosine: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    equal: Option<usize>,
    cpu_ms: f64,
    device_ms: f64,
}

/// The card that is compared.
#[derive(Serialize)]
struct Card {
    gpu: String,
    compute_capability: String,
    cuda: String,
    memory_gib: f64,
    copy_gb_per_second: f64,
}

/// Compares every picture's answers.
pub fn run(arguments: &Check) -> Result<()> {
    let Placement::Gpu(ordinal) = arguments.place.device else {
        return Err(Failure::usage("the processor is what a device is compared with")
            .hint("name one: --device gpu, or --device gpu:1"));
    };
    if arguments.place.server.is_some() {
        return Err(Failure::usage("both are asked in this process, not on a server"));
    }
    let (repository, parameters) = ask::repository(&arguments.place)?;
    let gpu = Gpu::open(ordinal)?;
    show_card(&gpu, arguments.json)?;
    let pictures = read(&arguments.pictures.paths)?;
    match (Both { repository, parameters, arguments, wrong: 0 }).compare(&pictures)? {
        0 => Ok(()),
        wrong => Err(Failure::new(format!(
            "{wrong} comparisons are worse than asked for (cosine {}, all captions equal)",
            arguments.least_cosine
        ))),
    }
}

fn show_card(gpu: &Gpu, json: bool) -> Result<()> {
    let (_, memory) = gpu.memory()?;
    let card = Card {
        gpu: gpu.name().to_owned(),
        compute_capability: gpu.compute_capability().to_string(),
        cuda: gpu.driver_version()?,
        memory_gib: memory as f64 / f64::from(1 << 30),
        copy_gb_per_second: gpu.copy_rate()? / 1e9,
    };
    if json {
        return run::json(&card);
    }
    run::line(&format!(
        "{} (compute capability {}, CUDA {}, {:.0} GiB, copies at {:.0} GB/s)",
        card.gpu, card.compute_capability, card.cuda, card.memory_gib, card.copy_gb_per_second
    ))
}

fn read(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>> {
    let one = |(path, listed): (PathBuf, Result<()>)| {
        listed.and_then(|()| pictures::read(&path)).map_err(|failure| failure.in_picture(&path))
    };
    let read: Vec<Vec<u8>> = pictures::list(paths).into_iter().map(one).collect::<Result<_>>()?;
    match read.is_empty() {
        true => Err(Failure::new("there is no picture to compare")),
        false => Ok(read),
    }
}

type Inputs = Vec<Tensor<'static>>;

fn questions(pictures: &[Vec<u8>], more: &[Tensor<'static>]) -> Vec<Inputs> {
    let one = |picture: &Vec<u8>| {
        let image = Tensor::bytes("image", vec![1, 1], vec![picture.clone().into()]);
        [&[image], more].concat()
    };
    pictures.iter().map(one).collect()
}

/// What a line is about, and the questions of it; at least one.
type Group = (String, Vec<Inputs>);

/// What is compared, and how much of it was worse than asked for.
struct Both<'a> {
    repository: PathBuf,
    parameters: Parameters,
    arguments: &'a Check,
    wrong: usize,
}

/// Answers, and the milliseconds that one of them took.
struct Answers {
    responses: Vec<Response>,
    ms: f64,
}

impl Both<'_> {
    /// Compares all there is, and says how many comparisons were worse than asked for.
    fn compare(mut self, pictures: &[Vec<u8>]) -> Result<usize> {
        self.embeddings("embed_image", questions(pictures, &[]))?;
        let texts = TEXTS.map(|text| vec![Tensor::texts("text", vec![text.to_owned()])]);
        self.embeddings("embed_text", texts.into())?;
        let tokens = Tensor::i32("max_new_tokens", vec![1, 1], vec![self.arguments.max_new_tokens]);
        let captions = questions(pictures, std::slice::from_ref(&tokens));
        self.texts("caption", "caption", true, vec![("caption".to_owned(), captions)])?;
        let modes = MODES.map(|mode| {
            let named = Tensor::texts("mode", vec![mode.to_owned()]);
            (format!("interrogate {mode}"), questions(pictures, &[named, tokens.clone()]))
        });
        self.texts("interrogate", "prompt", false, modes.into())?;
        Ok(self.wrong)
    }

    fn embeddings(&mut self, ensemble: &str, questions: Vec<Inputs>) -> Result<()> {
        let groups = [(ensemble.to_owned(), questions)];
        let Some(answers) = self.answers(ensemble, &groups)? else { return Ok(()) };
        for ((check, _), [cpu, device]) in groups.into_iter().zip(answers) {
            let pairs = cpu.responses.iter().zip(&device.responses);
            let cosines: Vec<f32> = pairs
                .map(|(left, right)| Ok(cosine(numbers(left)?, numbers(right)?)))
                .collect::<Result<_>>()?;
            let least = cosines.iter().copied().fold(f32::INFINITY, f32::min);
            // Not a number is worse than anything.
            self.wrong += usize::from(least.is_nan() || least < self.arguments.least_cosine);
            self.show(&Line {
                check,
                of: cosines.len(),
                least_cosine: Some(least),
                mean_cosine: Some(cosines.iter().sum::<f32>() / cosines.len() as f32),
                equal: None,
                cpu_ms: cpu.ms,
                device_ms: device.ms,
            })?;
        }
        Ok(())
    }

    /// Counts equal texts; `must` they be?
    fn texts(
        &mut self,
        ensemble: &str,
        output: &str,
        must: bool,
        groups: Vec<Group>,
    ) -> Result<()> {
        let Some(answers) = self.answers(ensemble, &groups)? else { return Ok(()) };
        for ((check, _), [cpu, device]) in groups.into_iter().zip(answers) {
            let pairs = cpu.responses.iter().zip(&device.responses);
            let equal =
                pairs.filter(|(left, right)| text(left, output) == text(right, output)).count();
            let of = cpu.responses.len();
            self.wrong += usize::from(must && equal < of);
            let (least_cosine, mean_cosine, equal) = (None, None, Some(equal));
            let (cpu_ms, device_ms) = (cpu.ms, device.ms);
            self.show(&Line { check, of, least_cosine, mean_cosine, equal, cpu_ms, device_ms })?;
        }
        Ok(())
    }

    /// The answers of the processor and of the device to each group of questions, each of which opens
    /// the ensemble once; none where the repository lacks it.
    fn answers(&self, ensemble: &str, groups: &[Group]) -> Result<Option<Vec<[Answers; 2]>>> {
        let Some(cpu) = self.answers_on(Placement::Cpu, ensemble, groups)? else {
            return Ok(None);
        };
        let Some(device) = self.answers_on(self.parameters.placement, ensemble, groups)? else {
            return Ok(None);
        };
        Ok(Some(cpu.into_iter().zip(device).map(|(cpu, device)| [cpu, device]).collect()))
    }

    fn answers_on(
        &self,
        placement: Placement,
        ensemble: &str,
        groups: &[Group],
    ) -> Result<Option<Vec<Answers>>> {
        let parameters = Parameters { placement, ..self.parameters.clone() };
        let mut opened = match InProcess::open(&self.repository, ensemble, &parameters) {
            Ok(opened) => opened,
            Err(error) if is_lacking(&self.repository, ensemble) => {
                talk::say(&format!("{ensemble}: left out: {error}"));
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let cancel = &imprompt_error::Uncancellable;
        let mut answer = |(_, questions): &Group| -> Result<Answers> {
            // The first request opens what is opened late.
            opened.run(questions[0].clone(), cancel)?;
            let started = Instant::now();
            let responses = questions.iter().map(|inputs| opened.run(inputs.clone(), cancel));
            let responses = responses.collect::<imprompt_error::Result<Vec<Response>>>()?;
            let ms = started.elapsed().as_secs_f64() * 1e3 / questions.len() as f64;
            Ok(Answers { responses, ms })
        };
        Ok(Some(groups.iter().map(&mut answer).collect::<Result<_>>()?))
    }

    fn show(&self, line: &Line) -> Result<()> {
        if self.arguments.json {
            return run::json(line);
        }
        let found = match (line.least_cosine, line.mean_cosine, line.equal) {
            (Some(least), Some(mean), _) => format!("cosine at least {least:.6}, mean {mean:.6}"),
            (_, _, Some(equal)) => format!("{equal} of {} equal", line.of),
            _ => String::new(),
        };
        let (check, cpu, device) = (&line.check, line.cpu_ms, line.device_ms);
        run::line(&format!("{check:<22}{found:<44}cpu {cpu:9.2} ms   device {device:9.2} ms"))
    }
}

/// Whether the repository was built without `ensemble`.
fn is_lacking(repository: &Path, ensemble: &str) -> bool {
    imprompt_repository::Manifest::read(repository)
        .is_ok_and(|manifest| !manifest.ensembles.iter().any(|name| name == ensemble))
}

fn numbers(response: &Response) -> Result<&[f32]> {
    let found = response.iter().find(|tensor| tensor.name == "embedding");
    let found = found.map(|tensor| tensor.data.floats()).transpose()?.flatten();
    found.ok_or_else(|| Failure::new("an answer has no embedding"))
}

fn text<'r>(response: &'r Response, output: &str) -> Option<&'r [u8]> {
    response.iter().find(|tensor| tensor.name == output).and_then(|tensor| match &tensor.data {
        Data::Bytes(values) => values.first().map(|value| &**value),
        _ => None,
    })
}

fn cosine(left: &[f32], right: &[f32]) -> f32 {
    let dot = |left: &[f32], right: &[f32]| -> f64 {
        left.iter().zip(right).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    (dot(left, right) / (dot(left, left) * dot(right, right)).sqrt()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Arguments, Command};
    use clap::Parser as _;

    #[test]
    fn cosines_are_of_directions() {
        assert!((cosine(&[1.0, 0.0], &[2.0, 0.0]) - 1.0).abs() < 1e-6);
        assert!(cosine(&[1.0, 0.0], &[0.0, 1.0]).abs() < 1e-6);
        assert!(cosine(&[0.0], &[1.0]).is_nan());
    }

    /// Both sides on the processor: what is compared is equal, and what is asked for counts.
    #[test]
    fn the_processor_agrees_with_itself() {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (repository, terms) = (folder.path().join("repository"), folder.path().join("terms"));
        std::fs::create_dir(&terms).unwrap();
        for table in ["artists", "flavors", "mediums", "movements", "negative"] {
            std::fs::write(terms.join(format!("{table}.txt")), "a drawing\non white\n").unwrap();
        }
        let model = |name: &str| {
            Some(
                imprompt_repository::ModelFolder::open(&project.join("models").join(name)).unwrap(),
            )
        };
        let request = imprompt_repository::BuildRequest {
            clip: model("demo-clip"),
            captioner: model("demo-blip2"),
            vocabularies: vec![terms],
            ..imprompt_repository::BuildRequest::new(&repository)
        };
        imprompt_repository::build(&request, &imprompt_repository::Silent).unwrap();
        let pictures = [std::fs::read(project.join("models/croissant.png")).unwrap()];
        let wrong = |flags: &[&str]| {
            let line = [&["imprompt", "check", "a.png", "--json"], flags].concat();
            let Command::Check(arguments) = Arguments::parse_from(line).command else { panic!() };
            let (repository, parameters) = (repository.clone(), Parameters::default());
            let both = Both { repository, parameters, arguments: &arguments, wrong: 0 };
            both.compare(&pictures).unwrap()
        };
        assert_eq!(wrong(&["--max-new-tokens", "4"]), 0);
        // Neither pictures nor texts are nearer to each other than equal.
        assert_eq!(wrong(&["--least-cosine", "1.5"]), 2);
    }
}
