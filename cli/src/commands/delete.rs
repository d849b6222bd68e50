//! `imprompt delete`.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use super::deploy::request;
use super::run;
use crate::arguments::Delete;
use crate::cloud;
use crate::cloud::account::Account;
use crate::cloud::call::Caller;
use crate::cloud::http::Web;
use crate::sagemaker::control::Control;
use crate::sagemaker::delete::{Remains, subject};
use crate::sagemaker::plan::check_name;
use crate::talk::{self, Failure, Result, Spinner};

/// Says what is there, asks, and removes it.
pub fn run(arguments: &Delete) -> Result<()> {
    check_name(&arguments.endpoint)?;
    let runtime = cloud::runtime()?;
    let account = Account::load(&runtime, arguments.region.as_deref(), Web::new(false))?;
    let control = Control(Caller { account: &account, runtime: &runtime });
    let remains = Remains::find(&control, &arguments.endpoint)?;
    if arguments.dry_run {
        for operation in remains.operations() {
            run::json(&request(&account, &operation, "always")?)?;
        }
        return Ok(());
    }
    if !arguments.yes {
        for operation in remains.operations() {
            talk::say(&format!("{} {}", operation.name(), subject(&operation)));
        }
        if !std::io::stdin().is_terminal() {
            return Err(Failure::usage("nothing was deleted: there is nobody to ask")
                .hint("--yes deletes without asking, --dry-run prints the requests"));
        }
        eprint!("delete all of these? [y/N] ");
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        if read.is_err() || !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Err(Failure::new("nothing was deleted"));
        }
    }
    let spinner = Spinner::new();
    let limit = Duration::from_secs(arguments.wait.into());
    let removed = remains.remove(&control, limit, &|text| spinner.say(text));
    spinner.finish();
    removed
}
