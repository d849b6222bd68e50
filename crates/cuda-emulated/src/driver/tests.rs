use std::ffi::c_void;
use std::process::Command;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{CUgraph, CUstream, CUstreamCaptureStatus};

use super::device::*;
use super::graph::*;
use super::memory::*;
use super::stream::*;
use super::{CUresult, Out};
use crate::space::POISON;
use crate::state::with;

const OK: CUresult = CUresult::CUDA_SUCCESS;
const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;
const ILLEGAL: CUresult = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;

/// What a call puts somewhere.
fn put<T: Default>(call: impl FnOnce(Out<T>) -> CUresult) -> T {
    let mut value = T::default();
    assert_eq!(call(Out(&raw mut value)), OK);
    value
}

/// A pointer that a call puts somewhere.
fn pointer<T>(call: impl FnOnce(Out<*mut T>) -> CUresult) -> *mut T {
    let mut value = ptr::null_mut();
    assert_eq!(call(Out(&raw mut value)), OK);
    value
}

/// A test's turn with a new driver, the context of device 0, and a stream.
fn begin() -> (MutexGuard<'static, ()>, CUstream) {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    with(|state| state.reset());
    use_device(0);
    (turn, stream())
}

fn use_device(device: i32) {
    let context = pointer(|into| cuDevicePrimaryCtxRetain(into, device));
    assert_eq!(cuCtxSetCurrent(context), OK);
}

fn stream() -> CUstream {
    pointer(|into| cuStreamCreate(into, 1))
}

fn allocate(stream: CUstream, length: usize) -> u64 {
    put(|into| cuMemAllocAsync(into, length, stream))
}

fn pinned(length: usize) -> *mut c_void {
    pointer(|into| cuMemHostAlloc(into, length, 0))
}

/// The bytes of pinned memory.
fn seen(pinned: *mut c_void, length: usize) -> Vec<u8> {
    // SAFETY: the tests have pinned as many.
    unsafe { std::slice::from_raw_parts(pinned.cast::<u8>(), length) }.to_vec()
}

fn fill(pinned: *mut c_void, value: u8, length: usize) {
    // SAFETY: the tests have pinned as many.
    unsafe { pinned.cast::<u8>().write_bytes(value, length) };
}

/// The ways to wait for a stream.
fn waits(stream: CUstream) -> [Box<dyn Fn() -> CUresult>; 2] {
    [Box::new(move || cuStreamSynchronize(stream)), Box::new(|| cuCtxSynchronize())]
}

/// The only thing that was done wrong, which is forgotten.
fn wrong() -> String {
    let violations = with(|state| std::mem::take(&mut state.violations));
    assert_eq!(violations.len(), 1, "{violations:?}");
    violations.concat()
}

#[test]
fn work_is_done_when_it_is_waited_for() {
    let (_turn, stream) = begin();
    let (memory, host) = (allocate(stream, 8), pinned(16));
    assert_eq!(seen(host, 16), [POISON; 16]);
    assert_eq!(cuMemcpyDtoHAsync_v2(host, memory, 8, stream), OK);
    assert_eq!(cuMemsetD8Async(memory, 7, 8, stream), OK);
    let event = pointer(|into| cuEventCreate(into, 2));
    assert_eq!(cuEventSynchronize(event), OK, "nothing to wait for");
    // SAFETY: pinned.
    let second = unsafe { host.byte_add(8) };
    assert_eq!(cuMemcpyDtoHAsync_v2(second, memory, 4, stream), OK);
    assert_eq!(cuEventRecord(event, stream), OK);
    assert_eq!(cuMemsetD8Async(memory, 9, 8, stream), OK);
    assert_eq!(cuMemcpyDtoHAsync_v2(second, memory, 8, stream), OK);
    assert_eq!(seen(host, 16), [POISON; 16]);
    assert_eq!(cuEventSynchronize(event), OK);
    // Fresh memory is garbage, and what is behind the event is not done.
    assert_eq!(
        seen(host, 16),
        [[POISON; 8], [7, 7, 7, 7, POISON, POISON, POISON, POISON]].concat()
    );
    assert_eq!(cuStreamSynchronize(stream), OK);
    assert_eq!(seen(host, 16), [[POISON; 8], [9; 8]].concat());
}

#[test]
fn the_host_is_read_when_the_copy_is_done() {
    let (_turn, stream) = begin();
    let (memory, host) = (allocate(stream, 8), pinned(8));
    fill(host, 1, 8);
    assert_eq!(cuMemcpyHtoDAsync_v2(memory, host, 8, stream), OK);
    fill(host, 2, 8);
    assert_eq!(cuStreamSynchronize(stream), OK);
    let mut found = [0_u8; 8];
    assert_eq!(cuMemcpyDtoH_v2(found.as_mut_ptr().cast(), memory, 8), OK);
    assert_eq!(found, [2; 8]);
    // Memory that is not pinned is read at once, and arrives when it is waited for.
    let given = [3_u8; 8];
    assert_eq!(cuMemcpyHtoD_v2(memory, given.as_ptr().cast(), 8), OK);
    assert_eq!(cuMemcpyDtoHAsync_v2(host, memory, 8, stream), OK);
    assert_eq!(cuStreamSynchronize(stream), OK);
    assert_eq!(seen(host, 8), [2; 8]);
    for (value, wait) in [3, 5].into_iter().zip(waits(ptr::null_mut())) {
        assert_eq!(cuMemcpyHtoD_v2(memory, [value; 8].as_ptr().cast(), 8), OK);
        assert_eq!(wait(), OK);
        assert_eq!(cuMemcpyDtoHAsync_v2(host, memory, 8, stream), OK);
        assert_eq!(cuCtxSynchronize(), OK);
        assert_eq!(seen(host, 8), [value; 8]);
    }
    // And in its turn among blocking calls.
    assert_eq!(cuMemcpyHtoD_v2(memory, [4_u8; 8].as_ptr().cast(), 8), OK);
    assert_eq!(cuMemcpyDtoH_v2(found.as_mut_ptr().cast(), memory, 8), OK);
    assert_eq!(found, [4; 8]);
    let live = with(|state| (state.live(), state.violations.len()));
    assert_eq!(live.1, 0);
    assert_eq!(live.0.len(), 4, "memory, pinned memory, a stream and a context: {live:?}");
}

/// A stream and eight bytes that are there, in a new driver.
fn eight() -> (MutexGuard<'static, ()>, CUstream, u64) {
    let (turn, stream) = begin();
    let memory = allocate(stream, 8);
    assert_eq!(cuStreamSynchronize(stream), OK);
    (turn, stream, memory)
}

#[test]
fn memory_is_used_inside_and_while_it_is_there() {
    type Give = fn(CUstream, u64) -> CUresult;
    let cases: [(Give, &str); 8] = [
        (|stream, at| cuMemsetD8Async(at, 0, 9, stream), "9 bytes from byte 0 on of 8"),
        (|stream, at| cuMemsetD8Async(at + 1, 0, 8, stream), "8 bytes from byte 1 on of 8"),
        (|stream, at| cuMemsetD8Async(at - 1, 0, 1, stream), "where nothing is allocated"),
        (|stream, at| cuMemcpyHtoDAsync_v2(at + 8, pinned(1), 1, stream), "nothing is allocated"),
        (
            |stream, at| cuMemcpyDtoHAsync_v2(pinned(9), at, 9, stream),
            "9 bytes from byte 0 on of 8",
        ),
        (
            |stream, at| {
                assert_eq!(cuMemFreeAsync(at, stream), OK);
                cuMemsetD8Async(at, 0, 8, stream)
            },
            "where the memory is Freed",
        ),
        (
            |stream, at| {
                let host = pinned(8);
                assert_eq!(cuMemcpyDtoHAsync_v2(host, at, 8, stream), OK);
                cuMemFreeHost(host)
            },
            "which are not pinned",
        ),
        (
            // Another stream has not come to the allocation.
            |stream, _| cuMemsetD8Async(allocate(self::stream(), 8), 0, 8, stream),
            "where the memory is Asked",
        ),
    ];
    for (give, words) in cases {
        let (_turn, stream, memory) = eight();
        assert_eq!(give(stream, memory), OK, "{words}");
        assert_eq!(cuStreamSynchronize(stream), ILLEGAL);
        let told = wrong();
        assert!(told.contains(words), "{told}");
        // The context is lost.
        assert_eq!(cuStreamSynchronize(stream), ILLEGAL);
        assert_eq!(cuMemsetD8Async(memory, 0, 8, stream), ILLEGAL);
    }
}

#[test]
fn what_is_wrong_at_once_is_said() {
    let (_turn, stream, memory) = eight();
    let mut host = [0_u8; 8];
    let unpinned = host.as_mut_ptr().cast::<c_void>();
    let nowhere = ptr::without_provenance_mut::<c_void>(8);
    assert_eq!(cuMemcpyHtoDAsync_v2(memory, unpinned, 8, stream), INVALID);
    assert!(wrong().contains("not pinned"));
    assert_eq!(cuMemcpyDtoHAsync_v2(unpinned, memory, 8, stream), INVALID);
    assert!(wrong().contains("not pinned"));
    assert_eq!(cuMemcpyDtoH_v2(unpinned, memory + 1, 8), INVALID);
    assert!(wrong().contains("8 bytes from byte 1"));
    assert_eq!(cuMemFreeAsync(memory + 1, stream), INVALID);
    assert!(wrong().contains("no allocation"));
    assert_eq!(cuMemFreeAsync(memory, stream), OK);
    assert_eq!(cuMemFreeAsync(memory, stream), INVALID);
    assert!(wrong().contains("freed twice"));
    assert_eq!(cuMemFreeHost(nowhere), INVALID);
    assert!(wrong().contains("no pinned memory"));
    let mut address = 0_u64;
    assert_eq!(cuMemAllocAsync(Out(&raw mut address), 0, stream), INVALID);
    assert!(wrong().contains("no bytes"));
    let huge = cuMemAllocAsync(Out(&raw mut address), 1 << 40, stream);
    assert_eq!(huge, CUresult::CUDA_ERROR_OUT_OF_MEMORY, "and nothing wrong");
    assert_eq!(cuStreamDestroy_v2(nowhere.cast()), CUresult::CUDA_ERROR_INVALID_HANDLE);
    wrong();
    assert_eq!(cuStreamDestroy_v2(stream), OK);
    assert_eq!(cuStreamSynchronize(stream), CUresult::CUDA_ERROR_INVALID_CONTEXT);
    wrong();
    assert_eq!(cuEventSynchronize(nowhere.cast()), CUresult::CUDA_ERROR_INVALID_HANDLE);
    wrong();
    let mut device = 0;
    assert_eq!(cuDeviceGet(Out(&raw mut device), 2), CUresult::CUDA_ERROR_INVALID_DEVICE);
    wrong();
    // The freeing, in a stream that is gone.
    assert_eq!(with(|state| state.live()), ["1 contexts"]);
    assert_eq!(cuDevicePrimaryCtxRelease_v2(0), OK);
    assert_eq!(cuCtxSynchronize(), CUresult::CUDA_ERROR_INVALID_CONTEXT);
    wrong();
    assert_eq!(cuDevicePrimaryCtxRelease_v2(0), CUresult::CUDA_ERROR_INVALID_CONTEXT);
    wrong();
}

#[test]
fn a_context_is_a_threads_own() {
    let (_turn, stream, memory) = eight();
    let (stream, fill) = (stream.addr(), |stream: usize| {
        cuMemsetD8Async(memory, 0, 8, ptr::without_provenance_mut(stream))
    });
    let elsewhere = std::thread::scope(|scope| scope.spawn(|| fill(stream)).join().unwrap());
    assert_eq!(elsewhere, CUresult::CUDA_ERROR_INVALID_CONTEXT);
    assert!(wrong().contains("the thread has no context"));
    use_device(1);
    assert_eq!(fill(stream), CUresult::CUDA_ERROR_INVALID_CONTEXT);
    assert!(wrong().contains("another context's"));
    // Its own stream, and the other's memory.
    assert_eq!(fill(self::stream().addr()), OK);
    assert_eq!(cuCtxSynchronize(), ILLEGAL);
    assert!(wrong().contains("GPU 1 touches memory of GPU 0"));
}

#[test]
fn allocations_fail_when_they_are_told_to() {
    let (_turn, stream) = begin();
    with(|state| state.fails_at = Some(state.allocations + 2));
    let mut address = 0_u64;
    let first = allocate(stream, 8);
    let failed = cuMemAllocAsync(Out(&raw mut address), 8, stream);
    assert_eq!((failed, address), (CUresult::CUDA_ERROR_OUT_OF_MEMORY, 0));
    assert_ne!(first, allocate(stream, 8));
}

#[test]
fn recorded_work_is_done_when_it_is_launched() {
    let (_turn, stream, memory) = eight();
    let status = |stream| {
        let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        assert_eq!(cuStreamIsCapturing(stream, Out(&raw mut status)), OK);
        status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE
    };
    let event = pointer(|into| cuEventCreate(into, 2));
    assert_eq!(cuStreamBeginCapture_v2(stream, 2), OK);
    assert!(status(stream));
    assert_eq!(cuMemsetD8Async(memory, 5, 8, stream), OK);
    assert_eq!(cuEventRecord(event, stream), OK);
    let graph: CUgraph = pointer(|into| cuStreamEndCapture(stream, into));
    assert!(!status(stream));
    assert_eq!(cuEventSynchronize(event), CUresult::CUDA_ERROR_CAPTURED_EVENT);
    let mut count = 0;
    assert_eq!(cuGraphGetNodes(graph, ptr::null_mut(), &raw mut count), OK);
    assert_eq!(count, 1);
    let executable = pointer(|into| cuGraphInstantiateWithFlags(into, graph, 0));
    let found = || {
        let mut found = [0_u8; 8];
        assert_eq!(cuStreamSynchronize(stream), OK);
        assert_eq!(cuMemcpyDtoH_v2(found.as_mut_ptr().cast(), memory, 8), OK);
        found
    };
    assert_eq!(found(), [POISON; 8]);
    assert_eq!(cuGraphLaunch(executable, stream), OK);
    // What was launched is still done.
    assert_eq!(cuGraphExecDestroy(executable), OK);
    assert_eq!(cuGraphDestroy(graph), OK);
    assert_eq!(found(), [5; 8]);
    // Waiting breaks a recording, for which nothing is noted.
    for wait in waits(stream) {
        assert_eq!(cuStreamBeginCapture_v2(stream, 2), OK);
        assert_eq!(wait(), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        let mut graph = ptr::dangling_mut();
        let ended = cuStreamEndCapture(stream, Out(&raw mut graph));
        assert_eq!(ended, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        assert!(graph.is_null());
    }
    assert_eq!(with(|state| state.violations.len()), 0);
    // Memory of a graph is not emulated.
    assert_eq!(cuStreamBeginCapture_v2(stream, 2), OK);
    assert_eq!(cuMemFreeAsync(memory, stream), INVALID);
    wrong();
    let mut address = 0_u64;
    let allocated = cuMemAllocAsync(Out(&raw mut address), 8, stream);
    assert_eq!(allocated, CUresult::CUDA_ERROR_NOT_SUPPORTED);
    wrong();
}

/// Says to a process that it is to touch memory, and which.
const TOUCH: &str = "IMPROMPT_EMULATED_TOUCH";

#[test]
fn the_host_touches_no_memory_of_a_device() {
    let touch = std::env::var(TOUCH);
    let (_turn, _, memory) = eight();
    let host = pinned(4096);
    // SAFETY: none: this ends the process, which is what the test is about.
    let read =
        |address: usize| unsafe { ptr::with_exposed_provenance::<u8>(address).read_volatile() };
    match touch.as_deref() {
        Ok("device") => assert_eq!(read(memory as usize), POISON),
        Ok("behind") => assert_eq!(read(host.expose_provenance() + 4096), POISON),
        Ok("freed") => {
            assert_eq!(cuMemFreeHost(host), OK);
            assert_eq!(read(host.expose_provenance()), POISON);
        }
        Ok(_) => assert_eq!(read(host.expose_provenance()), POISON),
        Err(_) => {
            for (what, is_fine) in
                [("pinned", true), ("device", false), ("behind", false), ("freed", false)]
            {
                let test = "driver::tests::the_host_touches_no_memory_of_a_device";
                let mut process = Command::new(std::env::current_exe().unwrap());
                let run = process.args([test, "--exact"]).env(TOUCH, what).output().unwrap();
                assert_eq!(run.status.code(), is_fine.then_some(0), "{what}: {run:?}");
            }
        }
    }
}
