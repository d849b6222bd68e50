//! Which of an engine's profiles a run has.

use imprompt_engine::Port;
use imprompt_engine::manifest::InputRange;
use imprompt_error::{Error, Result};

/// Lengths of what a decoder looks at are multiples of this (`Engine::length_step`): kernels are
/// compiled and steps are recorded for the very shapes.
pub(crate) const LENGTH_STEP: usize = 64;

/// The inputs whose lengths are.
const STEPPED: [&str; 2] = ["key_positions", "memory_positions"];

/// So many sets of shapes are few.
const FEW: usize = 128;

/// The place of the first profile whose ranges hold `shapes`, those of `inputs` in their order.
///
/// # Errors
/// `Internal` naming an input, its shape and the ranges, when there is none.
pub(crate) fn choose(
    profiles: &[Vec<InputRange>],
    inputs: &[Port],
    shapes: &[Vec<usize>],
) -> Result<usize> {
    for (port, shape) in inputs.iter().zip(shapes) {
        let is_right =
            |(length, fixed): (&usize, &Option<usize>)| fixed.is_none_or(|n| n == *length);
        if shape.len() != port.shape.len() || !shape.iter().zip(&port.shape).all(is_right) {
            return Err(Error::internal(format!(
                "input {}: shape {shape:?}, the engine takes {}",
                port.name,
                shown(&port.shape)
            )));
        }
    }
    // Without free lengths there are no ranges, and one way to run.
    if profiles.is_empty() {
        return Ok(0);
    }
    let misfit = |profile: &Vec<InputRange>| {
        inputs.iter().zip(shapes).find(|(port, shape)| {
            profile.iter().any(|range| range.input == port.name && !holds(range, shape))
        })
    };
    let mut misfits = Vec::with_capacity(profiles.len());
    for (place, profile) in profiles.iter().enumerate() {
        match misfit(profile) {
            None => return Ok(place),
            Some(found) => misfits.push(found),
        }
    }
    // The input that the last profile does not hold: the one that takes most comes last.
    let Some((port, shape)) = misfits.last() else { return Ok(0) };
    let ranges: Vec<String> = profiles
        .iter()
        .flatten()
        .filter(|range| range.input == port.name)
        .map(|range| format!("{:?} to {:?}", range.least, range.most))
        .collect();
    Err(Error::internal(format!(
        "input {}: shape {shape:?} together with the other inputs' fits no profile of the engine; \
         theirs are {}",
        port.name,
        ranges.join(", ")
    )))
}

fn holds(range: &InputRange, shape: &[usize]) -> bool {
    let ends = range.least.iter().zip(&range.most);
    shape.len() == range.least.len()
        && shape.iter().zip(ends).all(|(length, (least, most))| (least..=most).contains(&length))
}

fn shown(shape: &[Option<usize>]) -> String {
    let lengths: Vec<String> =
        shape.iter().map(|length| length.map_or("?".to_owned(), |n| n.to_string())).collect();
    format!("[{}]", lengths.join(", "))
}

/// Whether runs of `profile` have few sets of shapes, so that it pays to compile kernels for each and
/// to record it. Lengths with the same range are taken for the same one.
pub(crate) fn has_few_shapes(profile: &[InputRange]) -> bool {
    let mut spans: Vec<(usize, usize)> = Vec::new();
    let mut count = 1usize;
    for range in profile {
        let step = if STEPPED.contains(&range.input.as_str()) { LENGTH_STEP } else { 1 };
        for (&least, &most) in range.least.iter().zip(&range.most) {
            if most > least && !spans.contains(&(least, most)) {
                spans.push((least, most));
                count = count.saturating_mul((most - least + 1).div_ceil(step));
            }
        }
    }
    count <= FEW
}

#[cfg(test)]
mod tests {
    use super::*;
    use imprompt_engine::ElementType;
    use imprompt_error::Kind;

    fn port(name: &str, shape: &[Option<usize>]) -> Port {
        Port { name: name.to_owned(), element_type: ElementType::F32, shape: shape.to_vec() }
    }

    fn range(input: &str, least: &[usize], most: &[usize]) -> InputRange {
        let (least, most) = (least.to_vec(), most.to_vec());
        InputRange { input: input.to_owned(), least, best: most.clone(), most }
    }

    /// A decoder's: a step of one token without a picture, and the prefill.
    fn decoder() -> (Vec<Vec<InputRange>>, Vec<Port>) {
        let profile = |prefix: usize, tokens: usize| {
            vec![
                range("picture_embeds", &[1, 0, 4], &[8, prefix, 4]),
                range("input_ids", &[1, 1], &[8, tokens]),
                range("key_positions", &[1], &[544]),
            ]
        };
        let inputs = vec![
            port("picture_embeds", &[None, None, Some(4)]),
            port("input_ids", &[None, None]),
            port("key_positions", &[None]),
        ];
        (vec![profile(0, 1), profile(32, 512)], inputs)
    }

    #[test]
    fn a_step_and_a_prefill_have_their_own() {
        let (profiles, inputs) = decoder();
        let chosen = |picture: [usize; 3], ids: [usize; 2], keys: usize| {
            choose(&profiles, &inputs, &[picture.to_vec(), ids.to_vec(), vec![keys]])
        };
        assert_eq!(chosen([3, 0, 4], [3, 1], 40).unwrap(), 0);
        assert_eq!(chosen([1, 32, 4], [1, 1], 33).unwrap(), 1);
        assert_eq!(chosen([1, 0, 4], [1, 2], 2).unwrap(), 1);
    }

    #[test]
    fn what_fits_none_is_named_with_the_ranges() {
        let (profiles, inputs) = decoder();
        let refused = |picture: &[usize], ids: &[usize], keys: usize, what: &str| {
            let shapes = [picture.to_vec(), ids.to_vec(), vec![keys]];
            let error = choose(&profiles, &inputs, &shapes).unwrap_err();
            assert_eq!(error.kind(), Kind::Internal);
            assert!(error.message().contains(what), "{error}");
        };
        refused(&[9, 0, 4], &[9, 1], 2, "input picture_embeds: shape [9, 0, 4]");
        refused(&[9, 0, 4], &[9, 1], 2, "[1, 0, 4] to [8, 0, 4], [1, 0, 4] to [8, 32, 4]");
        refused(&[1, 0, 4], &[1, 1], 545, "input key_positions: shape [545]");
        refused(&[1, 33, 4], &[1, 1], 40, "input picture_embeds: shape [1, 33, 4]");
        refused(&[1, 0, 5], &[1, 1], 2, "[1, 0, 5], the engine takes [?, ?, 4]");
        refused(&[1, 0], &[1, 1], 2, "shape [1, 0], the engine takes [?, ?, 4]");
    }

    #[test]
    fn without_free_lengths_there_is_one() {
        let inputs = [port("pixel_values", &[Some(1), Some(3)])];
        assert_eq!(choose(&[], &inputs, &[vec![1, 3]]).unwrap(), 0);
        assert!(choose(&[], &inputs, &[vec![2, 3]]).is_err());
    }

    #[test]
    fn pictures_and_steps_have_few_shapes() {
        let (profiles, _) = decoder();
        assert!(has_few_shapes(&profiles[0]));
        assert!(!has_few_shapes(&profiles[1]));
        assert!(has_few_shapes(&[range("pixel_values", &[1, 3, 9, 9], &[8, 3, 9, 9])]));
        let texts = [range("input_ids", &[1, 1], &[256, 77]), range("last_index", &[1], &[256])];
        assert!(!has_few_shapes(&texts));
        assert!(has_few_shapes(&[]));
    }
}
