//! `imprompt build`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use imprompt_repository::{BuildRequest, Manifest, ModelFolder, Progress as _};

use crate::arguments::{Build, Device};
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
    let Device::Cpu = arguments.device;
    let model = |source: &Option<String>| source.as_deref().map(|source| model(source, &bars));
    let request = BuildRequest {
        clip: model(&arguments.clip).transpose()?,
        captioner: model(&arguments.captioner).transpose()?,
        vocabularies: vocabularies(&arguments.vocabulary, &bars)?,
        out: arguments.out.clone(),
        copy: arguments.copy,
        threads: arguments.threads.into(),
        onnxruntime: installed::onnxruntime(arguments.onnxruntime.as_deref())?,
    };
    let manifest = imprompt_repository::build(&request, &bars)?;
    bars.say(&summary(&manifest, &arguments.out, started.elapsed().as_secs_f64()));
    Ok(())
}

/// A folder, or the folder of a hub's model.
fn model(source: &str, bars: &Bars) -> Result<ModelFolder> {
    let folder = Path::new(source);
    if folder.is_dir() {
        return Ok(ModelFolder::open(folder)?);
    }
    let Some(id) = HubId::parse(source) else {
        return Err(Failure::new(format!("{source}: no such folder"))
            .hint("name a model folder, or a hub id of the form OWNER/NAME"));
    };
    Ok(ModelFolder::named(&hub::fetch(&id, bars)?, id.to_string())?)
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
