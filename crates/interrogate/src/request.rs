//! What a request asks of the interrogator, and the bounds of its numbers.

use std::ops::RangeInclusive;
use std::time::Duration;

use imprompt_error::{Error, Result};
use serde::Serialize;

/// Flavors the chain adds whatever their score, when the request does not say.
pub const DEFAULT_MIN_FLAVORS: usize = 8;
/// Flavors at most, when the request does not say, in every mode but classic.
pub const DEFAULT_MAX_FLAVORS: usize = 32;
/// Flavors at most in mode classic, when the request does not say.
pub const DEFAULT_MAX_FLAVORS_CLASSIC: usize = 3;
/// Greatest `min_flavors` of a request.
pub const MAX_MIN_FLAVORS: usize = 128;
/// Greatest `budget_ms` of a request: an hour.
pub const MAX_BUDGET_MS: i32 = 3_600_000;
/// Greatest `max_flavors` of a request: a prompt of 77 tokens has no room for more.
pub const MAX_MAX_FLAVORS: usize = 128;

/// How a prompt is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The best of the caption, classic, fast, and a chain of terms that each raise the similarity.
    #[default]
    Best,
    /// The caption and the terms most similar to the picture.
    Fast,
    /// The caption, a medium, an artist, a trending phrase, a movement, and a few flavors.
    Classic,
    /// The terms least similar to the picture, for a negative prompt.
    Negative,
    /// The caption alone.
    Caption,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Mode; 5] =
        [Mode::Best, Mode::Fast, Mode::Classic, Mode::Negative, Mode::Caption];

    /// The mode's name.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Best => "best",
            Mode::Fast => "fast",
            Mode::Classic => "classic",
            Mode::Negative => "negative",
            Mode::Caption => "caption",
        }
    }
}

impl std::str::FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == text).ok_or_else(|| {
            Error::invalid(format!(
                "input `mode`: {} bytes that are no mode, allowed: {}",
                text.len(),
                Self::ALL.map(Mode::name).join(", ")
            ))
        })
    }
}

/// A request: which prompt to make.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// How the prompt is made.
    pub mode: Mode,
    /// The caption it starts from. Mode negative does not use it.
    pub caption: &'a str,
    /// Tensor `min_flavors`: terms the chain of mode best accepts whatever their score.
    pub min_flavors: Option<i32>,
    /// Tensor `max_flavors`: terms at most.
    pub max_flavors: Option<i32>,
    /// Tensor `budget_ms`: milliseconds after which the chain ends with what it has.
    pub budget_ms: Option<i32>,
}

/// The numbers of a request, checked, with the defaults filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlavorCounts {
    /// Terms the chain accepts whatever their score. It may exceed `max`, which rules then.
    pub min: usize,
    /// Terms at most.
    pub max: usize,
}

impl Request<'_> {
    /// How long the chain may look for terms; `None`: as long as it finds some.
    ///
    /// # Errors
    /// As [`Request::validate`].
    pub fn budget(&self) -> Result<Option<Duration>> {
        match self.budget_ms {
            None => Ok(None),
            Some(ms @ 1..=MAX_BUDGET_MS) => {
                Ok(Some(Duration::from_millis(ms.unsigned_abs().into())))
            }
            Some(ms) => Err(Error::invalid(format!(
                "input `budget_ms`: {ms}, allowed: 1 to {MAX_BUDGET_MS}"
            ))),
        }
    }

    /// Checks the numbers and fills in the mode's defaults.
    ///
    /// # Errors
    /// [`imprompt_error::Kind::InvalidInput`] naming the tensor, its value, and what is allowed.
    pub fn validate(&self) -> Result<FlavorCounts> {
        let default_max = match self.mode {
            Mode::Classic => DEFAULT_MAX_FLAVORS_CLASSIC,
            _ => DEFAULT_MAX_FLAVORS,
        };
        Ok(FlavorCounts {
            min: bounded(
                "min_flavors",
                self.min_flavors,
                0..=MAX_MIN_FLAVORS,
                DEFAULT_MIN_FLAVORS,
            )?,
            max: bounded("max_flavors", self.max_flavors, 1..=MAX_MAX_FLAVORS, default_max)?,
        })
    }
}

fn bounded(
    tensor: &str,
    value: Option<i32>,
    allowed: RangeInclusive<usize>,
    default: usize,
) -> Result<usize> {
    let Some(value) = value else { return Ok(default) };
    usize::try_from(value).ok().filter(|count| allowed.contains(count)).ok_or_else(|| {
        Error::invalid(format!(
            "input `{tensor}`: {value}, allowed: {} to {}",
            allowed.start(),
            allowed.end()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_names() {
        for mode in Mode::ALL {
            assert_eq!(mode.name().parse::<Mode>().unwrap(), mode);
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.name());
        }
        let error = "ZOOM".parse::<Mode>().unwrap_err();
        assert_eq!(
            error.message(),
            "input `mode`: 4 bytes that are no mode, allowed: best, fast, classic, negative, caption"
        );
        assert!("Best".parse::<Mode>().is_err() && "".parse::<Mode>().is_err());
    }

    #[test]
    fn defaults_depend_on_the_mode() {
        let counts = |mode| Request { mode, ..Request::default() }.validate().unwrap();
        assert_eq!(counts(Mode::Best), FlavorCounts { min: 8, max: 32 });
        assert_eq!(counts(Mode::Classic), FlavorCounts { min: 8, max: 3 });
        assert_eq!(counts(Mode::Negative), FlavorCounts { min: 8, max: 32 });
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let counts = |min_flavors, max_flavors| {
            Request { min_flavors, max_flavors, ..Request::default() }.validate()
        };
        assert_eq!(counts(Some(0), Some(1)).unwrap(), FlavorCounts { min: 0, max: 1 });
        assert_eq!(counts(Some(128), Some(128)).unwrap(), FlavorCounts { min: 128, max: 128 });
        let message = |result: Result<FlavorCounts>| result.unwrap_err().message().to_owned();
        assert_eq!(message(counts(Some(-1), None)), "input `min_flavors`: -1, allowed: 0 to 128");
        assert_eq!(message(counts(Some(129), None)), "input `min_flavors`: 129, allowed: 0 to 128");
        assert_eq!(message(counts(None, Some(0))), "input `max_flavors`: 0, allowed: 1 to 128");
        assert_eq!(message(counts(None, Some(129))), "input `max_flavors`: 129, allowed: 1 to 128");
        assert!(counts(None, Some(i32::MIN)).is_err());
    }
}
