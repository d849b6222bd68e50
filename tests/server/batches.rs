//! Dynamic batching: requests of several clients in one execution.

use std::thread;

use imprompt_kserve::{Error, InferRequest, InferResponse};

use crate::support::{pictures, server, with_image};

/// Sends all requests at once; the answers in the order of the requests.
fn at_once(model: &str, requests: &[InferRequest]) -> Vec<Result<InferResponse, Error>> {
    let client = server().client();
    thread::scope(|scope| {
        let calls: Vec<_> = requests
            .iter()
            .map(|request| {
                let client = client.clone();
                scope.spawn(move || client.infer(model, request))
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    })
}

fn count(model: &str, key: &str) -> u64 {
    let statistics = server().client().statistics(model).unwrap();
    statistics[key].as_u64().unwrap_or(0)
}

#[test]
fn one_bad_request_of_eight_fails_alone() {
    let images = pictures(8);
    let good: Vec<_> = images.iter().map(|image| with_image(image.clone())).collect();
    let alone: Vec<_> = good
        .iter()
        .map(|request| server().client().infer("preprocess", request).unwrap())
        .collect();
    let mut requests = good;
    requests[3] = with_image(&images[3][..40]);
    let executions = count("batcher", "execution_count");
    let answers = at_once("batcher", &requests);
    for (item, (answer, alone)) in answers.iter().zip(&alone).enumerate() {
        match answer {
            Ok(answer) if item != 3 => assert_eq!(answer.outputs, alone.outputs),
            Err(Error::Status { code: 400, .. }) if item == 3 => {}
            other => panic!("request {item}: {other:?}"),
        }
    }
    // The eight did share executions.
    let executions = count("batcher", "execution_count") - executions;
    assert!((1..=2).contains(&executions), "{executions} executions");
    let statistics = server().client().statistics("batcher").unwrap();
    assert_eq!(statistics["inference_stats"]["fail"]["count"], 1);
    assert_eq!(statistics["inference_stats"]["success"]["count"], 7);
    assert_eq!(statistics["inference_count"], 7);
}

#[test]
fn clients_with_their_own_labels_do_not_disturb_each_other() {
    let words = ["cat", "dog", "tree", "house", "car", "boat", "bread", "moon"];
    let requests: Vec<_> = pictures(8)
        .into_iter()
        .enumerate()
        .map(|(item, image)| {
            let labels: Vec<_> = words[..=item].iter().map(|word| (*word).to_owned()).collect();
            let request = with_image(image).bytes("labels", [1, item as i64 + 1], labels);
            // Some ask for the best only, some in a template.
            let request = if item % 3 == 0 { request.i32("top_k", [1, 1], [1]) } else { request };
            if item % 2 == 0 { request.text("template", "a photo of a {}") } else { request }
        })
        .collect();
    let alone: Vec<_> = requests
        .iter()
        .map(|request| server().client().infer("zero_shot", request).unwrap())
        .collect();
    for (answer, alone) in at_once("zero_shot", &requests).into_iter().zip(alone) {
        let answer = answer.unwrap();
        assert_eq!(answer.texts("label").unwrap(), alone.texts("label").unwrap());
        for name in ["probability", "similarity"] {
            let pairs = answer.f32(name).unwrap().iter().zip(alone.f32(name).unwrap());
            for (one, other) in pairs {
                assert!((one - other).abs() < 1e-5, "{name}: {one} {other}");
            }
        }
    }
}

#[test]
fn clients_of_every_mode_at_once_get_their_own_prompts() {
    let modes = ["best", "fast", "classic", "negative", "caption", "fast", "best", "classic"];
    let requests: Vec<_> = pictures(8)
        .into_iter()
        .zip(modes)
        .map(|(image, mode)| with_image(image).text("mode", mode).output("prompt"))
        .collect();
    let alone: Vec<_> = requests
        .iter()
        .map(|request| server().client().infer("interrogate", request).unwrap())
        .collect();
    for (answer, alone) in at_once("interrogate", &requests).into_iter().zip(alone) {
        assert_eq!(answer.unwrap().outputs, alone.outputs);
    }
}
