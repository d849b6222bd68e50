//! Zero-shot scoring: which of a set of labels fits a picture.

use half::f16;
use imprompt_error::{Error, Result};

use crate::rank;

/// Embeddings of labels, `[n, D]`, row-major, each row L2-normalised.
#[derive(Clone, Copy, Debug)]
pub enum LabelEmbeds<'a> {
    /// Float32 rows, such as those of the labels of a request.
    Float32(&'a [f32]),
    /// Float16 rows, such as those of a stored table.
    Float16(&'a [f16]),
}

/// One label's score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Position of the label in the set.
    pub index: usize,
    /// What [`Scoring`] makes of the similarity.
    pub probability: f32,
    /// Cosine of the label with the picture.
    pub similarity: f32,
}

/// How similarities become probabilities. The scale is the factor itself, the exponential of the
/// checkpoint's parameter (about 100).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scoring {
    /// Softmax over the whole set of the similarities times `scale`, also when only some are
    /// returned: they add up to 1 (HF `CLIPModel.logits_per_image.softmax`).
    Softmax {
        /// The factor.
        scale: f32,
    },
    /// `sigmoid(similarity * scale + bias)` of each label alone (HF
    /// `SiglipModel.logits_per_image.sigmoid`).
    Sigmoid {
        /// The factor.
        scale: f32,
        /// What is added.
        bias: f32,
    },
}

/// Scores every label against `image` (float32 `[D]`, L2-normalised).
///
/// Without `top_k` the scores come in the order of the labels; with it the
/// best `top_k` come, best first, equal ones in the order of the labels.
///
/// # Errors
/// When the rows do not have the width of the image, or a value is not finite.
pub fn zero_shot(
    image: &[f32],
    labels: LabelEmbeds<'_>,
    scoring: Scoring,
    top_k: Option<usize>,
) -> Result<Vec<Score>> {
    let values = match labels {
        LabelEmbeds::Float32(rows) => rows.len(),
        LabelEmbeds::Float16(rows) => rows.len(),
    };
    if image.is_empty() || !values.is_multiple_of(image.len()) {
        return Err(Error::internal(format!(
            "label embeddings: {values} values are no rows of {} values, the image's",
            image.len()
        )));
    }
    let mut similarities = Vec::new();
    match labels {
        LabelEmbeds::Float32(rows) => {
            similarities.extend(rows.chunks_exact(image.len()).map(|row| rank::dot(row, image)));
        }
        LabelEmbeds::Float16(rows) => rank::append_similarities(rows, image, &mut similarities),
    }
    let (scale, bias) = match scoring {
        Scoring::Softmax { scale } => (scale, 0.0),
        Scoring::Sigmoid { scale, bias } => (scale, bias),
    };
    let is_finite = similarities.iter().chain([&scale, &bias]).all(|value| value.is_finite());
    if !is_finite {
        return Err(Error::internal("zero-shot scores: a similarity is not finite"));
    }
    let logit = |similarity: f32| f64::from(similarity) * f64::from(scale) + f64::from(bias);
    let logits: Vec<f64> = similarities.iter().map(|value| logit(*value)).collect();
    let greatest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|logit| (logit - greatest).exp()).sum();
    let probability = |logit: f64| match scoring {
        Scoring::Softmax { .. } => (logit - greatest).exp() / total,
        Scoring::Sigmoid { .. } => 1.0 / (1.0 + (-logit).exp()),
    };
    let score = |index: usize| Score {
        index,
        probability: probability(logits[index]) as f32,
        similarity: similarities[index],
    };
    Ok(match top_k {
        None => (0..similarities.len()).map(score).collect(),
        Some(count) => rank::rank_exact(&similarities, count).into_iter().map(score).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOFTMAX: Scoring = Scoring::Softmax { scale: 100.0 };

    #[test]
    fn probabilities_are_the_softmax_of_scaled_cosines() {
        // torch.softmax(100 * torch.tensor([0.25, 0.28, 0.25, -0.1], dtype=torch.float64), 0)
        let expected = [0.045278, 0.909443, 0.045278, 0.0];
        let rows = [0.25, 0.28, 0.25, -0.1];
        let scores = zero_shot(&[1.0], LabelEmbeds::Float32(&rows), SOFTMAX, None).unwrap();
        for (index, score) in scores.iter().enumerate() {
            assert_eq!((score.index, score.similarity), (index, rows[index]));
            assert!((score.probability - expected[index]).abs() < 1e-5, "{score:?}");
        }
        let best = zero_shot(&[1.0], LabelEmbeds::Float32(&rows), SOFTMAX, Some(3)).unwrap();
        assert_eq!(best.iter().map(|score| score.index).collect::<Vec<_>>(), [1, 0, 2]);
        assert_eq!(best[0], scores[1], "probabilities are over the whole set");
    }

    #[test]
    fn sigmoids_are_of_each_label_alone() {
        // torch.sigmoid(117.3 * torch.tensor([0.1, 0.12, -0.1], dtype=torch.float64) - 12.9)
        let expected = [0.236_855, 0.764_227_8, 2.010_6e-11];
        let scoring = Scoring::Sigmoid { scale: 117.3, bias: -12.9 };
        let rows = [0.1, 0.12, -0.1];
        let scores = zero_shot(&[1.0], LabelEmbeds::Float32(&rows), scoring, None).unwrap();
        for (score, expected) in scores.iter().zip(expected) {
            assert!((score.probability - expected).abs() < 1e-5, "{score:?}");
        }
        let alone = zero_shot(&[1.0], LabelEmbeds::Float32(&rows[1..2]), scoring, Some(1)).unwrap();
        assert_eq!(alone[0].probability, scores[1].probability);
        let nowhere = Scoring::Sigmoid { scale: 1.0, bias: f32::NAN };
        assert!(zero_shot(&[1.0], LabelEmbeds::Float32(&rows), nowhere, None).is_err());
    }

    #[test]
    fn great_scales_do_not_overflow_and_halves_are_widened() {
        let rows = [f16::from_f32(1.0), f16::from_f32(-1.0)];
        let scores = zero_shot(
            &[1.0],
            LabelEmbeds::Float16(&rows),
            Scoring::Softmax { scale: 1e5 },
            Some(9),
        )
        .unwrap();
        assert_eq!(scores.len(), 2);
        assert_eq!((scores[0].probability, scores[1].probability), (1.0, 0.0));
        assert!(zero_shot(&[1.0], LabelEmbeds::Float32(&[]), SOFTMAX, Some(1)).unwrap().is_empty());
    }

    #[test]
    fn wrong_widths_and_values_are_refused() {
        assert!(zero_shot(&[1.0, 0.0], LabelEmbeds::Float32(&[1.0; 3]), SOFTMAX, None).is_err());
        assert!(zero_shot(&[], LabelEmbeds::Float32(&[]), SOFTMAX, None).is_err());
        assert!(zero_shot(&[f32::NAN], LabelEmbeds::Float32(&[1.0]), SOFTMAX, None).is_err());
    }
}
