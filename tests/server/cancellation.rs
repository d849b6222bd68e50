//! Work that nobody waits for ends: cancelled by a gRPC client, or by the deadline.

use std::time::Instant;

use imprompt_kserve::{InferRequest, grpc};

use crate::support::{eventually, good, picture, server};

/// Eight pictures that take a while to decode and resize.
fn slow() -> InferRequest {
    let image = picture(4_000, 3_000, [33, 66, 99]);
    InferRequest::new().bytes("image", [8, 1], vec![image; 8])
}

#[test]
fn a_cancelled_request_stops_working() {
    let slow = slow();
    let start = Instant::now();
    server().assert_serves("cancelled", &slow);
    let whole = start.elapsed();
    let cancelled =
        || server().metric("imprompt_request_errors{kind=\"cancelled\",model=\"cancelled\"");
    assert_eq!(cancelled(), 0.0);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let start = Instant::now();
    let left = runtime.block_on(async {
        let client = grpc::Client::new(&server().grpc_address()).unwrap();
        tokio::time::timeout(whole / 5, client.infer("cancelled", &slow)).await
    });
    assert!(left.is_err(), "the client left before the answer");
    // The one instance is free long before it would have been done.
    server().assert_serves("cancelled", &good());
    let free = start.elapsed();
    assert!(free < whole * 3 / 5, "free after {free:?}, the whole takes {whole:?}");
    eventually("the cancellation is counted", || cancelled() == 1.0);
}

#[test]
fn a_request_past_its_deadline_is_given_up() {
    let pixels = good().output("caption_pixel_values");
    let mut pixels = server().client().infer("preprocess", &pixels).unwrap().outputs.remove(0);
    pixels.name = "pixel_values".to_owned();
    let request = InferRequest { inputs: vec![pixels], ..InferRequest::new() };
    server().assert_serves("captioner", &request);
    let error = server().client().infer("impatient", &request).unwrap_err();
    assert_eq!(error.code(), Some(503), "{error}");
    assert!(error.to_string().contains("1 ms"), "{error}");
}
