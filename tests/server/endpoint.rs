//! A real server with SageMaker's front end, started as the `serve` script of SageMaker's images starts
//! it, and packages unpacked as the platform does it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use imprompt_kserve::{InferRequest, InferResponse};
use imprompt_package::{PackRequest, pack};
use imprompt_repository::Silent;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::library::library;
use crate::support::{Answer, Lasting, Server, call, demo_repository, from_environment};

/// Where SageMaker unpacks the packages of a multi-model endpoint; the front end takes no other place.
const MODELS: &str = "/opt/ml/models";

/// A body whose first N bytes are its JSON, before the tensors; 0: the whole body is the one input.
const BINARY: &str = "application/vnd.sagemaker-triton.binary+json;json-header-size=";

/// The header that names the package.
const TARGET_MODEL: &str = "x-amzn-sagemaker-target-model";

/// How often one server may know nothing of a loaded package for a moment: [`Endpoint::infer_beside_loads`].
const MISSES: usize = 3;

/// How long a moment is: instructions, more where the loading thread loses its core amid them.
const MOMENT: Duration = Duration::from_millis(100);

/// `ensemble` of the demo repository as a package, made once.
pub fn package(ensemble: &str) -> PathBuf {
    static PACKAGES: OnceLock<(Lasting, Mutex<HashMap<String, PathBuf>>)> = OnceLock::new();
    let (folder, packages) = PACKAGES.get_or_init(|| (Lasting::new(), Mutex::default()));
    let mut packages = packages.lock().unwrap();
    let make = || repackage(folder.path(), &demo_repository(), ensemble, &library()).0;
    packages.entry(ensemble.to_owned()).or_insert_with(make).clone()
}

/// Packs `ensemble` of `repository` with `library`, into `folder`: the package, and the library's name in it.
pub fn repackage(
    folder: &Path,
    repository: &Path,
    ensemble: &str,
    library: &Path,
) -> (PathBuf, String) {
    let request = PackRequest {
        repository: repository.to_owned(),
        ensemble: ensemble.to_owned(),
        library: library.to_owned(),
        companions: vec![from_environment("IMPROMPT_ONNXRUNTIME")],
        out: folder.join(format!("{ensemble}.tar.gz")),
        level: 1,
    };
    let packed = pack(&request, &Silent).unwrap();
    (request.out, packed.library)
}

/// Unpacks as the platform does it.
pub fn unpack(package: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let status = Command::new("tar").arg("-xzf").arg(package).arg("-C").arg(to).status();
    assert!(status.unwrap().success());
}

/// A package where a multi-model endpoint has it. It is removed in the end.
pub struct Unpacked {
    /// What SageMaker calls the model in its paths.
    hash: String,
}

impl Unpacked {
    /// `package` under a name that begins with `name`, which no other test uses.
    pub fn new(name: &str, package: &Path) -> Unpacked {
        let unpacked = Unpacked { hash: format!("{name}{}", std::process::id()) };
        unpack(package, &unpacked.folder());
        unpacked
    }

    /// The folder that the endpoint is told of.
    pub fn folder(&self) -> PathBuf {
        Path::new(MODELS).join(&self.hash).join("model")
    }

    /// What the endpoint's clients call the model.
    fn target(&self) -> String {
        format!("{}.tar.gz", self.hash)
    }

    /// Puts another package in its place.
    pub fn replace(&self, package: &Path) {
        fs::remove_dir_all(self.folder()).unwrap();
        unpack(package, &self.folder());
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(Path::new(MODELS).join(&self.hash));
    }
}

/// An endpoint's container.
pub struct Endpoint {
    pub server: Server,
    /// Moments in which a loaded package was not found.
    misses: AtomicUsize,
    /// The model or the repository of a server without models.
    _folder: TempDir,
}

impl Endpoint {
    /// A single-model endpoint with the package of `ensemble`.
    pub fn single(ensemble: &str) -> Endpoint {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        unpack(&package(ensemble), &model);
        let server = Server::start_sagemaker(&model, Some(ensemble));
        Endpoint { server, misses: AtomicUsize::default(), _folder: folder }
    }

    /// A multi-model endpoint without models.
    pub fn multi() -> Endpoint {
        let may_write = fs::create_dir_all(MODELS).is_ok();
        assert!(may_write, "{MODELS} cannot be made: run the tests through scripts/test");
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start_sagemaker(folder.path(), None);
        Endpoint { server, misses: AtomicUsize::default(), _folder: folder }
    }

    fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let url = format!("http://{}{path}", self.server.sagemaker_address());
        call(method, &url, headers, body)
    }

    /// Loads as the platform does: the status and what was said.
    pub fn load(&self, model: &Unpacked) -> (u16, String) {
        let body = json!({"model_name": model.hash, "url": model.folder()});
        let target = model.target();
        let headers = [(TARGET_MODEL, target.as_str())];
        let answer = self.call("POST", "/models", &headers, body.to_string().as_bytes());
        (answer.status, String::from_utf8(answer.body).unwrap())
    }

    /// Unloads: the status.
    pub fn unload(&self, model: &Unpacked) -> u16 {
        // Without the header the front end waits for 350 s for a model that goes by another name.
        let headers = [(TARGET_MODEL, &*model.target())];
        self.call("DELETE", &format!("/models/{}", model.hash), &headers, b"").status
    }

    /// A body of whatever type, to `model` or, without, to the one that a single-model endpoint has.
    pub fn invoke(&self, model: Option<&Unpacked>, kind: &str, body: &[u8]) -> Answer {
        let kind = ("content-type", kind);
        match model {
            Some(model) => {
                let headers = [kind, (TARGET_MODEL, &model.target())];
                self.call("POST", &format!("/models/{}/invoke", model.hash), &headers, body)
            }
            None => self.call("POST", "/invocations", &[kind], body),
        }
    }

    /// The binary form of KServe v2.
    pub fn infer(
        &self,
        model: Option<&Unpacked>,
        request: &InferRequest,
    ) -> Result<InferResponse, (u16, String)> {
        let (body, length) = request.http_body();
        let answer = self.invoke(model, &format!("{BINARY}{length}"), &body);
        if answer.status != 200 {
            return Err((answer.status, String::from_utf8_lossy(&answer.body).into_owned()));
        }
        let length = answer.kind.strip_prefix(BINARY).map(|length| length.parse().unwrap());
        Ok(InferResponse::from_http_body(&answer.body, length).unwrap())
    }

    /// [`Endpoint::infer`] of a loaded package while others are loaded or unloaded, without an error.
    ///
    /// With namespaces Triton looks the name up in a map that every load and unload assigns anew:
    /// `LoadUnloadModels` does so under a lock which `FindModelIdentifier` does not take (core,
    /// model_repository_manager.cc, 2.51 and later), so that for a moment any name may have no identifier in it. What
    /// is then said to be unknown may be read from that map too: bytes that are no name were seen.
    /// A package that is gone is another matter: the front end says 404, or the answer stays.
    pub fn infer_beside_loads(&self, model: &Unpacked, request: &InferRequest) -> InferResponse {
        let lost = format!("Identifier of model '{}' is not found in global map", model.target());
        let lost = json!({"error": lost}).to_string();
        let is_unknown = |answer: &Result<InferResponse, (u16, String)>| match answer {
            Err((400, said)) => {
                *said == lost || said.starts_with("{\"error\":\"Request for unknown model: '")
            }
            _ => false,
        };
        let mut answer = self.infer(Some(model), request);
        if is_unknown(&answer) {
            let misses = self.misses.fetch_add(1, Ordering::Relaxed) + 1;
            assert!(misses <= MISSES, "not found {misses} times: {}", model.target());
            let missed = Instant::now();
            answer = self.infer(Some(model), request);
            while is_unknown(&answer) && missed.elapsed() < MOMENT {
                thread::sleep(Duration::from_millis(1));
                answer = self.infer(Some(model), request);
            }
        }
        answer.unwrap()
    }

    /// A bare body, as the clients of the AWS sample send it: the status and the document, which stands
    /// behind the answer's JSON header and a length.
    pub fn invoke_bare(&self, model: Option<&Unpacked>, body: &[u8]) -> (u16, Value) {
        let answer = self.invoke(model, &format!("{BINARY}0"), body);
        let document = match answer.kind.strip_prefix(BINARY) {
            Some(length) => {
                let (length, document) =
                    answer.body[length.parse().unwrap()..].split_first_chunk().unwrap();
                assert_eq!(u32::from_le_bytes(*length) as usize, document.len());
                document
            }
            None => &answer.body[..],
        };
        (answer.status, serde_json::from_slice(document).unwrap())
    }
}
