//! What the driver knows: contexts, streams, events, modules and graphs, and what was done wrong.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use cudarc::driver::sys::CUresult;

use crate::ptx::{Kernel, Module};
use crate::space::{Pinned, Space};
use crate::work::Work;

/// GPUs that the driver shows.
pub(crate) const DEVICES: usize = 2;

/// What a call ends with; what is wrong is a code of CUDA's.
pub(crate) type Outcome<T = ()> = Result<T, CUresult>;

/// The one context of a device.
#[derive(Debug, Default)]
pub(crate) struct Context {
    pub(crate) retained: usize,
    /// What work failed with: nothing can be done in the context from then on.
    failed: Option<CUresult>,
    /// Copies from the host that blocking calls have begun: addresses and bytes.
    pub(crate) begun: Vec<(u64, Vec<u8>)>,
}

/// Work in the order in which it was given.
#[derive(Debug)]
pub(crate) struct Stream {
    device: usize,
    waiting: VecDeque<Work>,
    /// How much was done.
    done: u64,
    capture: Option<Capture>,
    is_destroyed: bool,
}

/// Work that is recorded.
#[derive(Debug, Default)]
struct Capture {
    work: Vec<Work>,
    is_broken: bool,
}

/// A place in a stream.
#[derive(Debug)]
pub(crate) struct Event {
    device: usize,
    at: Option<(u64, u64)>,
    /// Whether it was recorded last in work that is recorded.
    is_captured: bool,
}

/// Recorded work.
#[derive(Debug)]
pub(crate) struct Graph {
    pub(crate) work: Arc<Vec<Work>>,
    /// The handle of each piece.
    pub(crate) nodes: Vec<u64>,
}

/// Everything, by the handles that the host has.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) contexts: [Context; DEVICES],
    pub(crate) space: Space,
    pub(crate) pinned: Pinned,
    streams: BTreeMap<u64, Stream>,
    events: BTreeMap<u64, Event>,
    pub(crate) modules: BTreeMap<u64, (usize, Module)>,
    pub(crate) functions: BTreeMap<u64, (u64, Arc<Kernel>)>,
    pub(crate) graphs: BTreeMap<u64, Graph>,
    pub(crate) executables: BTreeMap<u64, (usize, Arc<Vec<Work>>)>,
    handles: u64,
    /// How the next copy of a graph is told.
    pub(crate) tells_addresses: bool,
    /// The function that is called.
    pub(crate) called: &'static str,
    pub(crate) violations: Vec<String>,
    /// How often something was asked for that may fail for want of memory, and which of these fails.
    pub(crate) allocations: u64,
    pub(crate) fails_at: Option<u64>,
}

thread_local! {
    /// The device whose context is the thread's.
    pub(crate) static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

/// Lets `with` work on the state.
pub(crate) fn with<T>(with: impl FnOnce(&mut State) -> T) -> T {
    with(&mut STATE.lock().unwrap_or_else(PoisonError::into_inner))
}

impl State {
    /// As new; no handle or address is given again.
    pub(crate) fn reset(&mut self) {
        let mut space = std::mem::take(&mut self.space);
        space.clear();
        *self = State { space, handles: self.handles, ..State::default() };
    }

    /// Notes what was done wrong, and says so to the caller.
    pub(crate) fn wrong<T>(&mut self, code: CUresult, what: impl std::fmt::Display) -> Outcome<T> {
        self.violations.push(format!("{}: {what}", self.called));
        Err(code)
    }

    /// A new handle.
    pub(crate) fn handle(&mut self) -> u64 {
        self.handles += 16;
        self.handles
    }

    /// Counts what may fail for want of memory, and lets it fail when its turn has come.
    pub(crate) fn set_aside(&mut self) -> Outcome {
        self.allocations += 1;
        if self.fails_at == Some(self.allocations) {
            return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        }
        Ok(())
    }

    /// The device of the thread's context, in which work can be done.
    pub(crate) fn current(&mut self) -> Outcome<usize> {
        let current = CURRENT.get().filter(|device| self.contexts[*device].retained > 0);
        let Some(device) = current else {
            return self.wrong(CUresult::CUDA_ERROR_INVALID_CONTEXT, "the thread has no context");
        };
        self.contexts[device].failed.map_or(Ok(device), Err)
    }

    pub(crate) fn add_stream(&mut self, device: usize) -> u64 {
        let handle = self.handle();
        let stream = Stream {
            device,
            waiting: VecDeque::new(),
            done: 0,
            capture: None,
            is_destroyed: false,
        };
        self.streams.insert(handle, stream);
        handle
    }

    /// The stream `handle` of the thread's context.
    fn stream(&mut self, handle: u64) -> Outcome<&mut Stream> {
        let device = self.current()?;
        match self.streams.get(&handle) {
            Some(stream) if stream.is_destroyed || stream.device != device => self.wrong(
                CUresult::CUDA_ERROR_INVALID_CONTEXT,
                "a stream that is destroyed, or another context's",
            ),
            None => self.wrong(CUresult::CUDA_ERROR_INVALID_HANDLE, "no stream"),
            // Looked up once more, since what is wrong is noted beside it.
            Some(_) => self.streams.get_mut(&handle).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE),
        }
    }

    /// Leaves the stream to its work, which is still done.
    pub(crate) fn destroy_stream(&mut self, handle: u64) -> Outcome {
        let stream = self.stream(handle)?;
        stream.is_destroyed = true;
        stream.capture = None;
        Ok(())
    }

    /// Whether work given to the stream is recorded.
    pub(crate) fn is_recording(&mut self, handle: u64) -> Outcome<bool> {
        Ok(self.stream(handle)?.capture.is_some())
    }

    /// Gives work to a stream: nothing is done yet.
    pub(crate) fn give(&mut self, handle: u64, work: Work) -> Outcome {
        let stream = self.stream(handle)?;
        match &mut stream.capture {
            Some(capture) => capture.work.push(work),
            None => stream.waiting.push_back(work),
        }
        Ok(())
    }

    /// Gives a stream the freeing of memory. The context is the stream's, whichever the thread has.
    pub(crate) fn free(&mut self, handle: u64, address: u64) -> Outcome {
        let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
        let stream = self.streams.get_mut(&handle).filter(|stream| !stream.is_destroyed);
        let Some(stream) = stream else {
            return self.wrong(CUresult::CUDA_ERROR_INVALID_HANDLE, "no stream");
        };
        let found = self.space.at(address).filter(|at| at.device == stream.device);
        match found {
            _ if stream.capture.is_some() => self.wrong(invalid, "memory that is no graph's"),
            None => self.wrong(invalid, format_args!("no allocation at {address:#x}")),
            Some(at) if at.is_given_up => {
                self.wrong(invalid, format_args!("memory at {address:#x} is freed twice"))
            }
            Some(at) => {
                at.is_given_up = true;
                stream.waiting.push_back(Work::Free(address));
                Ok(())
            }
        }
    }

    pub(crate) fn begin_capture(&mut self, handle: u64) -> Outcome {
        let stream = self.stream(handle)?;
        if stream.capture.is_some() {
            return self
                .wrong(CUresult::CUDA_ERROR_ILLEGAL_STATE, "the stream is recorded already");
        }
        stream.capture = Some(Capture::default());
        Ok(())
    }

    /// What was recorded, as a graph.
    pub(crate) fn end_capture(&mut self, handle: u64) -> Outcome<u64> {
        let Some(Capture { work, is_broken }) = self.stream(handle)?.capture.take() else {
            return self.wrong(CUresult::CUDA_ERROR_ILLEGAL_STATE, "the stream is not recorded");
        };
        if is_broken {
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        }
        let nodes = work.iter().map(|_| self.handle()).collect();
        let graph = self.handle();
        self.graphs.insert(graph, Graph { work: Arc::new(work), nodes });
        Ok(graph)
    }

    /// The work that has the handle `node` in a graph.
    pub(crate) fn node(&mut self, node: u64) -> Outcome<Work> {
        let place = self.graphs.values().find_map(|graph| {
            let place = graph.nodes.iter().position(|known| *known == node)?;
            graph.work.get(place).cloned()
        });
        match place {
            Some(work) => Ok(work),
            None => self.wrong(CUresult::CUDA_ERROR_INVALID_HANDLE, "no node"),
        }
    }

    pub(crate) fn add_event(&mut self, device: usize) -> u64 {
        let handle = self.handle();
        self.events.insert(handle, Event { device, at: None, is_captured: false });
        handle
    }

    fn event(&mut self, handle: u64) -> Outcome<&mut Event> {
        let device = self.current()?;
        match self.events.get(&handle) {
            Some(event) if event.device == device => {
                self.events.get_mut(&handle).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
            }
            _ => self.wrong(CUresult::CUDA_ERROR_INVALID_HANDLE, "no event of this context"),
        }
    }

    pub(crate) fn destroy_event(&mut self, handle: u64) -> Outcome {
        self.event(handle)?;
        self.events.remove(&handle);
        Ok(())
    }

    /// Marks the place up to which work was given to `stream`.
    pub(crate) fn record_event(&mut self, handle: u64, stream: u64) -> Outcome {
        let of = self.stream(stream)?;
        let (is_captured, at) = (of.capture.is_some(), of.done + of.waiting.len() as u64);
        let event = self.event(handle)?;
        event.is_captured = is_captured;
        if !is_captured {
            event.at = Some((stream, at));
        }
        Ok(())
    }

    pub(crate) fn wait_for_event(&mut self, handle: u64) -> Outcome {
        let event = self.event(handle)?;
        if event.is_captured {
            return Err(CUresult::CUDA_ERROR_CAPTURED_EVENT);
        }
        match event.at {
            None => Ok(()),
            Some((stream, until)) => self.work(stream, until),
        }
    }

    pub(crate) fn wait_for_stream(&mut self, handle: u64) -> Outcome {
        let stream = self.stream(handle)?;
        if let Some(capture) = &mut stream.capture {
            capture.is_broken = true;
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        }
        self.work(handle, u64::MAX)
    }

    /// Does all that was given in a context, the newest stream's first.
    pub(crate) fn wait_for_context(&mut self, device: usize) -> Outcome {
        let mut handles = Vec::new();
        let mut is_recording = false;
        for (handle, stream) in &mut self.streams {
            if stream.device != device {
                continue;
            }
            handles.push(*handle);
            if let Some(capture) = &mut stream.capture {
                capture.is_broken = true;
                is_recording = true;
            }
        }
        if is_recording {
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        }
        self.finish_copies(device)?;
        handles.into_iter().rev().try_for_each(|handle| self.work(handle, u64::MAX))
    }

    /// Ends the copies that blocking calls have begun.
    pub(crate) fn finish_copies(&mut self, device: usize) -> Outcome {
        for (address, bytes) in std::mem::take(&mut self.contexts[device].begun) {
            self.space.acting = device;
            match self.space.bytes(address, bytes.len()) {
                Ok(there) => there.copy_from_slice(&bytes),
                Err(message) => return self.fail(device, &message),
            }
        }
        Ok(())
    }

    /// Does the work of a stream, until `until` pieces of it are done or none is left.
    fn work(&mut self, handle: u64, until: u64) -> Outcome {
        loop {
            // A stream that is gone has done its work.
            let Some(stream) = self.streams.get_mut(&handle) else { return Ok(()) };
            if stream.done >= until {
                return Ok(());
            }
            let device = stream.device;
            let Some(work) = stream.waiting.pop_front() else {
                if stream.is_destroyed {
                    self.streams.remove(&handle);
                }
                return Ok(());
            };
            stream.done += 1;
            self.space.acting = device;
            if let Err(message) = work.perform(&mut self.space, &self.pinned) {
                return self.fail(device, &message);
            }
        }
    }

    fn fail(&mut self, device: usize, message: &str) -> Outcome {
        let code = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
        self.contexts[device].failed = Some(code);
        self.wrong(code, message)
    }

    /// What is not given back, after the work of streams that are gone.
    pub(crate) fn live(&mut self) -> Vec<String> {
        self.called = "after all";
        let gone = self.streams.iter().filter(|(_, stream)| stream.is_destroyed);
        for handle in gone.map(|(handle, _)| *handle).collect::<Vec<_>>() {
            // What is wrong is noted.
            let _ = self.work(handle, u64::MAX);
        }
        let mut live: Vec<String> = self
            .space
            .live()
            .map(|at| format!("{} bytes of GPU {} at {:#x}", at.length, at.device, at.start))
            .collect();
        let pinned = self.pinned.live();
        live.extend(pinned.map(|(start, length)| format!("{length} pinned bytes at {start:#x}")));
        let contexts = self.contexts.iter().map(|context| context.retained).sum();
        let counts = [
            (contexts, "contexts"),
            (self.streams.len(), "streams"),
            (self.events.len(), "events"),
            (self.modules.len(), "modules"),
            (self.graphs.len(), "graphs"),
            (self.executables.len(), "graphs to launch"),
        ];
        let there = counts.into_iter().filter(|(count, _)| *count > 0);
        live.extend(there.map(|(count, what)| format!("{count} {what}")));
        live
    }
}
