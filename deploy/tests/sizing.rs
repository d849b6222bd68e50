//! The tables of docs/scaling.md follow from the raw results in docs/benchmarks, and from nothing
//! else. `IMPROMPT_WRITE_SIZING=1` writes them.
#![allow(missing_docs)]

mod support;

use std::fmt::Write as _;
use std::fs;

use serde_json::Value;
use support::{items, project, read};

/// How much of its time a replica is to be busy.
const BUSY: f64 = 0.7;

/// After so many seconds SageMaker gives a request up.
const LIMIT: f64 = 60.0;

/// Pictures an hour.
const LOADS: [f64; 3] = [1_000.0, 10_000.0, 100_000.0];

/// The raw results of a section.
struct Section(Value);

/// The median, the least and the greatest of the rounds.
#[derive(Clone, Copy)]
struct Measured {
    median: f64,
    least: f64,
    greatest: f64,
}

impl Measured {
    fn map(self, f: impl Fn(f64) -> f64) -> Self {
        let (a, b) = (f(self.least), f(self.greatest));
        Measured { median: f(self.median), least: a.min(b), greatest: a.max(b) }
    }

    fn plus(self, other: Self) -> Self {
        Measured {
            median: self.median + other.median,
            least: self.least + other.least,
            greatest: self.greatest + other.greatest,
        }
    }
}

impl Section {
    fn open(name: &str) -> Self {
        let text = read(&project("docs/benchmarks").join(format!("{name}.json")));
        Section(serde_json::from_str(&text).unwrap())
    }

    /// imprompt's values of a line, in seconds or a second.
    fn get(&self, line: &str, precision: &str) -> Measured {
        let row = items(&self.0["rows"]).find(|row| row["name"] == line);
        let row = row.unwrap_or_else(|| panic!("no line {line:?}"));
        let mut values: Vec<f64> =
            items(&row["values"][precision]).map(|value| value.as_f64().unwrap()).collect();
        assert!(!values.is_empty(), "{line}: nothing measured in {precision}");
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => f64::midpoint(values[middle - 1], values[middle]),
            _ => values[middle],
        };
        let measured = Measured { median, least: values[0], greatest: values[values.len() - 1] };
        match row["unit"].as_str().unwrap() {
            "s" | "infer/s" => measured,
            "ms" => measured.map(|value| value / 1e3),
            unit => panic!("{line}: {unit}"),
        }
    }

    fn machine(&self) -> String {
        let machine = &self.0["machine"];
        let memory = machine["memory_kib"].as_f64().unwrap() / f64::from(1 << 20);
        let said = |key| machine["lscpu"][key].as_str().unwrap();
        format!(
            "{} (family {}, model {}), {} cores, {memory:.1} GiB",
            said("Model name"),
            said("CPU family"),
            said("Model"),
            said("CPU(s)")
        )
    }

    /// When and of what it was measured.
    fn source(&self) -> String {
        let said = |value: &Value| value.as_str().unwrap().to_owned();
        format!(
            "[`{section}.json`](benchmarks/{section}.json): {} of {}, rounds: {}, float32 products {:.0} GFLOP/s in the same run",
            said(&self.0["versions"]["commit"]),
            said(&self.0["date"]),
            self.0["rounds"],
            self.0["peaks"]["onnxruntime_float32"].as_f64().unwrap(),
            section = said(&self.0["section"]),
        )
    }
}

/// Three digits, and commas between thousands.
fn number(value: f64) -> String {
    let digits = match value {
        value if value >= 999.5 => {
            let unit = 10_f64.powf(value.log10().floor() - 2.0);
            return grouped(&format!("{:.0}", (value / unit).round() * unit));
        }
        value if value >= 99.95 => 0,
        value if value >= 9.995 => 1,
        value if value >= 0.9995 => 2,
        value if value >= 0.09995 => 3,
        _ => 4,
    };
    format!("{value:.digits$}")
}

/// Commas between thousands.
fn grouped(digits: &str) -> String {
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn shown(measured: Measured) -> String {
    let Measured { median, least, greatest } = measured;
    if least == greatest {
        return number(median);
    }
    format!("{} ({} to {})", number(median), number(least), number(greatest))
}

/// Replicas for a load, each busy for so much of its time at most.
fn replicas(load: f64, rate: f64) -> f64 {
    (load / (rate * 3600.0 * BUSY)).ceil()
}

/// A line: what is asked, the seconds of one request, and pictures a second.
fn line(table: &mut String, what: &str, precision: &str, seconds: Measured, rate: f64) {
    let needed = LOADS.map(|load| grouped(&replicas(load, rate).to_string())).join(" | ");
    writeln!(
        table,
        "| {what} | {precision} | {} | {:.1}% | {} | {} | {} | {needed} |",
        shown(seconds),
        100.0 * seconds.median / LIMIT,
        number(rate),
        number(rate * 3600.0),
        number(rate * 60.0 * BUSY),
    )
    .unwrap();
}

fn sizing() -> String {
    let [best, caption, image, picture, serving] =
        ["best", "caption", "image", "picture", "serving"].map(Section::open);
    let sections = [&best, &caption, &image, &picture, &serving];
    for section in sections {
        assert_eq!(section.machine(), best.machine(), "figures of one machine belong together");
        assert_eq!(section.0["quick"], false);
    }
    let mut table = format!("One replica is {}.\n\n", best.machine());
    let loads = LOADS.map(|load| format!("for {}/h", number(load))).join(" | ");
    writeln!(
        table,
        "| request | precision | seconds | of SageMaker's {LIMIT} s | pictures/s | pictures/h | requests/min at {:.0}% | {loads} |",
        100.0 * BUSY
    )
    .unwrap();
    table += &"| --- ".repeat(7 + LOADS.len());
    table += "|\n";
    let modes = [
        ("best", &["f32", "int8"][..]),
        ("fast", &["f32"]),
        ("classic", &["f32"]),
        ("caption", &["f32"]),
    ];
    for (mode, precisions) in modes {
        for precision in precisions {
            let seconds = best.get(&format!("mode {mode}, ViT-L/14 and BLIP-large"), precision);
            let what = format!("`interrogate`, {mode}, ViT-L/14 and BLIP-large [1]");
            line(&mut table, &what, precision, seconds, seconds.median.recip());
        }
    }
    let jpeg = picture.get("JPEG of 2048x1536: decode and resize", "f32");
    for precision in ["f32", "f16", "int8", "int4"] {
        let seconds = caption.get("a whole caption of 20 tokens, BLIP-base", precision).plus(jpeg);
        let what = "`caption`, 20 tokens, BLIP-base [2]";
        line(&mut table, what, precision, seconds, seconds.median.recip());
    }
    for model in ["ViT-L/14", "ViT-B/32"] {
        for precision in ["f32", "int8"] {
            let tower = image.get(&format!("image tower, {model}, batch 1"), precision);
            let seconds = tower.plus(jpeg);
            let what = format!("`embed_image`, {model} [2]");
            line(&mut table, &what, precision, seconds, seconds.median.recip());
        }
    }
    for clients in [1, 8, 64] {
        let at = |what| serving.get(&format!("zero_shot, {clients} clients: {what}"), "f32");
        let what = format!("`zero_shot`, demo models, {clients} clients [3]");
        line(&mut table, &what, "f32", at("median latency"), at("throughput").median);
    }
    table += "\n[1] the four modes: end to end, over a sample of clip-interrogator's terms ([benchmarks.md](benchmarks.md)); best: 8 chain steps, the least unless `min_flavors` is said, each further one adds its share  \n";
    table += "[2] the part alone, and decoding a JPEG of 2048x1536 on one core  \n";
    table += "[3] through Triton over gRPC; toys of 3 million parameters: this shows the server, not a model  \n\n";
    for section in sections {
        writeln!(table, "- {}", section.source()).unwrap();
    }
    table
}

fn batches() -> String {
    let [caption, image] = ["caption", "image"].map(Section::open);
    let mut table =
        "| stage | precision | alone, ms | eight together, ms each | pictures in the same time |\n"
            .to_owned();
    table += "| --- | --- | --- | --- | --- |\n";
    let mut lines = vec![];
    for model in ["ViT-L/14", "ViT-B/32"] {
        lines.extend(["f32", "int8"].map(|precision| {
            (&image, format!("image tower, {model}"), "`clip_image`, a picture", model, precision)
        }));
    }
    for model in ["BLIP-base", "BLIP-2 with 4 of OPT-2.7b's 32 layers"] {
        lines.extend(["f32", "f16", "int8", "int4"].map(|precision| {
            (&caption, format!("a token, {model}"), "`captioner`, a token", model, precision)
        }));
    }
    for (section, name, what, model, precision) in lines {
        let at = |batch| section.get(&format!("{name}, batch {batch}"), precision);
        let (one, each) = (at(1), at(8).map(|seconds| seconds / 8.0));
        let ms = |measured: Measured| shown(measured.map(|seconds| seconds * 1e3));
        writeln!(
            table,
            "| {what}, {model} | {precision} | {} | {} | {}x |",
            ms(one),
            ms(each),
            number(one.median / each.median)
        )
        .unwrap();
    }
    table
}

/// The text between two comments of docs/scaling.md is `table`, or becomes it.
fn is_in_the_page(name: &str, table: &str) {
    let page = project("docs/scaling.md");
    let text = read(&page);
    let marks = ["begin", "end"].map(|end| format!("<!-- {name}: {end} -->"));
    let [begin, end] = marks.each_ref().map(|mark| {
        assert_eq!(text.matches(mark).count(), 1, "docs/scaling.md: {mark}");
        text.find(mark).unwrap()
    });
    let begin = begin + marks[0].len();
    let table = format!("\n\n{table}\n");
    if std::env::var_os("IMPROMPT_WRITE_SIZING").is_some() {
        fs::write(&page, [&text[..begin], &table, &text[end..]].concat()).unwrap();
        return;
    }
    assert_eq!(
        &text[begin..end],
        table,
        "docs/scaling.md is not what docs/benchmarks says: \
         IMPROMPT_WRITE_SIZING=1 cargo test -p imprompt-manifests --test sizing"
    );
}

// One test: both write the same file.
#[test]
fn tables_follow_from_the_measurements() {
    is_in_the_page("sizing", &sizing());
    is_in_the_page("batches", &batches());
}

#[test]
fn replicas_carry_their_load() {
    for (load, rate) in [(1_000.0, 0.1), (3_600.0, 1.0), (100_000.0, 0.0175)] {
        let needed = replicas(load, rate);
        let busy = |count: f64| load / 3600.0 / rate / count;
        assert!(busy(needed) <= BUSY && (needed == 1.0 || busy(needed - 1.0) > BUSY));
    }
    assert_eq!(replicas(2_520.0, 1.0), 1.0);
    assert_eq!(replicas(2_521.0, 1.0), 2.0);
}

#[test]
fn numbers_have_three_digits() {
    assert_eq!(["1", "999", "1000", "1234567"].map(grouped), ["1", "999", "1,000", "1,234,567"]);
    let cases = [(1_234_567.0, "1,230,000"), (999.6, "1,000"), (63.2, "63.2"), (0.0175, "0.0175")];
    for (value, expected) in cases {
        assert_eq!(number(value), expected);
    }
}
