//! The subcommands, a file each.

pub mod bench;
pub mod build;
pub mod caption;
mod caption_stream;
pub mod check;
pub mod delete;
pub mod deploy;
pub mod embed;
pub mod interrogate;
pub mod invoke;
pub mod models;
pub mod pack;
pub mod push;
pub mod restyle;
pub mod run;
pub mod serve;
pub mod tag;
pub mod vocabulary;
