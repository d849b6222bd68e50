//! One graph as a session on the device.

use std::ffi::CString;
use std::ops::Range;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use imprompt_cuda::{Buffer, Feed, Part, Pitch, Stream};
use imprompt_error::{Error, Result};
use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::MemoryInfo;
use ort::session::Session;
use ort::sys::{OrtIoBinding, OrtRunOptions, OrtValue};

use super::held::CudaHeld;
use super::recorded::{Key, Recorded, Recording, Way};
use super::{ProviderOptions, device_memory};
use crate::onnxruntime::held::{RawValue, check};
use crate::onnxruntime::ports::Ports;
use crate::onnxruntime::session::configure;
use crate::onnxruntime::slab::{OnnxCache, Rows, Slab};
use crate::onnxruntime::status;
use crate::{Cache, CacheSpec, ElementType, Engine, EngineOptions, Held, Input, Port, brought};

/// Free lengths are multiples of this, so that a recorded step serves many.
const LENGTH_STEP: usize = 64;

/// A session, where its inputs and outputs are, and the stream that it works on.
#[derive(Debug)]
pub(super) struct CudaEngine {
    /// Dropped before the session that it is of.
    binding: Binding,
    options: RunOptions,
    /// As well: it has outputs of the session.
    recorded: Recorded,
    session: Session,
    inputs: Ports,
    outputs: Ports,
    memory: MemoryInfo<'static>,
    feed: Feed,
    stream: Stream,
    name: String,
}

impl CudaEngine {
    /// Loads `graph`.
    pub(super) fn open(
        environment: &Environment,
        stream: &Stream,
        graph: &Path,
        options: &EngineOptions,
    ) -> Result<Self> {
        let name = graph.display().to_string();
        if !graph.is_file() {
            return Err(Error::bad_model(format!("{name} does not exist")));
        }
        let load_error = |error: ort::Error| status::load_error(&error, &name);
        let mut builder = configure(environment, options).map_err(load_error)?;
        ProviderOptions::new(stream)?.add_to(&mut builder)?;
        let mut session = builder.commit_from_file(graph).map_err(load_error)?;
        let ports = |outlets| Ports::new(outlets).map_err(|error| error.context(&name));
        Ok(CudaEngine {
            binding: Binding::new(&mut session)?,
            options: RunOptions::new()?,
            inputs: ports(session.inputs())?,
            outputs: ports(session.outputs())?,
            session,
            memory: device_memory(stream)?,
            feed: Feed::new(stream)?,
            recorded: Recorded::new(options.cuda_graphs),
            stream: stream.clone(),
            name,
        })
    }

    fn run_bound(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[&str],
        cache: Option<(&mut dyn Cache, &Range<usize>)>,
    ) -> Result<Vec<Box<dyn Held>>> {
        self.stream.bind()?;
        self.binding.clear();
        let mut key = Key::default();
        let mut given = 0;
        let mut others: Vec<Brought<'_>> = Vec::with_capacity(inputs.len());
        for (name, input) in inputs {
            let index = self.inputs.find(name, "input")?;
            given += 1;
            let own = match input {
                Input::Held(held) => held.as_any().downcast_ref::<CudaHeld>(),
                Input::View(_) => None,
            };
            match own.filter(|held| held.is_on(&self.stream)) {
                Some(held) => {
                    key.inputs.push((index, held.address(), held.shape().to_vec()));
                    self.binding.input(&self.inputs.c_names[index], held.pointer())?;
                }
                None => others.push(Brought::new(index, input, &self.stream)?),
            }
        }
        let fed = self.feed(&others)?;
        for (input, (address, value)) in others.iter().zip(&fed) {
            key.inputs.push((input.index, *address, input.shape.to_vec()));
            self.binding.input(&self.inputs.c_names[input.index], value.pointer())?;
        }
        for name in outputs {
            let index = self.outputs.find(name, "output")?;
            key.outputs.push(index);
            self.binding.output_on(&self.outputs.c_names[index], &self.memory)?;
        }
        if let Some((cache, slots)) = cache {
            let cache = cache
                .as_any_mut()
                .downcast_mut::<OnnxCache<Buffer>>()
                .ok_or_else(|| Error::internal("the cache is another runtime's"))?;
            key.cache = Some((cache.start(), slots.clone()));
            for ((input, output), value) in cache.bind(slots, &self.inputs, &self.outputs)? {
                if let Some(input) = input {
                    given += 1;
                    self.binding.input(&self.inputs.c_names[input], value.pointer())?;
                }
                if let Some(output) = output {
                    self.binding.output(&self.outputs.c_names[output], value.pointer())?;
                }
            }
        }
        if given != self.inputs.ports.len() {
            return Err(Error::internal(format!(
                "{given} inputs were given, the graph has {}",
                self.inputs.ports.len()
            )));
        }
        let values = self.run_recorded(key)?;
        // The bound values are in the order they were bound in: outputs first, then the cache's,
        // which belong to the cache.
        let held = |(value, name): (Arc<RawValue>, &&str)| -> Result<Box<dyn Held>> {
            let (session, alive) = (self.session.inner(), self.recorded.alive());
            Ok(Box::new(CudaHeld::new(value, name, &self.stream, session, alive)?))
        };
        if values.len() < outputs.len() {
            return Err(Error::internal(format!(
                "a run gave {} outputs, {} were asked for",
                values.len(),
                outputs.len()
            )));
        }
        values.into_iter().zip(outputs).map(held).collect()
    }

    /// Runs what is bound, and gives what it has made.
    fn run_plain(&mut self) -> Result<Vec<Arc<RawValue>>> {
        self.binding
            .run(&mut self.session, &self.options)
            .map_err(|error| error.context(&self.name))?;
        Ok(self.binding.bound_outputs()?.into_iter().map(Arc::new).collect())
    }

    /// [`Self::run_plain`], as it was recorded for `key` where it was.
    fn run_recorded(&mut self, key: Key) -> Result<Vec<Arc<RawValue>>> {
        let recording = match self.recorded.way(&key) {
            Way::Plain => return self.run_plain(),
            Way::Again(recording) => recording,
            Way::Record => {
                let (binding, session, options) =
                    (&mut self.binding, &mut self.session, &self.options);
                let graph = match self.stream.record(|| binding.run(session, options)) {
                    Ok(Some(graph)) => graph,
                    Ok(None) => {
                        tracing::debug!("{}: runs are not recorded: they need the host", self.name);
                        self.recorded.stop();
                        return self.run_plain();
                    }
                    Err(error) => {
                        tracing::warn!("{}: steps are not recorded: {error}", self.name);
                        self.recorded.stop();
                        return self.run_plain();
                    }
                };
                let outputs = self.binding.bound_outputs()?.into_iter().map(Arc::new).collect();
                self.recorded.keep(key, Recording { graph, outputs })
            }
        };
        // SAFETY: inputs and cache are where they were, as the key says; the outputs are kept with
        // the recording; what it computes with in between lies in the session's arena, which frees
        // nothing before the session goes, and no output is alive that could lie there. All of it is
        // used by work of this stream alone.
        unsafe { recording.graph.launch() }.map_err(|error| error.context(&self.name))?;
        Ok(recording.outputs.clone())
    }

    /// Brings `inputs` to where a run reads them: where that is, and values over it.
    fn feed(&mut self, inputs: &[Brought<'_>]) -> Result<Vec<(u64, RawValue)>> {
        let parts: Vec<Part<'_>> = inputs.iter().map(|input| input.part.clone()).collect();
        let addresses = self.feed.load(&parts)?;
        let value = |(input, address): (&Brought<'_>, u64)| {
            let shape: Vec<i64> = input.shape.iter().map(|&length| length as i64).collect();
            let bytes = input.shape.iter().product::<usize>() * input.element_type.size();
            // SAFETY: the feed holds the bytes of the input there until it is loaded again, which the
            // stream orders behind this run; the value is an input alone and is dropped with it.
            let value = unsafe {
                let data = address as *mut std::ffi::c_void;
                RawValue::over(&self.memory, data, bytes, &shape, input.element_type)
            };
            Ok((address, value?))
        };
        inputs.iter().zip(addresses).map(value).collect()
    }
}

/// An input that is brought to where the run reads it.
struct Brought<'a> {
    /// Its place among the graph's.
    index: usize,
    shape: &'a [usize],
    element_type: ElementType,
    /// As many bytes as `shape` says.
    part: Part<'a>,
}

impl<'a> Brought<'a> {
    /// `input`, for a run on `stream`.
    fn new(index: usize, input: &Input<'a>, stream: &Stream) -> Result<Self> {
        let (shape, element_type) = (input.shape(), input.element_type());
        Ok(Brought { index, shape, element_type, part: brought(input, stream.device())? })
    }
}

impl Engine for CudaEngine {
    fn inputs(&self) -> &[Port] {
        &self.inputs.ports
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs.ports
    }

    fn length_step(&self) -> usize {
        if self.recorded.is_on() { LENGTH_STEP } else { 1 }
    }

    fn run(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[&str],
    ) -> Result<Vec<Box<dyn Held>>> {
        self.run_bound(inputs, outputs, None)
    }

    fn new_cache(&self, spec: &CacheSpec) -> Result<Box<dyn Cache>> {
        let allocate = |bytes| self.stream.zeros(bytes);
        Ok(Box::new(OnnxCache::<Buffer>::new(spec, self.memory.to_owned(), allocate)?))
    }

    fn run_with_cache(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[&str],
        cache: &mut dyn Cache,
        slots: Range<usize>,
    ) -> Result<Vec<Box<dyn Held>>> {
        self.run_bound(inputs, outputs, Some((cache, &slots)))
    }
}

impl Drop for CudaEngine {
    fn drop(&mut self) {
        // The session's memory is freed with it: nothing may still work on it.
        if let Err(error) = self.stream.synchronize() {
            tracing::error!("work on the GPU failed while {} was closed: {error}", self.name);
        }
    }
}

impl Slab for Buffer {
    fn start(&self) -> *mut std::ffi::c_void {
        self.address() as *mut std::ffi::c_void
    }

    unsafe fn copy_rows(&mut self, from: usize, to: usize, rows: Rows) -> Result<()> {
        let stream = self.stream().clone();
        let pitch = Pitch { rows: rows.count, width: rows.width, stride: rows.stride };
        stream.copy_rows(self, from, to, pitch)
    }
}

/// Where a session's inputs and outputs are.
#[derive(Debug)]
struct Binding(NonNull<OrtIoBinding>);

// SAFETY: a binding is tied to no thread; runs that use it hold the engine's `&mut`.
unsafe impl Send for Binding {}

impl Binding {
    fn new(session: &mut Session) -> Result<Self> {
        let mut binding = std::ptr::null_mut();
        // SAFETY: the session is live; what comes back is owned and released by `Drop`, before it.
        let status =
            unsafe { (ort::api().CreateIoBinding)(session.ptr().cast_mut(), &mut binding) };
        check(status, "a binding")?;
        NonNull::new(binding).map(Binding).ok_or_else(|| Error::internal("a binding is null"))
    }

    fn clear(&mut self) {
        // SAFETY: the binding is live.
        unsafe {
            (ort::api().ClearBoundInputs)(self.0.as_ptr());
            (ort::api().ClearBoundOutputs)(self.0.as_ptr());
        }
    }

    fn input(&mut self, name: &CString, value: *mut OrtValue) -> Result<()> {
        // SAFETY: name, value and binding are live; the binding counts a reference of its own.
        let status = unsafe { (ort::api().BindInput)(self.0.as_ptr(), name.as_ptr(), value) };
        check(status, "an input")
    }

    fn output(&mut self, name: &CString, value: *mut OrtValue) -> Result<()> {
        // SAFETY: as for an input.
        let status = unsafe { (ort::api().BindOutput)(self.0.as_ptr(), name.as_ptr(), value) };
        check(status, "an output")
    }

    /// The run makes the output `name`, in `memory`.
    fn output_on(&mut self, name: &CString, memory: &MemoryInfo<'static>) -> Result<()> {
        // SAFETY: all are live; the description is copied.
        let status = unsafe {
            (ort::api().BindOutputToDevice)(self.0.as_ptr(), name.as_ptr(), memory.ptr())
        };
        check(status, "an output")
    }

    fn run(&mut self, session: &mut Session, options: &RunOptions) -> Result<()> {
        // SAFETY: all are live; `&mut` makes it the session's only run, and what is bound lives until
        // the stream is through with it: see where it is bound.
        let status = unsafe {
            (ort::api().RunWithBinding)(
                session.ptr().cast_mut(),
                options.0.as_ptr(),
                self.0.as_ptr(),
            )
        };
        check(status, "a run")
    }

    /// The outputs of the last run, in the order they were bound in.
    fn bound_outputs(&self) -> Result<Vec<RawValue>> {
        let api = ort::api();
        let (mut allocator, mut values, mut count) =
            (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        // SAFETY: the out-pointers are live; the allocator is the library's own, of all its life.
        check(unsafe { (api.GetAllocatorWithDefaultOptions)(&mut allocator) }, "an allocator")?;
        // SAFETY: as above; the array that comes back is freed below by the same allocator.
        let status = unsafe {
            (api.GetBoundOutputValues)(self.0.as_ptr(), allocator, &mut values, &mut count)
        };
        check(status, "the outputs")?;
        if values.is_null() {
            return Ok(Vec::new());
        }
        let taken = (0..count)
            // SAFETY: the array has `count` values, each given away once.
            .filter_map(|index| unsafe { RawValue::take(*values.add(index)) })
            .collect();
        // SAFETY: the array came from this allocator and is not used after this.
        check(unsafe { (api.AllocatorFree)(allocator, values.cast()) }, "the outputs")?;
        Ok(taken)
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        // SAFETY: owned, and not used after this.
        unsafe { (ort::api().ReleaseIoBinding)(self.0.as_ptr()) }
    }
}

/// Runs that end when their work is given to the stream, not when it is done.
#[derive(Debug)]
struct RunOptions(NonNull<OrtRunOptions>);

// SAFETY: only read after they are made.
unsafe impl Send for RunOptions {}

impl RunOptions {
    fn new() -> Result<Self> {
        let api = ort::api();
        let mut options = std::ptr::null_mut();
        // SAFETY: the out-pointer is live; what comes back is owned and released by `Drop`.
        check(unsafe { (api.CreateRunOptions)(&mut options) }, "the options of a run")?;
        let options = NonNull::new(options)
            .map(RunOptions)
            .ok_or_else(|| Error::internal("the options of a run are null"))?;
        let (key, on) = (c"disable_synchronize_execution_providers", c"1");
        // SAFETY: the options are live, the strings are static.
        let status =
            unsafe { (api.AddRunConfigEntry)(options.0.as_ptr(), key.as_ptr(), on.as_ptr()) };
        check(status, "the options of a run")?;
        Ok(options)
    }
}

impl Drop for RunOptions {
    fn drop(&mut self) {
        // SAFETY: owned, and not used after this.
        unsafe { (ort::api().ReleaseRunOptions)(self.0.as_ptr()) }
    }
}
