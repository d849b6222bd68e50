//! The optional inputs that say how a caption is generated, one value an item.

use imprompt_caption::{GenerationOptions, Sampling};
use imprompt_error::{Error, Result};

use crate::Request;
use crate::signature::{Dtype, MAX_BATCH_SIZE};

/// Their names and types, in the order of the signatures. They are tensors and not
/// parameters of a request: declared, typed, and a value for each item of a batch.
pub(crate) const INPUTS: [(&str, Dtype); 10] = [
    ("max_new_tokens", Dtype::Int32),
    ("min_new_tokens", Dtype::Int32),
    ("num_beams", Dtype::Int32),
    ("temperature", Dtype::Fp32),
    ("top_k", Dtype::Int32),
    ("top_p", Dtype::Fp32),
    ("seed", Dtype::Int32),
    ("repetition_penalty", Dtype::Fp32),
    ("length_penalty", Dtype::Fp32),
    ("no_repeat_ngram_size", Dtype::Int32),
];

/// Most caption tokens a request may ask for.
pub const MAX_NEW_TOKENS: usize = 256;
/// Most beams: slots of an instance's cache.
pub const MAX_BEAMS: usize = MAX_BATCH_SIZE;
/// The largest value of what has no limit of its own.
const MOST: usize = i32::MAX as usize;

/// What a request says, an item each.
pub(crate) struct Asked<'a> {
    request: &'a Request<'a>,
    base: GenerationOptions,
}

impl<'a> Asked<'a> {
    /// `base`: what holds where the request says nothing.
    pub(crate) fn new(request: &'a Request<'a>, base: GenerationOptions) -> Self {
        Asked { request, base }
    }

    /// The options of one item.
    ///
    /// # Errors
    /// `InvalidInput` naming the input, its value and what is allowed.
    pub(crate) fn options(&self, item: usize) -> Result<GenerationOptions> {
        let base = &self.base;
        let max_new_tokens =
            self.whole("max_new_tokens", item, 1, MAX_NEW_TOKENS)?.unwrap_or(base.max_new_tokens);
        let min_new_tokens = self
            .whole("min_new_tokens", item, 0, max_new_tokens)?
            .unwrap_or(base.min_new_tokens.min(max_new_tokens));
        let sampling = self.sampling(item)?;
        // Who asks for sampling, or for none, does not mean the beams that a checkpoint asks for.
        let beams = if sampling.is_some() { 1 } else { base.num_beams };
        let num_beams = self.whole("num_beams", item, 1, MAX_BEAMS)?.unwrap_or(beams);
        if num_beams > 1 && sampling.flatten().is_some() {
            return Err(Error::invalid(format!(
                "input `num_beams`: {num_beams} with `temperature`, `top_k`, `top_p` or `seed`, \
                 allowed: 1 with any of them"
            )));
        }
        Ok(GenerationOptions {
            max_new_tokens,
            min_new_tokens,
            num_beams,
            // What a checkpoint draws with gives way to beams that are asked for.
            sampling: sampling.unwrap_or(base.sampling.filter(|_| num_beams == 1)),
            repetition_penalty: self
                .real("repetition_penalty", item, "0.01 to 100", |v| (0.01..=100.0).contains(&v))?
                .unwrap_or(base.repetition_penalty),
            length_penalty: self
                .real("length_penalty", item, "-10 to 10", |v| (-10.0..=10.0).contains(&v))?
                .unwrap_or(base.length_penalty),
            no_repeat_ngram_size: self
                .whole("no_repeat_ngram_size", item, 0, MAX_NEW_TOKENS)?
                .unwrap_or(base.no_repeat_ngram_size),
            ..*base
        })
    }

    /// What the request says of sampling, if anything: any of its inputs asks for it, but
    /// a `temperature` of 0 refuses it.
    fn sampling(&self, item: usize) -> Result<Option<Option<Sampling>>> {
        let allowed = "0 (the best token) or 0.01 to 100";
        let is_allowed = |v: f32| v == 0.0 || (0.01..=100.0).contains(&v);
        let temperature = self.real("temperature", item, allowed, is_allowed)?;
        let top_k = self.whole("top_k", item, 0, MOST)?;
        let top_p = self.real("top_p", item, "above 0, at most 1", |v| v > 0.0 && v <= 1.0)?;
        let seed = self.whole("seed", item, 0, MOST)?;
        if temperature == Some(0.0) {
            return Ok(Some(None));
        }
        if temperature.is_none() && top_k.is_none() && top_p.is_none() && seed.is_none() {
            return Ok(None);
        }
        let base = self.base.sampling.unwrap_or_default();
        Ok(Some(Some(Sampling {
            temperature: temperature.unwrap_or(base.temperature),
            top_k: top_k.unwrap_or(base.top_k),
            top_p: top_p.unwrap_or(base.top_p),
            seed: seed.map_or(base.seed, |seed| seed as u64),
        })))
    }

    fn whole(&self, name: &str, item: usize, least: usize, most: usize) -> Result<Option<usize>> {
        let Some(values) = self.request.optional_i32(name)? else { return Ok(None) };
        match usize::try_from(values[item]) {
            Ok(value) if (least..=most).contains(&value) => Ok(Some(value)),
            _ => Err(Error::invalid(format!(
                "input `{name}`: {}, allowed: {least} to {most}",
                values[item]
            ))),
        }
    }

    fn real(
        &self,
        name: &str,
        item: usize,
        allowed: &str,
        is_allowed: impl Fn(f32) -> bool,
    ) -> Result<Option<f64>> {
        let Some(values) = self.request.optional_f32(name)? else { return Ok(None) };
        // NaN is in no range.
        if !is_allowed(values[item]) {
            let value = values[item];
            return Err(Error::invalid(format!("input `{name}`: {value}, allowed: {allowed}")));
        }
        Ok(Some(f64::from(values[item])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;
    use imprompt_error::{Kind, Uncancellable};

    fn request(inputs: Vec<Tensor<'static>>) -> Request<'static> {
        Request { batch: 1, inputs, outputs: None, cancellation: &Uncancellable }
    }

    fn asked(inputs: Vec<Tensor<'static>>) -> Result<GenerationOptions> {
        Asked::new(&request(inputs), GenerationOptions::default()).options(0)
    }

    fn whole(name: &'static str, value: i32) -> Tensor<'static> {
        Tensor::i32(name, vec![1, 1], vec![value])
    }

    fn real(name: &'static str, value: f32) -> Tensor<'static> {
        Tensor::f32(name, vec![1, 1], vec![value])
    }

    #[test]
    fn nothing_said_is_the_base() {
        assert_eq!(asked(vec![]).unwrap(), GenerationOptions::default());
        let base = GenerationOptions {
            num_beams: 5,
            min_new_tokens: 8,
            length_penalty: -1.0,
            ..GenerationOptions::default()
        };
        let options = |inputs| Asked::new(&request(inputs), base).options(0).unwrap();
        assert_eq!(options(vec![]), base);
        let short = options(vec![whole("max_new_tokens", 4)]);
        assert_eq!((short.max_new_tokens, short.min_new_tokens), (4, 4));
        // Sampling or greedy decoding that is asked for does away with the checkpoint's beams.
        assert_eq!(options(vec![real("temperature", 0.5)]).num_beams, 1);
        assert_eq!(options(vec![real("temperature", 0.0)]).num_beams, 1);
    }

    #[test]
    fn each_input_is_its_option() {
        let options = asked(vec![
            whole("max_new_tokens", 9),
            whole("min_new_tokens", 3),
            whole("num_beams", 4),
            real("repetition_penalty", 1.5),
            real("length_penalty", -0.5),
            whole("no_repeat_ngram_size", 2),
        ]);
        let expected = GenerationOptions {
            max_new_tokens: 9,
            min_new_tokens: 3,
            num_beams: 4,
            repetition_penalty: 1.5,
            length_penalty: -0.5,
            no_repeat_ngram_size: 2,
            ..GenerationOptions::default()
        };
        assert_eq!(options.unwrap(), expected);
    }

    #[test]
    fn any_input_of_sampling_asks_for_it() {
        let sampling = |inputs| asked(inputs).unwrap().sampling;
        let default = Sampling::default();
        assert_eq!(
            sampling(vec![real("temperature", 0.5)]),
            Some(Sampling { temperature: 0.5, ..default })
        );
        assert_eq!(sampling(vec![whole("top_k", 0)]), Some(Sampling { top_k: 0, ..default }));
        assert_eq!(sampling(vec![real("top_p", 0.25)]), Some(Sampling { top_p: 0.25, ..default }));
        assert_eq!(sampling(vec![whole("seed", 7)]), Some(Sampling { seed: 7, ..default }));
        assert_eq!(sampling(vec![real("temperature", 0.0), whole("top_k", 5)]), None);
        let beams = vec![real("temperature", 0.0), whole("num_beams", 3)];
        assert_eq!(asked(beams).unwrap().num_beams, 3);
    }

    #[test]
    fn values_out_of_range_are_named() {
        let most = i32::MAX;
        for (input, value, allowed) in [
            (whole("max_new_tokens", 0), "0", "1 to 256"),
            (whole("max_new_tokens", 257), "257", "1 to 256"),
            (whole("min_new_tokens", 33), "33", "0 to 32"),
            (whole("min_new_tokens", -1), "-1", "0 to 32"),
            (whole("num_beams", 0), "0", "1 to 8"),
            (whole("num_beams", most), "2147483647", "1 to 8"),
            (whole("top_k", -1), "-1", "0 to 2147483647"),
            (whole("seed", -5), "-5", "0 to 2147483647"),
            (whole("no_repeat_ngram_size", -1), "-1", "0 to 256"),
            (real("temperature", -1.0), "-1", "0 (the best token) or 0.01 to 100"),
            (real("temperature", 1e-9), "0.000000001", "0.01 to 100"),
            (real("temperature", f32::NAN), "NaN", "0.01 to 100"),
            (real("top_p", 0.0), "0", "above 0, at most 1"),
            (real("top_p", f32::NAN), "NaN", "above 0, at most 1"),
            (real("repetition_penalty", 0.0), "0", "0.01 to 100"),
            (real("repetition_penalty", f32::INFINITY), "inf", "0.01 to 100"),
            (real("length_penalty", f32::NEG_INFINITY), "-inf", "-10 to 10"),
        ] {
            let name = input.name.clone();
            let error = asked(vec![input]).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidInput);
            let start = format!("input `{name}`: {value}, allowed: ");
            assert!(error.message().starts_with(&start), "{error}");
            assert!(error.message().ends_with(allowed), "{error}");
        }
        let both = asked(vec![whole("num_beams", 2), whole("seed", 1)]).unwrap_err();
        assert!(both.message().contains("`num_beams`: 2 with `temperature`"), "{both}");
        assert!(asked(vec![whole("num_beams", 1), whole("seed", 1)]).is_ok());
    }
}
