//! `invocation`: the body of a request to a picture and to what is asked of it.

use std::borrow::Cow;

use imprompt_error::{Error, Result};
use imprompt_invocation::{Invocation, Limits, read};
use serde::{Deserialize, Serialize};

use crate::generation::MAX_NEW_TOKENS;
use crate::{
    Parameters, Placement, Request, Response, Signature, Stage, StageKind, StageModel, Tensor,
};

/// The stage file of `invocation`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InvocationFile {}

pub(crate) struct InvocationModel {
    limits: Limits,
    signature: Signature,
}

impl InvocationModel {
    pub(crate) fn open(parameters: &Parameters) -> Self {
        let (labels, text_bytes) = (parameters.max_labels, parameters.max_text_bytes);
        // Base64 is a third longer, and JSON writes some characters with more bytes.
        let body_bytes = labels
            .saturating_mul(text_bytes)
            .saturating_add(parameters.max_image_bytes)
            .saturating_mul(2);
        let limits = Limits { body_bytes, labels, text_bytes, caption_tokens: MAX_NEW_TOKENS };
        InvocationModel { limits, signature: StageKind::Invocation.signature() }
    }
}

impl StageModel for InvocationModel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn instance(&self, _placement: Placement) -> Result<Box<dyn Stage>> {
        Ok(Box::new(Reader { limits: self.limits }))
    }
}

struct Reader {
    limits: Limits,
}

impl Stage for Reader {
    fn execute(&mut self, requests: &[Request<'_>]) -> Vec<Result<Response>> {
        requests.iter().map(|request| self.answer(request)).collect()
    }
}

impl Reader {
    fn answer(&self, request: &Request<'_>) -> Result<Response> {
        request.cancellation.check()?;
        let [body] = request.bytes("body")? else {
            return Err(Error::invalid(format!(
                "input `body`: a batch of {}, a body is answered alone",
                request.batch
            )));
        };
        let Invocation { picture, asked } = read(body, &self.limits)?;
        let picture = Cow::Owned(picture.into_owned());
        let mut response = vec![
            Tensor::bytes("image", vec![1, 1], vec![picture]),
            Tensor::texts("invocation", vec![asked.to_text()?]),
        ];
        response.retain(|tensor| request.wants(&tensor.name));
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imprompt_error::Uncancellable;

    fn answer(bodies: Vec<&'static [u8]>) -> Result<Response> {
        let mut stage =
            InvocationModel::open(&Parameters::default()).instance(Placement::Cpu).unwrap();
        let batch = bodies.len();
        let values = bodies.into_iter().map(Cow::Borrowed).collect();
        let inputs = vec![Tensor::bytes("body", vec![batch, 1], values)];
        let request = Request { batch, inputs, outputs: None, cancellation: &Uncancellable };
        stage.execute(&[request]).pop().unwrap()
    }

    #[test]
    fn a_body_becomes_a_picture_and_what_is_asked() {
        let response =
            answer(vec![br#"{"inputs": "aGk=", "parameters": {"mode": "fast"}}"#]).unwrap();
        let text = r#"{"answer":"prompt","inputs":[["mode",{"text":"fast"}]]}"#;
        assert_eq!(response[0], Tensor::bytes("image", vec![1, 1], vec![b"aGk=".into()]));
        assert_eq!(response[1], Tensor::texts("invocation", vec![text.to_owned()]));
    }

    #[test]
    fn bodies_come_one_by_one() {
        let error = answer(vec![b"BM", b"BM"]).unwrap_err();
        assert_eq!(error.message(), "input `body`: a batch of 2, a body is answered alone");
        assert!(answer(vec![b"{}"]).unwrap_err().message().starts_with("fields `image`"));
    }
}
