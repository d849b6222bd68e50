//! Work that is recorded.

use std::ffi::{c_uint, c_ulonglong};
use std::mem::MaybeUninit;
use std::ptr;

use cudarc::driver::sys::{
    CUDA_MEMCPY3D, CUgraph, CUgraphExec, CUgraphNode, CUgraphNodeType, CUmemorytype, CUresult,
    CUstream, CUstreamCaptureStatus,
};

use super::memory::handle;
use super::{Out, functions};
use crate::work::{Rows, Work};

/// One side of a copy, as the driver tells it.
fn side(kind: CUmemorytype, address: u64) -> CUDA_MEMCPY3D {
    // SAFETY: all of it is numbers and pointers, for which zeros are values, and kinds of memory,
    // which are set below.
    let mut copy = unsafe {
        let mut copy = MaybeUninit::<CUDA_MEMCPY3D>::zeroed();
        (&raw mut (*copy.as_mut_ptr()).srcMemoryType).write(kind);
        (&raw mut (*copy.as_mut_ptr()).dstMemoryType).write(kind);
        copy.assume_init()
    };
    copy.srcDevice = address;
    copy
}

/// A copy between two sides.
fn between(from: CUDA_MEMCPY3D, to: CUDA_MEMCPY3D, size: [usize; 2]) -> CUDA_MEMCPY3D {
    let [width, height] = size;
    CUDA_MEMCPY3D {
        dstMemoryType: to.srcMemoryType,
        dstDevice: to.srcDevice,
        WidthInBytes: width,
        Height: height,
        Depth: 1,
        ..from
    }
}

functions! {
    fn cuStreamBeginCapture_v2(state, stream: CUstream, _mode: c_uint) {
        state.begin_capture(handle(stream))
    }

    fn cuStreamEndCapture(state, stream: CUstream, graph: Out<CUgraph>) {
        let ended = state.end_capture(handle(stream));
        graph.put(ended.map_or(ptr::null_mut(), |it| ptr::without_provenance_mut(it as usize)))?;
        ended.map(|_| ())
    }

    fn cuStreamIsCapturing(state, stream: CUstream, status: Out<CUstreamCaptureStatus>) {
        status.put(if state.is_recording(handle(stream))? {
            CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE
        } else {
            CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE
        })
    }

    fn cuGraphGetNodes(state, graph: CUgraph, nodes: *mut CUgraphNode, count: *mut usize) {
        let Some(found) = state.graphs.get(&handle(graph)) else {
            return state.wrong(CUresult::CUDA_ERROR_INVALID_HANDLE, "no graph");
        };
        // SAFETY: the caller's number, of places that are there where `nodes` is not null.
        unsafe {
            if !nodes.is_null() {
                for place in 0..*count {
                    let node = found.nodes.get(place).map_or(0, |node| *node as usize);
                    nodes.add(place).write(ptr::without_provenance_mut(node));
                }
            }
            *count = found.nodes.len();
        }
        Ok(())
    }

    fn cuGraphNodeGetType(state, node: CUgraphNode, kind: Out<CUgraphNodeType>) {
        kind.put(match state.node(handle(node))? {
            Work::Allocate(_) | Work::Free(_) => {
                return state.wrong(CUresult::CUDA_ERROR_NOT_SUPPORTED, "memory of a graph");
            }
            Work::Fill { .. } => CUgraphNodeType::CU_GRAPH_NODE_TYPE_MEMSET,
            Work::ToDevice { .. } | Work::ToHost { .. } | Work::Rows(_) => {
                CUgraphNodeType::CU_GRAPH_NODE_TYPE_MEMCPY
            }
            Work::Kernel(_) => CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL,
            Work::Graph(_) => CUgraphNodeType::CU_GRAPH_NODE_TYPE_GRAPH,
        })
    }

    fn cuGraphMemcpyNodeGetParams(state, node: CUgraphNode, copy: Out<CUDA_MEMCPY3D>) {
        // A driver may tell whose memory it is, or an address in the one space of all; this one does
        // either by turns.
        state.tells_addresses = !state.tells_addresses;
        let is_plain = !state.tells_addresses;
        let told = |kind, address: u64| {
            side(if is_plain { kind } else { CUmemorytype::CU_MEMORYTYPE_UNIFIED }, address)
        };
        let device = |address| told(CUmemorytype::CU_MEMORYTYPE_DEVICE, address);
        let host = |address: usize| told(CUmemorytype::CU_MEMORYTYPE_HOST, address as u64);
        copy.put(match state.node(handle(node))? {
            Work::ToDevice { to, from, length } => between(host(from), device(to), [length, 1]),
            Work::ToHost { to, from, length } => between(device(from), host(to), [length, 1]),
            Work::Rows(Rows { from, to, width, height, .. }) => {
                between(device(from), device(to), [width, height])
            }
            _ => return state.wrong(CUresult::CUDA_ERROR_INVALID_VALUE, "no copy"),
        })
    }

    fn cuGraphInstantiateWithFlags(
        state,
        into: Out<CUgraphExec>,
        graph: CUgraph,
        _flags: c_ulonglong,
    ) {
        let device = state.current()?;
        let Some(work) = state.graphs.get(&handle(graph)).map(|graph| graph.work.clone()) else {
            return state.wrong(CUresult::CUDA_ERROR_INVALID_HANDLE, "no graph");
        };
        state.set_aside()?;
        let executable = state.handle();
        state.executables.insert(executable, (device, work));
        into.put(ptr::without_provenance_mut(executable as usize))
    }

    fn cuGraphLaunch(state, graph: CUgraphExec, stream: CUstream) {
        let device = state.current()?;
        match state.executables.get(&handle(graph)) {
            Some((of, work)) if *of == device => {
                let work = Work::Graph(work.clone());
                state.give(handle(stream), work)
            }
            _ => state.wrong(CUresult::CUDA_ERROR_INVALID_HANDLE, "no graph of this context"),
        }
    }

    fn cuGraphExecDestroy(state, graph: CUgraphExec) {
        match state.executables.remove(&handle(graph)) {
            Some(_) => Ok(()),
            None => state.wrong(CUresult::CUDA_ERROR_INVALID_HANDLE, "no graph"),
        }
    }

    fn cuGraphDestroy(state, graph: CUgraph) {
        match state.graphs.remove(&handle(graph)) {
            Some(_) => Ok(()),
            None => state.wrong(CUresult::CUDA_ERROR_INVALID_HANDLE, "no graph"),
        }
    }
}
