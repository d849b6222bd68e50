//! What ONNX Runtime reports, as errors of this project.

use imprompt_error::{Error, Kind};
use ort::ErrorCode;

/// Texts of a failed allocation: of its arena, of the allocator below, of C++.
const MEMORY_TEXTS: [&str; 4] =
    ["Failed to allocate memory", "AllocateRawInternal", "bad_alloc", "Available memory of"];

fn is_memory(message: &str) -> bool {
    MEMORY_TEXTS.iter().any(|text| message.contains(text))
}

/// The error of a call that is about `what`.
pub fn error<R>(error: &ort::Error<R>, what: &str) -> Error {
    if is_memory(error.message()) {
        return Error::out_of_memory(format_args!("{what}: {}", error.message()));
    }
    Error::internal(format!("{what}: {}", error.message()))
}

/// The error of loading the graph `file`.
pub fn load_error<R>(error: &ort::Error<R>, file: &str) -> Error {
    let message = error.message();
    if is_memory(message) {
        return Error::out_of_memory(format_args!("loading {file}: {message}"));
    }
    // A graph that is right but newer than the library.
    let newer = error.code() == ErrorCode::NotImplemented
        || message.contains("Could not find an implementation")
        || message.contains("is not a registered function/op")
        || message.contains("only guarantees support for models stamped with official")
        || message.contains("Unsupported model IR version");
    let kind = if newer { Kind::Unsupported } else { Kind::BadModel };
    Error::new(kind, format!("{file}: {message}"))
}
