//! Graphs that are multiplied less exactly than float32.

use imprompt_error::Result;
use prost::Message as _;

use crate::builder::Graph;

/// `graph` over the same weights, in which the first sixteen of a float32's 24 bits are multiplied, where an engine's
/// products of those take less time.
///
/// # Errors
/// `Internal` when the graph is none.
pub fn high(graph: &Graph) -> Result<Graph> {
    let mut model = graph.model()?;
    model.set_high_precision();
    Ok(Graph { bytes: model.encode_to_vec(), ..graph.clone() })
}
