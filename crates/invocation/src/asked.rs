//! What a body asks, as one text that goes from stage to stage.

use imprompt_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// `{"outputs": "a prompt"}`.
    Prompt,
    /// `[[p, ...]]`.
    Probabilities,
    /// `{"labels": [{"label", "probability", "similarity"}, ...]}`.
    Labels,
}

/// A value of a field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// A text.
    Text(String),
    /// Texts, at least one.
    Texts(Vec<String>),
    /// A whole number.
    Whole(i32),
    /// Any number.
    Real(f32),
}

/// What a body asks of a picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// The form of the answer.
    pub answer: Answer,
    /// Inputs of the stages by their names, and their values.
    pub inputs: Vec<(String, Value)>,
}

impl Asked {
    /// The text that [`Self::from_text`] reads.
    ///
    /// # Errors
    /// None that are known.
    pub fn to_text(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|_| Error::internal("a body that cannot be handed on"))
    }

    /// Reads what [`Self::to_text`] has written.
    ///
    /// # Errors
    /// `InvalidInput` where another has written it.
    pub fn from_text(text: &[u8]) -> Result<Self> {
        serde_json::from_slice(text).map_err(|error| {
            Error::invalid(format!(
                "input `invocation`: not what the stage `invocation` makes, at line {}, column {}",
                error.line(),
                error.column()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_goes_through_text() {
        let asked = Asked {
            answer: Answer::Labels,
            inputs: vec![
                ("labels".to_owned(), Value::Texts(vec!["ä \"b\"\n".to_owned(), String::new()])),
                ("template".to_owned(), Value::Text("{}".to_owned())),
                ("top_k".to_owned(), Value::Whole(-3)),
                ("temperature".to_owned(), Value::Real(2.0)),
            ],
        };
        assert_eq!(Asked::from_text(asked.to_text().unwrap().as_bytes()).unwrap(), asked);
        for other in ["", "{}", r#"{"answer": "ZOOM", "inputs": []}"#, "[1"] {
            let error = Asked::from_text(other.as_bytes()).unwrap_err();
            assert!(error.message().starts_with("input `invocation`: not what"), "{error}");
            assert!(!error.message().contains("ZOOM"));
        }
    }
}
