//! `--device gpu`: beside every graph its form for a GPU, `NAME.gpu.onnx`, which ONNX Runtime's CUDA
//! provider runs, and an engine of TensorRT that was built from it, `NAME.engine`, with its
//! manifest `NAME.engine.json`. Building needs TensorRT's library; TensorRT-RTX needs no GPU for it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use imprompt_caption::memory_length;
use imprompt_engine::gpu_form;
use imprompt_engine::manifest::{
    self, EngineManifest, EnginePort, FileDigest, FileSize, InputRange,
};
use imprompt_error::{Error, Result};
use imprompt_graph::builder::Graph;
use imprompt_graph::captioner::{DECODER_GRAPH, MEMORY_GRAPH, QFORMER_GRAPH, VISION_GRAPH};
use imprompt_graph::clip::TEXT_GRAPH;
pub use imprompt_graph::gpu::Form as GpuForm;
use imprompt_graph::gpu::{Compute, Length, Target, for_gpu, ports};
use imprompt_graph::{CaptionGraphs, ClipFacts};
use imprompt_stage::Parameters;
use imprompt_stage::signature::MAX_BATCH_SIZE;
use imprompt_tensorrt::{EngineOptions, LibrarySearch, Port, PortType, Range, TensorRt, Watch};
use sha2::{Digest as _, Sha256};

use imprompt_tensorrt::FLAVOUR;
pub use imprompt_tensorrt::{
    COMPUTE_CAPABILITIES, ComputeCapability, NAME as TENSORRT, SETUP_FOLDER as TENSORRT_FOLDER,
};

use crate::files;
use crate::progress::{Progress, Unit};

/// Most rows of one run of CLIP's text tower.
const TEXT_ROWS: usize = 256;

/// What runs the graphs on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GpuEngine {
    /// TensorRT's engines, and ONNX Runtime's CUDA provider where they do not run.
    #[default]
    TensorRt,
    /// ONNX Runtime's CUDA provider alone: nothing is built, and TensorRT is not needed.
    Cuda,
}

/// For which GPUs engines are built, and with what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuRequest {
    /// What shall run there.
    pub engine: GpuEngine,
    /// The form of the graphs; [`GpuForm::Fused`] is for [`GpuEngine::Cuda`] alone.
    pub form: GpuForm,
    /// The cards they shall run on; none: all that engines are built for here.
    pub compute_capabilities: Vec<ComputeCapability>,
    /// The folder of TensorRT's library; `None`: looked for.
    pub tensorrt: Option<PathBuf>,
}

impl GpuRequest {
    /// The cards, each once, in order. Where none is named, all that multiply in `computes`.
    fn capabilities(&self, computes: &[Compute]) -> Result<Vec<ComputeCapability>> {
        let is_bf16 = computes.contains(&Compute::Bf16);
        let mut all = self.compute_capabilities.clone();
        if all.is_empty() {
            all = imprompt_tensorrt::usual_capabilities()?;
            all.retain(|capability| !is_bf16 || capability.has_bfloat16());
        }
        all.sort_unstable();
        all.dedup();
        match all.iter().find(|capability| is_bf16 && !capability.has_bfloat16()) {
            Some(capability) => Err(Error::invalid(format!(
                "compute capability {capability} has no bfloat16; choose f16, or capabilities from \
                 8.0 on"
            ))),
            None => Ok(all),
        }
    }
}

/// The lengths that a model's inputs have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lengths {
    /// Tokens that CLIP's text tower has positions for.
    context: usize,
    /// Embeddings that a captioner's image encoder makes.
    patches: usize,
    /// Most tokens that a Q-Former reads.
    qformer_tokens: usize,
    /// Positions of a picture in front of the decoder's tokens.
    prefix: usize,
    /// Positions of the decoder's cache, and of its memory.
    positions: usize,
    memory: usize,
    /// Most tokens of a prompt in the decoder, and in the memory.
    tokens: usize,
    memory_tokens: usize,
}

impl Lengths {
    /// Those of a CLIP.
    pub(crate) fn of_clip(facts: &ClipFacts) -> Self {
        Lengths { context: facts.context_length, ..Lengths::default() }
    }

    /// Those of a captioner, with the memory that a stage keeps by default.
    ///
    /// # Errors
    /// `Internal` when its image encoder's graph is none.
    pub(crate) fn of_captioner(graphs: &CaptionGraphs) -> Result<Self> {
        let facts = &graphs.facts;
        let vision = graphs.files.iter().find(|(name, _)| *name == VISION_GRAPH);
        let outputs = vision.map(|(_, graph)| ports(graph)).transpose()?;
        let embeds = outputs.and_then(|[_, outputs]| outputs.into_iter().next());
        let patches = match embeds.as_ref().map(|(_, lengths)| lengths.as_slice()) {
            Some([_, Length::Fixed(patches), ..]) => *patches,
            _ => 0,
        };
        let text = Parameters::default().max_caption_positions;
        let prefix = facts.prefix_positions();
        let positions = (prefix + text).min(facts.max_positions.unwrap_or(usize::MAX));
        let memory = memory_length(facts, text);
        let picture = facts.memory.as_ref().map_or(0, |memory| memory.picture_positions);
        Ok(Lengths {
            context: 0,
            patches,
            qformer_tokens: facts.qformer_text.map_or(0, |text| text.max_tokens),
            prefix,
            positions,
            memory,
            tokens: positions - prefix,
            memory_tokens: memory - picture,
        })
    }

    /// The least, the usual and the largest length `name` of the graph `graph`, profile by profile.
    fn spans(&self, graph: &str, name: &str) -> Result<Vec<[usize; 3]>> {
        let is_decoder = graph == DECODER_GRAPH;
        let batch = match graph {
            TEXT_GRAPH => TEXT_ROWS,
            _ => MAX_BATCH_SIZE,
        };
        Ok(match (graph, name) {
            (TEXT_GRAPH, "batch") => vec![[1, TEXT_ROWS / 4, TEXT_ROWS]],
            // Pictures come as batches and alone, captions step by step, mostly together.
            (_, "batch") => vec![[1, batch, batch]; 1 + usize::from(is_decoder)],
            // The usual lengths fit together, which TensorRT checks.
            (TEXT_GRAPH, "length") => vec![span(1, 16.min(self.context / 2), self.context)],
            (TEXT_GRAPH, "prefix_length") => {
                vec![span(0, 8.min(self.context / 2), self.context - 1)]
            }
            (TEXT_GRAPH, "kept") => vec![span(0, 0, self.context)],
            (QFORMER_GRAPH, "patches") => vec![[self.patches; 3]],
            (QFORMER_GRAPH, "tokens") => vec![span(1, 16, self.qformer_tokens)],
            (MEMORY_GRAPH, "tokens") => vec![span(1, 16, self.memory_tokens)],
            // A step of one token, and the prefill.
            (DECODER_GRAPH, "prefix") => vec![[0; 3], span(0, self.prefix, self.prefix)],
            (DECODER_GRAPH, "tokens") => vec![[1; 3], span(1, 8, self.tokens)],
            (DECODER_GRAPH, "keys") => vec![span(1, self.prefix + 16, self.positions); 2],
            (DECODER_GRAPH, "memory_keys") => vec![span(1, 64, self.memory); 2],
            _ => return Err(Error::internal(format!("{graph}: unknown length {name}"))),
        })
    }

    /// The optimization profiles of `graph`, called `name`.
    fn profiles(&self, name: &str, graph: &Graph) -> Result<Vec<Vec<Range>>> {
        let mut profiles: Vec<Vec<Range>> = Vec::new();
        let [inputs, _] = ports(graph)?;
        let is_free = |one: &Length| matches!(one, Length::Free(_));
        for (input, lengths) in inputs.into_iter().filter(|(_, all)| all.iter().any(is_free)) {
            let count = 1 + usize::from(name == DECODER_GRAPH);
            let mut shapes: Vec<[Vec<usize>; 3]> = vec![Default::default(); count];
            for length in &lengths {
                let spans = match length {
                    Length::Fixed(length) => vec![[*length; 3]; count],
                    Length::Free(free) => self.spans(name, free)?,
                };
                for (shape, span) in shapes.iter_mut().zip(spans) {
                    shape.iter_mut().zip(span).for_each(|(shape, length)| shape.push(length));
                }
            }
            profiles.resize_with(shapes.len(), Vec::new);
            for (profile, [least, best, most]) in profiles.iter_mut().zip(shapes) {
                profile.push(Range { input: input.clone(), least, best, most });
            }
        }
        Ok(profiles)
    }
}

fn span(least: usize, best: usize, most: usize) -> [usize; 3] {
    [least.min(most), best.min(most), most]
}

/// Builds engines, each once however many stages have it.
pub(crate) struct EngineBuilder<'a> {
    /// None where no engines are built.
    library: Option<&'static TensorRt>,
    capabilities: Vec<ComputeCapability>,
    /// The repository that is replaced: what is still right there is taken over.
    before: &'a Path,
    progress: &'a dyn Progress,
    done: HashMap<String, PathBuf>,
    form: GpuForm,
}

impl<'a> EngineBuilder<'a> {
    /// Opens TensorRT's library, where it is asked for.
    ///
    /// # Errors
    /// `InvalidInput` where TensorRT is asked for and a form that it does not build; what opening its library fails with.
    pub(crate) fn open(
        request: &GpuRequest,
        computes: &[Compute],
        before: &'a Path,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let form = request.form;
        if request.engine == GpuEngine::TensorRt && form == GpuForm::Fused {
            return Err(Error::invalid(
                "graphs in the form `fused` have operators that TensorRT refuses; they are for \
                 ONNX Runtime's CUDA provider alone",
            ));
        }
        let own = std::env::current_exe().and_then(|path| path.canonicalize()).unwrap_or_default();
        let folders = own.ancestors().skip(1).take(2).map(Path::to_owned).collect();
        let search = LibrarySearch { folder: request.tensorrt.clone(), folders };
        if request.engine == GpuEngine::Cuda {
            // Nothing is built for cards; what is named of them must still fit together.
            if !request.compute_capabilities.is_empty() {
                request.capabilities(computes)?;
            }
            let (library, capabilities, done) = (None, Vec::new(), HashMap::new());
            return Ok(EngineBuilder { library, capabilities, before, progress, done, form });
        }
        let capabilities = request.capabilities(computes)?;
        let library = TensorRt::open(&search)?;
        let shown: Vec<String> = capabilities.iter().map(ToString::to_string).collect();
        progress.say(&format!(
            "building engines with {TENSORRT} {} ({}) for compute capability {}",
            library.version(),
            library.place(),
            shown.join(", ")
        ));
        let done = HashMap::new();
        Ok(EngineBuilder { library: Some(library), capabilities, before, progress, done, form })
    }

    /// Puts the form for a GPU of the graph `name`, which lies in `folder` (`STAGE/1` of the repository)
    /// with its weights, beside it, and its engine.
    pub(crate) fn add(
        &mut self,
        folder: &Path,
        (name, graph): (&str, &Graph),
        compute: Compute,
        lengths: &Lengths,
    ) -> Result<()> {
        let path = folder.join(name);
        let (engine, own) = (manifest::engine_file(&path), manifest::manifest_file(&path));
        if let Some(first) = self.done.get(name) {
            place(&gpu_form(first), &gpu_form(&path))?;
            if self.library.is_none() {
                return Ok(());
            }
            place(&manifest::engine_file(first), &engine)?;
            return place(&manifest::manifest_file(first), &own);
        }
        let (positions, memory) = (lengths.positions, lengths.memory);
        let target = Target { compute, form: self.form, positions, memory };
        let form = for_gpu(graph, &target).map_err(|error| error.context(name))?;
        files::write(&gpu_form(&path), &form.bytes)?;
        self.done.insert(name.to_owned(), path.clone());
        let Some(library) = self.library else { return Ok(()) };
        let profiles = lengths.profiles(name, &form)?;
        let mut manifest = self.manifest(library, &path, graph, (compute, &profiles))?;
        if !self.take_over(&path, &mut manifest)? {
            let built = self.build(library, &path, profiles)?;
            manifest.inputs = built.inputs.iter().map(port).collect();
            manifest.outputs = built.outputs.iter().map(port).collect();
            files::write(&engine, &built.bytes)?;
            manifest.engine = FileDigest::of(&engine)?;
        }
        files::write(&own, manifest.to_text()?.as_bytes())
    }

    fn build(
        &self,
        library: &'static TensorRt,
        path: &Path,
        profiles: Vec<Vec<Range>>,
    ) -> Result<imprompt_tensorrt::Built> {
        let name = manifest::engine_file(path);
        let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let watch = Steps { progress: self.progress, name };
        let options = EngineOptions { compute_capabilities: self.capabilities.clone(), profiles };
        library.build(&gpu_form(path), &options, &watch).map_err(|error| error.context(&watch.name))
    }

    /// The manifest of an engine that is not built yet.
    fn manifest(
        &self,
        library: &TensorRt,
        path: &Path,
        graph: &Graph,
        (compute, profiles): (Compute, &[Vec<Range>]),
    ) -> Result<EngineManifest> {
        let range = |range: &Range| InputRange {
            input: range.input.clone(),
            least: range.least.clone(),
            best: range.best.clone(),
            most: range.most.clone(),
        };
        let weights = graph.weight_files.iter().map(|file| {
            let path = path.with_file_name(file);
            let mut hasher = Sha256::new();
            files::sample(&path, &mut hasher)?;
            let metadata =
                std::fs::metadata(&path).map_err(|error| files::io("open", &path, &error))?;
            let sample = files::hex(&hasher.finalize());
            Ok(FileSize { file: file.clone(), bytes: metadata.len(), sample })
        });
        Ok(EngineManifest {
            layout: manifest::LAYOUT,
            flavour: FLAVOUR.to_owned(),
            tensorrt: library.version(),
            compute_capabilities: self.capabilities.iter().map(ToString::to_string).collect(),
            precision: compute.name().to_owned(),
            profiles: profiles.iter().map(|one| one.iter().map(range).collect()).collect(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            graph: FileDigest::of(path)?,
            weights: weights.collect::<Result<_>>()?,
            engine: FileDigest { file: String::new(), bytes: 0, sha256: String::new() },
        })
    }

    /// Takes the engine over from the repository before, where it was built from the same.
    fn take_over(&self, path: &Path, manifest: &mut EngineManifest) -> Result<bool> {
        let mut parts: Vec<_> = path.iter().rev().take(3).collect();
        parts.reverse();
        let old = self.before.join(parts.iter().collect::<PathBuf>());
        let Ok(found) = EngineManifest::read(&old) else { return Ok(false) };
        let wanted = EngineManifest {
            inputs: found.inputs.clone(),
            outputs: found.outputs.clone(),
            engine: found.engine.clone(),
            ..manifest.clone()
        };
        let engine = manifest::engine_file(&old);
        let is_same =
            wanted == found && FileDigest::of(&engine).is_ok_and(|one| one == found.engine);
        if is_same {
            place(&engine, &manifest::engine_file(path))?;
            self.progress.say(&format!("{} is still right", found.engine.file));
            *manifest = found;
        }
        Ok(is_same)
    }
}

/// `source` at `target` too: a link where the file system has them.
fn place(source: &Path, target: &Path) -> Result<()> {
    if std::fs::hard_link(source, target).is_ok() {
        return Ok(());
    }
    std::fs::copy(source, target).map(drop).map_err(|error| files::io("copy", source, &error))
}

fn port(port: &Port) -> EnginePort {
    let element_type = match port.element_type {
        PortType::F32 => "f32",
        PortType::F16 => "f16",
        PortType::Bf16 => "bf16",
        PortType::I64 => "i64",
    };
    EnginePort {
        name: port.name.clone(),
        element_type: element_type.to_owned(),
        shape: port.shape.clone(),
    }
}

/// Shows the steps of one engine's building.
struct Steps<'a> {
    progress: &'a dyn Progress,
    name: String,
}

impl Watch for Steps<'_> {
    fn start(&self, _what: &str, steps: u64) {
        self.progress.start(&format!("building {}", self.name), steps, Unit::Steps);
    }

    fn advance(&self, steps: u64) {
        self.progress.advance(steps);
    }

    fn finish(&self) {
        self.progress.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use imprompt_graph::clip::IMAGE_GRAPH;

    #[cfg(not(feature = "tensorrt-enterprise"))]
    #[test]
    fn bfloat16_needs_newer_cards() {
        let of = |names: &[&str]| GpuRequest {
            compute_capabilities: names.iter().map(|name| name.parse().unwrap()).collect(),
            ..GpuRequest::default()
        };
        let all = of(&[]).capabilities(&[Compute::F16]).unwrap();
        assert_eq!(all, COMPUTE_CAPABILITIES);
        let newer = of(&[]).capabilities(&[Compute::F16, Compute::Bf16]).unwrap();
        assert_eq!(newer, COMPUTE_CAPABILITIES[1..]);
        let sorted = of(&["8.6", "7.5", "8.6"]).capabilities(&[Compute::F32]).unwrap();
        assert_eq!(sorted, [COMPUTE_CAPABILITIES[0], COMPUTE_CAPABILITIES[2]]);
        let error = of(&["7.5"]).capabilities(&[Compute::Bf16]).unwrap_err();
        assert!(error.message().contains("7.5 has no bfloat16"), "{error}");
    }

    #[test]
    fn tensorrt_has_no_fused_form() {
        let request = GpuRequest { form: GpuForm::Fused, ..GpuRequest::default() };
        let open = |request: &GpuRequest| {
            let opened = EngineBuilder::open(request, &[Compute::F16], Path::new(""), &Silent);
            opened.map(|engines| engines.form).map_err(|error| error.message().to_owned())
        };
        let error = open(&request).unwrap_err();
        assert!(error.contains("`fused` have operators that TensorRT refuses"), "{error}");
        let request = GpuRequest { engine: GpuEngine::Cuda, ..request };
        assert_eq!(open(&request), Ok(GpuForm::Fused));
    }

    #[test]
    fn a_usual_length_is_in_its_span() {
        let lengths =
            Lengths { context: 9, prefix: 4, positions: 12, tokens: 8, ..Lengths::default() };
        assert_eq!(lengths.spans(TEXT_GRAPH, "length").unwrap(), [[1, 4, 9]]);
        assert_eq!(lengths.spans(TEXT_GRAPH, "prefix_length").unwrap(), [[0, 4, 8]]);
        assert_eq!(lengths.spans(IMAGE_GRAPH, "batch").unwrap(), [[1, 8, 8]]);
        assert_eq!(lengths.spans(VISION_GRAPH, "batch").unwrap(), [[1, 8, 8]]);
        assert_eq!(lengths.spans(DECODER_GRAPH, "prefix").unwrap(), [[0, 0, 0], [0, 4, 4]]);
        assert_eq!(lengths.spans(DECODER_GRAPH, "tokens").unwrap(), [[1, 1, 1], [1, 8, 8]]);
        assert!(lengths.spans(IMAGE_GRAPH, "length").is_err());
    }
}
