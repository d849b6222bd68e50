//! Nodes that are one operator where an engine has it.
//!
//! A graph is written in standard operators. A group of nodes that an engine may replace by one
//! operator of its own carries, in the `doc_string` of its first node, what that operator would be:
//! its name, inputs, output and integer attributes; the nodes that follow say [`GOES_ON`]. Who does
//! not know it passes over the texts.

use std::fmt;

/// The operator that a group of nodes amounts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fused {
    /// Its name, such as `PrefixAttention`.
    pub operator: String,
    /// The tensors it takes.
    pub inputs: Vec<String>,
    /// The one it gives.
    pub output: String,
    /// Its attributes.
    pub attributes: Vec<(String, i64)>,
}

/// What the nodes of a group say, but for the first.
pub const GOES_ON: &str = "imprompt.fused: goes on";

const MARK: &str = "imprompt.fused";

impl fmt::Display for Fused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fused { operator, inputs, output, attributes } = self;
        write!(f, "{MARK} {operator} {} {output}", inputs.join(","))?;
        attributes.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

impl Fused {
    /// Reads what [`Fused`]'s `Display` wrote; `None` of any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.strip_prefix(MARK)?.strip_prefix(' ')?.split(' ');
        let (operator, inputs, output) = (words.next()?, words.next()?, words.next()?);
        let attribute = |word: &str| {
            let (name, value) = word.split_once('=')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Some(Fused {
            operator: operator.to_owned(),
            inputs: inputs.split(',').map(str::to_owned).collect(),
            output: output.to_owned(),
            attributes: words.map(attribute).collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_back() {
        let fused = Fused {
            operator: "PrefixAttention".to_owned(),
            inputs: vec!["query".to_owned(), "layer.0/key".to_owned()],
            output: "seen".to_owned(),
            attributes: vec![("heads".to_owned(), 12), ("layer".to_owned(), -1)],
        };
        assert_eq!(Fused::parse(&fused.to_string()), Some(fused));
        for text in
            [GOES_ON, "", "imprompt.fused", "imprompt.fused A", "imprompt.fused A b c d", "A b c"]
        {
            assert_eq!(Fused::parse(text), None);
        }
    }
}
