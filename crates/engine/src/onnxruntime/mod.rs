//! ONNX Runtime, opened at run time: nothing of it is linked, so the same
//! binary loads where it is missing, and says so.

mod cuda;
mod held;
mod kernels;
mod library;
mod ports;
mod session;
mod slab;
mod status;

use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use imprompt_error::{Error, Result};
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::logging::LogLevel;

use crate::{Engine, EngineOptions, Runtime};

pub use cuda::CudaRuntime;
pub use library::{LIBRARY_VARIABLES, LibrarySearch, MINIMUM_MINOR_VERSION};

/// ONNX Runtime in this process. There is one: the library has process-wide
/// state (its environment), so whoever opens it first decides which file it is.
#[derive(Debug)]
pub struct OnnxRuntime {
    environment: Environment,
    library: library::Opened,
}

static RUNTIME: OnceLock<OnnxRuntime> = OnceLock::new();
static OPENING: Mutex<()> = Mutex::new(());

/// How the library shall be opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnnxRuntimeOptions {
    /// Where to look for it.
    pub search: LibrarySearch,
    /// One pool of this many threads for all engines of the process that do not
    /// ask for their own, instead of one pool for each engine.
    pub shared_threads: Option<usize>,
}

impl OnnxRuntime {
    /// Opens the library, or gives the one that is open already (the options
    /// are not looked at again).
    ///
    /// # Errors
    /// `NotFound` naming every place that was tried when no library opens;
    /// `Unsupported` naming file and version when it is too old.
    pub fn open(options: &OnnxRuntimeOptions) -> Result<&'static OnnxRuntime> {
        let _one_at_a_time = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = RUNTIME.get() {
            return Ok(runtime);
        }
        let library = library::open(&options.search)?;
        let mut builder = ort::init_from(&library.name).map_err(|error| {
            Error::unsupported(format!("{} cannot be used: {error}", library.name.display()))
        })?;
        if let Some(threads) = options.shared_threads {
            builder = builder.with_global_thread_pool(shared_pool(threads)?);
        }
        let environment = builder
            .with_name("imprompt")
            .with_telemetry(false)
            .with_logger(std::sync::Arc::new(log))
            .build()
            .map_err(|error| status::error(&error, "the environment"))?;
        environment.set_log_level(lowest_level());
        tracing::info!(file = %library.file, version = %library.version, "opened ONNX Runtime");
        Ok(RUNTIME.get_or_init(|| OnnxRuntime { environment, library }))
    }

    /// The file that was opened.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.library.file
    }

    /// The library's version.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.library.version
    }
}

/// Whether an engine of these options computes linear layers in 8 bits in less time than in float32.
#[must_use]
pub fn multiplies_bytes(options: &EngineOptions) -> bool {
    options.kernels.is_some() && imprompt_kernel::multiplies_bytes()
}

impl Runtime for OnnxRuntime {
    fn description(&self) -> String {
        format!("ONNX Runtime {} ({})", self.version(), self.file())
    }

    fn open(&self, graph: &Path, options: &EngineOptions) -> Result<Box<dyn Engine>> {
        Ok(Box::new(session::OnnxEngine::open(&self.environment, graph, options)?))
    }
}

fn shared_pool(threads: usize) -> Result<GlobalThreadPoolOptions> {
    let wrong = |error: ort::Error| status::error(&error, "the shared threads");
    GlobalThreadPoolOptions::default()
        .with_intra_threads(threads)
        .map_err(wrong)?
        .with_inter_threads(1)
        .map_err(wrong)?
        .with_spin_control(false)
        .map_err(wrong)
}

/// The library formats every message it is asked for, so it is asked only for
/// what someone listens to.
fn lowest_level() -> LogLevel {
    if tracing::enabled!(target: "onnxruntime", tracing::Level::TRACE) {
        LogLevel::Verbose
    } else if tracing::enabled!(target: "onnxruntime", tracing::Level::DEBUG) {
        LogLevel::Info
    } else {
        LogLevel::Warning
    }
}

fn log(level: LogLevel, _category: &str, _id: &str, location: &str, message: &str) {
    // The library calls this from C: a subscriber that panics must not unwind
    // into it.
    let _ = std::panic::catch_unwind(|| match level {
        LogLevel::Verbose => tracing::trace!(target: "onnxruntime", location, "{message}"),
        LogLevel::Info => tracing::debug!(target: "onnxruntime", location, "{message}"),
        LogLevel::Warning => tracing::warn!(target: "onnxruntime", location, "{message}"),
        LogLevel::Error | LogLevel::Fatal => {
            tracing::error!(target: "onnxruntime", location, "{message}");
        }
    });
}
