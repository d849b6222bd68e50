//! The interrogator: a picture's embedding in, a prompt out.

use std::time::Instant;

use imprompt_error::{Cancellation, Error, Result};

use crate::budget::Budget;
use crate::chain::{Chained, Direction, Phrase, chain};
use crate::encoder::PromptEncoder;
use crate::modes::{Ranked, Ranking, Terms};
use crate::rank::first_greatest;
use crate::report::{Candidate, Report, Seconds, Source, Term};
use crate::request::{FlavorCounts, Mode, Request};
use crate::step::{ChainStep, Choice, checked};
use crate::table_ranker::TableRanker;
use crate::vocabulary::{Merged, Table, Vocabulary};

/// The sign of the first similarity of mode negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NegativeSign {
    /// As the reference has it: the first similarity is `+s`, the later ones are `-s`. When the
    /// first cosine is positive, a longer prompt must get below its negative to be taken, so the
    /// answer is often a single term.
    #[default]
    Reference,
    /// Every similarity is negated.
    Fixed,
}

/// The settings of an interrogator. The defaults are the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Labels in a chunk of the two-stage ranking. 1024 in the reference's low-memory setting.
    pub chunk_size: usize,
    /// Candidates of the chain. 1024 in the reference's low-memory setting.
    pub flavor_intermediate_count: usize,
    /// The sign of the first similarity of mode negative.
    pub negative_sign: NegativeSign,
    /// Most threads of a pass over the tables; 0: one a core, at most 8.
    pub threads: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            chunk_size: 2048,
            flavor_intermediate_count: 2048,
            negative_sign: NegativeSign::Reference,
            threads: 0,
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The prompt.
    pub prompt: String,
    /// Cosine of the prompt with the picture, also in mode negative.
    pub similarity: f32,
    /// How the prompt came about.
    pub report: Report,
    /// How long it took.
    pub seconds: Seconds,
}

/// Makes prompts for pictures from the tables of one vocabulary.
#[derive(Clone, Debug)]
pub struct Interrogator {
    vocabulary: Vocabulary,
    config: Config,
}

/// The text encoder as seen from one picture.
pub(crate) struct View<'a> {
    image: &'a [f32],
    pub(crate) encoder: &'a mut dyn PromptEncoder,
    pub(crate) cancel: &'a dyn Cancellation,
    pub(crate) budget: &'a Budget<'a>,
    seconds: Seconds,
}

/// What `work` gives, and its seconds.
fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed().as_secs_f64())
}

impl View<'_> {
    /// Cosines of the picture with `texts`.
    pub(crate) fn similarities(&mut self, texts: &[&str]) -> Result<Vec<f32>> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let values = self.encoder.similarities(self.image, texts, self.cancel)?;
        checked(values, texts.len())
    }

    /// The best of `phrases` as a prompt.
    pub(crate) fn first(&mut self, phrases: &[&str], away: bool) -> Result<Option<Choice>> {
        let step = ChainStep { image: self.image, prompt: None, phrases, away };
        let (choice, seconds) = timed(|| step.choose(self.encoder, self.cancel));
        self.seconds.steps.push(seconds);
        choice
    }

    /// The best of `phrases` behind `prompt`; [`Next::Over`] when the budget was over before.
    pub(crate) fn behind(&mut self, prompt: &str, phrases: &[&str], away: bool) -> Result<Next> {
        let step = ChainStep { image: self.image, prompt: Some(prompt), phrases, away };
        let (choice, seconds) = timed(|| step.choose(self.encoder, self.budget));
        self.seconds.steps.push(seconds);
        Ok(match self.budget.unless_over(choice)? {
            None => Next::Over,
            Some(None) => Next::Nothing,
            Some(Some(choice)) => Next::Best(choice),
        })
    }
}

/// What a step of a chain comes to.
pub(crate) enum Next {
    /// This phrase.
    Best(Choice),
    /// There is no phrase left.
    Nothing,
    /// The budget was over before one was found.
    Over,
}

/// A candidate with what its report needs.
struct Draft {
    source: Source,
    prompt: String,
    similarity: f32,
    terms: Vec<Term>,
    cut: bool,
    /// False when the budget ended the search.
    complete: bool,
}

impl Draft {
    fn ranked(source: Source, caption: &str, terms: Terms, encoder: &dyn PromptEncoder) -> Self {
        let Ranked { prompt, terms, cut } = Ranked::new(caption, terms, encoder);
        Draft { source, prompt, similarity: 0.0, terms, cut, complete: true }
    }

    fn chained(source: Source, chained: Chained) -> Self {
        let Chained { prompt, similarity, terms, complete } = chained;
        Draft { source, prompt, similarity, terms, cut: false, complete }
    }

    fn caption(caption: &str) -> Self {
        let prompt = caption.to_owned();
        let (source, terms) = (Source::Caption, Vec::new());
        Draft { source, prompt, similarity: 0.0, terms, cut: false, complete: true }
    }
}

impl Interrogator {
    /// An interrogator over `vocabulary`.
    ///
    /// # Errors
    /// When a number of `config` is 0.
    pub fn new(vocabulary: Vocabulary, config: Config) -> Result<Self> {
        for (name, value) in [
            ("chunk_size", config.chunk_size),
            ("flavor_intermediate_count", config.flavor_intermediate_count),
        ] {
            if value == 0 {
                return Err(Error::invalid(format!("setting `{name}`: 0, allowed: 1 or more")));
            }
        }
        Ok(Interrogator { vocabulary, config })
    }

    /// The tables.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Makes the prompt of `request` for the picture with `image_embeds` (float32 `[D]`,
    /// L2-normalised).
    ///
    /// # Errors
    /// [`imprompt_error::Kind::InvalidInput`] when a number of the request is out of range,
    /// [`imprompt_error::Kind::NotFound`] when the mode needs a table that is missing or empty,
    /// [`imprompt_error::Kind::Internal`] when the embedding has another width or is not finite,
    /// and the errors of the encoder.
    pub fn interrogate(
        &self,
        image_embeds: &[f32],
        request: &Request<'_>,
        encoder: &mut dyn PromptEncoder,
        cancel: &dyn Cancellation,
    ) -> Result<Outcome> {
        let counts = request.validate()?;
        for (name, width) in [
            ("`image_embeds`", image_embeds.len()),
            ("the text encoder's embedding", encoder.dimension()),
        ] {
            if width != self.vocabulary.dimension() {
                return Err(Error::internal(format!(
                    "{name}: {width} values, the label tables have {}",
                    self.vocabulary.dimension()
                )));
            }
        }
        if image_embeds.iter().any(|value| !value.is_finite()) {
            return Err(Error::internal("`image_embeds`: a value is not finite"));
        }
        cancel.check()?;
        let budget = Budget::new(cancel, request.budget()?);
        let start = Instant::now();
        let seconds = Seconds::default();
        let mut view = View { image: image_embeds, encoder, cancel, budget: &budget, seconds };
        let mut drafts = match request.mode {
            Mode::Best => self.best(request.caption, counts, &mut view)?,
            Mode::Fast => {
                let fast = self.timed_ranking(request.mode, &mut view)?.fast(counts.max)?;
                vec![Draft::ranked(Source::Fast, request.caption, fast, view.encoder)]
            }
            Mode::Classic => {
                let mut ranking = self.timed_ranking(request.mode, &mut view)?;
                let classic = ranking.classic(request.caption, counts.max)?;
                vec![Draft::ranked(Source::Classic, request.caption, classic, view.encoder)]
            }
            Mode::Negative => vec![self.negative(counts, &mut view)?],
            Mode::Caption => vec![Draft::caption(request.caption)],
        };
        if request.mode != Mode::Negative {
            let prompts: Vec<&str> = drafts.iter().map(|draft| draft.prompt.as_str()).collect();
            let similarities = view.similarities(&prompts)?;
            for (draft, similarity) in drafts.iter_mut().zip(similarities) {
                draft.similarity = similarity;
            }
        }
        let seconds = Seconds { all: start.elapsed().as_secs_f64(), ..view.seconds };
        outcome(request.mode, drafts, view.encoder, seconds)
    }

    /// The candidates of the chain of mode best for the picture with `image_embeds` (float32 `[D]`,
    /// L2-normalised): places in the merged table, by the rule of two stages.
    ///
    /// # Errors
    /// When a table is missing or the embedding has another width.
    pub fn candidates(&self, image_embeds: &[f32]) -> Result<Vec<usize>> {
        if image_embeds.len() != self.vocabulary.dimension() {
            return Err(Error::internal(format!(
                "`image_embeds`: {} values, the label tables have {}",
                image_embeds.len(),
                self.vocabulary.dimension()
            )));
        }
        self.chosen(&mut self.ranking(Mode::Best, image_embeds, None)?)
    }

    fn chosen(&self, ranking: &mut Ranking<'_, '_>) -> Result<Vec<usize>> {
        let Config { chunk_size, flavor_intermediate_count: count, .. } = self.config;
        let all = 0..ranking.cosines.len();
        Ok(places(ranking.cosines.rank(all, chunk_size, count, false)?))
    }

    /// The five merged tables, compared with `image` by `ranker`, or here.
    fn ranking<'r>(
        &self,
        mode: Mode,
        image: &[f32],
        ranker: Option<&'r mut dyn TableRanker>,
    ) -> Result<Ranking<'_, 'r>> {
        let merged = Merged::new(&self.vocabulary, &Table::ALL[..5], mode.name())?;
        let cosines = merged.cosines(image, ranker, self.config.threads)?;
        Ok(Ranking { merged, cosines, chunk_size: self.config.chunk_size })
    }

    /// [`Self::ranking`] of the picture, its time noted.
    fn timed_ranking<'r>(&self, mode: Mode, view: &'r mut View<'_>) -> Result<Ranking<'_, 'r>> {
        let ranker = view.encoder.table_ranker();
        let (ranking, seconds) = timed(|| self.ranking(mode, view.image, ranker));
        view.seconds.ranking += seconds;
        ranking
    }

    /// The four candidates of mode best, in the reference's order (`interrogate`).
    fn best(&self, caption: &str, counts: FlavorCounts, view: &mut View<'_>) -> Result<Vec<Draft>> {
        let mut ranking = self.timed_ranking(Mode::Best, view)?;
        // Before the chain, which takes long: it fails where a table is empty. The reference makes
        // the classic prompt with `max_flavors` here, not with the 3 of mode classic.
        let classic = ranking.classic(caption, counts.max)?;
        let fast = ranking.fast(counts.max)?;
        let chosen = self.chosen(&mut ranking)?;
        let phrases = phrases(&ranking.merged, chosen);
        let start = view.similarities(&[caption])?[0];
        let classic = Draft::ranked(Source::Classic, caption, classic, view.encoder);
        let fast = Draft::ranked(Source::Fast, caption, fast, view.encoder);
        let chained = chain(view, phrases, (caption, start), counts, Direction::Similar)?;
        Ok(vec![Draft::caption(caption), classic, fast, Draft::chained(Source::Chain, chained)])
    }

    /// The chain of the terms least like the picture (`interrogate_negative`).
    fn negative(&self, counts: FlavorCounts, view: &mut View<'_>) -> Result<Draft> {
        let merged = Merged::new(&self.vocabulary, &[Table::Flavors, Table::Negative], "negative")?;
        let (flavors, negatives) = (merged.range(Table::Flavors), merged.range(Table::Negative));
        if negatives.end == 0 {
            return Err(Error::not_found(
                "mode `negative` needs a label: the tables `flavors` and `negative` are empty",
            ));
        }
        let Config { chunk_size, flavor_intermediate_count: count, negative_sign, threads } =
            self.config;
        let ranker = view.encoder.table_ranker();
        let (cosines, seconds) = timed(|| merged.cosines(view.image, ranker, threads));
        view.seconds.ranking += seconds;
        let mut chosen = places(cosines?.rank(flavors, chunk_size, count, true)?);
        chosen.extend(negatives);
        let phrases = phrases(&merged, chosen);
        // The reference's chain forces eight terms here, whatever the request says.
        let counts = FlavorCounts { min: crate::request::DEFAULT_MIN_FLAVORS, ..counts };
        let direction = Direction::Dissimilar(negative_sign);
        Ok(Draft::chained(Source::Negative, chain(view, phrases, ("", 0.0), counts, direction)?))
    }
}

fn places(ranked: Vec<(usize, f32)>) -> Vec<usize> {
    ranked.into_iter().map(|(index, _)| index).collect()
}

fn phrases<'a>(merged: &Merged<'a>, indices: Vec<usize>) -> Vec<Phrase<'a>> {
    let phrase = |index| {
        let (table, text) = merged.label(index);
        Phrase { index, table, text }
    };
    indices.into_iter().map(phrase).collect()
}

/// The best of the candidates, the first of equal ones, with its report.
fn outcome(
    mode: Mode,
    mut drafts: Vec<Draft>,
    encoder: &dyn PromptEncoder,
    seconds: Seconds,
) -> Result<Outcome> {
    let top = first_greatest(drafts.iter().map(|draft| draft.similarity))
        .ok_or_else(|| Error::internal("no candidate prompt"))?;
    let candidates = drafts.iter().map(|draft| Candidate {
        source: draft.source,
        prompt: draft.prompt.clone(),
        similarity: draft.similarity,
    });
    let candidates = candidates.collect();
    let complete = drafts.iter().all(|draft| draft.complete);
    let Draft { source, prompt, similarity, terms, cut, .. } = drafts.swap_remove(top);
    let token_count = encoder.token_count(&prompt);
    let truncated = cut || token_count + 2 > encoder.context_length();
    let report = Report {
        mode,
        source,
        candidates,
        accepted_terms: terms,
        token_count,
        truncated,
        complete,
    };
    Ok(Outcome { prompt, similarity, report, seconds })
}
