//! Every family of captioner through the server: the golden folders of
//! `goldens/captioners` with a tokenizer whose token 7 is the word "w7", so that the
//! reference's token ids are texts that can be sent and read.

use std::fs;
use std::path::{Path, PathBuf};

use imprompt_kserve::{Client, InferRequest};
use imprompt_repository::{BuildRequest, ModelFolder, Silent, build};
use serde_json::{Value, json};

use crate::support::Server;

/// The ids that are no words, as the golden folders have them.
const SPECIAL: [(u64, &str); 4] = [(0, "[PAD]"), (1, "[UNK]"), (4, "[SEP]"), (5, "[CLS]")];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/captioners").join(name)
}

/// The folder with a tokenizer and an image processor that leaves pixels as the goldens have them.
fn model(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let word = |id| match SPECIAL.iter().find(|(special, _)| *special == id) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("w{id}"),
    };
    let words: String = (0..96).map(|id| word(id) + "\n").collect();
    fs::write(folder.path().join("vocab.txt"), words).unwrap();
    // InstructBLIP's second tokenizer: as the goldens have it, the last word first.
    if name.starts_with("instruct") {
        let folder = folder.path().join("qformer_tokenizer");
        fs::create_dir(&folder).unwrap();
        let words: String = (0..101).rev().map(|id| word(id) + "\n").collect();
        fs::write(folder.join("vocab.txt"), words).unwrap();
    }
    let processor = json!({
        "image_processor_type": "BlipImageProcessor", "do_resize": true, "do_rescale": true,
        "do_normalize": true, "rescale_factor": 1.0 / 255.0, "resample": 3,
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    });
    fs::write(folder.path().join("preprocessor_config.json"), processor.to_string()).unwrap();
    folder
}

/// The pictures of a golden folder as PNG files.
fn pictures(name: &str) -> Vec<Vec<u8>> {
    let bytes = fs::read(golden(name).join("expected.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let pictures = tensors.tensor("pictures").unwrap();
    let plane = 32 * 32;
    assert_eq!(pictures.shape()[1..], [3, 32, 32]);
    let encode = |planes: &[u8]| {
        let pixels: Vec<u8> = (0..plane)
            .flat_map(|at| [0, 1, 2].map(|channel| planes[channel * plane + at]))
            .collect();
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, 32, 32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
        file
    };
    pictures.data().chunks_exact(3 * plane).map(encode).collect()
}

/// Ids as the text that the tokenizer makes of them.
fn text(ids: &Value) -> String {
    let ids = ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap());
    let words = ids.filter(|id| SPECIAL.iter().all(|(special, _)| special != id));
    words.map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ")
}

fn ask(client: &Client, picture: &[u8], case: &Value) -> String {
    let limit = case["max_new_tokens"].as_i64().unwrap() as i32;
    let mut request = InferRequest::new().bytes("image", [1, 1], [picture]).i32(
        "max_new_tokens",
        [1, 1],
        [limit],
    );
    if !case["prompt_ids"].is_null() {
        request = request.bytes("text", [1, 1], [text(&case["prompt_ids"])]);
    }
    for (key, value) in case["options"].as_object().into_iter().flatten() {
        request = match value.as_i64() {
            Some(whole) if key != "length_penalty" && key != "repetition_penalty" => {
                request.i32(key, [1, 1], [whole as i32])
            }
            _ => request.f32(key, [1, 1], [value.as_f64().unwrap() as f32]),
        };
    }
    client.infer("caption", &request).unwrap().text("caption").unwrap().to_owned()
}

fn cases(name: &str, file: &str) -> Vec<Value> {
    let file = fs::read(golden(name).join(file)).unwrap();
    let file: Value = serde_json::from_slice(&file).unwrap();
    file["cases"].as_array().unwrap().clone()
}

/// Options that are no inputs: a checkpoint alone can ask for them.
fn can_be_sent(case: &Value) -> bool {
    let options = case["options"].as_object().unwrap();
    !options.contains_key("early_stopping") && !options.contains_key("min_length")
}

#[test]
fn captions_of_every_family_are_transformers() {
    const FAMILIES: [&str; 5] =
        ["blip_plain", "vqa_plain", "git_plain", "t5_plain", "instruct_plain"];
    let whole = FAMILIES.into_iter().map(|name| (name, false));
    // By cross attention, in front of the text, and before a Q-Former that reads the text.
    let split = ["vqa_plain", "t5_plain", "instruct_plain"].map(|name| (name, true));
    for (name, split_captioner) in whole.chain(split) {
        let model = model(name);
        let folder = tempfile::tempdir().unwrap();
        let repository = folder.path().join("repository");
        let request = BuildRequest {
            captioner: Some(ModelFolder::open(model.path()).unwrap()),
            split_captioner,
            threads: 1,
            ..BuildRequest::new(&repository)
        };
        build(&request, &Silent).unwrap();
        let server = Server::start(&[&repository], &[]);
        let client = server.client();
        let pictures = pictures(name);
        let mut asked = cases(name, "expected.json");
        asked.extend(cases(name, "generation.json").into_iter().filter(can_be_sent));
        assert!(asked.len() > 30, "{name}: {} cases", asked.len());
        for case in &asked {
            let picture = &pictures[case["picture"].as_u64().unwrap() as usize];
            assert_eq!(ask(&client, picture, case), text(&case["ids"]), "{name}: {case}");
        }
        println!("{name}, split {split_captioner}: {} captions equal", asked.len());
        if name == "vqa_plain" {
            let request = InferRequest::new().bytes("image", [1, 1], [pictures[0].clone()]);
            let error = client.infer("caption", &request).unwrap_err();
            assert!(error.to_string().contains("a text is needed"), "{error}");
        }
        if name == "instruct_plain" {
            // No text is the empty one.
            let empty = asked.iter().find(|case| text(&case["prompt_ids"]).is_empty()).unwrap();
            let mut without = empty.clone();
            without["prompt_ids"] = Value::Null;
            let picture = &pictures[empty["picture"].as_u64().unwrap() as usize];
            assert_eq!(ask(&client, picture, &without), text(&empty["ids"]));
        }
        drop(server);
    }
}
