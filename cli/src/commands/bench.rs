//! `imprompt bench`: a closed loop of callers, and the times of each answer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::Instant;

use serde::Serialize;

use super::run;
use crate::arguments::{Bench, BenchEnsemble};
use crate::ask::{Asker, Question};
use crate::pictures;
use crate::talk::{self, Failure, Result};

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    ensemble: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'static str>,
    place: String,
    version: &'static str,
    cores: usize,
    pictures: usize,
    concurrency: usize,
    requests: usize,
    failed: usize,
    seconds: f64,
    requests_per_second: f64,
    latency_ms: Latency,
}

/// Milliseconds from question to answer.
#[derive(Debug, Serialize, PartialEq)]
struct Latency {
    mean: f64,
    min: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

/// Measures and prints.
pub fn run(arguments: &Bench) -> Result<()> {
    let mut pictures = Vec::new();
    for (path, listed) in pictures::list(&arguments.pictures.paths) {
        let bytes = listed.and_then(|()| pictures::read(&path));
        pictures.push(bytes.map_err(|failure| failure.in_picture(&path))?);
    }
    let report = measure(arguments, &pictures)?;
    if arguments.json {
        run::json(&report)?
    } else {
        run::line(&table(&report))?
    }
    match report.failed {
        0 => Ok(()),
        failed => Err(Failure::new(format!("{failed} of {} requests failed", report.requests))),
    }
}

fn measure(arguments: &Bench, pictures: &[Vec<u8>]) -> Result<Report> {
    let concurrency = usize::from(arguments.concurrency);
    let requests = arguments.requests as usize;
    // One asker a caller: in this process each has stages of its own.
    let askers = (0..concurrency).map(|_| Asker::open(&arguments.place, arguments.ensemble.name()));
    let askers = askers.collect::<Result<Vec<_>>>()?;
    let bar = talk::bar(requests as u64, "{pos}/{len} requests [{bar:30}] {eta} left");
    let (warm_up, next) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let start = Barrier::new(concurrency + 1);
    let times = Mutex::new(Vec::with_capacity(requests));
    let first_failure = Mutex::new(None);
    let seconds = std::thread::scope(|scope| {
        let mut callers = Vec::with_capacity(concurrency);
        for mut asker in askers {
            let (warm_up, next, start, times, bar) = (&warm_up, &next, &start, &times, &bar);
            let first_failure = &first_failure;
            callers.push(scope.spawn(move || {
                let mut ask = |index: usize| {
                    let picture = pictures[index % pictures.len()].clone();
                    asker.ask(vec![question(arguments, picture)]).pop()
                };
                while warm_up.fetch_add(1, Ordering::Relaxed) < arguments.warm_up as usize {
                    ask(0);
                }
                start.wait();
                let mut own = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= requests {
                        break;
                    }
                    let asked = Instant::now();
                    match ask(index) {
                        Some(Ok(_)) => own.push(asked.elapsed().as_secs_f64() * 1e3),
                        Some(Err(failure)) => {
                            locked(first_failure).get_or_insert(failure);
                        }
                        None => {}
                    }
                    bar.inc(1);
                }
                locked(times).extend(own);
            }));
        }
        start.wait();
        let started = Instant::now();
        for caller in callers {
            let _ = caller.join();
        }
        started.elapsed().as_secs_f64()
    });
    bar.finish_and_clear();
    let mut times = times.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let first_failure = first_failure.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let Some(latency_ms) = latency(&mut times) else {
        return Err(first_failure.unwrap_or_else(|| Failure::new("no request was answered")));
    };
    if let Some(failure) = first_failure {
        failure.print();
    }
    let is_interrogate = arguments.ensemble == BenchEnsemble::Interrogate;
    Ok(Report {
        ensemble: arguments.ensemble.name(),
        mode: is_interrogate.then(|| arguments.mode.name()),
        place: arguments.place.server.clone().unwrap_or_else(|| "in-process".to_owned()),
        version: env!("CARGO_PKG_VERSION"),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        pictures: pictures.len(),
        concurrency,
        requests,
        failed: requests - times.len(),
        seconds,
        requests_per_second: times.len() as f64 / seconds,
        latency_ms,
    })
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn question(arguments: &Bench, picture: Vec<u8>) -> Question {
    let question = Question::picture(picture);
    match arguments.ensemble {
        BenchEnsemble::Interrogate => question.text("mode", Some(arguments.mode.name())),
        BenchEnsemble::ZeroShot => question.texts("labels", &arguments.labels),
        BenchEnsemble::Caption | BenchEnsemble::EmbedImage => question,
    }
}

/// Percentiles by the nearest rank; `None` of nothing.
fn latency(times: &mut [f64]) -> Option<Latency> {
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

fn table(report: &Report) -> String {
    let mode = report.mode.map(|mode| format!(" ({mode})")).unwrap_or_default();
    let latency = &report.latency_ms;
    format!(
        "{}{mode} at {}, imprompt {}, {} cores\n\
         {} requests, {} failed, {} callers, {} pictures, {:.2} s\n\n\
         throughput  {:>10.2} requests/s\n\
         latency     {:>10.2} ms mean\n\
         {:>22.2} ms min\n{:>22.2} ms p50\n{:>22.2} ms p90\n{:>22.2} ms p99\n{:>22.2} ms max",
        report.ensemble,
        report.place,
        report.version,
        report.cores,
        report.requests,
        report.failed,
        report.concurrency,
        report.pictures,
        report.seconds,
        report.requests_per_second,
        latency.mean,
        latency.min,
        latency.p50,
        latency.p90,
        latency.p99,
        latency.max,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let mut times: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let latency = latency(&mut times).unwrap();
        let expected =
            Latency { mean: 100.5, min: 1.0, p50: 100.0, p90: 180.0, p99: 198.0, max: 200.0 };
        assert_eq!(latency, expected);
        assert_eq!(super::latency(&mut [7.0]).unwrap().p99, 7.0);
        assert!(super::latency(&mut []).is_none());
    }
}
