//! The fields of a body.

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An encoded picture, as base64 text.
    Picture,
    /// A text.
    Text,
    /// A list of texts, or one text.
    Texts,
    /// A whole number.
    Whole,
    /// Any number.
    Real,
    /// An object of further fields.
    Parameters,
}

impl Kind {
    /// What is allowed, for messages.
    pub(crate) fn allowed(self) -> &'static str {
        match self {
            Kind::Picture => "a picture as base64 text",
            Kind::Text => "a text",
            Kind::Texts => "a list of texts",
            Kind::Whole => "a whole number of 32 bits",
            Kind::Real => "a number",
            Kind::Parameters => "an object",
        }
    }
}

/// Which answers take a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// A prompt.
    Prompt,
    /// Labels, and it says that they are asked.
    LabelsAsked,
    /// Labels.
    Labels,
    /// All of them.
    All,
}

/// A field.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// The key.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) of: Of,
    /// The input of a stage that it is.
    pub(crate) input: &'static str,
}

const fn field(name: &'static str, kind: Kind, of: Of) -> Field {
    Field { name, kind, of, input: name }
}

/// The key of the object that holds further fields.
pub(crate) const PARAMETERS: &str = "parameters";
/// The AWS sample's number of a caption's tokens, clip-interrogator's `caption_max_length`.
pub(crate) const MAX_LENGTH: &str = "max_length";

/// Every field, in the order in which messages name them.
pub(crate) const FIELDS: [Field; 23] = [
    field("image", Kind::Picture, Of::All),
    field("inputs", Kind::Picture, Of::All),
    field(PARAMETERS, Kind::Parameters, Of::All),
    Field { input: "labels", ..field("prompt", Kind::Texts, Of::LabelsAsked) },
    field("labels", Kind::Texts, Of::LabelsAsked),
    field("vocabulary", Kind::Text, Of::LabelsAsked),
    field("template", Kind::Text, Of::Labels),
    field("mode", Kind::Text, Of::Prompt),
    field("given_caption", Kind::Text, Of::Prompt),
    field("min_flavors", Kind::Whole, Of::Prompt),
    field("max_flavors", Kind::Whole, Of::Prompt),
    field("budget_ms", Kind::Whole, Of::Prompt),
    Field { input: "max_new_tokens", ..field(MAX_LENGTH, Kind::Whole, Of::Prompt) },
    field("max_new_tokens", Kind::Whole, Of::Prompt),
    field("min_new_tokens", Kind::Whole, Of::Prompt),
    field("num_beams", Kind::Whole, Of::Prompt),
    field("temperature", Kind::Real, Of::Prompt),
    // Of a caption's sampling, or of the labels: the answer tells which.
    field("top_k", Kind::Whole, Of::All),
    field("top_p", Kind::Real, Of::Prompt),
    field("seed", Kind::Whole, Of::Prompt),
    field("repetition_penalty", Kind::Real, Of::Prompt),
    field("length_penalty", Kind::Real, Of::Prompt),
    field("no_repeat_ngram_size", Kind::Whole, Of::Prompt),
];

/// The names of all fields, for messages.
pub(crate) fn names() -> String {
    FIELDS.iter().map(|field| field.name).collect::<Vec<_>>().join(", ")
}
