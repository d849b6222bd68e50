//! Any bytes as the input `image`. Seeds: `goldens/picture/files`.
#![no_main]

use imprompt_picture::{Limits, decode};
use libfuzzer_sys::fuzz_target;

/// Small, so that a header that lies costs little time.
const LIMITS: Limits = Limits { encoded_bytes: 1 << 20, side: 2048, pixels: 1 << 20 };

fuzz_target!(|bytes: &[u8]| {
    if let Ok(image) = decode(bytes, &LIMITS) {
        assert_eq!(image.pixels().len(), image.width() * image.height() * 3);
        assert!(image.width() <= LIMITS.side && image.height() <= LIMITS.side);
    }
});
