//! `imprompt caption`.

use std::path::Path;

use serde::Serialize;

use super::{caption_stream, run};
use crate::arguments::Caption;
use crate::ask::{Answer, Asker, Question};
use crate::talk::Result;

/// A line of `--json`.
#[derive(Serialize)]
struct Line {
    image: String,
    caption: String,
}

/// Prints the caption of every picture.
pub fn run(arguments: &Caption) -> Result<()> {
    if arguments.stream {
        return caption_stream::run(arguments);
    }
    let asker = Asker::open(&arguments.place, "caption")?;
    let question = |picture| question(arguments, picture);
    run::pictures(&arguments.pictures.paths, asker, 1, question, |path, is_many, answer, _| {
        show(path, is_many, answer, arguments.json)
    })
}

/// Prints the caption of a picture.
pub fn show(path: &Path, is_many: bool, answer: &Answer, json: bool) -> Result<()> {
    let caption = answer.text("caption")?;
    if !json {
        return run::plain(path, is_many, &caption);
    }
    run::json(&Line { image: path.display().to_string(), caption })
}

/// What is asked about a picture.
pub fn question(arguments: &Caption, picture: Vec<u8>) -> Question {
    Question::picture(picture)
        .text("text", arguments.text.as_deref())
        .generation(&arguments.generation)
}
