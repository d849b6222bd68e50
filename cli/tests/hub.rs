//! Models of a hub: a loopback one of the hub's shape, and its cache without any.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Asked, Reply, Run, Server, imprompt, project, run};
use serde_json::json;
use sha2::{Digest as _, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

type Files = BTreeMap<String, Vec<u8>>;

/// The files of the embedded demo CLIP.
fn demo_clip() -> Files {
    let folder = std::fs::read_dir(project().join("models/demo-clip")).unwrap();
    let files = folder.map(|entry| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap())
    });
    files.collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A hub with the one model `acme/clip`; `etag` names the content of its files.
fn hub(files: Files, etag: fn(&[u8]) -> String) -> Server {
    let answer = move |asked: &Asked| {
        if asked.path.starts_with("/api/models/acme/clip") {
            let siblings: Vec<_> = files.keys().map(|name| json!({ "rfilename": name })).collect();
            return Reply::new(200, json!({ "siblings": siblings, "sha": COMMIT }).to_string());
        }
        let name = asked.path.strip_prefix("/acme/clip/resolve/main/");
        let Some(bytes) = name.and_then(|name| files.get(name)) else {
            return Reply::new(404, r#"{"error": "Repository not found"}"#);
        };
        let range = asked.header("range").unwrap().strip_prefix("bytes=").unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let start: usize = start.parse().unwrap();
        let end = end.parse().map_or(bytes.len(), |last: usize| last + 1).min(bytes.len());
        Reply::new(206, &bytes[start..end])
            .header("content-range", format!("bytes {start}-{}/{}", end - 1, bytes.len()))
            .header("etag", format!("\"{}\"", etag(bytes)))
            .header("x-repo-commit", COMMIT)
    };
    Server::start(answer)
}

fn build(home: &Path, endpoint: &str, offline: bool) -> Run {
    let mut command = imprompt();
    command.args(["build", "--clip", "acme/clip", "--out"]).arg(home.join("repository"));
    command
        .env("HF_HOME", home.join("hf"))
        .env("HF_ENDPOINT", endpoint)
        .env("HF_TOKEN", "secret-token");
    if offline {
        command.env("HF_HUB_OFFLINE", "1");
    }
    run(&mut command)
}

fn manifest(home: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(home.join("repository/imprompt.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_model_is_downloaded_once_and_then_taken_from_the_cache() {
    let home = tempfile::tempdir().unwrap();
    let server = hub(demo_clip(), sha256);
    let first = build(home.path(), &server.url, false);
    assert_eq!((first.code, &*first.stdout), (0, ""), "{}", first.stderr);
    assert!(!first.stderr.contains("secret-token"));
    assert_eq!(manifest(home.path())["clip"]["name"], "acme/clip");
    assert_eq!(
        manifest(home.path())["ensembles"],
        json!(["zero_shot", "embed_image", "embed_text"])
    );
    let asked = server.asked();
    assert!(asked.iter().all(|asked| asked.header("authorization") == Some("Bearer secret-token")));
    let weights =
        |asked: &[Asked]| asked.iter().filter(|a| a.path.ends_with("safetensors")).count();
    assert!(weights(&asked) > 0);
    assert!(!asked.iter().any(|asked| asked.path.ends_with("README.md")));
    let snapshot = home.path().join("hf/hub/models--acme--clip/snapshots").join(COMMIT);
    assert!(snapshot.join("model.safetensors").is_symlink());

    let again = build(home.path(), &server.url, false);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(weights(&server.asked()), weights(&asked), "the weights are not asked for again");

    let offline = build(home.path(), "http://127.0.0.1:9", true);
    assert_eq!(offline.code, 0, "{}", offline.stderr);
    let unreachable = build(home.path(), "http://127.0.0.1:9", false);
    assert_eq!(unreachable.code, 0, "{}", unreachable.stderr);
    assert!(unreachable.stderr.contains("the hub cannot be reached"), "{}", unreachable.stderr);
}

#[test]
fn shards_are_found_by_their_index() {
    let mut files = demo_clip();
    let weights = files.remove("model.safetensors").unwrap();
    let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&weights[8..8 + header]).unwrap();
    let shard = "model-00001-of-00001.safetensors";
    let names = header.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
    let map: BTreeMap<&String, &str> = names.map(|name| (name, shard)).collect();
    let index = json!({ "metadata": {}, "weight_map": map });
    files.insert("model.safetensors.index.json".into(), index.to_string().into_bytes());
    files.insert(shard.into(), weights);
    let home = tempfile::tempdir().unwrap();
    let server = hub(files, sha256);
    let first = build(home.path(), &server.url, false);
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert!(home.path().join("repository/clip_text/1").join(shard).is_file());
    assert_eq!(build(home.path(), "http://127.0.0.1:9", true).code, 0);
}

#[test]
fn damage_on_the_way_is_seen() {
    let home = tempfile::tempdir().unwrap();
    let server = hub(demo_clip(), |bytes| sha256(&[bytes, b"!"].concat()));
    let run = build(home.path(), &server.url, false);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("damaged on its way"), "{}", run.stderr);
    assert!(!home.path().join("repository").exists());
}

#[test]
fn what_a_hub_does_not_have_is_explained() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(|_| Reply::new(404, "{}"));
    let run = build(home.path(), &server.url, false);
    assert_eq!(run.code, 1);
    assert_eq!(
        run.stderr,
        "error: acme/clip: the hub has no such model or revision\nhint: check the spelling: OWNER/NAME\n"
    );
    let mut files = demo_clip();
    files.remove("model.safetensors");
    files.insert("pytorch_model.bin".into(), vec![]);
    let server = hub(files, sha256);
    let run = build(home.path(), &server.url, false);
    assert!(
        run.stderr.contains("the hub has no model.safetensors of it\nhint: "),
        "{}",
        run.stderr
    );
    let run = build(&home.path().join("empty"), "http://127.0.0.1:9", true);
    assert!(run.stderr.contains("not in the cache at"), "{}", run.stderr);
}
