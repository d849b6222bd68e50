//! A captioner that several threads ask at a time.

use std::sync::Arc;

use imprompt_error::Result;

use crate::admission::{Admission, Newcomer};
use crate::captioner::{CaptionRequest, Captioner, Generated, Tell};
use crate::decode_loop::{DecodeLoop, Member, Watch};

/// A [`Captioner`] on a thread of its own. Pictures of all callers are decoded side by side: each
/// joins at the next step for which there is a slot, and leaves when it has its caption. Its pixels
/// are encoded when it joins.
///
/// A panic of the captioner costs those under way, and it is opened again.
#[derive(Debug)]
pub struct SharedCaptioner {
    admission: Arc<Admission>,
    decode_loop: DecodeLoop<Newcomer>,
}

impl SharedCaptioner {
    /// Opens a captioner with `open`, now and after a panic. Besides as many captions as it has
    /// slots, `max_waiting` may wait.
    ///
    /// # Errors
    /// Those of `open`; `Unavailable` when there is no thread to be had.
    pub fn open(
        mut open: impl FnMut() -> Result<Captioner> + Send + 'static,
        max_waiting: usize,
        watch: Arc<dyn Watch>,
    ) -> Result<Self> {
        let Captioner { admission, engines } = open()?;
        let limits = admission.limits.clone();
        let reopen = move || Ok(open()?.engines);
        let decode_loop = DecodeLoop::start(engines, limits, reopen, max_waiting, watch)?;
        Ok(SharedCaptioner { admission, decode_loop })
    }

    /// Captions a batch beside those of other callers, as [`Captioner::caption_streaming`] does.
    /// `owners` says for each member whose it is: those of one owner are let in together or, if one
    /// of them is refused or there is no room for all, not at all. Without `tell` only outcomes
    /// are reported.
    ///
    /// # Errors
    /// Of a member: as [`Captioner::caption`]; `Unavailable` when too many captions wait;
    /// `Internal` after a panic of the captioner.
    pub fn caption(
        &self,
        batch: &[CaptionRequest<'_>],
        owners: &[usize],
        tell: Option<&mut Tell<'_>>,
    ) -> Vec<Result<Generated>> {
        let members = batch.iter().zip(owners).map(|(request, owner)| Member {
            owner: *owner,
            sequence: self.admission.sequence(request),
            cancel: request.cancel,
        });
        self.decode_loop.generate(members.collect(), tell)
    }
}
