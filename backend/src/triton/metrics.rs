//! Counters and gauges beside Triton's own, on the same page.

use std::ffi::{CStr, CString, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use imprompt_error::{Error, Kind, Result};
use imprompt_stage::{Load, Watch};

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

/// The families of this backend; deleted after all metrics.
pub(super) struct Families {
    errors: Family<Counter>,
    restarts: Family<Counter>,
    slots_in_use: Family<Gauge>,
    slots: Family<Gauge>,
    waiting: Family<Gauge>,
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
            slots_in_use: Family::new(
                c"imprompt_caption_slots_in_use",
                c"Slots of a captioner's cache that captions under way have",
            )?,
            slots: Family::new(c"imprompt_caption_slots", c"Slots of a captioner's cache")?,
            waiting: Family::new(
                c"imprompt_captions_waiting",
                c"Captions that wait for slots of a captioner's cache",
            )?,
        })
    }

    /// The counters of one model.
    pub(super) fn model(&self, model: &str, version: u64) -> Result<ModelMetrics> {
        let version = version.to_string();
        let model = labels(model, &version);
        let error = |(kind, label): (Kind, &str)| {
            let labels = [model[0], model[1], (c"kind", label)];
            Ok((kind, self.errors.metric(&labels)?))
        };
        let errors = KINDS.into_iter().map(error).collect::<Result<_>>()?;
        Ok(ModelMetrics { errors, restarts: self.restarts.metric(&model)? })
    }

    /// The gauges of one model whose instances share slots; `metrics` are its counters.
    pub(super) fn slots(
        &self,
        model: &str,
        version: u64,
        metrics: Arc<ModelMetrics>,
    ) -> Result<SlotMetrics> {
        let version = version.to_string();
        let model = labels(model, &version);
        Ok(SlotMetrics {
            in_use: self.slots_in_use.metric(&model)?,
            all: self.slots.metric(&model)?,
            waiting: self.waiting.metric(&model)?,
            metrics,
        })
    }
}

fn labels<'a>(model: &'a str, version: &'a str) -> [(&'static CStr, &'a str); 2] {
    [(c"model", model), (c"version", version)]
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

/// The gauges of the slots that one model's instances share.
pub(super) struct SlotMetrics {
    in_use: Gauge,
    all: Gauge,
    waiting: Gauge,
    metrics: Arc<ModelMetrics>,
}

impl Watch for SlotMetrics {
    fn load(&self, load: Load) {
        self.in_use.set(load.slots_in_use);
        self.all.set(load.slots);
        self.waiting.set(load.waiting);
    }

    fn restarted(&self) {
        self.metrics.count_restart();
    }
}

/// What kinds of metric there are.
trait MetricKind {
    const KIND: sys::TRITONSERVER_MetricKind;

    fn of(metric: Metric) -> Self;
}

/// Metrics of one name, all of kind `M`.
struct Family<M>(NonNull<TRITONSERVER_MetricFamily>, PhantomData<M>);

// SAFETY: Triton's metrics are for any thread.
unsafe impl<M> Send for Family<M> {}
// SAFETY: as above.
unsafe impl<M> Sync for Family<M> {}

impl<M: MetricKind> Family<M> {
    fn new(name: &CStr, description: &CStr) -> Result<Self> {
        let mut family = ptr::null_mut();
        // SAFETY: Triton copies both texts.
        check("MetricFamilyNew", unsafe {
            sys::TRITONSERVER_MetricFamilyNew(
                &mut family,
                M::KIND,
                name.as_ptr(),
                description.as_ptr(),
            )
        })?;
        NonNull::new(family)
            .map(|family| Family(family, PhantomData))
            .ok_or_else(|| Error::internal("MetricFamilyNew: none"))
    }

    fn metric(&self, labels: &[(&CStr, &str)]) -> Result<M> {
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
        NonNull::new(metric)
            .map(|metric| M::of(Metric(metric)))
            .ok_or_else(|| Error::internal("MetricNew: none"))
    }
}

impl<M> Drop for Family<M> {
    fn drop(&mut self) {
        // SAFETY: deleted only here; the backend outlives its models, whose metrics are gone.
        let _ = check("MetricFamilyDelete", unsafe {
            sys::TRITONSERVER_MetricFamilyDelete(self.0.as_ptr())
        });
    }
}

struct Metric(NonNull<TRITONSERVER_Metric>);

// SAFETY: Triton's metrics are for any thread.
unsafe impl Send for Metric {}
// SAFETY: as above.
unsafe impl Sync for Metric {}

impl Drop for Metric {
    fn drop(&mut self) {
        // SAFETY: deleted only here, before its family.
        let _ = check("MetricDelete", unsafe { sys::TRITONSERVER_MetricDelete(self.0.as_ptr()) });
    }
}

struct Counter(Metric);

impl MetricKind for Counter {
    const KIND: sys::TRITONSERVER_MetricKind = sys::TRITONSERVER_METRIC_KIND_COUNTER;

    fn of(metric: Metric) -> Self {
        Counter(metric)
    }
}

impl Counter {
    fn increment(&self) {
        // SAFETY: live until dropped. A lost count is not worth a request.
        let _ = check("MetricIncrement", unsafe {
            sys::TRITONSERVER_MetricIncrement(self.0.0.as_ptr(), 1.0)
        });
    }
}

struct Gauge(Metric);

impl MetricKind for Gauge {
    const KIND: sys::TRITONSERVER_MetricKind = sys::TRITONSERVER_METRIC_KIND_GAUGE;

    fn of(metric: Metric) -> Self {
        Gauge(metric)
    }
}

impl Gauge {
    fn set(&self, value: usize) {
        // SAFETY: live until dropped. A lost value is not worth a request.
        let _ = check("MetricSet", unsafe {
            sys::TRITONSERVER_MetricSet(self.0.0.as_ptr(), value as f64)
        });
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
