//! Every ensemble as docs and contract have it, over both protocols.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use imprompt_kserve::{InferRequest, InferResponse, Tensor, Values, grpc};
use imprompt_repository::{BuildRequest, ModelFolder, Silent, build};
use serde_json::{Map, Value};

use crate::support::{Server, demo_repository, good, picture, pictures, server, with_image};

/// The same request over HTTP and gRPC; the answers must be the same.
fn both(model: &str, request: &InferRequest) -> InferResponse {
    let http = server().client().infer(model, request).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let grpc = runtime.block_on(async {
        let client = grpc::Client::new(&server().grpc_address()).unwrap();
        client.infer(model, request).await.unwrap()
    });
    assert_eq!(answer(&http), answer(&grpc), "{model}");
    http
}

/// The outputs by name, without what differs from run to run: a report's times.
fn answer(response: &InferResponse) -> BTreeMap<String, Tensor> {
    let mut outputs: BTreeMap<String, Tensor> =
        response.outputs.iter().map(|output| (output.name.clone(), output.clone())).collect();
    assert_eq!(outputs.len(), response.outputs.len(), "an output twice");
    if let Some(Tensor { values: Values::Bytes(reports), .. }) = outputs.get_mut("report") {
        for report in reports {
            let mut fields: Map<String, Value> = serde_json::from_slice(report).unwrap();
            let seconds = fields.remove("seconds").unwrap();
            assert!(seconds["all"].as_f64().unwrap() >= seconds["ranking"].as_f64().unwrap());
            *report = serde_json::to_vec(&fields).unwrap();
        }
    }
    outputs
}

fn shape<'r>(response: &'r InferResponse, name: &str) -> &'r [i64] {
    &response.output(name).unwrap().shape
}

#[test]
fn embed_image_is_a_unit_vector() {
    let response = both("embed_image", &good());
    let embedding = response.f32("embedding").unwrap();
    assert_eq!(shape(&response, "embedding"), [1, embedding.len() as i64]);
    let norm: f32 = embedding.iter().map(|value| value * value).sum();
    assert!((norm - 1.0).abs() < 1e-4, "{norm}");
}

#[test]
fn embed_text_is_a_unit_vector_of_the_same_space() {
    let response = both("embed_text", &InferRequest::new().text("text", "a croissant"));
    let embedding = response.f32("embedding").unwrap();
    let norm: f32 = embedding.iter().map(|value| value * value).sum();
    assert!((norm - 1.0).abs() < 1e-4, "{norm}");
    let image = server().client().infer("embed_image", &good()).unwrap();
    assert_eq!(image.f32("embedding").unwrap().len(), embedding.len());
}

#[test]
fn a_picture_may_be_base64_or_a_data_url() {
    let raw = picture(30, 20, [10, 200, 60]);
    let expected = server().client().infer("embed_image", &with_image(raw.clone())).unwrap();
    let text = base64::engine::general_purpose::STANDARD.encode(&raw);
    let broken = text.as_bytes().chunks(60).map(|line| std::str::from_utf8(line).unwrap());
    let broken = broken.collect::<Vec<_>>().join("\r\n");
    let forms = [
        text.clone(),
        text.trim_end_matches('=').to_owned(),
        text.replace('+', "-").replace('/', "_"),
        broken,
        format!("data:image/png;base64,{text}"),
    ];
    for form in forms {
        let response = server().client().infer("embed_image", &with_image(form)).unwrap();
        assert_eq!(response.outputs, expected.outputs);
    }
}

#[test]
fn zero_shot_scores_labels_in_the_order_given() {
    let labels = ["a croissant", "a red car", "a croissant", "ünïcödé 🥐"];
    let request = good().bytes("labels", [1, 4], labels);
    let response = both("zero_shot", &request);
    assert_eq!(response.texts("label").unwrap(), labels);
    assert_eq!(shape(&response, "label"), [1, 4]);
    let probability = response.f32("probability").unwrap();
    let similarity = response.f32("similarity").unwrap();
    assert!((probability.iter().sum::<f32>() - 1.0).abs() < 1e-4);
    assert_eq!(similarity[0], similarity[2]);
    assert_eq!(probability[0], probability[2]);
    assert!(similarity.iter().all(|value| value.abs() <= 1.0 + 1e-5));
    // What has the higher cosine has the higher probability.
    for (one, other) in [(0, 1), (1, 3), (0, 3)] {
        assert_eq!(similarity[one] > similarity[other], probability[one] > probability[other]);
    }
}

#[test]
fn zero_shot_with_top_k_and_template_puts_the_best_first() {
    let labels = ["croissant", "car", "house", "tree", "dog"];
    let all = good().bytes("labels", [1, 5], labels).text("template", "a picture of a {}");
    let all = both("zero_shot", &all);
    let mut ranked: Vec<_> =
        all.texts("label").unwrap().into_iter().zip(all.f32("probability").unwrap()).collect();
    ranked.sort_by(|one, other| other.1.total_cmp(one.1));
    let request = good().bytes("labels", [1, 5], labels).text("template", "a picture of a {}").i32(
        "top_k",
        [1, 1],
        [2],
    );
    let best = both("zero_shot", &request);
    assert_eq!(shape(&best, "label"), [1, 2]);
    assert_eq!(best.texts("label").unwrap(), [ranked[0].0, ranked[1].0]);
    // The softmax is over the whole set, not over the two.
    assert!((best.f32("probability").unwrap()[0] - ranked[0].1).abs() < 1e-6);
    let plain = good().bytes("labels", [1, 5], labels);
    assert_ne!(
        both("zero_shot", &plain).f32("similarity").unwrap(),
        all.f32("similarity").unwrap()
    );
}

#[test]
fn one_label_has_probability_one() {
    let response = both("zero_shot", &good().bytes("labels", [1, 1], ["anything"]));
    assert!((response.f32("probability").unwrap()[0] - 1.0).abs() < 1e-6);
}

#[test]
fn zero_shot_knows_the_stored_vocabularies() {
    let request = good().text("vocabulary", "flavors").i32("top_k", [1, 1], [5]);
    let response = both("zero_shot", &request);
    assert_eq!(response.texts("label").unwrap().len(), 5);
    let similarity = response.f32("similarity").unwrap();
    assert!(similarity.is_sorted_by(|one, other| one >= other), "{similarity:?}");
}

#[test]
fn caption_answers_with_and_without_a_prompt() {
    let response = both("caption", &good());
    assert_eq!(shape(&response, "caption"), [1, 1]);
    let plain = response.text("caption").unwrap().to_owned();
    assert!(!plain.is_empty());
    let short = both("caption", &good().i32("max_new_tokens", [1, 1], [1]));
    assert!(short.text("caption").unwrap().len() <= plain.len());
    both("caption", &good().text("text", "a picture of"));
}

#[test]
fn interrogate_answers_in_every_mode() {
    for mode in ["best", "fast", "classic", "negative", "caption"] {
        let response = both("interrogate", &good().text("mode", mode));
        let prompt = response.text("prompt").unwrap();
        assert!(!prompt.is_empty(), "{mode}");
        let report: Value = serde_json::from_str(response.text("report").unwrap()).unwrap();
        assert_eq!(report["mode"], mode);
        let steps = report["seconds"]["steps"].as_array().unwrap().len();
        assert_eq!(steps > 0, matches!(mode, "best" | "negative"), "{mode}: {steps} steps");
        assert_eq!(shape(&response, "similarity"), [1, 1]);
        let caption = response.text("caption").unwrap();
        match mode {
            "caption" => assert_eq!(prompt, caption),
            "fast" | "classic" => assert!(prompt.starts_with(caption), "{prompt:?} {caption:?}"),
            _ => {}
        }
    }
}

#[test]
fn interrogate_is_best_unless_told() {
    let plain = both("interrogate", &good());
    let best = both("interrogate", &good().text("mode", "best"));
    assert_eq!(answer(&plain), answer(&best));
}

#[test]
fn interrogate_takes_a_caption_and_numbers_of_flavors() {
    let request = good()
        .text("mode", "fast")
        .text("given_caption", "a hand-made caption")
        .i32("min_flavors", [1, 1], [1])
        .i32("max_flavors", [1, 1], [2])
        .output("prompt")
        .output("caption");
    let response = both("interrogate", &request);
    assert_eq!(response.text("caption").unwrap(), "a hand-made caption");
    assert!(response.text("prompt").unwrap().starts_with("a hand-made caption, "));
    // Only what was asked for.
    assert_eq!(response.outputs.len(), 2);
}

#[test]
fn a_batch_answers_as_its_items_do_alone() {
    let images = pictures(4);
    for (model, output) in
        [("embed_image", "embedding"), ("caption", "caption"), ("interrogate", "prompt")]
    {
        let batch = InferRequest::new().bytes("image", [4, 1], images.clone());
        let batch = both(model, &batch.output(output));
        assert_eq!(shape(&batch, output)[0], 4);
        for (item, image) in images.iter().enumerate() {
            let alone = with_image(image.clone()).output(output);
            let alone = server().client().infer(model, &alone).unwrap();
            if let Ok(values) = alone.f32(output) {
                let batched = &batch.f32(output).unwrap()[item * values.len()..];
                for (one, other) in values.iter().zip(batched) {
                    assert!((one - other).abs() < 1e-5, "{model}: {one} {other}");
                }
            } else {
                assert_eq!(alone.texts(output).unwrap()[0], batch.texts(output).unwrap()[item]);
            }
        }
    }
}

#[test]
fn a_batch_may_have_its_own_labels_an_item() {
    let images = pictures(2);
    let request = InferRequest::new().bytes("image", [2, 1], images.clone()).bytes(
        "labels",
        [2, 2],
        ["a cat", "a dog", "a tree", "a house"],
    );
    let batch = both("zero_shot", &request);
    assert_eq!(shape(&batch, "probability"), [2, 2]);
    let alone = with_image(images[1].clone()).bytes("labels", [1, 2], ["a tree", "a house"]);
    let alone = server().client().infer("zero_shot", &alone).unwrap();
    let batched = &batch.f32("similarity").unwrap()[2..];
    for (one, other) in alone.f32("similarity").unwrap().iter().zip(batched) {
        assert!((one - other).abs() < 1e-5);
    }
}

#[test]
fn the_shipped_configurations_are_what_the_server_serves() {
    let client = server().client();
    for model in ["interrogate", "caption", "zero_shot", "embed_image", "embed_text"] {
        assert!(demo_repository().join(model).join("config.pbtxt").exists());
        let config = client.model_config(model).unwrap();
        assert!(config["max_batch_size"].as_i64().unwrap() > 0);
        assert!(config["ensemble_scheduling"]["step"].is_array());
    }
}

#[test]
fn a_captioner_in_two_stages_gives_the_same_prompts() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository");
    let request = BuildRequest {
        clip: Some(ModelFolder::open(&models.join("demo-clip")).unwrap()),
        captioner: Some(ModelFolder::open(&models.join("demo-blip2")).unwrap()),
        vocabularies: vec![models.join("demo-vocabulary")],
        split_captioner: true,
        onnxruntime: std::env::var_os("IMPROMPT_ONNXRUNTIME").map(Into::into),
        ..BuildRequest::new(&repository)
    };
    build(&request, &Silent).unwrap();
    let split = Server::start(&[&repository], &[]);
    let croissant = std::fs::read(models.join("croissant.png")).unwrap();
    for mode in ["fast", "classic", "negative", "caption"] {
        // The prompt alone: no step may be left out for it.
        let request = with_image(croissant.clone()).text("mode", mode).output("prompt");
        let answer = split.client().infer("interrogate", &request).unwrap();
        let whole = server().client().infer("interrogate", &request).unwrap();
        assert_eq!(answer.text("prompt").unwrap(), whole.text("prompt").unwrap(), "{mode}");
    }
    let given = with_image(croissant).text("mode", "fast").text("given_caption", "a roll");
    let answer = split.client().infer("interrogate", &given).unwrap();
    assert_eq!(answer.text("caption").unwrap(), "a roll");
    assert!(split.client().infer("captioner", &good()).is_err(), "there is no such stage");
}
