//! How cost grows: the same measurement with more and more of something.

use super::Bencher;
use super::ensembles;
use super::measurement::{Latency, Measurement, Plan, Point, Sample};
use super::parts::{self, Opened};
use crate::arguments::{Part, Sweep};
use crate::ask;
use crate::talk::{Failure, Result};

const LABELS: [usize; 6] = [10, 100, 1_000, 10_000, 100_000, 1_000_000];
const CANDIDATES: [usize; 7] = [128, 256, 512, 1_024, 2_048, 4_096, 8_192];
const IMAGES: [usize; 6] = [1, 2, 4, 8, 16, 32];
const CAPTIONS: [usize; 4] = [1, 2, 4, 8];
const CLIENTS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Told each point as it is measured.
type Tell<'a> = dyn FnMut(Measurement) -> Result<()> + 'a;

/// Measures every point of `sweep`. A curve ends where one more point would take longer than
/// `--limit`.
pub fn run(
    bencher: &Bencher<'_>,
    sweep: Sweep,
    wanted: &[Part],
    tell: &mut Tell<'_>,
) -> Result<()> {
    match sweep {
        Sweep::Labels => {
            part(bencher, Part::Rank, "labels_stored", &LABELS, tell)?;
            labels_of_requests(bencher, tell)
        }
        Sweep::Candidates => part(bencher, Part::Chain, "candidates", &CANDIDATES, tell),
        Sweep::Batch => {
            part(bencher, Part::Image, "images", &IMAGES, tell)?;
            part(bencher, Part::Captioner, "captions", &CAPTIONS, tell)
        }
        Sweep::Clients => {
            if bencher.arguments.place.server.is_none() {
                return Err(Failure::usage("--sweep clients measures a server")
                    .hint("name one with --server URL"));
            }
            for part in wanted.iter().filter(|part| part.is_ensemble()) {
                for clients in CLIENTS {
                    let mut measured = ensembles::measure(bencher, *part, clients)?;
                    measured.sweep = Some(Point { curve: "clients", value: clients });
                    tell(measured)?;
                }
            }
            Ok(())
        }
    }
}

/// The time that one point may take.
fn plan(bencher: &Bencher<'_>) -> Plan {
    let plan = Plan::new(bencher.arguments);
    Plan { limit: plan.limit / 6, ..plan }
}

/// True when a point of `next` items would take too long, judged by what `count` took.
fn is_too_long(bencher: &Bencher<'_>, ms: f64, count: usize, next: Option<&usize>) -> bool {
    let predicted = next.map_or(0.0, |next| ms * *next as f64 / count as f64);
    predicted > f64::from(bencher.arguments.limit) * 1e3
}

fn part(
    bencher: &Bencher<'_>,
    part: Part,
    curve: &'static str,
    counts: &[usize],
    tell: &mut Tell<'_>,
) -> Result<()> {
    let mut opened = Opened::open(bencher, part)?;
    for (index, &count) in counts.iter().enumerate() {
        if opened.most().is_some_and(|most| count > most) {
            break;
        }
        let mut measured = opened.measure(bencher, Some(count), plan(bencher))?;
        measured.answers.clear();
        measured.sweep = Some(Point { curve, value: count });
        let ms = measured.latency_ms.p50;
        tell(measured)?;
        if is_too_long(bencher, ms, count, counts.get(index + 1)) {
            break;
        }
    }
    Ok(())
}

/// Labels that come with the request: new ones, which are encoded, and the same once more.
fn labels_of_requests(bencher: &Bencher<'_>, tell: &mut Tell<'_>) -> Result<()> {
    if bencher.pictures.is_empty() {
        return Err(Failure::usage("--sweep labels needs a picture")
            .hint("name a picture, or a folder of pictures"));
    }
    let (repository, parameters) = ask::repository(&bencher.arguments.place)?;
    for (index, &count) in LABELS.iter().enumerate() {
        let (first, again) = parts::labels_of_a_request(bencher, &repository, &parameters, count)?;
        let ms = first.ms;
        tell(once(bencher, first, "labels_new", count))?;
        tell(once(bencher, again, "labels_known", count))?;
        if is_too_long(bencher, ms, count, LABELS.get(index + 1)) {
            break;
        }
    }
    Ok(())
}

/// A point of one request.
fn once(bencher: &Bencher<'_>, sample: Sample, curve: &'static str, value: usize) -> Measurement {
    let ms = sample.ms;
    let latency_ms = Latency { mean: ms, min: ms, p50: ms, p90: ms, p99: ms, max: ms };
    Measurement {
        sweep: Some(Point { curve, value }),
        batch: value,
        requests: 1,
        seconds: ms / 1e3,
        requests_per_second: 1e3 / ms,
        latency_ms,
        times: vec![ms],
        ..bencher.empty(Part::ZeroShot)
    }
}
