//! An engine in a GPU's memory, and the contexts that run it: the one place where TensorRT is told
//! addresses.
//!
//! What TensorRT's documentation promises and asks for, and this file keeps to:
//! * A runtime and an engine may be used by several threads, each with a context of its own; a context
//!   is used by one thread at a time. Contexts are made one after the other here, behind a lock.
//! * An engine is destroyed before its runtime, a context before its engine and its configuration. The
//!   types of `trtx` do not enforce it: the order of fields does.
//! * Memory is not freed or written before what was enqueued is through with it. It belongs to the
//!   stream that the work is given to ([`Span::stream`]), which frees and reuses it in order.
//! * CUDA's current context is that of the device: whoever makes, runs or drops one of these binds it.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use imprompt_cuda::{Device, Span, Stream};
use imprompt_engine::{ElementType, Port};
use imprompt_error::{Error, Kind, Result};
use trtx::trtx_sys::Dims64;
use trtx::{
    CudaEngine, DataType, ExecutionContext, ExecutionContextAllocationStrategy, Runtime,
    RuntimeConfig, TensorFormat, TensorIOMode, TensorLocation,
};

use crate::engine::Facts;
use crate::flavour::{self, Kernels};
use crate::log::{Faults, logger, told};

/// What TensorRT wants addresses to be multiples of.
const ALIGNMENT: u64 = 256;

/// An engine of TensorRT, which any thread may hold.
struct Owned(CudaEngine<'static>);

// SAFETY: an engine is tied to no thread (see above), and behind a lock one uses it at a time.
unsafe impl Send for Owned {}

/// An engine whose weights are in a GPU's memory, for all instances that run it there.
pub(crate) struct Loaded {
    // In the order they are dropped in.
    engine: Mutex<Owned>,
    kernels: Kernels,
    _runtime: Mutex<Runtime<'static>>,
    /// Whether kernels were kept that are not for this card and this driver.
    has_stale_kernels: AtomicBool,
    device: Device,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Err(error) = self.device.bind() {
            tracing::error!("an engine is closed without its GPU: {error}");
        }
    }
}

impl Loaded {
    /// Puts the engine `bytes` on `device`; `kernels` are those that were compiled for it before.
    ///
    /// # Errors
    /// With TensorRT's words: `Unsupported` when it does not run there, `BadModel` when it is none,
    /// `OutOfMemory`.
    pub(crate) fn new(bytes: &[u8], device: &Device, kernels: Option<&[u8]>) -> Result<Self> {
        device.bind()?;
        let (runtime, mut engine) = deserialise(bytes)?;
        let faults = Faults::of_this_thread();
        let failed = |error: trtx::Error| faults.error(Kind::Internal, "an engine", &error);
        let config = engine.0.create_runtime_config().map_err(failed)?;
        let (kernels, taken) = Kernels::new(&config, kernels).map_err(failed)?;
        if let Err(error) = &taken {
            // Of another card, driver or version: they are compiled anew.
            let words = faults.words(error, |_| true);
            tracing::debug!(target: "tensorrt", "kernels that were kept are not taken: {words}");
        }
        Ok(Loaded {
            engine: Mutex::new(engine),
            kernels,
            _runtime: Mutex::new(runtime),
            has_stale_kernels: AtomicBool::new(taken.is_err()),
            device: device.clone(),
        })
    }

    /// The kernels that were compiled for this card so far, as [`Self::new`] takes them.
    ///
    /// # Errors
    /// `Internal` with TensorRT's words.
    pub(crate) fn kernels(&self) -> Result<Vec<u8>> {
        let faults = Faults::of_this_thread();
        let kernels = self.kernels.to_bytes();
        kernels.map_err(|error| faults.error(Kind::Internal, "the kernels compiled so far", &error))
    }

    /// Whether kernels were kept that are none for this card and this driver: told once.
    pub(crate) fn has_stale_kernels(&self) -> bool {
        self.has_stale_kernels.swap(false, Ordering::Relaxed)
    }
}

/// Fails where the inputs, the outputs or the profiles of `engine` are not those of `facts`: sizes of
/// memory are computed from them.
///
/// # Errors
/// `BadModel` naming the port; `Unsupported` when it is none that lies in a GPU's memory as it is.
fn check(engine: &CudaEngine<'_>, facts: &Facts) -> Result<()> {
    let Facts { inputs, outputs, profiles } = facts;
    let failed = |error: trtx::Error| Error::bad_model(error.to_string());
    let count = engine.nb_io_tensors().map_err(failed)?;
    let found = engine.nb_optimization_profiles().map_err(failed)?;
    let told = inputs.len() + outputs.len();
    // An engine without free lengths has one profile.
    if (usize::try_from(count), usize::try_from(found)) != (Ok(told), Ok(profiles.len().max(1))) {
        return Err(Error::bad_model(format!(
            "the engine has {count} inputs and outputs and {found} profiles, its manifest says \
             {told} and {}",
            profiles.len()
        )));
    }
    let modes = [(inputs, TensorIOMode::kINPUT), (outputs, TensorIOMode::kOUTPUT)];
    for (port, mode) in modes.iter().flat_map(|(ports, mode)| ports.iter().map(move |p| (p, mode)))
    {
        let name = port.name.as_str();
        let (there, data_type, shape) = (
            engine.tensor_io_mode(name).map_err(failed)?,
            engine.tensor_data_type(name).map_err(failed)?,
            engine.tensor_shape(name).map_err(failed)?,
        );
        let has_shape = shape.len() == port.shape.len()
            && shape.iter().zip(&port.shape).all(|(&length, told)| match told {
                Some(told) => length < 0 || usize::try_from(length) == Ok(*told),
                None => length < 0,
            });
        if there != *mode || data_type_of(port.element_type) != Some(data_type) || !has_shape {
            return Err(Error::bad_model(format!(
                "the engine's {name} is {there:?} {data_type:?} {shape:?}, its manifest says \
                 {mode:?} {:?} {:?}",
                port.element_type, port.shape
            )));
        }
        let (place, format) = (
            engine.tensor_location(name).map_err(failed)?,
            engine.tensor_format(name).map_err(failed)?,
        );
        if place != TensorLocation::kDEVICE || format != TensorFormat::kLINEAR {
            return Err(Error::unsupported(format!(
                "the engine wants {name} as {place:?} {format:?}"
            )));
        }
    }
    Ok(())
}

/// TensorRT's own reading of `engine`, on the thread's device.
fn deserialise(engine: &[u8]) -> Result<(Runtime<'static>, Owned)> {
    let faults = Faults::of_this_thread();
    let mut runtime = Runtime::new(logger()?)
        .map_err(|error| faults.error(Kind::Internal, "a runtime", &error))?;
    match runtime.deserialize_cuda_engine(engine) {
        Ok(engine) => Ok((runtime, Owned(engine))),
        Err(error) => {
            // Asking for the reasons has words of its own.
            let words = faults.words(&error, |_| true);
            let (kind, reasons) = flavour::reasons(&runtime, engine);
            let what = match reasons.is_empty() {
                true => "the engine is refused".to_owned(),
                false => format!("the engine is refused ({})", reasons.join(", ")),
            };
            Err(told(kind, &what, &words))
        }
    }
}

fn data_type_of(element_type: ElementType) -> Option<DataType> {
    Some(match element_type {
        ElementType::F32 => DataType::kFLOAT,
        ElementType::F16 => DataType::kHALF,
        ElementType::Bf16 => DataType::kBF16,
        ElementType::I64 => DataType::kINT64,
        ElementType::I32 => DataType::kINT32,
        ElementType::U8 => DataType::kUINT8,
        _ => return None,
    })
}

/// How a context runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Habit {
    /// Which profile it has for good; none where there is but one.
    pub(crate) profile: Option<usize>,
    /// Whether kernels are compiled for the very shapes, in the background; else those for all
    /// shapes run.
    pub(crate) specialises: bool,
    /// Whether TensorRT records what such kernels do and gives it as a whole.
    pub(crate) records: bool,
}

/// What runs an engine, with one of its profiles, on one stream.
pub(crate) struct Context {
    // In the order they are dropped in. `trtx` drops its own handle of the configuration first,
    // which must not be the last.
    inner: ExecutionContext<'static>,
    _config: Rc<RuntimeConfig<'static>>,
    _engine: Arc<Loaded>,
    stream: Stream,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    /// Whether the shapes are those of the inputs that were told last.
    is_shaped: bool,
}

// SAFETY: a context is tied to no thread, and all that runs it takes `&mut self`. The handles of its
// configuration are counted without atomics, but all of them are in here and move together.
unsafe impl Send for Context {}

/// What TensorRT was told of an input, or told of an output.
#[derive(Debug)]
struct Tensor {
    name: String,
    element_type: ElementType,
    shape: Vec<usize>,
    address: u64,
}

impl Tensor {
    fn new(port: &Port) -> Self {
        let Port { name, element_type, .. } = port.clone();
        Tensor { name, element_type, shape: Vec::new(), address: 0 }
    }

    fn bytes(&self) -> Option<usize> {
        bytes(&self.shape, self.element_type)
    }
}

/// Bytes of a tensor.
pub(crate) fn bytes(shape: &[usize], element_type: ElementType) -> Option<usize> {
    shape.iter().try_fold(element_type.size(), |bytes, &length| bytes.checked_mul(length))
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("inputs", &self.inputs).finish_non_exhaustive()
    }
}

impl Context {
    /// Makes one of `engine`, whose inputs, outputs and profiles are `facts`: TensorRT compiles the
    /// kernels for the card.
    ///
    /// # Errors
    /// `BadModel` where the engine is another; with TensorRT's words: `OutOfMemory`, `Unsupported` when
    /// it makes none.
    pub(crate) fn new(
        engine: &Arc<Loaded>,
        stream: &Stream,
        facts: &Facts,
        habit: Habit,
    ) -> Result<Self> {
        stream.bind()?;
        let faults = Faults::of_this_thread();
        let failed = |error: trtx::Error| faults.error(Kind::Unsupported, "a context", &error);
        let mut locked = engine.engine.lock().unwrap_or_else(PoisonError::into_inner);
        check(&locked.0, facts)?;
        let mut config = locked.0.create_runtime_config().map_err(failed)?;
        if habit.profile.is_some() {
            // Memory for its own profile alone.
            config.set_execution_context_allocation_strategy(
                ExecutionContextAllocationStrategy::kON_PROFILE_CHANGE,
            );
        }
        flavour::configure(&mut config, habit, &engine.kernels).map_err(failed)?;
        let config = Rc::new(config);
        let inner =
            locked.0.create_execution_context_with_config(config.clone()).map_err(failed)?;
        drop(locked);
        let mut context = Context {
            inner,
            _config: config,
            _engine: engine.clone(),
            stream: stream.clone(),
            inputs: facts.inputs.iter().map(Tensor::new).collect(),
            outputs: facts.outputs.iter().map(Tensor::new).collect(),
            is_shaped: false,
        };
        if let Some(profile) = habit.profile {
            context.select(profile)?;
        }
        Ok(context)
    }

    /// Takes the profile. The first one as well, for which there is no memory before.
    fn select(&mut self, profile: usize) -> Result<()> {
        let failed = || Error::internal(format!("profile {profile} of an engine is refused"));
        let index = i32::try_from(profile).map_err(|_| failed())?;
        // SAFETY: the stream is live as long as `self`; runs are given to the same one, and so come
        // after what this copies.
        match unsafe { self.inner.set_optimization_profile_async(index, self.stream.handle()) } {
            true => self.stream.synchronize(),
            false => Err(failed()),
        }
    }

    /// Tells the shapes of the inputs, in their order; gives those of the outputs, in theirs.
    ///
    /// # Errors
    /// `Internal` with TensorRT's words when it does not take one, or when an output's is not known
    /// before the run.
    pub(crate) fn shape(&mut self, shapes: &[Vec<usize>]) -> Result<Vec<Vec<usize>>> {
        let is_same = self.is_shaped && self.inputs.iter().map(|one| &one.shape).eq(shapes);
        if !is_same {
            self.is_shaped = false;
            self.tell_shapes(shapes)?;
            self.is_shaped = true;
        }
        Ok(self.outputs.iter().map(|output| output.shape.clone()).collect())
    }

    fn tell_shapes(&mut self, shapes: &[Vec<usize>]) -> Result<()> {
        if shapes.len() != self.inputs.len() {
            return Err(Error::internal(format!(
                "{} shapes for {} inputs",
                shapes.len(),
                self.inputs.len()
            )));
        }
        let faults = Faults::of_this_thread();
        for (input, shape) in self.inputs.iter_mut().zip(shapes) {
            // Where there are no lengths it is not seen whether that was told.
            if input.shape == *shape && !shape.is_empty() {
                continue;
            }
            input.shape.clear();
            let lengths: Vec<i64> = shape.iter().map(|&length| length as i64).collect();
            self.inner.set_input_shape(&input.name, &Dims64::from_slice(&lengths)).map_err(
                |error| {
                    let what = format!("input {} of shape {shape:?}", input.name);
                    faults.error(Kind::Internal, &what, &error)
                },
            )?;
            input.shape.clone_from(shape);
        }
        for output in &mut self.outputs {
            let what = || format!("output {}", output.name);
            let found = self.inner.tensor_shape(&output.name);
            let found = found.map_err(|error| faults.error(Kind::Internal, &what(), &error))?;
            output.shape = lengths(found.nbDims, &found.d).ok_or_else(|| {
                Error::internal(format!(
                    "{}: its shape is not known before the run: {:?}",
                    what(),
                    found.d
                ))
            })?;
        }
        Ok(())
    }

    /// Gives a run to the stream, with the inputs and outputs at these places, in their order; the
    /// shapes are those that were told last. It ends before the run does.
    ///
    /// # Errors
    /// `Internal` naming what is too short, not aligned or another stream's; with TensorRT's words
    /// when it does not take the run, `OutOfMemory`.
    pub(crate) fn enqueue(&mut self, inputs: &[Span<'_>], outputs: &[Span<'_>]) -> Result<()> {
        if !self.is_shaped
            || (inputs.len(), outputs.len()) != (self.inputs.len(), self.outputs.len())
        {
            return Err(Error::internal("a run without its inputs, outputs or shapes"));
        }
        self.stream.bind()?;
        let faults = Faults::of_this_thread();
        let tensors =
            self.inputs.iter_mut().zip(inputs).chain(self.outputs.iter_mut().zip(outputs));
        for (tensor, span) in tensors {
            let address = span.address();
            let is_own = span.stream().handle() == self.stream.handle();
            let is_enough = tensor.bytes().is_some_and(|bytes| bytes <= span.len());
            if !is_own || !is_enough || address == 0 || !address.is_multiple_of(ALIGNMENT) {
                return Err(Error::internal(format!(
                    "{} of shape {:?}: {} bytes at {address:#x}, {}",
                    tensor.name,
                    tensor.shape,
                    span.len(),
                    if is_own { "of this stream" } else { "of another stream" }
                )));
            }
            if tensor.address == address {
                continue;
            }
            tensor.address = 0;
            // SAFETY: the memory is on the device and as long as the tensor, whose type and layout
            // were checked, as was just its size; it belongs to the stream that the run is given to,
            // which frees and reuses it behind the run.
            unsafe { self.inner.set_tensor_address(&tensor.name, address as *mut _) }
                .map_err(|error| faults.error(Kind::Internal, &tensor.name, &error))?;
            tensor.address = address;
        }
        // SAFETY: the stream is live as long as `self`. Every input and output is at one of `inputs`
        // and `outputs`, all of which are alive here: see above.
        unsafe { self.inner.enqueue_v3(self.stream.handle()) }
            .map_err(|error| faults.error(Kind::Internal, "a run", &error))
    }
}

/// The first `count` of `lengths`, where all are known.
fn lengths(count: i32, lengths: &[i64]) -> Option<Vec<usize>> {
    let lengths = lengths.get(..usize::try_from(count).ok()?)?;
    lengths.iter().map(|&length| usize::try_from(length).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_known_or_not() {
        assert_eq!(lengths(2, &[8, 0, -1]), Some(vec![8, 0]));
        assert_eq!(lengths(3, &[8, 0, -1]), None);
        assert_eq!(lengths(0, &[]), Some(Vec::new()));
        assert_eq!(lengths(-1, &[1; 8]), None);
        assert_eq!(lengths(9, &[1; 8]), None);
        assert_eq!(bytes(&[2, 0, 3], ElementType::F16), Some(0));
        assert_eq!(bytes(&[2, 3], ElementType::I64), Some(48));
        assert_eq!(bytes(&[usize::MAX], ElementType::F16), None);
    }

    #[cfg(not(feature = "enterprise"))]
    #[test]
    fn what_is_no_engine_is_refused_in_tensorrts_words() {
        crate::TensorRt::open(&crate::LibrarySearch::default()).unwrap();
        let error = deserialise(&[7; 4096]).err().unwrap();
        assert!(error.message().contains("the engine is refused"), "{error}");
        assert_eq!(error.kind(), Kind::BadModel, "{error}");
        assert!(error.message().contains("deserializeCudaEngine"), "{error}");
        assert!(deserialise(b"cut").is_err());
    }

    #[cfg(not(feature = "enterprise"))]
    #[test]
    fn an_engine_is_refused_where_it_does_not_run() {
        use imprompt_graph::builder::{GraphBuilder, Type};
        struct Nobody;
        impl crate::Watch for Nobody {
            fn start(&self, _: &str, _: u64) {}
            fn advance(&self, _: u64) {}
            fn finish(&self) {}
        }
        let library = crate::TensorRt::open(&crate::LibrarySearch::default()).unwrap();
        let weights = imprompt_graph::weights::WeightIndex::default();
        let mut graph = GraphBuilder::new("doubled", &weights);
        let x = graph.input("x", Type::F32, &[2.into()]);
        let y = graph.add(&x, &x);
        graph.output(&y, "y", Type::F32, &[2.into()]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("doubled.onnx");
        std::fs::write(&path, graph.finish().bytes).unwrap();
        let options = crate::EngineOptions {
            compute_capabilities: crate::usual_capabilities().unwrap(),
            profiles: Vec::new(),
        };
        let built = library.build(&path, &options, &Nobody).unwrap();
        if Device::count().unwrap() == 0 {
            let error = deserialise(&built.bytes).err().unwrap();
            assert_eq!(error.kind(), Kind::Unsupported, "{error}");
            assert!(error.message().contains("the engine is refused"), "{error}");
            assert!(error.message().contains("driver"), "{error}");
        }
        let cut = deserialise(&built.bytes[..built.bytes.len() / 2]).err().unwrap();
        assert!(cut.message().contains("the engine is refused"), "{cut}");
    }
}
