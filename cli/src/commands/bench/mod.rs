//! `imprompt bench`: what a request costs, what its parts cost, and how that grows.

mod ensembles;
mod html;
mod machine;
mod measurement;
mod parts;
mod plot;
mod sweep;

use std::collections::BTreeMap;

use imprompt_repository::Manifest;

use self::machine::Machine;
use self::measurement::{Latency, Measurement, Plan};
use super::run;
use crate::arguments::{Bench, Part};
use crate::talk::{Failure, Result};
use crate::{ask, pictures};

/// The labels of `zero_shot` where none are given.
const TEN_LABELS: [&str; 10] = [
    "a cat",
    "a dog",
    "a croissant",
    "a castle",
    "a sailboat",
    "a bicycle",
    "a portrait of a woman",
    "a bowl of strawberries",
    "a mountain lake",
    "a street at night",
];

/// What all measurements of one run have in common.
struct Bencher<'a> {
    arguments: &'a Bench,
    pictures: Vec<Vec<u8>>,
    machine: Machine,
}

/// Measures and prints.
pub fn run(arguments: &Bench) -> Result<()> {
    let wanted = wanted(arguments)?;
    if let Some(part) =
        wanted.iter().find(|part| part.needs_pictures() && arguments.paths.is_empty())
    {
        return Err(Failure::usage(format!("part `{}` needs a picture", part.name()))
            .hint("name a picture, or a folder of pictures"));
    }
    let mut pictures = Vec::new();
    for (path, listed) in pictures::list(&arguments.paths) {
        let bytes = listed.and_then(|()| pictures::read(&path));
        pictures.push(bytes.map_err(|failure| failure.in_picture(&path))?);
    }
    let bencher = Bencher { arguments, pictures, machine: Machine::this() };
    let mut done = Vec::new();
    let mut tell = |measured: Measurement| {
        if arguments.json {
            run::json(&measured)?;
        } else {
            run::line(&measurement::table(&measured))?;
        }
        done.push(measured);
        Ok(())
    };
    for part in &wanted {
        if part.is_ensemble() {
            for concurrency in &arguments.concurrency {
                tell(ensembles::measure(&bencher, *part, (*concurrency).into())?)?;
            }
        } else {
            let batch = arguments.batch.map(|batch| batch as usize);
            let mut opened = parts::Opened::open(&bencher, *part)?;
            tell(opened.measure(&bencher, batch, Plan::new(arguments))?)?;
        }
    }
    for sweep in &arguments.sweep {
        sweep::run(&bencher, *sweep, &wanted, &mut tell)?;
    }
    if let Some(file) = &arguments.html {
        std::fs::write(file, html::page(&bencher.machine, &done))
            .map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
    }
    let failed: usize = done.iter().map(|measured| measured.failed).sum();
    let requests: usize = done.iter().map(|measured| measured.requests).sum();
    match failed {
        0 => Ok(()),
        failed => Err(Failure::new(format!("{failed} of {requests} requests failed"))),
    }
}

/// The parts to measure; `all` are those that the server or the repository has.
fn wanted(arguments: &Bench) -> Result<Vec<Part>> {
    if !arguments.part.contains(&Part::All) {
        return Ok(arguments.part.clone());
    }
    const ENSEMBLES: [Part; 4] =
        [Part::ZeroShot, Part::EmbedImage, Part::Caption, Part::Interrogate];
    let has_pictures = !arguments.paths.is_empty();
    if let Some(url) = &arguments.place.server {
        let client = ask::connect(url)?;
        return Ok(ENSEMBLES
            .into_iter()
            .filter(|part| client.is_model_ready(part.name()))
            .collect());
    }
    let manifest = Manifest::read(&ask::repository(&arguments.place)?.0)?;
    let has = |part: &Part| match part {
        Part::Picture => has_pictures,
        Part::Rank => manifest.clip.is_some(),
        Part::Text | Part::Chain => manifest.clip.is_some() && has_texts(arguments, &manifest),
        Part::Image => manifest.clip.is_some(),
        Part::Captioner => manifest.captioner.is_some(),
        _ => has_pictures && manifest.ensembles.iter().any(|name| name == part.name()),
    };
    let alone = [Part::Picture, Part::Text, Part::Chain, Part::Image, Part::Rank, Part::Captioner];
    Ok(alone.into_iter().chain(ENSEMBLES).filter(has).collect())
}

/// Whether there are texts enough for the chain's step.
fn has_texts(arguments: &Bench, manifest: &Manifest) -> bool {
    let labels: usize = manifest.tables.iter().map(|table| table.labels).sum();
    arguments.texts.is_some()
        || labels >= arguments.batch.map_or(parts::CANDIDATES, |batch| batch as usize)
}

impl Bencher<'_> {
    /// A measurement of `part` in which nothing is measured yet.
    fn empty(&self, part: Part) -> Measurement {
        let place = &self.arguments.place;
        Measurement {
            part: part.name(),
            mode: None,
            sweep: None,
            place: place.server.clone().unwrap_or_else(|| "in-process".to_owned()),
            version: env!("CARGO_PKG_VERSION"),
            machine: self.machine.clone(),
            threads: place.threads,
            pictures: 0,
            batch: 1,
            concurrency: 1,
            requests: 0,
            failed: 0,
            seconds: 0.0,
            requests_per_second: 0.0,
            per_second: BTreeMap::new(),
            latency_ms: Latency { mean: 0.0, min: 0.0, p50: 0.0, p90: 0.0, p99: 0.0, max: 0.0 },
            stages: Vec::new(),
            answers: Vec::new(),
            times: Vec::new(),
        }
    }
}
