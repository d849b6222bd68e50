//! Requests and responses, whatever carries them.

use crate::{Error, Result};

/// The values of a tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// BYTES.
    Bytes(Vec<Vec<u8>>),
    /// FP32.
    F32(Vec<f32>),
    /// INT32.
    I32(Vec<i32>),
    /// Any other type, or a body made by hand: the type's name and its bytes as they are sent.
    Raw {
        /// The type's name, such as `UINT8`.
        datatype: String,
        /// The bytes on the wire.
        bytes: Vec<u8>,
    },
}

impl Values {
    /// The type's name in the protocol.
    pub fn datatype(&self) -> &str {
        match self {
            Values::Bytes(_) => "BYTES",
            Values::F32(_) => "FP32",
            Values::I32(_) => "INT32",
            Values::Raw { datatype, .. } => datatype,
        }
    }

    /// The bytes of the binary extension and of gRPC's raw contents.
    pub(crate) fn to_wire(&self) -> Vec<u8> {
        match self {
            Values::Bytes(values) => {
                let mut out = Vec::with_capacity(values.iter().map(|value| 4 + value.len()).sum());
                for value in values {
                    // Longer values than the protocol can say are cut off here by
                    // its own prefix and refused by the server.
                    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
                    out.extend_from_slice(value);
                }
                out
            }
            Values::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Values::I32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Values::Raw { bytes, .. } => bytes.clone(),
        }
    }

    pub(crate) fn from_wire(datatype: &str, bytes: &[u8]) -> Result<Self> {
        Ok(match datatype {
            "BYTES" => Values::Bytes(bytes_from_wire(bytes)?),
            "FP32" => Values::F32(words(bytes)?.map(f32::from_le_bytes).collect()),
            "INT32" => Values::I32(words(bytes)?.map(i32::from_le_bytes).collect()),
            other => Values::Raw { datatype: other.to_owned(), bytes: bytes.to_vec() },
        })
    }
}

fn words(bytes: &[u8]) -> Result<impl Iterator<Item = [u8; 4]> + '_> {
    let (words, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(Error::protocol(format!("{} bytes are no 4-byte values", bytes.len())));
    }
    Ok(words.iter().copied())
}

fn bytes_from_wire(mut bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut values = Vec::new();
    while !bytes.is_empty() {
        let (len, rest) = bytes
            .split_first_chunk::<4>()
            .ok_or_else(|| Error::protocol("a BYTES tensor ends within a length"))?;
        let value = usize::try_from(u32::from_le_bytes(*len)).ok().and_then(|len| rest.get(..len));
        let value = value.ok_or_else(|| Error::protocol("a BYTES tensor ends within a value"))?;
        values.push(value.to_vec());
        bytes = &rest[value.len()..];
    }
    Ok(values)
}

/// One named tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The name.
    pub name: String,
    /// The shape, batch dimension first.
    pub shape: Vec<i64>,
    /// The values.
    pub values: Values,
}

/// What to ask a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferRequest {
    /// The inputs.
    pub inputs: Vec<Tensor>,
    /// The outputs wanted; none named: all of them.
    pub outputs: Vec<String>,
    /// Parameters of the request, such as Triton's `timeout` (microseconds).
    pub parameters: serde_json::Map<String, serde_json::Value>,
}

impl InferRequest {
    /// A request without inputs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor.
    #[must_use]
    pub fn tensor(mut self, name: &str, shape: impl Into<Vec<i64>>, values: Values) -> Self {
        self.inputs.push(Tensor { name: name.to_owned(), shape: shape.into(), values });
        self
    }

    /// Adds a BYTES tensor.
    #[must_use]
    pub fn bytes(
        self,
        name: &str,
        shape: impl Into<Vec<i64>>,
        values: impl IntoIterator<Item = impl Into<Vec<u8>>>,
    ) -> Self {
        self.tensor(name, shape, Values::Bytes(values.into_iter().map(Into::into).collect()))
    }

    /// Adds one text, as a BYTES tensor of shape [1, 1].
    #[must_use]
    pub fn text(self, name: &str, text: impl Into<String>) -> Self {
        self.bytes(name, [1, 1], [text.into()])
    }

    /// Adds an INT32 tensor.
    #[must_use]
    pub fn i32(self, name: &str, shape: impl Into<Vec<i64>>, values: impl Into<Vec<i32>>) -> Self {
        self.tensor(name, shape, Values::I32(values.into()))
    }

    /// Adds a FP32 tensor.
    #[must_use]
    pub fn f32(self, name: &str, shape: impl Into<Vec<i64>>, values: impl Into<Vec<f32>>) -> Self {
        self.tensor(name, shape, Values::F32(values.into()))
    }

    /// Asks for an output.
    #[must_use]
    pub fn output(mut self, name: &str) -> Self {
        self.outputs.push(name.to_owned());
        self
    }

    /// The body of the request over HTTP, and the length of its JSON header, which
    /// the header `Inference-Header-Content-Length` has to say.
    pub fn http_body(&self) -> (Vec<u8>, usize) {
        crate::body::encode(self)
    }

    /// Sets a parameter of the request.
    #[must_use]
    pub fn parameter(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.parameters.insert(name.to_owned(), value.into());
        self
    }
}

/// What a model answered.
#[derive(Clone, Debug, PartialEq)]
pub struct InferResponse {
    /// The model.
    pub model_name: String,
    /// Its version.
    pub model_version: String,
    /// The outputs.
    pub outputs: Vec<Tensor>,
}

impl InferResponse {
    /// The response in the body of an answer over HTTP, whose JSON header has `header_len` bytes
    /// (`None`: all of it).
    ///
    /// # Errors
    /// [`Error::Protocol`] when the body makes no sense.
    pub fn from_http_body(body: &[u8], header_len: Option<usize>) -> Result<Self> {
        crate::body::decode(body, header_len)
    }

    /// The output `name`.
    ///
    /// # Errors
    /// [`Error::Protocol`] when the response has no such output; so for the
    /// methods below, also when it has another type or number of values.
    pub fn output(&self, name: &str) -> Result<&Tensor> {
        self.outputs
            .iter()
            .find(|tensor| tensor.name == name)
            .ok_or_else(|| Error::protocol(format!("the response has no output `{name}`")))
    }

    /// The values of the BYTES output `name`.
    pub fn bytes(&self, name: &str) -> Result<&[Vec<u8>]> {
        let tensor = self.output(name)?;
        match &tensor.values {
            Values::Bytes(values) => Ok(values),
            _ => Err(wrong_type(tensor, "BYTES")),
        }
    }

    /// The values of the BYTES output `name` as UTF-8.
    pub fn texts(&self, name: &str) -> Result<Vec<&str>> {
        let values = self.bytes(name)?.iter();
        values
            .map(|value| {
                std::str::from_utf8(value)
                    .map_err(|_| Error::protocol(format!("output `{name}` is not UTF-8")))
            })
            .collect()
    }

    /// The one text of the BYTES output `name`.
    pub fn text(&self, name: &str) -> Result<&str> {
        match self.texts(name)?.as_slice() {
            [text] => Ok(text),
            texts => {
                Err(Error::protocol(format!("output `{name}`: {} texts, expected 1", texts.len())))
            }
        }
    }

    /// The values of the FP32 output `name`.
    pub fn f32(&self, name: &str) -> Result<&[f32]> {
        let tensor = self.output(name)?;
        match &tensor.values {
            Values::F32(values) => Ok(values),
            _ => Err(wrong_type(tensor, "FP32")),
        }
    }
}

fn wrong_type(tensor: &Tensor, expected: &str) -> Error {
    Error::protocol(format!(
        "output `{}`: type {}, expected {expected}",
        tensor.name,
        tensor.values.datatype()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_the_wire() {
        let all = [
            Values::Bytes(vec![b"a".to_vec(), vec![], vec![0xff; 300]]),
            Values::F32(vec![1.5, -0.0]),
            Values::I32(vec![i32::MIN, 7]),
            Values::Raw { datatype: "UINT8".into(), bytes: vec![1, 2, 3] },
        ];
        for values in all {
            assert_eq!(Values::from_wire(values.datatype(), &values.to_wire()).unwrap(), values);
        }
    }

    #[test]
    fn lying_lengths_are_refused() {
        for bytes in [&[1, 0, 0][..], &[5, 0, 0, 0, b'a'], &[0xff; 4]] {
            assert!(Values::from_wire("BYTES", bytes).is_err());
        }
        assert!(Values::from_wire("FP32", &[0; 5]).is_err());
    }
}
