//! Models of a Hugging Face hub, through the cache that its tools share: what they have downloaded
//! is used, and what is downloaded here is there for them.
//!
//! Reference: `huggingface_hub/file_download.py` for the layout of the cache, the headers of the
//! hub and the meaning of its environment variables.

mod cache;
mod client;
mod files;
mod id;
mod settings;
mod transfer;

use std::path::{Path, PathBuf};

pub use id::HubId;
use imprompt_repository::Progress as _;

use crate::talk::{Bars, Failure, Result};
use cache::ModelCache;
use client::{Client, Missed};
use files::Needed;
use settings::Settings;
use transfer::Transfer;

/// Says of a folder with all of a model but its weights whether they are worth downloading.
pub type Check<'a> = &'a dyn Fn(&Path) -> Result<()>;

/// The folder of `id` in the cache, downloading what is missing, the weights only if `check` finds
/// the rest right. Without a hub, what the cache has is used.
pub fn fetch(id: &HubId, check: Check<'_>, bars: &Bars) -> Result<PathBuf> {
    let place = settings::cache()?;
    let cache = ModelCache::new(&place, id);
    if settings::is_offline() {
        let folder = cache.whole().ok_or_else(|| {
            Failure::new(format!("{id}: not in the cache at {}", place.display()))
                .hint("HF_HUB_OFFLINE is set: unset it to download the model, or name a folder")
        })?;
        bars.say(&format!("{id}: HF_HUB_OFFLINE is set; using the cache"));
        return Ok(folder);
    }
    let client = Client::new(Settings::read()?);
    match download(&client, &cache, id, check, bars) {
        Ok(folder) => Ok(folder),
        Err(Missed::Refused(failure)) => Err(failure),
        Err(Missed::Unreachable(why)) => match cache.whole() {
            Some(folder) => {
                bars.say(&format!("{id}: the hub cannot be reached ({why}); using the cache"));
                Ok(folder)
            }
            None => Err(Failure::new(format!("{id}: the hub cannot be reached: {why}"))
                .hint("check the network and $HF_ENDPOINT, or name a folder that holds the model")),
        },
    }
}

fn download(
    client: &Client,
    cache: &ModelCache,
    id: &HubId,
    check: Check<'_>,
    bars: &Bars,
) -> Result<PathBuf, Missed> {
    let listing = client.listing(id)?;
    let has = |name: &str| listing.files.iter().any(|file| file == name);
    let needed = Needed::of(has).ok_or_else(|| files::none(&id.to_string(), has))?;
    let transfer = Transfer { client, cache, id, commit: &listing.commit, bars };
    let folder = cache.snapshot(&listing.commit);
    for name in &needed.small {
        transfer.take(name)?;
    }
    check(&folder).map_err(|failure| failure.of(id))?;
    transfer.take(needed.weights)?;
    for name in files::shards(&folder, needed.weights)? {
        transfer.take(&name)?;
    }
    // Last, so that what a revision is known as is always whole.
    cache.remember(&listing.commit)?;
    Ok(folder)
}
