//! What every decoder graph has in common, whatever the model: inputs,
//! positions, masks, the cache.
//!
//! One graph serves prefill and decode step, and sequences of different lengths
//! side by side. With `batch` sequences that each append up to
//! `prefix + tokens` positions:
//!
//! | input | type | shape | |
//! | --- | --- | --- | --- |
//! | `picture_embeds` | f32 | `[batch, prefix, width]` | what stands in front of the tokens; `prefix` is 0 in a decode step. Only where the picture is read as if it were words |
//! | `input_ids` | i64 | `[batch, tokens]` | padded on the right with any id |
//! | `write_index` | i64 | `[batch]` | positions that the sequence already has in the cache |
//! | `lengths` | i64 | `[batch]` | how many of the appended positions are real, from 1 |
//! | `key_positions` | i64 | `[keys]` | 0, 1, ... `keys - 1`: how far attention looks at most; at least the largest `write_index + prefix + tokens` |
//! | `past_key_values.N.key`, `.value` | f32 | `[batch, heads, max_length, head_dim]` | the cache |
//! | `memory.N.key`, `.value` | f32 | `[batch, heads, memory_length, head_dim]` | what cross attention looks at, where the model has it: written once a sequence by the memory graph |
//! | `memory_positions` | i64 | `[memory_keys]` | as `key_positions`, where the memory's length depends on a text |
//! | `memory_lengths` | i64 | `[batch]` | positions of the memory that are real, there |
//!
//! | output | type | shape | |
//! | --- | --- | --- | --- |
//! | `logits` | f32 | `[batch, vocabulary]` | of the last real position |
//! | `present.N.key`, `.value` | f32 | as the input | the cache, written in place by `TensorScatter` |
//!
//! Padding writes behind a sequence's end, where nothing looks until it is
//! overwritten: a position sees the positions up to itself and no others, so a
//! sequence never sees its neighbours or what an earlier one left in the slot.
//! Attention reads `keys` positions of the cache and not `max_length`: their
//! number is the shape of an input, so that it costs what the text is long, and
//! no shape depends on data.

use crate::builder::{Attribute, Dim, GraphBuilder, Type, Value};

/// Heads of every attention of a decoder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) count: usize,
    pub(crate) width: usize,
    /// Whether scores are divided by the root of `width`; else they stay as they are.
    pub(crate) is_scaled: bool,
}

impl Heads {
    /// Heads whose scores are divided by the root of their width.
    pub(crate) fn scaled(count: usize, width: usize) -> Self {
        Heads { count, width, is_scaled: true }
    }

    /// Width of all heads together.
    pub(crate) fn all(&self) -> usize {
        self.count * self.width
    }

    /// Rows `[n, heads * width]` as `[batch, heads, positions, width]`, where
    /// `shape` is `[batch, positions, heads, width]`.
    fn part(g: &mut GraphBuilder<'_>, rows: &Value, shape: &Value) -> Value {
        let parted = g.reshape_to(rows, shape);
        g.transpose(&parted, &[0, 2, 1, 3])
    }

    /// `[batch, positions, heads, width]`, as a shape.
    fn shape(&self, g: &mut GraphBuilder<'_>, batch: &Value, positions: &Value) -> Value {
        let rest = g.ints(&[self.count as i64, self.width as i64]);
        g.concat(&[batch, positions, &rest], 0)
    }

    /// Attention of rows of `batch` times `count` (`[1]` each) positions, as rows.
    pub(crate) fn attend_rows(
        &self,
        g: &mut GraphBuilder<'_>,
        sides: [(&Value, [&Value; 2]); 3],
        mask: Option<&Value>,
    ) -> Value {
        let [query, key, value] = sides.map(|(rows, [batch, count])| {
            let shape = self.shape(g, batch, count);
            Self::part(g, rows, &shape)
        });
        self.attend(g, [&query, &key, &value], mask)
    }

    /// Attention of `[batch, heads, positions, width]` tensors, as rows.
    pub(crate) fn attend(
        &self,
        g: &mut GraphBuilder<'_>,
        [query, key, value]: [&Value; 3],
        mask: Option<&Value>,
    ) -> Value {
        let mut inputs = vec![query, key, value];
        inputs.extend(mask);
        let scale = if self.is_scaled { (self.width as f32).sqrt().recip() } else { 1.0 };
        let context = g.node("Attention", &inputs, &[("scale", Attribute::Float(scale))]);
        let context = g.transpose(&context, &[0, 2, 1, 3]);
        g.reshape(&context, &[-1, self.all() as i64])
    }
}

/// The inputs of a decoder graph.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) picture_embeds: Option<Value>,
    pub(crate) input_ids: Value,
    write_index: Value,
    lengths: Value,
    key_positions: Value,
}

impl Inputs {
    /// `width` is that of a picture's embeddings, where they stand in front.
    pub(crate) fn new(g: &mut GraphBuilder<'_>, width: Option<usize>) -> Self {
        let batch = Dim::Free("batch");
        Inputs {
            picture_embeds: width.map(|width| {
                g.input("picture_embeds", Type::F32, &[batch, "prefix".into(), width.into()])
            }),
            input_ids: g.input("input_ids", Type::I64, &[batch, "tokens".into()]),
            write_index: g.input("write_index", Type::I64, &[batch]),
            lengths: g.input("lengths", Type::I64, &[batch]),
            key_positions: g.input("key_positions", Type::I64, &["keys".into()]),
        }
    }
}

/// What an attention of a step sees.
struct Seen<'v> {
    /// `[batch, heads, max_length, head_dim]`.
    key: &'v Value,
    /// As `key`.
    value: &'v Value,
    /// Where not all of it is looked at: a tensor with an element for each position that is, and
    /// their number, `[1]`.
    first: Option<(&'v Value, &'v Value)>,
    mask: Option<&'v Value>,
}

/// What the layers of one run share.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) heads: Heads,
    /// `[1]` each.
    batch: Value,
    count: Value,
    keys: Value,
    /// The position in its sequence of each appended one, `[batch, count]`.
    pub(crate) positions: Value,
    /// `[batch, count, heads, width]`, as a shape.
    head_shape: Value,
    write_index: Value,
    lengths: Value,
    key_positions: Value,
    /// Which keys a position sees: truth values `[batch, 1, count, keys]`, or what its scores are
    /// raised by `[batch, heads, count, keys]`.
    mask: Value,
    is_raised: bool,
}

impl Step {
    /// A step that appends `count` (shape `[1]`) positions, each of which sees
    /// itself and those before it.
    pub(crate) fn new(
        g: &mut GraphBuilder<'_>,
        inputs: &Inputs,
        heads: Heads,
        count: Value,
    ) -> Self {
        let batch = g.dim(&inputs.input_ids, 0);
        let offsets = g.arange(&count);
        let start = g.unsqueeze(&inputs.write_index, &[1]);
        let positions = g.add(&start, &offsets);
        let last = g.unsqueeze(&positions, &[1, 3]);
        let mask = g.node("LessOrEqual", &[&inputs.key_positions, &last], &[]);
        Step {
            heads,
            head_shape: heads.shape(g, &batch, &count),
            keys: g.dim(&inputs.key_positions, 0),
            batch,
            count,
            positions,
            write_index: inputs.write_index.clone(),
            lengths: inputs.lengths.clone(),
            key_positions: inputs.key_positions.clone(),
            mask,
            is_raised: false,
        }
    }

    /// The first `length` positions see one another, whatever their order.
    pub(crate) fn see_prefix(&mut self, g: &mut GraphBuilder<'_>, length: usize) {
        let end = g.int(length as i64 - 1);
        let last = g.node("Max", &[&self.positions, &end], &[]);
        let last = g.unsqueeze(&last, &[1, 3]);
        self.mask = g.node("LessOrEqual", &[&self.key_positions, &last], &[]);
    }

    /// How far each key stands after each appended position,
    /// `[batch, count, keys]`.
    pub(crate) fn offsets(&self, g: &mut GraphBuilder<'_>) -> Value {
        let queries = g.unsqueeze(&self.positions, &[2]);
        g.sub(&self.key_positions, &queries)
    }

    /// Raises the scores of what a position sees by `bias`
    /// `[batch, heads, count, keys]`.
    pub(crate) fn add_bias(&mut self, g: &mut GraphBuilder<'_>, bias: &Value) {
        let lowest = g.lowest();
        self.mask = g.select(&self.mask, bias, &lowest);
        self.is_raised = true;
    }

    /// Attention of the appended positions, whose queries, keys and values are
    /// rows, to the whole sequence, through the cache of `layer`.
    pub(crate) fn attend(
        &self,
        g: &mut GraphBuilder<'_>,
        layer: usize,
        [query, key, value]: [&Value; 3],
    ) -> Value {
        let shape = [
            "batch".into(),
            Dim::Fixed(self.heads.count),
            "max_length".into(),
            Dim::Fixed(self.heads.width),
        ];
        let mut cached = |kind: &str, new: &Value| {
            let past = g.input(&format!("past_key_values.{layer}.{kind}"), Type::F32, &shape);
            let new = Heads::part(g, new, &self.head_shape);
            let present = g.tensor_scatter(&past, &new, &self.write_index, 2);
            g.output(&present, &format!("present.{layer}.{kind}"), Type::F32, &shape);
            present
        };
        let (key, value) = (cached("key", key), cached("value", value));
        let seen = Seen {
            key: &key,
            value: &value,
            first: Some((&self.key_positions, &self.keys)),
            mask: Some(&self.mask),
        };
        // No operator of an engine's own raises scores.
        match self.is_raised {
            true => self.look(g, query, &seen),
            false => self.fused(g, query, &seen),
        }
    }

    /// Attention of the appended positions, whose queries are rows, to the
    /// memory of `layer`.
    pub(crate) fn attend_memory(
        &self,
        g: &mut GraphBuilder<'_>,
        layer: usize,
        query: &Value,
        memory: &Memory,
    ) -> Value {
        let shape = memory.shape(&self.heads);
        let mut input = |kind: &str| g.input(&format!("memory.{layer}.{kind}"), Type::F32, &shape);
        let (key, value) = (input("key"), input("value"));
        let text = memory.text.as_ref();
        let seen = Seen {
            key: &key,
            value: &value,
            first: text.map(|text| (&text.positions, &text.keys)),
            mask: text.map(|text| &text.mask),
        };
        self.fused(g, query, &seen)
    }

    /// [`Self::look`], marked as the one operator that an engine may have: `CachedAttention` of the
    /// rows of queries, keys, values, the positions that are looked at and the mask.
    fn fused(&self, g: &mut GraphBuilder<'_>, query: &Value, seen: &Seen<'_>) -> Value {
        let first = seen.first.map(|(positions, _)| positions);
        let inputs = [Some(query), Some(seen.key), Some(seen.value), first, seen.mask];
        let attributes = [
            ("heads", self.heads.count as i64),
            ("head_dim", self.heads.width as i64),
            ("scaled", i64::from(self.heads.is_scaled)),
        ];
        g.fused("CachedAttention", &inputs, &attributes, |g| self.look(g, query, seen))
    }

    /// Attention of rows of queries to what they see.
    fn look(&self, g: &mut GraphBuilder<'_>, query: &Value, seen: &Seen<'_>) -> Value {
        let query = Heads::part(g, query, &self.head_shape);
        let mut read = |whole: &Value| match seen.first {
            None => whole.clone(),
            Some((_, count)) => {
                let start = g.ints(&[0]);
                g.slice(whole, &start, count, 2)
            }
        };
        let (key, value) = (read(seen.key), read(seen.value));
        self.heads.attend(g, [&query, &key, &value], seen.mask)
    }

    /// Of the rows of all appended positions those of the last real ones:
    /// `[batch, width]`.
    pub(crate) fn last(&self, g: &mut GraphBuilder<'_>, rows: &Value, width: usize) -> Value {
        let rest = g.ints(&[width as i64]);
        let shape = g.concat(&[&self.batch, &self.count, &rest], 0);
        let hidden = g.reshape_to(rows, &shape);
        let one = g.int(1);
        let last = g.sub(&self.lengths, &one);
        let last = g.unsqueeze(&last, &[1]);
        g.node("GatherND", &[&hidden, &last], &[("batch_dims", Attribute::Int(1))])
    }
}

/// Which of the keys at `positions` (`[keys]`) lie before the `lengths`
/// (`[batch]`) of their sequences, for `count` (`[1]`) queries each:
/// `[batch, 1, count, keys]`.
pub(crate) fn real_keys(
    g: &mut GraphBuilder<'_>,
    positions: &Value,
    lengths: &Value,
    count: &Value,
) -> Value {
    let ends = g.unsqueeze(lengths, &[1, 2, 3]);
    let mask = g.node("Less", &[positions, &ends], &[]);
    let one = g.ints(&[1]);
    let shape = g.concat(&[&one, &one, count, &one], 0);
    g.expand(&mask, &shape)
}

/// What a decoder's cross attention looks at.
#[derive(Debug)]
pub(crate) struct Memory {
    length: Option<usize>,
    text: Option<MemoryText>,
}

/// A memory whose length depends on a text.
#[derive(Debug)]
struct MemoryText {
    /// `[memory_keys]`.
    positions: Value,
    /// How many of its positions are read, `[1]`.
    keys: Value,
    /// Which of them are real, `[batch, 1, count, keys]`.
    mask: Value,
}

impl Memory {
    /// A memory of always `length` positions.
    pub(crate) fn of_length(length: usize) -> Self {
        Memory { length: Some(length), text: None }
    }

    /// A memory with a text in it: adds the inputs `memory_positions` and
    /// `memory_lengths` to the decoder, one step of which is `step`.
    pub(crate) fn of_text(g: &mut GraphBuilder<'_>, step: &Step) -> Self {
        let positions = g.input("memory_positions", Type::I64, &["memory_keys".into()]);
        let lengths = g.input("memory_lengths", Type::I64, &["batch".into()]);
        let mask = real_keys(g, &positions, &lengths, &step.count);
        let keys = g.dim(&positions, 0);
        Memory { length: None, text: Some(MemoryText { positions, keys, mask }) }
    }

    fn shape(&self, heads: &Heads) -> [Dim<'static>; 4] {
        let length = self.length.map_or(Dim::Free("memory_length"), Dim::Fixed);
        ["batch".into(), Dim::Fixed(heads.count), length, Dim::Fixed(heads.width)]
    }

    /// In the memory graph: makes `side` (`key` or `value`) of `layer`, rows of
    /// `batch` times `count` (`[1]` each) positions, what the decoder reads.
    /// Where a text is in it, the rows are written over the beginning of the
    /// slot, whose rest is not read.
    pub(crate) fn write(
        g: &mut GraphBuilder<'_>,
        name: &str,
        rows: &Value,
        heads: Heads,
        [batch, count]: [&Value; 2],
        length: Option<usize>,
    ) {
        let shape = heads.shape(g, batch, count);
        let new = Heads::part(g, rows, &shape);
        let memory = Memory { length, text: None };
        let shape = memory.shape(&heads);
        let written = match length {
            Some(_) => new,
            None => {
                let past = g.input(&format!("memory.{name}"), Type::F32, &shape);
                let zeros = {
                    let zero = g.int(0);
                    g.expand(&zero, batch)
                };
                g.tensor_scatter(&past, &new, &zeros, 2)
            }
        };
        g.output(&written, &format!("present_memory.{name}"), Type::F32, &shape);
    }
}
