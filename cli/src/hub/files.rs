//! Which files of a model are needed: its configurations, its tokenizer, and its weights once,
//! in the format that is preferred. A hub's model often has them in three or four.

use std::collections::BTreeMap;
use std::path::Path;

use imprompt_repository::{
    CONFIG_FILES, OPEN_CLIP_FILES, QFORMER_TOKENIZER_FILES, TOKENIZER_FILES, WEIGHT_FILES,
};
use serde::Deserialize;

use crate::talk::{Failure, Result};

/// Weights that are not read, and what they are.
const OTHER_WEIGHTS: [(&str, &str); 3] = [
    ("open_clip_pytorch_model.bin", "PyTorch weights of open_clip"),
    ("tf_model.h5", "TensorFlow weights"),
    ("flax_model.msgpack", "Flax weights"),
];

/// Files to have, of those that a model has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Needed {
    /// Configurations and the tokenizers.
    pub(super) small: Vec<&'static str>,
    /// The weights, or the index of their shards.
    pub(super) weights: &'static str,
}

impl Needed {
    /// Of a model that has the files `has` says.
    pub(super) fn of(has: impl Fn(&str) -> bool) -> Option<Self> {
        let common =
            CONFIG_FILES.iter().chain(&TOKENIZER_FILES).chain(&QFORMER_TOKENIZER_FILES).copied();
        let small: Vec<_> = common.filter(|name| has(name)).collect();
        let [open_clip, open_clip_weights] = OPEN_CLIP_FILES;
        let of_transformers = WEIGHT_FILES.iter().flat_map(|(single, index)| [*single, *index]);
        let mut of_transformers = of_transformers.filter(|_| has("config.json"));
        let is_open_clip = has(open_clip) && has(open_clip_weights);
        // Safetensors of either kind go before pickles. open_clip's configuration comes with
        // its weights alone: it says which of the two kinds the folder is.
        match of_transformers.find(|name| has(name)) {
            Some(name) if name.contains(".safetensors") || !is_open_clip => {
                Some(Needed { small, weights: name })
            }
            _ if is_open_clip => {
                let small = small.into_iter().chain([open_clip]).collect();
                Some(Needed { small, weights: open_clip_weights })
            }
            _ => None,
        }
    }
}

/// Whether the files of the snapshot `folder` make a model.
pub(super) fn is_whole(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).exists();
    Needed::of(has).is_some_and(|needed| {
        shards(folder, needed.weights).is_ok_and(|shards| shards.iter().all(|name| has(name)))
    })
}

/// The shards that the index `name` of `folder` lists; none where `name` is no index.
pub(super) fn shards(folder: &Path, name: &str) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let Some(single) = name.strip_suffix(".index.json") else { return Ok(vec![]) };
    let path = folder.join(name);
    let wrong = |why: String| Failure::new(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
    let index: Index = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    let ending = if single.ends_with(".bin") { ".bin" } else { ".safetensors" };
    let is_shard = |name: &String| name.ends_with(ending) && !name.contains(['/', '\\']);
    match names.iter().all(is_shard) {
        true if !names.is_empty() => Ok(names),
        true => Err(wrong("names no shard".into())),
        false => Err(wrong("names a shard outside its folder".into())),
    }
}

/// What is said of a model without weights that are read.
pub(super) fn none(id: &str, has: impl Fn(&str) -> bool) -> Failure {
    let found = OTHER_WEIGHTS.iter().find(|(name, _)| has(name));
    let others = found.map_or_else(String::new, |(name, what)| {
        format!(" (it has {name}, {what}, which are not read)")
    });
    let names: Vec<&str> = WEIGHT_FILES.iter().map(|(single, _)| *single).collect();
    Failure::new(format!(
        "{id}: the hub has no weights of it in a format that is read: {} with config.json, or {} \
         with {}{others}",
        names.join(" or "),
        OPEN_CLIP_FILES[1],
        OPEN_CLIP_FILES[0],
    ))
    .hint("load it in Python, save it with save_pretrained(FOLDER, safe_serialization=True), and name that folder")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(files: &[&str]) -> Option<(Vec<&'static str>, &'static str)> {
        Needed::of(|name| files.contains(&name)).map(|needed| (needed.small, needed.weights))
    }

    #[test]
    fn weights_are_taken_in_one_format() {
        let all = [
            "README.md",
            "config.json",
            "flax_model.msgpack",
            "merges.txt",
            "model.safetensors",
            "open_clip_config.json",
            "open_clip_model.safetensors",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "tf_model.h5",
            "vocab.json",
        ];
        let common = vec!["config.json", "vocab.json", "merges.txt"];
        assert_eq!(needed(&all), Some((common.clone(), "model.safetensors")));
        let without = |gone: &[&str]| {
            let rest: Vec<&str> = all.iter().filter(|name| !gone.contains(name)).copied().collect();
            needed(&rest)
        };
        let open_clip = [&common[..], &["open_clip_config.json"]].concat();
        assert_eq!(
            without(&["model.safetensors"]),
            Some((open_clip, "open_clip_model.safetensors"))
        );
        let gone = ["model.safetensors", "open_clip_config.json"];
        assert_eq!(without(&gone), Some((common.clone(), "pytorch_model.bin")));
        let gone = [&gone[..], &["pytorch_model.bin"]].concat();
        assert_eq!(without(&gone), Some((common, "pytorch_model.bin.index.json")));
        assert_eq!(needed(&["config.json", "tf_model.h5"]), None);
        assert_eq!(needed(&["model.safetensors"]), None);
    }

    #[test]
    fn an_index_may_not_lead_out() {
        let folder = tempfile::tempdir().unwrap();
        let index = |name: &str, shard: &str| {
            let text = format!(r#"{{"weight_map": {{"a": "{shard}", "b": "{shard}"}}}}"#);
            std::fs::write(folder.path().join(name), text).unwrap();
            shards(folder.path(), name)
        };
        let [(_, safetensors), (_, bin)] = WEIGHT_FILES;
        assert_eq!(index(safetensors, "model-1.safetensors").unwrap(), ["model-1.safetensors"]);
        assert_eq!(index(bin, "model-1.bin").unwrap(), ["model-1.bin"]);
        assert!(index(safetensors, "../model-1.safetensors").is_err());
        assert!(index(safetensors, "x.bin").is_err());
        assert!(index(bin, "x.safetensors").is_err());
        assert_eq!(shards(folder.path(), "model.safetensors").unwrap(), [""; 0]);
    }
}
