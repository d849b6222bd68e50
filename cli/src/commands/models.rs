//! `imprompt models`.

use serde::Serialize;

use super::run;
use crate::arguments::{ModelRole, Models};
use crate::catalogue::{self, Known};
use crate::talk::{Failure, Result};
use imprompt_repository::family::Role;

/// A line of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    hub_id: Option<&'a str>,
    kind: &'static str,
    architecture: &'static str,
    parameters: u64,
    disk_bytes: Option<u64>,
    memory_bytes: u64,
    licence: Option<&'static str>,
    good_for: Option<&'static str>,
    supported: bool,
}

impl<'a> Line<'a> {
    fn of(known: &'a Known) -> Self {
        let family = known.family;
        Line {
            name: &known.name,
            hub_id: known.hub_id,
            kind: match family.role {
                Role::Clip => "clip",
                Role::Captioner => "captioner",
            },
            architecture: family.architecture,
            parameters: (known.parameters * 1e6).round() as u64,
            disk_bytes: known.disk,
            memory_bytes: known.memory(),
            licence: known.licence,
            good_for: Some(known.good_for).filter(|text| !text.is_empty()),
            supported: family.supported,
        }
    }

    /// What the table shows of it.
    fn cells(&self) -> [String; 10] {
        let text = |text: Option<&str>| text.unwrap_or("-").to_owned();
        [
            self.name.to_owned(),
            self.kind.to_owned(),
            if self.supported { "yes" } else { "no" }.to_owned(),
            self.architecture.to_owned(),
            format!("{:.0} M", self.parameters as f64 / 1e6),
            self.disk_bytes.map_or_else(|| text(None), gigabytes),
            gigabytes(self.memory_bytes),
            text(self.licence),
            text(self.hub_id),
            text(self.good_for),
        ]
    }
}

const HEADS: [&str; 10] = [
    "NAME",
    "KIND",
    "SUPPORTED",
    "ARCHITECTURE",
    "PARAMETERS",
    "ON DISK",
    "IN MEMORY",
    "LICENCE",
    "HUB ID",
    "GOOD FOR",
];

/// Prints what is known.
pub fn run(arguments: &Models) -> Result<()> {
    let known = catalogue::all();
    let wanted = |known: &&Known| {
        let role = match arguments.kind {
            None => true,
            Some(ModelRole::Clip) => known.family.role == Role::Clip,
            Some(ModelRole::Captioner) => known.family.role == Role::Captioner,
        };
        let contains = |text: &String| known.name.to_lowercase().contains(&text.to_lowercase());
        role && (known.family.supported || !arguments.supported)
            && arguments.filter.as_ref().is_none_or(contains)
    };
    let lines: Vec<Line<'_>> = known.iter().filter(wanted).map(Line::of).collect();
    if lines.is_empty() {
        return Err(Failure::new("no known model has this in its name").hint(
            "`imprompt models` lists all; any folder or hub id of a supported architecture \
                   works without a name",
        ));
    }
    if arguments.json {
        return lines.iter().try_for_each(run::json);
    }
    let rows: Vec<[String; 10]> =
        std::iter::once(HEADS.map(str::to_owned)).chain(lines.iter().map(Line::cells)).collect();
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let widths: [usize; 10] = std::array::from_fn(width);
    rows.iter().try_for_each(|row| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        run::line(cells.collect::<Vec<_>>().join("  ").trim_end())
    })
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}
