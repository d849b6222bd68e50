//! `imprompt interrogate`.

use std::path::Path;

use serde::Serialize;

use super::run;
use crate::arguments::{Interrogate, Mode};
use crate::ask::{Answer, Asker, Question};
use crate::talk::Result;

/// A line of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    image: String,
    mode: &'a str,
    prompt: String,
    caption: String,
    similarity: f32,
    seconds: f64,
}

/// Prints the prompt of every picture.
pub fn run(arguments: &Interrogate) -> Result<()> {
    let asker = Asker::open(&arguments.place, "interrogate")?;
    let question = |picture| question(arguments, arguments.mode, picture);
    let shown = Shown { mode: arguments.mode, several: false, json: arguments.json };
    run::pictures(
        &arguments.pictures.paths,
        asker,
        1,
        question,
        |path, is_many, answer, seconds| show(path, is_many, answer, seconds, &shown),
    )
}

/// How an answer is shown.
pub struct Shown {
    /// The mode it was asked in.
    pub mode: Mode,
    /// It is one of several, and is told.
    pub several: bool,
    /// As a line of JSON.
    pub json: bool,
}

/// Prints the answer about a picture.
pub fn show(
    path: &Path,
    is_many: bool,
    answer: &Answer,
    seconds: f64,
    shown: &Shown,
) -> Result<()> {
    let prompt = answer.text("prompt")?;
    let mode = shown.mode.name();
    if !shown.json {
        let prompt = if shown.several { format!("{mode}\t{prompt}") } else { prompt };
        return run::plain(path, is_many, &prompt);
    }
    run::json(&Line {
        image: path.display().to_string(),
        mode,
        prompt,
        caption: answer.text("caption")?,
        similarity: answer.number("similarity")?,
        seconds: (seconds * 1e6).round() / 1e6,
    })
}

fn question(arguments: &Interrogate, mode: Mode, picture: Vec<u8>) -> Question {
    Question::picture(picture)
        .text("mode", Some(mode.name()))
        .text("given_caption", arguments.given_caption.as_deref())
        .number("min_flavors", arguments.min_flavors)
        .number("max_flavors", arguments.max_flavors)
        .number("budget_ms", arguments.budget_ms)
        .generation(&arguments.generation)
}
