//! On what models run.

use clap::ValueEnum;
use imprompt_stage::Placement;

/// Where models run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The processor, through ONNX Runtime.
    Cpu,
    /// NVIDIA GPUs, and the processor where there is none: what they need lies beside the processor's graphs. No GPU is needed to build it.
    Gpu,
}

/// What a repository for GPUs is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BuildEngine {
    /// TensorRT's engines, and the graphs of ONNX Runtime's CUDA provider for cards that they are not for (V100, H100, B200).
    Tensorrt,
    /// The graphs of ONNX Runtime's CUDA provider alone: TensorRT is not needed.
    Cuda,
}

/// The form of the graphs for ONNX Runtime's CUDA provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BuildForm {
    /// Attention in single products, activations in float32: what TensorRT's engines are built from, too.
    Parts,
    /// Attention and activations as one operator each, in the type that matrices are multiplied in: fewer kernels. Needs --gpu-engine cuda; has not run on a GPU yet.
    Fused,
}

/// What runs the graphs on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RunEngine {
    /// TensorRT where the repository has engines for the card and the library is there, else ONNX Runtime's CUDA provider.
    #[default]
    Auto,
    /// TensorRT, or nothing.
    Tensorrt,
    /// ONNX Runtime's CUDA provider.
    Cuda,
}

/// A device by its name: `cpu`, `gpu`, or `gpu:N` where there are several.
pub fn placement(text: &str) -> Result<Placement, String> {
    let number = |text: &str| text.parse().ok().map(Placement::Gpu);
    match text.split_once(':') {
        None if text == "cpu" => Some(Placement::Cpu),
        None if text == "gpu" => Some(Placement::Gpu(0)),
        Some(("gpu", ordinal)) => number(ordinal),
        _ => None,
    }
    .ok_or_else(|| "cpu, gpu, or gpu:N".to_owned())
}
