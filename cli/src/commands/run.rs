//! What the commands that go through pictures have in common.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::ask::{Answer, Asker, Question};
use crate::pictures;
use crate::talk::{self, Failure, Result};

/// Writes one line to stdout.
pub fn line(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(output)
}

/// Writes a part of a line to stdout, at once.
pub fn part(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(output)
}

/// Writes one JSON object to stdout, as a line. Objects are structs, not `json!` values: those
/// would widen a float32 and print its rounding.
pub fn json(object: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string(object).map_err(Failure::new)?)
}

/// A failure to write. A reader that has seen enough (`| head`) is no failure of ours, yet
/// there is nobody left to work for.
fn output(error: std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    Failure::new(format!("stdout: {error}"))
}

/// Asks about every picture of `paths`, `together` at once where the ensemble runs in this
/// process, and gives each answer to `print` with the seconds it took. A picture that fails
/// is reported and the run goes on.
///
/// # Errors
/// When nothing can be printed any more, or when pictures failed: how many.
pub fn pictures(
    paths: &[PathBuf],
    mut asker: Asker,
    together: usize,
    question: impl Fn(Vec<u8>) -> Question,
    mut print: impl FnMut(&Path, bool, &Answer, f64) -> Result<()>,
) -> Result<()> {
    let list = pictures::list(paths);
    let total = list.len();
    let is_many = total > 1 || paths.iter().any(|path| path.is_dir());
    let bar = talk::bar(total as u64, "{pos}/{len} pictures [{bar:30}] {eta} left");
    let mut failed = 0;
    let mut report = |path: &Path, failure: &Failure| {
        failed += 1;
        bar.suspend(|| {
            failure.in_picture(path).print();
        });
    };
    let mut list = list.into_iter().peekable();
    while list.peek().is_some() {
        let (mut asked, mut questions) = (vec![], vec![]);
        for (path, listed) in list.by_ref().take(asker.at_once(together)) {
            match listed.and_then(|()| pictures::read(&path)) {
                Ok(bytes) => {
                    questions.push(question(bytes));
                    asked.push(path);
                }
                Err(failure) => {
                    report(&path, &failure);
                    bar.inc(1);
                }
            }
        }
        let (started, count) = (Instant::now(), questions.len());
        let answers = asker.ask(questions);
        let seconds = started.elapsed().as_secs_f64() / count.max(1) as f64;
        for (path, answer) in asked.iter().zip(answers) {
            let printed =
                answer.and_then(|answer| bar.suspend(|| print(path, is_many, &answer, seconds)));
            if let Err(failure) = printed {
                report(path, &failure);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    match failed {
        0 => Ok(()),
        1 if total == 1 => Err(Failure::reported()),
        _ => Err(Failure::new(format!("{failed} of {total} pictures failed"))),
    }
}

/// `text` on one line, with `path` before it when there are several pictures.
pub fn plain(path: &Path, is_many: bool, text: &str) -> Result<()> {
    let text = text.replace(['\n', '\r'], " ");
    if is_many { line(&format!("{}\t{text}", path.display())) } else { line(&text) }
}
