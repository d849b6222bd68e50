//! TensorRT-RTX: engines are built without a GPU, for several kinds of card, and their kernels are
//! compiled for the very card where they run.

use std::sync::Arc;

use imprompt_error::{Error, Kind, Result};
use trtx::{
    BuilderConfig, CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy as Specialisation,
    EngineInvalidityDiagnostics, EngineValidity, Runtime, RuntimeCache, RuntimeConfig,
};

use super::Names;
use crate::build::ComputeCapability;
use crate::context::Habit;

/// What it is called.
pub const NAME: &str = "TensorRT-RTX";
/// What manifests call it.
pub const FLAVOUR: &str = "rtx";
/// Where `scripts/setup --gpu` installs it, in `$IMPROMPT_HOME`.
pub const SETUP_FOLDER: Option<&str> = Some("tensorrt-rtx/onnxruntime_ep_nv_tensorrt_rtx");

pub(crate) const NAMES: Names =
    Names { runtime: "libtensorrt_rtx.so", parser: "libtensorrt_onnxparser_rtx.so", known: (1, 7) };

/// The cards that engines are built for. Hopper (9.0) is not one of them.
pub const COMPUTE_CAPABILITIES: &[ComputeCapability] = &[
    ComputeCapability::new(7, 5),
    ComputeCapability::new(8, 0),
    ComputeCapability::new(8, 6),
    ComputeCapability::new(8, 9),
    ComputeCapability::new(12, 0),
    ComputeCapability::new(12, 1),
];

/// The cards that engines are built for where none is named: all, no GPU is needed.
///
/// # Errors
/// None.
pub fn usual_capabilities() -> Result<Vec<ComputeCapability>> {
    Ok(COMPUTE_CAPABILITIES.to_vec())
}

fn number(capability: ComputeCapability) -> Option<trtx::ComputeCapability> {
    use trtx::ComputeCapability as Known;
    Some(match (capability.major, capability.minor) {
        (7, 5) => Known::kSM75,
        (8, 0) => Known::kSM80,
        (8, 6) => Known::kSM86,
        (8, 9) => Known::kSM89,
        (12, 0) => Known::kSM120,
        (12, 1) => Known::kSM121,
        _ => return None,
    })
}

/// Has an engine built for these cards.
pub(crate) fn target(
    config: &mut BuilderConfig<'_>,
    capabilities: &[ComputeCapability],
) -> Result<()> {
    let failed = |error: trtx::Error| Error::internal(error.to_string());
    let count = i32::try_from(capabilities.len()).unwrap_or(i32::MAX);
    config.set_nb_compute_capabilities(count).map_err(failed)?;
    for (index, capability) in (0..).zip(capabilities) {
        let number = number(*capability)
            .ok_or_else(|| Error::unsupported(format!("compute capability {capability}")))?;
        config.set_compute_capability(number, index).map_err(failed)?;
    }
    Ok(())
}

/// The kernels of an engine that were compiled for the card.
pub(crate) struct Kernels(Arc<RuntimeCache>);

impl Kernels {
    /// Those `kept` from before, if they are for this card and this driver; else the error. And none yet.
    pub(crate) fn new(
        config: &RuntimeConfig<'_>,
        kept: Option<&[u8]>,
    ) -> trtx::Result<(Self, trtx::Result<()>)> {
        let cache = config.create_runtime_cache()?;
        let taken = kept.map_or(Ok(()), |kept| cache.deserialize(kept));
        Ok((Kernels(Arc::new(cache)), taken))
    }

    /// As [`Self::new`] takes them.
    pub(crate) fn to_bytes(&self) -> trtx::Result<Vec<u8>> {
        Ok(self.0.serialize()?.to_vec())
    }
}

/// Has a context run as `habit` says, with `kernels` and those that it compiles.
pub(crate) fn configure(
    config: &mut RuntimeConfig<'_>,
    habit: Habit,
    kernels: &Kernels,
) -> trtx::Result<()> {
    config.set_dynamic_shapes_kernel_specialization_strategy(match habit.specialises {
        true => Specialisation::kLAZY,
        false => Specialisation::kNONE,
    });
    if habit.records {
        config.set_cuda_graph_strategy(CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE)?;
    }
    config.set_runtime_cache(kernels.0.clone())
}

/// Why `runtime` refused `engine`, and what kind of error that is.
pub(crate) fn reasons(runtime: &Runtime<'_>, engine: &[u8]) -> (Kind, Vec<&'static str>) {
    meaning(runtime.engine_validity(engine).ok())
}

/// What TensorRT's reasons mean, and what kind of error they are together. None where the bytes are
/// too few for a header.
fn meaning(
    found: Option<(EngineValidity, EngineInvalidityDiagnostics)>,
) -> (Kind, Vec<&'static str>) {
    use EngineInvalidityDiagnostics as Why;
    let (validity, why) = found.unwrap_or((EngineValidity::kINVALID, Why::MALFORMED_ENGINE));
    let all = [
        (Why::INSUFFICIENT_GPU_MEMORY, Kind::OutOfMemory, "the GPU's memory does not hold it"),
        (Why::UNSUPPORTED_CC, Kind::Unsupported, "TensorRT-RTX does not support this GPU"),
        (Why::VERSION_MISMATCH, Kind::Unsupported, "it is of another version of TensorRT-RTX"),
        (Why::OLD_CUDA_DRIVER, Kind::Unsupported, "the driver is too old for it"),
        (Why::OLD_CUDA_RUNTIME, Kind::Unsupported, "CUDA's runtime is too old for it"),
        (Why::CUDA_ERROR, Kind::Unsupported, "CUDA does not answer"),
        (Why::MALFORMED_ENGINE, Kind::BadModel, "it is no engine"),
    ];
    let given = || all.iter().filter(|(flag, ..)| why.contains(*flag));
    let kind = given().next().map_or_else(
        || match validity {
            EngineValidity::kINVALID => Kind::Unsupported,
            // The header is right, what follows is not.
            _ => Kind::BadModel,
        },
        |(_, kind, _)| *kind,
    );
    (kind, given().map(|(_, _, words)| *words).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_has_a_number() {
        assert!(COMPUTE_CAPABILITIES.iter().all(|capability| number(*capability).is_some()));
        assert_eq!(usual_capabilities().unwrap(), COMPUTE_CAPABILITIES);
        assert!(number(ComputeCapability::new(9, 0)).is_none());
    }

    #[test]
    fn reasons_have_words_and_a_kind() {
        use EngineInvalidityDiagnostics as Why;
        let of = |why| meaning(Some((EngineValidity::kINVALID, why)));
        assert_eq!(of(Why::empty()), (Kind::Unsupported, Vec::new()));
        assert_eq!(meaning(Some((EngineValidity::kVALID, Why::empty()))).0, Kind::BadModel);
        let (kind, words) = of(Why::UNSUPPORTED_CC | Why::MALFORMED_ENGINE);
        assert_eq!(kind, Kind::Unsupported);
        assert_eq!(words, ["TensorRT-RTX does not support this GPU", "it is no engine"]);
        assert_eq!(of(Why::INSUFFICIENT_GPU_MEMORY).0, Kind::OutOfMemory);
        assert_eq!(meaning(None), (Kind::BadModel, vec!["it is no engine"]));
    }
}
