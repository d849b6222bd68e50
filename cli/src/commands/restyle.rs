//! `imprompt restyle`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use imprompt_picture::{Limits, RgbImage8, decode};

use super::run;
use crate::arguments::{InitImageMode, Mode, Restyle};
use crate::ask::{Asker, Question};
use crate::pictures;
use crate::sagemaker::invoke::Endpoint;
use crate::sdxl::request::{self, Request, SIZES, TextPrompt, size_for};
use crate::sdxl::style;
use crate::talk::{self, Failure, Result};

/// Prints the request, or asks the endpoint and writes the picture.
pub fn run(arguments: &Restyle) -> Result<()> {
    // Before the interrogation, which takes long: all that can be wrong without it.
    style::prompt(arguments.style.as_deref(), arguments.template.as_deref(), "")?;
    let mut request = draft(arguments)?;
    request.text_prompts.push(TextPrompt { text: "the prompt".to_owned(), weight: 1.0 });
    request.check()?;
    let endpoint = arguments
        .endpoint
        .as_deref()
        .map(|name| Endpoint::open(name, None, arguments.region.as_deref()))
        .transpose()?;
    request.text_prompts = texts(arguments)?;
    request.check()?;
    let Some(endpoint) = endpoint else { return run::json(&request) };
    let body = serde_json::to_vec(&request).map_err(Failure::new)?;
    let answer = endpoint.invoke("application/json", "application/json;png", &body)?;
    let drawn = request::pictures(answer.body())?;
    let out = arguments.out.as_ref().ok_or_else(|| Failure::usage("--out: is missing"))?;
    for (index, (bytes, seed)) in drawn.iter().enumerate() {
        let path = match index {
            0 => out.clone(),
            // FILE.png, FILE-2.png, FILE-3.png
            _ => {
                let stem = out.file_stem().unwrap_or_default().to_string_lossy();
                let suffix = out.extension().map(|suffix| format!(".{}", suffix.to_string_lossy()));
                out.with_file_name(format!("{stem}-{}{}", index + 1, suffix.unwrap_or_default()))
            }
        };
        std::fs::write(&path, bytes).map_err(|error| Failure::new(error).of(path.display()))?;
        talk::say(&format!("wrote {} ({} bytes, seed {seed})", path.display(), bytes.len()));
    }
    Ok(())
}

/// The request without its texts.
fn draft(arguments: &Restyle) -> Result<Request> {
    let mut request = Request {
        cfg_scale: arguments.cfg_scale,
        steps: arguments.steps,
        seed: arguments.seed,
        samples: arguments.samples,
        sampler: arguments.sampler.clone(),
        style_preset: arguments.style_preset.clone(),
        clip_guidance_preset: arguments.clip_guidance_preset.clone(),
        ..Request::default()
    };
    let Some(path) = &arguments.init_image else {
        let (width, height) = match (arguments.width, arguments.height) {
            (Some(width), Some(height)) => (width, height),
            _ => {
                let picture = picture(&arguments.image)?.0;
                size_for(picture.width(), picture.height())
            }
        };
        request.width = Some(width);
        request.height = Some(height);
        return Ok(request);
    };
    // The picture's own size is the size then, and must be one that SDXL draws.
    let (image, bytes) = picture(path)?;
    let is_size =
        |size: &(u32, u32)| (size.0 as usize, size.1 as usize) == (image.width(), image.height());
    if !SIZES.iter().any(is_size) {
        let (width, height) = size_for(image.width(), image.height());
        return Err(Failure::usage(format!(
            "--init-image: {} x {}, SDXL takes {}",
            image.width(),
            image.height(),
            request::sizes()
        ))
        .hint(format!("resize it to {width}x{height}, the nearest in shape")));
    }
    request.init_image = Some(STANDARD.encode(bytes));
    match arguments.init_image_mode {
        InitImageMode::ImageStrength => {
            request.init_image_mode = Some("IMAGE_STRENGTH");
            request.image_strength = Some(arguments.image_strength.unwrap_or(0.35));
        }
        InitImageMode::StepSchedule => {
            request.init_image_mode = Some("STEP_SCHEDULE");
            request.step_schedule_start = arguments.step_schedule_start;
            request.step_schedule_end = arguments.step_schedule_end;
        }
    }
    Ok(request)
}

/// A picture, and its bytes as they are.
fn picture(path: &std::path::Path) -> Result<(RgbImage8, Vec<u8>)> {
    let of = |failure: Failure| failure.in_picture(path);
    let bytes = pictures::read(path).map_err(of)?;
    let picture = decode(&bytes, &Limits::default()).map_err(Failure::from).map_err(of)?;
    Ok((picture, bytes))
}

/// The prompt in its style, and what shall not be seen.
fn texts(arguments: &Restyle) -> Result<Vec<TextPrompt>> {
    let bytes =
        pictures::read(&arguments.image).map_err(|failure| failure.in_picture(&arguments.image))?;
    let wants_negative = !arguments.no_negative && arguments.negative.is_none();
    let mut asker = match arguments.prompt.is_none() || wants_negative {
        true => Some(Asker::open(&arguments.place, "interrogate")?),
        false => None,
    };
    let mut ask = |mode: Mode| -> Result<String> {
        let question = Question::picture(bytes.clone()).text("mode", Some(mode.name()));
        let question = match mode {
            Mode::Negative => question,
            _ => question.text("given_caption", arguments.given_caption.as_deref()),
        };
        let asker = asker.as_mut().ok_or_else(|| Failure::new("nobody to ask"))?;
        let answer = asker.ask(vec![question]).pop();
        let answer = answer.unwrap_or_else(|| Err(Failure::new("no answer")));
        answer.map_err(|failure| failure.in_picture(&arguments.image))?.text("prompt")
    };
    let prompt = match &arguments.prompt {
        Some(prompt) => prompt.clone(),
        None => ask(arguments.mode)?,
    };
    let text = style::prompt(arguments.style.as_deref(), arguments.template.as_deref(), &prompt)?;
    let mut texts = vec![TextPrompt { text, weight: 1.0 }];
    let negative = match &arguments.negative {
        Some(text) => Some(text.clone()),
        None if wants_negative => Some(ask(Mode::Negative)?),
        None => None,
    };
    texts.extend(negative.map(|text| TextPrompt { text, weight: arguments.negative_weight }));
    Ok(texts)
}
