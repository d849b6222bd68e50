//! Tables that are compared and ranked elsewhere give the same answers.

mod support;

use std::ops::Range;
use std::sync::Arc;

use half::f16;
use imprompt_error::{Cancellation, Error, Kind, Result, Uncancellable};
use imprompt_interrogate::rank::Stages;
use imprompt_interrogate::{
    Config, Interrogator, LabelEmbeds, LabelTable, Mode, PromptEncoder, Request, Scoring, Table,
    TableRanker, Vocabulary, is_exact, zero_shot, zero_shot_by,
};
use support::{DIMENSION, FakeClip, golden};

/// Has the cosines to itself, as a GPU does.
#[derive(Default)]
struct There {
    cosines: Vec<f32>,
    compared: usize,
    ranked: usize,
}

impl TableRanker for There {
    fn compare(&mut self, tables: &[&LabelTable], images: &[f32]) -> Result<()> {
        let rows: Vec<&[f16]> = tables.iter().map(|table| table.rows()).collect();
        self.cosines = imprompt_similarity::similarities(&rows, images, DIMENSION, 1).concat();
        self.compared += 1;
        Ok(())
    }

    fn similarities(&mut self) -> Result<Vec<f32>> {
        Ok(self.cosines.clone())
    }

    fn best(
        &mut self,
        range: Range<usize>,
        stages: Stages,
        reverse: bool,
    ) -> Result<Vec<(usize, f32)>> {
        self.ranked += 1;
        Ok(stages.begin(&self.cosines[range], reverse))
    }
}

/// Whose texts' embeddings leave no table's cosines behind, as on a GPU.
struct Elsewhere {
    clip: FakeClip,
    there: There,
}

impl PromptEncoder for Elsewhere {
    fn dimension(&self) -> usize {
        self.clip.dimension()
    }

    fn token_count(&self, text: &str) -> usize {
        self.clip.token_count(text)
    }

    fn encode(&mut self, texts: &[&str], cancel: &dyn Cancellation) -> Result<Vec<f32>> {
        self.there.cosines.clear();
        self.clip.encode(texts, cancel)
    }

    fn table_ranker(&mut self) -> Option<&mut dyn TableRanker> {
        Some(&mut self.there)
    }
}

fn vocabulary() -> Vocabulary {
    let mut vocabulary = Vocabulary::new(DIMENSION);
    for table in Table::ALL {
        let labels = table.labels(&golden("vocabulary-small")).unwrap().unwrap();
        let encoder = &mut FakeClip::new(0);
        let labels =
            LabelTable::compute(table.name(), labels, encoder, &Uncancellable, &mut |_| ());
        vocabulary.insert(table, Arc::new(labels.unwrap())).unwrap();
    }
    vocabulary
}

#[test]
fn prompts_are_the_same() {
    let vocabulary = vocabulary();
    for (chunk_size, flavor_intermediate_count) in [(2048, 2048), (16, 12)] {
        let config = Config { chunk_size, flavor_intermediate_count, ..Config::default() };
        let interrogator = Interrogator::new(vocabulary.clone(), config).unwrap();
        for text in ["a red house", "an old drawing of a cat"] {
            let image = FakeClip::new(0).encode(&[text], &Uncancellable).unwrap();
            for mode in [Mode::Best, Mode::Fast, Mode::Classic, Mode::Negative, Mode::Caption] {
                let request = Request { mode, caption: "a house", ..Request::default() };
                let mut here = FakeClip::new(0);
                let mut elsewhere = Elsewhere { clip: FakeClip::new(0), there: There::default() };
                let ask = |encoder: &mut dyn PromptEncoder| {
                    let outcome =
                        interrogator.interrogate(&image, &request, encoder, &Uncancellable);
                    let outcome = outcome.unwrap();
                    (outcome.prompt, outcome.similarity, outcome.report)
                };
                assert_eq!(ask(&mut elsewhere), ask(&mut here), "{mode:?}");
                let There { compared, ranked, .. } = elsewhere.there;
                let expected = match mode {
                    Mode::Best => (1, 7),
                    Mode::Fast | Mode::Negative => (1, 1),
                    Mode::Classic => (1, 5),
                    Mode::Caption => (0, 0),
                };
                assert_eq!((compared, ranked), expected, "{mode:?}");
            }
        }
    }
}

#[test]
fn a_table_with_a_wrong_value_is_named() {
    let mut vocabulary = vocabulary();
    let mut rows = vec![f16::ONE; 3 * DIMENSION];
    rows[2 * DIMENSION] = f16::INFINITY;
    let labels = ["a", "b", "c"].map(str::to_owned).to_vec();
    let table = LabelTable::new("mediums", labels, DIMENSION, rows).unwrap();
    vocabulary.insert(Table::Mediums, Arc::new(table)).unwrap();
    let interrogator = Interrogator::new(vocabulary, Config::default()).unwrap();
    let mut elsewhere = Elsewhere { clip: FakeClip::new(0), there: There::default() };
    let request = Request { mode: Mode::Fast, ..Request::default() };
    let image = [0.125; DIMENSION];
    let error = interrogator.interrogate(&image, &request, &mut elsewhere, &Uncancellable);
    let error = error.unwrap_err();
    assert_eq!(error.kind(), Kind::BadModel);
    assert!(error.message().contains("label table `mediums`"), "{error}");
}

#[test]
fn zero_shot_scores_are_the_same() {
    let vocabulary = vocabulary();
    let table = vocabulary.get(Table::Flavors).unwrap();
    let images =
        FakeClip::new(0).encode(&["a", "b", "c", "d", "e", "f", "g", "h", "i"], &Uncancellable);
    let images = images.unwrap();
    for scoring in [Scoring::Softmax { scale: 100.0 }, Scoring::Sigmoid { scale: 9.0, bias: -2.0 }]
    {
        for top_k in [None, Some(5)] {
            let rows = LabelEmbeds::Float16(table.rows());
            let here = zero_shot(&images, DIMENSION, rows, scoring, top_k, 1).unwrap();
            let mut there = There::default();
            assert_eq!(zero_shot_by(&mut there, table, &images, scoring, top_k).unwrap(), here);
            assert_eq!(there.compared, 2, "eight pictures, and one");
            assert!(zero_shot_by(&mut there, table, &images[1..], scoring, top_k).is_err());
        }
    }
}

/// Nearly right: of the last bit, or of the order.
#[derive(Default)]
struct Careless {
    there: There,
    bit: u32,
    turns: bool,
}

impl TableRanker for Careless {
    fn compare(&mut self, tables: &[&LabelTable], images: &[f32]) -> Result<()> {
        self.there.compare(tables, images)?;
        let last = self.there.cosines.last_mut().unwrap();
        *last = f32::from_bits(last.to_bits() ^ self.bit);
        Ok(())
    }

    fn similarities(&mut self) -> Result<Vec<f32>> {
        self.there.similarities()
    }

    fn best(
        &mut self,
        range: Range<usize>,
        stages: Stages,
        reverse: bool,
    ) -> Result<Vec<(usize, f32)>> {
        self.there.best(range, stages, reverse != self.turns)
    }
}

#[test]
fn a_ranker_that_is_not_exact_is_found_out() {
    let vocabulary = vocabulary();
    let tables: Vec<&LabelTable> =
        Table::ALL.iter().filter_map(|table| Some(&**vocabulary.get(*table)?)).collect();
    let exact = |bit, turns| {
        let mut ranker = Careless { bit, turns, ..Careless::default() };
        is_exact(&mut ranker, &tables).unwrap()
    };
    assert!(exact(0, false));
    assert!(!exact(1, false), "a bit");
    assert!(!exact(0, true), "the order");
    assert!(is_exact(&mut Forgetful, &[]).unwrap(), "nothing to compare");
    assert!(!is_exact(&mut Forgetful, &tables).unwrap(), "other cosines");
}

/// Loses what it has computed.
struct Forgetful;

impl TableRanker for Forgetful {
    fn compare(&mut self, _: &[&LabelTable], _: &[f32]) -> Result<()> {
        Ok(())
    }

    fn similarities(&mut self) -> Result<Vec<f32>> {
        Ok(vec![0.0; 3])
    }

    fn first_wrong(&mut self) -> Result<Option<usize>> {
        Err(Error::internal("forgotten"))
    }
}

#[test]
fn a_ranker_that_fails_is_an_error() {
    let vocabulary = vocabulary();
    let table = vocabulary.get(Table::Flavors).unwrap();
    let scoring = Scoring::Softmax { scale: 1.0 };
    let image = [0.0; DIMENSION];
    assert!(zero_shot_by(&mut Forgetful, table, &image, scoring, None).is_err());
    let stages = Stages::new(4, 2, 1);
    assert!(Forgetful.best(0..4, stages, false).is_err());
    assert_eq!(Forgetful.best(1..3, stages, false).unwrap(), [(0, 0.0)]);
}
