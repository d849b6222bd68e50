//! The TensorRT of data centres, `libnvinfer`: engines are built on the very card that they are for,
//! by measuring its kernels, and hold them.

use imprompt_cuda::Device;
use imprompt_error::{Error, Kind, Result};
use trtx::{BuilderConfig, Runtime, RuntimeConfig};

use super::Names;
use crate::build::ComputeCapability;
use crate::context::Habit;

/// What it is called.
pub const NAME: &str = "TensorRT";
/// What manifests call it.
pub const FLAVOUR: &str = "enterprise";
/// The project's scripts install none.
pub const SETUP_FOLDER: Option<&str> = None;

pub(crate) const NAMES: Names =
    Names { runtime: "libnvinfer.so", parser: "libnvonnxparser.so", known: (11, 4) };

/// The cards that may be named. An engine is built for the one at hand.
pub const COMPUTE_CAPABILITIES: &[ComputeCapability] = &[
    ComputeCapability::new(7, 5),
    ComputeCapability::new(8, 0),
    ComputeCapability::new(8, 6),
    ComputeCapability::new(8, 9),
    ComputeCapability::new(9, 0),
    ComputeCapability::new(10, 0),
    ComputeCapability::new(12, 0),
];

/// The cards that engines are built for where none is named: the first GPU of this machine.
///
/// # Errors
/// `NotFound` where there is none, or no driver.
pub fn usual_capabilities() -> Result<Vec<ComputeCapability>> {
    let found = Device::open(0).map_err(|error| {
        Error::new(error.kind(), format!("{NAME} builds on the card: {}", error.message()))
    })?;
    let found = found.compute_capability();
    let number = |part: u32| u8::try_from(part).unwrap_or(u8::MAX);
    Ok(vec![ComputeCapability::new(number(found.major), number(found.minor))])
}

/// Has an engine built for these cards: they must be the one at hand.
pub(crate) fn target(
    _config: &mut BuilderConfig<'_>,
    capabilities: &[ComputeCapability],
) -> Result<()> {
    let here = usual_capabilities()?;
    match capabilities == here {
        true => Ok(()),
        false => Err(Error::unsupported(format!(
            "{NAME} builds for the card at hand, of compute capability {}, and for no other",
            here.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// The kernels are in the engine: none are compiled when it is loaded.
pub(crate) struct Kernels;

impl Kernels {
    pub(crate) fn new(
        _config: &RuntimeConfig<'_>,
        _kept: Option<&[u8]>,
    ) -> trtx::Result<(Self, trtx::Result<()>)> {
        Ok((Kernels, Ok(())))
    }

    pub(crate) fn to_bytes(&self) -> trtx::Result<Vec<u8>> {
        Ok(Vec::new())
    }
}

/// There is nothing to be chosen: it neither specialises kernels nor records by itself.
pub(crate) fn configure(
    _config: &mut RuntimeConfig<'_>,
    _habit: Habit,
    _kernels: &Kernels,
) -> trtx::Result<()> {
    Ok(())
}

/// Why an engine was refused it says in its words alone.
pub(crate) fn reasons(_runtime: &Runtime<'_>, _engine: &[u8]) -> (Kind, Vec<&'static str>) {
    (Kind::BadModel, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_built_where_the_card_is() {
        if Device::count().unwrap() == 0 {
            let error = usual_capabilities().unwrap_err();
            assert_eq!(error.kind(), Kind::NotFound);
            assert!(error.message().starts_with("TensorRT builds on the card: "), "{error}");
        } else {
            assert_eq!(usual_capabilities().unwrap().len(), 1);
        }
    }
}
