//! `imprompt invoke`.

use super::{caption, embed, interrogate, run, tag};
use crate::arguments::{Invoke, Mode, Task};
use crate::ask::{Asker, Question};
use crate::sagemaker::invoke::Endpoint;
use crate::talk::{Failure, Result};

/// Prints what the endpoint says of every picture, in every mode that is asked for.
pub fn run(arguments: &Invoke) -> Result<()> {
    let task = match arguments.ensemble {
        Some(task) => task,
        None if !arguments.labels.is_empty() || arguments.vocabulary.is_some() => Task::ZeroShot,
        None => Task::Interrogate,
    };
    check(arguments, task)?;
    let open = || -> Result<Asker> {
        let endpoint = Endpoint::open(
            &arguments.endpoint,
            arguments.target_model.as_deref(),
            arguments.region.as_deref(),
        )?;
        Ok(Asker::Endpoint(Box::new(endpoint)))
    };
    let paths = &arguments.pictures.paths;
    let json = arguments.json;
    match task {
        Task::Interrogate => {
            let modes = if arguments.mode.is_empty() { &[Mode::Best][..] } else { &arguments.mode };
            let mut last = Ok(());
            for &mode in modes {
                let question = |picture| {
                    Question::picture(picture)
                        .text("mode", Some(mode.name()))
                        .text("given_caption", arguments.given_caption.as_deref())
                        .number("min_flavors", arguments.min_flavors)
                        .number("max_flavors", arguments.max_flavors)
                        .number("budget_ms", arguments.budget_ms)
                        .generation(&arguments.generation)
                };
                let several = modes.len() > 1;
                let ran =
                    run::pictures(paths, open()?, 1, question, |path, is_many, answer, seconds| {
                        interrogate::show(
                            path,
                            is_many,
                            answer,
                            seconds,
                            &interrogate::Shown { mode, several, json },
                        )
                    });
                // One bad picture keeps no mode from the others; it is reported in each.
                last = ran.and(last);
            }
            last
        }
        Task::ZeroShot => {
            let labels: Vec<String> =
                arguments.labels.iter().map(|label| label.trim().to_owned()).collect();
            let question = |picture| {
                Question::picture(picture)
                    .texts("labels", &labels)
                    .text("vocabulary", arguments.vocabulary.as_deref())
                    .text("template", arguments.template.as_deref())
                    .number("top_k", arguments.generation.top_k)
            };
            run::pictures(paths, open()?, 1, question, |path, is_many, answer, _| {
                tag::show(path, is_many, answer, json)
            })
        }
        Task::Caption => {
            let question = |picture| {
                Question::picture(picture)
                    .text("text", arguments.text.as_deref())
                    .generation(&arguments.generation)
            };
            run::pictures(paths, open()?, 1, question, |path, is_many, answer, _| {
                caption::show(path, is_many, answer, json)
            })
        }
        Task::EmbedImage => {
            run::pictures(paths, open()?, 1, Question::picture, |path, _, answer, _| {
                embed::show(path, answer)
            })
        }
    }
}

/// # Errors
/// When flags were given that are not of this ensemble.
fn check(arguments: &Invoke, task: Task) -> Result<()> {
    let of_interrogate = !arguments.mode.is_empty()
        || arguments.given_caption.is_some()
        || arguments.min_flavors.is_some()
        || arguments.max_flavors.is_some()
        || arguments.budget_ms.is_some();
    let of_tags = !arguments.labels.is_empty()
        || arguments.vocabulary.is_some()
        || arguments.template.is_some();
    let wrong = |what: &str| Err(Failure::usage(what));
    if of_interrogate && task != Task::Interrogate {
        return wrong(
            "--mode, --given-caption, --min-flavors, --max-flavors, --budget-ms are of --ensemble interrogate",
        );
    }
    if of_tags && task != Task::ZeroShot {
        return wrong("--labels, --vocabulary, --template are of --ensemble zero_shot");
    }
    if task == Task::ZeroShot && arguments.labels.is_empty() == arguments.vocabulary.is_none() {
        return wrong("--ensemble zero_shot: one of --labels and --vocabulary");
    }
    if arguments.text.is_some() && task != Task::Caption {
        return wrong("--text is of --ensemble caption");
    }
    Ok(())
}
