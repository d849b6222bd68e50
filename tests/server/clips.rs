//! The forms of CLIP other than transformers' through the server: open_clip's folders and
//! SigLIP, from the folder to the answers of `zero_shot`, against the references' own.

use std::fs;
use std::path::{Path, PathBuf};

use imprompt_kserve::InferRequest;
use imprompt_repository::{BuildRequest, ModelFolder, Silent, build};
use serde_json::Value;

use crate::support::Server;

fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The golden folder and, beside its files, another folder's tokenizer.
fn model(name: &str, tokenizer: Option<&str>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &Path, prefix: &str| {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let file = entry.file_name().into_string().unwrap();
            if file.starts_with(prefix) {
                fs::copy(entry.path(), folder.path().join(file)).unwrap();
            }
        }
    };
    copy(&project().join("goldens").join(name), "");
    if let Some(tokenizer) = tokenizer {
        copy(&project().join(tokenizer), "tokenizer");
    }
    folder
}

fn floats(values: &Value) -> Vec<f32> {
    values.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

#[test]
fn open_clip_and_siglip_answer_as_their_references() {
    for (name, golden, tokenizer) in [
        ("open_clip/words", "open_clip/zero_shot.json", Some("models/demo-clip")),
        ("siglip/siglip", "siglip/siglip.json", None),
        ("siglip/siglip2", "siglip/siglip2.json", None),
        ("open_clip/siglip", "open_clip/siglip.json", None),
        ("open_clip/siglip2", "open_clip/siglip2.json", None),
    ] {
        let golden = fs::read(project().join("goldens").join(golden)).unwrap();
        let golden: Value = serde_json::from_slice(&golden).unwrap();
        let model = model(name, tokenizer);
        let folder = tempfile::tempdir().unwrap();
        let repository = folder.path().join("repository");
        let request = BuildRequest {
            clip: Some(ModelFolder::open(model.path()).unwrap()),
            threads: 1,
            ..BuildRequest::new(&repository)
        };
        build(&request, &Silent).unwrap();
        let server = Server::start(&[&repository], &[]);
        let picture = fs::read(project().join(golden["picture"].as_str().unwrap())).unwrap();
        let labels = golden["labels"].as_array().unwrap().iter();
        let labels: Vec<String> = labels.map(|label| label.as_str().unwrap().to_owned()).collect();
        let request = InferRequest::new().bytes("image", [1, 1], [picture]).bytes(
            "labels",
            [1, labels.len() as i64],
            labels,
        );
        let response = server.client().infer("zero_shot", &request).unwrap();
        for output in ["similarity", "probability"] {
            let (found, expected) = (response.f32(output).unwrap(), floats(&golden[output]));
            assert_eq!(found.len(), expected.len());
            let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
            let largest = differences.fold(0.0, f32::max);
            println!("{name}: {output} within {largest:.1e}");
            assert!(largest < 1e-5, "{name} {output}: {found:?}, expected {expected:?}");
        }
    }
}
