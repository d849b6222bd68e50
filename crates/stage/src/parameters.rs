//! What the owner of a repository may set in config.pbtxt's `parameters`.

use std::path::PathBuf;

use imprompt_engine::Instructions;
use imprompt_error::{Error, Result};

use crate::{GpuEngine, Placement};

/// Settings of a stage. Every key of config.pbtxt's `parameters` is a field's
/// name; unknown keys are refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    /// Threads of one engine session, and of its passes over label tables; 0: one a core.
    pub threads: usize,
    /// The instructions with which imprompt's own kernels compute what they can; `None` leaves all
    /// to the engine.
    pub kernels: Option<Instructions>,
    /// Whether a repository's screen is used, where it has one and the processor multiplies bytes fast.
    pub screen: bool,
    /// The ONNX Runtime library to open; none: looked for in the usual places.
    pub onnxruntime: Option<PathBuf>,
    /// Where instances compute that are opened in this process. No key of config.pbtxt: Triton says
    /// it of each instance, by `instance_group`.
    pub placement: Placement,
    /// Whether a GPU records the steps of a decoder and is then given each as a whole.
    pub cuda_graphs: bool,
    /// What runs the graphs of instances on a GPU.
    pub gpu_engine: GpuEngine,
    /// The folder of TensorRT's libraries; none: looked for.
    pub tensorrt: Option<PathBuf>,
    /// Folders that are looked into before those: of a model that brings its libraries. No key of
    /// config.pbtxt: the stage's own folder, and the one it is in.
    pub library_folders: Vec<PathBuf>,
    /// Most bytes of one encoded picture.
    pub max_image_bytes: usize,
    /// Most pixels on a picture's side.
    pub max_image_side: u32,
    /// Most pixels of a picture, width times height.
    pub max_image_pixels: u64,
    /// Most labels of one request.
    pub max_labels: usize,
    /// Most bytes of one text: a label, a template, a caption, a prompt.
    pub max_text_bytes: usize,
    /// Most label embeddings kept for requests to come.
    pub label_cache_size: usize,
    /// Positions of a caption's prompt and new tokens together that memory is kept for.
    pub max_caption_positions: usize,
    /// Most captions that wait for a slot of the KV cache, besides as many as there are slots.
    pub max_waiting_captions: usize,
    /// Milliseconds after which a request is given up between two steps; 0: never.
    pub deadline_ms: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            threads: 0,
            kernels: Some(Instructions::default()),
            screen: true,
            onnxruntime: None,
            placement: Placement::Cpu,
            cuda_graphs: true,
            gpu_engine: GpuEngine::Auto,
            tensorrt: None,
            library_folders: Vec::new(),
            max_image_bytes: 20 << 20,
            max_image_side: 16_384,
            max_image_pixels: 64_000_000,
            max_labels: 1_000,
            max_text_bytes: 4_096,
            label_cache_size: 65_536,
            max_caption_positions: 512,
            max_waiting_captions: 64,
            deadline_ms: 0,
        }
    }
}

impl Parameters {
    /// The keys that [`Self::set`] knows.
    pub const KEYS: [&'static str; 16] = [
        "threads",
        "kernels",
        "screen",
        "onnxruntime",
        "cuda_graphs",
        "gpu_engine",
        "tensorrt",
        "max_image_bytes",
        "max_image_side",
        "max_image_pixels",
        "max_labels",
        "max_text_bytes",
        "label_cache_size",
        "max_caption_positions",
        "max_waiting_captions",
        "deadline_ms",
    ];

    /// Sets one parameter from its text in config.pbtxt.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "threads" => self.threads = number(key, value, 0, 1_024)?,
            "kernels" => self.kernels = instructions(value)?,
            "screen" => self.screen = number(key, value, 0, 1)? == 1,
            "onnxruntime" => self.onnxruntime = Some(PathBuf::from(value)),
            "cuda_graphs" => self.cuda_graphs = number(key, value, 0, 1)? == 1,
            "gpu_engine" => self.gpu_engine = GpuEngine::from_name(value)?,
            "tensorrt" => self.tensorrt = Some(PathBuf::from(value)),
            "max_image_bytes" => self.max_image_bytes = number(key, value, 1, 1 << 30)?,
            "max_image_side" => self.max_image_side = number(key, value, 1, 65_535)?,
            "max_image_pixels" => self.max_image_pixels = number(key, value, 1, 1 << 30)?,
            "max_labels" => self.max_labels = number(key, value, 1, 1_000_000)?,
            "max_text_bytes" => self.max_text_bytes = number(key, value, 1, 1 << 20)?,
            "label_cache_size" => self.label_cache_size = number(key, value, 0, 10_000_000)?,
            "max_caption_positions" => {
                self.max_caption_positions = number(key, value, 2, 65_536)?;
            }
            "max_waiting_captions" => self.max_waiting_captions = number(key, value, 0, 4_096)?,
            "deadline_ms" => self.deadline_ms = number(key, value, 0, 86_400_000)?,
            _ => {
                return Err(Error::bad_model(format!(
                    "config.pbtxt: unknown parameter `{key}`; the parameters are {}",
                    Self::KEYS.join(", ")
                )));
            }
        }
        Ok(())
    }
}

fn instructions(value: &str) -> Result<Option<Instructions>> {
    match value.trim() {
        "0" => Ok(None),
        "1" => Ok(Some(Instructions::default())),
        "avx512" => Ok(Some(Instructions::Avx512)),
        _ => Err(Error::bad_model(
            "config.pbtxt: parameter `kernels`: not one of 0 (none), 1 (the fastest here), avx512",
        )),
    }
}

fn number<T>(key: &str, value: &str, least: T, most: T) -> Result<T>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    value.trim().parse().ok().filter(|number| (&least..=&most).contains(&number)).ok_or_else(|| {
        Error::bad_model(format!(
            "config.pbtxt: parameter `{key}`: not a whole number from {least} to {most}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_documented() {
        let page = include_str!("../../../docs/backend.md");
        for key in Parameters::KEYS {
            assert!(page.contains(&format!("| `{key}` |")), "docs/backend.md lacks `{key}`");
        }
    }

    #[test]
    fn every_key_is_settable_and_others_are_refused() {
        let mut parameters = Parameters::default();
        for key in Parameters::KEYS {
            let value = match key {
                "kernels" | "screen" | "cuda_graphs" => "0",
                "gpu_engine" => "cuda",
                _ => "7",
            };
            parameters.set(key, value).unwrap();
        }
        assert_eq!((parameters.threads, parameters.max_image_pixels), (7, 7));
        assert!(parameters.kernels.is_none() && !parameters.screen && !parameters.cuda_graphs);
        assert_eq!(parameters.gpu_engine, GpuEngine::Cuda);
        assert!(parameters.set("gpu_engine", "7").is_err());
        assert!(parameters.set("thread", "1").is_err());
        assert!(parameters.set("threads", "-1").is_err());
        assert!(parameters.set("max_image_side", "70000").is_err());
    }
}
