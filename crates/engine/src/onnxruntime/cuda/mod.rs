//! ONNX Runtime's CUDA provider: the same sessions on a GPU.
//!
//! All engines of a [`CudaRuntime`] give their work to one stream, so what one leaves on the device
//! the next one reads there, in order and without waiting. Nothing is waited for but what the host
//! reads.

mod engine;
mod held;
mod recorded;

use std::ffi::CString;
use std::path::{Path, PathBuf};

use imprompt_cuda::{Device, Ranking, Stream};
use imprompt_error::{Error, Result};
use ort::AsPointer;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::SessionBuilder;
use ort::sys::OrtCUDAProviderOptionsV2;

use super::held::check;
use super::{OnnxRuntime, status};
use crate::{Engine, EngineOptions, Runtime, gpu_form};

/// The file beside ONNX Runtime's library that has the provider.
const PROVIDER: &str = "libonnxruntime_providers_cuda.so";

/// ONNX Runtime on a GPU: one stream of work.
#[derive(Debug)]
pub struct CudaRuntime {
    runtime: &'static OnnxRuntime,
    stream: Stream,
}

impl OnnxRuntime {
    /// The same library with its CUDA provider on GPU `ordinal`, with a stream of its own.
    ///
    /// # Errors
    /// `NotFound` where there is no such GPU or no driver, and, naming the provider's file, where the
    /// library was built without; what the driver says. Whether the provider finds CUDA's own libraries is known when a graph is opened.
    pub fn on_cuda(&'static self, ordinal: usize) -> Result<CudaRuntime> {
        let device = Device::open(ordinal)?;
        let provider = PathBuf::from(self.file()).with_file_name(PROVIDER);
        if !provider.is_file() {
            return Err(Error::not_found(format!(
                "{} has no CUDA provider beside it ({PROVIDER}); the package onnxruntime-gpu has",
                self.file()
            )));
        }
        Ok(CudaRuntime { runtime: self, stream: device.stream()? })
    }
}

impl Runtime for CudaRuntime {
    fn description(&self) -> String {
        let device = self.stream.device();
        format!(
            "{}, CUDA provider on GPU {}, {} (compute capability {})",
            self.runtime.description(),
            device.ordinal(),
            device.name(),
            device.compute_capability()
        )
    }

    /// Opens the form of `graph` that was made for a GPU where it is beside it, else `graph` itself.
    fn open(&self, graph: &Path, options: &EngineOptions) -> Result<Box<dyn Engine>> {
        let form = gpu_form(graph);
        let graph = if form.is_file() { &form } else { graph };
        let environment = &self.runtime.environment;
        Ok(Box::new(engine::CudaEngine::open(environment, &self.stream, graph, options)?))
    }

    fn ranking(&self) -> Result<Option<Ranking>> {
        Ranking::new(&self.stream).map(Some)
    }
}

/// Memory of the stream's device, as ONNX Runtime calls it.
fn device_memory(stream: &Stream) -> Result<MemoryInfo<'static>> {
    let ordinal = i32::try_from(stream.device().ordinal())
        .map_err(|_| Error::internal("a GPU's number that is too large"))?;
    MemoryInfo::new(AllocationDevice::CUDA, ordinal, AllocatorType::Device, MemoryType::Default)
        .map_err(|error| status::error(&error, "the GPU's memory"))
}

/// The provider's settings, released when dropped.
struct ProviderOptions(*mut OrtCUDAProviderOptionsV2);

impl ProviderOptions {
    fn new(stream: &Stream) -> Result<Self> {
        let api = ort::api();
        let mut options = std::ptr::null_mut();
        // SAFETY: the out-pointer is live; what comes back is owned and released by `Drop`.
        check(unsafe { (api.CreateCUDAProviderOptions)(&mut options) }, "the CUDA provider")?;
        let options = ProviderOptions(options);
        let ordinal = CString::new(stream.device().ordinal().to_string())
            .map_err(|_| Error::internal("a number with a null byte"))?;
        let settings = [
            (c"device_id", ordinal.as_c_str()),
            // Float32 is float32: what reduced precision does is said by the graph alone.
            (c"use_tf32", c"0"),
            // Sums of norms in float32, whatever goes in.
            (c"enable_skip_layer_norm_strict_mode", c"1"),
            // The one convolution of an image tower is found by rule: trying all takes seconds.
            (c"cudnn_conv_algo_search", c"HEURISTIC"),
            (c"arena_extend_strategy", c"kSameAsRequested"),
        ];
        let keys = settings.map(|(key, _)| key.as_ptr());
        let values = settings.map(|(_, value)| value.as_ptr());
        // SAFETY: as many live C strings as the call is told; the options are live.
        let status = unsafe {
            (api.UpdateCUDAProviderOptions)(options.0, keys.as_ptr(), values.as_ptr(), keys.len())
        };
        check(status, "the CUDA provider's settings")?;
        let (key, handle) = (c"user_compute_stream", stream.handle());
        // SAFETY: the options are live; the stream is kept by every engine that is opened with them.
        let status =
            unsafe { (api.UpdateCUDAProviderOptionsWithValue)(options.0, key.as_ptr(), handle) };
        check(status, "the CUDA provider's stream")?;
        Ok(options)
    }

    /// Has `builder`'s session put what it can on the GPU.
    fn add_to(&self, builder: &mut SessionBuilder) -> Result<()> {
        // SAFETY: both are live; the session options copy the settings.
        let status = unsafe {
            (ort::api().SessionOptionsAppendExecutionProvider_CUDA_V2)(builder.ptr_mut(), self.0)
        };
        check(status, "ONNX Runtime's CUDA provider")
    }
}

impl Drop for ProviderOptions {
    fn drop(&mut self) {
        // SAFETY: owned, and not used after this.
        unsafe { (ort::api().ReleaseCUDAProviderOptions)(self.0) }
    }
}
