//! TensorRT on a GPU.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use imprompt_cuda::{Device, Ranking, Stream};
use imprompt_engine::manifest::{self, EngineManifest, EnginePort, Machine};
use imprompt_engine::{ElementType, Engine, EngineOptions, Port, Runtime};
use imprompt_error::{Error, Result};

use crate::context::{Context, Habit, Loaded};
use crate::engine::{Facts, TensorRtEngine};
use crate::flavour::{FLAVOUR, NAME};
use crate::profile::has_few_shapes;
use crate::{TensorRt, kernels};

/// TensorRT on a GPU: one stream of work, to which all its engines give theirs. What one leaves on the
/// device the next one reads there, in order and without waiting.
#[derive(Debug)]
pub struct TensorRtRuntime {
    library: &'static TensorRt,
    stream: Stream,
    machine: Machine,
}

impl TensorRt {
    /// The library on GPU `ordinal`, with a stream of its own.
    ///
    /// # Errors
    /// `NotFound` where there is no such GPU or no driver; what the driver says.
    pub fn on_gpu(&'static self, ordinal: usize) -> Result<TensorRtRuntime> {
        let device = Device::open(ordinal)?;
        let machine = Machine {
            flavour: FLAVOUR.to_owned(),
            tensorrt: self.version(),
            compute_capability: device.compute_capability().to_string(),
        };
        Ok(TensorRtRuntime { library: self, stream: device.stream()?, machine })
    }
}

impl TensorRtRuntime {
    /// Fails where the engine beside `graph` is not for it, or not for this GPU and this version of
    /// TensorRT, which is known without loading it.
    ///
    /// # Errors
    /// `NotFound`, `BadModel` or `Unsupported`, naming the file and the command that builds it anew.
    pub fn admit(&self, graph: &Path) -> Result<()> {
        admit(graph, &self.machine).map(drop)
    }
}

/// The manifest of the engine of `graph`, where that is one for `machine`.
fn admit(graph: &Path, machine: &Machine) -> Result<EngineManifest> {
    let manifest = EngineManifest::read(graph)?;
    manifest.check_machine(graph, machine)?;
    manifest.check_files(graph)?;
    Ok(manifest)
}

/// The inputs, the outputs and the profiles of a manifest.
fn facts(manifest: &EngineManifest) -> Result<Facts> {
    let port = |port: &EnginePort| {
        let element_type = match port.element_type.as_str() {
            "f32" => ElementType::F32,
            "f16" => ElementType::F16,
            "bf16" => ElementType::Bf16,
            "i64" => ElementType::I64,
            other => {
                return Err(Error::bad_model(format!("{}: elements of type {other:?}", port.name)));
            }
        };
        Ok(Port { name: port.name.clone(), element_type, shape: port.shape.clone() })
    };
    let ports = |ports: &[EnginePort]| ports.iter().map(port).collect::<Result<Vec<_>>>();
    Ok(Facts {
        inputs: ports(&manifest.inputs)?,
        outputs: ports(&manifest.outputs)?,
        profiles: manifest.profiles.clone(),
    })
}

/// How the contexts of `facts` run, one for each profile.
fn habits(facts: &Facts, records: bool) -> Vec<Habit> {
    let habit = |(place, is_few): (usize, bool)| Habit {
        profile: (facts.profiles.len() > 1).then_some(place),
        specialises: is_few,
        records: is_few && records,
    };
    if facts.profiles.is_empty() {
        return vec![habit((0, true))];
    }
    let few = facts.profiles.iter().map(|profile| has_few_shapes(profile));
    few.enumerate().map(habit).collect()
}

impl Runtime for TensorRtRuntime {
    fn description(&self) -> String {
        let device = self.stream.device();
        format!(
            "{NAME} {} ({}) on GPU {}, {} (compute capability {})",
            self.library.version(),
            self.library.place(),
            device.ordinal(),
            device.name(),
            device.compute_capability()
        )
    }

    /// Opens the engine that was built of `graph` and lies beside it.
    fn open(&self, graph: &Path, options: &EngineOptions) -> Result<Box<dyn Engine>> {
        let manifest = admit(graph, &self.machine)?;
        let path = manifest::engine_file(graph);
        let named = |error: Error| error.context(path.display());
        let facts = facts(&manifest).map_err(named)?;
        let key = (manifest.engine.sha256.clone(), self.stream.device().ordinal());
        let loaded = SHARED.get(key, || self.load(graph)).map_err(named)?;
        let contexts = habits(&facts, options.cuda_graphs)
            .into_iter()
            .map(|habit| Context::new(&loaded, &self.stream, &facts, habit))
            .collect::<Result<_>>()
            .map_err(named)?;
        kernels::keep(graph, &loaded);
        let name = graph.display().to_string();
        let engine = TensorRtEngine::new(name, facts, contexts, &self.stream, options.cuda_graphs)?;
        Ok(Box::new(engine))
    }

    fn ranking(&self) -> Result<Option<Ranking>> {
        Ranking::new(&self.stream).map(Some)
    }
}

impl TensorRtRuntime {
    fn load(&self, graph: &Path) -> Result<Loaded> {
        let bytes = imprompt_mapping::map_file(&manifest::engine_file(graph))?;
        Loaded::new(&bytes, self.stream.device(), kernels::read(graph).as_deref())
    }
}

/// The digest of an engine, and the GPU that it is on: stages with the same engine have it under names
/// of their own.
type Key = (String, usize);

/// What instances share as long as one of them has it, by its key.
struct Shared<T>(Mutex<Option<HashMap<Key, Slot<T>>>>);

type Slot<T> = Arc<Mutex<Weak<T>>>;

/// The engines of this process.
static SHARED: Shared<Loaded> = Shared(Mutex::new(None));

impl<T> Shared<T> {
    /// That of `key`, made by `make` where nobody has it. Others who want it wait for it meanwhile, and
    /// nobody else does.
    fn get(&self, key: Key, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let slot = {
            let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let slots = slots.get_or_insert_default();
            let is_used = |slot: &Slot<T>| {
                Arc::strong_count(slot) > 1 || slot.lock().is_ok_and(|weak| weak.strong_count() > 0)
            };
            slots.retain(|_, slot| is_used(slot));
            slots.entry(key).or_insert_with(|| Arc::new(Mutex::new(Weak::new()))).clone()
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = slot.upgrade() {
            return Ok(there);
        }
        let made = Arc::new(make()?);
        *slot = Arc::downgrade(&made);
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imprompt_engine::manifest::{FileDigest, InputRange, LAYOUT};
    use imprompt_error::Kind;

    fn machine() -> Machine {
        let (flavour, tensorrt) = (FLAVOUR.to_owned(), "1.7.1".to_owned());
        Machine { flavour, tensorrt, compute_capability: "8.6".to_owned() }
    }

    fn range(input: &str, least: &[usize], most: &[usize]) -> InputRange {
        let (least, most) = (least.to_vec(), most.to_vec());
        InputRange { input: input.to_owned(), least, best: most.clone(), most }
    }

    /// A graph with an engine beside it, that is none.
    fn example(graph: &Path) -> EngineManifest {
        std::fs::write(graph, "a graph").unwrap();
        std::fs::write(manifest::engine_file(graph), "an engine").unwrap();
        let port = |name: &str, element_type: &str| EnginePort {
            name: name.to_owned(),
            element_type: element_type.to_owned(),
            shape: vec![None, Some(3)],
        };
        let manifest = EngineManifest {
            layout: LAYOUT,
            flavour: FLAVOUR.to_owned(),
            tensorrt: machine().tensorrt,
            compute_capabilities: vec!["8.6".to_owned()],
            precision: "bf16".to_owned(),
            profiles: vec![vec![range("pixel_values", &[1, 3], &[8, 3])]],
            inputs: vec![port("pixel_values", "f32"), port("past_key_values.0.key", "bf16")],
            outputs: vec![port("image_embeds", "f16")],
            graph: FileDigest::of(graph).unwrap(),
            weights: Vec::new(),
            engine: FileDigest::of(&manifest::engine_file(graph)).unwrap(),
        };
        write(graph, &manifest);
        manifest
    }

    fn write(graph: &Path, manifest: &EngineManifest) {
        let text = manifest.to_text().unwrap();
        std::fs::write(manifest::manifest_file(graph), text).unwrap();
    }

    #[test]
    fn engines_are_refused_by_name_before_tensorrt_sees_them() {
        let folder = tempfile::tempdir().unwrap();
        let graph = folder.path().join("clip_image.onnx");
        let refused = |machine: &Machine, kind: Kind, what: &str| {
            let error = admit(&graph, machine).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.message().contains("clip_image.engine"), "{error}");
            assert!(error.message().contains(what), "{error}");
            assert!(error.message().contains("imprompt build --device gpu"), "{error}");
        };
        refused(&machine(), Kind::NotFound, "no engine for a GPU");
        let manifest = example(&graph);
        assert_eq!(admit(&graph, &machine()).unwrap(), manifest);
        let other = Machine { tensorrt: "1.8.0".to_owned(), ..machine() };
        refused(&other, Kind::Unsupported, "built by TensorRT 1.7.1, here is 1.8.0");
        let hopper = Machine { compute_capability: "9.0".to_owned(), ..machine() };
        refused(&hopper, Kind::Unsupported, "for compute capabilities 8.6, this GPU has 9.0");
        std::fs::write(manifest::engine_file(&graph), "cut").unwrap();
        refused(&machine(), Kind::BadModel, "needs clip_image.engine of 9 bytes, there are 3");
        std::fs::write(&graph, "another graph").unwrap();
        refused(&machine(), Kind::BadModel, "was built from another graph");
        // What does not run here at all is told first.
        refused(&hopper, Kind::Unsupported, "this GPU has 9.0");
    }

    #[test]
    fn ports_are_those_of_the_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = example(&folder.path().join("clip_image.onnx"));
        let found = facts(&manifest).unwrap();
        let types: Vec<ElementType> = found.inputs.iter().map(|port| port.element_type).collect();
        assert_eq!(types, [ElementType::F32, ElementType::Bf16]);
        assert_eq!(found.inputs[0].shape, [None, Some(3)]);
        assert_eq!(found.outputs[0].name, "image_embeds");
        let mut odd = manifest;
        odd.inputs[0].element_type = "f64".to_owned();
        let error = facts(&odd).unwrap_err();
        assert_eq!(error.message(), "pixel_values: elements of type \"f64\"");
    }

    #[test]
    fn a_profile_has_a_context_of_its_own() {
        let of = |profiles: Vec<Vec<InputRange>>| Facts {
            inputs: Vec::new(),
            outputs: Vec::new(),
            profiles,
        };
        let step = vec![range("input_ids", &[1, 1], &[8, 1]), range("key_positions", &[1], &[544])];
        let prefill =
            vec![range("input_ids", &[1, 1], &[8, 512]), range("key_positions", &[1], &[544])];
        let decoder = of(vec![step.clone(), prefill]);
        let habit = |profile, specialises, records| Habit { profile, specialises, records };
        let both = [habit(Some(0), true, true), habit(Some(1), false, false)];
        assert_eq!(habits(&decoder, true), both);
        assert_eq!(habits(&decoder, false)[0], habit(Some(0), true, false));
        assert_eq!(habits(&of(vec![step]), true), [habit(None, true, true)]);
        assert_eq!(habits(&of(Vec::new()), false), [habit(None, true, false)]);
    }

    #[test]
    fn what_is_shared_is_made_once_and_again_when_nobody_has_it() {
        let shared: Shared<u32> = Shared(Mutex::new(None));
        let key = |name: &str| (name.to_owned(), 0);
        let first = shared.get(key("a"), || Ok(1)).unwrap();
        let second = shared.get(key("a"), || Ok(2)).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(*shared.get((String::from("a"), 1), || Ok(3)).unwrap(), 3);
        assert!(shared.get(key("b"), || Err(Error::internal("no"))).is_err());
        assert_eq!(*shared.get(key("b"), || Ok(4)).unwrap(), 4);
        drop((first, second));
        assert_eq!(*shared.get(key("a"), || Ok(5)).unwrap(), 5);
        // What nobody has is forgotten when something else is asked for.
        shared.get(key("c"), || Ok(6)).unwrap();
        assert_eq!(shared.0.lock().unwrap().as_ref().unwrap().len(), 1);
    }

    #[cfg(not(feature = "enterprise"))]
    #[test]
    fn without_a_driver_it_is_said() {
        let library = TensorRt::open(&crate::LibrarySearch::default()).unwrap();
        let ordinal = Device::count().unwrap();
        let error = library.on_gpu(ordinal).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.message().contains("driver"), "{error}");
    }
}
