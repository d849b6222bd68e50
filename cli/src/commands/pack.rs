//! `imprompt pack`.

use std::path::PathBuf;
use std::time::Instant;

use imprompt_package::PackRequest;
use imprompt_repository::{Manifest, Progress as _};

use crate::arguments::Pack;
use crate::installed;
use crate::talk::{Bars, Failure, Result};

/// Packs an ensemble and says how large it is.
pub fn run(arguments: &Pack) -> Result<()> {
    let started = Instant::now();
    let bars = Bars::new();
    let library = match &arguments.backend {
        Some(library) => library.clone(),
        None => installed::backend()?,
    };
    let companions = match arguments.with_onnxruntime {
        true => onnxruntime(arguments)?,
        false => vec![],
    };
    let request = PackRequest {
        repository: arguments.repository.clone(),
        ensemble: arguments.ensemble.clone(),
        library,
        companions,
        out: arguments.out.clone(),
        level: arguments.compression,
    };
    let packed = imprompt_package::pack(&request, &bars)?;
    bars.say(&format!(
        "packed {} in {:.1} s: {} with {}, {} files, {:.1} MB, library {}",
        arguments.out.display(),
        started.elapsed().as_secs_f64(),
        arguments.ensemble,
        packed.manifest.stages.join(", "),
        packed.manifest.files.len(),
        packed.bytes as f64 / 1e6,
        packed.library
    ));
    Ok(())
}

/// ONNX Runtime, and for a repository that was built for GPUs its CUDA provider, where it is beside it.
fn onnxruntime(arguments: &Pack) -> Result<Vec<PathBuf>> {
    let on_gpu = Manifest::read(&arguments.repository)?.device.as_deref() == Some("gpu");
    let library = installed::onnxruntime(arguments.onnxruntime.as_deref(), on_gpu)?;
    let library = library.ok_or_else(|| {
        Failure::new("ONNX Runtime was not found").hint("name it: --onnxruntime FILE")
    })?;
    let providers = installed::PROVIDERS.map(|name| library.with_file_name(name));
    let providers = providers.into_iter().filter(|path| on_gpu && path.is_file());
    Ok(std::iter::once(library.clone()).chain(providers).collect())
}
