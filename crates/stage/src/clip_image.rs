//! `clip_image`: pixel values to the L2-normalised embedding of a picture.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use imprompt_clip::ImageEncoder;
use imprompt_engine::Floats;
use imprompt_error::{Error, Result};
use imprompt_graph::ClipFacts;
use serde::{Deserialize, Serialize};

use crate::engine;
use crate::{
    Parameters, Placement, Request, Response, Signature, Stage, StageKind, StageModel, Tensor,
};

/// The stage file of `clip_image`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipImageFile {
    /// What the image graph of this folder is.
    pub facts: ClipFacts,
}

struct Shared {
    folder: PathBuf,
    facts: ClipFacts,
    parameters: Parameters,
}

pub(crate) struct ClipImageModel {
    shared: Arc<Shared>,
    signature: Signature,
}

impl ClipImageModel {
    pub(crate) fn open(
        folder: &Path,
        file: ClipImageFile,
        parameters: &Parameters,
    ) -> Result<Self> {
        engine::check(parameters)?;
        let facts = file.facts;
        let mut signature = StageKind::ClipImage.signature();
        let size = facts.image_size as i64;
        signature.set_dims("pixel_values", &[3, size, size]);
        signature.set_dims("image_embeds", &[facts.projection_dim as i64]);
        let shared = Shared { folder: folder.to_owned(), facts, parameters: parameters.clone() };
        Ok(ClipImageModel { shared: Arc::new(shared), signature })
    }
}

impl StageModel for ClipImageModel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn instance(&self, placement: Placement) -> Result<Box<dyn Stage>> {
        let shared = self.shared.clone();
        let runtime = engine::runtime(&shared.parameters, placement, &shared.folder)?;
        let options = engine::options(&shared.parameters);
        let encoder =
            ImageEncoder::open(&shared.folder, shared.facts.clone(), &*runtime, &options)?;
        Ok(Box::new(ClipImage { shared, encoder }))
    }
}

struct ClipImage {
    shared: Arc<Shared>,
    encoder: ImageEncoder,
}

impl Stage for ClipImage {
    fn execute(&mut self, requests: &[Request<'_>]) -> Vec<Result<Response>> {
        let facts = &self.shared.facts;
        let item = [3, facts.image_size, facts.image_size];
        let read: Vec<Result<Floats<'_>>> =
            requests.iter().map(|request| request.floats("pixel_values", &item)).collect();
        // One request's memory is used as it is; several are laid end to end.
        let parts: Vec<&Floats<'_>> = read.iter().flatten().collect();
        let embeds = Floats::joined(&parts).and_then(|pixel_values| {
            let batch = pixel_values.len() / item.iter().product::<usize>();
            self.encoder.encode(pixel_values, batch)
        });
        let mut taken = 0;
        read.into_iter()
            .zip(requests)
            .map(|(pixels, request)| {
                pixels.map(drop)?;
                let embeds = embeds.as_ref().map_err(Error::clone)?;
                let rows = request.batch * facts.projection_dim;
                let values = embeds[taken..][..rows].to_vec();
                taken += rows;
                let shape = vec![request.batch, facts.projection_dim];
                Ok(vec![Tensor::f32("image_embeds", shape, values)])
            })
            .collect()
    }
}
