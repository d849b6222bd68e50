//! One graph as a session of ONNX Runtime.

use std::ffi::{CString, c_char};
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use imprompt_error::{Error, Result};
use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::sys::OrtValue;
use prost::Message;

use super::held::{OnnxHeld, RawValue, check};
use super::ports::Ports;
use super::slab::{HostSlab, OnnxCache};
use super::{kernels, lowest_level, status};
use crate::{
    Cache, CacheSpec, Engine, EngineOptions, Held, Input, Instructions, Optimization, Port,
};

/// A session and the names of its graph.
#[derive(Debug)]
pub struct OnnxEngine {
    session: Session,
    inputs: Ports,
    outputs: Ports,
    memory: MemoryInfo<'static>,
    name: String,
}

impl OnnxEngine {
    /// Loads `graph`.
    pub fn open(environment: &Environment, graph: &Path, options: &EngineOptions) -> Result<Self> {
        let name = graph.display().to_string();
        if !graph.is_file() {
            return Err(Error::bad_model(format!("{name} does not exist")));
        }
        let load_error = |error: ort::Error| status::load_error(&error, &name);
        let mut builder = configure(environment, options).map_err(load_error)?;
        let kernels = options.kernels.filter(|_| imprompt_kernel::is_supported());
        let session = match kernels {
            Some(instructions) => with_kernels(builder, graph, options, instructions)?,
            None => builder.commit_from_file(graph).map_err(load_error)?,
        };
        let ports = |outlets| Ports::new(outlets).map_err(|error| error.context(&name));
        let memory =
            MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default);
        Ok(OnnxEngine {
            inputs: ports(session.inputs())?,
            outputs: ports(session.outputs())?,
            session,
            memory: memory.map_err(|error| status::error(&error, "host memory"))?,
            name,
        })
    }

    fn run_raw(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[&str],
        cache: Option<(&mut dyn Cache, &Range<usize>)>,
    ) -> Result<Vec<Box<dyn Held>>> {
        let mut call = Call::default();
        // Keeps the values over borrowed memory until the run is over.
        let mut borrowed = Vec::with_capacity(inputs.len());
        for (name, input) in inputs {
            let index = self.inputs.find(name, "input")?;
            let held = match input {
                Input::Held(held) => held.as_any().downcast_ref::<OnnxHeld>(),
                Input::View(_) => None,
            };
            let value = match (held, input) {
                (Some(held), _) => held.pointer(),
                (None, Input::Held(foreign)) => self.borrow(&foreign.to_host()?, &mut borrowed)?,
                (None, Input::View(view)) => self.borrow(view, &mut borrowed)?,
            };
            call.input(&self.inputs.c_names[index], value);
        }
        for name in outputs {
            let index = self.outputs.find(name, "output")?;
            call.output(&self.outputs.c_names[index], std::ptr::null_mut());
        }
        if let Some((cache, slots)) = cache {
            self.bind_cache(&mut call, cache, slots)?;
        }
        if call.inputs.len() != self.inputs.ports.len() {
            return Err(Error::internal(format!(
                "{} inputs were given, the graph has {}",
                call.inputs.len(),
                self.inputs.ports.len()
            )));
        }
        // SAFETY: names and values are live until the call returns, and there
        // are as many names as values. `&mut self` makes it the session's only
        // run. Inputs are only read, but for the cache's, which its `&mut`
        // borrow gives to this run alone.
        let status = unsafe {
            (ort::api().Run)(
                self.session.ptr().cast_mut(),
                std::ptr::null(),
                call.input_names.as_ptr(),
                call.inputs.as_ptr(),
                call.inputs.len(),
                call.output_names.as_ptr(),
                call.output_names.len(),
                call.outputs.as_mut_ptr(),
            )
        };
        let made: Vec<Option<RawValue>> = call.outputs[..outputs.len()]
            .iter()
            // SAFETY: these were null before the run, which gives them away.
            .map(|&value| unsafe { RawValue::take(value) })
            .collect();
        check(status, "a run").map_err(|error| error.context(&self.name))?;
        let held = |(value, name): (Option<RawValue>, &&str)| -> Result<Box<dyn Held>> {
            let value =
                value.ok_or_else(|| Error::internal(format!("a run gave no output {name}")))?;
            Ok(Box::new(OnnxHeld::new(value, name, self.session.inner())?))
        };
        made.into_iter().zip(outputs).map(held).collect()
    }

    fn borrow(
        &self,
        view: &crate::TensorView<'_>,
        borrowed: &mut Vec<RawValue>,
    ) -> Result<*mut OrtValue> {
        // SAFETY: the value lives in `borrowed` until the run is over, the view
        // is borrowed for longer, and it is used as an input alone.
        let value = unsafe { RawValue::over_view(&self.memory, view)? };
        let pointer = value.pointer();
        borrowed.push(value);
        Ok(pointer)
    }

    fn bind_cache(
        &self,
        call: &mut Call,
        cache: &mut dyn Cache,
        slots: &Range<usize>,
    ) -> Result<()> {
        let cache = cache
            .as_any_mut()
            .downcast_mut::<OnnxCache<HostSlab>>()
            .ok_or_else(|| Error::internal("the cache is another runtime's"))?;
        for ((input, output), value) in cache.bind(slots, &self.inputs, &self.outputs)? {
            if let Some(input) = input {
                call.input(&self.inputs.c_names[input], value.pointer());
            }
            if let Some(output) = output {
                call.output(&self.outputs.c_names[output], value.pointer());
            }
        }
        Ok(())
    }
}

/// The arguments of a run.
#[derive(Default)]
struct Call {
    input_names: Vec<*const c_char>,
    inputs: Vec<*const OrtValue>,
    output_names: Vec<*const c_char>,
    outputs: Vec<*mut OrtValue>,
}

impl Call {
    fn input(&mut self, name: &CString, value: *mut OrtValue) {
        self.input_names.push(name.as_ptr());
        self.inputs.push(value.cast_const());
    }

    fn output(&mut self, name: &CString, value: *mut OrtValue) {
        self.output_names.push(name.as_ptr());
        self.outputs.push(value);
    }
}

impl Engine for OnnxEngine {
    fn inputs(&self) -> &[Port] {
        &self.inputs.ports
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs.ports
    }

    fn run(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[&str],
    ) -> Result<Vec<Box<dyn Held>>> {
        self.run_raw(inputs, outputs, None)
    }

    fn new_cache(&self, spec: &CacheSpec) -> Result<Box<dyn Cache>> {
        Ok(Box::new(OnnxCache::<HostSlab>::new(spec, self.memory.to_owned(), HostSlab::new)?))
    }

    fn run_with_cache(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[&str],
        cache: &mut dyn Cache,
        slots: Range<usize>,
    ) -> Result<Vec<Box<dyn Held>>> {
        self.run_raw(inputs, outputs, Some((cache, &slots)))
    }
}

/// A session over `graph` with imprompt's kernels in it.
fn with_kernels(
    builder: SessionBuilder,
    graph: &Path,
    options: &EngineOptions,
    instructions: Instructions,
) -> Result<Session> {
    let name = graph.display();
    let load_error = |error: ort::Error| status::load_error(&error, &name.to_string());
    let bytes =
        std::fs::read(graph).map_err(|error| Error::bad_model(format!("{name}: {error}")))?;
    let mut model = imprompt_onnx::Model::decode(bytes.as_slice())
        .map_err(|error| Error::bad_model(format!("{name} is no ONNX graph: {error}")))?;
    let instructions = match instructions {
        Instructions::Amx if model.is_high_precision() => Instructions::AmxHigh,
        instructions => instructions,
    };
    let folder = graph.parent().unwrap_or(Path::new("."));
    let weights =
        kernels::rewrite(&mut model, folder, instructions).map_err(|error| error.context(&name))?;
    let domain = kernels::domain(weights, options, instructions).map_err(load_error)?;
    // What stays in the graph's charge, norms and embeddings, is looked for beside it.
    let folder = folder
        .to_str()
        .ok_or_else(|| Error::bad_model(format!("{name}: the folder's name is not UTF-8")))?;
    let builder = builder.with_config_entry(EXTERNAL_FOLDER, folder);
    let builder = builder.map_err(|error| load_error(error.into()))?.with_operators(domain);
    let mut builder = builder.map_err(|error| load_error(error.into()))?;
    let bytes = model.encode_to_vec();
    let _one_at_a_time = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    builder.commit_from_memory(&bytes).map_err(load_error)
}

/// The library looks up a domain and adds it to a list of the process in two steps: sessions that
/// open at the same time would both add it, and the second would fail.
static OPENING: Mutex<()> = Mutex::new(());

/// Where the external data of a graph without a file is.
const EXTERNAL_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// A session builder with the options set.
pub(super) fn configure(
    environment: &Environment,
    options: &EngineOptions,
) -> std::result::Result<SessionBuilder, ort::Error> {
    let level = match options.optimization {
        Optimization::None => GraphOptimizationLevel::Disable,
        Optimization::Basic => GraphOptimizationLevel::Level1,
        Optimization::Extended => GraphOptimizationLevel::Level2,
        Optimization::All => GraphOptimizationLevel::All,
    };
    let mut builder = Session::builder(environment)?
        .with_optimization_level(level)?
        .with_intra_threads(options.threads)?
        .with_inter_threads(options.branches)?
        .with_parallel_execution(options.branches > 1)?
        .with_intra_op_spinning(options.spinning)?
        .with_inter_op_spinning(options.spinning)?
        .with_memory_pattern(options.memory_pattern)?
        .with_log_level(lowest_level())?;
    if options.own_threads {
        builder = builder.with_independent_thread_pool()?;
    }
    if !options.arena {
        // SAFETY: the builder's options are live and not shared.
        let status = unsafe { (ort::api().DisableCpuMemArena)(builder.ptr_mut()) };
        // SAFETY: the status comes from the call above and is given away here.
        unsafe { ort::Error::result_from_status(status) }?;
    }
    Ok(builder)
}
