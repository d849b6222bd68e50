//! On what an instance of a stage computes.

use imprompt_error::{Error, Result};

/// Where the engines of an instance run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// On the processor.
    #[default]
    Cpu,
    /// On the GPU of this number, in the driver's order.
    Gpu(usize),
}

/// What runs the graphs on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GpuEngine {
    /// TensorRT where the stage has engines for the card and the library is there, else ONNX
    /// Runtime's CUDA provider.
    #[default]
    Auto,
    /// TensorRT, or the load fails.
    TensorRt,
    /// ONNX Runtime's CUDA provider.
    Cuda,
}

impl GpuEngine {
    /// The engine called `name` in config.pbtxt.
    ///
    /// # Errors
    /// `BadModel` naming the ones there are.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(GpuEngine::Auto),
            "tensorrt" => Ok(GpuEngine::TensorRt),
            "cuda" => Ok(GpuEngine::Cuda),
            _ => Err(Error::bad_model(
                "config.pbtxt: parameter `gpu_engine`: auto, tensorrt or cuda",
            )),
        }
    }
}
