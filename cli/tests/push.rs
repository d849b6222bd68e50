//! `imprompt push` against a stand-in for S3 and against loopback servers that fail.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::cloud::{Moto, check_signature, run, sha256, with_aws};
use common::{Asked, Reply, Run, Server, imprompt};
use serde_json::Value;

/// A repository with weights that two stages share.
fn repository() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let manifest = serde_json::json!({
        "imprompt": "0.1.0", "layout": 1, "ensembles": ["embed_image"], "stages": [], "tables": [], "files": []
    });
    for stage in ["embed_image/1", "clip_image/1", "tagger/1"] {
        std::fs::create_dir_all(at(stage)).unwrap();
    }
    std::fs::write(at("imprompt.json"), manifest.to_string()).unwrap();
    std::fs::write(at("embed_image/1/.keep"), "").unwrap();
    std::fs::write(at("embed_image/config.pbtxt"), "platform: \"ensemble\"").unwrap();
    std::fs::write(at("clip_image/config.pbtxt"), "backend: \"imprompt\"").unwrap();
    std::fs::write(at("clip_image/1/model.safetensors"), noise(6 << 20)).unwrap();
    std::fs::hard_link(at("clip_image/1/model.safetensors"), at("tagger/1/model.safetensors"))
        .unwrap();
    folder
}

/// Bytes that differ from part to part.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..count).map(next).collect()
}

fn push(endpoint: &str, source: &Path, arguments: &[&str]) -> Run {
    let cache = tempfile::tempdir().unwrap();
    let mut command = with_aws(endpoint);
    run(command.env("XDG_CACHE_HOME", cache.path()).arg("push").arg(source).args(arguments))
}

/// What was done, by the end of the address.
fn done(run: &Run, prefix: &str) -> BTreeMap<String, String> {
    assert_eq!(run.code, 0, "{}", run.stderr);
    let lines = run.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|line| {
            let url = line["url"].as_str().unwrap();
            let name = url.strip_prefix(prefix).unwrap_or_else(|| panic!("{url}"));
            (name.to_owned(), line["done"].as_str().unwrap().to_owned())
        })
        .collect()
}

#[test]
fn a_repository_is_sent_once_and_then_what_changed() {
    let moto = Moto::with_bucket("models");
    let folder = repository();
    let first = push(&moto.url, folder.path(), &["s3://models/a/b", "--json", "--part-size", "5"]);
    let first = done(&first, "s3://models/a/b/");
    let one = |name: &str| first[name].as_str();
    assert_eq!(first.len(), 6);
    assert_eq!(one("embed_image/1/.keep"), "uploaded", "an empty folder has an object");
    let weights = ["clip_image/1/model.safetensors", "tagger/1/model.safetensors"];
    assert_eq!(weights.map(one), ["uploaded", "copied"], "what is one file is sent once");
    for name in first.keys() {
        let here = std::fs::read(folder.path().join(name)).unwrap();
        let (there, hash) = moto.object(&format!("models/a/b/{name}")).expect(name);
        assert!(here == there, "{name}: other bytes");
        assert_eq!(hash, sha256(&here), "{name}");
    }
    let again = push(&moto.url, folder.path(), &["s3://models/a/b/", "--json"]);
    assert!(done(&again, "s3://models/a/b/").values().all(|done| done == "unchanged"));
    assert!(again.stderr.contains(&format!("--model-repository s3://{}/models/a/b", moto.url)));

    // The same length, other content.
    std::fs::write(folder.path().join("clip_image/config.pbtxt"), "backend: \"IMPROMPT\"").unwrap();
    std::fs::remove_dir_all(folder.path().join("tagger")).unwrap();
    let changed = push(&moto.url, folder.path(), &["s3://models/a/b", "--json"]);
    let uploaded = done(&changed, "s3://models/a/b/");
    let uploaded: Vec<_> = uploaded.iter().filter(|(_, done)| *done == "uploaded").collect();
    assert_eq!(uploaded.len(), 1);
    assert_eq!(uploaded[0].0, "clip_image/config.pbtxt");
    assert!(changed.stderr.contains("1 objects at s3://models/a/b are not of this repository"));
    assert!(moto.object("models/a/b/tagger/1/model.safetensors").is_some());
    let pruned = push(&moto.url, folder.path(), &["s3://models/a/b", "--json", "--delete"]);
    assert_eq!(done(&pruned, "s3://models/a/b/")["tagger/1/model.safetensors"], "deleted");
    assert!(moto.object("models/a/b/tagger/1/model.safetensors").is_none());
}

#[test]
fn a_package_goes_in_parts_to_its_name_or_the_one_it_is_given() {
    let moto = Moto::with_bucket("models");
    let folder = tempfile::tempdir().unwrap();
    let package = folder.path().join("m.tar.gz");
    let bytes = noise((12 << 20) + 7);
    std::fs::write(&package, &bytes).unwrap();
    for (url, key) in [("s3://models/x/", "x/m.tar.gz"), ("s3://models/y.tar.gz", "y.tar.gz")] {
        let pushed = push(&moto.url, &package, &[url, "--part-size", "5", "--json"]);
        assert_eq!(done(&pushed, "s3://models/")[key], "uploaded");
        let (there, hash) = moto.object(&format!("models/{key}")).unwrap();
        assert!(there == bytes && hash == sha256(&bytes), "{key}");
    }
    // Triton's own way to name another store than Amazon's.
    let url = format!("s3://{}/models/x", moto.url);
    let again = push("http://127.0.0.1:9", &package, &[&url, "--json"]);
    assert_eq!(done(&again, &format!("s3://{}/models/x/", moto.url))["m.tar.gz"], "unchanged");
    let missing = push(&moto.url, &package, &["s3://other/x/"]);
    assert_eq!(missing.code, 1);
    assert!(
        missing.stderr.contains("error: m.tar.gz: s3://other: no such bucket\nhint: "),
        "{}",
        missing.stderr
    );
}

/// A store that takes uploads in parts; part `refused` is refused while `is_bad`.
fn parts(asked: &Asked, refused: &AtomicUsize) -> Reply {
    let query = asked.path.split_once('?').map_or("", |(_, query)| query);
    let number = query.split('&').find_map(|pair| pair.strip_prefix("partNumber="));
    match (&*asked.method, number) {
        ("HEAD", _) => Reply::new(404, ""),
        ("POST", _) if query == "uploads=" || query == "uploads" => Reply::new(
            200,
            "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>m</Key><UploadId>U1</UploadId></InitiateMultipartUploadResult>",
        ),
        ("PUT", Some(number)) if refused.load(Ordering::SeqCst).to_string() == number => {
            Reply::new(403, "<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
        }
        ("PUT", Some(number)) => {
            // Its own sum of the part, as S3 checks it.
            assert_eq!(asked.header("x-amz-content-sha256").unwrap(), sha256(&asked.body));
            let sum = asked.header("x-amz-checksum-sha256").unwrap().to_owned();
            Reply::new(200, "").header("etag", format!("\"etag-{number}\"")).header("x-amz-checksum-sha256", sum)
        }
        ("POST", _) => Reply::new(
            200,
            "<CompleteMultipartUploadResult><Location>l</Location><Bucket>b</Bucket><Key>m</Key><ETag>\"e\"</ETag></CompleteMultipartUploadResult>",
        )
        .header("etag", "\"e\""),
        _ => Reply::new(500, ""),
    }
}

#[test]
fn an_interrupted_upload_goes_on_where_it_stopped() {
    let refused: &'static AtomicUsize = Box::leak(Box::new(AtomicUsize::new(3)));
    let server = Server::start(|asked| parts(asked, refused));
    let folder = tempfile::tempdir().unwrap();
    let package = folder.path().join("m.tar.gz");
    std::fs::write(&package, noise(18 << 20)).unwrap();
    let push = || {
        let mut command = with_aws(&server.url);
        command.env("XDG_CACHE_HOME", folder.path().join("cache"));
        let flags = ["--part-size", "5", "--parallel", "1"];
        run(command.arg("push").arg(&package).arg("s3://b/m.tar.gz").args(flags))
    };
    let first = push();
    assert_eq!(first.code, 1);
    assert!(first.stderr.contains("m.tar.gz: s3://b: access denied"), "{}", first.stderr);
    let before = server.asked().len();
    for asked in server.asked().iter().filter(|asked| asked.method != "HEAD") {
        check_signature(asked, "s3");
    }
    refused.store(0, Ordering::SeqCst);
    let second = push();
    let asked: Vec<_> = server.asked().split_off(before);
    let sent: Vec<_> = asked.iter().filter(|a| a.method == "PUT").map(|a| a.path.clone()).collect();
    assert_eq!(
        sent,
        ["/b/m.tar.gz?partNumber=3&uploadId=U1", "/b/m.tar.gz?partNumber=4&uploadId=U1"]
    );
    assert!(second.stderr.contains("10.5 of 18.9 MB had been sent before"), "{}", second.stderr);
    let complete = asked.iter().find(|asked| asked.method == "POST").unwrap();
    let body = String::from_utf8(complete.body.clone()).unwrap();
    for part in 1..=4 {
        assert!(body.contains(&format!("etag-{part}")), "{body}");
    }
    let left = std::fs::read_dir(folder.path().join("cache/imprompt/uploads")).unwrap().count();
    assert_eq!(left, 0, "what is complete is forgotten");
}

#[test]
fn a_store_that_is_slow_is_asked_again_and_one_that_refuses_is_explained() {
    let count: &'static AtomicUsize = Box::leak(Box::new(AtomicUsize::new(0)));
    let busy = Server::start(|asked| match &*asked.method {
        "HEAD" => Reply::new(404, ""),
        _ if count.fetch_add(1, Ordering::SeqCst) < 2 => {
            Reply::new(503, "<Error><Code>SlowDown</Code></Error>")
        }
        _ => Reply::new(200, "").header("etag", "\"e\""),
    });
    let folder = tempfile::tempdir().unwrap();
    let package = folder.path().join("m.tar.gz");
    std::fs::write(&package, "small").unwrap();
    let pushed = push(&busy.url, &package, &["s3://b/"]);
    assert_eq!((pushed.code, count.load(Ordering::SeqCst)), (0, 3), "{}", pushed.stderr);
    let put = busy.asked().pop().unwrap();
    assert_eq!(put.header("x-amz-meta-sha256"), Some(&*sha256(b"small")));
    check_signature(&put, "s3");

    let cases = [
        ("InvalidAccessKeyId", "does not know this access key"),
        ("SignatureDoesNotMatch", "the signature is not right"),
        ("ExpiredToken", "the credentials have expired"),
        ("AccessDenied", "access denied"),
    ];
    for (code, expected) in cases {
        // Stores repeat what they were sent.
        let server = Server::start(move |asked| match &*asked.method {
            "HEAD" => Reply::new(404, ""),
            _ => Reply::new(
                403,
                format!(
                    "<Error><Code>{code}</Code><Message>no</Message><AWSAccessKeyId>{}</AWSAccessKeyId><Sent>{}</Sent></Error>",
                    common::cloud::KEY,
                    asked.header("x-amz-security-token").unwrap_or_default()
                ),
            ),
        });
        let refused = push(&server.url, &package, &["s3://b/"]);
        assert_eq!((refused.code, &*refused.stdout), (1, ""));
        assert!(
            refused.stderr.contains(expected) && refused.stderr.contains("\nhint: "),
            "{}",
            refused.stderr
        );
    }
}

#[test]
fn without_credentials_or_encryption_nothing_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let package = folder.path().join("m.tar.gz");
    std::fs::write(&package, "small").unwrap();
    let server = Server::start(|_| Reply::new(500, ""));
    let mut command = imprompt();
    command.env("AWS_REGION", "eu-west-1").env("AWS_ENDPOINT_URL_S3", &server.url);
    let none = run(command.arg("push").arg(&package).arg("s3://b/"));
    assert_eq!(none.code, 1);
    assert!(none.stderr.contains("no AWS credentials were found\nhint: "), "{}", none.stderr);
    assert!(server.asked().is_empty());
    for (endpoint, url) in
        [("http://10.1.2.3", "s3://b/"), (&server.url, "s3://http://10.1.2.3/b/")]
    {
        let refused = push(endpoint, &package, &[url]);
        assert!(refused.code != 0 && refused.stderr.contains("--allow-http"), "{}", refused.stderr);
    }
    let wrong = push(&server.url, &package, &["s3://me:hidden@b/"]);
    assert_eq!(wrong.code, 2);
    assert!(!wrong.stderr.contains("hidden"), "{}", wrong.stderr);
}

#[test]
fn google_and_azure_take_a_package_with_its_sum() {
    let folder = tempfile::tempdir().unwrap();
    let package = folder.path().join("m.tar.gz");
    std::fs::write(&package, "small").unwrap();
    let store = || {
        Server::start(|asked| match &*asked.method {
            "HEAD" => Reply::new(404, ""),
            _ => Reply::new(200, "").header("etag", "\"e\""),
        })
    };
    let google = store();
    let mut command = imprompt();
    command.env("GOOGLE_BASE_URL", &google.url).env("GOOGLE_BEARER_TOKEN", common::cloud::TOKEN);
    let pushed = run(command.arg("push").arg(&package).arg("gs://box/a/"));
    assert_eq!(pushed.code, 0, "{}", pushed.stderr);
    let put = google.asked().pop().unwrap();
    assert_eq!(
        (&*put.method, &*put.path, &*put.body),
        ("PUT", "/box/a%2Fm%2Etar%2Egz", &b"small"[..])
    );
    assert_eq!(put.header("x-goog-meta-sha256"), Some(&*sha256(b"small")));
    assert_eq!(put.header("authorization"), Some(&*format!("Bearer {}", common::cloud::TOKEN)));

    let azure = store();
    let mut command = imprompt();
    command.env("AZURE_STORAGE_ACCOUNT_NAME", "me").env("AZURE_STORAGE_ENDPOINT", &azure.url);
    command.env("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0LWtleQ==");
    let pushed = run(command.arg("push").arg(&package).arg("az://box/a/"));
    assert_eq!(pushed.code, 0, "{}", pushed.stderr);
    let put = azure.asked().pop().unwrap();
    assert_eq!((&*put.method, &*put.body), ("PUT", &b"small"[..]));
    assert!(put.path.ends_with("/box/a/m.tar.gz"), "{}", put.path);
    assert_eq!(put.header("x-ms-meta-sha256"), Some(&*sha256(b"small")));
    assert!(put.header("authorization").unwrap().starts_with("SharedKey me:"));
}
