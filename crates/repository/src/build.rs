//! Building a repository: graphs, links to the weights, label tables, configurations. What the
//! build reads of the weights is their headers, so its time and memory do not grow with them.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use imprompt_error::{Error, Kind, Result};
use imprompt_graph::builder::Graph;
use imprompt_graph::clip::{IMAGE_GRAPH, TEXT_GRAPH};
use imprompt_graph::family::Role;
use imprompt_graph::{CaptionGraphs, ClipFamily, ClipGraphs, caption_graphs, clip_graphs};
use imprompt_stage::answer::AnswerFile;
use imprompt_stage::caption_stream::CaptionStreamFile;
use imprompt_stage::caption_vision::CaptionVisionFile;
use imprompt_stage::captioner::CaptionerFile;
use imprompt_stage::clip_image::ClipImageFile;
use imprompt_stage::clip_text::ClipTextFile;
use imprompt_stage::ensemble::Ensemble;
use imprompt_stage::invocation::InvocationFile;
use imprompt_stage::preprocess::PreprocessFile;
use imprompt_stage::ranker::RankerFile;
use imprompt_stage::tagger::TaggerFile;
use imprompt_stage::text_side::{Cleaning, check_tokenizer};
use imprompt_stage::{StageFile, StageKind};

use crate::config::{self, Computing, Models, Sizes};
use crate::engines::{EngineBuilder, GpuRequest, Lengths};
use crate::files::{self, Placer};
use crate::layout::{CAPTION_PREPROCESSOR, CLIP_PREPROCESSOR, CONFIG, KEEP, SCREEN_GRAPH, VERSION};
use crate::manifest::Manifest;
use crate::precision::{Bits, Converter, Precision};
use crate::progress::Progress;
use crate::source::ModelFolder;
use crate::stage_file;
use crate::tables::{self, Encoding, RawTable};

/// What to build.
#[derive(Clone, Debug)]
pub struct BuildRequest {
    /// The CLIP; without one there are captions alone.
    pub clip: Option<ModelFolder>,
    /// The captioner; without one there are labels and embeddings alone.
    pub captioner: Option<ModelFolder>,
    /// Folders of label tables.
    pub vocabularies: Vec<PathBuf>,
    /// The repository.
    pub out: PathBuf,
    /// Copies the weights even where hard links would do.
    pub copy: bool,
    /// Puts the captioner into two stages, `caption_vision` and `caption_decoder`.
    pub split_captioner: bool,
    /// In how many bits the weights of linear layers are kept.
    pub precision: Precision,
    /// Builds engines for a GPU beside the graphs.
    pub gpu: Option<GpuRequest>,
    /// Threads of each stage instance; 0: one a core.
    pub threads: usize,
    /// The ONNX Runtime library that computes label embeddings; `None`: looked for.
    pub onnxruntime: Option<PathBuf>,
}

impl BuildRequest {
    /// A repository at `out` of no model yet, as the command builds one without flags.
    #[must_use]
    pub fn new(out: &Path) -> Self {
        BuildRequest {
            clip: None,
            captioner: None,
            vocabularies: Vec::new(),
            out: out.to_owned(),
            copy: false,
            split_captioner: false,
            precision: Precision::default(),
            gpu: None,
            threads: 0,
            onnxruntime: None,
        }
    }
}

/// Fails where `out` exists and is not a repository: a build replaces what it wrote, nothing else.
///
/// # Errors
/// [`Kind::InvalidInput`] naming the folder.
pub fn check_target(out: &Path) -> Result<()> {
    let is_free = match std::fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if is_free || Manifest::read(out).is_ok() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{}: exists and is not a repository made by `imprompt build`",
        out.display()
    )))
}

/// Fails where this build writes no graphs for the model in `folder`, whose weights may not be
/// there yet: what is wrong besides is found when it is built.
///
/// # Errors
/// [`Kind::Unsupported`] naming the architecture or the key of the configuration.
pub fn check_architecture(folder: &Path, role: Role) -> Result<()> {
    let result = match role {
        Role::Clip => clip_graphs(folder).map(drop),
        Role::Captioner => caption_graphs(folder).map(drop),
    };
    match result {
        Err(error) if error.kind() == Kind::Unsupported => Err(error),
        _ => Ok(()),
    }
}

/// Builds the repository. It appears whole or not at all; one that was there before stays until
/// the new one is complete.
///
/// # Errors
/// What is wrong with a model source or a label table; what reading and writing files fails
/// with; those of [`check_target`].
pub fn build(request: &BuildRequest, progress: &dyn Progress) -> Result<Manifest> {
    check_target(&request.out)?;
    let parent = match request.out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    files::create_dir(parent)?;
    // Beside the target: a rename works within one file system alone.
    let partial = tempfile::Builder::new()
        .prefix(".imprompt-build-")
        .tempdir_in(parent)
        .map_err(|error| files::io("create a folder in", parent, &error))?;
    let root = partial.path().join("repository");
    let engines = match &request.gpu {
        None => None,
        Some(gpu) => {
            let computes = request.precision.computes()?;
            let engines = EngineBuilder::open(gpu, &computes, &request.out, progress)?;
            Some(RefCell::new(engines))
        }
    };
    let converter = RefCell::default();
    let build = Build { request, converter, engines, root: root.clone(), progress };
    let manifest = build.run()?;
    replace(&request.out, &root, &partial.path().join("before"))?;
    Ok(manifest)
}

/// Puts the folder `new` in the place of `out`; what was there goes to `before`.
fn replace(out: &Path, new: &Path, before: &Path) -> Result<()> {
    let had = out.exists();
    if had {
        std::fs::rename(out, before).map_err(|error| files::io("move away", out, &error))?;
    }
    std::fs::rename(new, out).map_err(|error| {
        if had {
            // Best effort: the first failure is the one to report.
            let _ = std::fs::rename(before, out);
        }
        files::io("move the new repository to", out, &error)
    })
}

struct Build<'a> {
    request: &'a BuildRequest,
    converter: RefCell<Converter>,
    /// With `--device gpu`.
    engines: Option<RefCell<EngineBuilder<'a>>>,
    root: PathBuf,
    progress: &'a dyn Progress,
}

impl Build<'_> {
    fn run(&self) -> Result<Manifest> {
        let request = self.request;
        let mut placer = Placer::new(request.copy, self.progress);
        let mut manifest = Manifest::new();
        let clip = request.clip.as_ref().map(|model| Ok((model, clip_graphs(model.path())?)));
        let clip = clip.transpose()?;
        let captioner =
            request.captioner.as_ref().map(|model| Ok((model, caption_graphs(model.path())?)));
        let captioner = captioner.transpose()?;
        let raw = tables::read_folders(&request.vocabularies)?;
        let has = Models { clip: clip.is_some(), captioner: captioner.is_some() };
        if !has.clip && !has.captioner {
            return Err(Error::invalid("a repository needs a CLIP or a captioner"));
        }
        match &self.engines {
            Some(_) => manifest.device = Some("gpu".to_owned()),
            None => request.precision.check_cpu()?,
        }
        request.precision.check(has)?;
        if !has.clip && !raw.is_empty() {
            return Err(Error::invalid("label tables need a CLIP: its text encoder embeds them"));
        }
        let mut sizes = Sizes::default();
        let mut preprocess = PreprocessFile::default();
        let folder = self.stage(StageKind::Preprocess)?;
        if let Some((model, graphs)) = &clip {
            let size = graphs.facts.image_size;
            model.write_preprocessor(&folder.join(CLIP_PREPROCESSOR), [size, size])?;
            preprocess.clip_preprocessor = Some(CLIP_PREPROCESSOR.to_owned());
            sizes.clip_pixels = Some([size, size]);
            sizes.embedding = Some(graphs.facts.projection_dim);
            sizes.probability = graphs.facts.probability;
            let mut source = model.source()?;
            source.probability = Some(graphs.facts.probability.name().to_owned());
            manifest.clip = Some(source);
            self.clip(model, graphs, &raw, has, &mut placer, &mut manifest)?;
        }
        if let Some((model, graphs)) = &captioner {
            let size = graphs.facts.image_size;
            model.write_preprocessor(&folder.join(CAPTION_PREPROCESSOR), [size, size])?;
            preprocess.caption_preprocessor = Some(CAPTION_PREPROCESSOR.to_owned());
            sizes.caption_pixels = Some([size, size]);
            sizes.picture_embeds = Some(graphs.facts.encoded_shape());
            manifest.captioner = Some(model.source()?);
            self.captioner(model, graphs, &mut placer)?;
        }
        stage_file::write(&folder, &StageFile::Preprocess(preprocess))?;
        let precision = request.precision;
        manifest.precision = (precision != Precision::default()).then(|| precision.to_string());
        self.configs(&sizes, has, &mut manifest)?;
        self.progress.say("listing files");
        manifest.write(&self.root)?;
        Ok(manifest)
    }

    /// The stages of a CLIP, and the label tables.
    fn clip(
        &self,
        model: &ModelFolder,
        graphs: &ClipGraphs,
        raw: &[RawTable],
        has: Models,
        placer: &mut Placer<'_>,
        manifest: &mut Manifest,
    ) -> Result<()> {
        self.progress.say(&format!("writing the graphs of {}", model.name()));
        let precision = &self.request.precision;
        let lengths = Lengths::of_clip(&graphs.facts);
        let invocation = self.stage(StageKind::Invocation)?;
        stage_file::write(&invocation, &StageFile::Invocation(InvocationFile {}))?;
        let answer = self.stage(StageKind::Answer)?;
        stage_file::write(&answer, &StageFile::Answer(AnswerFile {}))?;
        let image = self.stage(StageKind::ClipImage)?;
        self.graph(&image, (IMAGE_GRAPH, &graphs.image), precision.clip_image, model, placer)?;
        self.engine(&image, (IMAGE_GRAPH, &graphs.image), precision.clip_image, &lengths)?;
        stage_file::write(
            &image,
            &StageFile::ClipImage(ClipImageFile { facts: graphs.facts.clone() }),
        )?;
        let text = self.stage(StageKind::ClipText)?;
        self.graph(&text, (TEXT_GRAPH, &graphs.text), precision.clip_text, model, placer)?;
        self.engine(&text, (TEXT_GRAPH, &graphs.text), precision.clip_text, &lengths)?;
        model.copy_tokenizer(&text)?;
        let facts = || graphs.facts.clone();
        // Labels of a request are read as the model's own reference reads them.
        let cleaning = match (model.is_open_clip(), graphs.facts.family) {
            (true, ClipFamily::Siglip) => Cleaning::Canonical,
            (true, _) => Cleaning::OpenClip,
            (false, _) => Cleaning::HuggingFace,
        };
        check_tokenizer(&text, &graphs.facts, cleaning)?;
        let file = ClipTextFile { facts: facts(), cleaning };
        stage_file::write(&text, &StageFile::ClipText(file))?;

        let tagger = self.stage(StageKind::Tagger)?;
        let encoding = Encoding {
            text_folder: &text,
            facts: &graphs.facts,
            cleaning: tables::cleaning(cleaning),
            threads: self.request.threads,
            onnxruntime: self.request.onnxruntime.as_deref(),
        };
        let all = tables::with_trendings(raw);
        let entries =
            tables::make(&all, &encoding, &tagger, Some(&self.request.out), self.progress)?;
        self.graph(&tagger, (TEXT_GRAPH, &graphs.text), precision.clip_text, model, placer)?;
        self.engine(&tagger, (TEXT_GRAPH, &graphs.text), precision.clip_text, &lengths)?;
        model.copy_tokenizer(&tagger)?;
        let listed = tables::listed(&tagger, &entries);
        // Terms of the interrogator are read as open_clip reads them, whatever the model.
        let file = TaggerFile { facts: facts(), cleaning, tables: listed };
        stage_file::write(&tagger, &StageFile::Tagger(file))?;
        if has.captioner {
            let ranker = self.stage(StageKind::Ranker)?;
            self.graph(&ranker, (TEXT_GRAPH, &graphs.text), precision.clip_text, model, placer)?;
            self.engine(&ranker, (TEXT_GRAPH, &graphs.text), precision.clip_text, &lengths)?;
            let screen = precision.screen.then(|| SCREEN_GRAPH.to_owned());
            if let Some(name) = &screen {
                self.graph(&ranker, (name, &graphs.text), Bits::Int8, model, placer)?;
            }
            model.copy_tokenizer(&ranker)?;
            tables::link_interrogator(&tagger, &ranker, &entries)?;
            let listed = tables::listed(&ranker, &entries);
            let cleaning = tables::cleaning(cleaning);
            let file = RankerFile { facts: facts(), cleaning, tables: listed, screen };
            stage_file::write(&ranker, &StageFile::Ranker(file))?;
            tables::tell_missing(&entries, self.progress);
        }
        manifest.tables = entries;
        Ok(())
    }

    fn captioner(
        &self,
        model: &ModelFolder,
        graphs: &CaptionGraphs,
        placer: &mut Placer<'_>,
    ) -> Result<()> {
        self.progress.say(&format!("writing the graphs of {}", model.name()));
        if self.request.split_captioner {
            let vision = |name: &str| graphs.facts.is_encoder(name);
            let folder = self.stage(StageKind::CaptionVision)?;
            self.caption_graphs(&folder, model, graphs, &vision, placer)?;
            let file = CaptionVisionFile { facts: graphs.facts.clone() };
            stage_file::write(&folder, &StageFile::CaptionVision(file))?;
            let folder = self.stage(StageKind::CaptionDecoder)?;
            self.caption_graphs(&folder, model, graphs, &|name| !vision(name), placer)?;
            model.copy_caption_tokenizers(&folder, graphs.facts.qformer_text.is_some())?;
            let file = CaptionerFile { facts: graphs.facts.clone() };
            stage_file::write(&folder, &StageFile::CaptionDecoder(file))?;
        } else {
            let folder = self.stage(StageKind::Captioner)?;
            self.caption_graphs(&folder, model, graphs, &|_| true, placer)?;
            model.copy_caption_tokenizers(&folder, graphs.facts.qformer_text.is_some())?;
            let file = CaptionerFile { facts: graphs.facts.clone() };
            stage_file::write(&folder, &StageFile::Captioner(file))?;
        }

        // The same files once more: links, but where weights are copied.
        let folder = self.stage(StageKind::CaptionStream)?;
        self.caption_graphs(&folder, model, graphs, &|_| true, placer)?;
        model.copy_caption_tokenizers(&folder, graphs.facts.qformer_text.is_some())?;
        let size = graphs.facts.image_size;
        model.write_preprocessor(&folder.join(CAPTION_PREPROCESSOR), [size, size])?;
        let file = CaptionStreamFile {
            facts: graphs.facts.clone(),
            caption_preprocessor: CAPTION_PREPROCESSOR.to_owned(),
        };
        stage_file::write(&folder, &StageFile::CaptionStream(file))
    }

    /// Those graphs of a captioner whose file names are `wanted`.
    fn caption_graphs(
        &self,
        folder: &Path,
        model: &ModelFolder,
        graphs: &CaptionGraphs,
        wanted: &dyn Fn(&str) -> bool,
        placer: &mut Placer<'_>,
    ) -> Result<()> {
        let lengths = Lengths::of_captioner(graphs)?;
        for (name, one) in graphs.files.iter().filter(|(name, _)| wanted(name)) {
            self.graph(folder, (name, one), self.request.precision.captioner, model, placer)?;
            self.engine(folder, (name, one), self.request.precision.captioner, &lengths)?;
        }
        Ok(())
    }

    /// Writes a graph and puts the weights it refers to beside it.
    fn graph(
        &self,
        folder: &Path,
        (name, graph): (&str, &Graph),
        bits: Bits,
        model: &ModelFolder,
        placer: &mut Placer<'_>,
    ) -> Result<()> {
        // Engines are built from the weights as they are, and the CPU's graphs stay beside them.
        let bits = if self.engines.is_some() { Bits::F32 } else { bits };
        let mut converter = self.converter.borrow_mut();
        let graph = converter.convert((name, graph), bits, model, folder, self.progress)?;
        files::write(&folder.join(name), &graph.bytes)?;
        for weights in &graph.weight_files {
            let target = folder.join(weights);
            // Several graphs of one stage refer to the same file.
            if !target.exists() {
                placer.place(&model.path().join(weights), &target)?;
            }
        }
        Ok(())
    }

    /// With `--device gpu`, the engine of a graph that is there with its weights.
    fn engine(
        &self,
        folder: &Path,
        (name, graph): (&str, &Graph),
        bits: Bits,
        lengths: &Lengths,
    ) -> Result<()> {
        match (&self.engines, bits.compute()) {
            (Some(engines), Some(compute)) => {
                engines.borrow_mut().add(folder, (name, graph), compute, lengths)
            }
            _ => Ok(()),
        }
    }

    /// The version folder of a stage.
    fn stage(&self, kind: StageKind) -> Result<PathBuf> {
        let folder = self.root.join(kind.name()).join(VERSION);
        files::create_dir(&folder)?;
        Ok(folder)
    }

    /// config.pbtxt of every stage that was made, and the ensembles that are possible.
    fn configs(&self, sizes: &Sizes, has: Models, manifest: &mut Manifest) -> Result<()> {
        let is_made = |kind: StageKind| self.root.join(kind.name()).is_dir();
        for kind in StageKind::ALL.into_iter().filter(|kind| is_made(*kind)) {
            let computing =
                Computing { threads: self.request.threads, gpu: self.engines.is_some() };
            let text = config::stage_config(kind, sizes, has, computing);
            files::write(&self.root.join(kind.name()).join(CONFIG), text.as_bytes())?;
            manifest.stages.push(kind.name().to_owned());
        }
        for ensemble in Ensemble::all().filter(|ensemble| ensemble.is_possible(is_made)) {
            let folder = self.root.join(ensemble.name);
            files::create_dir(&folder.join(VERSION))?;
            files::write(&folder.join(VERSION).join(KEEP), b"")?;
            let text = config::ensemble_config(ensemble, sizes, has);
            files::write(&folder.join(CONFIG), text.as_bytes())?;
            manifest.ensembles.push(ensemble.name.to_owned());
        }
        Ok(())
    }
}
