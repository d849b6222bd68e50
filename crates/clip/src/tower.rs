//! The text tower, which several encoders may share.
//!
//! They take turns at it, in the order in which they ask. A chain's step is many runs: what others want comes in
//! between, and waits for one turn of each.

use std::path::Path;
use std::time::{Duration, Instant};

use imprompt_engine::{ElementType, Engine, EngineOptions, Runtime};
use imprompt_error::Result;
use imprompt_graph::clip::TEXT_GRAPH;
use imprompt_graph::{ClipFacts, ClipFamily};
use parking_lot::{FairMutex, FairMutexGuard};

use crate::{check_embeds, check_port};

/// How a [`TextTower`] works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextOptions {
    /// The engine below it.
    pub engine: EngineOptions,
    /// About how many tokens one run of the tower has: large enough for the
    /// matrix products to be efficient, small enough for their results to stay
    /// in the processor's cache.
    pub tokens_per_run: usize,
    /// Rows of a causal tower are run with rows of their own length, rounded up to a multiple of this.
    /// 1 where what is computed costs more than what is asked for; more where each run costs by itself.
    pub length_step: usize,
    /// How long a turn lasts while others wait, and then until its run ends. Longer than the runs of a small tower:
    /// with each change of turns caches are filled anew.
    pub turn: Duration,
}

impl Default for TextOptions {
    fn default() -> Self {
        TextOptions {
            engine: EngineOptions::default(),
            tokens_per_run: 1024,
            length_step: 1,
            turn: Duration::from_millis(20),
        }
    }
}

/// The text tower. What a run computes depends on nothing that was run before.
#[derive(Debug)]
pub struct TextTower {
    engine: FairMutex<Box<dyn Engine>>,
    turn: Duration,
    pub(crate) facts: ClipFacts,
    pub(crate) tokens_per_run: usize,
    pub(crate) length_step: usize,
    /// Most rows of a run.
    pub(crate) most_rows: usize,
}

impl TextTower {
    /// Opens `clip_text.onnx` of `folder`, which `facts` describe.
    ///
    /// # Errors
    /// `BadModel` naming the file when it or its weights are missing, corrupt
    /// or do not fit the facts; `OutOfMemory`.
    pub fn open(
        folder: &Path,
        facts: ClipFacts,
        runtime: &dyn Runtime,
        options: &TextOptions,
    ) -> Result<Self> {
        Self::open_graph(&folder.join(TEXT_GRAPH), facts, runtime, options)
    }

    /// Opens the text graph in the file `path`: the same tower in another precision, for example.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_graph(
        path: &Path,
        facts: ClipFacts,
        runtime: &dyn Runtime,
        options: &TextOptions,
    ) -> Result<Self> {
        let engine = runtime.open(path, &options.engine)?;
        let ClipFacts { text_layers, text_heads, text_head_dim, .. } = facts;
        let inputs = engine.inputs();
        let checked = match facts.family {
            ClipFamily::Clip => {
                let prefix = [Some(text_layers), Some(text_heads), None, Some(text_head_dim)];
                check_port(inputs, "prefix_keys", ElementType::F32, &prefix)
            }
            ClipFamily::Siglip => {
                let rows = [None, Some(facts.context_length)];
                check_port(inputs, "input_ids", ElementType::I64, &rows)
            }
        };
        checked
            .and_then(|()| check_embeds(engine.as_ref(), "text_embeds", facts.projection_dim))
            .map_err(|error| error.context(path.display()))?;
        let is_causal = facts.family == ClipFamily::Clip;
        Ok(TextTower {
            most_rows: engine.most("input_ids", 0).unwrap_or(usize::MAX).max(1),
            engine: FairMutex::new(engine),
            turn: options.turn,
            facts,
            tokens_per_run: options.tokens_per_run.max(1),
            length_step: match is_causal {
                true => options.length_step.max(1),
                false => 1,
            },
        })
    }

    /// Waits for a turn.
    pub(crate) fn turn(&self) -> Turn<'_> {
        Turn { engine: self.engine.lock(), began: Instant::now(), length: self.turn }
    }
}

/// A turn at a tower.
pub(crate) struct Turn<'t> {
    engine: FairMutexGuard<'t, Box<dyn Engine>>,
    began: Instant,
    length: Duration,
}

impl Turn<'_> {
    /// The tower, for one run: before it others have theirs, if this turn has lasted long enough.
    pub(crate) fn engine(&mut self) -> &mut dyn Engine {
        if self.began.elapsed() >= self.length {
            FairMutexGuard::bump(&mut self.engine);
            self.began = Instant::now();
        }
        &mut **self.engine
    }
}
