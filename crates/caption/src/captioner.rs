//! A caption model: its graphs, and batches of pictures through them.

use std::path::Path;

use imprompt_engine::{Cache, Engine, EngineOptions, Held, Input, Runtime, TensorView};
use imprompt_error::{Cancellation, Error, Result};
use imprompt_graph::CaptionFacts;
use imprompt_graph::captioner::{DECODER_GRAPH, QFORMER_GRAPH, VISION_GRAPH};

use crate::decoder::{Decoder, DecoderModel, Prompt, cache_spec};
use crate::generation::GenerationOptions;
use crate::scheduler::{Event, Limits, Scheduler, Sequence, Stop};

/// One picture and what shall be said about it.
#[derive(Clone, Copy)]
pub struct CaptionRequest<'a> {
    /// `[3, image_size, image_size]`, as the model's image processor makes it.
    pub pixel_values: &'a [f32],
    /// The token ids that the caption continues, special tokens included, as
    /// the model's tokenizer makes them. `None`: the beginning of a text.
    pub prompt_ids: Option<&'a [u32]>,
    /// How its tokens are chosen, and how many there may be.
    pub options: GenerationOptions,
    /// Asked between steps.
    pub cancel: &'a dyn Cancellation,
}

/// A caption as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens alone: no prompt, but the end token where it was said.
    pub ids: Vec<u32>,
    /// Why there are no more.
    pub stop: Stop,
}

/// What [`Captioner::caption_streaming`] tells of a member while others are under way.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// It has one more token. With beams all are told at the end.
    Token(u32),
    /// It has ended, as the list of outcomes will say again.
    End(&'a Result<Generated>),
}

/// How a captioner shall run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptionerOptions {
    /// How its engines shall run.
    pub engine: EngineOptions,
    /// Sequences that are decoded side by side: slots of the cache.
    pub slots: usize,
    /// Positions of a slot: the picture's, the prompt's and the caption's. What
    /// the model has no positions for is not allocated.
    pub max_length: usize,
    /// Every step computes the whole sequence anew, without what the cache
    /// keeps: slow, to compare with.
    pub recompute: bool,
}

impl Default for CaptionerOptions {
    fn default() -> Self {
        CaptionerOptions {
            engine: EngineOptions::default(),
            slots: 8,
            max_length: 512,
            recompute: false,
        }
    }
}

/// A caption model, ready to run. One instance captions one batch at a time.
#[derive(Debug)]
pub struct Captioner {
    facts: CaptionFacts,
    vision: Box<dyn Engine>,
    qformer: Box<dyn Engine>,
    decoder: Box<dyn Engine>,
    cache: Box<dyn Cache>,
    limits: Limits,
    key_positions: Vec<i64>,
    recompute: bool,
}

impl Captioner {
    /// Opens the graphs in `folder`, which `facts` describe, and allocates the
    /// cache.
    ///
    /// # Errors
    /// `BadModel` naming the file when a graph or its weights are missing or
    /// corrupt or do not fit `facts`, `OutOfMemory`, `InvalidInput` when
    /// `options` leave no room for a caption.
    pub fn open(
        folder: &Path,
        facts: CaptionFacts,
        runtime: &dyn Runtime,
        options: &CaptionerOptions,
    ) -> Result<Self> {
        let max_length = options.max_length.min(facts.max_positions);
        if options.slots == 0 || max_length <= facts.query_tokens {
            return Err(Error::invalid(format!(
                "a cache of {} slots of {max_length} positions holds no caption: a picture takes \
                 {} positions",
                options.slots, facts.query_tokens
            )));
        }
        let vision = runtime.open(&folder.join(VISION_GRAPH), &options.engine)?;
        let qformer = runtime.open(&folder.join(QFORMER_GRAPH), &options.engine)?;
        let decoder = runtime.open(&folder.join(DECODER_GRAPH), &options.engine)?;
        check(&facts, vision.as_ref(), decoder.as_ref())
            .map_err(|error| error.context(folder.display()))?;
        let cache = decoder.new_cache(&cache_spec(&facts, options.slots, max_length))?;
        let limits = Limits {
            slots: options.slots,
            max_length,
            vocabulary: facts.vocabulary,
            eos_token_ids: facts.eos_token_ids.clone(),
        };
        Ok(Captioner {
            facts,
            vision,
            qformer,
            decoder,
            cache,
            limits,
            key_positions: (0..max_length as i64).collect(),
            recompute: options.recompute,
        })
    }

    /// What the model is.
    #[must_use]
    pub fn facts(&self) -> &CaptionFacts {
        &self.facts
    }

    /// Captions a batch, each member with its own outcome, which does not depend
    /// on the others.
    ///
    /// # Errors
    /// Of a member: `InvalidInput` when its pixels, its prompt or its length do
    /// not fit the model; what its `cancel` says; what the engine reports.
    pub fn caption(&mut self, batch: &[CaptionRequest<'_>]) -> Vec<Result<Generated>> {
        self.caption_streaming(batch, &mut |_, _| ())
    }

    /// [`Self::caption`]; what becomes of a member is told as soon as it is certain. Of one
    /// that is refused before anything is computed nothing is told.
    ///
    /// # Errors
    /// Of a member: as [`Self::caption`].
    pub fn caption_streaming(
        &mut self,
        batch: &[CaptionRequest<'_>],
        tell: &mut dyn FnMut(usize, Told<'_>),
    ) -> Vec<Result<Generated>> {
        let mut outcomes: Vec<Option<Result<Generated>>> =
            batch.iter().map(|request| self.refusal(request).err().map(Err)).collect();
        let members: Vec<usize> =
            (0..batch.len()).filter(|member| outcomes[*member].is_none()).collect();
        if let Err(error) = self.generate(batch, &members, tell, &mut outcomes) {
            for member in members {
                outcomes[member].get_or_insert_with(|| Err(error.clone()));
            }
        }
        let lost = || Err(Error::internal("a caption was lost"));
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(lost)).collect()
    }

    /// What the Q-Former makes of pictures: `pixel_values`
    /// `[pictures, 3, image_size, image_size]` to `query_embeds` f32
    /// `[pictures, query_tokens, embedding_width]`.
    ///
    /// # Errors
    /// `Internal` when the pixels are not of that shape; what the engine reports.
    pub fn encode(&mut self, pictures: usize, pixel_values: &[f32]) -> Result<Box<dyn Held>> {
        let size = self.facts.image_size;
        let shape = [pictures, 3, size, size];
        let pixels = TensorView::new(&shape, pixel_values)?;
        let image = one(self.vision.run(&[("pixel_values", pixels.into())], &["image_embeds"])?)?;
        let image: Input<'_> = (&image).into();
        one(self.qformer.run(&[("image_embeds", image)], &["query_embeds"])?)
    }

    /// Why a request is refused before anything is computed.
    fn refusal(&self, request: &CaptionRequest<'_>) -> Result<()> {
        let pixels = 3 * self.facts.image_size * self.facts.image_size;
        if request.pixel_values.len() != pixels {
            return Err(Error::invalid(format!(
                "pixel_values has {} elements; 3 x {size} x {size} are needed",
                request.pixel_values.len(),
                size = self.facts.image_size
            )));
        }
        let Some(ids) = request.prompt_ids else { return request.cancel.check() };
        if ids.is_empty() {
            return Err(Error::invalid("the prompt has 0 tokens, at least 1 is needed"));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.facts.vocabulary) {
            return Err(Error::invalid(format!(
                "the prompt has token id {id}, ids below {} are allowed",
                self.facts.vocabulary
            )));
        }
        request.cancel.check()
    }

    fn generate(
        &mut self,
        batch: &[CaptionRequest<'_>],
        members: &[usize],
        tell: &mut dyn FnMut(usize, Told<'_>),
        outcomes: &mut [Option<Result<Generated>>],
    ) -> Result<()> {
        let mut scheduler = Scheduler::new(self.limits.clone());
        let mut accepted = Vec::with_capacity(members.len());
        for &member in members {
            let ids = batch[member].prompt_ids.map_or(vec![self.facts.bos_token_id], <[_]>::to_vec);
            // The queries come when it is known which pictures are worth encoding.
            let prompt = Prompt { queries: &[], ids };
            let positions = prompt.positions(&self.facts);
            match self.limits.fit(positions, &batch[member].options) {
                Ok(()) => accepted.push((member, prompt, positions)),
                Err(error) => outcomes[member] = Some(Err(error)),
            }
        }
        let joined: Vec<f32>;
        let pixel_values = match accepted.as_slice() {
            [] => return Ok(()),
            [(member, ..)] => batch[*member].pixel_values,
            many => {
                joined = many
                    .iter()
                    .flat_map(|(member, ..)| batch[*member].pixel_values)
                    .copied()
                    .collect();
                &joined
            }
        };
        let encoded = self.encode(accepted.len(), pixel_values)?;
        let width = self.facts.query_tokens * self.facts.embedding_width;
        let queries = encoded.as_slice::<f32>()?.chunks_exact(width);
        for ((member, prompt, positions), queries) in accepted.into_iter().zip(queries) {
            let sequence = Sequence {
                prompt: Prompt { queries, ..prompt },
                length: positions,
                // The reference calls the language model with embeddings: it knows of no
                // id but the start token, which it puts in front itself.
                context: vec![self.facts.bos_token_id],
                options: batch[member].options,
            };
            scheduler.submit(member, sequence)?;
        }
        let decoder = Decoder::new(
            self.decoder.as_mut(),
            self.cache.as_mut(),
            &self.facts,
            &self.key_positions,
        );
        let mut model = DecoderModel::new(decoder, self.recompute);
        let mut ids: Vec<Vec<u32>> = vec![Vec::new(); batch.len()];
        while !scheduler.is_idle() {
            for event in scheduler.tick(&mut model, &mut |member| batch[member].cancel.check()) {
                match event {
                    Event::Token(member, id) => {
                        tell(member, Told::Token(id));
                        ids[member].push(id);
                    }
                    Event::Finished(member, outcome) => {
                        let ids = std::mem::take(&mut ids[member]);
                        let outcome = outcome.map(|stop| Generated { ids, stop });
                        tell(member, Told::End(&outcome));
                        outcomes[member] = Some(outcome);
                    }
                }
            }
        }
        Ok(())
    }
}

fn one(mut outputs: Vec<Box<dyn Held>>) -> Result<Box<dyn Held>> {
    outputs.pop().ok_or_else(|| Error::internal("a graph gave no output"))
}

/// The graphs are those of `facts`, as far as their ports tell.
fn check(facts: &CaptionFacts, vision: &dyn Engine, decoder: &dyn Engine) -> Result<()> {
    let size = Some(facts.image_size);
    let expected = [
        (vision, "pixel_values", vec![None, Some(3), size, size]),
        (decoder, "query_embeds", vec![None, None, Some(facts.embedding_width)]),
        (
            decoder,
            "past_key_values.0.key",
            vec![None, Some(facts.heads), None, Some(facts.head_dim)],
        ),
    ];
    for (engine, name, shape) in expected {
        let port = engine.inputs().iter().find(|port| port.name == name);
        if port.is_none_or(|port| port.shape != shape) {
            return Err(Error::bad_model(format!(
                "the graphs and what is said of them differ: input {name} should have shape \
                 {shape:?} and has {:?}",
                port.map(|port| &port.shape)
            )));
        }
    }
    Ok(())
}
