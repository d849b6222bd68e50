//! Models of a hub: a loopback one of the hub's shape, and its cache without any.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Asked, Reply, Run, Server, imprompt, project, run};
use serde_json::json;
use sha2::{Digest as _, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const WEIGHTS: &str = "model.safetensors";

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

/// How a hub with the one model `acme/clip` behaves.
struct Hub {
    files: Files,
    /// What names the content of a file.
    etag: fn(&[u8]) -> String,
    /// Downloads of the weights that are cut, and after how many bytes of their answer.
    cuts: (usize, usize),
    /// Whether parts of files are given.
    ranges: bool,
}

impl Default for Hub {
    fn default() -> Self {
        Hub { files: demo_clip(), etag: sha256, cuts: (0, 0), ranges: true }
    }
}

impl Hub {
    fn start(self) -> Server {
        let cut = AtomicUsize::new(0);
        Server::start(move |asked| self.answer(asked, &cut))
    }

    fn answer(&self, asked: &Asked, cut: &AtomicUsize) -> Reply {
        let listing =
            ["main", "v2", COMMIT].map(|name| format!("/api/models/acme/clip/revision/{name}"));
        if listing.contains(&asked.path) {
            let names =
                self.files.keys().chain([&"../../evil".to_owned()]).cloned().collect::<Vec<_>>();
            let siblings: Vec<_> = names.iter().map(|name| json!({ "rfilename": name })).collect();
            return Reply::new(200, json!({ "siblings": siblings, "sha": COMMIT }).to_string());
        }
        if asked.path.starts_with("/api/models/acme/clip/") {
            return Reply::new(404, "{}").header("x-error-code", "RevisionNotFound");
        }
        let store = asked.path.strip_prefix("/store/");
        let prefix = format!("/acme/clip/resolve/{COMMIT}/");
        let name = store.or(asked.path.strip_prefix(&prefix));
        let Some((name, bytes)) = name.and_then(|name| Some((name, self.files.get(name)?))) else {
            return Reply::new(404, "{}").header("x-error-code", "RepoNotFound");
        };
        let etag = (self.etag)(bytes);
        if name == WEIGHTS && store.is_none() {
            // As large files: the hub knows the digest, and a store elsewhere has the bytes.
            let host = asked.header("host").unwrap();
            return Reply::new(302, "")
                .header("x-repo-commit", COMMIT)
                .header("x-linked-etag", format!("\"{etag}\""))
                .header("x-linked-size", bytes.len())
                .header("location", format!("http://{host}/store/{name}"));
        }
        let range = asked.header("range").filter(|_| self.ranges);
        let start = range.map_or(0, |range| {
            range.strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().unwrap()
        });
        let mut reply = Reply::new(if range.is_some() { 206 } else { 200 }, &bytes[start..]);
        if range.is_some() {
            reply = reply.header(
                "content-range",
                format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()),
            );
        }
        if name == WEIGHTS
            && asked.method == "GET"
            && cut.fetch_add(1, Ordering::SeqCst) < self.cuts.0
        {
            reply = reply.cut(self.cuts.1);
        }
        reply.header("x-repo-commit", COMMIT).header("etag", format!("W/\"{etag}\""))
    }
}

/// A machine of its own: a folder for everything.
struct Machine {
    home: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Machine { home: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn command(&self, source: &str, endpoint: &str) -> std::process::Command {
        let mut command = imprompt();
        command.args(["build", "--clip", source, "--out"]).arg(self.path("repository"));
        command.env("HF_HOME", self.path("hf")).env("HF_ENDPOINT", endpoint);
        command
    }

    fn build(&self, endpoint: &str) -> Run {
        run(self.command("acme/clip", endpoint).env("HF_TOKEN", "secret-token"))
    }

    fn offline(&self) -> Run {
        run(self.command("acme/clip", "http://127.0.0.1:9").env("HF_HUB_OFFLINE", "1"))
    }

    fn blobs(&self) -> Vec<PathBuf> {
        let folder = self.path("hf/hub/models--acme--clip/blobs");
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    fn snapshot(&self) -> PathBuf {
        self.path("hf/hub/models--acme--clip/snapshots").join(COMMIT)
    }

    fn manifest(&self) -> serde_json::Value {
        let text = std::fs::read_to_string(self.path("repository/imprompt.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

/// Requests for the bytes of the weights: where each began.
fn weights(server: &Server) -> Vec<String> {
    let asked = server.asked().into_iter();
    let asked =
        asked.filter(|asked| asked.method == "GET" && asked.path == "/store/model.safetensors");
    asked.map(|asked| asked.header("range").unwrap_or("all").to_owned()).collect()
}

#[test]
fn a_model_is_downloaded_once_and_then_taken_from_the_cache() {
    let machine = Machine::new();
    let mut files = demo_clip();
    for other in ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "README.md"] {
        files.insert(other.to_owned(), b"not needed".to_vec());
    }
    let server = Hub { files, ..Hub::default() }.start();
    let first = machine.build(&server.url);
    assert_eq!((first.code, &*first.stdout), (0, ""), "{}", first.stderr);
    assert!(!first.stderr.contains("secret-token"));
    assert_eq!(machine.manifest()["clip"]["name"], "acme/clip");
    let ensembles = json!(["zero_shot", "embed_image", "embed_text", "invocations_zero_shot"]);
    assert_eq!(machine.manifest()["ensembles"], ensembles);
    let asked = server.asked();
    assert!(asked.iter().all(|asked| asked.header("authorization") == Some("Bearer secret-token")));
    assert_eq!(weights(&server), ["all"]);
    for not_needed in [".bin", ".h5", ".msgpack", ".md", "evil"] {
        assert!(!asked.iter().any(|asked| asked.path.ends_with(not_needed)), "{not_needed}");
    }
    assert!(machine.snapshot().join(WEIGHTS).is_symlink());
    // As huggingface_hub finds it.
    let reference = std::fs::read_to_string(machine.path("hf/hub/models--acme--clip/refs/main"));
    assert_eq!(reference.unwrap(), COMMIT);
    assert!(machine.blobs().iter().all(|path| path.extension().is_none()));

    let before = asked.len();
    let again = machine.build(&server.url);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(server.asked().len(), before + 1, "only the listing is asked for again");

    let offline = machine.offline();
    assert_eq!(offline.code, 0, "{}", offline.stderr);
    assert!(
        offline.stderr.contains("HF_HUB_OFFLINE is set; using the cache"),
        "{}",
        offline.stderr
    );
    let unreachable = machine.build("http://127.0.0.1:9");
    assert_eq!(unreachable.code, 0, "{}", unreachable.stderr);
    assert!(unreachable.stderr.contains("the hub cannot be reached"), "{}", unreachable.stderr);
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let machine = Machine::new();
    let other = Hub::default().start();
    let place = other.url.replace("127.0.0.1", "localhost");
    let hub = Hub::default();
    let cut = AtomicUsize::new(0);
    let server = Server::start(move |asked| {
        let mut reply = hub.answer(asked, &cut);
        for (name, value) in &mut reply.headers {
            if name == "location" {
                *value = format!("{place}/store/{WEIGHTS}");
            }
        }
        reply
    });
    // From the file that `hf auth login` writes.
    std::fs::create_dir_all(machine.path("hf")).unwrap();
    std::fs::write(machine.path("hf/token"), "token-of-a-file\n").unwrap();
    let run = run(machine.command("acme/clip", &server.url).env("NO_PROXY", "127.0.0.1,localhost"));
    assert_eq!(run.code, 0, "{}", run.stderr);
    let bearer = Some("Bearer token-of-a-file");
    assert!(server.asked().iter().all(|asked| asked.header("authorization") == bearer));
    assert_eq!(other.asked().len(), 1);
    assert_eq!(other.asked()[0].header("authorization"), None);
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let machine = Machine::new();
    let server = Hub { cuts: (2, 1000), ..Hub::default() }.start();
    let run = machine.build(&server.url);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(weights(&server), ["all", "bytes=1000-", "bytes=2000-"]);
}

#[test]
fn a_later_run_takes_up_what_an_earlier_one_left() {
    let machine = Machine::new();
    // After the first part nothing comes any more.
    let files = demo_clip();
    let cut = AtomicUsize::new(0);
    let hub = Hub::default();
    let server = Server::start(move |asked| {
        let reply = hub.answer(asked, &AtomicUsize::new(usize::MAX / 2));
        let is_weights = asked.method == "GET" && asked.path.starts_with("/store/");
        match is_weights.then(|| cut.fetch_add(1, Ordering::SeqCst)) {
            Some(0) => reply.cut(5000),
            Some(_) => reply.cut(0),
            None => reply,
        }
    });
    let run = machine.build(&server.url);
    assert_eq!(run.code, 1);
    assert!(
        run.stderr.contains("the download of model.safetensors broke off at byte 5000"),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("hint: run the same command again"), "{}", run.stderr);
    assert!(!machine.path("repository").exists());
    assert_eq!(machine.offline().code, 1, "half a model is none");
    let server = Hub { files: files.clone(), ..Hub::default() }.start();
    let run = machine.build(&server.url);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(weights(&server), ["bytes=5000-"]);
    assert_eq!(std::fs::read(machine.snapshot().join(WEIGHTS)).unwrap(), files[WEIGHTS]);
}

#[test]
fn a_killed_download_is_taken_up() {
    let machine = Machine::new();
    let hub = Hub::default();
    let server = Server::start(move |asked| {
        let reply = hub.answer(asked, &AtomicUsize::new(usize::MAX / 2));
        let is_weights = asked.method == "GET" && asked.path.starts_with("/store/");
        if is_weights { reply.stalled(7000) } else { reply }
    });
    let mut child = machine.command("acme/clip", &server.url);
    let mut child = child.stderr(std::process::Stdio::null()).spawn().unwrap();
    let part = machine
        .path("hf/hub/models--acme--clip/blobs")
        .join(format!("{}.incomplete", sha256(&demo_clip()[WEIGHTS])));
    let start = Instant::now();
    while std::fs::metadata(&part).map_or(0, |part| part.len()) < 7000 {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let server = Hub::default().start();
    let run = machine.build(&server.url);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(weights(&server), ["bytes=7000-"]);
}

#[test]
fn a_hub_without_ranges_sends_the_whole_again() {
    let machine = Machine::new();
    let server = Hub { cuts: (1, 1000), ranges: false, ..Hub::default() }.start();
    let run = machine.build(&server.url);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(weights(&server), ["all", "bytes=1000-"]);
}

#[test]
fn damage_on_the_way_is_seen() {
    let machine = Machine::new();
    let wrong = |bytes: &[u8]| sha256(&[bytes, b"!"].concat());
    let server = Hub { etag: wrong, ..Hub::default() }.start();
    let run = machine.build(&server.url);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("damaged on its way"), "{}", run.stderr);
    assert!(!machine.path("repository").exists());
    assert_eq!(machine.blobs(), [""; 0].map(PathBuf::from), "what is damaged does not stay");
}

/// A later part of another file than the first.
#[test]
fn damage_before_a_cut_is_seen() {
    let machine = Machine::new();
    let blobs = machine.path("hf/hub/models--acme--clip/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join(format!("{}.incomplete", sha256(&demo_clip()[WEIGHTS])));
    std::fs::write(&part, [0; 3000]).unwrap();
    let server = Hub::default().start();
    let run = machine.build(&server.url);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("damaged on its way"), "{}", run.stderr);
    assert_eq!(weights(&server), ["bytes=3000-"]);
    assert!(!part.exists());
    assert_eq!(machine.build(&server.url).code, 0);
}

#[test]
fn shards_are_found_by_their_index() {
    let mut files = demo_clip();
    let weights = files.remove(WEIGHTS).unwrap();
    let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&weights[8..8 + header]).unwrap();
    let shard = "model-00001-of-00001.safetensors";
    let names = header.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
    let map: BTreeMap<&String, &str> = names.map(|name| (name, shard)).collect();
    let index = json!({ "metadata": {}, "weight_map": map });
    files.insert("model.safetensors.index.json".into(), index.to_string().into_bytes());
    files.insert(shard.into(), weights);
    let machine = Machine::new();
    let server = Hub { files, ..Hub::default() }.start();
    let first = machine.build(&server.url);
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert!(machine.path("repository/clip_text/1").join(shard).is_file());
    assert_eq!(machine.offline().code, 0);
}

#[test]
fn files_of_a_subfolder_lie_in_that_subfolder() {
    let folder = project().join("goldens/captioners/instruct_plain");
    let golden = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let mut files = Files::new();
    for name in ["config.json", "generation_config.json", WEIGHTS] {
        files.insert(name.into(), golden(name));
    }
    let words: Vec<String> = (0..101).map(|id| format!("w{id}")).collect();
    let special = "[PAD]\n[UNK]\n[SEP]\n[CLS]\n";
    for (name, words) in
        [("vocab.txt", &words[..92]), ("qformer_tokenizer/vocab.txt", &words[..97])]
    {
        files.insert(name.into(), (special.to_owned() + &words.join("\n")).into_bytes());
    }
    files.insert("qformer_tokenizer/README.md".into(), b"not needed".to_vec());
    let processor = json!({
        "image_processor_type": "BlipImageProcessor", "size": {"height": 32, "width": 32},
    });
    files.insert("preprocessor_config.json".into(), processor.to_string().into_bytes());
    let second = files["qformer_tokenizer/vocab.txt"].clone();
    let machine = Machine::new();
    let server = Hub { files, ..Hub::default() }.start();
    let build = |endpoint: &str| {
        let mut command = imprompt();
        command.args(["build", "--captioner", "acme/clip", "--out"]);
        command.arg(machine.path("repository"));
        command.env("HF_HOME", machine.path("hf")).env("HF_ENDPOINT", endpoint);
        run(&mut command)
    };
    let online = build(&server.url);
    assert_eq!(online.code, 0, "{}", online.stderr);
    assert!(!server.asked().iter().any(|asked| asked.path.ends_with("README.md")));
    let snapshot = machine.snapshot().join("qformer_tokenizer/vocab.txt");
    assert!(snapshot.is_symlink());
    assert_eq!(std::fs::read(&snapshot).unwrap(), second);
    for stage in ["captioner", "caption_stream"] {
        let built = machine.path("repository").join(stage).join("1/qformer_tokenizer/vocab.txt");
        assert_eq!(std::fs::read(built).unwrap(), second);
    }
    let unreachable = build("http://127.0.0.1:9");
    assert_eq!(unreachable.code, 0, "{}", unreachable.stderr);
}

#[test]
fn a_revision_is_a_branch_or_a_commit() {
    let machine = Machine::new();
    let server = Hub::default().start();
    for revision in ["v2", COMMIT] {
        let source = format!("acme/clip@{revision}");
        let online = run(&mut machine.command(&source, &server.url));
        assert_eq!(online.code, 0, "{}", online.stderr);
        let mut offline = machine.command(&source, "http://127.0.0.1:9");
        assert_eq!(run(offline.env("HF_HUB_OFFLINE", "1")).code, 0);
    }
    assert_eq!(machine.offline().code, 1, "main was never asked for");
    let missing = run(&mut machine.command("acme/clip@v3", &server.url));
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("has this model, but no such revision"), "{}", missing.stderr);
}

#[test]
fn what_a_hub_does_not_have_is_explained() {
    let machine = Machine::new();
    let server = Server::start(|_| Reply::new(404, "{}"));
    let run = machine.build(&server.url);
    assert_eq!(run.code, 1);
    assert!(run.stderr.starts_with("error: acme/clip: the hub has no such model or revision\nhint: check the spelling: OWNER/NAME"), "{}", run.stderr);
    let mut files = demo_clip();
    files.remove(WEIGHTS);
    files.insert("tf_model.h5".into(), vec![]);
    let server = Hub { files, ..Hub::default() }.start();
    let run = machine.build(&server.url);
    assert!(run.stderr.contains("it has tf_model.h5, TensorFlow weights"), "{}", run.stderr);
    assert!(run.stderr.contains("\nhint: load it in Python"), "{}", run.stderr);
    let run = machine.offline();
    assert!(run.stderr.contains("not in the cache at"), "{}", run.stderr);
    assert!(run.stderr.contains("hint: HF_HUB_OFFLINE is set"), "{}", run.stderr);
    let server = Server::start(|_| Reply::new(200, "<html>"));
    let run = machine.build(&server.url);
    assert!(
        run.stderr.contains("the hub's answer is not understood\nhint: check $HF_ENDPOINT"),
        "{}",
        run.stderr
    );
    let server = Server::start(|_| Reply::new(503, "busy"));
    let run = machine.build(&server.url);
    assert!(run.stderr.contains("cannot be reached: it answers with status 503"), "{}", run.stderr);
}

#[test]
fn a_gated_model_says_what_to_do() {
    let machine = Machine::new();
    let server = Server::start(|_| Reply::new(403, "{}").header("x-error-code", "GatedRepo"));
    let with = machine.build(&server.url);
    let without = run(&mut machine.command("acme/clip", &server.url));
    for (run, hint) in [
        (
            &with,
            "accept the licence on the model's page, with the account that HF_TOKEN belongs to",
        ),
        (&without, "accept the licence on the model's page and set HF_TOKEN"),
    ] {
        assert_eq!(run.code, 1);
        assert!(run.stderr.contains("to those alone who accepted its licence"), "{}", run.stderr);
        assert!(
            run.stderr.contains(hint) && !run.stderr.contains("secret-token"),
            "{}",
            run.stderr
        );
    }
    let server = Server::start(|_| Reply::new(401, "{}"));
    let run = machine.build(&server.url);
    assert!(run.stderr.contains("does not accept the token"), "{}", run.stderr);
    assert!(!run.stderr.contains("secret-token"));
}

#[test]
fn a_hub_cannot_lead_out_of_the_cache() {
    for etag in ["../../../evil", ".hidden", "", "a/b"] {
        let machine = Machine::new();
        let hub = Hub::default();
        let server = Server::start(move |asked| {
            let mut reply = hub.answer(asked, &AtomicUsize::new(usize::MAX / 2));
            reply.headers.retain(|(name, _)| !name.ends_with("etag"));
            reply.header("etag", format!("\"{etag}\""))
        });
        let run = machine.build(&server.url);
        assert_eq!(run.code, 1);
        assert!(run.stderr.contains("names no content of a file"), "{}", run.stderr);
    }
}

/// Two at once: one waits, and both have the model.
#[test]
fn one_of_two_downloads_waits() {
    let machine = Machine::new();
    let server = Hub::default().start();
    let codes = Mutex::new(vec![]);
    std::thread::scope(|scope| {
        for number in 0..2 {
            let (machine, url, codes) = (&machine, &server.url, &codes);
            scope.spawn(move || {
                let mut command = imprompt();
                command.args(["build", "--clip", "acme/clip", "--out"]);
                command.arg(machine.path(&format!("repository-{number}")));
                command.env("HF_HOME", machine.path("hf")).env("HF_ENDPOINT", url);
                codes.lock().unwrap().push(run(&mut command).code);
            });
        }
    });
    assert_eq!(*codes.lock().unwrap(), [0, 0]);
    assert_eq!(weights(&server).len(), 1);
}

#[test]
fn a_known_name_is_taken_from_its_place_on_the_hub() {
    let machine = Machine::new();
    let server = Server::start(|_| Reply::new(404, "{}"));
    let file = machine.path("model_name.json");
    let text =
        r#"{"caption_model_name": "blip2-2.7b", "clip_model_name": "ViT-H-14/laion2b_s32b_b79k"}"#;
    std::fs::write(&file, text).unwrap();
    let mut command = imprompt();
    command.args(["build", "--model-names"]).arg(&file).arg("--out").arg(machine.path("r"));
    let by_file = run(command.env("HF_HOME", machine.path("hf")).env("HF_ENDPOINT", &server.url));
    let by_flag = run(&mut machine.command("ViT-H-14/laion2b_s32b_b79k", &server.url));
    for run in [by_file, by_flag] {
        assert_eq!(run.code, 1);
        let expected = "error: laion/CLIP-ViT-H-14-laion2B-s32B-b79K: the hub has no such model";
        assert!(run.stderr.starts_with(expected), "{}", run.stderr);
    }
    let path = "/api/models/laion/CLIP-ViT-H-14-laion2B-s32B-b79K/revision/main";
    assert!(server.asked().iter().all(|asked| asked.path == path));
    let unknown = run(&mut machine.command("ViT-H-14/laion2b_s32b_b7k", &server.url));
    assert_eq!(unknown.code, 1);
    assert!(
        unknown.stderr.contains("hint: did you mean ViT-H-14/laion2b_s32b_b79k"),
        "{}",
        unknown.stderr
    );
}

#[test]
fn an_architecture_is_refused_before_its_weights_are_downloaded() {
    let machine = Machine::new();
    let mut files = demo_clip();
    files.insert("config.json".into(), br#"{"model_type": "swinv2"}"#.to_vec());
    let server = Hub { files, ..Hub::default() }.start();
    let run = machine.build(&server.url);
    assert_eq!(run.code, 1);
    assert!(
        run.stderr.contains("error: acme/clip: ") && run.stderr.contains("swinv2"),
        "{}",
        run.stderr
    );
    assert!(weights(&server).is_empty());
}

#[test]
fn a_hostile_pickle_is_downloaded_and_refused() {
    let machine = Machine::new();
    let mut files = demo_clip();
    files.remove(WEIGHTS);
    let golden = project().join("goldens/torch/hostile.bin");
    files.insert("pytorch_model.bin".into(), std::fs::read(golden).unwrap());
    let server = Hub { files, ..Hub::default() }.start();
    let run = machine.build(&server.url);
    assert_eq!(run.code, 1);
    assert!(
        run.stderr.contains("pytorch_model.bin: asks for \"posix.system\", which is"),
        "{}",
        run.stderr
    );
    assert!(!machine.path("repository").exists());
}
