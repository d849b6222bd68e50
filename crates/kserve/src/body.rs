//! The JSON header of an inference over HTTP and the binary tensors behind it.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::tensor::{InferRequest, InferResponse, Tensor, Values};
use crate::{Error, Result};

/// The body of `request`, and the length of its JSON header.
pub(crate) fn encode(request: &InferRequest) -> (Vec<u8>, usize) {
    let mut binary = Vec::new();
    let inputs: Vec<Value> = request
        .inputs
        .iter()
        .map(|tensor| {
            let bytes = tensor.values.to_wire();
            let input = json!({
                "name": tensor.name,
                "shape": tensor.shape,
                "datatype": tensor.values.datatype(),
                "parameters": { "binary_data_size": bytes.len() },
            });
            binary.extend_from_slice(&bytes);
            input
        })
        .collect();
    let mut header = Map::new();
    header.insert("inputs".into(), inputs.into());
    let mut parameters = request.parameters.clone();
    if request.outputs.is_empty() {
        parameters.insert("binary_data_output".into(), true.into());
    } else {
        let outputs = request
            .outputs
            .iter()
            .map(|name| json!({ "name": name, "parameters": { "binary_data": true } }))
            .collect::<Vec<_>>();
        header.insert("outputs".into(), outputs.into());
    }
    if !parameters.is_empty() {
        header.insert("parameters".into(), parameters.into());
    }
    let mut body = Value::from(header).to_string().into_bytes();
    let header_len = body.len();
    body.append(&mut binary);
    (body, header_len)
}

#[derive(Deserialize)]
struct Header {
    model_name: String,
    #[serde(default)]
    model_version: String,
    #[serde(default)]
    outputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    #[serde(default)]
    parameters: Map<String, Value>,
    #[serde(default)]
    data: Vec<Value>,
}

/// The response in `body`, whose JSON header has `header_len` bytes (`None`: all of it).
pub(crate) fn decode(body: &[u8], header_len: Option<usize>) -> Result<InferResponse> {
    let (header, mut binary) = body
        .split_at_checked(header_len.unwrap_or(body.len()))
        .ok_or_else(|| Error::protocol("the response is shorter than its header"))?;
    let header: Header = serde_json::from_slice(header)
        .map_err(|error| Error::protocol(format!("the response is not the protocol's: {error}")))?;
    let mut outputs = Vec::with_capacity(header.outputs.len());
    for output in header.outputs {
        let values = match output.parameters.get("binary_data_size").and_then(Value::as_u64) {
            Some(size) => {
                let (bytes, rest) = usize::try_from(size)
                    .ok()
                    .and_then(|size| binary.split_at_checked(size))
                    .ok_or_else(|| Error::protocol(format!("output `{}` is cut", output.name)))?;
                binary = rest;
                Values::from_wire(&output.datatype, bytes)?
            }
            None => from_json(&output)?,
        };
        outputs.push(Tensor { name: output.name, shape: output.shape, values });
    }
    Ok(InferResponse {
        model_name: header.model_name,
        model_version: header.model_version,
        outputs,
    })
}

fn from_json(output: &Output) -> Result<Values> {
    let wrong =
        || Error::protocol(format!("output `{}`: not {} values", output.name, output.datatype));
    let data = output.data.iter();
    Ok(match output.datatype.as_str() {
        "BYTES" => Values::Bytes(
            data.map(|value| value.as_str().map(|text| text.as_bytes().to_vec()).ok_or_else(wrong))
                .collect::<Result<_>>()?,
        ),
        "FP32" => Values::F32(
            data.map(|value| value.as_f64().map(|value| value as f32).ok_or_else(wrong))
                .collect::<Result<_>>()?,
        ),
        "INT32" => Values::I32(
            data.map(|v| v.as_i64().and_then(|v| i32::try_from(v).ok()).ok_or_else(wrong))
                .collect::<Result<_>>()?,
        ),
        _ => return Err(wrong()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_a_header_and_binary_tensors() {
        let request =
            InferRequest::new().text("mode", "fast").i32("top_k", [1, 1], [3]).output("label");
        let (body, header_len) = encode(&request);
        let header: Value = serde_json::from_slice(&body[..header_len]).unwrap();
        assert_eq!(header["inputs"][0]["parameters"]["binary_data_size"], 8);
        assert_eq!(header["outputs"][0]["name"], "label");
        assert_eq!(&body[header_len..], b"\x04\0\0\0fast\x03\0\0\0");
    }

    #[test]
    fn a_response_is_read_in_both_forms() {
        let header = br#"{"model_name":"m","model_version":"1","outputs":[
            {"name":"a","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":6}},
            {"name":"b","datatype":"FP32","shape":[2],"data":[0.5,2]}]}"#;
        let mut body = header.to_vec();
        body.extend_from_slice(b"\x02\0\0\0hi");
        let response = decode(&body, Some(header.len())).unwrap();
        assert_eq!(response.text("a").unwrap(), "hi");
        assert_eq!(response.f32("b").unwrap(), [0.5, 2.0]);
        assert!(response.text("b").is_err());
        assert!(decode(&body[..body.len() - 1], Some(header.len())).is_err());
        assert!(decode(&body, Some(body.len() + 1)).is_err());
    }
}
