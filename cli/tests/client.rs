//! The command as a client, against a loopback server that speaks KServe v2.

mod common;

use common::{Asked, Reply, Run, Server, imprompt_with};
use serde_json::{Value, json};

/// The JSON header of an inference request, and the binary tensors behind it by name.
fn question(asked: &Asked) -> (Value, Vec<(String, Vec<u8>)>) {
    let length: usize = asked.header("inference-header-content-length").unwrap().parse().unwrap();
    let (header, mut binary) = asked.body.split_at(length);
    let header: Value = serde_json::from_slice(header).unwrap();
    let mut tensors = vec![];
    for input in header["inputs"].as_array().unwrap() {
        let size = input["parameters"]["binary_data_size"].as_u64().unwrap() as usize;
        let (bytes, rest) = binary.split_at(size);
        tensors.push((input["name"].as_str().unwrap().to_owned(), bytes.to_vec()));
        binary = rest;
    }
    (header, tensors)
}

/// Answers like the ensembles do; a picture that says "bad" is refused.
fn ensembles(asked: &Asked) -> Reply {
    if asked.path == "/v2/health/live" {
        return Reply::new(200, "");
    }
    if asked.path == "/v2/models/caption_stream/generate_stream" {
        let asked: Value = serde_json::from_slice(&asked.body).unwrap();
        let end = match asked["image"].as_str() {
            Some("YmFk") => json!({"error": "input `image`: not a picture"}),
            _ => json!({"caption": "", "model_name": "caption_stream"}),
        };
        let events = [json!({"caption": "a"}), json!({"caption": " croissant"}), end];
        let body: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
        return Reply::new(200, body).header("content-type", "text/event-stream");
    }
    let model = asked.path.trim_start_matches("/v2/models/").trim_end_matches("/infer");
    let (_, tensors) = question(asked);
    if tensors.iter().any(|(name, bytes)| name == "image" && bytes.ends_with(b"bad")) {
        return Reply::new(400, r#"{"error": "input `image`: not a picture"}"#);
    }
    let text = |name: &str, texts: &[&str]| json!({"name": name, "datatype": "BYTES", "shape": [1, texts.len()], "data": texts});
    let floats = |name: &str, values: &[f32]| json!({"name": name, "datatype": "FP32", "shape": [1, values.len()], "data": values});
    let outputs = match model {
        "interrogate" => json!([
            text("prompt", &["a croissant, crisp"]),
            text("caption", &["a croissant"]),
            floats("similarity", &[0.25]),
            text("report", &["{}"]),
        ]),
        "caption" => json!([text("caption", &["a croissant"])]),
        "zero_shot" => json!([
            text("label", &["cat", "dog"]),
            floats("probability", &[0.75, 0.25]),
            floats("similarity", &[0.3, 0.2]),
        ]),
        "embed_image" | "embed_text" => json!([floats("embedding", &[0.6, 0.8])]),
        _ => return Reply::new(404, r#"{"error": "unknown model"}"#),
    };
    Reply::new(
        200,
        json!({"model_name": model, "model_version": "1", "outputs": outputs}).to_string(),
    )
}

/// Pictures `a.png`, `b.png` (bad) and `c.png` in a folder.
fn pictures() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in [("a.png", "good"), ("b.png", "bad"), ("c.png", "good")] {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn ask(arguments: &[&str]) -> (Run, Vec<Asked>) {
    let server = Server::start(ensembles);
    let run = imprompt_with(&[arguments, &["--server", &server.url]].concat());
    let asked = server.asked().into_iter().filter(|asked| asked.path.ends_with("/infer")).collect();
    (run, asked)
}

#[test]
fn one_picture_gives_the_bare_prompt() {
    let folder = pictures();
    let picture = folder.path().join("a.png");
    let (run, asked) = ask(&["interrogate", picture.to_str().unwrap(), "--max-flavors", "5"]);
    assert_eq!((run.code, &*run.stdout, &*run.stderr), (0, "a croissant, crisp\n", ""));
    let (header, tensors) = question(&asked[0]);
    let names: Vec<_> = tensors.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["image", "mode", "max_flavors"]);
    assert_eq!(header["inputs"][2]["shape"], json!([1, 1]));
    assert_eq!(tensors[0].1, b"\x04\0\0\0good");
    assert_eq!(tensors[1].1, b"\x04\0\0\0best");
    assert_eq!(tensors[2].1, 5i32.to_le_bytes());
}

/// The inputs of `caption` but `text`, and with them those of `interrogate` that say how a
/// caption is generated.
const CAPTION_INPUTS: &[&str] = &[
    "image",
    "max_new_tokens",
    "min_new_tokens",
    "num_beams",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
];

#[test]
fn every_optional_input_has_its_flag() {
    let folder = pictures();
    let picture = folder.path().join("a.png");
    let picture = picture.to_str().unwrap();
    let cases: &[(&[&str], &[&str])] = &[
        (
            &[
                "interrogate",
                "--mode",
                "fast",
                "--given-caption",
                "x",
                "--min-flavors",
                "1",
                "--max-flavors",
                "2",
                "--max-new-tokens",
                "3",
            ],
            &["image", "mode", "given_caption", "min_flavors", "max_flavors", "max_new_tokens"],
        ),
        (
            &["caption", "--text", "x", "--max-new-tokens", "3"],
            &["image", "text", "max_new_tokens"],
        ),
        (
            &[
                &["caption", "--max-new-tokens", "3", "--min-new-tokens", "1"][..],
                &["--num-beams", "2"],
                &["--temperature", "0", "--top-k", "5", "--top-p", "0.5", "--seed", "7"],
                &["--repetition-penalty", "1.5", "--length-penalty", "-1"],
                &["--no-repeat-ngram-size", "2"],
            ]
            .concat(),
            CAPTION_INPUTS,
        ),
        (
            &["tag", "--labels", "a, b", "--template", "a {}", "--top-k", "1"],
            &["image", "labels", "template", "top_k"],
        ),
        (&["tag", "--vocabulary", "mediums"], &["image", "vocabulary"]),
    ];
    for (arguments, expected) in cases {
        let (run, asked) = ask(&[&arguments[..1], &[picture], &arguments[1..]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        let (_, tensors) = question(&asked[0]);
        let names: Vec<_> = tensors.iter().map(|(name, _)| &**name).collect();
        assert_eq!(&names, expected);
        if let Some((_, labels)) = tensors.iter().find(|(name, _)| name == "labels") {
            assert_eq!(labels, b"\x01\0\0\0a\x01\0\0\0b", "blanks around commas are dropped");
        }
    }
}

#[test]
fn pieces_of_a_caption_are_printed_as_they_come() {
    let folder = pictures();
    let path = folder.path().to_str().unwrap();
    let server = Server::start(ensembles);
    let stream = ["caption", path, "--stream", "--text", "x", "--temperature", "0.5"];
    let run = imprompt_with(&[&stream[..], &["--server", &server.url]].concat());
    let line = |name: &str| format!("{path}/{name}\ta croissant\n");
    // What was told before an error stays told.
    assert_eq!(run.stdout, ["a.png", "b.png", "c.png"].map(line).concat());
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("b.png: input `image`: not a picture"), "{}", run.stderr);
    let asked = server.asked().into_iter().find(|asked| asked.method == "POST").unwrap();
    let asked: Value = serde_json::from_slice(&asked.body).unwrap();
    assert_eq!(asked, json!({"image": "Z29vZA==", "text": "x", "temperature": 0.5}));
}

#[test]
fn a_folder_run_goes_on_past_a_bad_picture_and_ends_with_1() {
    let folder = pictures();
    let path = folder.path().to_str().unwrap();
    let (run, _) = ask(&["interrogate", path, "--json"]);
    assert_eq!(run.code, 1);
    let lines: Vec<Value> =
        run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    for (line, name) in lines.iter().zip(["a.png", "c.png"]) {
        let keys: Vec<_> = line.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["image", "mode", "prompt", "caption", "similarity", "seconds"]);
        assert_eq!(line["image"], format!("{path}/{name}"));
        assert_eq!((&line["mode"], &line["similarity"]), (&json!("best"), &json!(0.25)));
        assert!(line["seconds"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(
        run.stderr,
        format!(
            "error: {path}/b.png: input `image`: not a picture (status 400)\nerror: 1 of 3 pictures failed\n"
        )
    );
}

#[test]
fn a_single_bad_picture_is_reported_once() {
    let folder = pictures();
    let picture = folder.path().join("b.png");
    let (run, _) = ask(&["caption", picture.to_str().unwrap()]);
    assert_eq!((run.code, &*run.stdout, run.stderr.lines().count()), (1, "", 1));
}

#[test]
fn several_pictures_have_their_path_in_front() {
    let folder = pictures();
    let (a, c) = (folder.path().join("a.png"), folder.path().join("c.png"));
    let (run, _) = ask(&["caption", a.to_str().unwrap(), c.to_str().unwrap()]);
    let expected = format!("{}\ta croissant\n{}\ta croissant\n", a.display(), c.display());
    assert_eq!((run.code, run.stdout), (0, expected));
}

#[test]
fn json_lines_have_the_keys_of_the_contract() {
    let folder = pictures();
    let picture = folder.path().join("a.png");
    let picture = picture.to_str().unwrap();
    let (run, _) = ask(&["tag", picture, "--labels", "cat,dog", "--json"]);
    let expected = format!(
        "{{\"image\":\"{picture}\",\"labels\":[{{\"label\":\"cat\",\"probability\":0.75,\"similarity\":0.3}},\
         {{\"label\":\"dog\",\"probability\":0.25,\"similarity\":0.2}}]}}\n"
    );
    assert_eq!(run.stdout, expected, "float32 values are not widened");
    let (run, _) = ask(&["tag", picture, "--labels", "cat,dog"]);
    assert_eq!(run.stdout, "0.7500\t0.3000\tcat\n0.2500\t0.2000\tdog\n");
    let (run, _) = ask(&["caption", picture, "--json"]);
    assert_eq!(run.stdout, format!("{{\"image\":\"{picture}\",\"caption\":\"a croissant\"}}\n"));
    let (run, _) = ask(&["embed", picture]);
    assert_eq!(run.stdout, format!("{{\"image\":\"{picture}\",\"embedding\":[0.6,0.8]}}\n"));
    let (run, asked) = ask(&["embed", "--text", "a cat", "a dog"]);
    assert_eq!(
        run.stdout,
        "{\"text\":\"a cat\",\"embedding\":[0.6,0.8]}\n{\"text\":\"a dog\",\"embedding\":[0.6,0.8]}\n"
    );
    assert_eq!(asked.len(), 2);
}

#[test]
fn bench_counts_what_it_asked() {
    let folder = pictures();
    let picture = folder.path().join("a.png");
    let arguments = [
        "bench",
        picture.to_str().unwrap(),
        "--requests",
        "20",
        "--concurrency",
        "4",
        "--warm-up",
        "2",
    ];
    let (run, asked) = ask(&[&arguments[..], &["--json"]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(asked.len(), 22);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(
        (&report["requests"], &report["failed"], &report["concurrency"]),
        (&json!(20), &json!(0), &json!(4))
    );
    let latency = &report["latency_ms"];
    assert!(latency["p50"].as_f64().unwrap() <= latency["p99"].as_f64().unwrap());
    let page = folder.path().join("report.html");
    let (run, asked) =
        ask(&[&arguments[..5], &["1,3", "--html", page.to_str().unwrap(), "--json"]].concat());
    assert_eq!((run.stdout.lines().count(), asked.len()), (2, 2 * (20 + 3)));
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("interrogate (best), 3 callers") && page.contains("<svg"), "{page}");
    assert!(!["<script", "<link", "src=", "@import"].iter().any(|what| page.contains(what)));
    let (run, _) = ask(&arguments);
    assert!(run.stdout.contains("requests/s") && run.stdout.contains("ms p99"), "{}", run.stdout);
}

#[test]
fn a_server_without_the_model_is_explained() {
    let server = Server::start(|asked| match &*asked.path {
        "/v2/health/live" => Reply::new(200, ""),
        _ => Reply::new(404, r#"{"error": "Request for unknown model: 'caption' is not found"}"#),
    });
    let folder = pictures();
    let picture = folder.path().join("a.png");
    let run = imprompt_with(&["caption", picture.to_str().unwrap(), "--server", &server.url]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("hint: the server at http://127.0.0.1:"), "{}", run.stderr);
}
