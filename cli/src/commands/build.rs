//! `imprompt build`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use imprompt_repository::family::Role;
use imprompt_repository::{
    Bits, BuildRequest, GpuEngine, GpuForm, GpuRequest, Manifest, ModelFolder, Precision,
    Progress as _, TENSORRT, TENSORRT_FOLDER,
};

use crate::arguments::{Build, BuildEngine, BuildForm, Device};
use crate::catalogue::{self, ModelNames};
use crate::hub::{self, HubId};
use crate::talk::{Bars, Failure, Result};
use crate::{installed, wheel};

/// The vocabulary that comes from a package instead of a folder.
const CLIP_INTERROGATOR: &str = "clip-interrogator";

/// Builds a repository and says what is in it.
pub fn run(arguments: &Build) -> Result<()> {
    let started = Instant::now();
    let bars = Bars::new();
    // Before anything is downloaded.
    imprompt_repository::check_target(&arguments.out).map_err(|error| {
        Failure::from(error).hint("choose another --out, or remove that folder yourself")
    })?;
    let (gpu, precision) = device(arguments)?;
    let (clip, captioner) = match &arguments.model_names {
        Some(file) => {
            let names = ModelNames::read(file)?;
            (Some(names.clip), names.captioner)
        }
        None => (arguments.clip.clone(), arguments.captioner.clone()),
    };
    // Both are looked up before one is downloaded.
    let source = |source: Option<String>, role| {
        source.map(|source| ModelSource::find(&source, role)).transpose()
    };
    let (clip, captioner) = (source(clip, Role::Clip)?, source(captioner, Role::Captioner)?);
    let open = |source: Option<ModelSource>| source.map(|source| source.open(&bars)).transpose();
    let request = BuildRequest {
        clip: open(clip)?,
        captioner: open(captioner)?,
        vocabularies: vocabularies(&arguments.vocabulary, &bars)?,
        out: arguments.out.clone(),
        copy: arguments.copy,
        split_captioner: arguments.split_captioner,
        precision,
        gpu,
        threads: arguments.threads.into(),
        onnxruntime: installed::onnxruntime(arguments.onnxruntime.as_deref(), false)?,
    };
    let manifest = imprompt_repository::build(&request, &bars).map_err(|error| {
        let is_missing = error.message().starts_with(&format!("{TENSORRT} could not be opened"));
        match (is_missing, TENSORRT_FOLDER) {
            (false, _) => error.into(),
            (true, Some(_)) => Failure::from(error)
                .hint("install it with `scripts/setup --gpu`, or pass --tensorrt DIR"),
            (true, None) => Failure::from(error).hint("pass its folder with --tensorrt DIR"),
        }
    })?;
    bars.say(&summary(&manifest, &arguments.out, started.elapsed().as_secs_f64()));
    Ok(())
}

/// What `--device` and the flags that belong to it come to.
fn device(arguments: &Build) -> Result<(Option<GpuRequest>, Precision)> {
    match arguments.device {
        Device::Cpu if !arguments.compute_capability.is_empty() || arguments.tensorrt.is_some() => {
            Err(Failure::usage("--compute-capability and --tensorrt go with --device gpu"))
        }
        Device::Cpu if arguments.gpu_form == BuildForm::Fused => {
            Err(Failure::usage("--gpu-form fused goes with --device gpu"))
        }
        Device::Cpu => Ok((None, Precision::of(&arguments.precision))),
        Device::Gpu
            if arguments.gpu_form == BuildForm::Fused
                && arguments.gpu_engine == BuildEngine::Tensorrt =>
        {
            Err(Failure::usage("--gpu-form fused is not for TensorRT, which refuses its operators")
                .hint("add --gpu-engine cuda, or leave --gpu-form out"))
        }
        Device::Gpu => {
            let request = GpuRequest {
                engine: match arguments.gpu_engine {
                    BuildEngine::Tensorrt => GpuEngine::TensorRt,
                    BuildEngine::Cuda => GpuEngine::Cuda,
                },
                form: match arguments.gpu_form {
                    BuildForm::Parts => GpuForm::Parts,
                    BuildForm::Fused => GpuForm::Fused,
                },
                compute_capabilities: arguments.compute_capability.clone(),
                tensorrt: installed::tensorrt(arguments.tensorrt.as_deref()),
            };
            Ok((Some(request), Precision::with_default(&arguments.precision, Bits::F16)))
        }
    }
}

/// Where a model comes from.
enum ModelSource {
    Folder(PathBuf),
    Hub(HubId, Role),
}

impl ModelSource {
    /// A folder where there is one, else a known name or a hub id.
    fn find(source: &str, role: Role) -> Result<Self> {
        let folder = Path::new(source);
        match folder.is_dir() {
            true => Ok(ModelSource::Folder(folder.to_owned())),
            false => Ok(ModelSource::Hub(catalogue::resolve(source, role)?, role)),
        }
    }

    fn open(self, bars: &Bars) -> Result<ModelFolder> {
        match self {
            ModelSource::Folder(folder) => Ok(ModelFolder::open(&folder)?),
            ModelSource::Hub(id, role) => {
                let check =
                    |folder: &Path| Ok(imprompt_repository::check_architecture(folder, role)?);
                Ok(ModelFolder::named(&hub::fetch(&id, &check, bars)?, id.to_string())?)
            }
        }
    }
}

/// Folders and files of label tables; the package's lists where its name is given.
pub fn vocabularies(sources: &[String], bars: &Bars) -> Result<Vec<PathBuf>> {
    let folder = |source: &String| {
        let path = PathBuf::from(source);
        match &**source {
            _ if path.exists() => Ok(path),
            CLIP_INTERROGATOR => wheel::term_lists(bars),
            _ => Err(Failure::new(format!("{source}: no such folder or file")).hint(format!(
                "a vocabulary is a folder of *.txt label tables, or `{CLIP_INTERROGATOR}`"
            ))),
        }
    };
    sources.iter().map(folder).collect()
}

fn summary(manifest: &Manifest, out: &Path, seconds: f64) -> String {
    let labels: usize = manifest.tables.iter().map(|table| table.labels).sum();
    let tables = match manifest.tables.len() {
        0 => String::new(),
        count => format!(", {labels} labels in {count} tables"),
    };
    format!(
        "built {} in {seconds:.1} s: {}{tables}\nhint: imprompt serve {0}",
        out.display(),
        manifest.ensembles.join(", "),
    )
}
