//! The protocol over gRPC: `inference.GRPCInferenceService` of Triton's
//! `grpc_service.proto`, the messages that an inference needs.

use std::collections::HashMap;

use tonic::transport::{Channel, Endpoint};
use ureq::http::uri::PathAndQuery;

use crate::tensor::{InferRequest, InferResponse, Tensor, Values};
use crate::{Error, Result};

/// The messages: field numbers as in `grpc_service.proto`.
mod message {
    use std::collections::HashMap;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ModelInferRequest {
        #[prost(string, tag = "1")]
        pub(super) model_name: String,
        #[prost(map = "string, message", tag = "4")]
        pub(super) parameters: HashMap<String, InferParameter>,
        #[prost(message, repeated, tag = "5")]
        pub(super) inputs: Vec<InferTensor>,
        #[prost(message, repeated, tag = "6")]
        pub(super) outputs: Vec<RequestedOutput>,
        #[prost(bytes = "vec", repeated, tag = "7")]
        pub(super) raw_input_contents: Vec<Vec<u8>>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ModelInferResponse {
        #[prost(string, tag = "1")]
        pub(super) model_name: String,
        #[prost(string, tag = "2")]
        pub(super) model_version: String,
        #[prost(map = "string, message", tag = "4")]
        pub(super) parameters: HashMap<String, InferParameter>,
        #[prost(message, repeated, tag = "5")]
        pub(super) outputs: Vec<InferTensor>,
        #[prost(bytes = "vec", repeated, tag = "6")]
        pub(super) raw_output_contents: Vec<Vec<u8>>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ModelStreamInferResponse {
        #[prost(string, tag = "1")]
        pub(super) error_message: String,
        #[prost(message, optional, tag = "2")]
        pub(super) infer_response: Option<ModelInferResponse>,
    }

    /// `InferInputTensor` and `InferOutputTensor`, which are the same.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct InferTensor {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, tag = "2")]
        pub(super) datatype: String,
        #[prost(int64, repeated, tag = "3")]
        pub(super) shape: Vec<i64>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct RequestedOutput {
        #[prost(string, tag = "1")]
        pub(super) name: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct InferParameter {
        #[prost(oneof = "Choice", tags = "1, 2, 3, 4")]
        pub(super) choice: Option<Choice>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Choice {
        #[prost(bool, tag = "1")]
        Bool(bool),
        #[prost(int64, tag = "2")]
        Int64(i64),
        #[prost(string, tag = "3")]
        String(String),
        #[prost(double, tag = "4")]
        Double(f64),
    }
}

use message::{
    Choice, InferParameter, InferTensor, ModelInferRequest, ModelInferResponse,
    ModelStreamInferResponse,
};

/// Messages larger than this are refused.
const MAX_MESSAGE_BYTES: usize = 1 << 30;

/// A client of one server over one connection. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// A client of the server at `address`, `host:port`; it connects with the first call.
    ///
    /// # Errors
    /// [`Error::Transport`] when `address` is none.
    pub fn new(address: &str) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| Error::Transport(error.to_string()))?;
        Ok(Client { channel: endpoint.connect_lazy() })
    }

    /// Runs a model. Dropping the future cancels the request on the server.
    ///
    /// # Errors
    /// [`Error::Status`] with the code of gRPC and the server's own text, or
    /// [`Error::Protocol`] when the answer makes no sense.
    pub async fn infer(&self, model: &str, request: &InferRequest) -> Result<InferResponse> {
        let request = to_message(model, request)?;
        let mut client = self.ready().await?;
        let path = PathAndQuery::from_static("/inference.GRPCInferenceService/ModelInfer");
        let codec = tonic_prost::ProstCodec::<ModelInferRequest, ModelInferResponse>::default();
        let response = client.unary(tonic::Request::new(request), path, codec).await;
        from_message(response.map_err(from_status)?.into_inner())
    }

    /// Runs a decoupled model, which may answer any number of times. Dropping the answers
    /// cancels the request on the server.
    ///
    /// # Errors
    /// As [`Self::infer`]; what is wrong with the request itself comes with the answers.
    pub async fn stream(&self, model: &str, request: &InferRequest) -> Result<Responses> {
        let request = to_message(model, request)?;
        let mut client = self.ready().await?;
        let path = PathAndQuery::from_static("/inference.GRPCInferenceService/ModelStreamInfer");
        let codec =
            tonic_prost::ProstCodec::<ModelInferRequest, ModelStreamInferResponse>::default();
        let request = tonic::Request::new(tokio_stream::once(request));
        let answers = client.streaming(request, path, codec).await.map_err(from_status)?;
        Ok(Responses(answers.into_inner()))
    }

    async fn ready(&self) -> Result<tonic::client::Grpc<Channel>> {
        let mut client = tonic::client::Grpc::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        client.ready().await.map_err(|error| Error::Transport(error.to_string()))?;
        Ok(client)
    }
}

/// The answers of a decoupled model, as they come.
#[derive(Debug)]
pub struct Responses(tonic::Streaming<ModelStreamInferResponse>);

/// One of several answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Streamed {
    /// The answer.
    pub response: InferResponse,
    /// Whether it is the last.
    pub is_final: bool,
}

impl Responses {
    /// The next answer; `None` when the server has ended the stream.
    ///
    /// # Errors
    /// The server's own text of an error, which gRPC streams have without a code: it is given as 2, unknown.
    pub async fn next(&mut self) -> Result<Option<Streamed>> {
        let Some(message) = self.0.message().await.map_err(from_status)? else { return Ok(None) };
        if !message.error_message.is_empty() {
            return Err(Error::Status { code: 2, message: message.error_message });
        }
        let response = message.infer_response.unwrap_or_default();
        let is_final = response
            .parameters
            .get("triton_final_response")
            .is_some_and(|parameter| parameter.choice == Some(Choice::Bool(true)));
        Ok(Some(Streamed { response: from_message(response)?, is_final }))
    }
}

fn from_status(status: tonic::Status) -> Error {
    Error::Status {
        // The codes of gRPC are 0 to 16.
        code: i32::from(status.code()) as u16,
        message: status.message().to_owned(),
    }
}

fn to_message(model: &str, request: &InferRequest) -> Result<ModelInferRequest> {
    let mut parameters = HashMap::new();
    for (name, value) in &request.parameters {
        let choice = match value {
            serde_json::Value::Bool(value) => Choice::Bool(*value),
            serde_json::Value::String(value) => Choice::String(value.clone()),
            serde_json::Value::Number(value) => match value.as_i64() {
                Some(value) => Choice::Int64(value),
                None => Choice::Double(value.as_f64().unwrap_or(f64::NAN)),
            },
            _ => return Err(Error::protocol(format!("parameter `{name}`: not a simple value"))),
        };
        parameters.insert(name.clone(), InferParameter { choice: Some(choice) });
    }
    let inputs = request.inputs.iter().map(|tensor| InferTensor {
        name: tensor.name.clone(),
        datatype: tensor.values.datatype().to_owned(),
        shape: tensor.shape.clone(),
    });
    let outputs =
        request.outputs.iter().map(|name| message::RequestedOutput { name: name.clone() });
    Ok(ModelInferRequest {
        model_name: model.to_owned(),
        parameters,
        inputs: inputs.collect(),
        outputs: outputs.collect(),
        raw_input_contents: request.inputs.iter().map(|tensor| tensor.values.to_wire()).collect(),
    })
}

fn from_message(response: ModelInferResponse) -> Result<InferResponse> {
    if response.outputs.len() != response.raw_output_contents.len() {
        return Err(Error::protocol(format!(
            "{} outputs with {} contents",
            response.outputs.len(),
            response.raw_output_contents.len()
        )));
    }
    let outputs = response.outputs.into_iter().zip(&response.raw_output_contents);
    let outputs = outputs.map(|(output, bytes)| {
        let values = Values::from_wire(&output.datatype, bytes)?;
        Ok(Tensor { name: output.name, shape: output.shape, values })
    });
    Ok(InferResponse {
        model_name: response.model_name,
        model_version: response.model_version,
        outputs: outputs.collect::<Result<_>>()?,
    })
}
