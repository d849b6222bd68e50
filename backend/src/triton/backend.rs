//! The backend: once a process.

use std::ptr;

use imprompt_error::{Error, Result};
use imprompt_stage::Parameters;

use super::bindings::{self as sys, TRITONBACKEND_Backend, TRITONBACKEND_BackendAttribute};
use super::error::check;
use super::metrics::Families;
use super::{log, message, state};

/// What all models share.
pub(super) struct BackendState {
    /// The parameters before a model says its own.
    pub(super) parameters: Parameters,
    /// None when the server has no metrics.
    pub(super) metrics: Option<Families>,
}

/// `TRITONBACKEND_Initialize`.
///
/// # Safety
/// `backend` is live.
pub(super) unsafe fn initialize(backend: *mut TRITONBACKEND_Backend) -> Result<()> {
    check_api_version()?;
    log::install();
    let mut config = ptr::null_mut();
    // SAFETY: the caller's word; the message stays Triton's.
    let config = unsafe {
        check("BackendConfig", sys::TRITONBACKEND_BackendConfig(backend, &mut config))?;
        message::read(config)?
    };
    let mut parameters = Parameters::default();
    imprompt_host::config::read_backend_config(&config, &mut parameters)?;
    let metrics = Families::new()
        .inspect_err(|error| tracing::warn!("no metrics of this backend: {error}"))
        .ok();
    let shared = state::give(BackendState { parameters, metrics });
    // SAFETY: the caller's word. On success Triton keeps the state for `finalize`.
    let kept =
        check("BackendSetState", unsafe { sys::TRITONBACKEND_BackendSetState(backend, shared) });
    if kept.is_err() {
        // SAFETY: just given, and Triton did not keep it.
        drop(unsafe { state::take::<BackendState>(shared) });
    }
    kept?;
    tracing::info!("backend {} initialised", env!("CARGO_PKG_VERSION"));
    Ok(())
}

/// Triton does not compare the versions: a backend must.
fn check_api_version() -> Result<()> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two numbers.
    check("ApiVersion", unsafe { sys::TRITONBACKEND_ApiVersion(&mut major, &mut minor) })?;
    let ours = (sys::IMPROMPT_TRITON_API_MAJOR, sys::IMPROMPT_TRITON_API_MINOR);
    if major != ours.0 || minor < ours.1 {
        return Err(Error::unsupported(format!(
            "the server has backend API {major}.{minor}, imprompt needs {}.{} or a later minor",
            ours.0, ours.1
        )));
    }
    Ok(())
}

/// `TRITONBACKEND_GetBackendAttribute`: what holds where a model does not say.
///
/// # Safety
/// `attributes` is live.
pub(super) unsafe fn describe(attributes: *mut TRITONBACKEND_BackendAttribute) -> Result<()> {
    // SAFETY: the caller's word; no device ids are given.
    check("BackendAttributeAddPreferredInstanceGroup", unsafe {
        sys::TRITONBACKEND_BackendAttributeAddPreferredInstanceGroup(
            attributes,
            sys::TRITONSERVER_INSTANCEGROUPKIND_CPU,
            1,
            ptr::null(),
            0,
        )
    })?;
    // SAFETY: the caller's word. What instances share, the first opens while the others wait.
    check("BackendAttributeSetParallelModelInstanceLoading", unsafe {
        sys::TRITONBACKEND_BackendAttributeSetParallelModelInstanceLoading(attributes, true)
    })
}

/// `TRITONBACKEND_Finalize`.
///
/// # Safety
/// `backend` is live, its models are gone.
pub(super) unsafe fn finalize(backend: *mut TRITONBACKEND_Backend) -> Result<()> {
    let mut shared = ptr::null_mut();
    // SAFETY: the caller's word; only `initialize` sets the state, and it is cleared
    // before it is freed.
    unsafe {
        check("BackendState", sys::TRITONBACKEND_BackendState(backend, &mut shared))?;
        check("BackendSetState", sys::TRITONBACKEND_BackendSetState(backend, ptr::null_mut()))?;
        drop(state::take::<BackendState>(shared));
    }
    Ok(())
}
