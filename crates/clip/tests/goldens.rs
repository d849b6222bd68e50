//! Both towers against transformers and open_clip, on the models of `goldens/clip`,
//! `goldens/open_clip` and `goldens/siglip`, through the real engine
//! (`IMPROMPT_ONNXRUNTIME` names the library).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use imprompt_clip::{ImageEncoder, TextEncoder, TextOptions, TextTower};
use imprompt_engine::onnxruntime::{OnnxRuntime, OnnxRuntimeOptions};
use imprompt_engine::{EngineOptions, Held, Instructions, Runtime, TensorView};
use imprompt_error::{CancelFlag, Kind, Uncancellable};
use imprompt_graph::builder::Graph;
use imprompt_graph::clip::{IMAGE_GRAPH, TEXT_GRAPH};
use imprompt_graph::gpu::{Compute, Form, Target, for_gpu};
use imprompt_graph::{ClipFacts, ClipFamily, Probability, clip_graphs};
use safetensors::SafeTensors;

/// Models with a causal text tower.
const CASES: [&str; 7] = [
    "clip/quick_gelu",
    "clip/gelu_f16",
    "clip/sharded_bf16",
    "clip/section_dicts",
    "open_clip/gelu",
    "open_clip/quick_gelu_f16",
    "open_clip/words",
];

/// Models whose text tower sees all slots.
const SIGLIP: [&str; 7] = [
    "siglip/siglip",
    "siglip/siglip2",
    "siglip/small_bf16",
    "open_clip/siglip",
    "open_clip/siglip2",
    "open_clip/siglip_i18n",
    "open_clip/siglip_384",
];
const PICTURES: usize = 3;

fn runtime() -> &'static OnnxRuntime {
    OnnxRuntime::open(&OnnxRuntimeOptions::default()).expect("the tests need ONNX Runtime")
}

fn engine_options() -> EngineOptions {
    EngineOptions { threads: 1, ..EngineOptions::default() }
}

/// A golden model, built, and what the reference computes with it.
struct Golden {
    folder: tempfile::TempDir,
    facts: ClipFacts,
    rows: Vec<Vec<u32>>,
    text_embeds: Vec<f32>,
    image_embeds: Vec<f32>,
    logit_scale: f32,
    logit_bias: Option<f32>,
}

impl Golden {
    fn new(name: &str) -> Self {
        Self::of(name, name)
    }

    /// With the weights of another folder of `goldens`.
    fn of(name: &str, weights: &str) -> Self {
        Self::with(name, weights, Graph::clone)
    }

    /// With its graphs in a form for a GPU.
    fn for_gpu(name: &str, compute: Compute, form: Form) -> Self {
        let target = Target { compute, form, positions: 0, memory: 0 };
        Self::with(name, name, |graph| for_gpu(graph, &target).unwrap())
    }

    fn with(name: &str, weights: &str, change: impl Fn(&Graph) -> Graph) -> Self {
        let goldens = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens");
        let source = goldens.join(weights);
        let graphs = clip_graphs(&source).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for file in graphs.image.weight_files.union(&graphs.text.weight_files) {
            std::fs::copy(source.join(file), folder.path().join(file)).unwrap();
        }
        for (file, graph) in [(IMAGE_GRAPH, &graphs.image), (TEXT_GRAPH, &graphs.text)] {
            std::fs::write(folder.path().join(file), change(graph).bytes).unwrap();
        }
        let bytes = std::fs::read(goldens.join(format!("{name}.safetensors"))).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let data = tensors.tensor(name).unwrap().data();
            data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let ids = tensors.tensor("input_ids").unwrap();
        let all: Vec<u32> =
            ids.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
        let rows = all.chunks_exact(ids.shape()[1]).map(<[u32]>::to_vec).collect();
        Golden {
            folder,
            facts: graphs.facts,
            rows,
            text_embeds: floats("text_embeds"),
            image_embeds: floats("image_embeds"),
            logit_scale: floats("logit_scale")[0],
            logit_bias: tensors.tensor("logit_bias").is_ok().then(|| floats("logit_bias")[0]),
        }
    }

    fn text_encoder(&self, tokens_per_run: usize) -> TextEncoder {
        self.text_encoder_of(tokens_per_run, 1)
    }

    fn text_encoder_of(&self, tokens_per_run: usize, length_step: usize) -> TextEncoder {
        TextEncoder::new(self.text_tower(tokens_per_run, length_step))
    }

    fn text_tower(&self, tokens_per_run: usize, length_step: usize) -> Arc<TextTower> {
        self.text_tower_with(engine_options(), tokens_per_run, length_step)
    }

    fn text_tower_with(
        &self,
        engine: EngineOptions,
        tokens_per_run: usize,
        length_step: usize,
    ) -> Arc<TextTower> {
        let turn = Duration::ZERO;
        let options = TextOptions { engine, tokens_per_run, length_step, turn };
        let (folder, facts) = (self.folder.path(), self.facts.clone());
        Arc::new(TextTower::open(folder, facts, runtime(), &options).unwrap())
    }

    fn image_encoder(&self) -> ImageEncoder {
        self.image_encoder_with(&engine_options())
    }

    fn image_encoder_with(&self, options: &EngineOptions) -> ImageEncoder {
        let facts = self.facts.clone();
        ImageEncoder::open(self.folder.path(), facts, runtime(), options).unwrap()
    }

    fn pictures(&self) -> Vec<f32> {
        let pixels = self.facts.channels * self.facts.image_size.pow(2);
        (0..PICTURES)
            .flat_map(|i| (0..pixels).map(move |k| ((7919 * k + 131 * i) % 4096) as f32))
            .map(|level| level / 1024.0 - 2.0)
            .collect()
    }

    /// Every row as the reference runs it: padded, behind no prefix.
    fn padded_run(&self) -> Vec<f32> {
        let path = self.folder.path().join(TEXT_GRAPH);
        let mut engine = runtime().open(&path, &engine_options()).unwrap();
        let ids: Vec<i64> = self.rows.iter().flatten().map(|&id| i64::from(id)).collect();
        let last: Vec<i64> =
            self.rows.iter().map(|row| self.facts.eos.position(row) as i64).collect();
        let prefix = [self.facts.text_layers, self.facts.text_heads, 0, self.facts.text_head_dim];
        let (ids_shape, last_shape) = ([self.rows.len(), self.rows[0].len()], [self.rows.len()]);
        let nothing = TensorView::new(&prefix, &[0f32; 0]).unwrap();
        let inputs = [
            ("input_ids", TensorView::new(&ids_shape, &ids).unwrap().into()),
            ("last_index", TensorView::new(&last_shape, &last).unwrap().into()),
            ("prefix_keys", nothing.into()),
            ("prefix_values", nothing.into()),
            ("kept_rows", TensorView::new(&[0], &[0i64; 0]).unwrap().into()),
        ];
        let outputs = engine.run(&inputs, &["text_embeds"]).unwrap();
        outputs[0].as_slice::<f32>().unwrap().to_vec()
    }
}

fn largest_difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    assert!(!left.is_empty());
    left.iter().zip(right).fold(0.0, |largest, (l, r)| {
        let difference = (l - r).abs();
        assert!(!difference.is_nan());
        largest.max(difference)
    })
}

fn assert_close(what: &str, left: &[f32], right: &[f32], limit: f32) {
    let difference = largest_difference(left, right);
    println!("{what}: largest difference {difference:e} (limit {limit:e})");
    assert!(difference <= limit, "{what}: {difference:e} over {limit:e}");
}

#[test]
fn pictures_equal_the_reference() {
    for name in CASES.into_iter().chain(SIGLIP) {
        let golden = Golden::new(name);
        let mut encoder = golden.image_encoder();
        let pixels = golden.pictures();
        let together = encoder.encode(&pixels, PICTURES).unwrap();
        assert_close(&format!("{name} images"), &together, &golden.image_embeds, 1e-5);
        let each = pixels.len() / PICTURES;
        let alone: Vec<f32> =
            pixels.chunks_exact(each).flat_map(|one| encoder.encode(one, 1).unwrap()).collect();
        assert_close(&format!("{name} images alone"), &alone, &together, 1e-6);
    }
}

#[test]
fn a_picture_does_not_depend_on_its_mates() {
    if !imprompt_kernel::is_supported() {
        eprintln!("skipped: ONNX Runtime's own operators promise no such thing");
        return;
    }
    for name in CASES.into_iter().chain(SIGLIP) {
        let golden = Golden::new(name);
        let pictures = golden.pictures();
        for kernels in [Instructions::Avx512, Instructions::Amx, Instructions::AmxHigh] {
            let options = EngineOptions { kernels: Some(kernels), ..engine_options() };
            let mut encoder = golden.image_encoder_with(&options);
            // Every place of batches in which rows fall on all borders of the kernels.
            let many = pictures.repeat(7);
            let batches = encoder.encode(&many, 7 * PICTURES).unwrap();
            for (place, pixels) in many.chunks_exact(many.len() / 7 / PICTURES).enumerate() {
                let alone = encoder.encode(pixels, 1).unwrap();
                let batched = &batches[place * alone.len()..][..alone.len()];
                assert!(alone == batched, "{name}, {kernels:?}: picture {place}");
            }
        }
    }
}

/// Half of float32's products keep embeddings of a CLIP within the bound that all of them are held to. (Without AMX these
/// are all of them.)
#[test]
fn high_precision_equals_the_reference() {
    let high = EngineOptions { kernels: Some(Instructions::AmxHigh), ..engine_options() };
    let clips = CASES.map(|name| (name, 1e-5));
    for (name, limit) in clips.into_iter().chain(SIGLIP.map(|name| (name, 2e-5))) {
        let golden = Golden::new(name);
        let mut images = golden.image_encoder_with(&high);
        let found = images.encode(&golden.pictures(), PICTURES).unwrap();
        assert_close(&format!("{name} images"), &found, &golden.image_embeds, limit);
        let tower = golden.text_tower_with(high.clone(), 1024, 1);
        let found = TextEncoder::new(tower).encode(&golden.rows, &Uncancellable).unwrap();
        assert_close(&format!("{name} texts"), &found, &golden.text_embeds, limit);
    }
}

/// The embeddings of pictures and texts by ONNX Runtime's operators, one after the other: imprompt's
/// kernels are for the processor's graphs.
fn embeds(golden: &Golden) -> Vec<f32> {
    let options = EngineOptions { kernels: None, ..engine_options() };
    let mut embeds =
        golden.image_encoder_with(&options).encode(&golden.pictures(), PICTURES).unwrap();
    let mut texts = TextEncoder::new(golden.text_tower_with(options, 1024, 1));
    embeds.extend(texts.encode(&golden.rows, &Uncancellable).unwrap());
    embeds
}

/// The least cosine of two embeddings of the same.
fn least_cosine(a: &[f32], b: &[f32], dimension: usize) -> f64 {
    assert_eq!(a.len(), b.len());
    let cosine = |(a, b): (&[f32], &[f32])| {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    a.chunks_exact(dimension).zip(b.chunks_exact(dimension)).map(cosine).fold(1.0, f64::min)
}

/// The forms for a GPU, computed on the processor.
#[test]
fn the_forms_for_a_gpu_embed_alike() {
    for name in CASES.into_iter().chain(SIGLIP) {
        let golden = Golden::new(name);
        let expected = embeds(&golden);
        for form in [Form::Parts, Form::Fused] {
            let of = |compute| {
                let found = embeds(&Golden::for_gpu(name, compute, form));
                least_cosine(&expected, &found, golden.facts.projection_dim)
            };
            let (wide, half) = (of(Compute::F32), of(Compute::F16));
            println!("{name}, {form:?}: 1 - cosine {:e}, in float16 {:e}", 1.0 - wide, 1.0 - half);
            assert!(1.0 - wide < 1e-10, "{name}, {form:?}: {wide}");
            assert!(1.0 - half < 1e-4, "{name}, {form:?}: {half}");
        }
    }
}

/// ONNX Runtime takes the weights out of the middle of a pytorch_model.bin.
#[test]
fn weights_of_torch_save_equal_the_reference() {
    for name in ["gelu_f16", "sharded_bf16"] {
        let golden = Golden::of(&format!("clip/{name}"), &format!("torch/{name}"));
        let files = std::fs::read_dir(golden.folder.path()).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        assert!(names.into_iter().all(|name| !name.ends_with(".safetensors")));
        let pictures = golden.image_encoder().encode(&golden.pictures(), PICTURES).unwrap();
        assert_close(&format!("{name} images"), &pictures, &golden.image_embeds, 1e-5);
        assert_close(&format!("{name} texts"), &golden.padded_run(), &golden.text_embeds, 1e-5);
    }
}

#[test]
fn texts_equal_the_reference() {
    for name in CASES {
        let golden = Golden::new(name);
        let found = golden.text_encoder(1024).encode(&golden.rows, &Uncancellable).unwrap();
        assert_close(&format!("{name} texts"), &found, &golden.text_embeds, 1e-5);
        assert_close(&format!("{name} texts, padded"), &found, &golden.padded_run(), 1e-5);
    }
}

#[test]
fn a_text_does_not_depend_on_its_mates() {
    for name in CASES {
        let golden = Golden::new(name);
        let mut encoder = golden.text_encoder(1024);
        let together = encoder.encode(&golden.rows, &Uncancellable).unwrap();
        let alone: Vec<f32> = golden
            .rows
            .iter()
            .flat_map(|row| encoder.encode(&[row], &Uncancellable).unwrap())
            .collect();
        assert_close(&format!("{name} texts alone"), &alone, &together, 1e-6);
        let mut small = golden.text_encoder(1);
        let chunked = small.encode(&golden.rows, &Uncancellable).unwrap();
        assert_close(&format!("{name} texts one a run"), &chunked, &together, 1e-6);
        for length_step in [4, 16] {
            let mut rounded = golden.text_encoder_of(1024, length_step);
            let found = rounded.encode(&golden.rows, &Uncancellable).unwrap();
            assert_close(&format!("{name} texts, lengths rounded up"), &found, &together, 1e-6);
        }
        // The last six share a beginning, the row alone has none.
        let first = golden.rows.len() - 6;
        let shared = encoder.encode(&golden.rows[first..], &Uncancellable).unwrap();
        let alone = &alone[first * golden.facts.projection_dim..];
        assert_close(&format!("{name} behind a prefix, alone"), &shared, alone, 1e-6);
        // Not on calls before either: the same bits again.
        assert_eq!(encoder.encode(&golden.rows, &Uncancellable).unwrap(), together);
    }
}

#[test]
fn a_shared_beginning_is_run_once() {
    for name in CASES {
        let golden = Golden::new(name);
        let dimension = golden.facts.projection_dim;
        // The last six rows share six tokens: the prefix path.
        let first = golden.rows.len() - 6;
        let rows = &golden.rows[first..];
        assert!(rows.iter().all(|row| row[..6] == rows[0][..6]));
        let found = golden.text_encoder(1024).encode(rows, &Uncancellable).unwrap();
        let expected = &golden.text_embeds[first * dimension..];
        assert_close(&format!("{name} behind a prefix"), &found, expected, 1e-5);
        let rounded = golden.text_encoder_of(64, 5).encode(rows, &Uncancellable).unwrap();
        assert_close(&format!("{name} behind a prefix, rounded up"), &rounded, &found, 1e-6);
        let padded = golden.padded_run();
        let padded = &padded[first * dimension..];
        assert_close(&format!("{name} behind a prefix, padded"), &found, padded, 1e-5);
    }
}

/// An encoder with many runs to do, and others at the same tower.
#[test]
fn encoders_take_turns_at_a_tower() {
    let golden = Golden::new("clip/quick_gelu");
    // Every row is a run.
    let tower = golden.text_tower(1, 1);
    let mut first = TextEncoder::new(tower.clone());
    let alone = first.encode(&golden.rows, &Uncancellable).unwrap();
    let mut each = 0;
    let mut take = |_: &dyn Held| {
        each += 1;
        Ok(())
    };
    first.encode_in_place(&golden.rows, &Uncancellable, &mut take).unwrap();
    let (runs, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut busy = TextEncoder::new(tower.clone());
            while !is_over.load(Ordering::Acquire) {
                let mut take = |_: &dyn Held| {
                    thread::sleep(Duration::from_millis(3));
                    runs.fetch_add(1, Ordering::AcqRel);
                    Ok(())
                };
                busy.encode_in_place(&golden.rows, &Uncancellable, &mut take).unwrap();
            }
        });
        let mut other = TextEncoder::new(tower.clone());
        // How many runs the busy one has done by each turn of the other one, which it cannot add to meanwhile.
        let mut before: Vec<usize> = Vec::new();
        while before.len() < 30 {
            let last = runs.load(Ordering::Acquire);
            while runs.load(Ordering::Acquire) == last {
                thread::sleep(Duration::from_micros(100));
            }
            let mut take = |_: &dyn Held| {
                before.push(runs.load(Ordering::Acquire));
                Ok(())
            };
            other.encode_in_place(&golden.rows[..1], &Uncancellable, &mut take).unwrap();
        }
        // What the other one asks for has a prefix of its own, and leaves the busy one's as it was.
        let found = other.encode(&golden.rows, &Uncancellable);
        is_over.store(true, Ordering::Release);
        assert_eq!(found.unwrap(), alone);
        // Most of them in the middle of what the busy one was asked for.
        let inside = before.iter().filter(|runs| **runs % each != 0).count();
        assert!(inside > 15, "turns after so many runs, {each} a call: {before:?}");
    });
}

#[test]
fn equal_rows_have_equal_bits() {
    let golden = Golden::new("clip/gelu_f16");
    let dimension = golden.facts.projection_dim;
    let mut rows: Vec<Vec<u32>> = golden.rows.clone();
    rows.extend(golden.rows.iter().rev().cloned());
    let found = golden.text_encoder(64).encode(&rows, &Uncancellable).unwrap();
    let row = |index: usize| &found[index * dimension..][..dimension];
    for index in 0..golden.rows.len() {
        assert_eq!(row(index), row(rows.len() - 1 - index));
    }
    // Padding is no difference either.
    assert_eq!(golden.rows[6], golden.rows[7]);
    assert_eq!(row(6), row(7));
}

#[test]
fn all_slots_of_a_text_count_where_the_tower_sees_them() {
    for name in SIGLIP {
        let golden = Golden::new(name);
        let dimension = golden.facts.projection_dim;
        let found = golden.text_encoder(1024).encode(&golden.rows, &Uncancellable).unwrap();
        assert_close(&format!("{name} texts"), &found, &golden.text_embeds, 1e-5);
        let mut small = golden.text_encoder(1);
        let alone = small.encode(&golden.rows, &Uncancellable).unwrap();
        assert_close(&format!("{name} texts one a run"), &alone, &found, 1e-6);
        // The last row is the second again.
        assert_eq!(found[dimension..2 * dimension], found[8 * dimension..]);
        // Padding is not left out, and not left to the caller.
        let mut row = golden.rows[1].clone();
        row[golden.facts.context_length - 2] ^= 1;
        let other = small.encode(&[&row], &Uncancellable).unwrap();
        assert!(largest_difference(&other, &found[dimension..2 * dimension]) > 1e-4);
        row.pop();
        let error = small.encode(&[&row], &Uncancellable).unwrap_err();
        assert_eq!(error.kind(), Kind::Internal);
        assert!(error.message().contains("the model has"), "{error}");
    }
}

#[test]
fn scale_and_probability_are_read() {
    for name in CASES.into_iter().chain(SIGLIP) {
        let golden = Golden::new(name);
        assert!((golden.facts.logit_scale / golden.logit_scale - 1.0).abs() < 1e-6, "{name}");
        let expected = match golden.logit_bias {
            Some(bias) => Probability::Sigmoid { bias },
            None => Probability::Softmax,
        };
        assert_eq!(golden.facts.probability, expected, "{name}");
        let json = serde_json::to_string(&golden.facts).unwrap();
        assert_eq!(serde_json::from_str::<ClipFacts>(&json).unwrap(), golden.facts);
    }
}

#[test]
fn wrong_rows_are_errors() {
    let golden = Golden::new("clip/sharded_bf16");
    let mut encoder = golden.text_encoder(1024);
    let mut kind = |row: &[u32]| encoder.encode(&[row], &Uncancellable).unwrap_err().kind();
    assert_eq!(kind(&[]), Kind::Internal);
    assert_eq!(kind(&[1, 320, 7]), Kind::BadModel);
    assert_eq!(kind(&[[1; 12].as_slice(), &[7]].concat()), Kind::Internal);
    let cancelled = CancelFlag::default();
    cancelled.cancel();
    let error = encoder.encode(&golden.rows, &cancelled).unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled);
    let none: [Vec<u32>; 0] = [];
    assert!(encoder.encode(&none, &Uncancellable).unwrap().is_empty());
    let found = encoder.encode(&golden.rows, &Uncancellable).unwrap();
    assert_close("after errors", &found, &golden.text_embeds, 1e-5);

    let mut images = golden.image_encoder();
    assert_eq!(images.encode(&vec![0.0; 5], 1).unwrap_err().kind(), Kind::Internal);
    assert!(images.encode(&Vec::new(), 0).unwrap().is_empty());
}

#[test]
fn facts_of_another_model_are_refused() {
    let golden = Golden::new("clip/quick_gelu");
    let open = |facts: ClipFacts| {
        let options = TextOptions { engine: engine_options(), ..TextOptions::default() };
        TextTower::open(golden.folder.path(), facts, runtime(), &options).unwrap_err()
    };
    let wrong = |change: fn(&mut ClipFacts)| {
        let mut facts = golden.facts.clone();
        change(&mut facts);
        facts
    };
    for facts in [
        wrong(|facts| facts.text_heads = 8),
        wrong(|facts| facts.projection_dim = 1),
        wrong(|facts| facts.family = ClipFamily::Siglip),
    ] {
        let error = open(facts);
        assert_eq!(error.kind(), Kind::BadModel);
        assert!(error.message().contains(TEXT_GRAPH), "{error}");
    }
    let facts = wrong(|facts| facts.image_size = 28);
    let folder: &Path = golden.folder.path();
    let error = ImageEncoder::open(folder, facts, runtime(), &engine_options()).unwrap_err();
    assert!(error.message().contains("pixel_values"), "{error}");
}
