//! A model: one version of a stage's folder.

use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;

use imprompt_error::{Error, Result};
use imprompt_host::config;
use imprompt_stage::StageModel;
use serde_json::Value;

use super::backend::BackendState;
use super::bindings::{self as sys, TRITONBACKEND_Model};
use super::error::{check, text};
use super::message::{self, Message};
use super::metrics::ModelMetrics;
use super::state;

/// The version of the configuration's form that Triton speaks.
const CONFIG_VERSION: u32 = 1;

/// What the instances of a model share. They keep it alive.
pub(super) struct ModelState {
    pub(super) stage: Arc<dyn StageModel>,
    pub(super) metrics: Option<Arc<ModelMetrics>>,
}

/// `TRITONBACKEND_ModelInitialize`. Called for several models at once.
///
/// # Safety
/// `model` is live.
pub(super) unsafe fn initialize(model: *mut TRITONBACKEND_Model) -> Result<()> {
    // SAFETY: the caller's word, here and below.
    let config = unsafe { read_config(model) }?;
    // SAFETY: as above; the backend's state is given before and taken after all models.
    let backend: &BackendState = unsafe { backend_state(model) }?;
    let mut parameters = backend.parameters.clone();
    config::read_parameters(&config, &mut parameters)?;
    // SAFETY: as above.
    let folder = unsafe { version_folder(model) }?;
    let stage: Arc<dyn StageModel> = Arc::from(imprompt_stage::open(&folder, &parameters)?);
    // SAFETY: as above.
    let config = unsafe { complete_config(model, config, &*stage) }?;
    config::check(&config, stage.signature())?;
    // SAFETY: as above.
    let metrics = unsafe { metrics(model, backend, &*stage) }?;
    let shared = state::give(Arc::new(ModelState { stage, metrics }));
    // SAFETY: as above; on success Triton keeps the state for `finalize`.
    let kept = check("ModelSetState", unsafe { sys::TRITONBACKEND_ModelSetState(model, shared) });
    if kept.is_err() {
        // SAFETY: just given, and Triton did not keep it.
        drop(unsafe { state::take::<Arc<ModelState>>(shared) });
    }
    kept
}

/// `TRITONBACKEND_ModelFinalize`.
///
/// # Safety
/// `model` is live, its instances are gone.
pub(super) unsafe fn finalize(model: *mut TRITONBACKEND_Model) -> Result<()> {
    let mut shared = ptr::null_mut();
    // SAFETY: the caller's word; only `initialize` sets the state, and it is cleared
    // before it is freed.
    unsafe {
        check("ModelState", sys::TRITONBACKEND_ModelState(model, &mut shared))?;
        check("ModelSetState", sys::TRITONBACKEND_ModelSetState(model, ptr::null_mut()))?;
        drop(state::take::<Arc<ModelState>>(shared));
    }
    Ok(())
}

/// The state that `initialize` gave.
///
/// # Safety
/// `model` is live.
pub(super) unsafe fn shared(model: *mut TRITONBACKEND_Model) -> Result<Arc<ModelState>> {
    let mut shared = ptr::null_mut();
    // SAFETY: the caller's word; a model's state is taken after its instances are gone.
    unsafe {
        check("ModelState", sys::TRITONBACKEND_ModelState(model, &mut shared))?;
        state::borrow::<Arc<ModelState>>(shared).cloned()
    }
}

unsafe fn backend_state<'a>(model: *mut TRITONBACKEND_Model) -> Result<&'a BackendState> {
    let (mut backend, mut shared) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: `model` is live by the word of `initialize`'s caller, and so is its backend.
    unsafe {
        check("ModelBackend", sys::TRITONBACKEND_ModelBackend(model, &mut backend))?;
        check("BackendState", sys::TRITONBACKEND_BackendState(backend, &mut shared))?;
        state::borrow(shared)
    }
}

unsafe fn read_config(model: *mut TRITONBACKEND_Model) -> Result<Value> {
    let mut config = ptr::null_mut();
    // SAFETY: as in `backend_state`; the message is ours to delete.
    unsafe {
        check("ModelConfig", sys::TRITONBACKEND_ModelConfig(model, CONFIG_VERSION, &mut config))?;
        let config = Message::from_raw(config);
        message::read(config.as_ptr())
    }
}

/// Completes the configuration where Triton wants that, and reads back what has become of it.
unsafe fn complete_config(
    model: *mut TRITONBACKEND_Model,
    config: Value,
    stage: &dyn StageModel,
) -> Result<Value> {
    let mut wanted = false;
    // SAFETY: as in `backend_state`.
    check("ModelAutoCompleteConfig", unsafe {
        sys::TRITONBACKEND_ModelAutoCompleteConfig(model, &mut wanted)
    })?;
    if !wanted {
        return Ok(config);
    }
    let Some(completed) = config::complete(&config, stage.signature()) else { return Ok(config) };
    let completed = Message::new(&completed)?;
    // SAFETY: as in `backend_state`; the message stays ours.
    unsafe {
        check(
            "ModelSetConfig",
            sys::TRITONBACKEND_ModelSetConfig(model, CONFIG_VERSION, completed.as_ptr()),
        )?;
        read_config(model)
    }
}

/// The folder of the model's version.
unsafe fn version_folder(model: *mut TRITONBACKEND_Model) -> Result<PathBuf> {
    let (mut artifact_type, mut location) = (0, ptr::null());
    // SAFETY: as in `backend_state`; the location lives as long as the model.
    let location = unsafe {
        check(
            "ModelRepository",
            sys::TRITONBACKEND_ModelRepository(model, &mut artifact_type, &mut location),
        )?;
        text(location)
    };
    if artifact_type != sys::TRITONBACKEND_ARTIFACT_FILESYSTEM {
        return Err(Error::unsupported("the model repository is not a folder"));
    }
    // SAFETY: as in `backend_state`.
    let version = unsafe { version(model) }?;
    Ok(Path::new(&location).join(version.to_string()))
}

unsafe fn version(model: *mut TRITONBACKEND_Model) -> Result<u64> {
    let mut version = 0;
    // SAFETY: as in `backend_state`.
    check("ModelVersion", unsafe { sys::TRITONBACKEND_ModelVersion(model, &mut version) })?;
    Ok(version)
}

unsafe fn metrics(
    model: *mut TRITONBACKEND_Model,
    backend: &BackendState,
    stage: &dyn StageModel,
) -> Result<Option<Arc<ModelMetrics>>> {
    let Some(families) = &backend.metrics else { return Ok(None) };
    let mut name = ptr::null();
    // SAFETY: as in `backend_state`; the name lives as long as the model. It labels
    // the metrics; the stage never sees it.
    let (name, version) = unsafe {
        check("ModelName", sys::TRITONBACKEND_ModelName(model, &mut name))?;
        (text(name), version(model)?)
    };
    let metrics = Arc::new(families.model(&name, version)?);
    if let Some(slots) = stage.slots() {
        slots.watch(Box::new(families.slots(&name, version, metrics.clone())?));
    }
    Ok(Some(metrics))
}
