//! Triton's statistics and our counters against the client's own ledger.

use imprompt_kserve::InferRequest;

use crate::support::{eventually, pictures, server, with_image};

#[test]
fn statistics_are_the_clients_ledger() {
    let client = server().client();
    let images = pictures(3);
    let batch = InferRequest::new().bytes("image", [3, 1], images.clone());
    for _ in 0..5 {
        client.infer("ledger", &with_image(images[0].clone())).unwrap();
    }
    for _ in 0..2 {
        client.infer("ledger", &batch).unwrap();
    }
    for _ in 0..3 {
        client.infer("ledger", &with_image("ZOOM is no picture!")).unwrap_err();
    }
    let statistics = || client.statistics("ledger").unwrap();
    eventually("every execution is counted", || statistics()["execution_count"] == 10);
    let statistics = statistics();
    // 5 of one item and 2 of three.
    assert_eq!(statistics["inference_count"], 11);
    let stats = &statistics["inference_stats"];
    assert_eq!(stats["success"]["count"], 7);
    assert_eq!(stats["fail"]["count"], 3);
    for part in ["queue", "compute_input", "compute_infer", "compute_output"] {
        assert_eq!(stats[part]["count"], 7, "{part}");
        assert!(stats[part]["ns"].as_u64().unwrap() > 0, "{part}");
    }
    // The times are on Triton's clock: they add up to less than the whole.
    let ns = |part: &str| stats[part]["ns"].as_u64().unwrap();
    let parts = ns("queue") + ns("compute_input") + ns("compute_infer") + ns("compute_output");
    assert!(parts <= ns("success"), "{parts} of {}", ns("success"));
    // Requests one after another do not wait for the batcher.
    assert!(ns("queue") < 7 * 50_000_000, "{statistics}");
    let batches = statistics["batch_stats"].as_array().unwrap();
    let sizes: Vec<_> = batches
        .iter()
        .map(|batch| (batch["batch_size"].as_u64(), batch["compute_infer"]["count"].as_u64()))
        .collect();
    assert!(sizes.contains(&(Some(3), Some(2))), "{sizes:?}");
    assert!(sizes.contains(&(Some(1), Some(8))), "{sizes:?}");
}

#[test]
fn errors_are_counted_by_their_kind() {
    let metric = |model: &str, kind: &str| {
        server().metric(&format!("imprompt_request_errors{{kind=\"{kind}\",model=\"{model}\""))
    };
    let before = metric("completed", "invalid_input");
    server().client().infer("completed", &with_image("")).unwrap_err();
    eventually("the error is counted", || metric("completed", "invalid_input") == before + 1.0);
    assert_eq!(metric("completed", "internal"), 0.0);
    assert_eq!(server().metric("imprompt_worker_restarts"), 0.0);
}
