//! A stage's response against what was asked of it.

use imprompt_error::{Error, Result};
use imprompt_stage::{Request, Response, Signature, Tensor, TensorSpec};

/// The tensors of `response` that `request` wants, each once, in the order it
/// names them (without names: all of the signature's).
///
/// # Errors
/// `Internal` when the stage's response lacks one or has it in a type or shape
/// that its signature does not say: a client must not be sent bytes that its
/// shape does not explain.
pub fn wanted_outputs(
    response: Response,
    request: &Request<'_>,
    signature: &Signature,
) -> Result<Vec<Tensor<'static>>> {
    let mut response: Vec<Option<Tensor<'static>>> = response.into_iter().map(Some).collect();
    let mut wanted = Vec::new();
    let names: Vec<&str> = match &request.outputs {
        Some(names) => names.iter().map(String::as_str).collect(),
        None => signature.outputs.iter().map(|spec| spec.name).collect(),
    };
    for (at, name) in names.iter().enumerate() {
        // Triton 2.51 lets a client name an output twice.
        if names[..at].contains(name) {
            continue;
        }
        let fault = |what: &str| Error::internal(format!("output `{name}`: the stage {what}"));
        let spec = signature.outputs.iter().find(|spec| spec.name == *name);
        let spec = spec.ok_or_else(|| fault("has no such output"))?;
        let tensor = response
            .iter_mut()
            .find(|tensor| tensor.as_ref().is_some_and(|tensor| tensor.name == *name))
            .and_then(Option::take)
            .ok_or_else(|| fault("did not give it"))?;
        if !agrees(&tensor, request.batch, spec) {
            return Err(fault("gave another type or shape than its signature says"));
        }
        wanted.push(tensor);
    }
    Ok(wanted)
}

fn agrees(tensor: &Tensor<'_>, batch: usize, spec: &TensorSpec) -> bool {
    let Some((&first, item)) = tensor.shape.split_first() else { return false };
    let elements = tensor.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    let fits = |(&size, &wanted): (&usize, &i64)| wanted == -1 || i64::try_from(size) == Ok(wanted);
    first == batch
        && tensor.data.dtype() == spec.dtype
        && elements == Some(tensor.data.len())
        && item.len() == spec.dims.len()
        && item.iter().zip(&spec.dims).all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use imprompt_error::{Kind, Uncancellable};
    use imprompt_stage::StageKind;

    fn request(outputs: Option<Vec<&str>>) -> Request<'static> {
        Request {
            batch: 2,
            inputs: vec![],
            outputs: outputs.map(|names| names.into_iter().map(str::to_owned).collect()),
            cancellation: &Uncancellable,
        }
    }

    fn response() -> Response {
        vec![
            Tensor::f32("similarity", vec![2, 1], vec![0.5, 0.25]),
            Tensor::texts("prompt", vec!["a".into(), "b".into()]),
            Tensor::texts("caption", vec!["c".into(), "d".into()]),
            Tensor::texts("report", vec!["{}".into(), "{}".into()]),
        ]
    }

    #[test]
    fn only_what_is_wanted_once_and_in_order() {
        let signature = StageKind::Ranker.signature();
        let names = |request: &Request<'_>| -> Vec<String> {
            let outputs = wanted_outputs(response(), request, &signature).unwrap();
            outputs.iter().map(|tensor| tensor.name.to_string()).collect()
        };
        assert_eq!(names(&request(Some(vec!["report", "prompt", "report"]))), ["report", "prompt"]);
        assert_eq!(names(&request(None)), ["prompt", "caption", "similarity", "report"]);
        assert!(names(&request(Some(vec![]))).is_empty());
    }

    #[test]
    fn a_stage_that_breaks_its_word_is_found_out() {
        let signature = StageKind::Ranker.signature();
        let bad = [
            Tensor::f32("similarity", vec![1, 1], vec![0.5]),
            Tensor::f32("similarity", vec![2, 1], vec![0.5]),
            Tensor::f32("similarity", vec![2, 2], vec![0.5; 4]),
            Tensor::f32("similarity", vec![2], vec![0.5; 2]),
            Tensor::i32("similarity", vec![2, 1], vec![1, 2]),
            Tensor::f32("other", vec![2, 1], vec![0.5; 2]),
        ];
        for tensor in bad {
            let mut response = response();
            response[0] = tensor;
            let error = wanted_outputs(response, &request(None), &signature).unwrap_err();
            assert_eq!(error.kind(), Kind::Internal);
            assert!(error.message().contains("`similarity`"));
        }
        assert!(wanted_outputs(response(), &request(Some(vec!["label"])), &signature).is_err());
    }
}
