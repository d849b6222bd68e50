//! What the environment says of the hub, as huggingface_hub reads it
//! (`huggingface_hub/constants.py`).

use std::path::PathBuf;

use crate::installed::variable;
use crate::talk::{Failure, Result};

const ENDPOINT: &str = "https://huggingface.co";

/// Where the hub is and who asks it. Has no `Debug`: the token is not for printing.
pub(super) struct Settings {
    /// The hub's address, without a slash at its end.
    pub(super) endpoint: String,
    /// The user's token.
    pub(super) token: Option<String>,
}

impl Settings {
    /// Of this process.
    pub(super) fn read() -> Result<Self> {
        let endpoint = variable("HF_ENDPOINT").map_or_else(
            || ENDPOINT.to_owned(),
            |endpoint| endpoint.to_string_lossy().trim_end_matches('/').to_owned(),
        );
        Ok(Settings { endpoint, token: token()? })
    }
}

/// True when the user forbids the network.
pub(super) fn is_offline() -> bool {
    ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].iter().any(|name| {
        let value = std::env::var(name).unwrap_or_default().to_ascii_uppercase();
        matches!(&*value, "1" | "ON" | "YES" | "TRUE")
    })
}

/// The folder of the cache.
pub(super) fn cache() -> Result<PathBuf> {
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(home()?.join("hub")))
        .ok_or_else(|| Failure::new("neither $HF_HOME nor $HOME says where the hub's cache is"))
}

fn home() -> Option<PathBuf> {
    variable("HF_HOME")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("huggingface")))
        .or_else(|| Some(variable("HOME")?.join(".cache/huggingface")))
}

/// `HF_TOKEN`, else what `hf auth login` left in the token file.
fn token() -> Result<Option<String>> {
    let named = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]
        .into_iter()
        .find_map(|name| Some((format!("${name}"), variable(name)?.into_os_string())));
    let (place, token) = match named {
        Some((place, value)) => (place, value.to_string_lossy().into_owned()),
        None => {
            let file = variable("HF_TOKEN_PATH").or_else(|| Some(home()?.join("token")));
            let Some(file) = file else { return Ok(None) };
            match std::fs::read_to_string(&file) {
                Ok(text) => (file.display().to_string(), text),
                Err(_) => return Ok(None),
            }
        }
    };
    let token = token.trim();
    if !token.chars().all(|c| c.is_ascii_graphic()) {
        return Err(Failure::new(format!("{place}: has characters that no token has")));
    }
    Ok((!token.is_empty()).then(|| token.to_owned()))
}
