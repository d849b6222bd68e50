//! Whole requests, of a server or in this process: a closed loop of callers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::Instant;

use imprompt_kserve::Client;
use imprompt_stage::StageKind;
use imprompt_stage::ensemble::Ensemble;
use serde_json::{Value, json};

use super::measurement::{Latency, Measurement, Plan, Sample, StageTime, stage_times};
use super::{Bencher, TEN_LABELS};
use crate::arguments::{Generation, Part};
use crate::ask::{self, Answer, Asker, Question};
use crate::talk::{self, Failure, Result};

/// What the callers of one measurement share.
struct Shared<'a> {
    bencher: &'a Bencher<'a>,
    part: Part,
    plan: Plan,
    batch: usize,
    warm_up: AtomicUsize,
    next: AtomicUsize,
    barrier: Barrier,
    samples: Mutex<Vec<Sample>>,
    failed: AtomicUsize,
    first_failure: Mutex<Option<Failure>>,
    /// What the first request about each picture was answered.
    answers: Mutex<BTreeMap<usize, Value>>,
    bar: indicatif::ProgressBar,
}

/// Measures `part` with `concurrency` callers.
pub fn measure(bencher: &Bencher<'_>, part: Part, concurrency: usize) -> Result<Measurement> {
    let arguments = bencher.arguments;
    let batch = arguments.batch.unwrap_or(1) as usize;
    if batch > 1 && arguments.place.server.is_some() {
        return Err(Failure::usage("--batch of a whole request is for this process alone")
            .hint("a server makes batches itself: use --concurrency"));
    }
    // One asker a caller: in this process each has stages of its own.
    let askers = (0..concurrency).map(|_| Asker::open(&arguments.place, part.name()));
    let askers = askers.collect::<Result<Vec<_>>>()?;
    let plan = Plan::new(arguments);
    let shared = Shared {
        bencher,
        part,
        plan,
        batch,
        warm_up: AtomicUsize::new(0),
        next: AtomicUsize::new(0),
        barrier: Barrier::new(concurrency + 1),
        samples: Mutex::new(Vec::with_capacity(plan.requests)),
        failed: AtomicUsize::new(0),
        first_failure: Mutex::new(None),
        answers: Mutex::default(),
        bar: talk::bar(plan.requests as u64, "{pos}/{len} requests [{bar:30}] {eta} left"),
    };
    let statistics = match &arguments.place.server {
        Some(url) => Some(Statistics::of(ask::connect(url)?, part)),
        None => None,
    };
    let (seconds, before) = std::thread::scope(|scope| {
        let callers: Vec<_> =
            askers.into_iter().map(|asker| scope.spawn(|| caller(&shared, asker))).collect();
        shared.barrier.wait();
        // Everyone has warmed up and waits for this.
        let before = statistics.as_ref().map(Statistics::read);
        shared.barrier.wait();
        let started = Instant::now();
        for caller in callers {
            let _ = caller.join();
        }
        (started.elapsed().as_secs_f64(), before)
    });
    let stages = statistics.zip(before).map(|(statistics, before)| statistics.since(&before));
    shared.bar.finish_and_clear();
    let samples = shared.samples.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let failure =
        shared.first_failure.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut times: Vec<f64> = samples.iter().map(|sample| sample.ms).collect();
    let Some(latency_ms) = Latency::of(&mut times) else {
        return Err(failure.unwrap_or_else(|| Failure::new("no request was answered")));
    };
    if let Some(failure) = failure {
        failure.print();
    }
    let failed = shared.failed.into_inner();
    let rate = (times.len() * batch) as f64 / seconds;
    let answers = shared.answers.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    Ok(Measurement {
        mode: (part == Part::Interrogate).then(|| arguments.mode.name()),
        pictures: bencher.pictures.len(),
        batch,
        concurrency,
        requests: times.len() + failed,
        failed,
        seconds,
        requests_per_second: times.len() as f64 / seconds,
        per_second: BTreeMap::from([("images", rate)]),
        latency_ms,
        stages: stages.unwrap_or_else(|| stage_times(&samples)),
        answers: answers.into_values().collect(),
        times,
        ..bencher.empty(part)
    })
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// One caller: asks again when it has its answer.
fn caller(shared: &Shared<'_>, mut asker: Asker) {
    let pictures = &shared.bencher.pictures;
    let mut ask = |index: usize| {
        let picture = index % pictures.len();
        let question = question(shared, pictures[picture].clone());
        let asked = Instant::now();
        let answers = asker.ask(vec![question; shared.batch]);
        let sample =
            Sample { ms: asked.elapsed().as_secs_f64() * 1e3, stages: asker.stage_times() };
        let answers = answers.into_iter().collect::<Result<Vec<Answer>>>()?;
        let first = answers.first().filter(|_| index < pictures.len());
        if let Some(told) = first.and_then(|answer| told(shared.part, answer)) {
            locked(&shared.answers).insert(index, told);
        }
        Ok::<_, Failure>(sample)
    };
    let warm_up = Instant::now();
    while shared.warm_up.fetch_add(1, Ordering::Relaxed) < shared.plan.warm_up {
        // What fails now fails again, and is counted then.
        let _ = ask(0);
        if warm_up.elapsed() > shared.plan.limit / 4 {
            break;
        }
    }
    shared.barrier.wait();
    shared.barrier.wait();
    let started = Instant::now();
    let mut own = Vec::new();
    loop {
        let index = shared.next.fetch_add(1, Ordering::Relaxed);
        let is_late = index > 0 && started.elapsed() > shared.plan.limit;
        if index >= shared.plan.requests || is_late {
            break;
        }
        match ask(index) {
            Ok(sample) => own.push(sample),
            Err(failure) => {
                shared.failed.fetch_add(1, Ordering::Relaxed);
                locked(&shared.first_failure).get_or_insert(failure);
            }
        }
        shared.bar.inc(1);
    }
    locked(&shared.samples).extend(own);
}

fn question(shared: &Shared<'_>, picture: Vec<u8>) -> Question {
    let arguments = shared.bencher.arguments;
    let question = Question::picture(picture);
    let tokens = arguments.tokens.map(i32::from);
    let length =
        Generation { max_new_tokens: tokens, min_new_tokens: tokens, ..Generation::default() };
    match shared.part {
        Part::Interrogate => question
            .text("mode", Some(arguments.mode.name()))
            .text("given_caption", arguments.given_caption.as_deref())
            .number("min_flavors", arguments.min_flavors)
            .number("max_flavors", arguments.max_flavors)
            .generation(&length),
        Part::Caption => question.generation(&length),
        Part::ZeroShot if arguments.labels.is_empty() => {
            question.texts("labels", &TEN_LABELS.map(str::to_owned))
        }
        Part::ZeroShot => question.texts("labels", &arguments.labels),
        _ => question,
    }
}

/// What of an answer is worth telling.
fn told(part: Part, answer: &Answer) -> Option<Value> {
    match part {
        Part::Interrogate => Some(json!({
            "prompt": answer.text("prompt").ok()?,
            "caption": answer.text("caption").ok()?,
            "report": serde_json::from_str::<Value>(&answer.text("report").ok()?).ok()?,
        })),
        Part::Caption => answer.text("caption").ok().map(Value::from),
        _ => None,
    }
}

/// A server's own count of what its stages did.
struct Statistics {
    client: Client,
    stages: Vec<&'static str>,
}

/// Of one stage: answered requests, and nanoseconds computing and in the queue.
#[derive(Clone, Copy, Default)]
struct Counted {
    count: f64,
    compute: f64,
    queue: f64,
}

impl Statistics {
    fn of(client: Client, part: Part) -> Self {
        // Of all the ways the ensemble may be made: what a server has no stage for counts nothing.
        let steps = Ensemble::all().filter(|ensemble| ensemble.name == part.name());
        let steps: Vec<StageKind> =
            steps.flat_map(|ensemble| ensemble.steps).map(|step| step.stage).collect();
        let stages = StageKind::ALL.iter().filter(|kind| steps.contains(kind));
        Statistics { client, stages: stages.map(|kind| kind.name()).collect() }
    }

    fn read(&self) -> Vec<Counted> {
        let one = |stage: &&str| {
            let statistics = self.client.statistics(stage).unwrap_or_default();
            let all = &statistics["inference_stats"];
            let number = |name: &str, what: &str| all[name][what].as_f64().unwrap_or(0.0);
            let compute = ["compute_input", "compute_infer", "compute_output"];
            Counted {
                count: number("success", "count"),
                compute: compute.iter().map(|name| number(name, "ns")).sum(),
                queue: number("queue", "ns"),
            }
        };
        self.stages.iter().map(one).collect()
    }

    fn since(&self, before: &[Counted]) -> Vec<StageTime> {
        let after = self.read();
        let stages = self.stages.iter().zip(before.iter().zip(after));
        let told = stages.filter_map(|(stage, (before, after))| {
            let count = after.count - before.count;
            let mean = |ns: f64| ns / count / 1e6;
            (count > 0.0).then(|| StageTime {
                stage: (*stage).to_owned(),
                mean_ms: mean(after.compute - before.compute),
                p50_ms: None,
                queue_ms: Some(mean(after.queue - before.queue)),
            })
        });
        told.collect()
    }
}
