//! What the int8 screen of a repository changes: each step of a chain done with it and without.
#![allow(dead_code)]

use std::path::Path;
use std::time::{Duration, Instant};

use imprompt_error::{Cancellation, Error, Result, Uncancellable};
use imprompt_interrogate::rank::first_greatest;
use imprompt_interrogate::{ChainStep, Choice, Interrogator, Mode, PromptEncoder, Request};
use imprompt_repository::InProcess;
use imprompt_repository::parts::{self, ImagePart};
use imprompt_stage::text_side::TextSide;
use imprompt_stage::{Data, Parameters, Tensor};

/// Candidates from which on a call is a step of a chain: fewer are never screened.
const STEP: usize = 128;

/// A step of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The candidates.
    pub candidates: usize,
    /// Those of them that were scored again.
    pub scored: usize,
    /// How many of the others the screen has above the best.
    pub above: usize,
    /// Whether the screened step chose the best.
    pub is_equal: bool,
    /// What the choice lacks of the best: a cosine.
    pub loss: f32,
    /// What it took without a screen, and with one.
    pub times: [Duration; 2],
}

/// Answers a chain without a screen, and tries the screen at every step.
struct Compared {
    inner: TextSide,
    away: bool,
    steps: Vec<Step>,
}

impl Compared {
    fn step(
        &mut self,
        image: &[f32],
        prompt: Option<&str>,
        phrases: &[&str],
        cancel: &dyn Cancellation,
    ) -> Result<Vec<f32>> {
        let similarities = |encoder: &mut dyn PromptEncoder| match prompt {
            None => encoder.similarities(image, phrases, cancel),
            Some(prompt) => encoder.continuation_similarities(image, prompt, phrases, cancel),
        };
        // By turns, so that neither always comes first.
        let screened = |encoder: &mut dyn PromptEncoder| {
            let step = ChainStep { image, prompt, phrases, away: self.away };
            let started = Instant::now();
            let choice = step.choose(encoder, cancel)?;
            let choice = choice.ok_or_else(|| Error::internal("a step without a choice"))?;
            Ok::<(Choice, Duration), Error>((choice, started.elapsed()))
        };
        let early = match self.steps.len() % 2 {
            0 => Some(screened(&mut self.inner)?),
            _ => None,
        };
        let started = Instant::now();
        let exact = similarities(&mut self.inner)?;
        let took = started.elapsed();
        let (choice, took_screened) = match early {
            Some(early) => early,
            None => screened(&mut self.inner)?,
        };
        let screen = self.inner.screen().ok_or_else(|| Error::internal("no screen"))?;
        let rough = similarities(screen)?;
        let sign = if self.away { -1.0 } else { 1.0 };
        let best = first_greatest(exact.iter().map(|value| sign * value)).unwrap_or(0);
        self.steps.push(Step {
            candidates: phrases.len(),
            scored: choice.scored,
            above: rough.iter().filter(|value| sign * **value > sign * rough[best]).count(),
            // A tie in all but rounding is no other choice.
            is_equal: choice.index == best || exact[choice.index] == exact[best],
            loss: sign * (exact[best] - exact[choice.index]),
            times: [took, took_screened],
        });
        Ok(exact)
    }
}

impl PromptEncoder for Compared {
    fn dimension(&self) -> usize {
        self.inner.dimension()
    }

    fn context_length(&self) -> usize {
        self.inner.context_length()
    }

    fn token_count(&self, text: &str) -> usize {
        self.inner.token_count(text)
    }

    fn is_at_max_length(&self, text: &str) -> bool {
        self.inner.is_at_max_length(text)
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
        match texts.len() {
            STEP.. => self.step(image, None, texts, cancel),
            _ => self.inner.similarities(image, texts, cancel),
        }
    }

    fn continuation_similarities(
        &mut self,
        image: &[f32],
        prompt: &str,
        phrases: &[&str],
        cancel: &dyn Cancellation,
    ) -> Result<Vec<f32>> {
        match phrases.len() {
            STEP.. => self.step(image, Some(prompt), phrases, cancel),
            _ => self.inner.continuation_similarities(image, prompt, phrases, cancel),
        }
    }
}

/// One picture in one mode.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The prompt with the screen, and without.
    pub prompts: [String; 2],
    /// Their cosines with the picture.
    pub similarities: [f32; 2],
    /// The steps of the chain without the screen.
    pub steps: Vec<Step>,
}

/// A repository with a screen, opened.
pub struct Comparer {
    captions: InProcess,
    preprocess: Box<dyn imprompt_stage::StageModel>,
    image: ImagePart,
    interrogator: Interrogator,
    compared: Compared,
}

impl Comparer {
    /// Opens `repository`.
    pub fn open(repository: &Path, parameters: &Parameters) -> Result<Self> {
        let (interrogator, inner) = parts::interrogator(repository, parameters)?;
        Ok(Comparer {
            captions: InProcess::open(repository, "caption", parameters)?,
            preprocess: imprompt_stage::open(&repository.join("preprocess/1"), parameters)?,
            image: ImagePart::open(repository, parameters)?,
            interrogator,
            compared: Compared { inner, away: false, steps: Vec::new() },
        })
    }

    /// Interrogates `picture` with the screen and without.
    pub fn compare(&mut self, picture: &[u8], mode: Mode, max: Option<i32>) -> Result<Comparison> {
        let image = self.embed(picture)?;
        let caption = self.captions.run(vec![input(picture)], &Uncancellable)?;
        let caption = caption.first().map(|tensor| match &tensor.data {
            Data::Bytes(texts) => String::from_utf8_lossy(&texts[0]).into_owned(),
            _ => String::new(),
        });
        let caption = caption.unwrap_or_default();
        let request = Request { mode, caption: &caption, max_flavors: max, ..Request::default() };
        let Comparer { interrogator, compared, .. } = self;
        let with =
            interrogator.interrogate(&image, &request, &mut compared.inner, &Uncancellable)?;
        compared.away = mode == Mode::Negative;
        let without = interrogator.interrogate(&image, &request, compared, &Uncancellable)?;
        Ok(Comparison {
            prompts: [with.prompt, without.prompt],
            similarities: [with.similarity, without.similarity],
            steps: std::mem::take(&mut compared.steps),
        })
    }

    /// The embedding that `interrogate` has of a picture.
    fn embed(&mut self, picture: &[u8]) -> Result<Vec<f32>> {
        let request = imprompt_stage::Request {
            batch: 1,
            inputs: vec![input(picture)],
            outputs: Some(vec!["open_clip_pixel_values".to_owned()]),
            cancellation: &Uncancellable,
        };
        let mut answers =
            self.preprocess.instance(imprompt_stage::Placement::Cpu)?.execute(&[request]);
        let answer = answers.pop().ok_or_else(|| Error::internal("no pixels"))??;
        match answer.into_iter().next().map(|tensor| tensor.data) {
            Some(Data::F32(pixels)) => self.image.encode(1, &pixels),
            _ => Err(Error::internal("no pixels")),
        }
    }
}

fn input(picture: &[u8]) -> Tensor<'static> {
    Tensor::bytes("image", vec![1, 1], vec![picture.to_vec().into()])
}
