//! Equality with the pinned references: `goldens/picture/make.py` and `make_torchvision.py`.

mod common;

use common::{digest, file, golden, number, open, synthetic, text};
use imprompt_picture::{CropRule, Filter, Preprocessor, Scratch, portably, resize};

const FILTERS: [(&str, Filter); 6] = [
    ("nearest", Filter::Nearest),
    ("lanczos", Filter::Lanczos),
    ("bilinear", Filter::Bilinear),
    ("bicubic", Filter::Bicubic),
    ("box", Filter::Box),
    ("hamming", Filter::Hamming),
];

#[test]
fn resize_equals_pillow_bit_for_bit() {
    check_resize();
    portably(check_resize);
}

fn check_resize() {
    let golden = golden("picture.json");
    let cases = golden["resize"].as_array().unwrap();
    assert!(cases.len() > 400, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let image = synthetic(text(case, "kind"), number(case, "width"), number(case, "height"));
        let name = text(case, "filter");
        let filter = FILTERS.iter().find(|(known, _)| *known == name).unwrap().1;
        let resized = resize(&image, number(case, "new_width"), number(case, "new_height"), filter);
        if digest(resized.unwrap().pixels()) != text(case, "sha256") {
            wrong.push(case.to_string());
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// Every format, depth and kind of colour: the same bytes as Pillow's.
#[test]
fn decode_equals_pillow_bit_for_bit() {
    check_decode();
    portably(check_decode);
}

fn check_decode() {
    let golden = golden("picture.json");
    let cases = golden["decode"].as_array().unwrap();
    assert!(cases.len() > 100, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let name = text(case, "file");
        match open(&file(name)) {
            Err(error) => wrong.push(format!("{name}: {error}")),
            Ok(image) => {
                let size = (image.width(), image.height());
                if size != (number(case, "width"), number(case, "height")) {
                    wrong.push(format!("{name}: {size:?}"));
                } else if digest(image.pixels()) != text(case, "sha256") {
                    wrong.push(format!("{name}: other pixels"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn preprocess_equals_transformers_bit_for_bit() {
    check_preprocess();
    portably(check_preprocess);
}

fn check_preprocess() {
    let golden = golden("picture.json");
    let cases = golden["preprocess"].as_array().unwrap();
    assert!(cases.len() > 100, "{} cases", cases.len());
    let mut scratch = Scratch::default();
    let mut wrong = Vec::new();
    for case in cases {
        let config = golden["processors"][text(case, "config")].to_string();
        let preprocessor = Preprocessor::from_json(config.as_bytes()).unwrap();
        let shape: Vec<_> =
            case["shape"].as_array().unwrap().iter().map(|side| side.as_u64()).collect();
        let found = [3, preprocessor.height(), preprocessor.width()].map(|side| Some(side as u64));
        assert_eq!(shape, found, "{case}");
        let image = synthetic(text(case, "kind"), number(case, "width"), number(case, "height"));
        let mut out = vec![f32::NAN; preprocessor.output_len()];
        preprocessor.run(&image, &mut scratch, &mut out).unwrap();
        let bytes: Vec<_> = out.iter().flat_map(|value| value.to_le_bytes()).collect();
        if digest(&bytes) != text(case, "sha256") {
            wrong.push(case.to_string());
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn preprocess_follows_torchvision_within_a_millionth() {
    let golden = golden("torchvision.json");
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 30, "{} cases", cases.len());
    let mut scratch = Scratch::default();
    for case in cases {
        let config = serde_json::json!({
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": !case["resize"].is_null(),
            "size": case["resize"],
            "crop_size": case["crop"],
        });
        let preprocessor = Preprocessor::from_json(config.to_string().as_bytes()).unwrap();
        let preprocessor = preprocessor.with_crop_rule(CropRule::Torchvision);
        let image = synthetic(text(case, "kind"), number(case, "width"), number(case, "height"));
        let mut out = vec![f32::NAN; preprocessor.output_len()];
        preprocessor.run(&image, &mut scratch, &mut out).unwrap();
        let expected: Vec<_> = case["values"]
            .as_array()
            .unwrap()
            .iter()
            .map(|value| value.as_f64().unwrap())
            .collect();
        assert_eq!(out.len(), expected.len(), "{case}");
        for (value, expected) in out.iter().zip(&expected) {
            assert!((f64::from(*value) - expected).abs() <= 1e-6, "{value} {expected} {case}");
        }
    }
}
