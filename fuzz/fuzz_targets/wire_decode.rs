//! Any bytes as a BYTES tensor, in one piece and in two. The first three bytes
//! are the number of elements and the place of the cut.
#![no_main]

use imprompt_wire::{Limits, decode, elements, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&[count, low, high], tensor)) = bytes.split_first_chunk::<3>() else { return };
    let count = usize::from(count);
    let limits = Limits { min_elements: 0, ..Limits::default() };
    let whole = decode("fuzz", &[tensor], count, &limits);
    let (left, right) =
        tensor.split_at(usize::from(u16::from_le_bytes([low, high])).min(tensor.len()));
    assert_eq!(whole, decode("fuzz", &[left, right], count, &limits));
    let lazily: Result<Vec<_>, _> =
        elements("fuzz", tensor, count, &limits).and_then(Iterator::collect);
    match whole {
        Ok(found) => {
            assert_eq!(found, lazily.unwrap());
            assert_eq!(encode("fuzz", &found).unwrap(), tensor);
        }
        Err(error) => assert_eq!(lazily.unwrap_err(), error),
    }
});
