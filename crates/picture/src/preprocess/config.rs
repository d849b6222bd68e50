//! `preprocessor_config.json` as transformers writes it, old and new styles, and
//! open_clip's `preprocess_cfg`.

mod open_clip;

use super::{CropRule, Preprocessor, Resize};
use crate::resize::Filter;
use imprompt_error::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The two shapes of an image processor of transformers 4.33.1.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Processor {
    /// Short side, then centre crop (CLIP; BiT's code is the same).
    Clip,
    /// Both sides at once, no crop.
    Blip,
    /// The same with other defaults.
    Siglip,
}

impl Processor {
    /// The newer names with `Fast` are the same steps on another resize code; their models were
    /// trained with Pillow's, which is what is done here.
    const NAMES: [(&'static str, Processor); 10] = [
        ("CLIPImageProcessor", Processor::Clip),
        ("CLIPImageProcessorFast", Processor::Clip),
        ("CLIPFeatureExtractor", Processor::Clip),
        ("BitImageProcessor", Processor::Clip),
        ("BitImageProcessorFast", Processor::Clip),
        ("BlipImageProcessor", Processor::Blip),
        ("BlipImageProcessorFast", Processor::Blip),
        ("BlipFeatureExtractor", Processor::Blip),
        ("SiglipImageProcessor", Processor::Siglip),
        ("SiglipImageProcessorFast", Processor::Siglip),
    ];

    fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, processor)| *processor)
    }

    fn crops(self) -> bool {
        self == Processor::Clip
    }

    /// Mean and standard deviation where the file has none.
    fn statistics(self) -> (PerChannel, PerChannel) {
        match self {
            Processor::Clip | Processor::Blip => {
                (PerChannel::Three(OPENAI_CLIP_MEAN), PerChannel::Three(OPENAI_CLIP_STD))
            }
            Processor::Siglip => (PerChannel::One(0.5), PerChannel::One(0.5)),
        }
    }
}

/// A side, or sides by name.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Side(u32),
    Sides(Sides),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sides {
    shortest_edge: Option<u32>,
    height: Option<u32>,
    width: Option<u32>,
}

/// One number for all channels, or one a channel.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum PerChannel {
    One(f64),
    Three([f64; 3]),
}

impl PerChannel {
    fn values(self) -> [f32; 3] {
        match self {
            PerChannel::One(value) => [value as f32; 3],
            PerChannel::Three(values) => values.map(|value| value as f32),
        }
    }
}

/// The keys that decide the result.
#[derive(Debug, Deserialize)]
struct Config {
    image_processor_type: Option<String>,
    feature_extractor_type: Option<String>,
    do_resize: Option<bool>,
    size: Option<Size>,
    resample: Option<u64>,
    do_center_crop: Option<bool>,
    crop_size: Option<Size>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    image_mean: Option<PerChannel>,
    image_std: Option<PerChannel>,
    default_to_square: Option<bool>,
    data_format: Option<String>,
}

/// The keys of [`Config`], and those that do not change the result: pictures arrive as RGB
/// whatever `do_convert_rgb` says.
const KNOWN: [&str; 21] = [
    "image_processor_type",
    "feature_extractor_type",
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "default_to_square",
    "data_format",
    "do_convert_rgb",
    "processor_class",
    "_valid_processor_keys",
    "_processor_class",
    "return_tensors",
    "device",
    "disable_grouping",
];

const OPENAI_CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const OPENAI_CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Parses `json`; see [`Preprocessor::from_json`].
pub(super) fn parse(json: &[u8]) -> Result<Preprocessor> {
    parse_object(json).map_err(|error| error.context("preprocessor_config.json"))
}

fn wrong(what: impl Into<String>) -> Error {
    Error::bad_model(what)
}

fn parse_object(json: &[u8]) -> Result<Preprocessor> {
    let object: Map<String, Value> =
        serde_json::from_slice(json).map_err(|error| wrong(format!("no JSON object: {error}")))?;
    if object.contains_key(open_clip::KEY) {
        return open_clip::parse(object);
    }
    // A key this code does not know is harmless only when it says nothing.
    let asks = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
    if let Some((key, _)) =
        object.iter().find(|(key, value)| !KNOWN.contains(&key.as_str()) && asks(value))
    {
        return Err(wrong(format!("unknown key `{key}` may change the pixel values")));
    }
    let config: Config =
        serde_json::from_value(Value::Object(object)).map_err(|error| wrong(error.to_string()))?;
    config.build()
}

impl Config {
    fn processor(&self) -> Result<Processor> {
        let name = self.image_processor_type.as_ref().or(self.feature_extractor_type.as_ref());
        let known: Vec<_> = Processor::NAMES.iter().map(|(name, _)| *name).collect();
        let known = known.join(", ");
        let name = name.ok_or_else(|| {
            wrong(format!("`image_processor_type` is missing; supported are {known}"))
        })?;
        Processor::named(name).ok_or_else(|| {
            wrong(format!("`image_processor_type` {name} is not supported; supported are {known}"))
        })
    }

    fn build(self) -> Result<Preprocessor> {
        let processor = self.processor()?;
        if self.data_format.as_deref().is_some_and(|format| format != "channels_first") {
            return Err(wrong("`data_format` is not channels_first"));
        }
        let square = self.default_to_square.unwrap_or(!processor.crops());
        let resize = if self.do_resize.unwrap_or(true) {
            Some(self.resize(processor, square)?)
        } else {
            None
        };
        let crop = match processor {
            Processor::Blip | Processor::Siglip if self.do_center_crop == Some(true) => {
                return Err(wrong("`do_center_crop` is true: this image processor does not crop"));
            }
            Processor::Blip | Processor::Siglip => None,
            Processor::Clip if !self.do_center_crop.unwrap_or(true) => None,
            Processor::Clip => Some(match self.crop_size {
                None => (224, 224),
                Some(size) => sides("crop_size", size)?,
            }),
        };
        let filter = self.resample.unwrap_or(Filter::Bicubic as u64);
        let filter = Filter::from_number(filter).ok_or_else(|| {
            wrong(format!("`resample` {filter} is none of Pillow's filters 0 to 5"))
        })?;
        let (height, width) = match (crop, resize) {
            (Some(size), _) | (None, Some(Resize::Exact(size))) => size,
            _ => return Err(wrong("no crop and no exact size: pictures would differ in size")),
        };
        let levels = self.levels(processor)?;
        Ok(Preprocessor {
            resize,
            crop,
            filter,
            rule: CropRule::Transformers,
            height,
            width,
            levels,
        })
    }

    fn resize(&self, processor: Processor, square: bool) -> Result<Resize> {
        let resize = match self.size {
            None if processor == Processor::Blip => Resize::Exact((384, 384)),
            None if processor == Processor::Siglip => Resize::Exact((224, 224)),
            None => Resize::ShortestEdge(224),
            Some(Size::Side(edge)) if square => {
                Resize::Exact((side("size", edge)?, side("size", edge)?))
            }
            Some(Size::Side(edge))
            | Some(Size::Sides(Sides { shortest_edge: Some(edge), height: None, width: None })) => {
                Resize::ShortestEdge(side("size", edge)?)
            }
            Some(size) => Resize::Exact(sides("size", size)?),
        };
        if !processor.crops() && matches!(resize, Resize::ShortestEdge(_)) {
            return Err(wrong("`size` of this image processor needs height and width"));
        }
        Ok(resize)
    }

    /// Each channel's 256 values, by transformers' own arithmetic: `image * scale` in f64 and
    /// stored as f32 (image_transforms.py `rescale`), then `(image - mean) / std` in f32.
    fn levels(&self, processor: Processor) -> Result<Box<[[f32; 256]; 3]>> {
        let rescale = self.do_rescale.unwrap_or(true);
        let normalize = self.do_normalize.unwrap_or(true);
        if normalize && !rescale {
            // numpy would round mean and std to whole numbers, 0 among them.
            return Err(wrong("`do_normalize` without `do_rescale` divides by zero"));
        }
        let factor = self.rescale_factor.unwrap_or(1.0 / 255.0);
        let (mean, std) = processor.statistics();
        let mean = self.image_mean.unwrap_or(mean).values();
        let std = self.image_std.unwrap_or(std).values();
        let mut levels = Box::new([[0.0; 256]; 3]);
        for (channel, values) in levels.iter_mut().enumerate() {
            for (level, value) in values.iter_mut().enumerate() {
                *value = if rescale { (level as f64 * factor) as f32 } else { level as f32 };
                if normalize {
                    *value = (*value - mean[channel]) / std[channel];
                }
            }
        }
        check_finite(levels)
    }
}

fn check_finite(levels: Box<[[f32; 256]; 3]>) -> Result<Box<[[f32; 256]; 3]>> {
    if levels.iter().flatten().any(|value| !value.is_finite()) {
        return Err(wrong(
            "the standard deviation or another factor gives values that are not finite",
        ));
    }
    Ok(levels)
}

/// A side of a model's input: far above any checkpoint, far below trouble.
fn side(key: &str, side: u32) -> Result<usize> {
    match side {
        1..=4096 => Ok(side as usize),
        _ => Err(wrong(format!("`{key}` is {side}, 1 to 4096 are supported"))),
    }
}

/// `(height, width)` of `size`.
fn sides(key: &str, size: Size) -> Result<(usize, usize)> {
    match size {
        Size::Side(edge) => Ok((side(key, edge)?, side(key, edge)?)),
        Size::Sides(Sides { shortest_edge: None, height: Some(height), width: Some(width) }) => {
            Ok((side(key, height)?, side(key, width)?))
        }
        Size::Sides(_) => Err(wrong(format!("`{key}` needs height and width"))),
    }
}
