//! Counters beside Triton's own, on the same page.

use std::ffi::{CStr, CString, c_void};
use std::ptr::{self, NonNull};

use imprompt_error::{Error, Kind, Result};

use super::bindings::{self as sys, TRITONSERVER_Metric, TRITONSERVER_MetricFamily};
use super::error::check;

/// Every kind, with its label.
const KINDS: [(Kind, &str); 9] = [
    (Kind::InvalidInput, "invalid_input"),
    (Kind::NotFound, "not_found"),
    (Kind::Unsupported, "unsupported"),
    (Kind::Unavailable, "unavailable"),
    (Kind::Cancelled, "cancelled"),
    (Kind::DeadlineExceeded, "deadline_exceeded"),
    (Kind::OutOfMemory, "out_of_memory"),
    (Kind::BadModel, "bad_model"),
    (Kind::Internal, "internal"),
];

/// The families of this backend; deleted after all counters.
pub(super) struct Families {
    errors: Family,
    restarts: Family,
}

impl Families {
    /// Registers the families.
    pub(super) fn new() -> Result<Self> {
        Ok(Families {
            errors: Family::new(
                c"imprompt_request_errors",
                c"Requests answered with an error, by its kind",
            )?,
            restarts: Family::new(
                c"imprompt_worker_restarts",
                c"Times a panic cost a batch and its worker was built again",
            )?,
        })
    }

    /// The counters of one model.
    pub(super) fn model(&self, model: &str, version: u64) -> Result<ModelMetrics> {
        let version = version.to_string();
        let model = [(c"model", model), (c"version", version.as_str())];
        let error = |(kind, label): (Kind, &str)| {
            let labels = [model[0], model[1], (c"kind", label)];
            Ok((kind, self.errors.counter(&labels)?))
        };
        let errors = KINDS.into_iter().map(error).collect::<Result<_>>()?;
        Ok(ModelMetrics { errors, restarts: self.restarts.counter(&model)? })
    }
}

/// One model's counters.
pub(super) struct ModelMetrics {
    errors: Vec<(Kind, Counter)>,
    restarts: Counter,
}

impl ModelMetrics {
    /// Counts a request that is answered with `error`.
    pub(super) fn count_error(&self, error: &Error) {
        if let Some((_, counter)) = self.errors.iter().find(|(kind, _)| *kind == error.kind()) {
            counter.increment();
        }
    }

    /// Counts a worker that had to be built again.
    pub(super) fn count_restart(&self) {
        self.restarts.increment();
    }
}

struct Family(NonNull<TRITONSERVER_MetricFamily>);

// SAFETY: Triton's metrics are for any thread.
unsafe impl Send for Family {}
// SAFETY: as above.
unsafe impl Sync for Family {}

impl Family {
    fn new(name: &CStr, description: &CStr) -> Result<Self> {
        let mut family = ptr::null_mut();
        // SAFETY: Triton copies both texts.
        check("MetricFamilyNew", unsafe {
            sys::TRITONSERVER_MetricFamilyNew(
                &mut family,
                sys::TRITONSERVER_METRIC_KIND_COUNTER,
                name.as_ptr(),
                description.as_ptr(),
            )
        })?;
        NonNull::new(family).map(Family).ok_or_else(|| Error::internal("MetricFamilyNew: none"))
    }

    fn counter(&self, labels: &[(&CStr, &str)]) -> Result<Counter> {
        let labels: Vec<Label> =
            labels.iter().map(|(name, value)| Label::new(name, value)).collect::<Result<_>>()?;
        let mut pointers: Vec<_> =
            labels.iter().map(|label| label.0.as_ptr().cast_const()).collect();
        let mut metric = ptr::null_mut();
        // SAFETY: the family is live; Triton copies the labels.
        check("MetricNew", unsafe {
            sys::TRITONSERVER_MetricNew(
                &mut metric,
                self.0.as_ptr(),
                pointers.as_mut_ptr(),
                pointers.len() as u64,
            )
        })?;
        NonNull::new(metric).map(Counter).ok_or_else(|| Error::internal("MetricNew: none"))
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        // SAFETY: deleted only here; the backend outlives its models, whose counters are gone.
        let _ = check("MetricFamilyDelete", unsafe {
            sys::TRITONSERVER_MetricFamilyDelete(self.0.as_ptr())
        });
    }
}

struct Counter(NonNull<TRITONSERVER_Metric>);

// SAFETY: Triton's metrics are for any thread.
unsafe impl Send for Counter {}
// SAFETY: as above.
unsafe impl Sync for Counter {}

impl Counter {
    fn increment(&self) {
        // SAFETY: live until dropped. A lost count is not worth a request.
        let _ = check("MetricIncrement", unsafe {
            sys::TRITONSERVER_MetricIncrement(self.0.as_ptr(), 1.0)
        });
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // SAFETY: deleted only here, before its family.
        let _ = check("MetricDelete", unsafe { sys::TRITONSERVER_MetricDelete(self.0.as_ptr()) });
    }
}

/// A label, which Triton only borrows.
struct Label(NonNull<sys::TRITONSERVER_Parameter>);

impl Label {
    fn new(name: &CStr, value: &str) -> Result<Self> {
        let value = CString::new(value).map_err(|_| Error::internal("a label has a NUL"))?;
        // SAFETY: Triton copies name and value, which is a C string as the type says.
        let label = unsafe {
            sys::TRITONSERVER_ParameterNew(
                name.as_ptr(),
                sys::TRITONSERVER_PARAMETER_STRING,
                value.as_ptr().cast::<c_void>(),
            )
        };
        NonNull::new(label).map(Label).ok_or_else(|| Error::internal("ParameterNew: none"))
    }
}

impl Drop for Label {
    fn drop(&mut self) {
        // SAFETY: deleted only here.
        unsafe { sys::TRITONSERVER_ParameterDelete(self.0.as_ptr()) };
    }
}
