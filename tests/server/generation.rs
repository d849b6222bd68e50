//! How captions are generated: the optional inputs of `caption` and `interrogate`.

use std::collections::BTreeSet;
use std::thread;

use imprompt_kserve::{InferRequest, Values, grpc};

use crate::support::{good, server};

fn real(request: InferRequest, name: &str, value: f32) -> InferRequest {
    request.f32(name, [1, 1], [value])
}

fn whole(request: InferRequest, name: &str, value: i32) -> InferRequest {
    request.i32(name, [1, 1], [value])
}

fn caption(request: &InferRequest) -> String {
    server().client().infer("caption", request).unwrap().text("caption").unwrap().to_owned()
}

#[test]
fn every_option_reaches_the_captioner_over_both_protocols() {
    let request = [("max_new_tokens", 12), ("min_new_tokens", 6), ("num_beams", 4)]
        .into_iter()
        .fold(good(), |request, (name, value)| whole(request, name, value));
    let request = whole(request, "no_repeat_ngram_size", 1);
    let request = real(real(request, "repetition_penalty", 3.0), "length_penalty", -2.0);
    let http = caption(&request);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let grpc = runtime.block_on(async {
        let client = grpc::Client::new(&server().grpc_address()).unwrap();
        client.infer("caption", &request).await.unwrap()
    });
    assert_eq!(grpc.text("caption").unwrap(), http);
    assert_ne!(http, caption(&good()), "the options changed nothing");
    // Twice the same word is one repetition too many.
    let mut words: Vec<&str> = http.split_whitespace().collect();
    let count = words.len();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), count, "{count} words");
    let request = request.text("mode", "caption");
    let prompt = server().client().infer("interrogate", &request).unwrap();
    assert_eq!(prompt.text("caption").unwrap(), http);
}

#[test]
fn a_seed_draws_the_same_caption_whoever_asks_at_the_same_time() {
    let drawn = |seed| {
        let request = real(whole(good(), "seed", seed), "temperature", 3.0);
        whole(request, "top_k", 0)
    };
    let alone: Vec<String> = (0..12).map(|seed| caption(&drawn(seed))).collect();
    let together: Vec<String> = thread::scope(|scope| {
        let calls: Vec<_> =
            (0..12).map(|seed| scope.spawn(move || caption(&drawn(seed)))).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
    let different: BTreeSet<&String> = alone.iter().collect();
    assert!(different.len() > 6, "{} captions of 12", different.len());
    assert_eq!(caption(&real(good(), "temperature", 0.0)), caption(&good()));
    assert_eq!(caption(&whole(good(), "top_k", 1)), caption(&good()));
}

#[test]
fn items_of_one_batch_have_options_of_their_own() {
    let image = Values::Bytes(vec![crate::support::picture(64, 48, [200, 120, 40]); 3]);
    let request = InferRequest::new()
        .tensor("image", [3, 1], image)
        .i32("num_beams", [3, 1], [1, 3, 8])
        .i32("max_new_tokens", [3, 1], [2, 9, 9]);
    let answer = server().client().infer("caption", &request).unwrap();
    for (text, (beams, length)) in
        answer.texts("caption").unwrap().into_iter().zip([(1, 2), (3, 9), (8, 9)])
    {
        let request = whole(whole(good(), "num_beams", beams), "max_new_tokens", length);
        assert_eq!(text, caption(&request));
    }
}

#[test]
fn what_is_out_of_range_is_named() {
    let client = server().client();
    let refused = |request: InferRequest, name: &str, allowed: &str| {
        for model in ["caption", "interrogate"] {
            let error = client.infer(model, &request).unwrap_err();
            assert_eq!(error.code(), Some(400), "{error}");
            let text = error.to_string();
            assert!(
                text.contains(&format!("input `{name}`: ")) && text.contains(allowed),
                "{text}"
            );
        }
    };
    for (name, value, allowed) in [
        ("num_beams", 9, "1 to 8"),
        ("num_beams", 0, "1 to 8"),
        ("min_new_tokens", 33, "0 to 32"),
        ("top_k", -1, "0 to 2147483647"),
        ("seed", i32::MIN, "0 to 2147483647"),
        ("no_repeat_ngram_size", 257, "0 to 256"),
    ] {
        refused(whole(good(), name, value), name, allowed);
    }
    for (name, value, allowed) in [
        ("temperature", f32::NAN, "0.01 to 100"),
        ("temperature", -0.5, "0.01 to 100"),
        ("top_p", 0.0, "above 0, at most 1"),
        ("top_p", f32::INFINITY, "above 0, at most 1"),
        ("repetition_penalty", 0.0, "0.01 to 100"),
        ("length_penalty", f32::NEG_INFINITY, "-10 to 10"),
    ] {
        refused(real(good(), name, value), name, allowed);
    }
    refused(whole(whole(good(), "num_beams", 2), "seed", 1), "num_beams", "allowed: 1 with");
    server().assert_serves("caption", &good());
}
