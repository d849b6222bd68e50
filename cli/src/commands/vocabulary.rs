//! `imprompt vocabulary`.

use std::path::Path;

use imprompt_repository::{AddTables, Manifest, Progress as _};
use serde::Serialize;

use super::{build, run};
use crate::arguments::Vocabulary;
use crate::installed;
use crate::talk::{Bars, Failure, Result};

/// A line of `list --json`.
#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    labels: usize,
    hash: &'a str,
}

/// Lists, adds or removes label tables.
pub fn run(arguments: &Vocabulary) -> Result<()> {
    match arguments {
        Vocabulary::List { repo, json } => list(repo.as_deref(), *json),
        Vocabulary::Add { sources, replace, repo, onnxruntime } => {
            let repository = installed::repository(repo.as_deref())?;
            Manifest::read(&repository)?;
            let bars = Bars::new();
            let request = AddTables {
                sources: build::vocabularies(sources, &bars)?,
                replace: *replace,
                onnxruntime: installed::onnxruntime(onnxruntime.as_deref(), false)?,
            };
            let added =
                imprompt_repository::add_tables(&repository, &request, &bars).map_err(|error| {
                    match error.message().ends_with(" already") {
                        true => {
                            Failure::from(error).hint("--replace puts the new table in its place")
                        }
                        false => error.into(),
                    }
                })?;
            for table in added {
                bars.say(&format!("added {}: {} labels", table.name, table.labels));
            }
            Ok(())
        }
        Vocabulary::Remove { names, repo } => {
            let repository = installed::repository(repo.as_deref())?;
            Ok(imprompt_repository::remove_tables(&repository, names, &Bars::new())?)
        }
    }
}

fn list(repo: Option<&Path>, json: bool) -> Result<()> {
    let manifest = Manifest::read(&installed::repository(repo)?)?;
    for table in &manifest.tables {
        if json {
            run::json(&Line { name: &table.name, labels: table.labels, hash: &table.hash })?;
        } else {
            run::line(&format!("{}\t{}\t{}", table.name, table.labels, table.hash))?;
        }
    }
    Ok(())
}
