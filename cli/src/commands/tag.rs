//! `imprompt tag`.

use std::path::Path;

use serde::Serialize;

use super::run;
use crate::arguments::Tag;
use crate::ask::{Answer, Asker, Question};
use crate::talk::{Failure, Result};

/// Pictures given to the stages together in this process.
const TOGETHER: usize = 8;

/// A line of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    image: String,
    labels: Vec<Scored<'a>>,
}

/// A label of a picture.
#[derive(Serialize)]
struct Scored<'a> {
    label: &'a str,
    probability: f32,
    similarity: f32,
}

/// Prints the labels of every picture.
pub fn run(arguments: &Tag) -> Result<()> {
    let labels: Vec<String> =
        arguments.labels.iter().map(|label| label.trim().to_owned()).collect();
    let asker = Asker::open(&arguments.place, "zero_shot")?;
    let question = |picture| {
        Question::picture(picture)
            .texts("labels", &labels)
            .text("vocabulary", arguments.vocabulary.as_deref())
            .text("template", arguments.template.as_deref())
            .number("top_k", arguments.top_k)
    };
    let paths = &arguments.pictures.paths;
    run::pictures(paths, asker, TOGETHER, question, |path, is_many, answer, _| {
        show(path, is_many, answer, arguments.json)
    })
}

/// Prints the labels of a picture.
pub fn show(path: &Path, is_many: bool, answer: &Answer, json: bool) -> Result<()> {
    let labels = answer.texts("label")?;
    let (probabilities, similarities) =
        (answer.numbers("probability")?, answer.numbers("similarity")?);
    if labels.len() != probabilities.len() || labels.len() != similarities.len() {
        return Err(Failure::new(format!(
            "the answer has {} labels, {} probabilities and {} similarities",
            labels.len(),
            probabilities.len(),
            similarities.len()
        )));
    }
    let scores = probabilities.iter().zip(similarities);
    let scored = labels.iter().zip(scores).map(|(label, (&probability, &similarity))| Scored {
        label,
        probability,
        similarity,
    });
    if json {
        return run::json(&Line { image: path.display().to_string(), labels: scored.collect() });
    }
    for Scored { label, probability, similarity } in scored {
        run::plain(path, is_many, &format!("{probability:.4}\t{similarity:.4}\t{label}"))?;
    }
    Ok(())
}
