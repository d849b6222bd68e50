//! `--precision`: in how many bits the linear layers' weights are kept, part by part.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use imprompt_error::{Error, Result};
use imprompt_graph::builder::Graph;
use imprompt_graph::gpu::Compute;
use imprompt_graph::precision::high;
use imprompt_graph::quantize::{Form, quantize};

use crate::config::Models;
use crate::files;
use crate::progress::{Progress, Unit};
use crate::source::ModelFolder;

/// A precision of weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bits {
    /// As the model's files have them: nothing is converted.
    #[default]
    F32,
    /// As the model's files have them; where the processor has AMX, the first sixteen of a float32's 24 bits are multiplied.
    High,
    /// float16 where that is lossless: results are the same, files and memory half as large.
    F16,
    /// bfloat16, in which a GPU multiplies; nothing is converted.
    Bf16,
    /// 8 bits.
    Int8,
    /// 4 bits in a captioner's decoder, 8 bits elsewhere.
    Int4,
}

impl Bits {
    const ALL: [(&'static str, Bits); 6] = [
        ("f32", Bits::F32),
        ("high", Bits::High),
        ("f16", Bits::F16),
        ("bf16", Bits::Bf16),
        ("int8", Bits::Int8),
        ("int4", Bits::Int4),
    ];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, bits)| *bits == self).map_or("f32", |(name, _)| name)
    }

    /// In which type a GPU multiplies.
    pub(crate) fn compute(self) -> Option<Compute> {
        match self {
            Bits::F32 => Some(Compute::F32),
            Bits::F16 => Some(Compute::F16),
            Bits::Bf16 => Some(Compute::Bf16),
            Bits::High | Bits::Int8 | Bits::Int4 => None,
        }
    }

    fn form(self, graph: &str) -> Option<Form> {
        match self {
            Bits::F32 | Bits::High | Bits::Bf16 => None,
            Bits::F16 => Some(Form::F16),
            // Only where a token at a time is computed do four bits beat eight.
            Bits::Int4 if graph.contains("decoder") => Some(Form::Int4),
            Bits::Int8 | Bits::Int4 => Some(Form::Int8),
        }
    }
}

/// The precision of each part of a repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Precision {
    /// CLIP's image tower.
    pub clip_image: Bits,
    /// CLIP's text tower.
    pub clip_text: Bits,
    /// The captioner.
    pub captioner: Bits,
    /// Whether the interrogator has CLIP's text tower in 8 bits besides, which sorts out candidates
    /// of a chain that the tower itself need not score.
    pub screen: bool,
}

/// One `--precision`: of all parts, or of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrecisionChoice {
    part: Option<Part>,
    bits: Bits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    ClipImage,
    ClipText,
    Captioner,
    Screen,
}

impl FromStr for PrecisionChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (part, bits) = match text.split_once('=') {
            Some((part, bits)) => (Some(part), bits),
            None => (None, text),
        };
        let part = match part {
            None => None,
            Some("clip_image") => Some(Part::ClipImage),
            Some("clip_text") => Some(Part::ClipText),
            Some("captioner") => Some(Part::Captioner),
            Some("screen") => Some(Part::Screen),
            Some(_) => {
                return Err("the parts are clip_image, clip_text, captioner and screen".to_owned());
            }
        };
        let found = Bits::ALL.iter().find(|(name, _)| *name == bits);
        let (_, bits) = found.ok_or("the precisions are f32, high, f16, bf16, int8 and int4")?;
        if part == Some(Part::Screen) && *bits != Bits::Int8 {
            return Err("the precision of a screen is int8".to_owned());
        }
        Ok(PrecisionChoice { part, bits: *bits })
    }
}

impl Precision {
    /// What several choices come to: those of a part win over those of all.
    #[must_use]
    pub fn of(choices: &[PrecisionChoice]) -> Self {
        Self::with_default(choices, Bits::F32)
    }

    /// [`Self::of`], where `otherwise` is what was not chosen.
    #[must_use]
    pub fn with_default(choices: &[PrecisionChoice], otherwise: Bits) -> Self {
        let chosen = |part: Part| {
            let of_part = choices.iter().rev().find(|choice| choice.part == Some(part));
            let of_all = || choices.iter().rev().find(|choice| choice.part.is_none());
            of_part.or_else(of_all).map_or(otherwise, |choice| choice.bits)
        };
        Precision {
            clip_image: chosen(Part::ClipImage),
            clip_text: chosen(Part::ClipText),
            captioner: chosen(Part::Captioner),
            screen: choices.iter().any(|choice| choice.part == Some(Part::Screen)),
        }
    }

    /// The types in which a GPU multiplies in CLIP's image tower, its text tower and the captioner.
    pub(crate) fn computes(&self) -> Result<[Compute; 3]> {
        let of = |part: &str, bits: Bits| {
            bits.compute().ok_or_else(|| {
                Error::invalid(format!(
                    "precision of `{part}`: {} is for the CPU; allowed for a GPU: f32, f16, bf16",
                    bits.name()
                ))
            })
        };
        if self.screen {
            return Err(Error::invalid("precision of `screen`: int8 is for the CPU"));
        }
        Ok([
            of("clip_image", self.clip_image)?,
            of("clip_text", self.clip_text)?,
            of("captioner", self.captioner)?,
        ])
    }

    /// Fails where a part would be computed in a type that the CPU's engine has no products in.
    pub(crate) fn check_cpu(&self) -> Result<()> {
        let parts = [self.clip_image, self.clip_text, self.captioner];
        if parts.contains(&Bits::Bf16) {
            return Err(Error::invalid(
                "precision bf16 is for a GPU; allowed for the CPU: f32, high, f16, int8, int4",
            ));
        }
        Ok(())
    }

    /// Fails where a screen would be of no use.
    pub(crate) fn check(&self, has: Models) -> Result<()> {
        if !self.screen {
            return Ok(());
        }
        if !has.clip || !has.captioner {
            return Err(Error::invalid(
                "precision of `screen`: it is part of `interrogate`, which needs a CLIP and a captioner",
            ));
        }
        match self.clip_text {
            Bits::F32 | Bits::High | Bits::F16 | Bits::Bf16 => Ok(()),
            bits => Err(Error::invalid(format!(
                "precision of `screen`: clip_text has {0} itself, allowed with a screen: f32, high, f16",
                bits.name()
            ))),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Precision { clip_image, clip_text, captioner, screen } = self;
        let [image, text, captioner] = [clip_image, clip_text, captioner].map(|bits| bits.name());
        let screen = if *screen { ",screen=int8" } else { "" };
        write!(f, "clip_image={image},clip_text={text},captioner={captioner}{screen}")
    }
}

/// Graphs in their precision, each converted once however many stages have it.
#[derive(Debug, Default)]
pub(crate) struct Converter {
    done: HashMap<String, (Graph, Option<PathBuf>)>,
}

impl Converter {
    /// The graph `name` in `bits`, for the stage in `folder`, where its converted weights are put.
    pub(crate) fn convert(
        &mut self,
        (name, graph): (&str, &Graph),
        bits: Bits,
        model: &ModelFolder,
        folder: &Path,
        progress: &dyn Progress,
    ) -> Result<Graph> {
        let Some(form) = bits.form(name) else {
            return if bits == Bits::High { high(graph) } else { Ok(graph.clone()) };
        };
        let file = format!("{}.weights", name.trim_end_matches(".onnx"));
        let target = folder.join(&file);
        if let Some((graph, written)) = self.done.get(name) {
            if let Some(written) = written
                && std::fs::hard_link(written, &target).is_err()
            {
                std::fs::copy(written, &target)
                    .map_err(|error| files::io("copy", written, &error))?;
            }
            return Ok(graph.clone());
        }
        let (graph, plan) = quantize(graph, form, &file, model.path())?;
        let written = (!plan.is_empty()).then_some(target);
        if let Some(target) = &written {
            let what = format!("converting the weights of {name} to {}", bits.name());
            progress.start(&what, plan.bytes(), Unit::Bytes);
            plan.write(model.path(), target, &|bytes| progress.advance(bytes))
                .map_err(|error: Error| error.context(name))?;
            progress.finish();
        }
        self.done.insert(name.to_owned(), (graph.clone(), written));
        Ok(graph)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read() {
        let of = |texts: &[&str]| {
            let choices: std::result::Result<Vec<_>, _> =
                texts.iter().map(|text| text.parse()).collect();
            choices.map(|choices: Vec<PrecisionChoice>| Precision::of(&choices).to_string())
        };
        assert_eq!(of(&[]).unwrap(), "clip_image=f32,clip_text=f32,captioner=f32");
        assert_eq!(of(&["int8"]).unwrap(), "clip_image=int8,clip_text=int8,captioner=int8");
        assert_eq!(
            of(&["captioner=int4", "f16", "clip_text=f32"]).unwrap(),
            "clip_image=f16,clip_text=f32,captioner=int4"
        );
        assert_eq!(
            of(&["screen=int8", "clip_text=f16"]).unwrap(),
            "clip_image=f32,clip_text=f16,captioner=f32,screen=int8"
        );
        assert!(of(&["screen=int4"]).unwrap_err().contains("int8"));
        assert_eq!(
            of(&["high", "captioner=f16"]).unwrap(),
            "clip_image=high,clip_text=high,captioner=f16"
        );
        assert!(of(&["int5"]).unwrap_err().contains("f32, high, f16, bf16, int8 and int4"));
        assert!(of(&["text=int8"]).unwrap_err().contains("clip_text"));
    }

    #[test]
    fn a_gpu_multiplies_floats() {
        let of = |text: &str| Precision::with_default(&[text.parse().unwrap()], Bits::F16);
        let computes = of("clip_text=bf16").computes().unwrap();
        assert_eq!(computes, [Compute::F16, Compute::Bf16, Compute::F16]);
        let error = of("captioner=int8").computes().unwrap_err();
        assert!(error.message().contains("`captioner`: int8"), "{error}");
        assert!(of("screen=int8").computes().unwrap_err().message().contains("screen"));
        assert!(of("clip_image=bf16").check_cpu().unwrap_err().message().contains("bf16"));
        assert!(of("clip_image=int8").check_cpu().is_ok() && of("high").check_cpu().is_ok());
        assert!(
            of("clip_text=high").computes().unwrap_err().message().contains("`clip_text`: high")
        );
    }

    #[test]
    fn a_screen_needs_something_to_screen_for() {
        let screen = Precision { screen: true, ..Precision::default() };
        let clip = Models { clip: true, captioner: false };
        assert!(Precision::default().check(clip).is_ok() && screen.check(Models::BOTH).is_ok());
        assert!(screen.check(clip).unwrap_err().message().contains("captioner"));
        let int8 = Precision { clip_text: Bits::Int8, ..screen };
        assert!(int8.check(Models::BOTH).unwrap_err().message().contains("clip_text has int8"));
    }
}
