//! What a checkpoint says of generation: `generation_config.json`, and the same
//! keys in older configurations.

use std::path::Path;

use imprompt_error::{Error, Kind, Result};
use serde_json::{Value as Json, json};

use crate::config::Section;

/// The longest `generation_config.json` that is read.
const MAX_GENERATION_CONFIG_BYTES: u64 = 1 << 20;

/// `generation_config.json` of `folder`, where it has one.
pub(crate) fn generation_config(folder: &Path) -> Result<Option<Section>> {
    let path = folder.join("generation_config.json");
    let wrong = |what: String| Error::bad_model(format!("{}: {what}", path.display()));
    let length = match std::fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::new(Kind::BadModel, format!("{}: {e}", path.display()))),
    };
    if length > MAX_GENERATION_CONFIG_BYTES {
        return Err(wrong(format!(
            "has {length} bytes, at most {MAX_GENERATION_CONFIG_BYTES} allowed"
        )));
    }
    let text = std::fs::read(&path).map_err(|e| wrong(e.to_string()))?;
    match serde_json::from_slice(&text) {
        Ok(Json::Object(values)) => Ok(Some(Section::new(&path.display().to_string(), values))),
        Ok(_) => Err(wrong("is not a JSON object".to_owned())),
        Err(e) => Err(wrong(format!("is not JSON: {e}"))),
    }
}

/// Refuses every generation key under which the reference would not decode
/// greedily. (What only acts with sampling or beams is harmless without them;
/// limits of the length come with each request.)
pub(crate) fn greedy_only(section: &Section) -> Result<()> {
    let zero = [json!(0), json!(0.0)];
    let one = [json!(1), json!(1.0)];
    for key in ["num_beams", "num_beam_groups", "num_return_sequences", "repetition_penalty"] {
        section.only(key, &one)?;
    }
    for key in ["encoder_repetition_penalty", "guidance_scale"] {
        section.only(key, &one)?;
    }
    for key in ["min_length", "min_new_tokens", "penalty_alpha"] {
        section.only(key, &zero)?;
    }
    for key in ["no_repeat_ngram_size", "encoder_no_repeat_ngram_size"] {
        section.only(key, &zero)?;
    }
    section.only("do_sample", &[json!(false)])?;
    for key in [
        "bad_words_ids",
        "begin_suppress_tokens",
        "constraints",
        "exponential_decay_length_penalty",
        "force_words_ids",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "max_time",
        "prompt_lookup_num_tokens",
        "sequence_bias",
        "stop_strings",
        "suppress_tokens",
    ] {
        section.only(key, &[])?;
    }
    Ok(())
}
