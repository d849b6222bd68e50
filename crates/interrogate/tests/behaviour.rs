//! What the reference does not have: typed errors, cancellation, the fixed sign, the report.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use half::f16;
use imprompt_error::{CancelFlag, Cancellation, Kind, Result, Uncancellable};
use imprompt_interrogate::{
    Config, Interrogator, LabelTable, Mode, NegativeSign, Outcome, PromptEncoder, Report, Request,
    Table, Vocabulary,
};
use support::{DIMENSION, FakeClip, golden};

fn vocabulary(tables: &[(Table, &[&str])], encoder: &mut FakeClip) -> Vocabulary {
    let mut vocabulary = Vocabulary::new(DIMENSION);
    for (table, labels) in tables {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let labels =
            LabelTable::compute(table.name(), labels, encoder, &Uncancellable, &mut |_| ());
        vocabulary.insert(*table, Arc::new(labels.unwrap())).unwrap();
    }
    vocabulary
}

fn small(encoder: &mut FakeClip) -> Vocabulary {
    vocabulary(
        &[
            (Table::Artists, &["by a", "inspired by a"]),
            (Table::Flavors, &["red", "green light", "red"]),
            (Table::Mediums, &["a drawing"]),
            (Table::Movements, &["cubism"]),
            (Table::Trendings, &["flickr"]),
            (Table::Negative, &["blurry", "red"]),
        ],
        encoder,
    )
}

fn picture(text: &str, bias: i64) -> Vec<f32> {
    FakeClip::new(bias).encode(&[text], &Uncancellable).unwrap()
}

/// An outcome but for its times.
fn answer(outcome: &Outcome) -> (&str, f32, &Report) {
    (&outcome.prompt, outcome.similarity, &outcome.report)
}

fn ask(vocabulary: Vocabulary, mode: Mode) -> Result<Outcome> {
    let request = Request { mode, caption: "a red house", ..Request::default() };
    Interrogator::new(vocabulary, Config::default())?.interrogate(
        &picture("red house", 0),
        &request,
        &mut FakeClip::new(0),
        &Uncancellable,
    )
}

#[test]
fn a_missing_table_is_named() {
    let encoder = &mut FakeClip::new(0);
    let all = [Table::Artists, Table::Flavors, Table::Mediums, Table::Movements, Table::Trendings];
    for missing in all {
        let tables: Vec<(Table, &[&str])> = all
            .iter()
            .filter(|table| **table != missing)
            .map(|table| (*table, &["x"][..]))
            .collect();
        for mode in [Mode::Best, Mode::Fast, Mode::Classic] {
            let error = ask(vocabulary(&tables, encoder), mode).unwrap_err();
            assert_eq!(error.kind(), Kind::NotFound);
            assert_eq!(
                error.message(),
                format!(
                    "mode `{}` needs the label table `{}`, which this repository lacks",
                    mode.name(),
                    missing.name()
                )
            );
        }
        assert_eq!(ask(vocabulary(&tables, encoder), Mode::Caption).unwrap().prompt, "a red house");
    }
    let error = ask(vocabulary(&[(Table::Flavors, &["x"])], encoder), Mode::Negative).unwrap_err();
    assert!(error.message().contains("`negative`, which this repository lacks"));
}

#[test]
fn an_empty_table_is_named() {
    let encoder = &mut FakeClip::new(0);
    let empty: Vec<(Table, &[&str])> = Table::ALL.iter().map(|table| (*table, &[][..])).collect();
    let message = |mode| ask(vocabulary(&empty, &mut FakeClip::new(0)), mode).unwrap_err();
    assert_eq!(
        message(Mode::Classic).message(),
        "mode `classic` needs a label in the table `mediums`, which has none"
    );
    assert!(message(Mode::Fast).message().contains("every label table is empty"));
    assert!(message(Mode::Negative).message().contains("`flavors` and `negative` are empty"));
    let mut one = empty;
    one[Table::Negative as usize].1 = &["blurry"];
    assert_eq!(ask(vocabulary(&one, encoder), Mode::Negative).unwrap().prompt, "blurry");
}

#[test]
fn wrong_embeddings_are_refused() {
    let encoder = &mut FakeClip::new(0);
    let interrogator = Interrogator::new(small(encoder), Config::default()).unwrap();
    let mut ask = |image: &[f32]| {
        interrogator.interrogate(image, &Request::default(), encoder, &Uncancellable).unwrap_err()
    };
    assert_eq!(ask(&[0.0; 3]).message(), "`image_embeds`: 3 values, the label tables have 64");
    assert!(ask(&[f32::NAN; DIMENSION]).message().contains("not finite"));
    let narrow = LabelTable::new("flavors", vec!["x".into()], 2, vec![f16::ZERO; 2]).unwrap();
    let error = Vocabulary::new(3).insert(Table::Flavors, Arc::new(narrow)).unwrap_err();
    assert_eq!(error.kind(), Kind::BadModel);
    let zero = Config { chunk_size: 0, ..Config::default() };
    assert!(Interrogator::new(Vocabulary::new(3), zero).is_err());
}

/// Cancelled once it was asked so many times.
struct Counted(AtomicUsize);

impl Cancellation for Counted {
    fn is_cancelled(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) == 0
    }
}

#[test]
fn cancelling_stops_the_chain_between_steps() {
    let encoder = &mut FakeClip::new(0);
    let interrogator = Interrogator::new(small(encoder), Config::default()).unwrap();
    let request = Request { caption: "a house", ..Request::default() };
    let image = picture("red green light", 0);
    let mut whole = FakeClip::new(0);
    interrogator.interrogate(&image, &request, &mut whole, &Uncancellable).unwrap();
    let mut stopped = FakeClip::new(0);
    let cancel = Counted(5.into());
    let error = interrogator.interrogate(&image, &request, &mut stopped, &cancel).unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled);
    assert!(stopped.calls > 0 && stopped.calls < whole.calls);
    let flag = CancelFlag::default();
    flag.cancel();
    let mut none = FakeClip::new(0);
    assert!(interrogator.interrogate(&image, &request, &mut none, &flag).is_err());
    assert_eq!(none.calls, 0);
}

/// Takes a while for each step of the chain, as a large model does.
struct Slow {
    inner: FakeClip,
    steps: usize,
}

impl PromptEncoder for Slow {
    fn dimension(&self) -> usize {
        self.inner.dimension()
    }

    fn token_count(&self, text: &str) -> usize {
        self.inner.token_count(text)
    }

    fn encode(&mut self, texts: &[&str], cancel: &dyn Cancellation) -> Result<Vec<f32>> {
        self.inner.encode(texts, cancel)
    }

    fn continuation_similarities(
        &mut self,
        image: &[f32],
        prompt: &str,
        phrases: &[&str],
        cancel: &dyn Cancellation,
    ) -> Result<Vec<f32>> {
        self.steps += 1;
        if self.steps > 1 {
            std::thread::sleep(Duration::from_millis(60));
        }
        cancel.check()?;
        self.inner.continuation_similarities(image, prompt, phrases, cancel)
    }
}

#[test]
fn a_budget_ends_the_chain_with_what_it_has() {
    let image = picture("red green light", 0);
    for mode in [Mode::Best, Mode::Negative] {
        let interrogator =
            Interrogator::new(small(&mut FakeClip::new(0)), Config::default()).unwrap();
        let ask = |budget_ms| {
            let request = Request { mode, caption: "a house", budget_ms, ..Request::default() };
            let mut encoder = Slow { inner: FakeClip::new(0), steps: 0 };
            let outcome = interrogator.interrogate(&image, &request, &mut encoder, &Uncancellable);
            (outcome, encoder.steps)
        };
        let (cut, steps) = ask(Some(50));
        let cut = cut.unwrap();
        assert_eq!((steps, cut.report.complete), (2, false), "one step in time, the next not");
        assert!(!cut.prompt.is_empty());
        let (whole, steps) = ask(Some(60_000));
        let whole = whole.unwrap();
        assert!(steps >= 2 && whole.report.complete);
        assert_eq!(answer(&whole), answer(&ask(None).0.unwrap()));
        if mode == Mode::Best {
            assert!(whole.similarity >= cut.similarity);
        }
        for budget in [0, -1, 3_600_001] {
            let error = ask(Some(budget)).0.unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidInput);
            assert!(error.message().contains("`budget_ms`"), "{error}");
        }
    }
}

/// An encoder that is slow and sure, with a screen that is neither: the stand-in's cosines with
/// noise upon them.
struct Screened {
    inner: FakeClip,
    screen: Option<Noisy>,
    /// Texts that the encoder itself was given.
    texts: usize,
}

struct Noisy {
    inner: FakeClip,
    noise: f32,
    shift: f32,
    /// What was asked of it.
    calls: usize,
    cancel: Option<CancelFlag>,
    waits: Duration,
}

impl Noisy {
    fn new(noise: f32) -> Self {
        let inner = FakeClip::new(0);
        Noisy { inner, noise, shift: 0.1, calls: 0, cancel: None, waits: Duration::ZERO }
    }
}

impl PromptEncoder for Noisy {
    fn dimension(&self) -> usize {
        self.inner.dimension()
    }

    fn token_count(&self, text: &str) -> usize {
        self.inner.token_count(text)
    }

    fn encode(&mut self, texts: &[&str], cancel: &dyn Cancellation) -> Result<Vec<f32>> {
        self.inner.encode(texts, cancel)
    }

    fn similarities(
        &mut self,
        image: &[f32],
        texts: &[&str],
        cancel: &dyn Cancellation,
    ) -> Result<Vec<f32>> {
        let exact = self.inner.similarities(image, texts, cancel)?;
        self.calls += 1;
        std::thread::sleep(self.waits);
        if let (Some(flag), 2) = (&self.cancel, self.calls) {
            flag.cancel();
        }
        let noise = |text: &str| {
            let key = text.bytes().fold(7, |key, byte| support::mix(key ^ u64::from(byte)));
            (key >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        };
        let noisy = exact.iter().zip(texts);
        Ok(noisy.map(|(value, text)| value + self.shift + self.noise * noise(text)).collect())
    }
}

impl PromptEncoder for Screened {
    fn dimension(&self) -> usize {
        self.inner.dimension()
    }

    fn token_count(&self, text: &str) -> usize {
        self.inner.token_count(text)
    }

    fn encode(&mut self, texts: &[&str], cancel: &dyn Cancellation) -> Result<Vec<f32>> {
        self.texts += texts.len();
        self.inner.encode(texts, cancel)
    }

    fn screen(&mut self) -> Option<&mut dyn PromptEncoder> {
        self.screen.as_mut().map(|screen| screen as &mut dyn PromptEncoder)
    }
}

/// Tables of so many flavors that a screen pays.
fn large() -> Vocabulary {
    let flavors: Vec<String> =
        (0..900).map(|i| format!("{} {}", ["red", "old", "soft"][i % 3], i * 37 % 1009)).collect();
    let flavors: Vec<&str> = flavors.iter().map(String::as_str).collect();
    let encoder = &mut FakeClip::new(0);
    vocabulary(
        &[
            (Table::Artists, &["by a", "inspired by a"]),
            (Table::Flavors, &flavors),
            (Table::Mediums, &["a drawing"]),
            (Table::Movements, &["cubism"]),
            (Table::Trendings, &["flickr"]),
            (Table::Negative, &["blurry", "red"]),
        ],
        encoder,
    )
}

#[test]
fn what_a_screen_sorts_out_is_never_the_answer() {
    let image = picture("a soft old house 37, red 74, old 111", 0);
    let interrogator = Interrogator::new(large(), Config::default()).unwrap();
    let mut others = 0;
    for (mode, caption) in [(Mode::Best, "a house"), (Mode::Best, ""), (Mode::Negative, "")] {
        let request = Request { mode, caption, ..Request::default() };
        let ask = |screen: Option<f32>| {
            let screen = screen.map(Noisy::new);
            let mut encoder = Screened { inner: FakeClip::new(0), screen, texts: 0 };
            let outcome = interrogator.interrogate(&image, &request, &mut encoder, &Uncancellable);
            (outcome.unwrap(), encoder.texts, encoder.screen.map_or(0, |screen| screen.calls))
        };
        let (exact, all, _) = ask(None);
        for noise in [0.0, 0.01] {
            let (screened, texts, calls) = ask(Some(noise));
            // The similarities too: none of the report's is the screen's.
            assert_eq!(answer(&screened), answer(&exact), "{mode:?} with noise {noise}");
            assert!(calls > 1 && texts < all / 2, "{mode:?}: {texts} of {all} texts were encoded");
        }
        // The noise matters: the screen alone finds other prompts.
        let noisy = &mut Noisy::new(0.01);
        let alone = interrogator.interrogate(&image, &request, noisy, &Uncancellable).unwrap();
        others += usize::from(alone.prompt != exact.prompt);
    }
    assert!(others > 0);
}

#[test]
fn a_screened_step_is_cancelled_and_ends_with_its_budget() {
    let image = picture("red green light", 0);
    let interrogator = Interrogator::new(large(), Config::default()).unwrap();
    let flag = CancelFlag::default();
    let screen = Noisy { cancel: Some(flag.clone()), ..Noisy::new(0.0) };
    let mut encoder = Screened { inner: FakeClip::new(0), screen: Some(screen), texts: 0 };
    let request = Request { caption: "a house", ..Request::default() };
    let error = interrogator.interrogate(&image, &request, &mut encoder, &flag).unwrap_err();
    let calls = encoder.screen.unwrap().calls;
    assert_eq!((error.kind(), calls), (Kind::Cancelled, 2), "nothing comes after the screen");

    let screen = Noisy { waits: Duration::from_millis(80), ..Noisy::new(0.0) };
    let mut encoder = Screened { inner: FakeClip::new(0), screen: Some(screen), texts: 0 };
    let request = Request { budget_ms: Some(70), ..request };
    let cut = interrogator.interrogate(&image, &request, &mut encoder, &Uncancellable).unwrap();
    assert!(!cut.report.complete && encoder.screen.unwrap().calls == 1, "{cut:?}");
}

#[test]
fn the_fixed_sign_lets_a_negative_prompt_grow() {
    let encoder = &mut FakeClip::new(1);
    let vocabulary = small(encoder);
    let image = picture("red house", 1);
    let mut ask = |negative_sign| {
        let config = Config { negative_sign, ..Config::default() };
        let request = Request { mode: Mode::Negative, ..Request::default() };
        let interrogator = Interrogator::new(vocabulary.clone(), config).unwrap();
        interrogator.interrogate(&image, &request, encoder, &Uncancellable).unwrap()
    };
    let reference = ask(NegativeSign::Reference);
    let fixed = ask(NegativeSign::Fixed);
    assert!(reference.similarity > 0.0);
    assert_eq!(reference.report.accepted_terms.len(), 1);
    assert!(fixed.prompt.starts_with(&reference.prompt));
    assert!(fixed.similarity <= reference.similarity);
    // The lowest of the cosines on the way, if any fell below the first.
    assert_eq!(fixed.similarity < reference.similarity, fixed.prompt != reference.prompt);
}

#[test]
fn the_report_says_how_the_prompt_came_about() {
    let encoder = &mut FakeClip::new(0);
    let outcome = ask(small(encoder), Mode::Best).unwrap();
    let report: serde_json::Value = serde_json::to_value(&outcome.report).unwrap();
    assert_eq!(report["mode"], "best");
    let sources: Vec<_> =
        report["candidates"].as_array().unwrap().iter().map(|c| c["source"].clone()).collect();
    assert_eq!(sources, ["caption", "classic", "fast", "chain"]);
    assert_eq!(report["token_count"], encoder.token_count(&outcome.prompt));
    assert_eq!(report["truncated"], false);
    let fast = ask(small(encoder), Mode::Fast).unwrap();
    let tables: Vec<_> = fast.report.accepted_terms.iter().map(|term| term.table).collect();
    assert_eq!(tables.len(), 8, "a label that occurs twice is ranked twice");
    assert_eq!(tables.iter().filter(|table| **table == "flavors").count(), 3);

    let caption = "word ".repeat(90);
    let request = Request { mode: Mode::Fast, caption: &caption, ..Request::default() };
    let interrogator = Interrogator::new(small(encoder), Config::default()).unwrap();
    let image = picture("red", 0);
    let long = interrogator.interrogate(&image, &request, encoder, &Uncancellable).unwrap();
    assert_eq!((long.prompt.as_str(), long.report.token_count), (caption.as_str(), 90));
    assert!(long.report.truncated && long.report.accepted_terms.is_empty());
}

#[test]
fn a_folder_opens_with_the_tables_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let encoder = &mut FakeClip::new(0);
    for table in [Table::Flavors, Table::Mediums] {
        let file = format!("{}.txt", table.name());
        std::fs::copy(golden("vocabulary-small").join(&file), directory.path().join(&file))
            .unwrap();
    }
    let labels = Table::Flavors.labels(directory.path()).unwrap().unwrap();
    let table = LabelTable::compute("flavors", labels, encoder, &Uncancellable, &mut |_| ());
    let path = directory.path().join("flavors.safetensors");
    table.unwrap().save(&path).unwrap();
    let open = || {
        Vocabulary::open(directory.path(), DIMENSION, &|path| {
            Ok(Arc::new(std::fs::read(path).unwrap()))
        })
    };
    let vocabulary = open().unwrap();
    assert_eq!(vocabulary.get(Table::Flavors).unwrap().len(), 300);
    for missing in [Table::Mediums, Table::Artists, Table::Trendings] {
        assert!(vocabulary.get(missing).is_none());
    }
    std::fs::write(directory.path().join("flavors.txt"), "other\n").unwrap();
    let error = open().unwrap_err();
    assert_eq!(error.kind(), Kind::BadModel);
    assert!(error.message().contains("flavors.safetensors"));
}
