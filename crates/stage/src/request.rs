//! Requests and responses as plain values.

use std::borrow::Cow;

use imprompt_engine::{Floats, Held as _, HeldRows};
use imprompt_error::{Cancellation, Error, Result};

use crate::signature::Dtype;

/// The values of a tensor, row-major. Borrowed where the host's memory serves.
#[derive(Clone, Debug, PartialEq)]
pub enum Data<'a> {
    /// 32-bit floats.
    F32(Cow<'a, [f32]>),
    /// 32-bit floats as an engine holds them, on a GPU perhaps: for another instance's engine.
    Held(HeldRows),
    /// 32-bit integers.
    I32(Cow<'a, [i32]>),
    /// Byte strings, one an element; not necessarily UTF-8.
    Bytes(Vec<Cow<'a, [u8]>>),
}

impl Data<'_> {
    /// The element type.
    pub fn dtype(&self) -> Dtype {
        match self {
            Data::F32(_) | Data::Held(_) => Dtype::Fp32,
            Data::I32(_) => Dtype::Int32,
            Data::Bytes(_) => Dtype::Bytes,
        }
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        match self {
            Data::F32(values) => values.len(),
            Data::Held(rows) => rows.elements(),
            Data::I32(values) => values.len(),
            Data::Bytes(values) => values.len(),
        }
    }

    /// The floats, on the host; `None` of another type.
    ///
    /// # Errors
    /// `Internal` when a GPU that has them cannot be read.
    pub fn floats(&self) -> Result<Option<&[f32]>> {
        match self {
            Data::F32(values) => Ok(Some(values)),
            Data::Held(rows) => Ok(Some(rows.to_host()?.as_slice()?)),
            Data::I32(_) | Data::Bytes(_) => Ok(None),
        }
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One named tensor of one request or response; the first dimension is the
/// request's own batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<'a> {
    /// The name, as in config.pbtxt.
    pub name: Cow<'a, str>,
    /// The shape, batch dimension first.
    pub shape: Vec<usize>,
    /// The values: as many as the product of `shape`.
    pub data: Data<'a>,
}

impl<'a> Tensor<'a> {
    /// A FP32 tensor.
    pub fn f32(
        name: impl Into<Cow<'a, str>>,
        shape: Vec<usize>,
        values: impl Into<Cow<'a, [f32]>>,
    ) -> Self {
        Tensor { name: name.into(), shape, data: Data::F32(values.into()) }
    }

    /// An INT32 tensor.
    pub fn i32(
        name: impl Into<Cow<'a, str>>,
        shape: Vec<usize>,
        values: impl Into<Cow<'a, [i32]>>,
    ) -> Self {
        Tensor { name: name.into(), shape, data: Data::I32(values.into()) }
    }

    /// A BYTES tensor.
    pub fn bytes(
        name: impl Into<Cow<'a, str>>,
        shape: Vec<usize>,
        values: Vec<Cow<'a, [u8]>>,
    ) -> Self {
        Tensor { name: name.into(), shape, data: Data::Bytes(values) }
    }

    /// A FP32 tensor that an engine holds.
    pub fn held(name: impl Into<Cow<'a, str>>, rows: HeldRows) -> Self {
        Tensor { name: name.into(), shape: rows.shape().to_vec(), data: Data::Held(rows) }
    }

    /// The same values under the name `name`, without a copy.
    pub fn renamed<'t>(&'t self, name: &'t str) -> Tensor<'t> {
        let data = match &self.data {
            Data::F32(values) => Data::F32(Cow::Borrowed(values)),
            Data::Held(rows) => Data::Held(rows.clone()),
            Data::I32(values) => Data::I32(Cow::Borrowed(values)),
            Data::Bytes(values) => {
                Data::Bytes(values.iter().map(|value| Cow::Borrowed(&value[..])).collect())
            }
        };
        Tensor { name: Cow::Borrowed(name), shape: self.shape.clone(), data }
    }

    /// A BYTES tensor of shape `[n, 1]`, a text an item.
    pub fn texts(name: impl Into<Cow<'a, str>>, texts: Vec<String>) -> Self {
        let shape = vec![texts.len(), 1];
        let values = texts.into_iter().map(|text| Cow::Owned(text.into_bytes())).collect();
        Tensor { name: name.into(), shape, data: Data::Bytes(values) }
    }
}

/// A response: the outputs that were asked for.
pub type Response = Vec<Tensor<'static>>;

/// One request: its tensors, and how to ask whether its client is still there.
pub struct Request<'a> {
    /// The request's own batch size: the first dimension of every input.
    pub batch: usize,
    /// The inputs that are present; optional ones may be absent.
    pub inputs: Vec<Tensor<'a>>,
    /// Names of the outputs wanted; `None`: all of them.
    pub outputs: Option<Vec<String>>,
    /// Asked between steps of long work.
    pub cancellation: &'a dyn Cancellation,
}

impl<'a> Request<'a> {
    /// The input `name`, if present.
    pub fn input(&self, name: &str) -> Option<&Tensor<'a>> {
        self.inputs.iter().find(|tensor| tensor.name == name)
    }

    /// True if the output `name` is to be computed.
    pub fn wants(&self, name: &str) -> bool {
        self.outputs.as_ref().is_none_or(|names| names.iter().any(|wanted| wanted == name))
    }

    fn required(&self, name: &str) -> Result<&Tensor<'a>> {
        self.input(name).ok_or_else(|| Error::invalid(format!("input `{name}`: missing")))
    }

    /// The FP32 input `name`: `[batch, item_elements]` flattened. Every item has
    /// `item_elements` values.
    pub fn f32(&self, name: &str, item_elements: usize) -> Result<&[f32]> {
        let tensor = self.required(name)?;
        let values = tensor.data.floats()?.ok_or_else(|| wrong_type(tensor, Dtype::Fp32))?;
        self.each(name, values.len(), item_elements)?;
        Ok(values)
    }

    /// The FP32 input `name`, `[batch, item...]`, wherever it is. Every item has the shape `item`.
    pub fn floats(&self, name: &str, item: &[usize]) -> Result<Floats<'_>> {
        let tensor = self.required(name)?;
        let (floats, is_shaped) = match &tensor.data {
            Data::F32(values) => (Floats::from(&**values), true),
            Data::Held(rows) => (Floats::Held(rows.clone()), rows.shape().get(1..) == Some(item)),
            Data::I32(_) | Data::Bytes(_) => return Err(wrong_type(tensor, Dtype::Fp32)),
        };
        self.each(name, floats.len(), item.iter().product())?;
        if !is_shaped {
            return Err(Error::invalid(format!(
                "input `{name}`: shape {:?}, expected {item:?} an item",
                tensor.shape
            )));
        }
        Ok(floats)
    }

    /// [`Self::floats`] of each item, of shape `[1, item...]`.
    pub fn item_floats(&self, name: &str, item: &[usize]) -> Result<Vec<Floats<'_>>> {
        let len = item.iter().product::<usize>();
        match self.floats(name, item)? {
            Floats::Values(_) => {
                Ok(self.f32(name, len)?.chunks_exact(len).map(Floats::from).collect())
            }
            Floats::Held(rows) => {
                let shape = [&[1], item].concat();
                let part = |index: usize| rows.part(index * len, shape.clone()).map(Floats::Held);
                (0..self.batch).map(part).collect()
            }
        }
    }

    /// `count` values are as many as `item_elements` an item.
    fn each(&self, name: &str, count: usize, item_elements: usize) -> Result<()> {
        if Some(count) == self.batch.checked_mul(item_elements) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "input `{name}`: {count} values for a batch of {}, expected {item_elements} an item",
            self.batch
        )))
    }

    /// The optional INT32 input `name` of one value an item.
    pub fn optional_i32(&self, name: &str) -> Result<Option<&[i32]>> {
        let Some(tensor) = self.input(name) else { return Ok(None) };
        let Data::I32(values) = &tensor.data else {
            return Err(wrong_type(tensor, Dtype::Int32));
        };
        self.one_each(name, values.len())?;
        Ok(Some(values))
    }

    /// The optional FP32 input `name` of one value an item.
    pub fn optional_f32(&self, name: &str) -> Result<Option<&[f32]>> {
        if self.input(name).is_none() {
            return Ok(None);
        }
        self.f32(name, 1).map(Some)
    }

    /// The BYTES input `name` of one value an item.
    pub fn bytes(&self, name: &str) -> Result<&[Cow<'a, [u8]>]> {
        let tensor = self.required(name)?;
        let Data::Bytes(values) = &tensor.data else {
            return Err(wrong_type(tensor, Dtype::Bytes));
        };
        self.one_each(name, values.len())?;
        Ok(values)
    }

    /// The optional BYTES input `name` of one value an item, as UTF-8 text of at
    /// most `max_bytes` each.
    pub fn optional_texts(&self, name: &str, max_bytes: usize) -> Result<Option<Vec<&str>>> {
        if self.input(name).is_none() {
            return Ok(None);
        }
        let values = self.bytes(name)?;
        values.iter().map(|value| text(name, value, max_bytes)).collect::<Result<_>>().map(Some)
    }

    /// The optional BYTES input `name` of `n` values an item: `n` and the texts.
    pub fn optional_text_lists(
        &self,
        name: &str,
        max_count: usize,
        max_bytes: usize,
    ) -> Result<Option<(usize, Vec<&str>)>> {
        let Some(tensor) = self.input(name) else { return Ok(None) };
        let Data::Bytes(values) = &tensor.data else {
            return Err(wrong_type(tensor, Dtype::Bytes));
        };
        let count = values.len().checked_div(self.batch).unwrap_or(0);
        if count == 0 || count * self.batch != values.len() {
            return Err(Error::invalid(format!(
                "input `{name}`: {} values for a batch of {}, at least 1 an item is needed",
                values.len(),
                self.batch
            )));
        }
        if count > max_count {
            return Err(Error::invalid(format!(
                "input `{name}`: {count} values, at most {max_count} are allowed"
            )));
        }
        let texts = values.iter().map(|value| text(name, value, max_bytes));
        Ok(Some((count, texts.collect::<Result<_>>()?)))
    }

    fn one_each(&self, name: &str, count: usize) -> Result<()> {
        if count == self.batch {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "input `{name}`: {count} values for a batch of {}, expected 1 an item",
            self.batch
        )))
    }
}

fn wrong_type(tensor: &Tensor<'_>, expected: Dtype) -> Error {
    Error::invalid(format!(
        "input `{}`: type {}, expected {expected}",
        tensor.name,
        tensor.data.dtype()
    ))
}

/// `value` as UTF-8 text of at most `max_bytes`.
fn text<'v>(name: &str, value: &'v [u8], max_bytes: usize) -> Result<&'v str> {
    if value.len() > max_bytes {
        return Err(Error::invalid(format!(
            "input `{name}`: a text of {} bytes, at most {max_bytes} are allowed",
            value.len()
        )));
    }
    std::str::from_utf8(value).map_err(|error| {
        Error::invalid(format!("input `{name}`: not UTF-8 from byte {}", error.valid_up_to()))
    })
}
