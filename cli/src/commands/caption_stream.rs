//! `imprompt caption --stream`: pieces of captions, as they come.

use std::path::Path;

use imprompt_error::{Error, Uncancellable};
use imprompt_kserve::Client;
use imprompt_repository::CaptionStream;

use super::{caption, run};
use crate::arguments::Caption;
use crate::ask::{self, Question};
use crate::pictures;
use crate::talk::{Failure, Result};

/// The model on a server.
const MODEL: &str = "caption_stream";

/// Who tells.
enum Teller {
    Server(Client),
    Here(Box<CaptionStream>),
}

/// Prints the caption of every picture, one picture after the other.
pub fn run(arguments: &Caption) -> Result<()> {
    let place = &arguments.place;
    let mut teller = match &place.server {
        Some(url) => Teller::Server(ask::connect(url)?),
        None => {
            let (repository, parameters) = ask::repository(place)?;
            Teller::Here(Box::new(CaptionStream::open(&repository, &parameters)?))
        }
    };
    let paths = &arguments.pictures.paths;
    let list = pictures::list(paths);
    let total = list.len();
    let is_many = total > 1 || paths.iter().any(|path| path.is_dir());
    let mut failed = 0;
    for (path, listed) in list {
        let told = listed.and_then(|()| pictures::read(&path)).and_then(|bytes| {
            picture(&mut teller, is_many.then_some(&path), &caption::question(arguments, bytes))
        });
        if let Err(failure) = told {
            failed += 1;
            failure.in_picture(&path).print();
        }
    }
    match failed {
        0 => Ok(()),
        1 if total == 1 => Err(Failure::reported()),
        _ => Err(Failure::new(format!("{failed} of {total} pictures failed"))),
    }
}

/// One line on stdout: `path`, if there is one, a tab, and the pieces.
fn picture(teller: &mut Teller, path: Option<&Path>, question: &Question) -> Result<()> {
    let mut has_begun = false;
    let mut piece = |text: &str| -> Result<()> {
        if !has_begun && let Some(path) = path {
            run::part(&format!("{}\t", path.display()))?;
        }
        has_begun = true;
        run::part(&text.replace(['\n', '\r'], " "))
    };
    let told = match teller {
        Teller::Server(client) => client
            .generate_stream(MODEL, &question.to_generate())
            .and_then(|mut events| {
                events.try_for_each(|event| {
                    let event = event?;
                    let text = event["caption"].as_str().unwrap_or_default();
                    piece(text).map_err(|failure| {
                        imprompt_kserve::Error::Protocol(failure.message().to_owned())
                    })
                })
            })
            .map_err(|error| ask::failed(&error, client, MODEL)),
        Teller::Here(stream) => stream
            .run(question.tensors(), &Uncancellable, &mut |text| {
                piece(text).map_err(|failure| Error::internal(failure.message()))
            })
            .map_err(Failure::from),
    };
    // What was begun is ended, so that the next line is one of its own.
    if has_begun {
        run::part("\n")?;
    }
    told
}
