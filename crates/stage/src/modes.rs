//! The `mode` of each item of a request, which two stages read.

use imprompt_error::Result;
use imprompt_interrogate::Mode;

/// The mode of `item`: the default where the request has none.
pub(crate) fn mode(modes: Option<&[&str]>, item: usize) -> Result<Mode> {
    modes.map_or(Ok(Mode::default()), |modes| modes[item].parse())
}
