//! On what an instance of a stage computes.

use std::sync::{Mutex, PoisonError};

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

/// What the instances of a stage share, by where they run: opened by the first that needs it.
pub(crate) struct Shared<T>(Mutex<Vec<(Placement, T)>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Shared(Mutex::default())
    }
}

impl<T: Clone> Shared<T> {
    /// That of `placement`, by `open` where nobody has asked yet. Others wait while it is opened; nothing is half
    /// done where that fails.
    ///
    /// # Errors
    /// Those of `open`.
    pub(crate) fn get(&self, placement: Placement, open: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, shared)) = all.iter().find(|(placed, _)| *placed == placement) {
            return Ok(shared.clone());
        }
        let opened = open()?;
        all.push((placement, opened.clone()));
        Ok(opened)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_is_opened_once_a_placement() {
        let shared = Shared::default();
        let never = || panic!("opened again");
        assert!(shared.get(Placement::Cpu, || Err(Error::internal("no"))).is_err());
        assert_eq!(shared.get(Placement::Cpu, || Ok(1)).unwrap(), 1);
        assert_eq!(shared.get(Placement::Gpu(0), || Ok(2)).unwrap(), 2);
        assert_eq!(shared.get(Placement::Cpu, never).unwrap(), 1);
        assert_eq!(shared.get(Placement::Gpu(0), never).unwrap(), 2);
    }
}
