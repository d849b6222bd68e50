//! The decoder graph with its cache, as the scheduler's [`Model`].

use std::ops::Range;

use imprompt_engine::{Cache, CacheSpec, Engine, Held, Input, TensorView};
use imprompt_error::{Error, Result};
use imprompt_graph::CaptionFacts;

use crate::scheduler::{Logits, Model};

/// What a sequence starts from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Prompt<'a> {
    /// The picture as `[query_tokens, embedding_width]`.
    pub(crate) queries: &'a [f32],
    /// The text's token ids, at least one.
    pub(crate) ids: Vec<u32>,
}

impl Prompt<'_> {
    /// Positions it takes.
    pub(crate) fn positions(&self, facts: &CaptionFacts) -> usize {
        facts.query_tokens + self.ids.len()
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

/// The decoder graph, an engine for it and the slots of its cache.
#[derive(Debug)]
pub(crate) struct Decoder<'c> {
    engine: &'c mut dyn Engine,
    cache: &'c mut dyn Cache,
    facts: &'c CaptionFacts,
    key_positions: &'c [i64],
}

impl<'c> Decoder<'c> {
    /// `key_positions` is 0, 1, ... up to the length of a slot.
    pub(crate) fn new(
        engine: &'c mut dyn Engine,
        cache: &'c mut dyn Cache,
        facts: &'c CaptionFacts,
        key_positions: &'c [i64],
    ) -> Self {
        Decoder { engine, cache, facts, key_positions }
    }

    fn run(&mut self, slots: Range<usize>, batch: &Appended<'_>) -> Result<HeldLogits> {
        let sequences = slots.len();
        let tokens = batch.input_ids.len() / sequences;
        let queries = batch.query_embeds.len() / sequences / self.facts.embedding_width;
        let start = batch.write_index.iter().max().copied().unwrap_or(0);
        let keys = start as usize + queries + tokens;
        let key_positions = self.key_positions.get(..keys).ok_or_else(|| {
            Error::internal(format!(
                "a run reaches position {keys}, a slot has {}",
                self.key_positions.len()
            ))
        })?;
        let query_shape = [sequences, queries, self.facts.embedding_width];
        let (token_shape, batch_shape, key_shape) = ([sequences, tokens], [sequences], [keys]);
        let inputs: [(&str, Input<'_>); 5] = [
            ("query_embeds", TensorView::new(&query_shape, batch.query_embeds)?.into()),
            ("input_ids", TensorView::new(&token_shape, &batch.input_ids)?.into()),
            ("write_index", TensorView::new(&batch_shape, &batch.write_index)?.into()),
            ("lengths", TensorView::new(&batch_shape, &batch.lengths)?.into()),
            ("key_positions", TensorView::new(&key_shape, key_positions)?.into()),
        ];
        self.engine
            .run_with_cache(&inputs, &["logits"], self.cache, slots)?
            .pop()
            .map(HeldLogits)
            .ok_or_else(|| Error::internal("the decoder gave no logits"))
    }
}

/// What one run appends, a row for each sequence.
struct Appended<'a> {
    query_embeds: &'a [f32],
    input_ids: Vec<i64>,
    write_index: Vec<i64>,
    lengths: Vec<i64>,
}

impl<'c, 'p> Model for DecoderModel<'c, 'p> {
    type Prompt = Prompt<'p>;
    type Logits = HeldLogits;

    fn prefill(&mut self, slots: Range<usize>, prompts: &[Prompt<'p>]) -> Result<HeldLogits> {
        if let Some(histories) = &mut self.histories {
            histories.truncate(slots.start);
            histories.extend_from_slice(prompts);
        }
        prefill(&mut self.decoder, slots, prompts)
    }

    fn step(&mut self, lengths: &[usize], tokens: &[u32]) -> Result<HeldLogits> {
        if let Some(histories) = &mut self.histories {
            histories.truncate(tokens.len());
            for (history, token) in histories.iter_mut().zip(tokens) {
                history.ids.push(*token);
            }
            return prefill(&mut self.decoder, 0..tokens.len(), histories);
        }
        let batch = Appended {
            query_embeds: &[],
            input_ids: tokens.iter().map(|id| i64::from(*id)).collect(),
            write_index: lengths.iter().map(|length| *length as i64).collect(),
            lengths: vec![1; tokens.len()],
        };
        self.decoder.run(0..tokens.len(), &batch)
    }

    fn copy_slot(&mut self, from: usize, to: usize, length: usize) -> Result<()> {
        let Some(histories) = &mut self.histories else {
            return self.decoder.cache.copy_slot(from, to, length);
        };
        let history = histories[from].clone();
        match histories.get_mut(to) {
            Some(place) => *place = history,
            // Slots are taken in their order.
            None => histories.push(history),
        }
        Ok(())
    }
}

/// A [`Decoder`] as the scheduler sees it.
#[derive(Debug)]
pub(crate) struct DecoderModel<'c, 'p> {
    decoder: Decoder<'c>,
    /// Where every step computes the whole sequence anew: the sequences.
    histories: Option<Vec<Prompt<'p>>>,
}

impl<'c, 'p> DecoderModel<'c, 'p> {
    /// With `recompute`, what is in the cache before a step is not read.
    pub(crate) fn new(decoder: Decoder<'c>, recompute: bool) -> Self {
        DecoderModel { decoder, histories: recompute.then(Vec::new) }
    }
}

fn prefill(
    decoder: &mut Decoder<'_>,
    slots: Range<usize>,
    prompts: &[Prompt<'_>],
) -> Result<HeldLogits> {
    let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
    let mut input_ids = Vec::with_capacity(prompts.len() * longest);
    for prompt in prompts {
        input_ids.extend(prompt.ids.iter().map(|id| i64::from(*id)));
        input_ids.resize(input_ids.len() + longest - prompt.ids.len(), 0);
    }
    // One sequence, the usual case, is not copied.
    let joined: Vec<f32>;
    let query_embeds = match prompts {
        [one] => one.queries,
        many => {
            joined = many.iter().flat_map(|prompt| prompt.queries).copied().collect();
            &joined
        }
    };
    let batch = Appended {
        query_embeds,
        input_ids,
        write_index: vec![0; prompts.len()],
        lengths: prompts.iter().map(|p| p.positions(decoder.facts) as i64).collect(),
    };
    decoder.run(slots, &batch)
}

/// The cache that a decoder of `facts` needs.
pub(crate) fn cache_spec(facts: &CaptionFacts, slots: usize, max_length: usize) -> CacheSpec {
    CacheSpec::decoder(facts.layers, facts.heads, facts.head_dim, slots, max_length)
}
