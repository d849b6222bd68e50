//! The request of Stability's SDXL 1.0 on SageMaker (the fields of stability_sdk's
//! `api.GenerationRequest`), checked field by field, and its answer.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::Value;

use crate::talk::{Failure, Result};

/// Width and height that SDXL 1.0 draws.
pub const SIZES: [(u32, u32); 9] = [
    (1024, 1024),
    (1152, 896),
    (1216, 832),
    (1344, 768),
    (1536, 640),
    (640, 1536),
    (768, 1344),
    (832, 1216),
    (896, 1152),
];

/// Characters of a text, at most.
const MOST_TEXT: usize = 2000;

/// A text and how it counts: below 0 what shall not be seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TextPrompt {
    /// The text.
    pub text: String,
    /// Its weight.
    pub weight: f64,
}

/// The request; what is `None` is not sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Request {
    pub text_prompts: Vec<TextPrompt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    pub cfg_scale: f64,
    pub steps: u32,
    pub seed: u32,
    pub samples: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub style_preset: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_guidance_preset: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_image_mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_strength: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_schedule_start: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_schedule_end: Option<f64>,
}

impl Request {
    /// # Errors
    /// Wrong usage, naming the first field that is out of range.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Failure::usage(what));
        for (index, TextPrompt { text, weight }) in self.text_prompts.iter().enumerate() {
            let characters = text.chars().count();
            if !(1..=MOST_TEXT).contains(&characters) {
                return wrong(format!(
                    "text_prompts[{index}]: {characters} characters, 1 to {MOST_TEXT} are allowed"
                ));
            }
            if !weight.is_finite() || *weight == 0.0 {
                return wrong(format!(
                    "text_prompts[{index}]: weight {weight}, any number but 0 is allowed"
                ));
            }
        }
        if let (Some(width), Some(height)) = (self.width, self.height)
            && !SIZES.contains(&(width, height))
        {
            return wrong(format!("{width} x {height}: SDXL draws {}", sizes()));
        }
        let ranges = [
            ("cfg_scale", Some(self.cfg_scale), 0.0, 35.0),
            ("steps", Some(self.steps.into()), 10.0, 150.0),
            ("samples", Some(self.samples.into()), 1.0, 10.0),
            ("image_strength", self.image_strength, 0.0, 1.0),
            ("step_schedule_start", self.step_schedule_start, 0.0, 1.0),
            ("step_schedule_end", self.step_schedule_end, 0.0, 1.0),
        ];
        for (name, value, least, most) in ranges {
            if let Some(value) = value
                && !(least..=most).contains(&value)
            {
                return wrong(format!("{name}: {value}, {least} to {most} are allowed"));
            }
        }
        if let (Some(start), Some(end)) = (self.step_schedule_start, self.step_schedule_end)
            && start < end
        {
            return wrong(format!("step_schedule_start {start} is below step_schedule_end {end}"));
        }
        Ok(())
    }
}

/// The sizes, as text.
pub fn sizes() -> String {
    SIZES.map(|(width, height)| format!("{width}x{height}")).join(", ")
}

/// The size whose shape is nearest to that of a picture.
pub fn size_for(width: usize, height: usize) -> (u32, u32) {
    let shape = |width: f64, height: f64| (width / height).ln();
    let wanted = shape(width as f64, height as f64);
    let distance = |size: &(u32, u32)| (shape(size.0.into(), size.1.into()) - wanted).abs();
    SIZES.into_iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(SIZES[0])
}

/// The pictures of an answer, and the seed of each.
///
/// # Errors
/// What the endpoint refused with, a picture that its filter took away, or an answer of another form.
pub fn pictures(answer: &[u8]) -> Result<Vec<(Vec<u8>, u64)>> {
    let not_understood =
        || Failure::new("the endpoint's answer is not that of SDXL (no artifacts)");
    let answer: Value = serde_json::from_slice(answer).map_err(|_| not_understood())?;
    if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
        // Its message may repeat the prompt: the name says what is wrong.
        let name = error["name"].as_str().or(error["id"].as_str()).unwrap_or("without a name");
        return Err(Failure::new(format!("the endpoint refused: {name}")));
    }
    let artifacts = answer["artifacts"].as_array().filter(|list| !list.is_empty());
    let pictures = artifacts.ok_or_else(not_understood)?.iter().map(|artifact| {
        match artifact["finishReason"].as_str() {
            Some("CONTENT_FILTERED") => {
                return Err(Failure::new("the endpoint's filter took the picture away")
                    .hint("another --seed, or another prompt"));
            }
            Some("ERROR") => return Err(Failure::new("the endpoint failed to draw the picture")),
            _ => {}
        }
        let bytes = artifact["base64"].as_str().and_then(|text| STANDARD.decode(text).ok());
        Ok((bytes.ok_or_else(not_understood)?, artifact["seed"].as_u64().unwrap_or_default()))
    });
    pictures.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        let text_prompts = vec![TextPrompt { text: "a dog".into(), weight: 1.0 }];
        Request { text_prompts, cfg_scale: 7.0, steps: 20, samples: 1, ..Request::default() }
    }

    #[test]
    fn every_field_has_its_range() {
        request().check().unwrap();
        let text = |text: String, weight| vec![TextPrompt { text, weight }];
        let cases = [
            Request { text_prompts: text(String::new(), 1.0), ..request() },
            Request { text_prompts: text("a".repeat(2001), 1.0), ..request() },
            Request { text_prompts: text("a".into(), f64::NAN), ..request() },
            Request { width: Some(512), height: Some(512), ..request() },
            Request { cfg_scale: 35.1, ..request() },
            Request { cfg_scale: f64::NAN, ..request() },
            Request { steps: 9, ..request() },
            Request { steps: 151, ..request() },
            Request { samples: 11, ..request() },
            Request { image_strength: Some(1.1), ..request() },
            Request { step_schedule_start: Some(-0.1), ..request() },
            Request { step_schedule_start: Some(0.1), step_schedule_end: Some(0.2), ..request() },
        ];
        for case in cases {
            assert_eq!(case.check().unwrap_err().code(), 2, "{case:?}");
        }
    }

    #[test]
    fn sizes_follow_the_shape() {
        let cases = [
            ((100, 100), (1024, 1024)),
            ((4000, 3000), (1152, 896)),
            ((1920, 1080), (1344, 768)),
            ((1080, 1920), (768, 1344)),
            ((10, 1), (1536, 640)),
            ((2, 3), (832, 1216)),
        ];
        for ((width, height), size) in cases {
            assert_eq!(size_for(width, height), size, "{width}x{height}");
        }
    }

    #[test]
    fn answers_are_read() {
        let good = br#"{"result":"success","artifacts":[{"seed":418,"base64":"aGk=","finishReason":"SUCCESS"}]}"#;
        assert_eq!(pictures(good).unwrap(), [(b"hi".to_vec(), 418)]);
        let bad: [&[u8]; 5] = [
            b"<html>",
            b"{}",
            br#"{"artifacts":[]}"#,
            br#"{"artifacts":[{"base64":"","finishReason":"CONTENT_FILTERED"}]}"#,
            br#"{"error":{"id":"1","name":"bad_request","message":"a secret prompt"}}"#,
        ];
        for answer in bad {
            let failure = pictures(answer).unwrap_err();
            assert!(!failure.message().contains("secret"));
        }
    }
}
