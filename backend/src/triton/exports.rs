//! The entry points: the only names this library exports. Each does nothing but
//! call its function under the guard.

use super::bindings::{
    TRITONBACKEND_Backend, TRITONBACKEND_BackendAttribute, TRITONBACKEND_Model,
    TRITONBACKEND_ModelInstance, TRITONBACKEND_Request, TRITONSERVER_Error,
};
use super::guard::guard;
use super::{backend, instance, model};

/// Called once, when the library is opened.
///
/// # Safety
/// For Triton alone; so for all below.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_Initialize(
    backend: *mut TRITONBACKEND_Backend,
) -> *mut TRITONSERVER_Error {
    // SAFETY: Triton gives a live backend.
    guard("Initialize", || unsafe { backend::initialize(backend) })
}

/// Called once, after all models are gone.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_Finalize(
    backend: *mut TRITONBACKEND_Backend,
) -> *mut TRITONSERVER_Error {
    // SAFETY: Triton gives a live backend.
    guard("Finalize", || unsafe { backend::finalize(backend) })
}

/// Asks for what holds where a model's configuration does not say.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_GetBackendAttribute(
    _backend: *mut TRITONBACKEND_Backend,
    attributes: *mut TRITONBACKEND_BackendAttribute,
) -> *mut TRITONSERVER_Error {
    // SAFETY: Triton gives live attributes.
    guard("GetBackendAttribute", || unsafe { backend::describe(attributes) })
}

/// Called once a model's version, for several at once.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInitialize(
    model: *mut TRITONBACKEND_Model,
) -> *mut TRITONSERVER_Error {
    // SAFETY: Triton gives a live model.
    guard("ModelInitialize", || unsafe { model::initialize(model) })
}

/// Called once a model's version, after its instances are gone.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelFinalize(
    model: *mut TRITONBACKEND_Model,
) -> *mut TRITONSERVER_Error {
    // SAFETY: Triton gives a live model.
    guard("ModelFinalize", || unsafe { model::finalize(model) })
}

/// Called once an instance.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInstanceInitialize(
    instance: *mut TRITONBACKEND_ModelInstance,
) -> *mut TRITONSERVER_Error {
    // SAFETY: Triton gives a live instance.
    guard("ModelInstanceInitialize", || unsafe { instance::initialize(instance) })
}

/// Called once an instance, when it executes no more.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInstanceFinalize(
    instance: *mut TRITONBACKEND_ModelInstance,
) -> *mut TRITONSERVER_Error {
    // SAFETY: Triton gives a live instance.
    guard("ModelInstanceFinalize", || unsafe { instance::finalize(instance) })
}

/// Executes a batch; never twice at once for one instance.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInstanceExecute(
    instance: *mut TRITONBACKEND_ModelInstance,
    requests: *mut *mut TRITONBACKEND_Request,
    request_count: u32,
) -> *mut TRITONSERVER_Error {
    // SAFETY: Triton gives a live instance and an array of that many live requests.
    guard("ModelInstanceExecute", || unsafe {
        instance::execute(instance, requests, request_count)
    })
}
