//! `caption_vision`: pixel values to what a `caption_decoder` reads of a picture. The two are
//! a `captioner` in halves: each has instances, batches and a machine's memory of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use imprompt_caption::PictureEncoder;
use imprompt_error::{Error, Result};
use imprompt_graph::CaptionFacts;
use serde::{Deserialize, Serialize};

use crate::captioner::KnownCaptions;
use crate::engine;
use crate::{
    Parameters, Placement, Request, Response, Signature, Stage, StageKind, StageModel, Tensor,
};

/// The stage file of `caption_vision`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptionVisionFile {
    /// What the graphs of this folder are.
    pub facts: CaptionFacts,
}

struct Shared {
    folder: PathBuf,
    facts: CaptionFacts,
    parameters: Parameters,
}

pub(crate) struct CaptionVisionModel {
    shared: Arc<Shared>,
    signature: Signature,
}

impl CaptionVisionModel {
    pub(crate) fn open(
        folder: &Path,
        file: CaptionVisionFile,
        parameters: &Parameters,
    ) -> Result<Self> {
        engine::check(parameters)?;
        let facts = file.facts;
        let mut signature = StageKind::CaptionVision.signature();
        let size = facts.image_size as i64;
        signature.set_dims("pixel_values", &[3, size, size]);
        signature.set_dims("picture_embeds", &facts.encoded_shape().map(|size| size as i64));
        let shared = Shared { folder: folder.to_owned(), facts, parameters: parameters.clone() };
        Ok(CaptionVisionModel { shared: Arc::new(shared), signature })
    }
}

impl StageModel for CaptionVisionModel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn instance(&self, placement: Placement) -> Result<Box<dyn Stage>> {
        let shared = self.shared.clone();
        let runtime = engine::runtime(&shared.parameters, placement, &shared.folder)?;
        let options = engine::options(&shared.parameters);
        let encoder = PictureEncoder::open(&shared.folder, &shared.facts, &*runtime, &options)?;
        Ok(Box::new(CaptionVision { shared, encoder }))
    }
}

struct CaptionVision {
    shared: Arc<Shared>,
    encoder: PictureEncoder,
}

impl Stage for CaptionVision {
    fn execute(&mut self, requests: &[Request<'_>]) -> Vec<Result<Response>> {
        let size = self.shared.facts.image_size;
        let len = 3 * size * size;
        let read: Vec<Result<(&[f32], Vec<bool>)>> =
            requests.iter().map(|request| self.shared.read(request, len)).collect();
        // The pictures of all requests that need a caption are encoded together.
        let mut pixel_values = Vec::new();
        for (pictures, wanted) in read.iter().flatten() {
            for (picture, wanted) in pictures.chunks_exact(len).zip(wanted) {
                if *wanted {
                    pixel_values.extend_from_slice(picture);
                }
            }
        }
        let embeds = match pixel_values.len() / len {
            0 => Ok(Vec::new()),
            count => self.encode(count, &pixel_values),
        };
        let [positions, width] = self.shared.facts.encoded_shape();
        let mut taken = 0;
        read.into_iter()
            .zip(requests)
            .map(|(read, request)| {
                let (_, wanted) = read?;
                let embeds = embeds.as_ref().map_err(Error::clone)?;
                let each = positions * width;
                // Nobody reads the zeros of the others.
                let mut values = vec![0.0; request.batch * each];
                let rows = values.chunks_exact_mut(each).zip(wanted).filter(|(_, wanted)| *wanted);
                for (row, _) in rows {
                    row.copy_from_slice(&embeds[taken..][..each]);
                    taken += each;
                }
                let shape = vec![request.batch, positions, width];
                Ok(vec![Tensor::f32("picture_embeds", shape, values)])
            })
            .collect()
    }
}

impl CaptionVision {
    fn encode(&mut self, pictures: usize, pixel_values: &[f32]) -> Result<Vec<f32>> {
        Ok(self.encoder.encode(pictures, pixel_values)?.as_slice::<f32>()?.to_vec())
    }
}

impl Shared {
    /// The pixels of a request, `len` a picture, and which pictures need a caption.
    fn read<'a>(&self, request: &'a Request<'_>, len: usize) -> Result<(&'a [f32], Vec<bool>)> {
        request.cancellation.check()?;
        let pixel_values = request.f32("pixel_values", len)?;
        let known = KnownCaptions::new(request, self.parameters.max_text_bytes)?;
        let wanted = (0..request.batch).map(|item| Ok(known.of(item)?.is_none()));
        Ok((pixel_values, wanted.collect::<Result<_>>()?))
    }
}
