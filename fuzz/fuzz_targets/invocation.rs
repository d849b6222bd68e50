//! Any bytes as the body of a request: read or refused, and what is read goes on as it is.
#![no_main]

use imprompt_invocation::{Asked, Limits, read};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits { body_bytes: 1 << 16, labels: 8, text_bytes: 64, caption_tokens: 256 };
    if let Ok(invocation) = read(bytes, &limits) {
        let text = invocation.asked.to_text().unwrap();
        assert_eq!(Asked::from_text(text.as_bytes()).unwrap(), invocation.asked);
    }
});
