//! Models of a Hugging Face hub, through its own cache: what other tools have downloaded is
//! used, and what is downloaded here is there for other tools.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use imprompt_repository::{Progress as _, Unit};
use sha2::{Digest as _, Sha256};

use crate::installed::variable;
use crate::talk::{Bars, Failure, Result};

/// Small files that a model folder may have.
const SMALL: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Times a download that broke off is taken up again.
const RETRIES: usize = 3;

/// A model on a hub: `OWNER/NAME` or `OWNER/NAME@REVISION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    name: String,
    revision: String,
}

impl HubId {
    /// `text` as an id, if it has the form of one.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let is_part = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
        };
        let mut parts = name.split('/');
        let is_name = parts.clone().count() == 2 && parts.all(is_part);
        let is_revision = revision.split('/').all(is_part);
        (is_name && is_revision)
            .then(|| HubId { name: name.to_owned(), revision: revision.to_owned() })
    }

    fn repo(&self) -> Repo {
        Repo::with_revision(self.name.clone(), RepoType::Model, self.revision.clone())
    }
}

impl std::fmt::Display for HubId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &*self.revision {
            "main" => f.write_str(&self.name),
            revision => write!(f, "{}@{revision}", self.name),
        }
    }
}

/// The folder of `id` in the cache, downloading what is missing. Without a hub, what the cache
/// has is used.
pub fn fetch(id: &HubId, bars: &Bars) -> Result<PathBuf> {
    let cache = cache()?;
    if is_offline() {
        return cached(&cache, id).ok_or_else(|| {
            Failure::new(format!("{id}: not in the cache at {}", cache.path().display()))
                .hint("HF_HUB_OFFLINE is set: unset it to download the model, or name a folder")
        });
    }
    let token = variable("HF_TOKEN").map(|token| token.to_string_lossy().trim().to_owned());
    let mut builder =
        ApiBuilder::from_cache(cache.clone()).with_progress(false).with_retries(RETRIES);
    if let Some(token) = token {
        builder = builder.with_token(Some(token));
    }
    if let Some(endpoint) = variable("HF_ENDPOINT") {
        builder =
            builder.with_endpoint(endpoint.to_string_lossy().trim_end_matches('/').to_owned());
    }
    let api = builder.build().map_err(|error| Failure::new(format!("{id}: {error}")))?;
    match download(&api, &cache, id, bars) {
        Err(Missed::Unreachable(why)) => match cached(&cache, id) {
            Some(folder) => {
                bars.say(&format!("{id}: the hub cannot be reached ({why}); using the cache"));
                Ok(folder)
            }
            None => Err(Failure::new(format!("{id}: the hub cannot be reached: {why}"))
                .hint("check the network and $HF_ENDPOINT, or name a folder that holds the model")),
        },
        Err(Missed::Refused(failure)) => Err(failure),
        Ok(folder) => Ok(folder),
    }
}

/// True when the user forbids the network, as huggingface_hub reads it.
fn is_offline() -> bool {
    let value = std::env::var("HF_HUB_OFFLINE").unwrap_or_default().to_ascii_uppercase();
    matches!(&*value, "1" | "ON" | "YES" | "TRUE")
}

/// The cache, where huggingface_hub has it.
fn cache() -> Result<Cache> {
    let home = || {
        variable("HF_HOME")
            .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(variable("HOME")?.join(".cache/huggingface")))
            .map(|home| home.join("hub"))
    };
    let folder = variable("HF_HUB_CACHE").or_else(home);
    let none = || Failure::new("neither $HF_HOME nor $HOME says where the hub's cache is");
    Ok(Cache::new(folder.ok_or_else(none)?))
}

/// The snapshot of `id` in the cache, if it has a configuration and all weights.
fn cached(cache: &Cache, id: &HubId) -> Option<PathBuf> {
    let repo = cache.repo(id.repo());
    let folder = match repo.get("config.json") {
        Some(config) => config.parent()?.to_owned(),
        // A commit has no ref: its snapshot has its name.
        None => repo.pointer_path(&id.revision),
    };
    let has = |name: &str| folder.join(name).exists();
    let is_whole = has(WEIGHTS)
        || shards(&folder)
            .is_ok_and(|shards| !shards.is_empty() && shards.iter().all(|name| has(name)));
    (has("config.json") && is_whole).then_some(folder)
}

/// Why a model did not come from the hub.
enum Missed {
    /// No answer: the cache may serve.
    Unreachable(String),
    /// A clear no.
    Refused(Failure),
}

impl From<Failure> for Missed {
    fn from(failure: Failure) -> Self {
        Missed::Refused(failure)
    }
}

fn download(api: &Api, cache: &Cache, id: &HubId, bars: &Bars) -> Result<PathBuf, Missed> {
    let repo = api.repo(id.repo());
    let info = repo.info().map_err(|error| missed(id, error))?;
    if !info.sha.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(Failure::new(format!("{id}: the hub gave no commit")).into());
    }
    let folder = cache.repo(id.repo()).pointer_path(&info.sha);
    let has = |name: &str| info.siblings.iter().any(|file| file.rfilename == name);
    let take = |name: &str| {
        one(&repo, &folder, name, bars).map_err(|error| match error {
            Taken::Api(error) => missed(id, error),
            Taken::Failure(failure) => Missed::Refused(failure),
        })
    };
    for name in SMALL.into_iter().filter(|name| has(name)) {
        take(name)?;
    }
    if has(WEIGHTS) {
        take(WEIGHTS)?;
    } else if has(INDEX) {
        take(INDEX)?;
        for name in shards(&folder)? {
            take(&name)?;
        }
    } else {
        return Err(Failure::new(format!("{id}: the hub has no {WEIGHTS} of it"))
            .hint("save it with safe_serialization=True (transformers), and name that folder")
            .into());
    }
    Ok(folder)
}

/// Why one file did not come.
enum Taken {
    Api(ApiError),
    Failure(Failure),
}

/// One file of the snapshot, unless it is there already.
fn one(repo: &ApiRepo, folder: &Path, name: &str, bars: &Bars) -> Result<(), Taken> {
    if folder.join(name).exists() {
        return Ok(());
    }
    let path = repo.download_with_progress(name, Shown { bars }).map_err(Taken::Api)?;
    verify(&path).map_err(Taken::Failure)
}

/// Large files are named by their SHA-256 in the cache: what was downloaded must have it.
fn verify(path: &Path) -> Result<()> {
    let failed = |error: std::io::Error| Failure::new(format!("{}: {error}", path.display()));
    let blob = path.canonicalize().map_err(failed)?;
    let name = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.len() != 64 || !name.chars().all(|c| c.is_ascii_hexdigit()) {
        return Ok(());
    }
    let mut file = std::fs::File::open(&blob).map_err(failed)?;
    let (mut hasher, mut block) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let count = file.read(&mut block).map_err(failed)?;
        if count == 0 {
            break;
        }
        hasher.update(&block[..count]);
    }
    let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found.eq_ignore_ascii_case(&name) {
        return Ok(());
    }
    // Gone, so that the next run downloads it anew.
    let _ = std::fs::remove_file(path);
    let _ = std::fs::remove_file(&blob);
    Err(Failure::new(format!("{}: damaged on its way (SHA-256 {found})", path.display()))
        .hint("run the same command again"))
}

/// Names of the shards that the index of `folder` lists.
fn shards(folder: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let path = folder.join(INDEX);
    let wrong = |why: String| Failure::new(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
    let index: Index = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    match names.iter().find(|name| name.contains('/') || !name.ends_with(".safetensors")) {
        Some(_) => Err(wrong("names a shard outside its folder".into())),
        None => Ok(names),
    }
}

fn missed(id: &HubId, error: ApiError) -> Missed {
    let ApiError::RequestError(request) = &error else {
        return Missed::Unreachable(error.to_string());
    };
    let refused = |why: &str| Failure::new(format!("{id}: {why}"));
    match **request {
        ureq::Error::StatusCode(401 | 403) => Missed::Refused(
            refused("the hub refuses access, or has no such model")
                .hint("accept the model's terms on the hub and set HF_TOKEN to a token of yours"),
        ),
        ureq::Error::StatusCode(404) => Missed::Refused(
            refused("the hub has no such model or revision").hint("check the spelling: OWNER/NAME"),
        ),
        _ => Missed::Unreachable(error.to_string()),
    }
}

/// Shows a download as a bar.
struct Shown<'a> {
    bars: &'a Bars,
}

impl hf_hub::api::Progress for Shown<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        self.bars.start(&format!("downloading {filename}"), size as u64, Unit::Bytes);
    }

    fn update(&mut self, size: usize) {
        self.bars.advance(size as u64);
    }

    fn finish(&mut self) {
        self.bars.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_two_parts_and_maybe_a_revision() {
        let id = HubId::parse("openai/clip-vit-base-patch32").unwrap();
        assert_eq!((&*id.name, &*id.revision), ("openai/clip-vit-base-patch32", "main"));
        let id = HubId::parse("a/b@refs/pr/3").unwrap();
        assert_eq!((id.to_string(), &*id.revision), ("a/b@refs/pr/3".to_owned(), "refs/pr/3"));
        for text in
            ["clip", "./clip/x", "/models/clip", "a/b/c", "../b", "a/..", "a/b@", "a/b@../c", ""]
        {
            assert_eq!(HubId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_index_may_not_lead_out() {
        let folder = tempfile::tempdir().unwrap();
        let index = |shard: &str| {
            let text = format!(r#"{{"weight_map": {{"a": "{shard}", "b": "{shard}"}}}}"#);
            std::fs::write(folder.path().join(INDEX), text).unwrap();
            shards(folder.path())
        };
        assert_eq!(index("model-1.safetensors").unwrap(), ["model-1.safetensors"]);
        assert!(index("../model-1.safetensors").is_err());
        assert!(index("x.bin").is_err());
    }
}
