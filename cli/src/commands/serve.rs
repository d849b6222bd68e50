//! `imprompt serve`: finds the parts, starts tritonserver, says when it is ready, and hands
//! signals on.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use imprompt_kserve::Client;
use imprompt_repository::{Gpu, Manifest};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::arguments::Serve;
use crate::installed;
use crate::talk::{Failure, Result};

/// The variable by which the backend finds ONNX Runtime.
const ONNXRUNTIME: &str = "IMPROMPT_ONNXRUNTIME";

/// Pause between two looks at the server.
const POLL: Duration = Duration::from_millis(100);

/// Serves until the server ends.
pub fn run(arguments: &Serve) -> Result<()> {
    let manifest = Manifest::read(&arguments.repository)?;
    let server = installed::tritonserver()?;
    let backends = Backends::of(&installed::backend()?)?;
    let on_gpu = manifest.device.as_deref() == Some("gpu") && Gpu::count()? > 0;
    let onnxruntime = installed::onnxruntime(None, on_gpu)?;
    let mut command = Command::new(&server);
    command
        .arg("--model-repository")
        .arg(&arguments.repository)
        .arg("--backend-directory")
        .arg(backends.folder())
        .args(&arguments.flags)
        .stdin(Stdio::null())
        // A terminal's Ctrl-C goes to this process alone, which hands it on: the server
        // would take a second one for impatience.
        .process_group(0);
    if let Some(path) = &onnxruntime {
        command.env(ONNXRUNTIME, path);
    }
    // Before the server starts, so that no signal ends this process without it.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|error| Failure::new(format!("signals cannot be handled: {error}")))?;
    let mut child = command
        .spawn()
        .map_err(|error| Failure::new(format!("{}: start: {error}", server.display())))?;
    eprintln!("starting {} (process {})", server.display(), child.id());
    let result = attend(&mut child, &mut signals, &arguments.flags, &manifest);
    if result.is_err() {
        // What failed was waiting; do not leave the server behind.
        let _ = child.kill();
        let _ = child.wait();
    }
    finished(result?)
}

/// Waits for the server to be ready and then to end, handing signals on.
fn attend(
    child: &mut Child,
    signals: &mut Signals,
    flags: &[String],
    manifest: &Manifest,
) -> Result<(ExitStatus, bool)> {
    let address = address(flags);
    // Dropped as soon as it has served: the server waits for open connections when it stops.
    let mut client =
        address.as_ref().map(|url| Client::with_timeout(url, Some(Duration::from_secs(1))));
    let mut is_stopped = false;
    loop {
        let ended = child.try_wait();
        if let Some(status) = ended.map_err(|error| Failure::new(format!("wait: {error}")))? {
            return Ok((status, is_stopped));
        }
        for signal in signals.pending() {
            is_stopped = true;
            client = None;
            hand_on(child, signal);
        }
        if client.as_ref().is_some_and(Client::is_ready) {
            client = None;
            eprint!("{}", ready(address.as_deref().unwrap_or_default(), manifest));
        }
        std::thread::sleep(POLL);
    }
}

fn hand_on(child: &Child, signal: i32) {
    let signal = if signal == SIGINT { Signal::INT } else { Signal::TERM };
    // The child is not waited for yet, so its id is still its own.
    if let Some(id) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(id, signal);
    }
}

fn finished((status, is_stopped): (ExitStatus, bool)) -> Result<()> {
    match is_stopped || status.success() {
        true => Ok(()),
        false => Err(Failure::new(format!("tritonserver ended: {status}"))
            .hint("its own messages above say why; --log-verbose=1 after -- makes it say more")),
    }
}

/// `http://host:port` at which the flags make the server listen; `None` without HTTP.
fn address(flags: &[String]) -> Option<String> {
    let value = |name: &str| {
        flags.iter().enumerate().rev().find_map(|(index, flag)| {
            let rest = flag.strip_prefix("--")?.strip_prefix(name)?;
            match rest.strip_prefix('=') {
                Some(value) => Some(value.to_owned()),
                None => rest.is_empty().then(|| flags.get(index + 1).cloned()).flatten(),
            }
        })
    };
    if value("allow-http").is_some_and(|value| matches!(&*value, "false" | "False" | "0")) {
        return None;
    }
    let host = value("http-address").filter(|host| host != "0.0.0.0");
    let port = value("http-port").unwrap_or_else(|| "8000".to_owned());
    Some(format!("http://{}:{port}", host.as_deref().unwrap_or("localhost")))
}

/// What is said once: where the server is, and a line to try.
fn ready(address: &str, manifest: &Manifest) -> String {
    let models = manifest.ensembles.join(", ");
    let Some((ensemble, input)) = ["interrogate", "caption", "embed_image"]
        .into_iter()
        .find(|name| manifest.ensembles.iter().any(|has| has == name))
        .map(|name| (name, r#"{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": ["'$(base64 -w0 PICTURE)'"]}"#))
    else {
        return format!("ready at {address}: {models}\n");
    };
    format!(
        "ready at {address}: {models}\ntry:\n  \
         curl -s {address}/v2/models/{ensemble}/infer -H 'Content-Type: application/json' \\\n    \
         -d '{{\"inputs\": [{input}]}}'\n"
    )
}

/// A backend directory as tritonserver wants it: `FOLDER/imprompt/libtriton_imprompt.so`.
enum Backends {
    /// The library is in such a directory already.
    Installed(PathBuf),
    /// A temporary one with a link to the library.
    Linked(tempfile::TempDir),
}

impl Backends {
    fn of(library: &Path) -> Result<Self> {
        let failed =
            |error: std::io::Error| Failure::new(format!("{}: {error}", library.display()));
        let library = library.canonicalize().map_err(failed)?;
        let parent = library.parent();
        if let Some(folder) = parent.and_then(Path::parent)
            && parent.and_then(Path::file_name) == Some(&OsString::from("imprompt"))
        {
            return Ok(Backends::Installed(folder.to_owned()));
        }
        let folder =
            tempfile::Builder::new().prefix("imprompt-backends-").tempdir().map_err(failed)?;
        let inner = folder.path().join("imprompt");
        std::fs::create_dir(&inner).map_err(failed)?;
        std::os::unix::fs::symlink(&library, inner.join("libtriton_imprompt.so"))
            .map_err(failed)?;
        Ok(Backends::Linked(folder))
    }

    fn folder(&self) -> &Path {
        match self {
            Backends::Installed(folder) => folder,
            Backends::Linked(folder) => folder.path(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_address_follows_the_flags() {
        let of = |text| address(&flags(text));
        assert_eq!(of("").as_deref(), Some("http://localhost:8000"));
        assert_eq!(
            of("--http-port=9000 --http-address 10.0.0.1").as_deref(),
            Some("http://10.0.0.1:9000")
        );
        assert_eq!(
            of("--http-port 1 --http-port=2 --http-address=0.0.0.0").as_deref(),
            Some("http://localhost:2")
        );
        assert_eq!(of("--allow-http=false"), None);
        assert_eq!(of("--http-portal=3").as_deref(), Some("http://localhost:8000"));
    }

    #[test]
    fn a_library_elsewhere_is_linked_into_a_backend_directory() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libtriton_imprompt.so");
        std::fs::write(&library, "elf").unwrap();
        let backends = Backends::of(&library).unwrap();
        let found = backends.folder().join("imprompt/libtriton_imprompt.so");
        assert_eq!(std::fs::read_to_string(found).unwrap(), "elf");
        let installed = folder.path().join("imprompt/libtriton_imprompt.so");
        std::fs::create_dir(installed.parent().unwrap()).unwrap();
        std::fs::write(&installed, "elf").unwrap();
        let backends = Backends::of(&installed).unwrap();
        assert_eq!(backends.folder(), folder.path().canonicalize().unwrap());
    }
}
