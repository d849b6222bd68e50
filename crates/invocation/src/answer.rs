//! What is answered, as JSON in UTF-8.

use serde::Serialize;

/// A prompt, as the AWS sample's interrogator answers: `{"outputs": "..."}`.
pub fn prompt(text: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct Outputs<'a> {
        outputs: &'a str,
    }
    json(&Outputs { outputs: text })
}

/// Probabilities in the order of the prompts, as the AWS sample's CLIP answers: `[[p, ...]]`,
/// one list a picture.
pub fn probabilities(values: &[f32]) -> Vec<u8> {
    let values: Vec<f64> = values.iter().copied().map(f64::from).collect();
    json(&[values])
}

/// Labels with what they scored: `{"labels": [{"label", "probability", "similarity"}, ...]}`.
pub fn labels(labels: &[&str], probability: &[f32], similarity: &[f32]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Label<'a> {
        label: &'a str,
        probability: f64,
        similarity: f64,
    }
    #[derive(Serialize)]
    struct Labels<'a> {
        labels: Vec<Label<'a>>,
    }
    let scores = probability.iter().zip(similarity);
    let labels = labels.iter().zip(scores).map(|(label, (&probability, &similarity))| Label {
        label,
        probability: probability.into(),
        similarity: similarity.into(),
    });
    json(&Labels { labels: labels.collect() })
}

/// Every map here has keys of text, so that writing cannot fail.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_the_shapes_of_the_sample() {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert_eq!(text(prompt("a \"roll\"")), r#"{"outputs":"a \"roll\""}"#);
        // As Python prints a float32 that became a float.
        assert_eq!(text(probabilities(&[0.5, 0.1])), "[[0.5,0.10000000149011612]]");
        assert_eq!(text(probabilities(&[1.0])), "[[1.0]]");
        assert_eq!(
            text(labels(&["a", "b"], &[0.75, 0.25], &[0.5, -0.25])),
            concat!(
                r#"{"labels":[{"label":"a","probability":0.75,"similarity":0.5},"#,
                r#"{"label":"b","probability":0.25,"similarity":-0.25}]}"#
            )
        );
    }
}
