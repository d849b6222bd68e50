//! Loading, unloading and ending, with requests in flight.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use imprompt_kserve::InferRequest;

use crate::support::{Server, copy_model, eventually, good, picture};

/// Loads of one model and unloads while clients ask for it.
const CYCLES: usize = 30;

/// Cycles after which memory must have settled.
const SETTLED: usize = 10;

fn explicit(repository: &Path, models: &[&str]) -> Server {
    let mut flags = vec!["--model-control-mode=explicit"];
    flags.extend(models);
    Server::start(&[repository], &flags)
}

#[test]
fn loads_and_unloads_under_traffic_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    // One stage with an engine session and one without.
    copy_model(folder.path(), "preprocess", "steady", "");
    copy_model(folder.path(), "preprocess", "coming_and_going", "");
    copy_model(folder.path(), "clip_text", "with_engine", "");
    let server = explicit(folder.path(), &["--load-model=steady"]);
    let done = AtomicBool::new(false);
    let (served, absent) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let text = InferRequest::new().text("text", "a croissant");
    thread::scope(|scope| {
        for (model, request) in
            [("coming_and_going", good()), ("with_engine", text), ("steady", good())]
        {
            let (server, done, served, absent) = (&server, &done, &served, &absent);
            scope.spawn(move || {
                let client = server.client();
                while !done.load(Ordering::Relaxed) {
                    match client.infer(model, &request).map_err(|error| error.code()) {
                        Ok(_) => served.fetch_add(1, Ordering::Relaxed),
                        // Not loaded at the moment: Triton's own answer, never for the steady one.
                        Err(Some(400 | 404 | 503)) if model != "steady" => {
                            thread::sleep(Duration::from_millis(2));
                            absent.fetch_add(1, Ordering::Relaxed)
                        }
                        other => panic!("{model}: {other:?}\n{}", server.log()),
                    };
                }
            });
        }
        let client = server.client();
        let mut settled = None;
        for cycle in 0..CYCLES {
            for model in ["coming_and_going", "with_engine"] {
                client.load(model).unwrap();
                thread::sleep(Duration::from_millis(20));
                client.unload(model).unwrap();
            }
            if cycle == SETTLED {
                settled = Some((server.memory(), server.handles()));
            }
        }
        done.store(true, Ordering::Relaxed);
        let (memory, (files, threads)) = settled.unwrap();
        let grown = server.memory().saturating_sub(memory);
        assert!(grown < 12 << 20, "{grown} bytes more after {CYCLES} cycles");
        thread::sleep(Duration::from_millis(500));
        let (files_now, threads_now) = server.handles();
        assert!(files_now <= files + 8, "{files} files became {files_now}");
        assert!(threads_now <= threads + 4, "{threads} threads became {threads_now}");
    });
    assert!(served.into_inner() > 0 && absent.into_inner() > 0);
    server.assert_serves("steady", &good());
}

#[test]
fn a_server_that_is_told_to_end_answers_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    copy_model(folder.path(), "preprocess", "slow", "");
    let server = Server::start(&[folder.path()], &[]);
    let image = picture(3_000, 2_000, [4, 50, 90]);
    let request = InferRequest::new().bytes("image", [4, 1], vec![image; 4]);
    let request = request.output("clip_pixel_values");
    // Loaded and warm: what follows is in flight when the signal comes.
    server.assert_serves("slow", &request);
    let answers: Vec<_> = thread::scope(|scope| {
        let calls: Vec<_> =
            (0..6).map(|_| scope.spawn(|| server.client().infer("slow", &request))).collect();
        let waiting = || server.metric("nv_inference_pending_request_count{model=\"slow\"");
        eventually("requests wait while others execute", || waiting() >= 3.0);
        thread::sleep(Duration::from_millis(300));
        server.terminate();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let failed = answers.iter().filter(|answer| answer.is_err()).count();
    assert_eq!(failed, 0, "of 6 requests in flight: {answers:?}\n{}", server.log());
    assert_eq!(server.wait(), 0);
}
