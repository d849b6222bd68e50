//! `caption_stream`: captions piece by piece, over gRPC streams and generate_stream.

use std::thread;
use std::time::Instant;

use base64::Engine as _;
use imprompt_kserve::{Error, InferRequest, grpc};
use serde_json::{Map, Value, json};

use crate::support::{eventually, good, picture, pictures, server, with_image};

const MODEL: &str = "caption_stream";

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

/// The pieces over gRPC, up to the end of the stream.
fn over_grpc(request: &InferRequest) -> Result<Vec<String>, Error> {
    block_on(async {
        let client = grpc::Client::new(&server().grpc_address())?;
        let mut answers = client.stream(MODEL, request).await?;
        let (mut pieces, mut finals) = (Vec::new(), 0);
        while let Some(answer) = answers.next().await? {
            assert_eq!(finals, 0, "a piece after the last");
            assert_eq!(answer.response.output("caption")?.shape, [1, 1]);
            pieces.push(answer.response.text("caption")?.to_owned());
            finals += usize::from(answer.is_final);
        }
        assert_eq!(finals, 1, "one response is the last");
        Ok(pieces)
    })
}

fn over_http(inputs: Value) -> Result<Vec<String>, Error> {
    let Value::Object(inputs) = inputs else { panic!("inputs are an object") };
    let text = |event: Map<String, Value>| event["caption"].as_str().unwrap().to_owned();
    server()
        .client()
        .generate_stream(MODEL, &inputs)?
        .map(|event| Ok(text(event?.as_object().unwrap().clone())))
        .collect()
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn image() -> Vec<u8> {
    picture(64, 48, [200, 120, 40])
}

fn caption(request: &InferRequest) -> String {
    server().client().infer("caption", request).unwrap().text("caption").unwrap().to_owned()
}

#[test]
fn pieces_are_the_caption_over_both_protocols() {
    for (bytes, text) in pictures(4).into_iter().zip([None, Some("a picture of"), None, Some("a")])
    {
        let (mut request, mut inputs) =
            (with_image(bytes.clone()), json!({ "image": base64(&bytes) }));
        if let Some(text) = text {
            request = request.text("text", text);
            inputs["text"] = text.into();
        }
        let whole = caption(&request);
        let pieces = over_grpc(&request).unwrap();
        assert_eq!(pieces.concat(), whole);
        assert!(pieces.len() > whole.split_whitespace().count() / 2, "{} pieces", pieces.len());
        assert_eq!(over_http(inputs).unwrap(), pieces);
    }
}

#[test]
fn options_are_those_of_caption() {
    let request = good().i32("seed", [1, 1], [5]).f32("temperature", [1, 1], [2.5]);
    let inputs = json!({ "image": base64(&image()), "seed": 5, "temperature": 2.5 });
    assert_eq!(over_grpc(&request).unwrap().concat(), caption(&request));
    assert_eq!(over_http(inputs).unwrap().concat(), caption(&request));
    let beams = good().i32("num_beams", [1, 1], [3]);
    assert_eq!(over_grpc(&beams).unwrap().concat(), caption(&beams));
}

#[test]
fn a_bad_request_costs_its_own_stream() {
    let wrong = [
        (with_image("no picture"), "`image`"),
        (good().i32("num_beams", [1, 1], [9]), "`num_beams`: 9, allowed: 1 to 8"),
        (good().f32("top_p", [1, 1], [f32::NAN]), "`top_p`: NaN"),
        (good().bytes("text", [1, 1], [b"\xff"]), "UTF-8"),
        (InferRequest::new().bytes("image", [2, 1], [image(), image()]), "2 pictures, 1 a stream"),
    ];
    let whole = caption(&good());
    thread::scope(|scope| {
        let calls: Vec<_> = wrong
            .iter()
            .map(|(request, expected)| {
                scope.spawn(move || {
                    let error = over_grpc(request).unwrap_err().to_string();
                    assert!(error.contains(expected), "{error}");
                })
            })
            .collect();
        for _ in 0..4 {
            assert_eq!(over_grpc(&good()).unwrap().concat(), whole);
        }
        calls.into_iter().for_each(|call| call.join().unwrap());
    });
    let error = over_http(json!({ "image": base64(&image()), "top_k": -1 })).unwrap_err();
    assert!(error.to_string().contains("`top_k`: -1, allowed: 0 to"), "{error}");
    assert_eq!(over_http(json!({ "image": base64(&image()) })).unwrap().concat(), whole);
    // A model that answers several times is no model for one answer.
    assert!(server().client().infer(MODEL, &good()).unwrap_err().code().is_some());
}

#[test]
fn streams_at_the_same_time_have_each_their_own_caption() {
    let requests: Vec<InferRequest> = pictures(8).into_iter().map(with_image).collect();
    let alone: Vec<String> = requests.iter().map(caption).collect();
    let together: Vec<String> = thread::scope(|scope| {
        let call = |request| scope.spawn(move || over_grpc(request).unwrap().concat());
        let calls: Vec<_> = requests.iter().map(call).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn a_client_that_leaves_frees_its_slot() {
    let long = || good().i32("max_new_tokens", [1, 1], [40]).i32("min_new_tokens", [1, 1], [40]);
    let start = Instant::now();
    over_grpc(&long()).unwrap();
    let whole = start.elapsed();
    let cancelled = || {
        server().metric(&format!("imprompt_request_errors{{kind=\"cancelled\",model=\"{MODEL}\""))
    };
    let before = cancelled();
    // The first piece has come, the rest has not: some of many are sure to be caught.
    block_on(async {
        let client = grpc::Client::new(&server().grpc_address()).unwrap();
        for _ in 0..8 {
            let mut answers = client.stream(MODEL, &long()).await.unwrap();
            assert!(!answers.next().await.unwrap().unwrap().is_final);
        }
    });
    eventually("the cancellations are counted", || cancelled() > before);
    assert_eq!(over_grpc(&good()).unwrap().concat(), caption(&good()));
    println!("a whole stream of 40 tokens takes {whole:?}");
}

#[test]
fn streams_are_counted() {
    let count = |part: &str| {
        let statistics = server().client().statistics(MODEL).unwrap();
        statistics["inference_stats"][part]["count"].as_u64().unwrap_or(0)
    };
    let before = (count("success"), count("fail"));
    over_grpc(&good()).unwrap();
    over_grpc(&with_image("no picture")).unwrap_err();
    // Other tests stream at the same time.
    eventually("both are counted", || count("success") > before.0 && count("fail") > before.1);
    assert_eq!(server().metric("imprompt_worker_restarts"), 0.0);
}
