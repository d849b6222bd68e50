//! The graphs and the decoding loop against transformers: every model folder of
//! `goldens/blip2` and `goldens/captioners` (made by the `make.py` there).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use imprompt_caption::{
    CaptionRequest, Captioner, CaptionerOptions, EarlyStopping, Encoded, Generated,
    GenerationOptions, PictureEncoder, Sampling, Stop, Told, memory_length,
};
use imprompt_engine::onnxruntime::{OnnxRuntime, OnnxRuntimeOptions};
use imprompt_engine::{
    CacheSpec, EngineOptions, Floats, Held, HeldRows, Input, Runtime, TensorView,
};
use imprompt_error::{CancelFlag, Kind, Uncancellable};
use imprompt_graph::builder::Graph;
use imprompt_graph::gpu::{Compute, Form, Target, for_gpu};
use imprompt_graph::{CaptionFacts, caption_graphs};
use safetensors::SafeTensors;
use serde::Deserialize;

const MODELS: [&str; 22] = [
    "blip2/plain",
    "blip2/post_norm",
    "blip2/projected",
    "blip2/no_bias",
    "blip2/no_final_norm",
    "blip2/untied_bf16",
    "blip2/tanh_gelu",
    "blip2/defaults",
    "captioners/blip_plain",
    "captioners/blip_heads",
    "captioners/blip_defaults",
    "captioners/vqa_plain",
    "captioners/vqa_f16",
    "captioners/git_plain",
    "captioners/git_gelu",
    "captioners/git_defaults",
    "captioners/t5_plain",
    "captioners/t5_wide",
    "captioners/t5_silu",
    "captioners/instruct_plain",
    "captioners/instruct_odd",
    "captioners/instruct_defaults",
];
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Expected {
    cases: Vec<Case>,
}

#[derive(Clone, Debug, Deserialize)]
struct Case {
    picture: usize,
    prompt_ids: Option<Vec<u32>>,
    qformer_ids: Option<Vec<u32>>,
    max_new_tokens: usize,
    ids: Vec<u32>,
    stop: String,
}

impl Case {
    fn generated(&self) -> Generated {
        let stop = if self.stop == "end" { Stop::End } else { Stop::Length };
        Generated { ids: self.ids.clone(), stop }
    }
}

/// A golden folder, its graphs beside hard links to its weights.
struct Golden {
    folder: tempfile::TempDir,
    facts: CaptionFacts,
    cases: Vec<Case>,
    tensors: Vec<u8>,
}

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens")
}

impl Golden {
    fn open(model: &str) -> Self {
        Self::with(model, |graph, _| graph)
    }

    /// With the graphs in a form for a GPU.
    fn for_gpu(model: &str, compute: Compute, form: Form) -> Self {
        let text = CaptionerOptions::default().max_text_positions;
        Self::with(model, |graph, facts| {
            let most = facts.max_positions.unwrap_or(usize::MAX);
            let positions = (facts.prefix_positions() + text).min(most);
            let memory = memory_length(facts, text);
            for_gpu(&graph, &Target { compute, form, positions, memory }).unwrap()
        })
    }

    fn with(model: &str, change: impl Fn(Graph, &CaptionFacts) -> Graph) -> Self {
        let source = goldens().join(model);
        let folder = tempfile::tempdir().unwrap();
        let graphs = caption_graphs(&source).unwrap();
        for (name, graph) in graphs.files {
            let graph = change(graph, &graphs.facts);
            fs::write(folder.path().join(name), &graph.bytes).unwrap();
            for file in &graph.weight_files {
                let target = folder.path().join(file);
                if !target.exists() {
                    fs::copy(source.join(file), target).unwrap();
                }
            }
        }
        let expected = fs::read_to_string(source.join("expected.json")).unwrap();
        let expected: Expected = serde_json::from_str(&expected).unwrap();
        let tensors = fs::read(source.join("expected.safetensors")).unwrap();
        Golden { folder, facts: graphs.facts, cases: expected.cases, tensors }
    }

    fn captioner(&self, options: &CaptionerOptions) -> Captioner {
        Captioner::open(self.folder.path(), self.facts.clone(), runtime(), options).unwrap()
    }

    /// An expected tensor and its shape.
    fn tensor(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let tensors = SafeTensors::deserialize(&self.tensors).unwrap();
        let view = tensors.tensor(name).unwrap();
        assert_eq!(view.dtype(), safetensors::Dtype::F32);
        let values = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        (view.shape().to_vec(), values)
    }

    /// The pixel values of every picture.
    fn pictures(&self) -> Vec<Vec<f32>> {
        let tensors = SafeTensors::deserialize(&self.tensors).unwrap();
        let view = tensors.tensor("pictures").unwrap();
        let size = view.shape()[1..].iter().product();
        let value = |byte: &u8| f32::from(*byte) / 127.5 - 1.0;
        view.data().chunks_exact(size).map(|bytes| bytes.iter().map(value).collect()).collect()
    }

    fn expected(&self) -> Vec<Generated> {
        self.cases.iter().map(Case::generated).collect()
    }
}

fn runtime() -> &'static OnnxRuntime {
    OnnxRuntime::open(&OnnxRuntimeOptions::default())
        .expect("IMPROMPT_ONNXRUNTIME must name ONNX Runtime's library")
}

fn options() -> CaptionerOptions {
    let engine = EngineOptions { threads: 1, ..EngineOptions::default() };
    CaptionerOptions { engine, ..CaptionerOptions::default() }
}

fn request<'a>(case: &'a Case, pictures: &'a [Vec<f32>]) -> CaptionRequest<'a> {
    CaptionRequest {
        picture: Floats::from(&pictures[case.picture]),
        prompt_ids: case.prompt_ids.as_deref(),
        qformer_ids: case.qformer_ids.as_deref(),
        options: GenerationOptions::greedy(case.max_new_tokens),
        cancel: &Uncancellable,
    }
}

fn captions(captioner: &mut Captioner, requests: &[CaptionRequest<'_>]) -> Vec<Generated> {
    captioner.caption(requests).into_iter().map(Result::unwrap).collect()
}

fn largest_difference(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_golden_folder_is_tested() {
    let found: BTreeSet<String> = ["blip2", "captioners"]
        .into_iter()
        .flat_map(|group| fs::read_dir(goldens().join(group)).unwrap().map(move |e| (group, e)))
        .map(|(group, entry)| (group, entry.unwrap()))
        .filter(|(_, entry)| entry.path().join("expected.json").is_file())
        .map(|(group, entry)| format!("{group}/{}", entry.file_name().into_string().unwrap()))
        .collect();
    assert_eq!(found, MODELS.iter().map(|name| (*name).to_owned()).collect());
}

/// The first token's scores for every picture, after the first case's prompt.
fn logits(golden: &Golden, picture_embeds: &dyn Held) -> Box<dyn Held> {
    let facts = &golden.facts;
    let engine =
        |name: &str| runtime().open(&golden.folder.path().join(name), &options().engine).unwrap();
    let mut decoder = engine("caption_decoder.onnx");
    let batch = picture_embeds.shape()[0];
    let text = facts.text.read(golden.cases[0].prompt_ids.as_deref());
    let (memory_ids, ids) = match facts.memory_holds_text() {
        true => (text, vec![facts.bos_token_id]),
        false => (Vec::new(), text),
    };
    let repeated = |ids: &[u32]| -> Vec<i64> {
        (0..batch).flat_map(|_| ids).map(|id| i64::from(*id)).collect()
    };
    let (input_ids, memory_input_ids) = (repeated(&ids), repeated(&memory_ids));
    let length = facts.prefix_positions() + ids.len();
    let memory_length = match &facts.memory {
        Some(memory) => memory.picture_positions + memory_ids.len(),
        None => 0,
    };
    let spec = CacheSpec::decoder(facts.layers, facts.heads, facts.head_dim, batch, length)
        .with_memory(facts.layers, facts.heads, facts.head_dim, memory_length.max(1));
    let mut cache = decoder.new_cache(&spec).unwrap();
    let view = |shape: &'static [usize], values: &'static [i64]| -> Input<'static> {
        TensorView::new(shape, values).unwrap().into()
    };
    let leak = |shape: Vec<usize>, values: Vec<i64>| view(shape.leak(), values.leak());
    let each = |value: usize| leak(vec![batch], vec![value as i64; batch]);
    let first = |count: usize| leak(vec![count], (0..count as i64).collect());
    if facts.memory.is_some() {
        let mut inputs = vec![("picture_embeds", Input::Held(picture_embeds))];
        if facts.memory_holds_text() {
            inputs.push(("input_ids", leak(vec![batch, memory_ids.len()], memory_input_ids)));
            inputs.push(("lengths", each(memory_ids.len())));
        }
        let mut memory = engine("caption_memory.onnx");
        memory.run_with_cache(&inputs, &[], cache.as_mut(), 0..batch).unwrap();
    }
    let mut inputs = vec![
        ("input_ids", leak(vec![batch, ids.len()], input_ids)),
        ("write_index", each(0)),
        ("lengths", each(length)),
        ("key_positions", first(length)),
    ];
    match &facts.memory {
        None => inputs.push(("picture_embeds", Input::Held(picture_embeds))),
        Some(memory) if memory.holds_text => {
            inputs.push(("memory_lengths", each(memory_length)));
            inputs.push(("memory_positions", first(memory_length)));
        }
        Some(_) => {}
    }
    let outputs = decoder.run_with_cache(&inputs, &["logits"], cache.as_mut(), 0..batch);
    outputs.unwrap().pop().unwrap()
}

#[test]
fn tensors_are_transformers() {
    for model in MODELS {
        let golden = Golden::open(model);
        let pictures = golden.pictures();
        let mut captioner = golden.captioner(&options());
        let texts: Vec<&[u32]> = golden.cases[0].qformer_ids.as_deref().into_iter().collect();
        let texts = texts.repeat(pictures.len());
        let pixel_values = pictures.concat();
        let encoded = captioner.encode(pictures.len(), &pixel_values, &texts).unwrap();
        let Encoded::Held(encoded) = encoded else { panic!("an engine encodes") };
        let name = if model.starts_with("blip2/") { "query_embeds" } else { "picture_embeds" };
        let (shape, theirs) = golden.tensor(name);
        assert_eq!(encoded.shape(), shape);
        let embeds = largest_difference(encoded.as_slice().unwrap(), &theirs);
        let logits = logits(&golden, encoded.as_ref());
        let (shape, theirs) = golden.tensor("logits");
        assert_eq!(logits.shape(), shape);
        let logits = largest_difference(logits.as_slice().unwrap(), &theirs);
        println!("{model}: picture's embeddings and logits differ by at most {embeds}, {logits}");
        assert!(embeds.max(logits) < TOLERANCE, "{model}: {embeds}, {logits}");
    }
}

#[test]
fn a_captioner_in_halves_says_the_same() {
    for model in MODELS {
        let golden = Golden::open(model);
        let facts = golden.facts.clone();
        let (folder, options) = (golden.folder.path(), options());
        let mut encoder = PictureEncoder::open(folder, &facts, runtime(), &options.engine).unwrap();
        let [positions, width] = facts.encoded_shape();
        let held: Vec<HeldRows> = golden
            .pictures()
            .iter()
            .map(|pixel_values| {
                let encoded = encoder.encode(1, pixel_values).unwrap();
                assert_eq!(encoded.shape(), [1, positions, width], "{model}");
                HeldRows::new(encoded).unwrap()
            })
            .collect();
        let pictures: Vec<Vec<f32>> = held
            .iter()
            .map(|rows| Floats::Held(rows.clone()).to_host().unwrap().to_vec())
            .collect();
        let mut decoder = Captioner::open_decoder(folder, facts, runtime(), &options).unwrap();
        let requests: Vec<_> = golden.cases.iter().map(|case| request(case, &pictures)).collect();
        assert_eq!(captions(&mut decoder, &requests), golden.expected(), "{model}");
        // Left where the encoder has them, alone and beside one on the host.
        let mut left: Vec<_> = golden.cases.iter().map(|case| request(case, &pictures)).collect();
        for (request, case) in left.iter_mut().zip(&golden.cases) {
            request.picture = Floats::Held(held[case.picture].clone());
        }
        assert_eq!(captions(&mut decoder, &left), golden.expected(), "{model}");
        left[0].picture = requests[0].picture.clone();
        assert_eq!(captions(&mut decoder, &left), golden.expected(), "{model}");
        let pixels = golden.pictures();
        let wrong = CaptionRequest { picture: Floats::from(&pixels[0]), ..requests[0].clone() };
        let error = decoder.caption(&[wrong]).pop().unwrap().unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidInput, "{model}: {error}");
    }
}

#[test]
fn captions_are_transformers_alone_and_batched() {
    let mut count = 0;
    for model in MODELS {
        let golden = Golden::open(model);
        let pictures = golden.pictures();
        let requests: Vec<_> = golden.cases.iter().map(|case| request(case, &pictures)).collect();
        let mut captioner = golden.captioner(&options());
        for (request, expected) in requests.iter().zip(golden.expected()) {
            assert_eq!(
                captions(&mut captioner, std::slice::from_ref(request)),
                [expected],
                "{model}, alone"
            );
        }
        // All at once: prompts of all lengths side by side, more than there are
        // slots, so that some wait for others to leave.
        assert_eq!(captions(&mut captioner, &requests), golden.expected(), "{model}, together");
        let few = CaptionerOptions { slots: 3, ..options() };
        let together = captions(&mut golden.captioner(&few), &requests);
        assert_eq!(together, golden.expected(), "{model}, in 3 slots");
        count += golden.cases.len();
    }
    assert_eq!(count, MODELS.len() * 20, "every folder has 20 captions");
}

#[test]
fn captions_do_not_hang_on_the_cache() {
    for model in MODELS {
        let golden = Golden::open(model);
        let pictures = golden.pictures();
        let requests: Vec<_> = golden.cases.iter().map(|case| request(case, &pictures)).collect();
        let recompute = CaptionerOptions { recompute: true, ..options() };
        let found = captions(&mut golden.captioner(&recompute), &requests);
        assert_eq!(found, golden.expected(), "{model}");
    }
}

/// ONNX Runtime's operators on the processor compute the forms for a GPU of every family: the fused
/// one says what the other says.
#[test]
fn the_forms_for_a_gpu_say_the_same() {
    let mut equal = [0, 0];
    for model in MODELS {
        for (form, equal) in [Form::Parts, Form::Fused].into_iter().zip(&mut equal) {
            let said = |compute| {
                let golden = Golden::for_gpu(model, compute, form);
                let pictures = golden.pictures();
                let requests: Vec<_> =
                    golden.cases.iter().map(|case| request(case, &pictures)).collect();
                // imprompt's kernels are for the processor's graphs.
                let engine = EngineOptions { kernels: None, ..options().engine };
                let options = CaptionerOptions { engine, ..options() };
                captions(&mut golden.captioner(&options), &requests)
            };
            let expected = Golden::open(model).expected();
            assert_eq!(said(Compute::F32), expected, "{model}, {form:?}");
            let half = said(Compute::F16);
            let same = half.iter().zip(&expected).filter(|(half, full)| half == full).count();
            println!("{model}, {form:?}: {same} of {} in float16", expected.len());
            *equal += same;
        }
    }
    println!("in float16 parts say {} and fused {} of {}", equal[0], equal[1], 20 * MODELS.len());
    assert!(equal.iter().all(|&equal| equal >= 420), "{equal:?}");
}

/// A case of generation.json: the arguments of the reference's `generate`.
#[derive(Deserialize)]
struct Generation {
    picture: usize,
    prompt_ids: Option<Vec<u32>>,
    qformer_ids: Option<Vec<u32>>,
    max_new_tokens: usize,
    options: Arguments,
    ids: Vec<u32>,
    stop: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    min_new_tokens: Option<usize>,
    min_length: Option<usize>,
    repetition_penalty: Option<f64>,
    no_repeat_ngram_size: Option<usize>,
    num_beams: Option<usize>,
    length_penalty: Option<f64>,
    #[serde(default)]
    early_stopping: serde_json::Value,
}

impl Generation {
    fn request<'a>(&'a self, pictures: &'a [Vec<f32>]) -> CaptionRequest<'a> {
        let (default, given) = (GenerationOptions::default(), &self.options);
        let options = GenerationOptions {
            max_new_tokens: self.max_new_tokens,
            min_new_tokens: given.min_new_tokens.unwrap_or(default.min_new_tokens),
            min_length: given.min_length.unwrap_or(default.min_length),
            repetition_penalty: given.repetition_penalty.unwrap_or(default.repetition_penalty),
            no_repeat_ngram_size: given
                .no_repeat_ngram_size
                .unwrap_or(default.no_repeat_ngram_size),
            num_beams: given.num_beams.unwrap_or(default.num_beams),
            length_penalty: given.length_penalty.unwrap_or(default.length_penalty),
            early_stopping: match &given.early_stopping {
                serde_json::Value::Null => default.early_stopping,
                serde_json::Value::Bool(true) => EarlyStopping::Always,
                _ => EarlyStopping::Never,
            },
            sampling: None,
        };
        CaptionRequest {
            picture: Floats::from(&pictures[self.picture]),
            prompt_ids: self.prompt_ids.as_deref(),
            qformer_ids: self.qformer_ids.as_deref(),
            options,
            cancel: &Uncancellable,
        }
    }

    fn generated(&self) -> Generated {
        let stop = if self.stop == "end" { Stop::End } else { Stop::Length };
        Generated { ids: self.ids.clone(), stop }
    }
}

#[derive(Deserialize)]
struct Generations {
    cases: Vec<Generation>,
}

#[test]
fn beams_and_penalties_are_transformers_alone_and_batched() {
    let mut count = 0;
    for model in MODELS {
        let golden = Golden::open(model);
        let text = fs::read_to_string(goldens().join(model).join("generation.json")).unwrap();
        let Generations { cases } = serde_json::from_str(&text).unwrap();
        let pictures = golden.pictures();
        let requests: Vec<_> = cases.iter().map(|case| case.request(&pictures)).collect();
        let expected: Vec<_> = cases.iter().map(Generation::generated).collect();
        let mut captioner = golden.captioner(&options());
        for ((request, expected), case) in requests.iter().zip(&expected).zip(0..) {
            let found = captions(&mut captioner, std::slice::from_ref(request));
            assert_eq!(found[0], *expected, "{model}, case {case}: {:?}", request.options);
        }
        let together = captions(&mut captioner, &requests);
        for (case, (found, expected)) in together.iter().zip(&expected).enumerate() {
            assert_eq!(found, expected, "{model}, case {case} among others");
        }
        let recompute = CaptionerOptions { recompute: true, ..options() };
        assert_eq!(captions(&mut golden.captioner(&recompute), &requests), expected, "{model}");
        count += cases.len();
    }
    assert_eq!(count, 8 * 48 + 14 * 24, "every folder has its cases");
}

#[test]
fn drawn_captions_hang_on_their_seed_alone() {
    let golden = Golden::open("blip2/plain");
    let pictures = golden.pictures();
    let drawn = |seed| {
        let sampling = Some(Sampling { temperature: 1.5, seed, ..Sampling::default() });
        let options = GenerationOptions { sampling, ..GenerationOptions::greedy(12) };
        CaptionRequest { options, ..request(&golden.cases[0], &pictures) }
    };
    let requests: Vec<_> = (0..20).map(drawn).collect();
    let mut captioner = golden.captioner(&options());
    let together = captions(&mut captioner, &requests);
    for (request, expected) in requests.iter().zip(&together) {
        assert_eq!(captions(&mut captioner, std::slice::from_ref(request))[0], *expected);
    }
    let different: BTreeSet<_> = together.iter().map(|caption| &caption.ids).collect();
    assert!(different.len() > 15, "{} captions of 20", different.len());
}

#[test]
fn tokens_are_told_as_they_come() {
    let golden = Golden::open("blip2/plain");
    let pictures = golden.pictures();
    let mut requests: Vec<_> = golden.cases.iter().map(|case| request(case, &pictures)).collect();
    requests[2].options.num_beams = 3;
    let mut told = vec![Vec::new(); requests.len()];
    let mut ended = vec![0; requests.len()];
    let outcomes =
        golden.captioner(&options()).caption_streaming(&requests, &mut |member, news| match news {
            Told::Token(id) => told[member].push(id),
            Told::End(outcome) => {
                assert_eq!(outcome.as_ref().unwrap().ids, told[member]);
                ended[member] += 1;
            }
        });
    assert!(ended.iter().all(|count| *count == 1));
    let ids: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap().ids).collect();
    assert_eq!(told, ids);
}

#[test]
fn bad_requests_leave_their_neighbours_alone() {
    let golden = Golden::open("blip2/plain");
    let pictures = golden.pictures();
    let good = request(&golden.cases[0], &pictures);
    let cancelled = CancelFlag::default();
    cancelled.cancel();
    let room = golden.facts.max_positions.unwrap() - golden.facts.prefix_positions() - 1;
    let batch = [
        CaptionRequest { picture: Floats::from(&pictures[0][1..]), ..good.clone() },
        CaptionRequest { prompt_ids: Some(&[]), ..good.clone() },
        CaptionRequest { prompt_ids: Some(&[2, 96]), ..good.clone() },
        good.clone(),
        CaptionRequest { options: GenerationOptions::greedy(0), ..good.clone() },
        CaptionRequest { options: GenerationOptions::greedy(room + 2), ..good.clone() },
        CaptionRequest { cancel: &cancelled, ..good.clone() },
        CaptionRequest { options: GenerationOptions::greedy(room + 1), ..good.clone() },
        CaptionRequest {
            options: GenerationOptions { num_beams: 9, ..good.options },
            ..good.clone()
        },
    ];
    let mut captioner = golden.captioner(&options());
    let outcomes = captioner.caption(&batch);
    let kinds: Vec<_> = outcomes.iter().map(|o| o.as_ref().err().map(|e| e.kind())).collect();
    let (invalid, cancelled) = (Some(Kind::InvalidInput), Some(Kind::Cancelled));
    let expected = [invalid, invalid, invalid, None, invalid, invalid, cancelled, None, invalid];
    assert_eq!(kinds, expected);
    assert_eq!(outcomes[3].as_ref().unwrap(), &golden.cases[0].generated());
    let message = outcomes[5].as_ref().unwrap_err().message().to_owned();
    assert!(message.contains("65 positions in all, 64 allowed"), "{message}");
    // The longest that is allowed: it may end early, but must not fail.
    assert!(outcomes[7].as_ref().unwrap().ids.len() <= room + 1);
    assert!(captioner.caption(&[]).is_empty());
}

#[test]
fn a_text_that_the_qformer_cannot_read_is_refused() {
    let golden = Golden::open("captioners/instruct_odd");
    let pictures = golden.pictures();
    let good = request(&golden.cases[0], &pictures);
    let batch = [
        CaptionRequest { qformer_ids: None, ..good.clone() },
        CaptionRequest { qformer_ids: Some(&[95, 1, 2, 3, 4, 5, 6, 96]), ..good.clone() },
        CaptionRequest { qformer_ids: Some(&[95, 101, 96]), ..good.clone() },
        CaptionRequest { prompt_ids: None, ..good.clone() },
        good.clone(),
    ];
    let outcomes = golden.captioner(&options()).caption(&batch);
    let messages: Vec<_> =
        outcomes[..4].iter().map(|outcome| outcome.as_ref().unwrap_err().message()).collect();
    let expected = [
        "the text has 0 tokens for the Q-Former, 1 to 7 are allowed",
        "the text has 8 tokens for the Q-Former, 1 to 7 are allowed",
        "the text has token id 101 for the Q-Former, ids below 101 are allowed",
        "this model answers questions: a text is needed",
    ];
    assert_eq!(messages, expected);
    assert_eq!(outcomes[4].as_ref().unwrap(), &golden.cases[0].generated());
}

/// Cancelled at its n-th look.
struct After(std::sync::atomic::AtomicUsize, usize);

impl imprompt_error::Cancellation for After {
    fn is_cancelled(&self) -> bool {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= self.1
    }
}

#[test]
fn cancellation_acts_between_steps() {
    let golden = Golden::open("blip2/post_norm");
    let pictures = golden.pictures();
    let others: Vec<_> = golden.cases[..3].iter().map(|case| request(case, &pictures)).collect();
    let mut captioner = golden.captioner(&options());
    for looks in 0..6 {
        let after = After(0.into(), looks);
        let mut batch = others.clone();
        batch.insert(1, CaptionRequest { cancel: &after, ..others[0].clone() });
        let mut outcomes = captioner.caption(&batch);
        let outcome = outcomes.remove(1);
        let found: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
        assert_eq!(found, golden.expected()[..3], "{looks}");
        assert_eq!(outcome.unwrap_err().kind(), Kind::Cancelled, "{looks}");
    }
}

#[test]
fn graphs_that_are_not_the_facts_are_refused() {
    let golden = Golden::open("blip2/plain");
    let facts = CaptionFacts { heads: 2, head_dim: 16, ..golden.facts.clone() };
    let error = Captioner::open(golden.folder.path(), facts, runtime(), &options()).unwrap_err();
    assert_eq!(error.kind(), Kind::BadModel);
    assert!(error.message().contains("past_key_values.0.key"), "{error}");
    let tiny = CaptionerOptions { max_text_positions: 0, ..options() };
    let error = Captioner::open(golden.folder.path(), golden.facts.clone(), runtime(), &tiny);
    assert_eq!(error.unwrap_err().kind(), Kind::InvalidInput);
}
