//! The words in an error by which SageMaker's front end knows that memory is short.

use std::borrow::Cow;

use imprompt_error::{Error, Kind};

/// A model whose error has one of these answers status 507, and other models are unloaded for it
/// (`SageMakerMMECheckOOMError` of triton-inference-server/server, `src/sagemaker_server.cc`).
const WORDS: [&str; 17] = [
    "CUDA out of memory",
    "CUDA_OUT_OF_MEMORY",
    "Out of memory",
    "Out Of Memory",
    "out of memory",
    "MemoryError",
    "OutOfMemory",
    "OOM",
    "Dst tensor is not initialized",
    "Src tensor is not initialized",
    "CNMEM_STATUS_OUT_OF_MEMORY",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "Failed to allocate memory",
    "failed to allocate memory",
    "No space left on device",
];

/// The message of `error` for a server's clients: it has one of the words if, and only if, memory could
/// not be had. A file's name or text that happens to have one (`BLOOM`) has asterisks for it.
pub fn client_message(error: &Error) -> Cow<'_, str> {
    let message = error.message();
    let has_one = WORDS.iter().any(|word| message.contains(word));
    match (error.kind(), has_one) {
        (Kind::OutOfMemory, false) => Cow::Owned(format!("out of memory: {message}")),
        (Kind::OutOfMemory, true) | (_, false) => Cow::Borrowed(message),
        (_, true) => {
            let masked = WORDS
                .iter()
                .fold(message.to_owned(), |text, word| text.replace(word, &"*".repeat(word.len())));
            Cow::Owned(masked)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_there_when_memory_is_short_and_only_then() {
        let file = Error::new(Kind::OutOfMemory, "weights: Cannot allocate memory (os error 12)");
        let expected = "out of memory: weights: Cannot allocate memory (os error 12)";
        assert_eq!(client_message(&file), expected);
        let own = Error::out_of_memory("a label table");
        assert_eq!(client_message(&own), own.message());
        let plain = Error::bad_model("stage.json: no such stage");
        assert_eq!(client_message(&plain), plain.message());
        for word in WORDS {
            let error = Error::bad_model(format!("stage.json: unknown variant `Z{word}`"));
            let said = client_message(&error);
            assert!(WORDS.iter().all(|word| !said.contains(word)), "{said}");
            assert!(said.starts_with("stage.json: unknown variant `Z*"), "{said}");
        }
    }
}
