//! What is said to a person: errors with hints, and progress on a terminal.
//! Everything here goes to stderr; stdout is for data.

use std::fmt;
use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use imprompt_error::{Error, Kind};
use imprompt_repository::{Progress, Unit};
use indicatif::{ProgressBar, ProgressStyle};

/// Why the command did not do what it was asked, and what would help.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    usage: bool,
}

/// Shorthand for results of the command.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A failure: exit code 1.
    pub fn new(message: impl fmt::Display) -> Self {
        Failure { message: message.to_string(), hint: None, usage: false }
    }

    /// A wrong use of the command: exit code 2.
    pub fn usage(message: impl fmt::Display) -> Self {
        Failure { usage: true, ..Failure::new(message) }
    }

    /// With a line about what would help.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// A failure that was printed already; only its exit code is left.
    pub fn reported() -> Self {
        Failure { message: String::new(), hint: None, usage: false }
    }

    /// The same failure, said of a picture.
    #[must_use]
    pub fn in_picture(&self, path: &Path) -> Self {
        self.of(path.display())
    }

    /// The same failure, said of something: a file, a key.
    #[must_use]
    pub fn of(&self, what: impl fmt::Display) -> Self {
        let message = format!("{what}: {}", self.message);
        Failure { message, hint: self.hint.clone(), usage: self.usage }
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        if self.usage { 2 } else { 1 }
    }

    /// Prints the error and its hint.
    pub fn print(&self) {
        if self.message.is_empty() {
            return;
        }
        eprintln!("error: {}", self.message);
        if let Some(hint) = &self.hint {
            eprintln!("hint: {hint}");
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let failure = Failure::new(error.message());
        match error.kind() {
            Kind::OutOfMemory => failure.hint("close other programs, or use a smaller model"),
            _ => failure,
        }
    }
}

/// Progress of a build: bars on a terminal, a line a step elsewhere.
pub struct Bars {
    is_terminal: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl Bars {
    /// For this process's stderr.
    pub fn new() -> Self {
        Bars { is_terminal: std::io::stderr().is_terminal(), bar: Mutex::new(None) }
    }

    fn with(&self, work: impl FnOnce(&mut Option<ProgressBar>)) {
        // A poisoned lock means that another thread panicked while drawing: draw on.
        work(&mut self.bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }
}

impl Progress for Bars {
    fn say(&self, text: &str) {
        self.with(|bar| match bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        });
    }

    fn start(&self, what: &str, total: u64, unit: Unit) {
        if !self.is_terminal {
            self.say(what);
            return;
        }
        let style = match unit {
            Unit::Bytes => "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
            Unit::Steps => "{msg} [{bar:30}] {pos}/{len}",
            Unit::Labels => "{msg} [{bar:30}] {pos}/{len} {per_sec} {eta} left",
        };
        let new = bar(total, style).with_message(what.to_owned());
        self.with(|bar| *bar = Some(new));
    }

    fn advance(&self, by: u64) {
        self.with(|bar| bar.iter().for_each(|bar| bar.inc(by)));
    }

    fn finish(&self) {
        self.with(|bar| {
            if let Some(bar) = bar.take() {
                bar.finish_and_clear();
            }
        });
    }
}

/// One line to stderr.
pub fn say(text: &str) {
    eprintln!("{text}");
}

/// That something takes long: a turning sign on a terminal, a line a step everywhere.
pub struct Spinner(ProgressBar);

impl Spinner {
    /// For this process's stderr.
    pub fn new() -> Self {
        Spinner(bar(0, "{spinner} {elapsed} {msg}"))
    }

    /// Says what happens.
    pub fn say(&self, text: &str) {
        self.0.suspend(|| eprintln!("{text}"));
        self.0.set_message(text.to_owned());
    }

    /// Takes the sign away.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// A bar on stderr; nothing where that is no terminal.
pub fn bar(total: u64, style: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
