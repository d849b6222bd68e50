//! CLIP's two towers at work: pictures and token rows to embeddings.
//!
//! [`ImageEncoder`] takes prepared pixels, [`TextEncoder`] takes token rows as
//! the tokenizer makes them. Both give float32 `[n, D]`, row-major, each row
//! L2-normalised, and belong to one instance; instances may share a [`TextTower`].
#![forbid(unsafe_code)]

mod image;
mod text;
mod tower;

use imprompt_engine::{ElementType, Engine, Port};
use imprompt_error::{Error, Result};

pub use image::ImageEncoder;
pub use text::TextEncoder;
pub use tower::{TextOptions, TextTower};

/// Refuses a graph whose port `name` is not of this type and shape (`None`: any
/// length): the facts are another model's.
fn check_port(
    ports: &[Port],
    name: &str,
    element_type: ElementType,
    shape: &[Option<usize>],
) -> Result<()> {
    let port = ports
        .iter()
        .find(|port| port.name == name)
        .ok_or_else(|| Error::bad_model(format!("the graph has no tensor {name}")))?;
    if port.element_type == element_type && port.shape == shape {
        return Ok(());
    }
    Err(Error::bad_model(format!(
        "the graph's {name} is {:?} {:?}, the facts beside it say {element_type:?} {shape:?}",
        port.element_type, port.shape
    )))
}

/// Checks an encoder's output port.
fn check_embeds(engine: &dyn Engine, name: &str, dimension: usize) -> Result<()> {
    check_port(engine.outputs(), name, ElementType::F32, &[None, Some(dimension)])
}
