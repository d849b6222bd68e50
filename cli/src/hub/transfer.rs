//! One file's way into the cache: taken up where an earlier run stopped, and checked.

use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::path::Path;
use std::time::Duration;

use imprompt_repository::{Progress as _, Unit};
use sha2::{Digest as _, Sha256};

use super::cache::{ModelCache, failed};
use super::client::{Client, Facts, Missed};
use super::id::HubId;
use crate::talk::{Bars, Failure};

/// Times that a download may be cut without a byte in between.
const PATIENCE: u32 = 3;

/// The pause after the first cut; it doubles.
const PAUSE: Duration = Duration::from_millis(300);

const BLOCK: usize = 1 << 18;

/// Downloads files of one commit.
pub(super) struct Transfer<'a> {
    pub(super) client: &'a Client,
    pub(super) cache: &'a ModelCache,
    pub(super) id: &'a HubId,
    pub(super) commit: &'a str,
    pub(super) bars: &'a Bars,
}

/// The first part of a file, and its digest.
struct Part {
    file: File,
    length: u64,
    digest: Sha256,
}

impl Transfer<'_> {
    /// Puts the file `name` into the snapshot, unless it is there.
    pub(super) fn take(&self, name: &str) -> Result<(), Missed> {
        if self.cache.snapshot(self.commit).join(name).exists() {
            return Ok(());
        }
        let url = self.client.address(self.id, self.commit, name);
        let facts = self.client.facts(self.id, &url)?;
        let lock = self.cache.lock(&facts.etag, || {
            self.bars.say(&format!("{name}: waiting for another download of it"));
        })?;
        let blob = self.cache.blob(&facts.etag);
        if !blob.exists() {
            let incomplete = self.cache.incomplete(&facts.etag);
            self.download(name, &url, &facts, &incomplete)?;
            fs::rename(&incomplete, &blob).map_err(|error| failed(&blob, &error))?;
        }
        self.cache.link(&facts.etag, self.commit, name)?;
        drop(lock);
        Ok(())
    }

    fn download(&self, name: &str, url: &str, facts: &Facts, path: &Path) -> Result<(), Missed> {
        let mut part = Part::open(path, facts.size)?;
        let what = match part.length {
            0 => format!("downloading {name}"),
            length => format!("downloading {name}, of which {length} bytes are here"),
        };
        self.bars.start(&what, facts.size.unwrap_or(0), Unit::Bytes);
        self.bars.advance(part.length);
        let result = self.complete(name, url, facts, &mut part, path);
        self.bars.finish();
        result?;
        part.verify(name, facts, path)
    }

    /// Asks again, as long as more comes.
    fn complete(
        &self,
        name: &str,
        url: &str,
        facts: &Facts,
        part: &mut Part,
        path: &Path,
    ) -> Result<(), Missed> {
        let mut fruitless = 0;
        while facts.size.is_none_or(|size| part.length < size) {
            let before = part.length;
            let why = match self.more(url, part, path) {
                // Without a size the end of the answer is the end of the file.
                Ok(()) if facts.size.is_none() => return Ok(()),
                Ok(()) => "it ends the connection early".to_owned(),
                Err(Missed::Unreachable(why)) => why,
                Err(refused) => return Err(refused),
            };
            if facts.size.is_some_and(|size| part.length >= size) {
                break;
            }
            fruitless = if part.length > before { 0 } else { fruitless + 1 };
            if fruitless > PATIENCE {
                let (id, length) = (self.id, part.length);
                return Err(Failure::new(format!(
                    "{id}: the download of {name} broke off at byte {length}: {why}"
                ))
                .hint("run the same command again: it goes on from there")
                .into());
            }
            std::thread::sleep(PAUSE * 2u32.pow(fruitless));
        }
        Ok(())
    }

    /// One request, and all that comes of it.
    fn more(&self, url: &str, part: &mut Part, path: &Path) -> Result<(), Missed> {
        let answer = self.client.file(self.id, url, part.length)?;
        let begins = answer
            .headers()
            .get("content-range")
            .and_then(|value| value.to_str().ok()?.strip_prefix("bytes ")?.split_once('-'))
            .and_then(|(start, _)| start.parse().ok());
        // A hub that does not know ranges sends the whole, one whose file changed sends nothing.
        let goes_on = answer.status() == 206 && begins == Some(part.length);
        if !goes_on && part.length > 0 {
            part.empty(path)?;
            if answer.status() != 200 {
                return Err(Missed::Unreachable("it has no such part of the file".to_owned()));
            }
        }
        let mut body = answer.into_body().into_reader();
        let mut block = vec![0; BLOCK];
        loop {
            match body.read(&mut block) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    part.append(&block[..count], path)?;
                    self.bars.advance(count as u64);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Missed::Unreachable(cut(&error))),
            }
        }
    }
}

/// Why a body ended, without the address.
fn cut(error: &std::io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
        Some(inner) => super::client::reason(inner),
        None => error.to_string(),
    }
}

impl Part {
    /// What an earlier run left at `path`.
    fn open(path: &Path, size: Option<u64>) -> Result<Self, Missed> {
        let io = |error: std::io::Error| failed(path, &error);
        let file = File::options().create(true).append(true).read(true).open(path).map_err(io)?;
        let mut part = Part { file, length: 0, digest: Sha256::new() };
        let length = part.file.metadata().map_err(io)?.len();
        // Without a size nothing says whether the rest is missing; more than all is not a part.
        if size.is_none_or(|size| length > size) {
            part.empty(path)?;
            return Ok(part);
        }
        let mut block = vec![0; BLOCK];
        loop {
            let count = part.file.read(&mut block).map_err(io)?;
            if count == 0 {
                return Ok(part);
            }
            part.digest.update(&block[..count]);
            part.length += count as u64;
        }
    }

    fn append(&mut self, bytes: &[u8], path: &Path) -> Result<(), Missed> {
        self.file.write_all(bytes).map_err(|error| failed(path, &error))?;
        self.digest.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Back to nothing.
    fn empty(&mut self, path: &Path) -> Result<(), Missed> {
        self.file.set_len(0).map_err(|error| failed(path, &error))?;
        (self.length, self.digest) = (0, Sha256::new());
        Ok(())
    }

    /// Large files are known by their SHA-256, which they must have.
    fn verify(self, name: &str, facts: &Facts, path: &Path) -> Result<(), Missed> {
        let is_digest = facts.etag.len() == 64 && facts.etag.chars().all(|c| c.is_ascii_hexdigit());
        let found: String =
            self.digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let right_size = facts.size.is_none_or(|size| size == self.length);
        if right_size && (!is_digest || found.eq_ignore_ascii_case(&facts.etag)) {
            return Ok(());
        }
        // Gone, so that the next run downloads it anew.
        fs::remove_file(path).map_err(|error| failed(path, &error))?;
        let length = self.length;
        Err(Failure::new(format!(
            "{name}: damaged on its way ({length} bytes, SHA-256 {found}; the hub says {})",
            facts.etag
        ))
        .hint("run the same command again")
        .into())
    }
}
