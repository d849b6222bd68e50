//! Zero-shot scoring: which of a set of labels fits a picture.

use half::f16;
use imprompt_error::{Error, Result};

use crate::rank;
use crate::table::LabelTable;
use crate::table_ranker::TableRanker;

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

/// Images scored in one pass over the rows: more would be read from the same cache lines, but their
/// similarities need memory.
const PASS_IMAGES: usize = 8;

/// Scores every label against each of `images` (float32 `[n, dimension]`, rows L2-normalised): a
/// list for each image.
///
/// Without `top_k` the scores come in the order of the labels; with it the
/// best `top_k` come, best first, equal ones in the order of the labels. Float16 rows are read
/// once for several images, by at most `threads` threads (0: one a core, at most 8).
///
/// # Errors
/// When images or rows do not have the width `dimension`, or a value is not finite.
pub fn zero_shot(
    images: &[f32],
    dimension: usize,
    labels: LabelEmbeds<'_>,
    scoring: Scoring,
    top_k: Option<usize>,
    threads: usize,
) -> Result<Vec<Vec<Score>>> {
    let values = match labels {
        LabelEmbeds::Float32(rows) => rows.len(),
        LabelEmbeds::Float16(rows) => rows.len(),
    };
    for (what, values) in [("image embeddings", images.len()), ("label embeddings", values)] {
        check_rows(what, values, dimension)?;
    }
    let mut scores = Vec::with_capacity(images.len() / dimension);
    for images in images.chunks(PASS_IMAGES * dimension) {
        let similarities = match labels {
            LabelEmbeds::Float32(rows) => images
                .chunks_exact(dimension)
                .map(|image| {
                    rows.chunks_exact(dimension).map(|row| rank::dot(row, image)).collect()
                })
                .collect(),
            LabelEmbeds::Float16(rows) => {
                imprompt_similarity::similarities(&[rows], images, dimension, threads)
            }
        };
        for similarities in similarities {
            scores.push(score(&similarities, scoring, top_k)?);
        }
    }
    Ok(scores)
}

/// [`zero_shot`] with the labels of `table` by `ranker`, which has it.
///
/// # Errors
/// As [`zero_shot`], and those of the ranker.
pub fn zero_shot_by(
    ranker: &mut dyn TableRanker,
    table: &LabelTable,
    images: &[f32],
    scoring: Scoring,
    top_k: Option<usize>,
) -> Result<Vec<Vec<Score>>> {
    let dimension = table.dimension();
    check_rows("image embeddings", images.len(), dimension)?;
    let mut scores = Vec::with_capacity(images.len() / dimension);
    for images in images.chunks(PASS_IMAGES * dimension) {
        ranker.compare(&[table], images)?;
        let similarities = ranker.similarities()?;
        let count = images.len() / dimension;
        if similarities.len() != count * table.len() {
            return Err(Error::internal(format!(
                "{} similarities of {} labels and {count} images",
                similarities.len(),
                table.len()
            )));
        }
        for image in 0..count {
            let similarities = &similarities[image * table.len()..][..table.len()];
            scores.push(score(similarities, scoring, top_k)?);
        }
    }
    Ok(scores)
}

/// So many values are whole rows.
fn check_rows(what: &str, values: usize, dimension: usize) -> Result<()> {
    if dimension == 0 || !values.is_multiple_of(dimension) {
        return Err(Error::internal(format!(
            "{what}: {values} values are no rows of {dimension} values"
        )));
    }
    Ok(())
}

/// The scores of one image.
fn score(similarities: &[f32], scoring: Scoring, top_k: Option<usize>) -> Result<Vec<Score>> {
    let (scale, bias) = match scoring {
        Scoring::Softmax { scale } => (scale, 0.0),
        Scoring::Sigmoid { scale, bias } => (scale, bias),
    };
    let is_finite = similarities.iter().chain([&scale, &bias]).all(|value| value.is_finite());
    if !is_finite {
        return Err(Error::internal("zero-shot scores: a similarity is not finite"));
    }
    let logit = |similarity: f32| f64::from(similarity) * f64::from(scale) + f64::from(bias);
    let logits = || similarities.iter().map(|value| logit(*value));
    let (greatest, total) = match scoring {
        Scoring::Softmax { .. } => {
            let greatest = logits().fold(f64::NEG_INFINITY, f64::max);
            (greatest, logits().map(|logit| (logit - greatest).exp()).sum())
        }
        Scoring::Sigmoid { .. } => (0.0, 1.0),
    };
    let probability = |logit: f64| match scoring {
        Scoring::Softmax { .. } => (logit - greatest).exp() / total,
        Scoring::Sigmoid { .. } => 1.0 / (1.0 + (-logit).exp()),
    };
    let score = |index: usize| Score {
        index,
        probability: probability(logit(similarities[index])) as f32,
        similarity: similarities[index],
    };
    Ok(match top_k {
        None => (0..similarities.len()).map(score).collect(),
        Some(count) => rank::rank_exact(similarities, count).into_iter().map(score).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scores of one image.
    fn one(
        image: &[f32],
        labels: LabelEmbeds<'_>,
        scoring: Scoring,
        top_k: Option<usize>,
    ) -> Result<Vec<Score>> {
        Ok(zero_shot(image, image.len(), labels, scoring, top_k, 0)?.pop().unwrap_or_default())
    }

    const SOFTMAX: Scoring = Scoring::Softmax { scale: 100.0 };

    #[test]
    fn probabilities_are_the_softmax_of_scaled_cosines() {
        // torch.softmax(100 * torch.tensor([0.25, 0.28, 0.25, -0.1], dtype=torch.float64), 0)
        let expected = [0.045278, 0.909443, 0.045278, 0.0];
        let rows = [0.25, 0.28, 0.25, -0.1];
        let scores = one(&[1.0], LabelEmbeds::Float32(&rows), SOFTMAX, None).unwrap();
        for (index, score) in scores.iter().enumerate() {
            assert_eq!((score.index, score.similarity), (index, rows[index]));
            assert!((score.probability - expected[index]).abs() < 1e-5, "{score:?}");
        }
        let best = one(&[1.0], LabelEmbeds::Float32(&rows), SOFTMAX, Some(3)).unwrap();
        assert_eq!(best.iter().map(|score| score.index).collect::<Vec<_>>(), [1, 0, 2]);
        assert_eq!(best[0], scores[1], "probabilities are over the whole set");
    }

    #[test]
    fn sigmoids_are_of_each_label_alone() {
        // torch.sigmoid(117.3 * torch.tensor([0.1, 0.12, -0.1], dtype=torch.float64) - 12.9)
        let expected = [0.236_855, 0.764_227_8, 2.010_6e-11];
        let scoring = Scoring::Sigmoid { scale: 117.3, bias: -12.9 };
        let rows = [0.1, 0.12, -0.1];
        let scores = one(&[1.0], LabelEmbeds::Float32(&rows), scoring, None).unwrap();
        for (score, expected) in scores.iter().zip(expected) {
            assert!((score.probability - expected).abs() < 1e-5, "{score:?}");
        }
        let alone = one(&[1.0], LabelEmbeds::Float32(&rows[1..2]), scoring, Some(1)).unwrap();
        assert_eq!(alone[0].probability, scores[1].probability);
        let nowhere = Scoring::Sigmoid { scale: 1.0, bias: f32::NAN };
        assert!(one(&[1.0], LabelEmbeds::Float32(&rows), nowhere, None).is_err());
    }

    #[test]
    fn great_scales_do_not_overflow_and_halves_are_widened() {
        let rows = [f16::from_f32(1.0), f16::from_f32(-1.0)];
        let scores =
            one(&[1.0], LabelEmbeds::Float16(&rows), Scoring::Softmax { scale: 1e5 }, Some(9))
                .unwrap();
        assert_eq!(scores.len(), 2);
        assert_eq!((scores[0].probability, scores[1].probability), (1.0, 0.0));
        assert!(one(&[1.0], LabelEmbeds::Float32(&[]), SOFTMAX, Some(1)).unwrap().is_empty());
    }

    #[test]
    fn wrong_widths_and_values_are_refused() {
        assert!(one(&[1.0, 0.0], LabelEmbeds::Float32(&[1.0; 3]), SOFTMAX, None).is_err());
        assert!(one(&[], LabelEmbeds::Float32(&[]), SOFTMAX, None).is_err());
        assert!(one(&[f32::NAN], LabelEmbeds::Float32(&[1.0]), SOFTMAX, None).is_err());
    }

    #[test]
    fn several_images_are_scored_apart() {
        let rows: Vec<f16> = (0..40).map(|i| f16::from_f32((i % 7) as f32)).collect();
        let images: Vec<f32> = (0..22).map(|i| (i % 5) as f32).collect();
        let labels = LabelEmbeds::Float16(&rows);
        let all = zero_shot(&images, 2, labels, SOFTMAX, Some(3), 1).unwrap();
        assert_eq!(all.len(), 11);
        for (image, scores) in images.chunks(2).zip(&all) {
            assert_eq!(&one(image, labels, SOFTMAX, Some(3)).unwrap(), scores);
        }
        assert!(zero_shot(&images, 3, labels, SOFTMAX, None, 1).is_err());
    }
}
