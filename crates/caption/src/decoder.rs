//! The decoder graph with its cache, in the runs that the scheduler wants.

use std::ops::Range;
use std::sync::Arc;

use imprompt_engine::{Cache, CacheSpec, Engine, Held, Input, SlotLength, TensorView};
use imprompt_error::{Error, Result};
use imprompt_graph::{CaptionFacts, CaptionFamily};

use crate::scheduler::Logits;

/// The text that a sequence starts from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Prompt {
    /// The text's token ids where it stands in the memory, else none.
    pub(crate) memory_ids: Vec<u32>,
    /// The token ids that the decoder starts with, at least one.
    pub(crate) ids: Vec<u32>,
}

impl Prompt {
    /// What a model of `facts` makes of a text's token ids. The ids are empty where
    /// the model needs a text and has none.
    pub(crate) fn new(facts: &CaptionFacts, text: Option<&[u32]>) -> Self {
        let read = facts.text.read(text);
        match facts.memory_holds_text() {
            false => Prompt { memory_ids: Vec::new(), ids: read },
            true => Prompt { memory_ids: read, ids: vec![facts.bos_token_id] },
        }
    }

    /// The part that is the text.
    pub(crate) fn text_ids(&self, facts: &CaptionFacts) -> &[u32] {
        if facts.memory_holds_text() { &self.memory_ids } else { &self.ids }
    }

    /// Positions it takes in the decoder, the picture's included.
    pub(crate) fn positions(&self, facts: &CaptionFacts) -> usize {
        facts.prefix_positions() + self.ids.len()
    }

    /// Positions it takes in the memory.
    fn memory_positions(&self, facts: &CaptionFacts) -> usize {
        let picture = facts.memory.as_ref().map_or(0, |memory| memory.picture_positions);
        picture + self.memory_ids.len()
    }

    /// The ids that the reference knows to stand before what is generated, which
    /// its penalties and lengths count. BLIP-2 calls OPT with embeddings: there
    /// it is the start token alone, which `generate` puts in front itself.
    pub(crate) fn context(&self, facts: &CaptionFacts) -> Vec<u32> {
        match facts.family {
            CaptionFamily::Blip2Opt => vec![facts.bos_token_id],
            _ => self.ids.clone(),
        }
    }
}

/// The scores of one run, where the engine left them.
#[derive(Debug)]
pub(crate) struct HeldLogits(Box<dyn Held>);

impl Logits for HeldLogits {
    fn scores(&self) -> Result<&[f32]> {
        self.0.as_slice::<f32>()
    }
}

/// The engines of a decoder, the slots of their cache and what is in them.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// The memory graph, where the model has one.
    memory: Option<Box<dyn Engine>>,
    /// The decoder graph.
    engine: Box<dyn Engine>,
    /// The slots.
    cache: Box<dyn Cache>,
    /// The model.
    facts: Arc<CaptionFacts>,
    /// 0, 1, ... up to the length of a slot or of its memory, the longer one.
    positions: Vec<i64>,
    /// The memory of each slot in use.
    memories: Vec<SlotMemory>,
    /// Sequences started so far.
    started: u64,
    /// Where every step computes the whole sequence anew: the sequences.
    histories: Option<Vec<History>>,
}

/// What is in a slot's memory.
#[derive(Clone, Debug)]
struct SlotMemory {
    /// Tells sequences apart.
    sequence: u64,
    /// Its positions.
    length: usize,
}

/// All that a sequence is.
#[derive(Clone, Debug)]
struct History {
    /// The picture as `[picture_positions, picture_width]`.
    picture: Vec<f32>,
    /// The prompt and what was said.
    prompt: Prompt,
}

/// What one run appends, a row for each sequence.
struct Appended<'a> {
    /// `[sequences, picture_positions, picture_width]`, where the decoder reads pictures.
    pictures: Option<Input<'a>>,
    input_ids: Vec<i64>,
    write_index: Vec<i64>,
    lengths: Vec<i64>,
    /// Where the memory holds a text: positions that each sequence has there.
    memory_lengths: &'a [i64],
}

impl Decoder {
    /// `positions` are as many as a slot or its memory has, whichever has more.
    pub(crate) fn new(
        memory: Option<Box<dyn Engine>>,
        engine: Box<dyn Engine>,
        cache: Box<dyn Cache>,
        facts: Arc<CaptionFacts>,
        positions: usize,
    ) -> Self {
        Decoder {
            memory,
            engine,
            cache,
            facts,
            positions: (0..positions as i64).collect(),
            memories: Vec::new(),
            started: 0,
            histories: None,
        }
    }

    /// The same, but what is in the cache before a step is not read.
    pub(crate) fn recomputing(mut self) -> Self {
        self.histories = Some(Vec::new());
        self
    }

    /// Writes the memory of the sequences in `slots`, where there is one.
    fn write_memory(
        &mut self,
        slots: Range<usize>,
        pictures: Input<'_>,
        prompts: &[&Prompt],
    ) -> Result<()> {
        let (Some(engine), Some(memory)) = (&mut self.memory, &self.facts.memory) else {
            return Ok(());
        };
        let rows = prompts.iter().map(|prompt| prompt.memory_ids.as_slice());
        let (input_ids, tokens) = padded(rows);
        let lengths: Vec<i64> =
            prompts.iter().map(|prompt| prompt.memory_ids.len() as i64).collect();
        let (token_shape, batch_shape) = ([prompts.len(), tokens], [prompts.len()]);
        let mut inputs = vec![("picture_embeds", pictures)];
        if memory.holds_text {
            inputs.push(("input_ids", TensorView::new(&token_shape, &input_ids)?.into()));
            inputs.push(("lengths", TensorView::new(&batch_shape, &lengths)?.into()));
        }
        engine.run_with_cache(&inputs, &[], self.cache.as_mut(), slots)?;
        Ok(())
    }

    /// As many positions of a slot as `length`, or as many more as the engine would rather have: what
    /// is behind them is masked.
    fn looked_at(&self, cache: &str, length: usize) -> usize {
        let step = self.engine.length_step();
        let entries = self.cache.spec().entries.iter();
        let mut lengths = entries.filter(|entry| entry.input.starts_with(cache));
        let most = lengths.next().map_or(length, |entry| entry.max_length);
        let most = most.min(self.positions.len());
        length.next_multiple_of(step).min(most).max(length)
    }

    fn run(&mut self, slots: Range<usize>, batch: &Appended<'_>) -> Result<HeldLogits> {
        let sequences = slots.len();
        let tokens = batch.input_ids.len() / sequences;
        let prefix = batch.pictures.map_or(0, |pictures| pictures.shape()[1]);
        let start = batch.write_index.iter().max().copied().unwrap_or(0);
        let keys = self.looked_at("past_key_values.", start as usize + prefix + tokens);
        let key_positions = first(&self.positions, keys)?;
        let seen = batch.memory_lengths.iter().max().copied().unwrap_or(0);
        let memory_positions = first(&self.positions, self.looked_at("memory.", seen as usize))?;
        let no_picture = [sequences, 0, self.facts.picture_width];
        let (token_shape, batch_shape) = ([sequences, tokens], [sequences]);
        let (key_shape, memory_shape) = ([key_positions.len()], [memory_positions.len()]);
        let mut inputs: Vec<(&str, Input<'_>)> = vec![
            ("input_ids", TensorView::new(&token_shape, &batch.input_ids)?.into()),
            ("write_index", TensorView::new(&batch_shape, &batch.write_index)?.into()),
            ("lengths", TensorView::new(&batch_shape, &batch.lengths)?.into()),
            ("key_positions", TensorView::new(&key_shape, key_positions)?.into()),
        ];
        if self.facts.memory.is_none() {
            let none = TensorView::new::<f32>(&no_picture, &[])?;
            inputs.push(("picture_embeds", batch.pictures.unwrap_or(none.into())));
        }
        if self.facts.memory_holds_text() {
            let lengths = TensorView::new(&batch_shape, batch.memory_lengths)?;
            let positions = TensorView::new(&memory_shape, memory_positions)?;
            inputs.push(("memory_lengths", lengths.into()));
            inputs.push(("memory_positions", positions.into()));
        }
        self.engine
            .run_with_cache(&inputs, &["logits"], self.cache.as_mut(), slots)?
            .pop()
            .map(HeldLogits)
            .ok_or_else(|| Error::internal("the decoder gave no logits"))
    }

    /// Computes the sequences of `prompts`, each behind its picture, in `slots`.
    fn compute(
        &mut self,
        slots: Range<usize>,
        pictures: Input<'_>,
        prompts: &[&Prompt],
    ) -> Result<HeldLogits> {
        self.write_memory(slots.clone(), pictures, prompts)?;
        let (input_ids, _) = padded(prompts.iter().map(|prompt| prompt.ids.as_slice()));
        let memory_lengths: Vec<i64> = match self.facts.memory_holds_text() {
            true => prompts.iter().map(|p| p.memory_positions(&self.facts) as i64).collect(),
            false => Vec::new(),
        };
        let batch = Appended {
            pictures: self.facts.memory.is_none().then_some(pictures),
            input_ids,
            write_index: vec![0; prompts.len()],
            lengths: prompts.iter().map(|p| p.positions(&self.facts) as i64).collect(),
            memory_lengths: &memory_lengths,
        };
        self.run(slots, &batch)
    }

    /// Starts the sequences of `prompts` in `slots`; `pictures` are f32 `[sequences,
    /// picture_positions, picture_width]`, wherever they are.
    pub(crate) fn prefill(
        &mut self,
        slots: Range<usize>,
        pictures: Input<'_>,
        prompts: &[&Prompt],
    ) -> Result<HeldLogits> {
        self.memories.truncate(slots.start);
        for prompt in prompts {
            self.started += 1;
            let length = prompt.memory_positions(&self.facts);
            self.memories.push(SlotMemory { sequence: self.started, length });
        }
        if let Some(histories) = &mut self.histories {
            histories.truncate(slots.start);
            let size = self.facts.picture_positions * self.facts.picture_width;
            for (prompt, picture) in prompts.iter().zip(pictures.floats()?.chunks_exact(size)) {
                let prompt = Prompt::clone(prompt);
                histories.push(History { picture: picture.to_vec(), prompt });
            }
        }
        self.compute(slots, pictures, prompts)
    }

    /// As [`crate::scheduler::Model::step`] has it.
    pub(crate) fn step(&mut self, lengths: &[usize], tokens: &[u32]) -> Result<HeldLogits> {
        if let Some(mut histories) = self.histories.take() {
            histories.truncate(tokens.len());
            for (history, token) in histories.iter_mut().zip(tokens) {
                history.prompt.ids.push(*token);
            }
            let pictures: Vec<f32> =
                histories.iter().flat_map(|history| &history.picture).copied().collect();
            let shape = [tokens.len(), self.facts.picture_positions, self.facts.picture_width];
            let prompts: Vec<&Prompt> = histories.iter().map(|history| &history.prompt).collect();
            let logits = TensorView::new(&shape, &pictures)
                .and_then(|pictures| self.compute(0..tokens.len(), pictures.into(), &prompts));
            self.histories = Some(histories);
            return logits;
        }
        self.memories.truncate(tokens.len());
        let memory_lengths: Vec<i64> = match self.facts.memory_holds_text() {
            true => self.memories.iter().map(|memory| memory.length as i64).collect(),
            false => Vec::new(),
        };
        let batch = Appended {
            pictures: None,
            input_ids: tokens.iter().map(|id| i64::from(*id)).collect(),
            write_index: lengths.iter().map(|length| *length as i64).collect(),
            lengths: vec![1; tokens.len()],
            memory_lengths: &memory_lengths,
        };
        self.run(0..tokens.len(), &batch)
    }

    /// As [`crate::scheduler::Model::copy_slot`] has it.
    pub(crate) fn copy_slot(&mut self, from: usize, to: usize, length: usize) -> Result<()> {
        if let Some(histories) = &mut self.histories {
            let history = histories[from].clone();
            place(histories, to, history);
            return Ok(());
        }
        let memory = self.memories[from].clone();
        let same = self.memories.get(to).is_some_and(|there| there.sequence == memory.sequence);
        let length = SlotLength {
            positions: length,
            // The beams of a sequence have the same.
            memory: if same { 0 } else { memory.length },
        };
        place(&mut self.memories, to, memory);
        self.cache.copy_slot(from, to, length)
    }
}

/// The first `length` of `positions`.
fn first(positions: &[i64], length: usize) -> Result<&[i64]> {
    positions.get(..length).ok_or_else(|| {
        Error::internal(format!("a run reaches position {length}, a slot has {}", positions.len()))
    })
}

/// Token rows padded to the longest, and its length.
pub(crate) fn padded<'r>(rows: impl Iterator<Item = &'r [u32]> + Clone) -> (Vec<i64>, usize) {
    let longest = rows.clone().map(<[u32]>::len).max().unwrap_or(0);
    let mut ids = Vec::new();
    for row in rows {
        ids.extend(row.iter().map(|id| i64::from(*id)));
        ids.resize(ids.len() + longest - row.len(), 0);
    }
    (ids, longest)
}

/// Puts `value` at `slot`, the next one at most: slots are taken in their order.
fn place<T>(slots: &mut Vec<T>, slot: usize, value: T) {
    match slots.get_mut(slot) {
        Some(place) => *place = value,
        None => slots.push(value),
    }
}

/// The cache that a decoder of `facts` needs: slots of `max_length` positions,
/// and of `memory_length` in the memory, where there is one.
pub(crate) fn cache_spec(
    facts: &CaptionFacts,
    slots: usize,
    max_length: usize,
    memory_length: usize,
) -> CacheSpec {
    let spec = CacheSpec::decoder(facts.layers, facts.heads, facts.head_dim, slots, max_length);
    match memory_length {
        0 => spec,
        length => spec.with_memory(facts.layers, facts.heads, facts.head_dim, length),
    }
}

/// Positions of a slot's memory: the picture's, and `max_text` tokens where it
/// holds the text.
#[must_use]
pub fn memory_length(facts: &CaptionFacts, max_text: usize) -> usize {
    facts.memory.as_ref().map_or(0, |memory| {
        let text =
            if memory.holds_text { max_text.min(memory.max_text.unwrap_or(max_text)) } else { 0 };
        memory.picture_positions + text
    })
}
