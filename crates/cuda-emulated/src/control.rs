//! What a test asks of the driver besides CUDA: functions that the shared library exports, so that
//! they speak of the driver that is opened, not of the copy that the test has linked.

use std::ptr;

use crate::state::with;

/// As new, for the next test.
#[unsafe(no_mangle)]
extern "C" fn imprompt_emulated_reset() {
    with(|state| state.reset());
}

/// Lets the allocation `number`, counted from now on and from 1, fail; 0 for none.
#[unsafe(no_mangle)]
extern "C" fn imprompt_emulated_fail(number: u64) {
    with(|state| state.fails_at = (number > 0).then(|| state.allocations + number));
}

/// How many allocations there were.
#[unsafe(no_mangle)]
extern "C" fn imprompt_emulated_allocations() -> u64 {
    with(|state| state.allocations)
}

/// What was done wrong, a line each: how many bytes that is, of which those that there is room for
/// are written.
///
/// # Safety
/// There are `room` bytes at `into`.
#[unsafe(no_mangle)]
unsafe extern "C" fn imprompt_emulated_violations(into: *mut u8, room: usize) -> usize {
    let text = with(|state| state.violations.join("\n"));
    // SAFETY: the caller's word.
    unsafe { tell(&text, into, room) }
}

/// As [`imprompt_emulated_violations`], what is not given back.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
unsafe extern "C" fn imprompt_emulated_live(into: *mut u8, room: usize) -> usize {
    let text = with(|state| state.live().join("\n"));
    // SAFETY: the caller's word.
    unsafe { tell(&text, into, room) }
}

/// # Safety
/// There are `room` bytes at `into`.
unsafe fn tell(text: &str, into: *mut u8, room: usize) -> usize {
    // SAFETY: the caller's word.
    unsafe { ptr::copy_nonoverlapping(text.as_ptr(), into, text.len().min(room)) };
    text.len()
}
