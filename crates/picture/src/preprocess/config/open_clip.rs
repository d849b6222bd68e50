//! `preprocess_cfg` of an `open_clip_config.json`.
//!
//! Reference: `open_clip/transform.py` 2.20.0, `image_transform` without training:
//! torchvision's `Resize`, `CenterCrop`, `ToTensor`, `Normalize`. `resize_mode`
//! and `interpolation` came later; absent they mean what 2.20.0 does.

use imprompt_error::Result;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    CropRule, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PerChannel, Preprocessor, Resize, check_finite,
    side, wrong,
};
use crate::resize::Filter;

/// The key whose value this is.
pub(super) const KEY: &str = "preprocess_cfg";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    preprocess_cfg: Settings,
    /// Height and width of the model's pictures.
    image_size: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    mean: Option<PerChannel>,
    std: Option<PerChannel>,
    interpolation: Option<String>,
    resize_mode: Option<String>,
    mode: Option<String>,
    /// The model's own size counts.
    #[serde(rename = "size")]
    _size: Option<Value>,
    /// Padding of the mode `longest` alone.
    #[serde(rename = "fill_color")]
    _fill_color: Option<Value>,
}

/// The preprocessor of `{"preprocess_cfg": {...}, "image_size": n}`.
pub(super) fn parse(object: Map<String, Value>) -> Result<Preprocessor> {
    let file: File = serde_json::from_value(Value::Object(object))
        .map_err(|error| wrong(format!("`{KEY}`: {error}")))?;
    let settings = file.preprocess_cfg;
    let edge = side("image_size", file.image_size)?;
    let filter = match settings.interpolation.as_deref() {
        // `random` is for training, and bicubic otherwise.
        None | Some("bicubic" | "random") => Filter::Bicubic,
        Some("bilinear") => Filter::Bilinear,
        Some(other) => {
            return Err(wrong(format!(
                "`interpolation` is {other:?}; bicubic and bilinear are supported"
            )));
        }
    };
    let (resize, crop) = match settings.resize_mode.as_deref() {
        None | Some("shortest") => (Resize::ShortestEdge(edge), Some((edge, edge))),
        Some("squash") => (Resize::Exact((edge, edge)), None),
        Some(other) => {
            return Err(wrong(format!(
                "`resize_mode` is {other:?}; shortest and squash are supported"
            )));
        }
    };
    if settings.mode.is_some_and(|mode| mode != "RGB") {
        return Err(wrong("`mode` is not RGB"));
    }
    let mean = settings.mean.unwrap_or(PerChannel::Three(OPENAI_CLIP_MEAN)).values();
    let std = settings.std.unwrap_or(PerChannel::Three(OPENAI_CLIP_STD)).values();
    let mut levels = Box::new([[0.0; 256]; 3]);
    for ((values, mean), std) in levels.iter_mut().zip(mean).zip(std) {
        for (level, value) in values.iter_mut().enumerate() {
            *value = (level as f32 / 255.0 - mean) / std;
        }
    }
    Ok(Preprocessor {
        resize: Some(resize),
        crop,
        filter,
        rule: CropRule::Torchvision,
        height: edge,
        width: edge,
        levels: check_finite(levels)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(settings: &str) -> Result<Preprocessor> {
        let text = format!(r#"{{"preprocess_cfg": {settings}, "image_size": 224}}"#);
        Preprocessor::from_json(text.as_bytes())
    }

    #[test]
    fn settings_are_those_of_open_clip() {
        let plain = read("{}").unwrap();
        assert_eq!((plain.height(), plain.width(), plain.rule), (224, 224, CropRule::Torchvision));
        assert_eq!((plain.crop, plain.filter), (Some((224, 224)), Filter::Bicubic));
        let full = r#"{"size": [3, 3], "mode": "RGB", "mean": [0.5, 0.5, 0.5], "std": 0.5,
            "interpolation": "bilinear", "resize_mode": "squash", "fill_color": 0}"#;
        let full = read(full).unwrap();
        assert_eq!((full.crop, full.filter), (None, Filter::Bilinear));
        assert_eq!((full.levels[2][0], full.levels[0][255]), (-1.0, 1.0));
    }

    #[test]
    fn others_are_refused_by_name() {
        for (key, value) in [
            ("resize_mode", r#""longest""#),
            ("interpolation", r#""lanczos""#),
            ("mode", r#""L""#),
            ("std", "0"),
            ("crop_pct", "0.9"),
        ] {
            let error = read(&format!(r#"{{"{key}": {value}}}"#)).unwrap_err();
            let named = error.message().contains(key) || key == "std";
            assert!(named, "{error}");
        }
    }
}
