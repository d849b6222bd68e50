//! Requests that meet at a model which instances share: captions in one decoding loop, which they join and
//! leave step by step, and prompts that take turns at one text tower.

use std::iter::repeat;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use imprompt_kserve::{InferRequest, Values};

use crate::support::{eventually, good, pictures, server, with_image};

/// Slots of a captioner's cache.
const SLOTS: usize = 8;

#[test]
fn callers_at_once_get_the_captions_that_each_gets_alone() {
    let texts = [None, Some("a picture of"), None, Some("a")];
    let requests: Vec<InferRequest> = pictures(8)
        .into_iter()
        .enumerate()
        .flat_map(|(index, image)| {
            let request = match texts[index % texts.len()] {
                Some(text) => with_image(image).text("text", text),
                None => with_image(image),
            };
            let long = 10 + 5 * index as i32;
            let longer = request.clone().i32("min_new_tokens", [1, 1], [long]);
            let beams = request.clone().i32("num_beams", [1, 1], [1 + index as i32 % 4]);
            [request, longer.i32("max_new_tokens", [1, 1], [long]), beams]
        })
        .collect();
    let caption = |request: &InferRequest| {
        server().client().infer("caption", request).unwrap().text("caption").unwrap().to_owned()
    };
    let alone: Vec<String> = requests.iter().map(caption).collect();
    let together: Vec<String> = thread::scope(|scope| {
        let caption = &caption;
        let calls: Vec<_> =
            requests.iter().map(|request| scope.spawn(move || caption(request))).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
}

/// A request to `joined` for as many captions of exactly `tokens` tokens.
fn captions(count: usize, tokens: i32) -> InferRequest {
    let pixels = good().output("caption_pixel_values");
    let mut pixels = server().client().infer("preprocess", &pixels).unwrap().outputs.remove(0);
    pixels.name = "pixel_values".to_owned();
    pixels.shape[0] = count as i64;
    let Values::F32(values) = &mut pixels.values else { panic!("no floats") };
    *values = values.repeat(count);
    let shape = [count as i64, 1];
    InferRequest { inputs: vec![pixels], ..InferRequest::new() }
        .i32("min_new_tokens", shape, vec![tokens; count])
        .i32("max_new_tokens", shape, vec![tokens; count])
}

fn gauge(name: &str) -> f64 {
    server().metric(&format!("{name}{{model=\"joined\""))
}

/// Runs `run` while a client asks `model` for one of `requests` after the other; it is told of how many
/// answers came. A refusal is one, too: the others may take the room.
fn while_asked(
    model: &str,
    requests: impl Iterator<Item = InferRequest> + Send,
    run: impl FnOnce(&AtomicUsize),
) {
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let (is_done, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let _done = Done(&is_done);
        scope.spawn(|| {
            for request in requests.take_while(|_| !is_done.load(Ordering::Acquire)) {
                let _ = server().client().infer(model, &request);
                answers.fetch_add(1, Ordering::AcqRel);
            }
        });
        run(&answers);
    });
}

#[test]
fn a_late_request_joins_and_what_finds_no_room_is_refused() {
    let client = server().client();
    // The three instances share slots, and no batches are made of their requests.
    let config = client.model_config("joined").unwrap();
    assert!(config["dynamic_batching"].is_null(), "{config}");
    assert_eq!(gauge("imprompt_caption_slots"), SLOTS as f64);
    let short = captions(1, 2);
    while_asked("joined", repeat(captions(SLOTS - 1, 110)), |answers| {
        eventually("a short request is done before an earlier long one", || {
            let before = answers.load(Ordering::Acquire);
            let met = gauge("imprompt_caption_slots_in_use") > 0.0;
            client.infer("joined", &short).unwrap();
            met && answers.load(Ordering::Acquire) == before
        });
    });
    while_asked("joined", repeat(captions(SLOTS, 110)), |_| {
        eventually("a short request finds no room", || {
            let code = client.infer("joined", &short).map_err(|error| error.code());
            assert!(matches!(code, Ok(_) | Err(Some(503))), "{code:?}");
            code.is_err()
        });
    });
    let unavailable = "imprompt_request_errors{kind=\"unavailable\",model=\"joined\"";
    eventually("it is counted", || server().metric(unavailable) >= 1.0);
    assert_eq!(gauge("imprompt_caption_slots_in_use"), 0.0);
    assert_eq!(gauge("imprompt_captions_waiting"), 0.0);
    assert_eq!(server().metric("imprompt_worker_restarts"), 0.0);
}

#[test]
fn a_quick_prompt_does_not_wait_for_a_long_chain() {
    let client = server().client();
    let config = client.model_config("ranker").unwrap();
    assert!(config["dynamic_batching"].is_null(), "{config}");
    assert_eq!(config["instance_group"][0]["count"], 8);
    let [one, other] = pictures(2).try_into().unwrap();
    let ask = |image, mode: &str| with_image(image).text("mode", mode).output("prompt");
    let (chain, quick) = (ask(one, "best").i32("min_flavors", [1, 1], [32]), ask(other, "fast"));
    let prompt = |request| client.infer("interrogate", request).unwrap().outputs;
    let (long, short) = (prompt(&chain), prompt(&quick));
    // One chain after the other, and all the while the same answers.
    while_asked("interrogate", repeat(chain.clone()), |answers| {
        eventually("ten quick prompts are made while one chain goes on", || {
            let before = answers.load(Ordering::Acquire);
            (0..10).for_each(|_| assert_eq!(prompt(&quick), short));
            answers.load(Ordering::Acquire) == before
        });
        assert_eq!(prompt(&chain), long);
    });
}

#[test]
fn a_few_labels_do_not_wait_for_a_thousand() {
    let client = server().client();
    let few = || {
        let labels = ["a red square", "a green leaf", "the sea at night"];
        let request = good().bytes("labels", [1, 3], labels);
        client.infer("zero_shot", &request).unwrap().f32("probability").unwrap().to_owned()
    };
    let alone = few();
    // Each time others: their embeddings are not known from before.
    let thousand = (0..).map(|time| {
        let labels: Vec<String> = (0..1000).map(|label| format!("{time} of {label}")).collect();
        good().bytes("labels", [1, 1000], labels)
    });
    while_asked("zero_shot", thousand, |answers| {
        eventually("a few labels five times while a thousand are embedded", || {
            let before = answers.load(Ordering::Acquire);
            (0..5).for_each(|_| assert_eq!(few(), alone));
            answers.load(Ordering::Acquire) == before
        });
    });
}
