//! `imprompt embed`.

use std::path::Path;

use serde::Serialize;

use super::run;
use crate::arguments::Embed;
use crate::ask::{Answer, Asker, Question};
use crate::talk::Result;

/// Pictures given to the stages together in this process.
const PICTURES: usize = 8;
/// Texts given to them together: those of a length are one run of the text tower.
const TEXTS: usize = 128;

/// The line of a picture.
#[derive(Serialize)]
struct PictureLine<'a> {
    image: String,
    embedding: &'a [f32],
}

/// The line of a text.
#[derive(Serialize)]
struct TextLine<'a> {
    text: &'a str,
    embedding: &'a [f32],
}

/// Prints the embedding of every picture, or of every text.
pub fn run(arguments: &Embed) -> Result<()> {
    if !arguments.text.is_empty() {
        return texts(arguments);
    }
    let asker = Asker::open(&arguments.place, "embed_image")?;
    run::pictures(&arguments.paths, asker, PICTURES, Question::picture, |path, _, answer, _| {
        show(path, answer)
    })
}

/// Prints the embedding of a picture.
pub fn show(path: &Path, answer: &Answer) -> Result<()> {
    let embedding = answer.numbers("embedding")?;
    run::json(&PictureLine { image: path.display().to_string(), embedding })
}

fn texts(arguments: &Embed) -> Result<()> {
    let mut asker = Asker::open(&arguments.place, "embed_text")?;
    for texts in arguments.text.chunks(asker.at_once(TEXTS)) {
        let questions = texts.iter().map(|text| Question::default().text("text", Some(text)));
        for (text, answer) in texts.iter().zip(asker.ask(questions.collect())) {
            run::json(&TextLine { text, embedding: answer?.numbers("embedding")? })?;
        }
    }
    Ok(())
}
