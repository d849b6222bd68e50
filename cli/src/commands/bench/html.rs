//! The report as one page that needs nothing else.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::machine::Machine;
use super::measurement::Measurement;
use super::plot::{self, Axis, Curve, escape, number};

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1b2430; --soft: #6a7686; --line: #d9dfe6; --page: #ffffff;
  --c0: #2563eb; --c1: #d9480f; --c2: #2b8a3e; --c3: #9c36b5; --c4: #b08900; --c5: #0c8599; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #98a4b3; --line: #303a46; --page: #12171d;
  --c0: #6ea8fe; --c1: #ff9f6e; --c2: #69db7c; --c3: #da77f2; --c4: #ffd43b; --c5: #3bc9db; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
.soft, .legend { color: var(--soft); } .legend { margin: 0.2rem 0 1rem; }
table { border-collapse: collapse; margin: 0.6rem 0 1rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.8rem 0.25rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
.wide { overflow-x: auto; } svg { width: 100%; max-width: 42rem; display: block; }
svg text { font-size: 12px; fill: var(--soft); } .grid { stroke: var(--line); }
.curve { fill: none; stroke-width: 2; }
.c0 { fill: var(--c0); color: var(--c0); } .c1 { fill: var(--c1); color: var(--c1); }
.c2 { fill: var(--c2); color: var(--c2); } .c3 { fill: var(--c3); color: var(--c3); }
.c4 { fill: var(--c4); color: var(--c4); } .c5 { fill: var(--c5); color: var(--c5); }
path.curve { fill: none; } path.c0 { stroke: var(--c0); } path.c1 { stroke: var(--c1); } path.c2 { stroke: var(--c2); }
path.c3 { stroke: var(--c3); } path.c4 { stroke: var(--c4); } path.c5 { stroke: var(--c5); }
";

/// The page.
pub fn page(machine: &Machine, all: &[Measurement]) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>imprompt bench</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>imprompt bench</h1>\n\
         <p class=\"soft\">imprompt {}, {}, {} cores, {:.1} GiB, Linux {}</p>\n",
        env!("CARGO_PKG_VERSION"),
        escape(&machine.processor),
        machine.cores,
        machine.memory_bytes as f64 / (1_u64 << 30) as f64,
        escape(&machine.kernel)
    );
    let alone: Vec<&Measurement> = all.iter().filter(|one| one.sweep.is_none()).collect();
    summary(&mut page, &alone);
    for measured in &alone {
        section(&mut page, measured);
    }
    sweeps(&mut page, all);
    page.push_str("</body>\n</html>\n");
    page
}

/// `zero_shot, 8 callers`.
fn name(measured: &Measurement) -> String {
    let mut name = measured.part.to_owned();
    if let Some(mode) = measured.mode {
        let _ = write!(name, " ({mode})");
    }
    if measured.batch > 1 {
        let _ = write!(name, ", {} at once", measured.batch);
    }
    if measured.concurrency > 1 {
        let _ = write!(name, ", {} callers", measured.concurrency);
    }
    name
}

fn summary(page: &mut String, all: &[&Measurement]) {
    if all.is_empty() {
        return;
    }
    page.push_str(
        "<div class=\"wide\"><table>\n<tr><th>part</th><th>where</th><th>requests</th><th>failed</th><th>p50 ms</th>\
         <th>p90 ms</th><th>p99 ms</th><th>requests/s</th><th>a second</th></tr>\n",
    );
    for measured in all {
        let rates = measured.per_second.iter();
        let rates: Vec<String> =
            rates.map(|(what, rate)| format!("{} {what}", number(*rate))).collect();
        let latency = &measured.latency_ms;
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&name(measured)),
            escape(&measured.place),
            measured.requests,
            measured.failed,
            number(latency.p50),
            number(latency.p90),
            number(latency.p99),
            number(measured.requests_per_second),
            rates.join(", ")
        );
    }
    page.push_str("</table></div>\n");
}

fn section(page: &mut String, measured: &Measurement) {
    let _ = writeln!(page, "<h2>{}</h2>", escape(&name(measured)));
    if !measured.stages.is_empty() {
        page.push_str(
            "<table>\n<tr><th>stage</th><th>mean ms</th><th>p50 ms</th><th>queue ms</th></tr>\n",
        );
        for stage in &measured.stages {
            let shown = |ms: Option<f64>| ms.map_or("-".to_owned(), number);
            let _ = writeln!(
                page,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(&stage.stage),
                number(stage.mean_ms),
                shown(stage.p50_ms),
                shown(stage.queue_ms)
            );
        }
        page.push_str("</table>\n");
        // Only of whole requests do the stages add up to one.
        if measured.stages.iter().any(|stage| stage.stage == "preprocess") {
            let parts = measured.stages.iter().map(|stage| (stage.stage.clone(), stage.mean_ms));
            page.push_str(&plot::bar(&parts.collect::<Vec<_>>()));
        }
    }
    // How many of the requests took no longer than so many milliseconds.
    let count = measured.times.len();
    let every = count.div_ceil(200).max(1);
    let points = measured
        .times
        .iter()
        .enumerate()
        .filter(|(index, _)| index % every == 0 || index + 1 == count);
    let points = points.map(|(index, ms)| (*ms, 100.0 * (index + 1) as f64 / count as f64));
    let curve = Curve { name: name(measured), points: points.collect() };
    let x = Axis { name: "milliseconds", is_logarithmic: false };
    page.push_str(&plot::lines(&[curve], x, Axis { name: "% of requests", is_logarithmic: false }));
}

fn sweeps(page: &mut String, all: &[Measurement]) {
    type Points = Vec<(f64, f64)>;
    let mut curves: BTreeMap<(&str, String), (Points, Points)> = BTreeMap::new();
    for measured in all {
        let Some(point) = &measured.sweep else { continue };
        let group = point.curve.split('_').next().unwrap_or(point.curve);
        let name = match (group, point.curve) {
            ("labels", "labels_stored") => "a stored table (ranking alone)".to_owned(),
            ("labels", "labels_new") => "of the request, new".to_owned(),
            ("labels", _) => "of the request, seen before".to_owned(),
            _ => measured.part.to_owned(),
        };
        let (latency, rate) = curves.entry((group, name)).or_default();
        latency.push((point.value as f64, measured.latency_ms.p50));
        rate.push((point.value as f64, measured.requests_per_second));
    }
    let groups: std::collections::BTreeSet<&str> = curves.keys().map(|(group, _)| *group).collect();
    for group in groups {
        let _ = writeln!(page, "<h2>How cost grows with {group}</h2>");
        let of = |pick: fn(&(Points, Points)) -> &Points| {
            let curves = curves.iter().filter(|((of, _), _)| *of == group);
            curves
                .map(|((_, name), both)| Curve { name: name.clone(), points: pick(both).clone() })
                .collect::<Vec<_>>()
        };
        let x = Axis { name: group, is_logarithmic: true };
        let y = Axis { name: "milliseconds (p50)", is_logarithmic: true };
        page.push_str(&plot::lines(&of(|both| &both.0), x, y));
        if group == "clients" {
            let y = Axis { name: "requests a second", is_logarithmic: false };
            page.push_str(&plot::lines(&of(|both| &both.1), x, y));
        }
    }
}
