//! `caption_vision`: pixel values to what a `caption_decoder` reads of a picture. The two are
//! a `captioner` in halves: each has instances, batches and a machine's memory of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use imprompt_caption::PictureEncoder;
use imprompt_engine::{Floats, Held as _, HeldRows};
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
        let read: Vec<Result<Asked<'_>>> =
            requests.iter().map(|request| self.shared.read(request)).collect();
        let encoded = self.encode(&read);
        let mut taken = 0;
        read.into_iter()
            .zip(requests)
            .map(|(read, request)| {
                let Asked { wanted, .. } = read?;
                let count = wanted.iter().filter(|wanted| **wanted).count();
                let encoded = encoded.as_ref().map_err(Error::clone)?;
                let [positions, width] = self.shared.facts.encoded_shape();
                let each = positions * width;
                // Nothing was encoded where nobody wants it.
                let own = encoded
                    .as_ref()
                    .map(|rows| rows.part(taken * each, vec![count, positions, width]));
                taken += count;
                let own = own.transpose()?;
                if count == request.batch
                    && let Some(own) = own
                {
                    // Left where they are: a decoder on the same GPU reads them there.
                    return Ok(vec![Tensor::held("picture_embeds", own)]);
                }
                // Nobody reads the zeros of the others.
                let mut values = vec![0.0; request.batch * each];
                if let Some(own) = own {
                    let found = own.to_host()?.as_slice::<f32>()?.chunks_exact(each);
                    let places = values.chunks_exact_mut(each).zip(wanted);
                    for ((place, _), found) in places.filter(|(_, wanted)| *wanted).zip(found) {
                        place.copy_from_slice(found);
                    }
                }
                let shape = vec![request.batch, positions, width];
                Ok(vec![Tensor::f32("picture_embeds", shape, values)])
            })
            .collect()
    }
}

/// What a request asks for.
struct Asked<'a> {
    pixel_values: Floats<'a>,
    /// Which of its pictures need a caption.
    wanted: Vec<bool>,
}

impl CaptionVision {
    /// The pictures of all requests that need a caption, encoded together; nothing where none does.
    fn encode(&mut self, read: &[Result<Asked<'_>>]) -> Result<Option<HeldRows>> {
        let item = self.shared.item();
        let len = item.iter().product::<usize>();
        let mut pictures: Vec<Floats<'_>> = Vec::new();
        for Asked { pixel_values, wanted } in read.iter().flatten() {
            // Neighbours go together, so that a request's memory is used as it is.
            let mut start = 0;
            for group in wanted.chunk_by(|a, b| a == b) {
                if group[0] {
                    let shape = [&[group.len()], &item[..]].concat();
                    pictures.push(pixel_values.part(start * len, &shape)?);
                }
                start += group.len();
            }
        }
        let parts: Vec<&Floats<'_>> = pictures.iter().collect();
        let pixel_values = Floats::joined(&parts)?;
        match pixel_values.len() / len {
            0 => Ok(None),
            count => HeldRows::new(self.encoder.encode(count, pixel_values)?).map(Some),
        }
    }
}

impl Shared {
    /// The shape of a picture.
    fn item(&self) -> [usize; 3] {
        [3, self.facts.image_size, self.facts.image_size]
    }

    fn read<'a>(&self, request: &'a Request<'_>) -> Result<Asked<'a>> {
        request.cancellation.check()?;
        let pixel_values = request.floats("pixel_values", &self.item())?;
        let known = KnownCaptions::new(request, self.parameters.max_text_bytes)?;
        let wanted = (0..request.batch).map(|item| Ok(known.of(item)?.is_none()));
        Ok(Asked { pixel_values, wanted: wanted.collect::<Result<_>>()? })
    }
}
