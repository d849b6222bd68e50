//! Work that is given again as a whole.

use std::mem::MaybeUninit;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;

use cudarc::driver::{CudaGraph, DriverError, sys};
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
    /// Records what `give` gives to this stream instead of doing it. `None` where that is nothing, or
    /// where it copies from or to the host's memory or calls the host: what lies there then would be
    /// something else the next time.
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
        // A stream that went on recording would do nothing any more.
        let given = panic::catch_unwind(AssertUnwindSafe(give));
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        given.unwrap_or_else(|payload| panic::resume_unwind(payload))?;
        let graph = graph.map_err(|error| failed(&error, "recording"))?;
        let Some(graph) = graph else { return Ok(None) };
        let is_worth_it = is_worth_it(&graph).map_err(|error| failed(&error, "recorded work"))?;
        Ok(is_worth_it.then_some(Graph(graph)))
    }
}

/// Whether there is something in `graph`, and nothing that touches the host's memory.
fn is_worth_it(graph: &CudaGraph) -> Result<bool, DriverError> {
    let of = graph.cu_graph();
    let mut count = 0;
    // SAFETY: the graph is live; without room for nodes only their number is asked for.
    unsafe { sys::cuGraphGetNodes(of, ptr::null_mut(), &mut count) }.result()?;
    let mut nodes: Vec<sys::CUgraphNode> = vec![ptr::null_mut(); count];
    // SAFETY: there is room for `count` nodes.
    unsafe { sys::cuGraphGetNodes(of, nodes.as_mut_ptr(), &mut count) }.result()?;
    for node in nodes {
        // A later driver may have kinds that these bindings do not know: a number, not an enum.
        let mut kind = MaybeUninit::<sys::CUgraphNodeType>::zeroed();
        // SAFETY: the node is the graph's; the kind is four bytes.
        let kind = unsafe {
            sys::cuGraphNodeGetType(node, kind.as_mut_ptr()).result()?;
            kind.as_ptr().cast::<u32>().read()
        };
        if kind == sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_HOST as u32
            || kind == sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_MEMCPY as u32 && !is_inside(node)?
        {
            return Ok(false);
        }
    }
    Ok(count > 0)
}

/// Whether the copy `node` is from and to a device's memory.
fn is_inside(node: sys::CUgraphNode) -> Result<bool, DriverError> {
    let mut copy = MaybeUninit::<sys::CUDA_MEMCPY3D>::zeroed();
    // SAFETY: the node is a copy; its parameters are numbers and addresses, all of which are valid as
    // zeros but for the kinds of memory, which are read as numbers.
    let sides = unsafe {
        sys::cuGraphMemcpyNodeGetParams(node, copy.as_mut_ptr()).result()?;
        let copy = copy.as_ptr();
        [
            (ptr::addr_of!((*copy).srcMemoryType).cast::<u32>().read(), (*copy).srcDevice),
            (ptr::addr_of!((*copy).dstMemoryType).cast::<u32>().read(), (*copy).dstDevice),
        ]
    };
    Ok(sides.into_iter().all(|(kind, address)| match kind {
        DEVICE => true,
        // Somewhere in the one space of addresses.
        UNIFIED => memory_of(address) == Some(DEVICE),
        _ => false,
    }))
}

const DEVICE: u32 = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE as u32;
const UNIFIED: u32 = sys::CUmemorytype::CU_MEMORYTYPE_UNIFIED as u32;

/// Whose memory is at `address`; none where CUDA does not know it.
fn memory_of(address: sys::CUdeviceptr) -> Option<u32> {
    let mut kind = 0u32;
    let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    // SAFETY: the attribute is four bytes, and any address may be asked about.
    let asked = unsafe { sys::cuPointerGetAttribute((&raw mut kind).cast(), attribute, address) };
    asked.result().ok().map(|()| kind)
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
