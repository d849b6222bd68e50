//! Work that is given again as a whole.

use cudarc::driver::{CudaGraph, sys};
use imprompt_error::Result;

use crate::Stream;
use crate::device::failed;

/// Work of a stream that was recorded: giving it again is one call, whatever there is in it.
pub struct Graph(CudaGraph);

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").finish_non_exhaustive()
    }
}

// SAFETY: a graph is tied to no thread: launching binds its context to the thread that does, and
// `&mut self` lets one at a time.
unsafe impl Send for Graph {}

impl Stream {
    /// Records what `give` gives to this stream instead of doing it. `None` where that is nothing.
    ///
    /// The addresses in it are recorded as well: whoever launches the graph sees to it that they are
    /// still what they were.
    ///
    /// # Errors
    /// That of `give`; what the driver says, for one that something in it cannot be recorded. The
    /// stream is as it was before, and nothing of it was done.
    pub fn record(&self, give: impl FnOnce() -> Result<()>) -> Result<Option<Graph>> {
        // Other threads, and ONNX Runtime itself, may allocate meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        self.stream.begin_capture(mode).map_err(|error| failed(&error, "recording"))?;
        let given = give();
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        given?;
        let graph = graph.map_err(|error| failed(&error, "recording"))?;
        Ok(graph.map(Graph))
    }
}

impl Graph {
    /// Gives the work to its stream.
    ///
    /// # Safety
    /// What it reads and writes is allocated where it was when it was recorded, and used by nothing
    /// that is not ordered by the same stream.
    ///
    /// # Errors
    /// What the driver says.
    pub unsafe fn launch(&mut self) -> Result<()> {
        self.0.launch().map_err(|error| failed(&error, "work that was recorded"))
    }
}
