//! An instance: one worker that executes one batch at a time.

use std::collections::VecDeque;
use std::ptr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use imprompt_error::{Cancellation, Result};
use imprompt_host::Worker;
use imprompt_stage::{self as stage, Gpu, GpuStream, Placement, Sink as _};

use super::bindings::{self as sys, TRITONBACKEND_ModelInstance, TRITONBACKEND_Request};
use super::error::check;
use super::model::{self, ModelState};
use super::request::Request;
use super::response::Response;
use super::state;
use super::statistics::{Times, now};

struct InstanceState {
    model: Arc<ModelState>,
    worker: Worker,
    /// By which inputs that lie on the instance's GPU are taken over there.
    inbox: Option<GpuStream>,
}

/// `TRITONBACKEND_ModelInstanceInitialize`.
///
/// # Safety
/// `instance` is live.
pub(super) unsafe fn initialize(instance: *mut TRITONBACKEND_ModelInstance) -> Result<()> {
    let (mut kind, mut device, mut of) = (0, 0, ptr::null_mut());
    // SAFETY: the caller's word.
    let model = unsafe {
        check("ModelInstanceKind", sys::TRITONBACKEND_ModelInstanceKind(instance, &mut kind))?;
        let ordinal = sys::TRITONBACKEND_ModelInstanceDeviceId(instance, &mut device);
        check("ModelInstanceDeviceId", ordinal)?;
        check("ModelInstanceModel", sys::TRITONBACKEND_ModelInstanceModel(instance, &mut of))?;
        model::shared(of)?
    };
    let placement = match kind {
        sys::TRITONSERVER_INSTANCEGROUPKIND_GPU => {
            Placement::Gpu(usize::try_from(device).unwrap_or(0))
        }
        _ => Placement::Cpu,
    };
    let worker = Worker::new(Arc::clone(&model.stage), placement)?;
    let inbox = match placement {
        Placement::Gpu(ordinal) => Some(Gpu::open(ordinal)?.stream()?),
        Placement::Cpu => None,
    };
    let own = state::give(InstanceState { model, worker, inbox });
    // SAFETY: the caller's word; on success Triton keeps the state for `finalize`.
    let kept = check("ModelInstanceSetState", unsafe {
        sys::TRITONBACKEND_ModelInstanceSetState(instance, own)
    });
    if kept.is_err() {
        // SAFETY: just given, and Triton did not keep it.
        drop(unsafe { state::take::<InstanceState>(own) });
    }
    kept
}

/// `TRITONBACKEND_ModelInstanceFinalize`.
///
/// # Safety
/// `instance` is live and executes nothing.
pub(super) unsafe fn finalize(instance: *mut TRITONBACKEND_ModelInstance) -> Result<()> {
    let mut own = ptr::null_mut();
    // SAFETY: the caller's word; only `initialize` sets the state, and it is cleared
    // before it is freed.
    unsafe {
        check("ModelInstanceState", sys::TRITONBACKEND_ModelInstanceState(instance, &mut own))?;
        check(
            "ModelInstanceSetState",
            sys::TRITONBACKEND_ModelInstanceSetState(instance, ptr::null_mut()),
        )?;
        drop(state::take::<InstanceState>(own));
    }
    Ok(())
}

/// `TRITONBACKEND_ModelInstanceExecute`. An error leaves all requests to Triton;
/// once a request has been taken over there is none, whatever happens.
///
/// # Safety
/// `instance` is live, with no other execution on it; `requests` has `count` live requests.
pub(super) unsafe fn execute(
    instance: *mut TRITONBACKEND_ModelInstance,
    requests: *mut *mut TRITONBACKEND_Request,
    count: u32,
) -> Result<()> {
    let times = Times::begin();
    let mut own = ptr::null_mut();
    // SAFETY: the caller's word: nobody else uses the state during this call.
    let own: &mut InstanceState = unsafe {
        check("ModelInstanceState", sys::TRITONBACKEND_ModelInstanceState(instance, &mut own))?;
        state::borrow_mut(own)?
    };
    if requests.is_null() || count == 0 {
        return Ok(());
    }
    // SAFETY: the caller's word.
    let pointers = unsafe { std::slice::from_raw_parts(requests, count as usize) };
    // SAFETY: as above; each is taken over once.
    let requests: Vec<Request> =
        pointers.iter().filter_map(|&raw| unsafe { Request::new(raw, instance) }).collect();
    // From here on the requests are ours. A panic drops, and so answers, what is left of them.
    let executed = imprompt_host::catch("execute", || {
        if own.model.stage.signature().decoupled {
            own.stream(instance, requests, times);
        } else {
            own.execute(instance, requests, times);
        }
        Ok(())
    });
    if let Err(error) = executed {
        tracing::error!("a batch was given up: {error}");
    }
    Ok(())
}

/// What became of one request: its outputs, or why there are none.
type Answer = Result<Vec<stage::Tensor<'static>>>;

impl InstanceState {
    fn execute(
        &mut self,
        instance: *mut TRITONBACKEND_ModelInstance,
        requests: Vec<Request>,
        mut times: Times,
    ) {
        let (answers, batch_size) = self.compute(&requests, &mut times);
        let responses: Vec<Result<Response>> = requests
            .iter()
            .zip(answers)
            .map(|(request, answer)| answer.and_then(|tensors| Response::of(request, &tensors)))
            .collect();
        times.exec_end = now();
        report_batch(instance, batch_size, &times);
        for (request, response) in requests.into_iter().zip(responses) {
            if let (Err(error), Some(metrics)) = (&response, &self.model.metrics) {
                metrics.count_error(error);
            }
            request.answer(response, &times);
        }
    }

    /// Executes a batch of a decoupled model. Responses are sent as the stage makes them, and
    /// a request has its last as soon as that is known; they are released together.
    fn stream(
        &mut self,
        instance: *mut TRITONBACKEND_ModelInstance,
        requests: Vec<Request>,
        mut times: Times,
    ) {
        let gathered: Vec<_> = requests.iter().map(|request| self.gather(request)).collect();
        times.compute_start = now();
        let (mut open, mut batch) = (Vec::new(), Vec::new());
        for (request, gathered) in requests.iter().zip(gathered) {
            match gathered {
                Ok(gathered) => {
                    open.push(request);
                    batch.push(gathered);
                }
                Err(error) => Sending::new(&[request], times, &self.model).end(0, Err(error)),
            }
        }
        let batch_size = batch.iter().map(|request| request.batch as u64).sum();
        if !batch.is_empty() {
            let mut sending = Sending::new(&open, times, &self.model);
            let rebuilt = self.worker.stream(&batch, &mut sending);
            if rebuilt && let Some(metrics) = &self.model.metrics {
                metrics.count_restart();
            }
        }
        times.compute_end = now();
        times.exec_end = times.compute_end;
        report_batch(instance, batch_size, &times);
    }

    /// One answer a request, and the items that the stage executed.
    fn compute(&mut self, requests: &[Request], times: &mut Times) -> (Vec<Answer>, u64) {
        let mut answers: Vec<Option<Answer>> = Vec::with_capacity(requests.len());
        let mut batch = Vec::with_capacity(requests.len());
        for request in requests {
            match self.gather(request) {
                Ok(gathered) => {
                    answers.push(None);
                    batch.push(gathered);
                }
                Err(error) => answers.push(Some(Err(error))),
            }
        }
        let batch_size = batch.iter().map(|request| request.batch as u64).sum();
        times.compute_start = now();
        let mut computed = Vec::new();
        if !batch.is_empty() {
            let outcome = self.worker.execute(&batch);
            if outcome.rebuilt
                && let Some(metrics) = &self.model.metrics
            {
                metrics.count_restart();
            }
            computed = outcome.results;
        }
        times.compute_end = now();
        let mut computed = computed.into_iter();
        let lost = || Err(imprompt_error::Error::internal("the request has no result"));
        let answers = answers
            .into_iter()
            .map(|answer| answer.or_else(|| computed.next()).unwrap_or_else(lost));
        (answers.collect(), batch_size)
    }

    fn gather<'a>(&self, request: &'a Request) -> Result<stage::Request<'a>> {
        request.check()?;
        let inputs = request.inputs(self.inbox.as_ref())?;
        let (batch, inputs) = imprompt_host::gather(inputs, self.model.stage.signature())?;
        let outputs = Some(request.outputs()?);
        Ok(stage::Request { batch, inputs, outputs, cancellation: request })
    }
}

/// Reports an execution of `batch_size` items, if there were any.
fn report_batch(instance: *mut TRITONBACKEND_ModelInstance, batch_size: u64, times: &Times) {
    if batch_size == 0 {
        return;
    }
    // SAFETY: `instance` executes, and so is live.
    if let Err(error) = unsafe { times.report_batch(instance, batch_size) } {
        tracing::error!("a batch could not be reported: {error}");
    }
}

/// How long the last response of a cancelled stream waits. In Triton before 2.57 a client that
/// leaves a gRPC stream brings the server down, or hangs it, if that response comes before the
/// notice that the piece under way was not written: the stream's state is then released twice
/// (triton-inference-server/server, pull requests 7840 and 8078).
const LEAVING: Duration = Duration::from_millis(50);

/// Sends the responses of a decoupled stage.
struct Sending<'a> {
    requests: &'a [&'a Request],
    /// The moments that are known so far.
    times: Times,
    model: &'a ModelState,
    /// Cancelled requests, in the order of the moments at which they end.
    leaving: VecDeque<(Instant, &'a Request, Answer)>,
}

impl<'a> Sending<'a> {
    fn new(requests: &'a [&'a Request], times: Times, model: &'a ModelState) -> Self {
        Sending { requests, times, model, leaving: VecDeque::new() }
    }

    fn answer(&self, request: &Request, outcome: Answer) {
        let mut times = Times { compute_end: now(), ..self.times };
        let response = outcome.and_then(|tensors| Response::of(request, &tensors));
        if let (Err(error), Some(metrics)) = (&response, &self.model.metrics) {
            metrics.count_error(error);
        }
        times.exec_end = now();
        request.answer(response, &times);
    }

    /// Ends those whose moment has come.
    fn part(&mut self) {
        while self.leaving.front().is_some_and(|(due, ..)| *due <= Instant::now()) {
            self.part_with_first();
        }
    }

    fn part_with_first(&mut self) {
        if let Some((due, request, outcome)) = self.leaving.pop_front() {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            self.answer(request, outcome);
        }
    }
}

impl stage::Sink for Sending<'_> {
    fn send(&mut self, request: usize, response: stage::Response) -> Result<()> {
        self.part();
        self.requests[request].send(&response)
    }

    fn end(&mut self, request: usize, outcome: Answer) {
        self.part();
        let request = self.requests[request];
        if request.is_cancelled() {
            self.leaving.push_back((Instant::now() + LEAVING, request, outcome));
        } else {
            self.answer(request, outcome);
        }
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        while !self.leaving.is_empty() {
            self.part_with_first();
        }
    }
}
