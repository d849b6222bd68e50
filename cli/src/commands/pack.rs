//! `imprompt pack`.

use std::time::Instant;

use imprompt_package::PackRequest;
use imprompt_repository::Progress as _;

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
    let companions =
        match arguments.with_onnxruntime {
            true => vec![installed::onnxruntime(arguments.onnxruntime.as_deref())?.ok_or_else(
                || Failure::new("ONNX Runtime was not found").hint("name it: --onnxruntime FILE"),
            )?],
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
