//! `preprocess`: the bytes of a picture to the pixel values of each model.

use std::path::Path;
use std::sync::Arc;

use imprompt_error::{Cancellation, Error, Result};
use imprompt_picture::{CropRule, Limits, Preprocessor, Scratch};
use serde::{Deserialize, Serialize};

use crate::deadline::Deadline;
use crate::{
    Parameters, Placement, Request, Response, Signature, Stage, StageKind, StageModel, Tensor,
    files,
};

/// The stage file of `preprocess`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreprocessFile {
    /// The preprocessor_config.json of the CLIP, or its `preprocess_cfg` of open_clip, if the
    /// repository has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_preprocessor: Option<String>,
    /// The preprocessor_config.json of the captioner, if the repository has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caption_preprocessor: Option<String>,
}

struct Shared {
    limits: Limits,
    deadline_ms: u64,
    /// (the output, how it is made).
    outputs: Vec<(&'static str, Preprocessor)>,
}

pub(crate) struct PreprocessModel {
    shared: Arc<Shared>,
    signature: Signature,
}

impl PreprocessModel {
    pub(crate) fn open(
        folder: &Path,
        file: &PreprocessFile,
        parameters: &Parameters,
    ) -> Result<Self> {
        let mut signature = StageKind::Preprocess.signature();
        let mut outputs = Vec::new();
        for (name, config, crop_rule) in [
            ("clip_pixel_values", &file.clip_preprocessor, None),
            ("open_clip_pixel_values", &file.clip_preprocessor, Some(CropRule::Torchvision)),
            ("caption_pixel_values", &file.caption_preprocessor, None),
        ] {
            match config {
                Some(config) => {
                    let mut preprocessor =
                        Preprocessor::from_json(files::text(folder, config)?.as_bytes())
                            .map_err(|error| error.context(config))?;
                    if let Some(rule) = crop_rule {
                        preprocessor = preprocessor.with_crop_rule(rule);
                    }
                    let (height, width) = (preprocessor.height(), preprocessor.width());
                    signature.set_dims(name, &[3, height as i64, width as i64]);
                    outputs.push((name, preprocessor));
                }
                None => signature.outputs.retain(|spec| spec.name != name),
            }
        }
        if outputs.is_empty() {
            return Err(Error::bad_model("stage.json: a preprocess stage needs a preprocessor"));
        }
        let limits = Limits {
            encoded_bytes: parameters.max_image_bytes,
            side: parameters.max_image_side as usize,
            pixels: parameters.max_image_pixels as usize,
        };
        let shared = Shared { limits, deadline_ms: parameters.deadline_ms, outputs };
        Ok(PreprocessModel { shared: Arc::new(shared), signature })
    }
}

impl StageModel for PreprocessModel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn instance(&self, _placement: Placement) -> Result<Box<dyn Stage>> {
        Ok(Box::new(Preprocess { shared: self.shared.clone(), scratch: Scratch::default() }))
    }
}

struct Preprocess {
    shared: Arc<Shared>,
    scratch: Scratch,
}

impl Stage for Preprocess {
    fn execute(&mut self, requests: &[Request<'_>]) -> Vec<Result<Response>> {
        requests.iter().map(|request| self.answer(request)).collect()
    }
}

impl Preprocess {
    fn answer(&mut self, request: &Request<'_>) -> Result<Response> {
        let pictures = request.bytes("image")?;
        let shared = &*self.shared;
        let deadline = Deadline::new(request.cancellation, shared.deadline_ms);
        let wanted: Vec<_> =
            shared.outputs.iter().filter(|(name, _)| request.wants(name)).collect();
        let mut values: Vec<Vec<f32>> = wanted
            .iter()
            .map(|(_, preprocessor)| {
                files::zeros(request.batch * preprocessor.output_len(), "pixel values")
            })
            .collect::<Result<_>>()?;
        for (item, picture) in pictures.iter().enumerate() {
            deadline.check()?;
            // Its messages name the input themselves.
            let image = imprompt_picture::decode(picture, &shared.limits)?;
            for ((_, preprocessor), values) in wanted.iter().zip(&mut values) {
                let size = preprocessor.output_len();
                let out = &mut values[item * size..][..size];
                preprocessor.run(&image, &mut self.scratch, out)?;
            }
        }
        Ok(wanted
            .iter()
            .zip(values)
            .map(|((name, preprocessor), values)| {
                let shape = vec![request.batch, 3, preprocessor.height(), preprocessor.width()];
                Tensor::f32(*name, shape, values)
            })
            .collect())
    }
}
