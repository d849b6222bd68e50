//! The half of a caption model that reads no text: pictures to embeddings.

use std::path::Path;

use imprompt_engine::{Engine, EngineOptions, Floats, Held, Input, Runtime};
use imprompt_error::{Error, Result};
use imprompt_graph::CaptionFacts;
use imprompt_graph::captioner::{QFORMER_GRAPH, VISION_GRAPH};

/// The image encoder, and the Q-Former where it reads no text. A
/// [`Captioner`](crate::Captioner) has one, or is fed by one elsewhere.
#[derive(Debug)]
pub struct PictureEncoder {
    image_size: usize,
    vision: Box<dyn Engine>,
    qformer: Option<Box<dyn Engine>>,
}

impl PictureEncoder {
    /// Opens the graphs in `folder`, which `facts` describe.
    ///
    /// # Errors
    /// `BadModel` naming the file when a graph or its weights are missing or
    /// corrupt or do not fit `facts`, `OutOfMemory`.
    pub fn open(
        folder: &Path,
        facts: &CaptionFacts,
        runtime: &dyn Runtime,
        options: &EngineOptions,
    ) -> Result<Self> {
        // What a picture gives shall not depend on who else asks.
        let options = EngineOptions { independent_rows: true, ..options.clone() };
        let open = |name: &str| runtime.open(&folder.join(name), &options);
        let vision = open(VISION_GRAPH)?;
        let size = Some(facts.image_size);
        let expected = [("pixel_values", vec![None, Some(3), size, size])];
        check_ports(vision.as_ref(), &expected).map_err(|error| error.context(folder.display()))?;
        let follows = facts.qformer && facts.is_encoder(QFORMER_GRAPH);
        let qformer = follows.then(|| open(QFORMER_GRAPH)).transpose()?;
        Ok(PictureEncoder { image_size: facts.image_size, vision, qformer })
    }

    /// Embeds pictures: `pixel_values` f32 `[pictures, 3, image_size, image_size]` to f32
    /// `[pictures, positions, width]`, of [`CaptionFacts::encoded_shape`].
    ///
    /// # Errors
    /// `Internal` when the pixels are not of that shape; what the engine reports.
    pub fn encode<'a>(
        &mut self,
        pictures: usize,
        pixel_values: impl Into<Floats<'a>>,
    ) -> Result<Box<dyn Held>> {
        let pixel_values = pixel_values.into();
        let shape = [pictures, 3, self.image_size, self.image_size];
        let pixels = pixel_values.input(&shape)?;
        let image = one(self.vision.run(&[("pixel_values", pixels)], &["image_embeds"])?)?;
        let Some(qformer) = &mut self.qformer else { return Ok(image) };
        one(qformer.run(&[("image_embeds", Input::from(&image))], &["query_embeds"])?)
    }
}

/// The only output of a run.
pub(crate) fn one(mut outputs: Vec<Box<dyn Held>>) -> Result<Box<dyn Held>> {
    outputs.pop().ok_or_else(|| Error::internal("a graph gave no output"))
}

/// The graph is the one that is `expected`, as far as its inputs tell.
pub(crate) fn check_ports(
    engine: &dyn Engine,
    expected: &[(&str, Vec<Option<usize>>)],
) -> Result<()> {
    for (name, shape) in expected {
        let port = engine.inputs().iter().find(|port| port.name == *name);
        if port.is_none_or(|port| port.shape != *shape) {
            return Err(Error::bad_model(format!(
                "the graphs and what is said of them differ: input {name} should have shape \
                 {shape:?} and has {:?}",
                port.map(|port| &port.shape)
            )));
        }
    }
    Ok(())
}
