//! Pictures to embeddings.

use std::path::Path;

use imprompt_engine::{ElementType, Engine, EngineOptions, Floats, Runtime};
use imprompt_error::{Error, Result};
use imprompt_graph::ClipFacts;
use imprompt_graph::clip::IMAGE_GRAPH;

use crate::{check_embeds, check_port};

/// The image tower.
#[derive(Debug)]
pub struct ImageEncoder {
    engine: Box<dyn Engine>,
    facts: ClipFacts,
}

impl ImageEncoder {
    /// Opens `clip_image.onnx` of `folder`, which `facts` describe.
    ///
    /// # Errors
    /// `BadModel` naming the file when it or its weights are missing, corrupt
    /// or do not fit the facts; `OutOfMemory`.
    pub fn open(
        folder: &Path,
        facts: ClipFacts,
        runtime: &dyn Runtime,
        options: &EngineOptions,
    ) -> Result<Self> {
        let path = folder.join(IMAGE_GRAPH);
        // A picture's embedding, and with it the prompt, shall not depend on who else asks.
        let options = EngineOptions { independent_rows: true, ..options.clone() };
        let engine = runtime.open(&path, &options)?;
        let pixels = [None, Some(facts.channels), Some(facts.image_size), Some(facts.image_size)];
        check_port(engine.inputs(), "pixel_values", ElementType::F32, &pixels)
            .and_then(|()| check_embeds(engine.as_ref(), "image_embeds", facts.projection_dim))
            .map_err(|error| error.context(path.display()))?;
        Ok(ImageEncoder { engine, facts })
    }

    /// What the model is.
    #[must_use]
    pub fn facts(&self) -> &ClipFacts {
        &self.facts
    }

    /// The embeddings of `batch` pictures: `pixel_values` is float32
    /// `[batch, channels, size, size]`, normalised as the model's preprocessor
    /// says; the result float32 `[batch, D]`, rows of length 1.
    ///
    /// # Errors
    /// `Internal` when the pixels do not fill the shape; what the engine
    /// reports.
    pub fn encode<'a>(
        &mut self,
        pixel_values: impl Into<Floats<'a>>,
        batch: usize,
    ) -> Result<Vec<f32>> {
        let pixel_values = pixel_values.into();
        if batch == 0 {
            return Ok(Vec::new());
        }
        let size = self.facts.image_size;
        let shape = [batch, self.facts.channels, size, size];
        let pixels = pixel_values.input(&shape).map_err(|error| error.context("pixel_values"))?;
        let outputs = self.engine.run(&[("pixel_values", pixels)], &["image_embeds"])?;
        let embeds = outputs.first().ok_or_else(|| Error::internal("no image_embeds"))?;
        Ok(embeds.as_slice::<f32>()?.to_vec())
    }
}
