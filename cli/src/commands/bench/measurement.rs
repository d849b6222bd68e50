//! What a measurement is, and how it is told.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::machine::Machine;
use crate::arguments::Bench;
use crate::talk::{self, Result};

/// What was measured: one object of `--json`.
#[derive(Debug, Serialize)]
pub struct Measurement {
    pub part: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sweep: Option<Point>,
    pub place: String,
    pub version: &'static str,
    pub machine: Machine,
    /// Of each stage; 0: one a core.
    pub threads: u16,
    pub pictures: usize,
    /// Texts, phrases, pictures or rows of one request.
    pub batch: usize,
    pub concurrency: usize,
    pub requests: usize,
    pub failed: usize,
    pub seconds: f64,
    pub requests_per_second: f64,
    /// Other things a second: texts, images, tokens.
    pub per_second: BTreeMap<&'static str, f64>,
    pub latency_ms: Latency,
    pub stages: Vec<StageTime>,
    /// What came out, to compare with another implementation: prompts, token ids, places in a table.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<Value>,
    /// The milliseconds of each request, sorted.
    #[serde(skip)]
    pub times: Vec<f64>,
}

/// A point of a sweep.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// The curve: `labels_stored`, `candidates`.
    pub curve: &'static str,
    /// How many of them.
    pub value: usize,
}

/// Milliseconds from question to answer.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Latency {
    pub mean: f64,
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Latency {
    /// Of `times`, which are sorted by this: percentiles by the nearest rank. `None` of nothing.
    pub fn of(times: &mut [f64]) -> Option<Self> {
        times.sort_by(f64::total_cmp);
        let (&min, &max) = (times.first()?, times.last()?);
        let count = times.len();
        let percentile = |percent: usize| times[(count * percent).div_ceil(100).saturating_sub(1)];
        Some(Latency {
            mean: times.iter().sum::<f64>() / count as f64,
            min,
            p50: percentile(50),
            p90: percentile(90),
            p99: percentile(99),
            max,
        })
    }
}

/// A stage's part in a request.
#[derive(Clone, Debug, Serialize)]
pub struct StageTime {
    pub stage: String,
    pub mean_ms: f64,
    /// Of a server only the mean is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<f64>,
    /// Waiting in the server's queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_ms: Option<f64>,
}

/// One request: its milliseconds and those of its stages.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub ms: f64,
    pub stages: Vec<(&'static str, f64)>,
}

/// The samples' stages, in the order of the first sample.
pub fn stage_times(samples: &[Sample]) -> Vec<StageTime> {
    let Some(first) = samples.first() else { return Vec::new() };
    let of = |stage: &'static str| {
        let all = samples.iter().flat_map(|sample| &sample.stages);
        let mut times: Vec<f64> =
            all.filter(|(name, _)| *name == stage).map(|(_, ms)| *ms).collect();
        let latency = Latency::of(&mut times)?;
        Some(StageTime {
            stage: stage.to_owned(),
            mean_ms: latency.mean,
            p50_ms: Some(latency.p50),
            queue_ms: None,
        })
    };
    first.stages.iter().filter_map(|(stage, _)| of(stage)).collect()
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub requests: usize,
    pub warm_up: usize,
    pub limit: Duration,
}

impl Plan {
    /// What the command line asks for.
    pub fn new(arguments: &Bench) -> Self {
        Plan {
            requests: arguments.requests as usize,
            warm_up: arguments.warm_up as usize,
            limit: Duration::from_secs(arguments.limit.into()),
        }
    }

    /// Asks one after the other, at least once: the samples, and the seconds of all of them.
    pub fn run(&self, mut ask: impl FnMut(usize) -> Result<Sample>) -> Result<(Vec<Sample>, f64)> {
        let bar = talk::bar(self.requests as u64, "{pos}/{len} requests [{bar:30}] {eta} left");
        let started = Instant::now();
        for _ in 0..self.warm_up {
            ask(0)?;
            // Warming up is to take a small part of the time.
            if started.elapsed() > self.limit / 4 {
                break;
            }
        }
        let started = Instant::now();
        let mut samples = Vec::new();
        while samples.is_empty() || samples.len() < self.requests && started.elapsed() < self.limit
        {
            samples.push(ask(samples.len())?);
            bar.inc(1);
        }
        let seconds = started.elapsed().as_secs_f64();
        bar.finish_and_clear();
        Ok((samples, seconds))
    }
}

/// The measurement as a person reads it.
pub fn table(measured: &Measurement) -> String {
    let mode = measured.mode.map(|mode| format!(" ({mode})")).unwrap_or_default();
    let point = match &measured.sweep {
        Some(point) => format!(", {} {}", point.value, point.curve.replace('_', " ")),
        None => String::new(),
    };
    let many = |count: usize, what: &str| match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    };
    let mut text = format!(
        "{}{mode}{point} at {}, imprompt {}, {} cores\n{} of {}, {} failed, {}{}, {:.2} s\n\n",
        measured.part,
        measured.place,
        measured.version,
        measured.machine.cores,
        many(measured.requests, "request"),
        measured.batch,
        measured.failed,
        many(measured.concurrency, "caller"),
        match measured.pictures {
            0 => String::new(),
            count => format!(", {}", many(count, "picture")),
        },
        measured.seconds
    );
    // Writing to a string cannot fail.
    let mut label = "throughput";
    let rates = std::iter::once((&"requests", &measured.requests_per_second));
    for (what, rate) in rates.chain(&measured.per_second) {
        let _ = writeln!(text, "{label:<11} {rate:>10.2} {what}/s");
        label = "";
    }
    let Latency { mean, min, p50, p90, p99, max } = measured.latency_ms;
    label = "latency";
    for (name, ms) in
        [("mean", mean), ("min", min), ("p50", p50), ("p90", p90), ("p99", p99), ("max", max)]
    {
        let _ = writeln!(text, "{label:<11} {ms:>10.2} ms {name}");
        label = "";
    }
    if !measured.stages.is_empty() {
        let _ = write!(text, "\n{:<18} {:>10} {:>10}", "stage", "mean ms", "p50 ms");
        let has_queue = measured.stages.iter().any(|stage| stage.queue_ms.is_some());
        text.push_str(if has_queue { "   queue ms\n" } else { "\n" });
        for stage in &measured.stages {
            let _ = write!(text, "{:<18} {:>10.3}", stage.stage, stage.mean_ms);
            let shown = |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| format!("{ms:.3}"));
            let _ = write!(text, " {:>10}", shown(stage.p50_ms));
            if has_queue {
                let _ = write!(text, " {:>10}", shown(stage.queue_ms));
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let mut times: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let latency = Latency::of(&mut times).unwrap();
        let expected =
            Latency { mean: 100.5, min: 1.0, p50: 100.0, p90: 180.0, p99: 198.0, max: 200.0 };
        assert_eq!(latency, expected);
        assert_eq!(Latency::of(&mut [7.0]).unwrap().p99, 7.0);
        assert!(Latency::of(&mut []).is_none());
    }

    #[test]
    fn stages_are_told_apart() {
        let sample = |a: f64| Sample { ms: 9.0, stages: vec![("a", a), ("b", 1.0)] };
        let stages = stage_times(&[sample(1.0), sample(5.0), sample(3.0)]);
        let told: Vec<_> =
            stages.iter().map(|stage| (&*stage.stage, stage.mean_ms, stage.p50_ms)).collect();
        assert_eq!(told, [("a", 3.0, Some(3.0)), ("b", 1.0, Some(1.0))]);
    }

    #[test]
    fn a_plan_ends_with_its_time_but_asks_once() {
        let mut asked = 0;
        let plan = Plan { requests: 1_000, warm_up: 5, limit: Duration::ZERO };
        let (samples, _) = plan
            .run(|_| {
                asked += 1;
                Ok(Sample::default())
            })
            .unwrap();
        assert_eq!((samples.len(), asked), (1, 2), "one to warm up, one to measure");
    }
}
