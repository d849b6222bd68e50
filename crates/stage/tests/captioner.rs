//! Several instances of a captioner on the demo model: they share one decoding loop, and what one
//! says depends on no other. `goldens/demo/captions.json` has what transformers says.
#![allow(missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use imprompt_error::{CancelFlag, Cancellation, Kind, Result, Uncancellable};
use imprompt_graph::caption_graphs;
use imprompt_picture::{Limits, Preprocessor, Scratch, decode};
use imprompt_stage::caption_stream::CaptionStreamFile;
use imprompt_stage::captioner::CaptionerFile;
use imprompt_stage::{
    Data, Load, Parameters, Placement, Request, Response, STAGE_FILE, Sink, StageFile, StageKind,
    StageModel, Tensor, Watch,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    max_new_tokens: i32,
    captions: Vec<Caption>,
}

#[derive(Deserialize)]
struct Caption {
    picture: String,
    prompt: Option<String>,
    caption: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn expected() -> Expected {
    let json = fs::read(root().join("goldens/demo/captions.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn picture(name: &str) -> Vec<u8> {
    fs::read(root().join("goldens/demo").join(name)).unwrap()
}

/// The demo captioner as a stage of `kind`. What it tells is kept.
struct Stage {
    _folder: tempfile::TempDir,
    model: Box<dyn StageModel>,
    watched: Arc<Watched>,
}

#[derive(Default)]
struct Watched {
    last: Mutex<Load>,
    most_in_use: AtomicUsize,
    /// Loops that were started.
    started: AtomicUsize,
}

struct Watching(Arc<Watched>);

impl Watch for Watching {
    fn load(&self, load: Load) {
        let mut last = self.0.last.lock().unwrap();
        // A loop tells first that nothing is in use, and afterwards only what changes.
        let is_first = last.slots == 0 || load == *last;
        self.0.started.fetch_add(usize::from(is_first), Ordering::Relaxed);
        *last = load;
        self.0.most_in_use.fetch_max(load.slots_in_use, Ordering::Relaxed);
    }

    fn restarted(&self) {
        panic!("the demo model panics");
    }
}

impl Watched {
    fn load(&self) -> Load {
        *self.last.lock().unwrap()
    }
}

fn open(kind: StageKind, max_waiting_captions: usize) -> Stage {
    let source = root().join("models/demo-blip2");
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(&source).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let graphs = caption_graphs(&source).unwrap();
    for (name, graph) in &graphs.files {
        fs::write(folder.path().join(name), &graph.bytes).unwrap();
    }
    let facts = graphs.facts;
    let file = match kind {
        StageKind::CaptionStream => StageFile::CaptionStream(CaptionStreamFile {
            facts,
            caption_preprocessor: "preprocessor_config.json".to_owned(),
        }),
        _ => StageFile::Captioner(CaptionerFile { facts }),
    };
    let text = serde_json::to_string(&file).unwrap();
    fs::write(folder.path().join(STAGE_FILE), text).unwrap();
    let parameters = Parameters { threads: 1, max_waiting_captions, ..Parameters::default() };
    let model = imprompt_stage::open(folder.path(), &parameters).unwrap();
    let watched = Arc::new(Watched::default());
    model.slots().unwrap().watch(Box::new(Watching(watched.clone())));
    Stage { _folder: folder, model, watched }
}

/// Pixel values of a picture of `goldens/demo`, as `preprocess` makes them.
fn pixels(name: &str) -> Vec<f32> {
    let json = fs::read(root().join("models/demo-blip2/preprocessor_config.json")).unwrap();
    let preprocessor = Preprocessor::from_json(&json).unwrap();
    let picture = decode(&picture(name), &Limits::default()).unwrap();
    let mut values = vec![0.0; preprocessor.output_len()];
    preprocessor.run(&picture, &mut Scratch::default(), &mut values).unwrap();
    values
}

/// A request of as many items as there are `pixel_values`.
fn request(
    pixel_values: &[&[f32]],
    tokens: [i32; 2],
    cancellation: &'static dyn Cancellation,
) -> Request<'static> {
    let batch = pixel_values.len();
    let side = ((pixel_values[0].len() / 3) as f64).sqrt() as usize;
    let shape = vec![batch, 3, side, side];
    let numbers = |name, value| Tensor::i32(name, vec![batch, 1], vec![value; batch]);
    let inputs = vec![
        Tensor::f32("pixel_values", shape, pixel_values.concat()),
        numbers("min_new_tokens", tokens[0]),
        numbers("max_new_tokens", tokens[1]),
    ];
    Request { batch, inputs, outputs: None, cancellation }
}

fn captions(response: Response) -> Vec<String> {
    let Data::Bytes(values) = &response[0].data else { panic!("no texts") };
    values.iter().map(|value| String::from_utf8(value.to_vec()).unwrap()).collect()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn instances_at_once_say_what_transformers_says() {
    let expected = expected();
    let stage = open(StageKind::Captioner, 64);
    let pixels: Vec<Vec<f32>> =
        expected.captions.iter().map(|caption| pixels(&caption.picture)).collect();
    let ask = |caller: usize| {
        let mut instance = stage.model.instance(Placement::Cpu).unwrap();
        let mut index = caller * 23;
        // Requests of 1 to 3 items, in another order for each caller.
        for round in 0..40 {
            let places: Vec<usize> =
                (0..1 + round % 3).map(|item| (index + item * 7) % pixels.len()).collect();
            index += 11;
            let prompt = &expected.captions[places[0]].prompt;
            let places: Vec<usize> = places
                .into_iter()
                .filter(|place| expected.captions[*place].prompt == *prompt)
                .collect();
            let values: Vec<&[f32]> = places.iter().map(|place| &pixels[*place][..]).collect();
            let mut request = request(&values, [0, expected.max_new_tokens], &Uncancellable);
            if let Some(prompt) = prompt {
                request.inputs.push(Tensor::texts("text", vec![prompt.clone(); places.len()]));
            }
            let found = captions(instance.execute(&[request]).remove(0).unwrap());
            for (place, found) in places.iter().zip(found) {
                assert_eq!(found, expected.captions[*place].caption, "caption {place}");
            }
        }
    };
    thread::scope(|scope| (0..6).for_each(|caller| drop(scope.spawn(move || ask(caller)))));
    assert_eq!(stage.watched.load(), Load { slots_in_use: 0, slots: 8, waiting: 0 });
    assert_eq!(stage.watched.started.load(Ordering::Relaxed), 1, "the captioner was opened once");
    let most = stage.watched.most_in_use.load(Ordering::Relaxed);
    assert!((4..=8).contains(&most), "at most {most} slots were in use");
}

#[test]
fn a_late_short_request_does_not_wait_for_an_early_long_one() {
    let stage = open(StageKind::Captioner, 64);
    let pixels = pixels("noto-croissant.png");
    let ended = AtomicBool::new(false);
    let (mut early, mut late) = (
        stage.model.instance(Placement::Cpu).unwrap(),
        stage.model.instance(Placement::Cpu).unwrap(),
    );
    thread::scope(|scope| {
        scope.spawn(|| {
            let request = request(&[&pixels], [100, 100], &Uncancellable);
            early.execute(&[request]).remove(0).unwrap();
            ended.store(true, Ordering::Release);
        });
        until("the early one begins", || stage.watched.load().slots_in_use == 1);
        late.execute(&[request(&[&pixels], [0, 2], &Uncancellable)]).remove(0).unwrap();
        assert!(!ended.load(Ordering::Acquire), "it waited");
    });
}

#[test]
fn a_full_queue_and_a_client_that_leaves() {
    let stage = open(StageKind::Captioner, 0);
    let pixels = pixels("noto-croissant.png");
    let flag: &'static CancelFlag = Box::leak(Box::default());
    let (mut first, mut second) = (
        stage.model.instance(Placement::Cpu).unwrap(),
        stage.model.instance(Placement::Cpu).unwrap(),
    );
    let ask = |instance: &mut Box<dyn imprompt_stage::Stage>, flag| -> Result<Response> {
        instance.execute(&[request(&[&pixels[..]; 8], [110, 110], flag)]).remove(0)
    };
    thread::scope(|scope| {
        let long = scope.spawn(|| ask(&mut first, flag));
        until("all slots are in use", || stage.watched.load().slots_in_use == 8);
        let error = ask(&mut second, &Uncancellable).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        flag.cancel();
        assert_eq!(long.join().unwrap().unwrap_err().kind(), Kind::Cancelled);
    });
    assert_eq!(stage.watched.load(), Load { slots_in_use: 0, slots: 8, waiting: 0 });
    ask(&mut second, &Uncancellable).unwrap();
}

/// The pieces of each request, and whether it has ended.
struct Pieces(Vec<(String, bool)>);

impl Sink for Pieces {
    fn send(&mut self, request: usize, response: Response) -> Result<()> {
        self.0[request].0.push_str(&captions(response)[0]);
        Ok(())
    }

    fn end(&mut self, request: usize, outcome: Result<Response>) {
        self.send(request, outcome.unwrap()).unwrap();
        assert!(!std::mem::replace(&mut self.0[request].1, true), "a second end");
    }
}

#[test]
fn streams_of_several_instances_are_the_captions() {
    let expected = expected();
    let stage = open(StageKind::CaptionStream, 64);
    assert_eq!(stage.watched.load(), Load::default(), "opened before anybody streams");
    let ask = |caller: usize| {
        let mut instance = stage.model.instance(Placement::Cpu).unwrap();
        for round in 0..8 {
            // Two requests in one batch.
            let asked: Vec<&Caption> = [caller * 31 + round * 5, caller * 17 + round * 3 + 1]
                .map(|place| &expected.captions[place % expected.captions.len()])
                .into();
            let requests: Vec<Request<'_>> = asked
                .iter()
                .map(|caption| {
                    let image = vec![picture(&caption.picture).into()];
                    let most = vec![expected.max_new_tokens];
                    let mut inputs = vec![
                        Tensor::bytes("image", vec![1, 1], image),
                        Tensor::i32("max_new_tokens", vec![1, 1], most),
                    ];
                    let prompt = caption.prompt.iter().cloned();
                    inputs.extend(prompt.map(|prompt| Tensor::texts("text", vec![prompt])));
                    Request { batch: 1, inputs, outputs: None, cancellation: &Uncancellable }
                })
                .collect();
            let mut pieces = Pieces(vec![Default::default(); requests.len()]);
            instance.stream(&requests, &mut pieces);
            for (caption, (found, ended)) in asked.iter().zip(pieces.0) {
                assert_eq!((found, ended), (caption.caption.clone(), true));
            }
        }
    };
    thread::scope(|scope| (0..5).for_each(|caller| drop(scope.spawn(move || ask(caller)))));
    assert_eq!(stage.watched.load(), Load { slots_in_use: 0, slots: 8, waiting: 0 });
    assert!(stage.watched.most_in_use.load(Ordering::Relaxed) > 2);
}
