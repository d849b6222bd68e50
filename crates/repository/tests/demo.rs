//! The demo models become a repository whose stages open and whose tables are kept on a rebuild.
//! Needs ONNX Runtime: `scripts/setup` installs it, IMPROMPT_ONNXRUNTIME names it.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use imprompt_error::{Kind, Uncancellable};
use imprompt_repository::{
    AddTables, BuildRequest, InProcess, Manifest, ModelFolder, Progress, Silent, Unit, add_tables,
    build, remove_tables,
};
use imprompt_stage::ensemble::{ENSEMBLES, INVOCATIONS};
use imprompt_stage::{Data, Parameters, Response, Tensor};

fn models(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name)
}

/// The library that the tests use: the variable's, or the one that scripts/setup installs.
fn onnxruntime() -> PathBuf {
    if let Some(path) = std::env::var_os("IMPROMPT_ONNXRUNTIME") {
        return path.into();
    }
    let installed = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../.imprompt/onnxruntime/onnxruntime/capi/libonnxruntime.so.1.32.0");
    assert!(installed.is_file(), "no ONNX Runtime: run scripts/setup, or set IMPROMPT_ONNXRUNTIME");
    installed
}

fn request(out: &Path, clip: bool, captioner: bool) -> BuildRequest {
    let open = |name| ModelFolder::open(&models(name)).unwrap();
    BuildRequest {
        clip: clip.then(|| open("demo-clip")),
        captioner: captioner.then(|| open("demo-blip2")),
        onnxruntime: Some(onnxruntime()),
        ..BuildRequest::new(out)
    }
}

/// A small vocabulary.
fn vocabulary(folder: &Path) -> PathBuf {
    let vocabulary = folder.join("vocabulary");
    std::fs::create_dir(&vocabulary).unwrap();
    for (name, text) in [
        ("artists", "Noto\nTwemoji\n"),
        ("flavors", "crisp\nflaky\ngolden\nbread\n"),
        ("mediums", "an emoji\na drawing\n"),
        ("movements", "food drink\nanimals\n"),
        ("negative", "blurry\n"),
        ("foods", "croissant\nbread\ncheese wedge\n"),
    ] {
        std::fs::write(vocabulary.join(format!("{name}.txt")), text).unwrap();
    }
    vocabulary
}

#[derive(Default)]
struct Started(Mutex<Vec<String>>);

impl Progress for Started {
    fn say(&self, _text: &str) {}
    fn start(&self, what: &str, _total: u64, _unit: Unit) {
        self.0.lock().unwrap().push(what.to_owned());
    }
    fn advance(&self, _by: u64) {}
    fn finish(&self) {}
}

fn parameters() -> Parameters {
    Parameters { onnxruntime: Some(onnxruntime()), ..Parameters::default() }
}

fn picture() -> Tensor<'static> {
    let bytes = std::fs::read(models("croissant.png")).unwrap();
    Tensor::bytes("image", vec![1, 1], vec![bytes.into()])
}

fn texts(name: &'static str, texts: &[&str]) -> Tensor<'static> {
    let values = texts.iter().map(|text| text.as_bytes().to_vec().into()).collect();
    Tensor::bytes(name, vec![1, texts.len()], values)
}

#[test]
fn a_whole_repository_answers_in_every_ensemble() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("repository");
    let mut whole = request(&out, true, true);
    whole.vocabularies = vec![vocabulary(folder.path())];
    let started = Started::default();
    let manifest = build(&whole, &started).unwrap();
    let names: Vec<_> =
        ENSEMBLES.iter().chain(&INVOCATIONS).map(|ensemble| ensemble.name).collect();
    assert_eq!(manifest.ensembles, names);
    assert_eq!(manifest.stages.len(), 9);
    assert_eq!(started.0.lock().unwrap().len(), 7, "six tables and the trendings are embedded");
    assert_eq!(Manifest::read(&out).unwrap(), manifest);
    for name in &manifest.ensembles {
        let config = std::fs::read_to_string(out.join(name).join("config.pbtxt")).unwrap();
        assert!(config.contains("\nplatform: \"ensemble\"\n"));
        assert!(out.join(name).join("1/.keep").is_file());
    }
    let config = std::fs::read_to_string(out.join("clip_image/config.pbtxt")).unwrap();
    assert!(config.contains("dims: [ 3, 64, 64 ]") && !config.contains("-1"), "{config}");

    let run = |ensemble: &str, inputs: Vec<Tensor<'static>>| {
        let mut opened = InProcess::open(&out, ensemble, &parameters()).unwrap();
        opened.run(inputs, &Uncancellable).unwrap()
    };
    for mode in ["best", "fast", "classic", "negative", "caption"] {
        let response = run("interrogate", vec![picture(), texts("mode", &[mode])]);
        assert_eq!(response.len(), 4);
    }
    let response = run("zero_shot", vec![picture(), texts("vocabulary", &["foods"])]);
    assert_eq!(response[0].shape, [1, 3]);
    let Data::F32(embedding) = &run("embed_text", vec![texts("text", &["a cat"])])[0].data else {
        panic!("not floats")
    };
    let norm: f32 = embedding.iter().map(|value| value * value).sum();
    assert!((norm - 1.0).abs() < 1e-4, "{norm}");
    assert_eq!(run("caption", vec![picture()]).len(), 1);
    bodies_get_what_tensors_get(&run);
    assert_eq!(run("embed_image", vec![picture()]).len(), 1);

    // The second build has nothing to embed; another label makes its table new.
    let started = Started::default();
    assert_eq!(build(&whole, &started).unwrap(), manifest);
    assert!(started.0.lock().unwrap().is_empty());
    std::fs::write(folder.path().join("vocabulary/foods.txt"), "croissant\n").unwrap();
    build(&whole, &started).unwrap();
    assert_eq!(*started.0.lock().unwrap(), ["embedding 1 labels of foods"]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no partial build is left");
}

#[test]
fn one_model_makes_the_ensembles_that_are_possible() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("repository");
    let clip = build(&request(&out, true, false), &Silent).unwrap();
    assert_eq!(clip.ensembles, ["zero_shot", "embed_image", "embed_text", "invocations_zero_shot"]);
    assert_eq!(
        clip.stages,
        ["invocation", "preprocess", "clip_image", "clip_text", "tagger", "answer"]
    );
    let refused = InProcess::open(&out, "caption", &parameters()).err().unwrap();
    assert_eq!(refused.kind(), Kind::NotFound);
    let captioner = build(&request(&out, false, true), &Silent).unwrap();
    assert_eq!(captioner.ensembles, ["caption"]);
    assert!(!out.join("tagger").exists(), "the earlier repository is gone");
    assert_eq!(
        build(&request(&out, false, false), &Silent).unwrap_err().kind(),
        Kind::InvalidInput
    );
    let mut tables = request(&out, false, true);
    tables.vocabularies = vec![models("demo-vocabulary")];
    assert_eq!(build(&tables, &Silent).unwrap_err().kind(), Kind::InvalidInput);
    assert_eq!(Manifest::read(&out).unwrap(), captioner, "a failed build changes nothing");
}

#[test]
fn tables_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("repository");
    build(&request(&out, true, true), &Silent).unwrap();
    let add = |sources: &[PathBuf], replace| {
        let request =
            AddTables { sources: sources.to_vec(), replace, onnxruntime: Some(onnxruntime()) };
        add_tables(&out, &request, &Silent)
    };
    let vocabulary = vocabulary(folder.path());
    let added = add(&[vocabulary.join("foods.txt")], false).unwrap();
    assert_eq!((added.len(), added[0].labels), (1, 3));
    assert_eq!(
        add(std::slice::from_ref(&vocabulary), false).unwrap_err().kind(),
        Kind::InvalidInput
    );
    assert_eq!(add(std::slice::from_ref(&vocabulary), true).unwrap().len(), 7);
    assert_eq!(add(&[vocabulary.join("mediums.txt")], true).unwrap().len(), 1);
    let mut opened = InProcess::open(&out, "interrogate", &parameters()).unwrap();
    opened.run(vec![picture(), texts("mode", &["classic"])], &Uncancellable).unwrap();

    let remove = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        remove_tables(&out, &names, &Silent)
    };
    let error = remove(&["mediums", "moods"]).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(Manifest::read(&out).unwrap().tables.len(), 7);
    remove(&["mediums", "foods"]).unwrap();
    assert!(!out.join("ranker/1/tables/mediums.txt").exists());
    let mut opened = InProcess::open(&out, "interrogate", &parameters()).unwrap();
    assert!(opened.run(vec![picture(), texts("mode", &["classic"])], &Uncancellable).is_err());
    opened.run(vec![picture(), texts("mode", &["caption"])], &Uncancellable).unwrap();
}

#[test]
fn copies_are_one_file_apart_from_the_source() {
    use std::os::unix::fs::MetadataExt as _;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("repository");
    let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
    let source = inode(&models("demo-clip").join("model.safetensors"));
    for copy in [false, true] {
        build(&BuildRequest { copy, ..request(&out, true, false) }, &Silent).unwrap();
        let stages = ["clip_image", "clip_text", "tagger"];
        let inodes = stages.map(|stage| inode(&out.join(stage).join("1/model.safetensors")));
        assert_eq!(inodes, [inodes[0]; 3]);
        assert_eq!(inodes[0] == source, !copy);
    }
}

#[test]
fn another_encoder_embeds_the_same_labels_anew() {
    let folder = tempfile::tempdir().unwrap();
    let clip = folder.path().join("clip");
    std::fs::create_dir(&clip).unwrap();
    for entry in std::fs::read_dir(models("demo-clip")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, clip.join(path.file_name().unwrap())).unwrap();
    }
    let mut request = request(&folder.path().join("repository"), true, false);
    request.clip = Some(ModelFolder::open(&clip).unwrap());
    request.vocabularies = vec![vocabulary(folder.path())];
    let embedded = || {
        let started = Started::default();
        build(&request, &started).unwrap();
        started.0.into_inner().unwrap().len()
    };
    assert_eq!((embedded(), embedded()), (7, 0));
    // The same header and size, one bit of one weight: as further training leaves it.
    let weights = clip.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::remove_file(&weights).unwrap();
    std::fs::write(&weights, bytes).unwrap();
    assert_eq!(embedded(), 7);
}

#[test]
fn a_captioner_in_two_stages_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let tables = vocabulary(folder.path());
    let answers = |split_captioner: bool| {
        let out = folder.path().join(split_captioner.to_string());
        let mut request = BuildRequest { split_captioner, ..request(&out, true, true) };
        request.vocabularies = vec![tables.clone()];
        let manifest = build(&request, &Silent).unwrap();
        let stages = ["captioner", "caption_vision", "caption_decoder"]
            .map(|name| manifest.stages.iter().any(|stage| stage == name));
        assert_eq!(stages, [!split_captioner, split_captioner, split_captioner]);
        let items =
            |name: &'static str, of: [&str; 4]| Tensor::texts(name, of.map(str::to_owned).to_vec());
        let modes = items("mode", ["fast", "negative", "classic", "fast"]);
        let given = items("given_caption", ["", "", "a cat", "a dog"]);
        let bytes = std::fs::read(models("croissant.png")).unwrap();
        let pictures = || Tensor::bytes("image", vec![4, 1], vec![bytes.clone().into(); 4]);
        let begun = items("text", ["a", "", "a picture of", "the"]);
        let run = |ensemble: &str, inputs| {
            let mut opened = InProcess::open(&out, ensemble, &parameters()).unwrap();
            opened.run(inputs, &Uncancellable).unwrap()
        };
        let mut interrogated = run("interrogate", vec![pictures(), modes, given]);
        // It says how long it took.
        interrogated.retain(|tensor| tensor.name != "report");
        assert_eq!(interrogated.len(), 3);
        (interrogated, run("caption", vec![pictures(), begun]))
    };
    assert_eq!(answers(true), answers(false));
}

/// The one-input ensembles against those with named tensors, to the bit.
fn bodies_get_what_tensors_get(run: &dyn Fn(&str, Vec<Tensor<'static>>) -> Response) {
    let text = |response: &Response, name: &str| {
        let tensor = response.iter().find(|tensor| tensor.name == name).unwrap();
        let Data::Bytes(values) = &tensor.data else { panic!("no texts") };
        String::from_utf8(values[0].to_vec()).unwrap()
    };
    let answer = |ensemble: &str, body: Vec<u8>| {
        let body = Tensor::bytes("body", vec![1, 1], vec![body.into()]);
        let answer = text(&run(ensemble, vec![body]), "outputs");
        serde_json::from_str::<serde_json::Value>(&answer).unwrap()
    };
    let bytes = std::fs::read(models("croissant.png")).unwrap();
    let image = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &bytes);
    let json = |fields: serde_json::Value| {
        let mut body = serde_json::json!({ "image": image });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body.to_string().into_bytes()
    };

    let labels = ["a croissant", "a red car", "a fish"];
    let expected = run("zero_shot", vec![picture(), texts("labels", &labels)]);
    let Data::F32(probability) = &expected[1].data else { panic!("not floats") };
    for ensemble in ["invocations", "invocations_zero_shot"] {
        let found = answer(ensemble, json(serde_json::json!({ "prompt": labels })));
        let found: [Vec<f32>; 1] = serde_json::from_value(found).unwrap();
        assert_eq!(found[0], **probability, "{ensemble}");
        let found = answer(ensemble, json(serde_json::json!({"labels": labels, "top_k": 1})));
        assert_eq!(found["labels"][0]["label"], "a croissant");
        assert_eq!(found["labels"].as_array().unwrap().len(), 1);
    }
    for mode in ["best", "fast", "negative"] {
        let expected = run("interrogate", vec![picture(), texts("mode", &[mode])]);
        let expected = serde_json::json!({ "outputs": text(&expected, "prompt") });
        for ensemble in ["invocations", "invocations_interrogate"] {
            let found = answer(ensemble, json(serde_json::json!({ "mode": mode })));
            assert_eq!(found, expected, "{ensemble}");
        }
        if mode == "best" {
            assert_eq!(answer("invocations", bytes.clone()), expected, "a bare picture");
        }
    }
    let inputs = Tensor::bytes("inputs", vec![1, 1], vec![image.into_bytes().into()]);
    let short = Tensor::i32("max_length", vec![1, 1], vec![1]);
    let tokens = Tensor::i32("max_new_tokens", vec![1, 1], vec![1]);
    let found = run("invocations_generate", vec![inputs, texts("mode", &["caption"]), short]);
    let expected = run("interrogate", vec![picture(), texts("mode", &["caption"]), tokens]);
    assert_eq!(text(&found, "outputs"), text(&expected, "prompt"));
}
