//! What stands beside a built engine: `NAME.engine.json`, which says what `NAME.engine` was built
//! from, with what and for which cards. It is read and checked without a GPU.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use imprompt_error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The layout that this version writes and reads.
pub const LAYOUT: u32 = 1;

/// The engine of `graph` (`NAME.onnx`): `NAME.engine` beside it.
#[must_use]
pub fn engine_file(graph: &Path) -> PathBuf {
    graph.with_extension("engine")
}

/// Its manifest, `NAME.engine.json`.
#[must_use]
pub fn manifest_file(graph: &Path) -> PathBuf {
    graph.with_extension("engine.json")
}

/// The manifest of an engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineManifest {
    /// Version of this file's layout.
    pub layout: u32,
    /// Which TensorRT: `rtx`, or `enterprise`, that of data centres.
    pub flavour: String,
    /// The version that built it; the same reads it.
    pub tensorrt: String,
    /// The cards it runs on, such as `8.6`.
    pub compute_capabilities: Vec<String>,
    /// The type of its matrix products: `f32`, `f16` or `bf16`.
    pub precision: String,
    /// The shapes it takes. A run fits one of them.
    pub profiles: Vec<Vec<InputRange>>,
    /// Its inputs.
    pub inputs: Vec<EnginePort>,
    /// Its outputs.
    pub outputs: Vec<EnginePort>,
    /// The graph beside it that it was built from.
    pub graph: FileDigest,
    /// The weight files of that graph, by their sizes: gigabytes are not read at every start.
    pub weights: Vec<FileSize>,
    /// The engine itself.
    pub engine: FileDigest,
}

/// The shapes of an input in one profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputRange {
    /// The input.
    pub input: String,
    /// The smallest shape.
    pub least: Vec<usize>,
    /// The shape it is fastest at.
    pub best: Vec<usize>,
    /// The largest shape.
    pub most: Vec<usize>,
}

/// An input or output of an engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnginePort {
    /// Its name.
    pub name: String,
    /// The type of its elements: `f32`, `f16`, `bf16` or `i64`.
    #[serde(rename = "type")]
    pub element_type: String,
    /// Its dimensions; `null` where any length of the profiles is taken.
    pub shape: Vec<Option<usize>>,
}

/// A file in the engine's folder, and its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// Its name.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of it.
    pub sha256: String,
}

/// A file in the engine's folder, and its size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSize {
    /// Its name.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its size and of evenly spread blocks of it.
    pub sample: String,
}

/// What an engine shall run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Which TensorRT there is.
    pub flavour: String,
    /// Its version.
    pub tensorrt: String,
    /// The card's compute capability, such as `8.6`.
    pub compute_capability: String,
}

impl FileDigest {
    /// That of `path`.
    ///
    /// # Errors
    /// `BadModel` naming the file that cannot be read.
    pub fn of(path: &Path) -> Result<Self> {
        let failed = |error: std::io::Error| bad(path, &error);
        let mut file = std::fs::File::open(path).map_err(failed)?;
        let mut hasher = Sha256::new();
        let mut block = vec![0; 1 << 20];
        let mut bytes = 0;
        loop {
            let count = file.read(&mut block).map_err(failed)?;
            if count == 0 {
                break;
            }
            hasher.update(&block[..count]);
            bytes += count as u64;
        }
        let digits = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(FileDigest { file: name_of(path), bytes, sha256: digits })
    }
}

impl EngineManifest {
    /// Reads that of the engine of `graph`.
    ///
    /// # Errors
    /// `NotFound` when `graph` has no engine, `BadModel` when the file is none, or of a newer layout.
    pub fn read(graph: &Path) -> Result<Self> {
        let path = manifest_file(graph);
        let text = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::not_found(format!(
                "{}: no engine for a GPU is beside the graph; {REBUILD}",
                path.display()
            )),
            _ => bad(&path, &error),
        })?;
        let manifest: EngineManifest =
            serde_json::from_str(&text).map_err(|error| bad(&path, &error))?;
        if manifest.layout > LAYOUT {
            let newer = format!("layout {}, this version reads up to {LAYOUT}", manifest.layout);
            return Err(bad(&path, &newer));
        }
        Ok(manifest)
    }

    /// What stands in the file.
    ///
    /// # Errors
    /// `Internal` when it cannot be written as JSON.
    pub fn to_text(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::internal(format!("an engine's manifest: {error}")))?;
        Ok(text + "\n")
    }

    /// Fails where the engine of `graph` is not one of the files that are beside it, which takes
    /// reading the graph (the engine's own bytes TensorRT checks).
    ///
    /// # Errors
    /// `BadModel` naming the file and the command that builds the engine anew.
    pub fn check_files(&self, graph: &Path) -> Result<()> {
        if self.graph.sha256 != FileDigest::of(graph)?.sha256 {
            return Err(stale(graph, "was built from another graph than the one beside it"));
        }
        let folder = graph.parent().unwrap_or(Path::new("."));
        let sizes = self.weights.iter().map(|file| (&file.file, file.bytes));
        for (file, bytes) in sizes.chain([(&self.engine.file, self.engine.bytes)]) {
            let path = folder.join(file);
            let found = std::fs::metadata(&path).map_err(|error| bad(&path, &error))?.len();
            if found != bytes {
                let what = format!("needs {file} of {bytes} bytes, there are {found}");
                return Err(stale(graph, &what));
            }
        }
        Ok(())
    }

    /// Fails where the engine of `graph` does not run on `machine`.
    ///
    /// # Errors
    /// `Unsupported` naming both versions or cards and the command that builds the engine anew.
    pub fn check_machine(&self, graph: &Path, machine: &Machine) -> Result<()> {
        let wrong = |what: String| {
            let error = stale(graph, &what);
            Err(Error::new(Kind::Unsupported, error.message().to_owned()))
        };
        if self.flavour != machine.flavour {
            return wrong(format!(
                "is of the flavour {:?}, here is {}",
                self.flavour, machine.flavour
            ));
        }
        if self.tensorrt != machine.tensorrt {
            return wrong(format!(
                "was built by TensorRT {}, here is {}",
                self.tensorrt, machine.tensorrt
            ));
        }
        let card = &machine.compute_capability;
        if !self.compute_capabilities.contains(card) {
            return wrong(format!(
                "was built for compute capabilities {}, this GPU has {card}",
                self.compute_capabilities.join(", ")
            ));
        }
        Ok(())
    }
}

const REBUILD: &str = "build one with `imprompt build --device gpu`";

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn bad(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::bad_model(format!("{}: {why}", path.display()))
}

fn stale(graph: &Path, what: &str) -> Error {
    Error::bad_model(format!("{} {what}; {REBUILD}", engine_file(graph).display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(graph: &Path) -> EngineManifest {
        std::fs::write(graph, "a graph").unwrap();
        std::fs::write(engine_file(graph), "an engine").unwrap();
        std::fs::write(graph.with_file_name("model.safetensors"), "weights").unwrap();
        let range = InputRange {
            input: "pixel_values".to_owned(),
            least: vec![1, 3],
            best: vec![8, 3],
            most: vec![8, 3],
        };
        let port = EnginePort {
            name: "pixel_values".to_owned(),
            element_type: "f32".to_owned(),
            shape: vec![None, Some(3)],
        };
        EngineManifest {
            layout: LAYOUT,
            flavour: "rtx".to_owned(),
            tensorrt: "1.7.1".to_owned(),
            compute_capabilities: vec!["7.5".to_owned(), "8.6".to_owned()],
            precision: "f16".to_owned(),
            profiles: vec![vec![range]],
            inputs: vec![port],
            outputs: Vec::new(),
            graph: FileDigest::of(graph).unwrap(),
            weights: vec![FileSize {
                file: "model.safetensors".to_owned(),
                bytes: 7,
                sample: String::new(),
            }],
            engine: FileDigest::of(&engine_file(graph)).unwrap(),
        }
    }

    #[test]
    fn is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let graph = folder.path().join("clip_image.onnx");
        let error = EngineManifest::read(&graph).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.message().contains("imprompt build --device gpu"), "{error}");

        let manifest = example(&graph);
        let path = folder.path().join("clip_image.engine.json");
        assert_eq!(manifest_file(&graph), path);
        std::fs::write(&path, manifest.to_text().unwrap()).unwrap();
        assert_eq!(EngineManifest::read(&graph).unwrap(), manifest);
        assert!(manifest.graph.sha256.starts_with("170df614"), "{}", manifest.graph.sha256);

        let newer = EngineManifest { layout: LAYOUT + 1, ..manifest };
        std::fs::write(&path, newer.to_text().unwrap()).unwrap();
        assert_eq!(EngineManifest::read(&graph).unwrap_err().kind(), Kind::BadModel);
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(EngineManifest::read(&graph).unwrap_err().kind(), Kind::BadModel);
    }

    #[test]
    fn an_engine_of_other_files_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let graph = folder.path().join("clip_image.onnx");
        let manifest = example(&graph);
        manifest.check_files(&graph).unwrap();

        let refused = |what: &str| {
            let error = manifest.check_files(&graph).unwrap_err();
            assert_eq!(error.kind(), Kind::BadModel);
            assert!(error.message().contains(what), "{error}");
            error.message().to_owned()
        };
        std::fs::write(engine_file(&graph), "an engine cut").unwrap();
        let message = refused("needs clip_image.engine of 9 bytes, there are 13");
        assert!(message.ends_with("build one with `imprompt build --device gpu`"), "{message}");
        std::fs::write(folder.path().join("model.safetensors"), "other weights").unwrap();
        refused("needs model.safetensors of 7 bytes, there are 13");
        std::fs::write(&graph, "b graph").unwrap();
        refused("another graph");
        std::fs::remove_file(&graph).unwrap();
        refused("clip_image.onnx");
    }

    #[test]
    fn an_engine_for_another_machine_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let graph = folder.path().join("clip_image.onnx");
        let manifest = example(&graph);
        let machine = |tensorrt: &str, card: &str| Machine {
            flavour: "rtx".to_owned(),
            tensorrt: tensorrt.to_owned(),
            compute_capability: card.to_owned(),
        };
        manifest.check_machine(&graph, &machine("1.7.1", "8.6")).unwrap();
        let refused = |manifest: &EngineManifest, machine: Machine, what: &str| {
            let error = manifest.check_machine(&graph, &machine).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported);
            assert!(error.message().contains(what), "{error}");
            assert!(error.message().contains("clip_image.engine"), "{error}");
            assert!(error.message().contains("imprompt build --device gpu"), "{error}");
        };
        let older = machine("1.6.0", "8.6");
        refused(&manifest, older, "built by TensorRT 1.7.1, here is 1.6.0");
        let hopper = machine("1.7.1", "9.0");
        refused(&manifest, hopper, "for compute capabilities 7.5, 8.6, this GPU has 9.0");
        let other = EngineManifest { flavour: "enterprise".to_owned(), ..manifest.clone() };
        refused(&other, machine("1.7.1", "8.6"), "is of the flavour \"enterprise\", here is rtx");
    }
}
