//! The seam between imprompt and whatever multiplies matrices: a [`Runtime`]
//! opens an ONNX graph as an [`Engine`], an engine runs on plain tensors.
//!
//! An engine belongs to one instance and runs one call at a time (`&mut self`);
//! instances that shall run side by side open an engine each. Tensors go in as
//! borrowed host memory ([`Input::View`]) or as what another run left behind
//! ([`Input::Held`]), which on a GPU never leaves the device. The cache of a
//! decoder is one slab ([`Cache`]) that a run reads and writes in place.
//!
//! [`onnxruntime`] is the engine of the CPU path.

mod cache;
mod floats;
mod held_rows;
mod host_copy;
pub mod manifest;
pub mod onnxruntime;
mod tensor;

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use imprompt_error::Result;
pub use imprompt_kernel::Instructions;

pub use imprompt_cuda::{
    Buffer as GpuBuffer, Chunks as GpuChunks, Device as Gpu, Part as GpuPart,
    Ranking as GpuRanking, Span as GpuSpan, Stream as GpuStream, Table as GpuTable,
};

pub use floats::Floats;
pub use held_rows::{HeldRows, brought};
pub use host_copy::HostCopy;

pub use cache::{CacheEntry, CacheSpec, SlotLength};
pub use tensor::{Data, Element, ElementType, TensorView};

/// The form of `graph` that a GPU computes, `NAME.gpu.onnx` beside `NAME.onnx`: written by
/// `imprompt build --device gpu`, in the precision that was asked for.
#[must_use]
pub fn gpu_form(graph: &Path) -> PathBuf {
    graph.with_extension("gpu.onnx")
}

/// An input or output of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name in the graph.
    pub name: String,
    /// The type of its elements.
    pub element_type: ElementType,
    /// Its dimensions; `None` where any length is taken.
    pub shape: Vec<Option<usize>>,
}

/// A tensor an engine holds: the output of a run, on whatever device it is.
pub trait Held: Send + Sync + fmt::Debug {
    /// The type of its elements.
    fn element_type(&self) -> ElementType;

    /// Its dimensions.
    fn shape(&self) -> &[usize];

    /// Its elements on the host. Free where the engine computes in host
    /// memory; elsewhere the first call copies and later calls do not.
    ///
    /// # Errors
    /// `Internal` when the device cannot be read.
    fn to_host(&self) -> Result<TensorView<'_>>;

    /// Its elements on a GPU, for a [`GpuRanking`] of the same runtime; `None` where they are in host
    /// memory.
    ///
    /// # Errors
    /// `Internal` when the memory is gone.
    fn on_gpu(&self) -> Result<Option<GpuSpan<'_>>> {
        Ok(None)
    }

    /// Waits until it is written, so that work of any stream may read it.
    ///
    /// # Errors
    /// What went wrong in the work that writes it.
    fn settle(&self) -> Result<()> {
        Ok(())
    }

    /// Its elements on a GPU, one piece behind the other, where they are settled there: what an engine of
    /// any runtime on that GPU may read.
    ///
    /// # Errors
    /// `Internal` when the memory is gone.
    fn settled(&self) -> Result<Option<Vec<GpuSpan<'_>>>> {
        Ok(None)
    }

    /// For the engine's own use.
    fn as_any(&self) -> &dyn Any;
}

impl dyn Held + '_ {
    /// The elements on the host as `T`.
    ///
    /// # Errors
    /// `Internal` when the tensor's elements are of another type.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.to_host()?.as_slice::<T>()
    }
}

/// What a run is given for one input.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Host memory, borrowed for the run: the engine does not copy it unless
    /// its device has memory of its own.
    View(TensorView<'a>),
    /// A tensor that an engine of the same runtime holds.
    Held(&'a dyn Held),
}

impl<'a> Input<'a> {
    /// Its dimensions.
    #[must_use]
    pub fn shape(&self) -> &'a [usize] {
        match self {
            Input::View(view) => view.shape(),
            Input::Held(held) => held.shape(),
        }
    }

    /// The type of its elements.
    #[must_use]
    pub fn element_type(&self) -> ElementType {
        match self {
            Input::View(view) => view.element_type(),
            Input::Held(held) => held.element_type(),
        }
    }

    /// Its elements on the host.
    ///
    /// # Errors
    /// `Internal` when they are not float32, or the device cannot be read.
    pub fn floats(&self) -> Result<&'a [f32]> {
        match self {
            Input::View(view) => view.as_slice(),
            Input::Held(held) => held.as_slice(),
        }
    }
}

impl<'a> From<TensorView<'a>> for Input<'a> {
    fn from(view: TensorView<'a>) -> Self {
        Input::View(view)
    }
}

impl<'a> From<&'a dyn Held> for Input<'a> {
    fn from(held: &'a dyn Held) -> Self {
        Input::Held(held)
    }
}

impl<'a> From<&'a Box<dyn Held>> for Input<'a> {
    fn from(held: &'a Box<dyn Held>) -> Self {
        Input::Held(held.as_ref())
    }
}

/// Keys and values of a decoder's layers: one slab of
/// `[slots, heads, max_length, head_dim]` for each [`CacheEntry`], allocated
/// once and zeroed. A slot belongs to one sequence.
pub trait Cache: Send + fmt::Debug {
    /// What it was made from.
    fn spec(&self) -> &CacheSpec;

    /// Copies as many first positions of every entry's slot `from` to slot `to`
    /// as `length` says, so that the slots in use stay the first ones when a sequence leaves
    /// and a beam can be followed twice. What `to` has behind them stays as it is.
    ///
    /// # Errors
    /// `Internal` when a slot or the length is out of range.
    fn copy_slot(&mut self, from: usize, to: usize, length: SlotLength) -> Result<()>;

    /// For the engine's own use.
    fn as_any(&self) -> &dyn Any;

    /// For the engine's own use.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// A loaded graph, ready to run.
pub trait Engine: Send + fmt::Debug {
    /// The graph's inputs, in its order.
    fn inputs(&self) -> &[Port];

    /// The graph's outputs, in its order.
    fn outputs(&self) -> &[Port];

    /// Runs the graph: `inputs` by name, in any order, all of them; gives the
    /// tensors named by `outputs`, in that order.
    ///
    /// # Errors
    /// `Internal` when a name, type or number of dimensions is not the graph's
    /// (a fault of the caller, who checked the request before), `OutOfMemory`,
    /// or what the engine reports.
    fn run(&mut self, inputs: &[(&str, Input<'_>)], outputs: &[&str])
    -> Result<Vec<Box<dyn Held>>>;

    /// Lengths that may be anything from some on, such as the keys that a decoder looks at, are best
    /// multiples of this: what a GPU has recorded serves no other length.
    fn length_step(&self) -> usize {
        1
    }

    /// The largest length of dimension `axis` of the input `name` that a run takes, where that is less
    /// than any.
    fn most(&self, name: &str, axis: usize) -> Option<usize> {
        let _ = (name, axis);
        None
    }

    /// Allocates a cache. Every engine of the same runtime and device can run
    /// with it, so that prefill and decoding may be two graphs.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` when the sizes do not fit.
    fn new_cache(&self, spec: &CacheSpec) -> Result<Box<dyn Cache>>;

    /// [`Self::run`] with the entries of `cache` as further inputs and outputs,
    /// as far as the graph has them: each entry's input and its output are the
    /// same memory, slots `slots.start..slots.end` of its slab, shape
    /// `[slots.len(), heads, max_length, head_dim]`. A graph that has both must
    /// write it with `TensorScatter`, whose result is then in place: nothing of
    /// the cache is copied.
    ///
    /// # Errors
    /// As [`Self::run`]; `Internal` when `slots` is empty or out of range.
    fn run_with_cache(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[&str],
        cache: &mut dyn Cache,
        slots: Range<usize>,
    ) -> Result<Vec<Box<dyn Held>>>;
}

/// How much a runtime may rewrite a graph when it loads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Optimization {
    /// Nothing.
    None,
    /// Constant folding and the removal of what does nothing.
    Basic,
    /// Fused operators of the runtime's own.
    Extended,
    /// All, layouts included.
    #[default]
    All,
}

/// How an engine shall run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Threads inside one operator; 0 leaves it to the runtime (one for each
    /// physical core).
    pub threads: usize,
    /// Threads across operators; 0 leaves it to the runtime. Above 1 the
    /// graph's independent branches run side by side.
    pub branches: usize,
    /// Whether idle threads spin. Faster for one engine alone on its cores,
    /// ruinous when several share them.
    pub spinning: bool,
    /// How much the graph may be rewritten.
    pub optimization: Optimization,
    /// Whether freed memory is kept for the next run.
    pub arena: bool,
    /// Whether the memory of a run is planned as one block for each set of
    /// input shapes. Serves graphs whose shapes do not change.
    pub memory_pattern: bool,
    /// Whether the engine's threads are its own, where the runtime was opened
    /// with a shared pool.
    pub own_threads: bool,
    /// The instructions with which imprompt's own kernels compute what they can, where the
    /// processor has AVX-512 at least; `None` leaves all to the runtime.
    pub kernels: Option<Instructions>,
    /// Whether imprompt's kernels give a batch entry the same bits whatever entries are beside it. Linear layers of
    /// few rows take longer then.
    pub independent_rows: bool,
    /// Whether a GPU records the steps of a decoder and is then given each as a whole.
    pub cuda_graphs: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            threads: 0,
            branches: 0,
            spinning: false,
            optimization: Optimization::All,
            arena: true,
            memory_pattern: false,
            own_threads: false,
            kernels: Some(Instructions::default()),
            independent_rows: false,
            cuda_graphs: true,
        }
    }
}

/// What opens graphs: a library and a device.
pub trait Runtime: Send + Sync + fmt::Debug {
    /// Its name, its version and where it was opened, for the log.
    fn description(&self) -> String;

    /// Loads `graph` (an `.onnx` file; its external data lies beside it).
    ///
    /// # Errors
    /// `BadModel` naming the file when it or its weights are missing or
    /// corrupt, `Unsupported` when the runtime lacks an operator,
    /// `OutOfMemory`.
    fn open(&self, graph: &Path, options: &EngineOptions) -> Result<Box<dyn Engine>>;

    /// What compares and ranks on the GPU that its engines are on, in order with their work; `None`
    /// where they are on none.
    ///
    /// # Errors
    /// What the driver says, for one where the card is too old.
    fn ranking(&self) -> Result<Option<GpuRanking>> {
        Ok(None)
    }
}

impl<R: Runtime + ?Sized> Runtime for &R {
    fn description(&self) -> String {
        (**self).description()
    }

    fn open(&self, graph: &Path, options: &EngineOptions) -> Result<Box<dyn Engine>> {
        (**self).open(graph, options)
    }

    fn ranking(&self) -> Result<Option<GpuRanking>> {
        (**self).ranking()
    }
}
