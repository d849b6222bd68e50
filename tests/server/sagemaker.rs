//! SageMaker's front end of the real server: what existing clients send, and the life of the models
//! of a multi-model endpoint.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use imprompt_kserve::InferRequest;
use serde_json::{Value, json};

use crate::endpoint::{Endpoint, Unpacked, package, repackage};
use crate::library::library;
use crate::support::{call, demo_repository, good, picture, server, with_image};

fn croissant() -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/croissant.png")).unwrap()
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// The prompt that the server with all of the repository's models finds.
fn prompt(request: &InferRequest) -> String {
    server().client().infer("interrogate", request).unwrap().text("prompt").unwrap().to_owned()
}

/// What the clients of the AWS sample send, and what they get.
fn assert_serves_the_sample(endpoint: &Endpoint, model: Option<&Unpacked>) {
    let image = croissant();
    // predictor.predict({"image": ..., "prompt": [...]})
    let labels = ["a croissant", "a photo of a dog", "rain"];
    let body = json!({"image": base64(&image), "prompt": labels});
    let (status, answer) = endpoint.invoke_bare(model, body.to_string().as_bytes());
    let request = with_image(image.clone()).bytes("labels", [1, 3], labels);
    let expected = server().client().infer("zero_shot", &request).unwrap();
    assert_eq!(status, 200, "{answer}");
    let found = answer[0].as_array().unwrap_or_else(|| panic!("{answer}"));
    assert_eq!((answer.as_array().unwrap().len(), found.len()), (1, labels.len()), "{answer}");
    for (found, expected) in found.iter().zip(expected.f32("probability").unwrap()) {
        // The picture's neighbours in a batch change the seventh digit.
        let difference = found.as_f64().unwrap() - f64::from(*expected);
        assert!(difference.abs() < 1e-6, "{found} instead of {expected}");
    }
    // One label is a list of one, too.
    let body = json!({"image": base64(&image), "prompt": ["rain"]});
    assert_eq!(endpoint.invoke_bare(model, body.to_string().as_bytes()), (200, json!([[1.0]])));

    // predictor.predict({"inputs": ..., "parameters": {...}})
    let parameters = json!({"max_length": 16, "min_flavors": 2, "max_flavors": 4});
    let body = json!({"inputs": base64(&image), "parameters": parameters});
    let expected = with_image(image.clone()).i32("max_new_tokens", [1, 1], [16]);
    let expected =
        prompt(&expected.i32("min_flavors", [1, 1], [2]).i32("max_flavors", [1, 1], [4]));
    let answer = endpoint.invoke_bare(model, body.to_string().as_bytes());
    assert_eq!(answer, (200, json!({"outputs": expected})));

    // A bare picture, and what the sample does not have.
    let best = prompt(&with_image(image.clone()));
    assert_eq!(endpoint.invoke_bare(model, &image), (200, json!({"outputs": best})));
    for mode in ["fast", "classic", "negative", "caption"] {
        let body = json!({"inputs": base64(&image), "parameters": {"mode": mode}});
        let expected = prompt(&with_image(image.clone()).text("mode", mode));
        let answer = endpoint.invoke_bare(model, body.to_string().as_bytes());
        assert_eq!(answer, (200, json!({"outputs": expected})), "{mode}");
    }
    let body = json!({"image": base64(&image), "labels": labels, "top_k": 1});
    let (status, answer) = endpoint.invoke_bare(model, body.to_string().as_bytes());
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["labels"].as_array().unwrap().len(), 1, "{answer}");
    assert_eq!(answer["labels"][0]["label"], "a croissant");
}

/// KServe v2, as JSON and binary.
fn assert_serves_kserve(endpoint: &Endpoint, model: Option<&Unpacked>) {
    let image = croissant();
    let request = with_image(image.clone()).text("mode", "fast");
    let expected = prompt(&request);
    let answer = endpoint.infer(model, &request.clone().output("prompt")).unwrap();
    assert_eq!(answer.text("prompt").unwrap(), expected);
    let input = |name, text: &str| json!({"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [text]});
    let body = json!({"inputs": [input("image", &base64(&image)), input("mode", "fast")]});
    for kind in ["application/json", "application/octet-stream"] {
        let answer = endpoint.invoke(model, kind, body.to_string().as_bytes());
        let document: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(answer.status, 200, "{document}");
        let outputs = document["outputs"].as_array().unwrap();
        let prompt = outputs.iter().find(|output| output["name"] == "prompt").unwrap();
        assert_eq!(prompt["data"], json!([expected]));
    }
}

/// Wrong requests cost 400 with a reason, and nothing of their text comes back: "OOM" anywhere would
/// make SageMaker evict models.
fn assert_refuses(endpoint: &Endpoint, model: Option<&Unpacked>) {
    let image = base64(&croissant());
    for body in [
        json!({"inputs": image, "parameters": {"mode": "ZOOM out of memory"}}).to_string(),
        json!({"inputs": image, "parameters": {"max_flavors": -1}}).to_string(),
        json!({"image": image, "labels": ["OOM", "OOM"], "template": "Out of memory"}).to_string(),
        json!({"image": image, "labels": ["a"], "vocabulary": "BLOOM"}).to_string(),
        json!({"image": "MemoryError", "prompt": ["a"]}).to_string(),
        json!({"image": image, "OOM": 1}).to_string(),
        "{\"inputs\": \"OOM".to_owned(),
        "out of memory".to_owned(),
        String::new(),
    ] {
        let (status, answer) = endpoint.invoke_bare(model, body.as_bytes());
        let said = answer["error"].as_str().unwrap_or_else(|| panic!("{answer}"));
        assert_eq!(status, 400, "{said}");
        assert!(!said.contains("OOM") && !said.to_lowercase().contains("memory"), "{said}");
    }
}

#[test]
fn a_single_model_endpoint_serves_the_clients_there_are() {
    let endpoint = Endpoint::single("invocations");
    assert_serves_the_sample(&endpoint, None);
    assert_refuses(&endpoint, None);
    let endpoint = Endpoint::single("interrogate");
    assert_serves_kserve(&endpoint, None);
}

#[test]
fn the_generate_extension_answers_the_samples_interrogator() {
    let image = croissant();
    let url = format!("http://{}/v2/models/invocations_generate/generate", server().http_address());
    for (body, mode) in [
        (
            json!({"inputs": base64(&image), "parameters": {"max_length": 16, "mode": "fast"}}),
            "fast",
        ),
        (json!({"inputs": base64(&image), "max_length": 16}), "best"),
    ] {
        let answer = call("POST", &url, &[], body.to_string().as_bytes());
        let document: Value = serde_json::from_slice(&answer.body).unwrap();
        let expected = with_image(image.clone()).i32("max_new_tokens", [1, 1], [16]);
        assert_eq!(document["outputs"], prompt(&expected.text("mode", mode)), "{document}");
        assert_eq!(answer.status, 200);
    }
}

#[test]
fn a_multi_model_endpoint_serves_the_clients_there_are_and_unloads_after_wrong_requests() {
    let endpoint = Endpoint::multi();
    let bodies = Unpacked::new("bodies", &package("invocations"));
    let interrogate = Unpacked::new("interrogate", &package("interrogate"));
    let nobody = endpoint.invoke(Some(&bodies), "application/json", b"{}");
    assert_eq!(nobody.status, 404);
    for model in [&bodies, &interrogate] {
        assert_eq!(endpoint.load(model), (200, String::new()));
        assert_eq!(endpoint.load(model).0, 409, "loaded already");
    }
    assert_serves_the_sample(&endpoint, Some(&bodies));
    assert_serves_kserve(&endpoint, Some(&interrogate));
    assert_refuses(&endpoint, Some(&bodies));
    // Each is refused by another step: while none of its request runs, or it would never be released.
    let image = croissant();
    for (name, value) in [("max_new_tokens", 0), ("top_k", -1), ("min_flavors", -1)] {
        for _ in 0..3 {
            let request = with_image(image.clone()).i32(name, [1, 1], [value]);
            let (status, said) = endpoint.infer(Some(&interrogate), &request).unwrap_err();
            assert_eq!(status, 400, "{said}");
            assert!(said.contains(name), "{said}");
        }
    }
    let request = with_image(image).text("mode", "none of them");
    assert_eq!(endpoint.infer(Some(&interrogate), &request).unwrap_err().0, 400);
    let started = Instant::now();
    for model in [&bodies, &interrogate] {
        assert_eq!(endpoint.unload(model), 200);
        assert_eq!(endpoint.unload(model), 404);
    }
    // The front end waits for 350 s where a request was not released.
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

/// Loads and unloads.
const CYCLES: usize = 200;

/// Cycles after which memory must have settled.
const SETTLED: usize = 20;

/// Packages that come and go.
const COMING_AND_GOING: usize = 3;

#[test]
fn packages_that_come_and_go_leave_nothing_behind() {
    let endpoint = Endpoint::multi();
    let steady = Unpacked::new("steady", &package("zero_shot"));
    assert_eq!(endpoint.load(&steady), (200, String::new()));
    let packages: Vec<_> = (0..COMING_AND_GOING)
        .map(|number| Unpacked::new(&format!("coming{number}x"), &package("invocations_zero_shot")))
        .collect();
    let request = with_image(picture(64, 48, [200, 120, 40])).text("labels", "a");
    let body = json!({"image": base64(&picture(64, 48, [9, 9, 9])), "labels": ["a", "b"]});
    let body = body.to_string();
    let done = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    let mut curve = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                endpoint.infer_beside_loads(&steady, &request);
                served.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        });
        for cycle in 0..CYCLES {
            let package = &packages[cycle % COMING_AND_GOING];
            assert_eq!(endpoint.load(package), (200, String::new()), "cycle {cycle}");
            let (status, answer) = endpoint.invoke_bare(Some(package), body.as_bytes());
            assert_eq!(status, 200, "{answer}");
            assert_eq!(endpoint.unload(package), 200);
            curve.push((endpoint.server.memory(), endpoint.server.handles()));
        }
        done.store(true, Ordering::Relaxed);
    });
    endpoint.infer(Some(&steady), &request).unwrap();
    if let Some(path) = std::env::var_os("IMPROMPT_MEMORY_CURVE") {
        let lines = curve.iter().enumerate().map(|(cycle, (memory, (files, threads)))| {
            format!("{cycle},{:.1},{files},{threads}\n", *memory as f64 / f64::from(1 << 20))
        });
        fs::write(path, format!("cycle,rss_mib,files,threads\n{}", lines.collect::<String>()))
            .unwrap();
    }
    // Single moments hold buffers of requests in flight: medians are compared.
    let memory = |cycles: &[(usize, (usize, usize))]| {
        let mut memory: Vec<_> = cycles.iter().map(|(memory, _)| *memory).collect();
        memory.sort_unstable();
        memory[memory.len() / 2]
    };
    let early = memory(&curve[SETTLED..2 * SETTLED]);
    let late = memory(&curve[CYCLES - SETTLED..]);
    let grown = late.saturating_sub(early);
    assert!(grown < 16 << 20, "{early} bytes became {late}");
    let ((_, (files, threads)), (_, (files_now, threads_now))) =
        (curve[SETTLED], curve[CYCLES - 1]);
    assert!(files_now <= files + 8, "{files} files became {files_now}");
    assert!(threads_now <= threads + 4, "{threads} threads became {threads_now}");
    assert!(served.into_inner() > CYCLES, "the steady package was not asked");
}

/// Packages that are loaded at once.
const TENS: usize = 24;

#[test]
fn tens_of_packages_are_loaded_side_by_side() {
    let endpoint = Endpoint::multi();
    let packages: Vec<_> = (0..TENS)
        .map(|number| Unpacked::new(&format!("ten{number}x"), &package("embed_image")))
        .collect();
    thread::scope(|scope| {
        for packages in packages.chunks(TENS / 3) {
            let endpoint = &endpoint;
            scope.spawn(move || {
                for package in packages {
                    assert_eq!(endpoint.load(package), (200, String::new()));
                    endpoint.infer_beside_loads(package, &good());
                }
            });
        }
    });
    let expected = server().client().infer("embed_image", &good()).unwrap();
    for package in &packages {
        let answer = endpoint.infer(Some(package), &good()).unwrap();
        let pairs = answer.f32("embedding").unwrap().iter().zip(expected.f32("embedding").unwrap());
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-6));
    }
}

#[test]
fn an_updated_package_is_served_by_its_own_code_and_weights() {
    let endpoint = Endpoint::multi();
    let model = Unpacked::new("updated", &package("embed_image"));
    let loaded = |name: &str| {
        let maps = fs::read_to_string(format!("/proc/{}/maps", endpoint.server.pid())).unwrap();
        maps.lines().any(|line| line.ends_with(name))
    };
    let embedding = || {
        let answer = endpoint.infer(Some(&model), &good()).unwrap();
        answer.f32("embedding").unwrap().to_vec()
    };
    assert_eq!(endpoint.load(&model), (200, String::new()));
    let before = embedding();
    assert_eq!(endpoint.unload(&model), 200);

    // Another library, as another version would be, and other weights.
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("libtriton_imprompt.so");
    let mut code = fs::read(library()).unwrap();
    code.extend_from_slice(b"of another build");
    fs::write(&other, code).unwrap();
    let repository = folder.path().join("repository");
    crate::support::copy_folder(&demo_repository(), &repository);
    let weights = repository.join("clip_image/1/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    fs::remove_file(&weights).unwrap();
    // Signs of some weights, at the end of the file.
    let length = bytes.len();
    for byte in bytes[length / 2..].chunks_exact_mut(4).step_by(7) {
        byte[3] ^= 0x80;
    }
    fs::write(&weights, bytes).unwrap();
    let (update, name) = repackage(folder.path(), &repository, "embed_image", &other);

    assert!(!loaded(&name));
    model.replace(&update);
    assert_eq!(endpoint.load(&model), (200, String::new()));
    let after = embedding();
    assert!(loaded(&name), "{name} is not loaded");
    let length: f32 = after.iter().map(|value| value * value).sum();
    assert!((length - 1.0).abs() < 1e-4, "{length}");
    let likeness: f32 = before.iter().zip(&after).map(|(a, b)| a * b).sum();
    assert!(likeness < 0.999, "the weights are the old ones: {likeness}");
}
