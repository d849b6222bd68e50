//! A caption model: its graphs, and batches of pictures through them.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use imprompt_engine::{CacheSpec, Engine, EngineOptions, Floats, Held, Input, Runtime, TensorView};
use imprompt_error::{Cancellation, Error, Result};
use imprompt_graph::CaptionFacts;
use imprompt_graph::captioner::{DECODER_GRAPH, MEMORY_GRAPH, QFORMER_GRAPH};

use crate::admission::{Admission, Newcomer};
use crate::decoder::{Decoder, HeldLogits, Prompt, cache_spec, memory_length, padded};
use crate::generation::GenerationOptions;
use crate::pictures::{PictureEncoder, check_ports, one};
use crate::scheduler::{Event, Limits, Model, Scheduler, Stop};

/// One picture and what shall be said about it.
#[derive(Clone)]
pub struct CaptionRequest<'a> {
    /// Pixel values `[1, 3, image_size, image_size]`, as the model's image processor makes
    /// them; or, for a captioner that has no image encoder, what a [`PictureEncoder`] makes
    /// of those.
    pub picture: Floats<'a>,
    /// The token ids that the caption continues or answers, special tokens
    /// included, as the model's tokenizer makes them. `None`: no text.
    pub prompt_ids: Option<&'a [u32]>,
    /// The same text as the Q-Former's own tokenizer makes it, where the Q-Former
    /// reads it ([`CaptionFacts::qformer_text`]); else it is not looked at.
    pub qformer_ids: Option<&'a [u32]>,
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

/// Hears what is [`Told`] of a member, by its place in its batch.
pub type Tell<'a> = dyn FnMut(usize, Told<'_>) + 'a;

/// How a captioner shall run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptionerOptions {
    /// How its engines shall run.
    pub engine: EngineOptions,
    /// Sequences that are decoded side by side: slots of the cache.
    pub slots: usize,
    /// Positions that a text and what is said take together in the decoder. What
    /// the model has no positions for is not allocated.
    pub max_text_positions: usize,
    /// Every step computes the whole sequence anew, without what the cache
    /// keeps: slow, to compare with.
    pub recompute: bool,
}

impl Default for CaptionerOptions {
    fn default() -> Self {
        CaptionerOptions {
            engine: EngineOptions::default(),
            slots: 8,
            max_text_positions: 512,
            recompute: false,
        }
    }
}

/// The first input of a decoder's cache.
const KEY: &str = "past_key_values.0.key";

/// A caption model, ready to run. It captions one batch at a time; several callers share a
/// [`SharedCaptioner`](crate::SharedCaptioner).
#[derive(Debug)]
pub struct Captioner {
    pub(crate) admission: Arc<Admission>,
    pub(crate) engines: Engines,
}

/// The graphs of a captioner, as the scheduler's model.
#[derive(Debug)]
pub(crate) struct Engines {
    facts: Arc<CaptionFacts>,
    encoder: Option<PictureEncoder>,
    /// The Q-Former, where it reads the text.
    reader: Option<Box<dyn Engine>>,
    decoder: Decoder,
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
        let picture_len = 3 * facts.image_size * facts.image_size;
        // First what refuses options that leave no room, before anything is opened.
        let mut captioner = Self::open_reading(folder, facts, runtime, options, picture_len)?;
        let facts = captioner.facts();
        let encoder = PictureEncoder::open(folder, facts, runtime, &options.engine)?;
        captioner.engines.encoder = Some(encoder);
        Ok(captioner)
    }

    /// [`Self::open`] without the image encoder: its pictures are encoded elsewhere.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_decoder(
        folder: &Path,
        facts: CaptionFacts,
        runtime: &dyn Runtime,
        options: &CaptionerOptions,
    ) -> Result<Self> {
        let [positions, width] = facts.encoded_shape();
        Self::open_reading(folder, facts, runtime, options, positions * width)
    }

    /// All but the image encoder; a picture that comes has `picture_len` values.
    fn open_reading(
        folder: &Path,
        facts: CaptionFacts,
        runtime: &dyn Runtime,
        options: &CaptionerOptions,
        picture_len: usize,
    ) -> Result<Self> {
        let prefix = facts.prefix_positions();
        let max_length = prefix
            .saturating_add(options.max_text_positions)
            .min(facts.max_positions.unwrap_or(usize::MAX));
        if options.slots == 0 || max_length <= prefix {
            return Err(Error::invalid(format!(
                "a cache of {} slots of {max_length} positions holds no caption: a picture takes \
                 {prefix} positions",
                options.slots
            )));
        }
        let open = |name: &str| runtime.open(&folder.join(name), &options.engine);
        let reader = facts.qformer_text.map(|_| open(QFORMER_GRAPH)).transpose()?;
        let memory = facts.memory.as_ref().map(|_| open(MEMORY_GRAPH)).transpose()?;
        let decoder = open(DECODER_GRAPH)?;
        check(&facts, decoder.as_ref()).map_err(|error| error.context(folder.display()))?;
        let memory_length = memory_length(&facts, options.max_text_positions);
        let spec = cache_spec(&facts, options.slots, max_length, memory_length);
        let spec =
            as_built(spec, decoder.as_ref()).map_err(|error| error.context(folder.display()))?;
        let cache = decoder.new_cache(&spec)?;
        let limits = Limits {
            slots: options.slots,
            max_length,
            vocabulary: facts.vocabulary,
            eos_token_ids: facts.eos_token_ids.clone(),
        };
        let memory_picture = facts.memory.as_ref().map_or(0, |memory| memory.picture_positions);
        let positions = max_length.max(memory_length);
        let facts = Arc::new(facts);
        let decoder = Decoder::new(memory, decoder, cache, facts.clone(), positions);
        let decoder = if options.recompute { decoder.recomputing() } else { decoder };
        let max_text = memory_length - memory_picture;
        let admission = Admission { facts: facts.clone(), limits, picture_len, max_text };
        let engines = Engines { facts, encoder: None, reader, decoder };
        Ok(Captioner { admission: Arc::new(admission), engines })
    }

    /// What the model is.
    #[must_use]
    pub fn facts(&self) -> &CaptionFacts {
        &self.admission.facts
    }

    /// Captions a batch, each member with its own outcome, which does not depend
    /// on the others.
    ///
    /// # Errors
    /// Of a member: `InvalidInput` when its picture, its prompt or its length do
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
        tell: &mut Tell<'_>,
    ) -> Vec<Result<Generated>> {
        let mut scheduler = Scheduler::new(self.admission.limits.clone());
        let mut outcomes: Vec<Option<Result<Generated>>> = Vec::with_capacity(batch.len());
        for (member, request) in batch.iter().enumerate() {
            let submitted = self
                .admission
                .sequence(request)
                .and_then(|sequence| scheduler.submit(member, sequence));
            outcomes.push(submitted.err().map(Err));
        }
        let mut ids: Vec<Vec<u32>> = vec![Vec::new(); batch.len()];
        let mut check = |member: usize| batch[member].cancel.check();
        while !scheduler.is_idle() {
            for event in scheduler.tick(&mut self.engines, &mut check) {
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
        let lost = || Err(Error::internal("a caption was lost"));
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(lost)).collect()
    }

    /// What the decoder reads of pictures, each as [`CaptionRequest::picture`] has it: f32
    /// `[pictures, picture_positions, picture_width]`. `texts` are what the Q-Former reads
    /// with each, where it does.
    ///
    /// # Errors
    /// `Internal` when the pictures are not of that shape or texts are missing; what
    /// the engine reports.
    pub fn encode<'a>(
        &mut self,
        pictures: usize,
        values: impl Into<Floats<'a>>,
        texts: &[&[u32]],
    ) -> Result<Encoded<'a>> {
        self.engines.encode(pictures, values.into(), texts)
    }
}

impl Engines {
    fn encode<'a>(
        &mut self,
        pictures: usize,
        values: Floats<'a>,
        texts: &[&[u32]],
    ) -> Result<Encoded<'a>> {
        let encoded = match &mut self.encoder {
            Some(encoder) => Encoded::Held(encoder.encode(pictures, values)?),
            None => Encoded::Given(values),
        };
        let Some(reader) = &mut self.reader else { return Ok(encoded) };
        let [positions, width] = self.facts.encoded_shape();
        let (ids, tokens) = padded(texts.iter().copied());
        let lengths: Vec<i64> = texts.iter().map(|text| text.len() as i64).collect();
        let picture_shape = [pictures, positions, width];
        let picture = encoded.input(&picture_shape)?;
        let (token_shape, batch_shape) = ([pictures, tokens], [pictures]);
        let inputs = [
            ("image_embeds", picture),
            ("qformer_input_ids", TensorView::new(&token_shape, &ids)?.into()),
            ("qformer_lengths", TensorView::new(&batch_shape, &lengths)?.into()),
        ];
        Ok(Encoded::Held(one(reader.run(&inputs, &["query_embeds"])?)?))
    }
}

impl Model for Engines {
    type Prompt = Newcomer;
    type Logits = HeldLogits;

    /// Encodes the pictures of those that start, together, and reads their prompts.
    fn prefill(&mut self, slots: Range<usize>, newcomers: &[Newcomer]) -> Result<HeldLogits> {
        let pictures: Vec<&Floats<'_>> =
            newcomers.iter().map(|newcomer| &newcomer.picture).collect();
        let pictures = Floats::joined(&pictures)?;
        let texts: Vec<&[u32]> =
            newcomers.iter().map(|newcomer| newcomer.qformer_ids.as_slice()).collect();
        let prompts: Vec<&Prompt> = newcomers.iter().map(|newcomer| &newcomer.prompt).collect();
        let encoded = self.encode(newcomers.len(), pictures, &texts)?;
        let facts = self.facts.clone();
        let shape = [newcomers.len(), facts.picture_positions, facts.picture_width];
        self.decoder.prefill(slots, encoded.input(&shape)?, &prompts)
    }

    fn step(&mut self, lengths: &[usize], tokens: &[u32]) -> Result<HeldLogits> {
        self.decoder.step(lengths, tokens)
    }

    fn copy_slot(&mut self, from: usize, to: usize, length: usize) -> Result<()> {
        self.decoder.copy_slot(from, to, length)
    }
}

/// Embeddings of pictures.
#[derive(Debug)]
pub enum Encoded<'a> {
    /// As an engine gave them.
    Held(Box<dyn Held>),
    /// As they came.
    Given(Floats<'a>),
}

impl Encoded<'_> {
    /// The values, on the host.
    ///
    /// # Errors
    /// `Internal` when an engine gave another type, or a device cannot be read.
    pub fn as_slice(&self) -> Result<&[f32]> {
        match self {
            Encoded::Held(held) => held.as_slice::<f32>(),
            Encoded::Given(floats) => floats.to_host(),
        }
    }

    /// As the input of a run, which has `shape`: on a GPU where they are.
    fn input<'s>(&'s self, shape: &'s [usize]) -> Result<Input<'s>> {
        match self {
            Encoded::Held(held) => Ok(held.into()),
            Encoded::Given(floats) => floats.input(shape),
        }
    }
}

/// `spec` with the type and the lengths that the graph of `decoder` has, where they are in it: a GPU's
/// has a cache of one length and of the type that it multiplies in.
fn as_built(mut spec: CacheSpec, decoder: &dyn Engine) -> Result<CacheSpec> {
    for entry in &mut spec.entries {
        let port = decoder.inputs().iter().find(|port| port.name == entry.input);
        let Some(port) = port else { continue };
        spec.element_type = port.element_type;
        let Some(length) = port.shape.get(2).copied().flatten() else { continue };
        if length < entry.max_length {
            return Err(Error::bad_model(format!(
                "the decoder was built for {length} positions of {}, {} are asked for; build with as \
                 many, or lower max_caption_positions",
                entry.input, entry.max_length
            )));
        }
        entry.max_length = length;
    }
    Ok(spec)
}

/// The decoder is that of `facts`, as far as its inputs tell.
fn check(facts: &CaptionFacts, decoder: &dyn Engine) -> Result<()> {
    let built = decoder.inputs().iter().find(|port| port.name == KEY);
    let length = built.and_then(|port| port.shape.get(2).copied().flatten());
    let key = vec![None, Some(facts.heads), length, Some(facts.head_dim)];
    let mut expected = vec![(KEY, key)];
    if facts.memory.is_none() {
        expected.push(("picture_embeds", vec![None, None, Some(facts.picture_width)]));
    }
    check_ports(decoder, &expected)
}
