//! Floats that a run is given, wherever they are.

use std::borrow::Cow;

use imprompt_error::{Error, Result};

use crate::tensor::element_count;
use crate::{Held as _, HeldRows, Input, TensorView};

/// Values of one or more pictures or embeddings, row-major, as they came: on the host, or as an engine
/// holds them, on a GPU perhaps.
#[derive(Clone, Debug, PartialEq)]
pub enum Floats<'a> {
    /// On the host.
    Values(Cow<'a, [f32]>),
    /// As engines hold them.
    Held(HeldRows),
}

impl<'a> From<&'a [f32]> for Floats<'a> {
    fn from(values: &'a [f32]) -> Self {
        Floats::Values(values.into())
    }
}

impl<'a> From<&'a Vec<f32>> for Floats<'a> {
    fn from(values: &'a Vec<f32>) -> Self {
        Floats::from(values.as_slice())
    }
}

impl Floats<'_> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Floats::Values(values) => values.len(),
            Floats::Held(rows) => rows.elements(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// They on the host: copied from a GPU when they are asked for first.
    ///
    /// # Errors
    /// `Internal` when the GPU cannot be read.
    pub fn to_host(&self) -> Result<&[f32]> {
        match self {
            Floats::Values(values) => Ok(values),
            Floats::Held(rows) => rows.to_host()?.as_slice(),
        }
    }

    /// The ones from `start` on that fill `shape`.
    ///
    /// # Errors
    /// `Internal` when there are not so many.
    pub fn part(&self, start: usize, shape: &[usize]) -> Result<Floats<'_>> {
        match self {
            Floats::Held(rows) => rows.part(start, shape.to_vec()).map(Floats::Held),
            Floats::Values(values) => {
                let end = element_count(shape).and_then(|count| count.checked_add(start));
                let part = end.and_then(|end| values.get(start..end));
                let short =
                    || Error::internal(format!("{shape:?} from {start} on of {}", self.len()));
                part.map(Floats::from).ok_or_else(short)
            }
        }
    }

    /// `parts` one behind the other, which differ in the first dimension alone; one is not copied. Where
    /// some are on the host, all are brought there.
    ///
    /// # Errors
    /// `Internal` when they are of different shapes, or a GPU cannot be read; `OutOfMemory`.
    pub fn joined<'p>(parts: &[&'p Floats<'_>]) -> Result<Floats<'p>> {
        let held = parts.iter().map(|part| match part {
            Floats::Held(rows) => Some(rows),
            Floats::Values(_) => None,
        });
        match (parts, held.collect::<Option<Vec<&HeldRows>>>()) {
            ([], _) => Ok(Floats::Values(Cow::Borrowed(&[]))),
            ([Floats::Values(values)], _) => Ok(Floats::Values(Cow::Borrowed(values))),
            (_, Some(held)) => HeldRows::joined(held).map(Floats::Held),
            (_, None) => {
                let mut values = reserved(parts.iter().map(|part| part.len()).sum())?;
                for part in parts {
                    values.extend_from_slice(part.to_host()?);
                }
                Ok(Floats::Values(values.into()))
            }
        }
    }

    /// The same ones, to be kept for longer than what they were borrowed from.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn kept(&self) -> Result<Floats<'static>> {
        match self {
            Floats::Held(rows) => Ok(Floats::Held(rows.clone())),
            Floats::Values(values) => {
                let mut kept = reserved(values.len())?;
                kept.extend_from_slice(values);
                Ok(Floats::Values(kept.into()))
            }
        }
    }

    /// As the input of a run, which has `shape`.
    ///
    /// # Errors
    /// `Internal` when they do not fill it, or are held in another one.
    pub fn input<'s>(&'s self, shape: &'s [usize]) -> Result<Input<'s>> {
        match self {
            Floats::Values(values) => Ok(TensorView::new(shape, values)?.into()),
            Floats::Held(rows) if rows.shape() == shape => Ok(Input::Held(rows)),
            Floats::Held(rows) => Err(Error::internal(format!(
                "a tensor of shape {:?} was given for one of {shape:?}",
                rows.shape()
            ))),
        }
    }
}

/// Room for `count` values.
fn reserved(count: usize) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    let room = values.try_reserve_exact(count);
    room.map_err(|_| Error::out_of_memory(format_args!("{count} values")))?;
    Ok(values)
}
