//! Building an engine: a graph, the shapes of its inputs, the cards it shall run on.

use std::fmt;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::str::FromStr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use imprompt_error::{Error, Result};
use trtx::interfaces::MonitorProgress;
use trtx::optimization_profile::OptimizationProfile;
use trtx::trtx_sys::Dims64;
use trtx::{
    Builder, BuilderFlag, DataType, NetworkDefinition, OnnxParser, OptProfileSelector, Tensor,
};

use crate::TensorRt;
use crate::flavour::{self, COMPUTE_CAPABILITIES};
use crate::log::{Faults, logger};

/// A card's compute capability, such as 8.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComputeCapability {
    pub(crate) major: u8,
    pub(crate) minor: u8,
}

impl ComputeCapability {
    pub(crate) const fn new(major: u8, minor: u8) -> Self {
        ComputeCapability { major, minor }
    }

    /// Whether its cards multiply bfloat16.
    #[must_use]
    pub fn has_bfloat16(self) -> bool {
        self.major >= 8
    }
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for ComputeCapability {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = COMPUTE_CAPABILITIES.iter().find(|known| known.to_string() == text);
        known.copied().ok_or_else(|| {
            let all: Vec<String> = COMPUTE_CAPABILITIES.iter().map(ToString::to_string).collect();
            format!("engines are built for {}", all.join(", "))
        })
    }
}

/// The shapes of an input that an engine takes: each dimension from `least` to `most`, fastest at
/// `best`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The input.
    pub input: String,
    /// The smallest shape.
    pub least: Vec<usize>,
    /// The usual shape.
    pub best: Vec<usize>,
    /// The largest shape.
    pub most: Vec<usize>,
}

/// What an engine is built for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// The cards it shall run on; at least one.
    pub compute_capabilities: Vec<ComputeCapability>,
    /// Optimization profiles: the shapes of all inputs that have free dimensions. At least one where
    /// any has; a run uses one of them.
    pub profiles: Vec<Vec<Range>>,
}

/// The type of a port's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortType {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point.
    F16,
    /// Brain floating point.
    Bf16,
    /// 64-bit signed integer.
    I64,
}

impl PortType {
    fn of(data_type: DataType, name: &str) -> Result<Self> {
        Ok(match data_type {
            DataType::kFLOAT => PortType::F32,
            DataType::kHALF => PortType::F16,
            DataType::kBF16 => PortType::Bf16,
            DataType::kINT64 => PortType::I64,
            other => {
                return Err(Error::unsupported(format!("{name} has elements of type {other:?}")));
            }
        })
    }
}

/// An input or output of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub element_type: PortType,
    /// Its dimensions; `None` where they are free.
    pub shape: Vec<Option<usize>>,
}

/// A built engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The engine, as [`TensorRt`]'s version reads it back.
    pub bytes: Vec<u8>,
    /// Its inputs, in the graph's order.
    pub inputs: Vec<Port>,
    /// Its outputs, in the graph's order.
    pub outputs: Vec<Port>,
}

/// Told how a build goes on.
pub trait Watch {
    /// A part of the work begins.
    fn start(&self, what: &str, steps: u64);
    /// So many more of its steps are done.
    fn advance(&self, steps: u64);
    /// The part is done.
    fn finish(&self);
}

impl TensorRt {
    /// Builds an engine of `graph`, an `.onnx` file with its weights beside it. TensorRT computes
    /// in the types that are in the graph, and not with fewer digits: products in float32 are not
    /// rounded to TensorFloat-32. One engine is built at a time in a process; others wait.
    ///
    /// # Errors
    /// `BadModel` with TensorRT's words when it does not read the graph, `Unsupported` when it does
    /// not build it; `InvalidInput` when a range does not fit the graph.
    pub fn build(
        &'static self,
        graph: &Path,
        options: &EngineOptions,
        watch: &dyn Watch,
    ) -> Result<Built> {
        // The cards that are built for are the library's, not the builder's: of two builds at a time
        // the one would be for the other's.
        static BUILDING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        let (sender, events) = channel();
        // Who watches need not be a thread's, and TensorRT calls from threads of its own.
        std::thread::scope(|scope| {
            let work = scope.spawn(move || build(graph, options, sender));
            tell(&events, watch);
            work.join().unwrap_or_else(|_| Err(Error::internal("the building of an engine failed")))
        })
        .map_err(|error| error.context(graph.display()))
    }
}

/// What happens in a build.
enum Event {
    Start(String, u64),
    Step,
    Finish,
}

/// Hands on what happens until the build is over.
fn tell(events: &Receiver<Event>, watch: &dyn Watch) {
    for event in events {
        match event {
            Event::Start(what, steps) => watch.start(&what, steps),
            Event::Step => watch.advance(1),
            Event::Finish => watch.finish(),
        }
    }
}

/// Called by TensorRT from C++: nothing may unwind out of it.
struct Monitor {
    sender: Sender<Event>,
    /// The phases that are open; the outermost one is told about.
    open: Mutex<Vec<String>>,
}

impl Monitor {
    fn guarded<T>(&self, otherwise: T, act: impl FnOnce(&mut Vec<String>) -> T) -> T {
        let act = || act(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner));
        catch_unwind(AssertUnwindSafe(act)).unwrap_or(otherwise)
    }

    fn send(&self, event: Event) {
        // Nobody listens any more: the build goes on.
        let _ = self.sender.send(event);
    }
}

impl MonitorProgress for Monitor {
    fn phase_start(&self, phase_name: &str, _parent: Option<&str>, num_steps: i32) {
        self.guarded((), |open| {
            if open.is_empty() {
                let steps = u64::try_from(num_steps).unwrap_or_default();
                self.send(Event::Start(phase_name.to_owned(), steps));
            }
            open.push(phase_name.to_owned());
        });
    }

    fn step_complete(&self, phase_name: &str, _step: i32) -> ControlFlow<()> {
        self.guarded((), |open| {
            if open.first().is_some_and(|first| first == phase_name) {
                self.send(Event::Step);
            }
        });
        ControlFlow::Continue(())
    }

    fn phase_finish(&self, phase_name: &str) {
        self.guarded((), |open| {
            if let Some(at) = open.iter().rposition(|name| name == phase_name) {
                open.remove(at);
                if open.is_empty() {
                    self.send(Event::Finish);
                }
            }
        });
    }
}

/// Asking whether there is a GPU is noted as a fault where there is none.
fn is_telling(fault: &str) -> bool {
    !fault.contains("cudaError")
}

fn build(graph: &Path, options: &EngineOptions, sender: Sender<Event>) -> Result<Built> {
    let faults = Faults::of_all();
    let words = |error: &trtx::Error| faults.words(error, is_telling);
    let failed = |error: trtx::Error| Error::internal(words(&error));
    let name = graph.to_str().ok_or_else(|| Error::invalid("the file's name is not UTF-8"))?;
    let logger = logger()?;
    let mut builder = Builder::new(logger).map_err(failed)?;
    let network = builder.create_network(0).map_err(failed)?;
    let mut parser = OnnxParser::new(network, logger).map_err(failed)?;
    parser
        .parse_from_file(name, 0)
        .map_err(|error| Error::bad_model(format!("TensorRT: {}", words(&error))))?;

    let mut config = builder.create_config().map_err(failed)?;
    config.clear_flag(BuilderFlag::kTF32);
    flavour::target(&mut config, &options.compute_capabilities)?;
    for ranges in &options.profiles {
        let mut profile = builder.creata_optimization_profile().map_err(failed)?;
        for range in ranges {
            set_range(&mut profile, range)?;
        }
        config
            .add_optimization_profile(&mut profile)
            .map_err(|error| Error::invalid(format!("a profile: {}", words(&error))))?;
    }
    let monitor = Box::new(Monitor { sender, open: Mutex::default() });
    config.set_progress_monitor(monitor).map_err(failed)?;

    let network = parser.network_mut();
    let inputs: Vec<Tensor<'_>> = network.inputs().collect();
    let outputs: Vec<Tensor<'_>> = network.outputs().collect();
    let ports = |tensors: Vec<Tensor<'_>>, network: &NetworkDefinition<'_>| {
        tensors.iter().map(|tensor| port(tensor, network)).collect::<Result<Vec<_>>>()
    };
    let (inputs, outputs) = (ports(inputs, network)?, ports(outputs, network)?);
    let engine = builder
        .build_serialized_network(network, &mut config)
        .map_err(|error| Error::unsupported(format!("TensorRT: {}", words(&error))))?;
    Ok(Built { bytes: engine.to_vec(), inputs, outputs })
}

fn set_range(profile: &mut OptimizationProfile<'_>, range: &Range) -> Result<()> {
    let Range { input, least, best, most } = range;
    for (shape, which) in [
        (least, OptProfileSelector::kMIN),
        (best, OptProfileSelector::kOPT),
        (most, OptProfileSelector::kMAX),
    ] {
        let shape: Vec<i64> = shape.iter().map(|&length| length as i64).collect();
        let shape = Dims64::from_slice(&shape);
        profile.set_dimensions(input, which, &shape).map_err(|_| {
            Error::invalid(format!("{input}: no shapes: {least:?}, {best:?}, {most:?}"))
        })?;
    }
    Ok(())
}

fn port(tensor: &Tensor<'_>, network: &NetworkDefinition<'_>) -> Result<Port> {
    let failed = |error: trtx::Error| Error::internal(error.to_string());
    let name = tensor.name(network).map_err(failed)?;
    let element_type = PortType::of(tensor.data_type(network), &name)?;
    let shape = tensor.dimensions(network).map_err(failed)?;
    let shape = shape.into_iter().map(|length| usize::try_from(length).ok()).collect();
    Ok(Port { name, element_type, shape })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read() {
        let names: Vec<String> = COMPUTE_CAPABILITIES.iter().map(ToString::to_string).collect();
        let all: Vec<ComputeCapability> = names.iter().map(|name| name.parse().unwrap()).collect();
        assert_eq!(all, COMPUTE_CAPABILITIES);
        assert!(all.is_sorted());
        let without_bfloat16: Vec<_> = all.iter().filter(|one| !one.has_bfloat16()).collect();
        assert_eq!(without_bfloat16, [&"7.5".parse().unwrap()]);
        for text in ["5.0", "86", "8.60", ""] {
            let error = text.parse::<ComputeCapability>().unwrap_err();
            assert_eq!(error, format!("engines are built for {}", names.join(", ")));
        }
    }

    #[test]
    fn nested_phases_are_one_bar() {
        let (sender, events) = channel();
        let monitor = Monitor { sender, open: Mutex::default() };
        monitor.phase_start("outer", None, 2);
        monitor.phase_start("inner", Some("outer"), 5);
        assert!(monitor.step_complete("inner", 1).is_continue());
        monitor.phase_finish("inner");
        assert!(monitor.step_complete("outer", 1).is_continue());
        monitor.phase_finish("outer");
        drop(monitor);
        let seen: Vec<String> = events
            .iter()
            .map(|event| match event {
                Event::Start(what, steps) => format!("{what} {steps}"),
                Event::Step => "step".to_owned(),
                Event::Finish => "finish".to_owned(),
            })
            .collect();
        assert_eq!(seen, ["outer 2", "step", "finish"]);
    }

    #[test]
    fn a_missing_gpu_is_no_fault() {
        assert!(!is_telling("cudaError 35") && is_telling("refused"));
    }
}
