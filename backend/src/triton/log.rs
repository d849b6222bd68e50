//! Events of `tracing` to Triton's log. Messages never hold payloads of
//! requests: SageMaker sends the verbose log to CloudWatch.

use std::ffi::{CString, c_int};
use std::fmt::{Debug, Write};
use std::panic::PanicHookInfo;
use std::sync::Once;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::bindings::{self as sys, TRITONSERVER_LogLevel};
use super::error::check;

/// Sends this library's events and panics to Triton's log. Only the first call counts.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fails only where a subscriber is set; this library has its own statics.
        let _ = tracing::subscriber::set_global_default(TritonLog);
        std::panic::set_hook(Box::new(report_panic));
    });
}

/// Says where a panic was, not what it said: that may be text of a request.
fn report_panic(panic: &PanicHookInfo<'_>) {
    let (file, line) = panic.location().map_or(("unknown", 0), |at| (at.file(), at.line()));
    write(sys::TRITONSERVER_LOG_ERROR, file, line, "imprompt: a panic here was caught");
}

struct TritonLog;

impl Subscriber for TritonLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Other crates' chatter is not for an operator's log.
        let ours = metadata.target().starts_with("imprompt")
            || metadata.target().starts_with("triton_imprompt");
        let level = match ours {
            true => level(metadata.level()),
            false if *metadata.level() <= Level::WARN => level(metadata.level()),
            false => sys::TRITONSERVER_LOG_VERBOSE,
        };
        // SAFETY: takes a level and answers at once.
        metadata.is_event() && unsafe { sys::TRITONSERVER_LogIsEnabled(level) }
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = String::from("imprompt: ");
        event.record(&mut Writer(&mut text));
        let metadata = event.metadata();
        let file = metadata.file().unwrap_or("unknown");
        write(level(metadata.level()), file, metadata.line().unwrap_or(0), &text);
    }

    // Spans are not shown.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn level(level: &Level) -> TRITONSERVER_LogLevel {
    match *level {
        Level::ERROR => sys::TRITONSERVER_LOG_ERROR,
        Level::WARN => sys::TRITONSERVER_LOG_WARN,
        Level::INFO => sys::TRITONSERVER_LOG_INFO,
        Level::DEBUG | Level::TRACE => sys::TRITONSERVER_LOG_VERBOSE,
    }
}

/// The message, then `name=value` of the other fields.
struct Writer<'t>(&'t mut String);

impl Visit for Writer<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a String does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

fn write(level: TRITONSERVER_LogLevel, file: &str, line: u32, text: &str) {
    let (Ok(file), Ok(text)) = (CString::new(file), CString::new(text)) else { return };
    let line = c_int::try_from(line).unwrap_or(0);
    // SAFETY: both are C strings that Triton copies.
    let _ = check("LogMessage", unsafe {
        sys::TRITONSERVER_LogMessage(level, file.as_ptr(), line, text.as_ptr())
    });
}
