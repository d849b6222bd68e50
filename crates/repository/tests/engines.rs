//! Engines for a GPU, built by the real TensorRT-RTX on a machine without one: of the demo models,
//! and of layers of the sizes of CLIP ViT-L/14, ViT-H/14 and BLIP-2 OPT 2.7b, whose weights are
//! zeros. `scripts/setup --gpu` installs the library, `IMPROMPT_TENSORRT` is its folder.

mod shapes;

use std::path::{Path, PathBuf};

use imprompt_engine::manifest::{EngineManifest, engine_file, manifest_file};
use imprompt_repository::{
    Bits, BuildRequest, GpuRequest, Manifest, ModelFolder, Precision, Silent, build,
};
use serde_json::json;
use shapes::Model;

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models")
}

fn gpu(capabilities: &[&str]) -> Option<GpuRequest> {
    let folder = std::env::var_os("IMPROMPT_TENSORRT");
    assert!(folder.is_some(), "IMPROMPT_TENSORRT is not set; scripts/setup --gpu, scripts/test");
    let compute_capabilities = capabilities.iter().map(|one| one.parse().unwrap()).collect();
    Some(GpuRequest { compute_capabilities, ..GpuRequest::default() })
}

fn precision(choice: &str) -> Precision {
    Precision::with_default(&[choice.parse().unwrap()], Bits::F16)
}

/// The manifest of an engine that is all there; its ports are `inputs` and `outputs`, written
/// `name type[dims]`.
fn check(graph: &Path, inputs: &[&str], outputs: &[&str]) -> EngineManifest {
    let manifest = EngineManifest::read(graph).unwrap();
    manifest.check_files(graph).unwrap();
    let shown = |ports: &[imprompt_engine::manifest::EnginePort]| -> Vec<String> {
        let ports = ports.iter().map(|port| {
            let dims: Vec<String> = port
                .shape
                .iter()
                .map(|dim| dim.map_or("?".to_owned(), |length| length.to_string()))
                .collect();
            format!("{} {}[{}]", port.name, port.element_type, dims.join(","))
        });
        ports.collect()
    };
    assert_eq!(shown(&manifest.inputs)[..inputs.len()], *inputs);
    let (found, count) = (shown(&manifest.outputs), outputs.len());
    assert_eq!(found[found.len() - count..], *outputs);
    manifest
}

#[test]
fn the_demo_models_get_engines() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("repository");
    let request = BuildRequest {
        clip: Some(ModelFolder::open(&models().join("demo-clip")).unwrap()),
        captioner: Some(ModelFolder::open(&models().join("demo-blip2")).unwrap()),
        precision: precision("captioner=bf16"),
        gpu: gpu(&["8.6", "12.0"]),
        ..BuildRequest::new(&out)
    };
    let manifest = build(&request, &Silent).unwrap();
    assert_eq!(manifest.device.as_deref(), Some("gpu"));

    let image = out.join("clip_image/1/clip_image.onnx");
    let built = check(&image, &["pixel_values f32[?,3,64,64]"], &["image_embeds f32[?,128]"]);
    assert_eq!((&*built.precision, &*built.tensorrt), ("f16", "1.7.1"));
    assert_eq!(built.compute_capabilities, ["8.6", "12.0"]);
    assert_eq!(built.profiles[0][0].most, [8, 3, 64, 64]);
    check(
        &out.join("clip_text/1/clip_text.onnx"),
        &[
            "input_ids i64[?,?]",
            "last_index i64[?]",
            "prefix_keys f32[4,2,?,64]",
            "prefix_values f32[4,2,?,64]",
            "kept_rows i64[?]",
        ],
        &["text_embeds f32[?,128]", "keys f32[4,2,?,64]", "values f32[4,2,?,64]"],
    );
    let captioner = out.join("captioner/1");
    let vision = captioner.join("caption_vision.onnx");
    check(&vision, &["pixel_values f32[?,3,64,64]"], &["image_embeds f32[?,65,192]"]);
    let qformer = captioner.join("caption_qformer.onnx");
    check(&qformer, &["image_embeds f32[?,?,192]"], &["query_embeds f32[?,8,160]"]);
    let decoder = captioner.join("caption_decoder.onnx");
    let built = check(
        &decoder,
        &[
            "picture_embeds f32[?,?,160]",
            "input_ids i64[?,?]",
            "write_index i64[?]",
            "lengths i64[?]",
            "key_positions i64[?]",
            "past_key_values.0.key bf16[?,5,128,32]",
        ],
        &["present.2.value bf16[?,5,128,32]", "logits f32[?,1536]"],
    );
    assert_eq!(built.precision, "bf16");
    // A step of one token without a picture, and the prefill.
    let most: Vec<_> = built.profiles.iter().map(|one| (&one[0].most, &one[1].most)).collect();
    assert_eq!(most, [(&vec![8, 0, 160], &vec![8, 1]), (&vec![8, 8, 160], &vec![8, 120])]);

    // Stages that have the same graph have the same engine, and the same form of it for a GPU.
    use std::os::unix::fs::MetadataExt as _;
    let inode = |path: PathBuf| std::fs::metadata(path).unwrap().ino();
    let stream = out.join("caption_stream/1/caption_decoder.onnx");
    assert_eq!(inode(engine_file(&stream)), inode(engine_file(&decoder)));
    let listed = Manifest::read(&out).unwrap().files;
    let count = |end: &str| listed.iter().filter(|file| file.path.ends_with(end)).count();
    assert_eq!([".onnx", ".gpu.onnx", ".engine"].map(count), [20, 10, 10]);

    // What is still right is taken over; what is not is built anew.
    let before = inode(engine_file(&image));
    let old_decoder = inode(engine_file(&decoder));
    std::fs::write(engine_file(&decoder), "cut").unwrap();
    build(&request, &Silent).unwrap();
    assert_eq!(inode(engine_file(&image)), before);
    assert_ne!(inode(engine_file(&decoder)), old_decoder);
    EngineManifest::read(&decoder).unwrap().check_files(&decoder).unwrap();
    let narrower = BuildRequest { gpu: gpu(&["8.6"]), ..request };
    build(&narrower, &Silent).unwrap();
    assert_eq!(EngineManifest::read(&image).unwrap().compute_capabilities, ["8.6"]);
    assert_ne!(inode(engine_file(&image)), before);

    // For the CPU there are none.
    build(&BuildRequest { gpu: None, precision: Precision::default(), ..narrower }, &Silent)
        .unwrap();
    assert!(!engine_file(&image).exists() && !manifest_file(&image).exists());
}

#[test]
fn what_no_card_does_is_refused_before_anything_is_built() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("repository");
    let refused = |choice: &str, gpu: Option<GpuRequest>, what: &str| {
        let request = BuildRequest {
            clip: Some(ModelFolder::open(&models().join("demo-clip")).unwrap()),
            precision: precision(choice),
            gpu,
            ..BuildRequest::new(&out)
        };
        let error = build(&request, &Silent).unwrap_err();
        assert!(error.message().contains(what), "{error}");
        assert!(!out.exists());
    };
    refused("clip_text=int8", gpu(&[]), "`clip_text`: int8 is for the CPU");
    refused("bf16", gpu(&["7.5", "8.0"]), "7.5 has no bfloat16");
    refused("bf16", None, "bf16 is for a GPU");
}

/// The folder of the model `name`, with two layers of each part, all weights zero.
fn zeros(name: &str, folder: &Path) -> ModelFolder {
    let model = folder.join(name);
    std::fs::create_dir(&model).unwrap();
    let shapes = Model::named(name, Some(2)).unwrap();
    let shards = shapes.shards("F16", 2);
    for shard in &shards {
        shard.create(&model).unwrap();
    }
    shapes.write_files(&model, &shards).unwrap();
    ModelFolder::open(&model).unwrap()
}

#[test]
fn layers_of_full_size_build() {
    let folder = tempfile::tempdir().unwrap();
    for (name, dim) in [("clip-vit-l-14", 768), ("clip-vit-h-14", 1024)] {
        let out = folder.path().join(format!("{name}-repository"));
        let request = BuildRequest {
            clip: Some(zeros(name, folder.path())),
            precision: precision("f16"),
            gpu: gpu(&["7.5", "8.6", "12.0"]),
            ..BuildRequest::new(&out)
        };
        build(&request, &Silent).unwrap();
        let embeds = format!("image_embeds f32[?,{dim}]");
        let image = out.join("clip_image/1/clip_image.onnx");
        check(&image, &["pixel_values f32[?,3,224,224]"], &[&embeds]);
        check(&out.join("clip_text/1/clip_text.onnx"), &["input_ids i64[?,?]"], &[]);
    }

    let out = folder.path().join("blip2-repository");
    let request = BuildRequest {
        captioner: Some(zeros("blip2-opt-2.7b", folder.path())),
        precision: precision("f16"),
        gpu: gpu(&["7.5", "8.6", "12.0"]),
        ..BuildRequest::new(&out)
    };
    build(&request, &Silent).unwrap();
    let captioner = out.join("captioner/1");
    let vision = captioner.join("caption_vision.onnx");
    check(&vision, &["pixel_values f32[?,3,224,224]"], &["image_embeds f32[?,257,1408]"]);
    let qformer = captioner.join("caption_qformer.onnx");
    check(&qformer, &["image_embeds f32[?,?,1408]"], &["query_embeds f32[?,32,2560]"]);
    let decoder = captioner.join("caption_decoder.onnx");
    let outputs = ["present.1.value f16[?,32,544,80]", "logits f32[?,50304]"];
    let built = check(&decoder, &["picture_embeds f32[?,?,2560]"], &outputs);
    assert_eq!(built.profiles[1][0].most, [8, 32, 2560]);
}

#[test]
fn every_family_builds() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("repository");
    let request = |choice| BuildRequest {
        precision: precision(choice),
        gpu: gpu(&["8.6"]),
        ..BuildRequest::new(&out)
    };
    let built = || {
        let listed = Manifest::read(&out).unwrap().files;
        let count = |end: &str| listed.iter().filter(|file| file.path.ends_with(end)).count();
        (count(".onnx") - count(".gpu.onnx"), count(".engine"))
    };
    let siglip = ModelFolder::open(&goldens.join("siglip/siglip")).unwrap();
    build(&BuildRequest { clip: Some(siglip), ..request("f16") }, &Silent).unwrap();
    assert_eq!(built(), (3, 3));
    let tokenizer = models().join("demo-blip2/tokenizer.json");
    // The golden folders have no image processor, and not all of them a tokenizer.
    for (name, choice, graphs) in [
        ("blip_plain", "f16", 6),
        ("git_plain", "f16", 4),
        ("vqa_plain", "f16", 6),
        ("t5_plain", "bf16", 8),
        ("instruct_plain", "bf16", 8),
    ] {
        let model = folder.path().join(name);
        std::fs::create_dir_all(model.join("qformer_tokenizer")).unwrap();
        for entry in std::fs::read_dir(goldens.join("captioners").join(name)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
            }
        }
        for file in ["tokenizer.json", "qformer_tokenizer/tokenizer.json"] {
            std::fs::copy(&tokenizer, model.join(file)).unwrap();
        }
        let config = std::fs::read_to_string(model.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let size = &config["vision_config"]["image_size"];
        let processor = json!({
            "image_processor_type": "BlipImageProcessor", "do_resize": true, "do_rescale": true,
            "do_normalize": true, "resample": 3, "rescale_factor": 0.00392156862745098,
            "size": { "height": size, "width": size },
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]
        });
        std::fs::write(model.join("preprocessor_config.json"), processor.to_string()).unwrap();
        let captioner = Some(ModelFolder::open(&model).unwrap());
        build(&BuildRequest { captioner, ..request(choice) }, &Silent).unwrap();
        assert_eq!(built(), (graphs, graphs), "{name}");
    }
}
