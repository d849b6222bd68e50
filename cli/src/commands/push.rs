//! `imprompt push`.

use std::time::Instant;

use imprompt_repository::Progress as _;

use super::run;
use crate::arguments::Push;
use crate::cloud;
use crate::store::Store;
use crate::store::address::Address;
use crate::store::files;
use crate::store::open::Access;
use crate::store::parts::Pace;
use crate::store::push::{Done, Pushed, push};
use crate::talk::{Bars, Failure, Result};

/// Pushes a package or a repository, and says what was sent.
pub fn run(arguments: &Push) -> Result<()> {
    let started = Instant::now();
    let address = Address::parse(&arguments.url)?;
    let bars = Bars::new();
    let is_repository = arguments.source.is_dir();
    let (address, files) = match is_repository {
        true => {
            imprompt_repository::Manifest::read(&arguments.source)?;
            let files = files::repository(&arguments.source, &bars)?;
            let keyed = files.into_iter().map(|file| {
                let key = address.key(&file.name);
                (file, key)
            });
            (address.clone(), keyed.collect())
        }
        false => {
            let file = files::package(&arguments.source, &bars)?;
            let address = address.for_file(&file.name);
            let key = address.prefix.clone();
            (address, vec![(file, key)])
        }
    };
    if arguments.delete && (!is_repository || address.prefix.is_empty()) {
        return Err(Failure::usage("--delete: is for a repository in a folder of a bucket")
            .hint("name a folder: s3://BUCKET/FOLDER"));
    }
    let runtime = cloud::runtime()?;
    let access = Access { region: arguments.region.as_deref(), allow_http: arguments.allow_http };
    let store = Store::open(&runtime, &address, access)?;
    let pace = Pace {
        part: u64::from(arguments.part_size) << 20,
        parallel: usize::from(arguments.parallel),
    };
    let (pushed, surplus) =
        runtime.block_on(push(&store, &files, arguments.delete, pace, &bars))?;
    for object in pushed.iter().filter(|_| arguments.json) {
        run::json(object)?;
    }
    if !surplus.is_empty() {
        bars.say(&format!(
            "{} objects at {address} are not of this repository, such as {}; --delete removes them",
            surplus.len(),
            surplus[0]
        ));
    }
    bars.say(&summary(&address, &pushed, started.elapsed().as_secs_f64()));
    if is_repository {
        bars.say(&format!("serve it: tritonserver --model-repository {}", store.triton));
    }
    Ok(())
}

fn summary(address: &Address, pushed: &[Pushed], seconds: f64) -> String {
    let of = |done: Done| pushed.iter().filter(move |object| object.done == done);
    let sent: u64 = of(Done::Uploaded).map(|object| object.bytes).sum();
    let mut text = format!(
        "pushed to {address} in {seconds:.1} s: {} uploaded ({:.1} MB), {} copied there, {} unchanged",
        of(Done::Uploaded).count(),
        sent as f64 / 1e6,
        of(Done::Copied).count(),
        of(Done::Unchanged).count(),
    );
    if of(Done::Deleted).count() > 0 {
        text.push_str(&format!(", {} deleted", of(Done::Deleted).count()));
    }
    text
}
