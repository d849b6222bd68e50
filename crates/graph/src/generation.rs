//! What a checkpoint says of generation: `generation_config.json`, and the same
//! keys in older configurations.

use std::path::Path;

use imprompt_error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
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

/// How a checkpoint wants its captions to be generated, where a request says
/// nothing: the keys of transformers' `GenerationConfig` by their names. Limits
/// of the length come with each request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerationFacts {
    /// Beams; 1: none.
    pub num_beams: usize,
    /// When beams end: `false`, `true` or `"never"`.
    pub early_stopping: EarlyStoppingFact,
    /// What lengths favour beams.
    pub length_penalty: f64,
    /// What the scores of tokens said before are divided by.
    pub repetition_penalty: f64,
    /// Length of what may not come twice; 0: nothing.
    pub no_repeat_ngram_size: usize,
    /// Tokens before the end, what stood before them counted.
    pub min_length: usize,
    /// Tokens before the end.
    pub min_new_tokens: usize,
    /// Whether tokens are drawn.
    pub do_sample: bool,
    /// What scores are divided by then.
    pub temperature: f64,
    /// Of how many tokens then; 0: all.
    pub top_k: usize,
    /// Of how much probability then.
    pub top_p: f64,
}

/// `early_stopping`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EarlyStoppingFact {
    /// `false`.
    #[default]
    Heuristic,
    /// `true`.
    Always,
    /// `"never"`.
    Never,
}

impl Default for GenerationFacts {
    /// Those of `GenerationConfig`.
    fn default() -> Self {
        GenerationFacts {
            num_beams: 1,
            early_stopping: EarlyStoppingFact::Heuristic,
            length_penalty: 1.0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            min_length: 0,
            min_new_tokens: 0,
            do_sample: false,
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
        }
    }
}

impl GenerationFacts {
    /// Takes what `section` says over.
    ///
    /// # Errors
    /// `Unsupported` naming a key under which the reference would say something
    /// else than this build can, `BadModel` naming one that is malformed.
    pub(crate) fn read(&mut self, section: &Section) -> Result<()> {
        let count = |key: &str, default: usize| -> Result<usize> {
            Ok(section.index(key, u32::try_from(default).unwrap_or(u32::MAX))? as usize)
        };
        self.num_beams = section.size("num_beams", self.num_beams)?;
        self.early_stopping = match section.get("early_stopping") {
            None => self.early_stopping,
            Some(Json::Bool(false)) => EarlyStoppingFact::Heuristic,
            Some(Json::Bool(true)) => EarlyStoppingFact::Always,
            Some(_) => {
                section.only("early_stopping", &[json!(false), json!(true), json!("never")])?;
                EarlyStoppingFact::Never
            }
        };
        self.length_penalty = section.number("length_penalty", self.length_penalty)?;
        self.repetition_penalty = positive(section, "repetition_penalty", self.repetition_penalty)?;
        self.no_repeat_ngram_size = count("no_repeat_ngram_size", self.no_repeat_ngram_size)?;
        self.min_length = count("min_length", self.min_length)?;
        self.min_new_tokens = count("min_new_tokens", self.min_new_tokens)?;
        self.do_sample = section.flag("do_sample", self.do_sample)?;
        self.temperature = positive(section, "temperature", self.temperature)?;
        self.top_k = count("top_k", self.top_k)?;
        self.top_p = positive(section, "top_p", self.top_p)?;
        if self.do_sample && self.num_beams > 1 {
            return Err(Error::unsupported(format!(
                "{}: num_beams is {} and do_sample is true; supported: one of the two",
                section.path(),
                self.num_beams
            )));
        }
        let one = [json!(1), json!(1.0)];
        for key in [
            "num_beam_groups",
            "num_return_sequences",
            "encoder_repetition_penalty",
            "guidance_scale",
        ] {
            section.only(key, &one)?;
        }
        if self.do_sample {
            for key in ["typical_p", "epsilon_cutoff", "eta_cutoff"] {
                section.only(key, &[json!(1), json!(1.0), json!(0), json!(0.0)])?;
            }
        }
        for key in ["penalty_alpha", "encoder_no_repeat_ngram_size"] {
            section.only(key, &[json!(0), json!(0.0)])?;
        }
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
}

fn positive(section: &Section, key: &str, default: f64) -> Result<f64> {
    let value = section.number(key, default)?;
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(Error::bad_model(format!("{}: {key} is {value}, above 0 is needed", section.path())))
}
