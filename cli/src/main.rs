//! The `imprompt` command: builds, serves, uses and measures model repositories that turn
//! pictures into text. Results go to stdout, everything else to stderr; exit codes are 0 done,
//! 1 failed, 2 wrong usage.
#![forbid(unsafe_code)]

mod arguments;
mod ask;
mod catalogue;
mod cloud;
mod commands;
mod hub;
mod installed;
mod pictures;
mod sagemaker;
mod sdxl;
mod store;
mod talk;
mod wheel;

use std::process::ExitCode;

use clap::Parser as _;

use crate::arguments::{Arguments, Command};
use crate::commands::{
    bench, build, caption, check, delete, deploy, embed, interrogate, invoke, models, pack, push,
    restyle, serve, tag, vocabulary,
};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.command {
        Command::Build(arguments) => build::run(arguments),
        Command::Serve(arguments) => serve::run(arguments),
        Command::Interrogate(arguments) => interrogate::run(arguments),
        Command::Tag(arguments) => tag::run(arguments),
        Command::Caption(arguments) => caption::run(arguments),
        Command::Embed(arguments) => embed::run(arguments),
        Command::Vocabulary(arguments) => vocabulary::run(arguments),
        Command::Models(arguments) => models::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Check(arguments) => check::run(arguments),
        Command::Pack(arguments) => pack::run(arguments),
        Command::Push(arguments) => push::run(arguments),
        Command::Deploy(arguments) => deploy::run(arguments),
        Command::Invoke(arguments) => invoke::run(arguments),
        Command::Delete(arguments) => delete::run(arguments),
        Command::Restyle(arguments) => restyle::run(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.code())
        }
    }
}
