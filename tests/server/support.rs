//! A real Triton server with our backend, for tests.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use imprompt_kserve::{Client, InferRequest};
use tempfile::TempDir;

use crate::library::library;

/// The longest a server may take to load its models.
const START: Duration = Duration::from_secs(120);

/// Starts the server, and kills it when this process ends in whatever way: the
/// end of file 0 is the end of the server.
const KEEPER: &str = r#"
exec 3<&0
log=$1; shift
"$@" 3<&- >"$log" 2>&1 </dev/null &
server=$!
echo $server
(cat <&3 >/dev/null; kill -KILL $server 2>/dev/null) >/dev/null &
watch=$!
wait $server
code=$?
kill $watch 2>/dev/null
exit $code
"#;

/// A running server. Dropped, it is killed.
pub struct Server {
    keeper: Child,
    pid: u32,
    folder: TempDir,
    http: u16,
    grpc: u16,
    metrics: u16,
    sagemaker: Option<u16>,
}

/// What a server is given beside its models.
#[derive(Clone, Copy, PartialEq)]
enum Given<'a> {
    /// Our backend and ONNX Runtime.
    All,
    /// Nothing: the models bring both.
    Nothing,
    /// Nothing, and it has SageMaker's front end alone, with a model that is asked when none is named.
    SageMaker(Option<&'a str>),
}

impl Server {
    /// Starts a server on `repositories`; it may have models that do not load.
    pub fn start(repositories: &[&Path], flags: &[&str]) -> Server {
        Self::launch(repositories, flags, Given::All)
    }

    /// Starts a server that has no backend and is told of no ONNX Runtime: the models bring both.
    pub fn start_bare(repositories: &[&Path], flags: &[&str]) -> Server {
        Self::launch(repositories, flags, Given::Nothing)
    }

    /// [`Server::start_bare`] as the `serve` script of SageMaker's images starts it: with neither HTTP nor
    /// gRPC of its own, and `model` or none.
    pub fn start_sagemaker(repository: &Path, model: Option<&str>) -> Server {
        let mut flags = vec!["--allow-sagemaker=true", "--allow-http=false", "--allow-grpc=false"];
        flags.extend(["--model-control-mode=explicit", "--model-namespacing=true"]);
        let load = model.map(|model| format!("--load-model={model}"));
        flags.extend(load.as_deref());
        Self::launch(&[repository], &flags, Given::SageMaker(model))
    }

    fn launch(repositories: &[&Path], flags: &[&str], given: Given<'_>) -> Server {
        let binary = from_environment("IMPROMPT_TRITONSERVER");
        let folder = tempfile::tempdir().unwrap();
        let backend = folder.path().join("backends/imprompt");
        fs::create_dir_all(&backend).unwrap();
        if given == Given::All {
            symlink(library(), backend.join("libtriton_imprompt.so")).unwrap();
        }
        let [http, grpc, metrics, sagemaker] = free_ports();
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "sh"]).arg(folder.path().join("log")).arg(binary);
        for repository in repositories {
            command.arg("--model-repository").arg(repository);
        }
        command
            .arg("--backend-directory")
            .arg(folder.path().join("backends"))
            .args(["--http-port", &http.to_string(), "--grpc-port", &grpc.to_string()])
            .args(["--metrics-port", &metrics.to_string()])
            .args(["--exit-on-error", "false", "--exit-timeout-secs", "25"])
            .args(flags)
            // Growth of memory is then that of the server, not of malloc's arenas.
            .env("MALLOC_ARENA_MAX", "2");
        if given != Given::All {
            command.env_remove("IMPROMPT_ONNXRUNTIME");
        }
        let sagemaker = match given {
            Given::SageMaker(model) => {
                command.args(["--sagemaker-port", &sagemaker.to_string()]);
                command.envs(model.map(|model| ("SAGEMAKER_TRITON_DEFAULT_MODEL_NAME", model)));
                Some(sagemaker)
            }
            _ => None,
        };
        let mut keeper = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        let mut pid = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut pid).unwrap();
        let pid = pid.trim().parse().expect("the keeper says the server's pid");
        let mut server = Server { keeper, pid, folder, http, grpc, metrics, sagemaker };
        let start = Instant::now();
        while !server.has_loaded() {
            let ended = server.keeper.try_wait().unwrap();
            assert!(ended.is_none(), "the server ended: {ended:?}\n{}", server.log());
            assert!(start.elapsed() < START, "the server does not start:\n{}", server.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// True once every model is ready, or has failed with a reason: the server
    /// answers "live" while it still loads.
    fn has_loaded(&self) -> bool {
        if self.sagemaker.is_some() {
            let ping = ureq::get(format!("http://{}/ping", self.sagemaker_address())).call();
            return ping.is_ok();
        }
        let client = self.client();
        let settled = |model: &serde_json::Value| match model["state"].as_str() {
            Some("READY") => true,
            Some("UNAVAILABLE") => model["reason"].as_str().is_some_and(|why| !why.is_empty()),
            _ => false,
        };
        let index = || client.repository_index().ok()?.as_array().cloned();
        client.is_ready() || index().is_some_and(|models| models.iter().all(settled))
    }

    /// A client over HTTP.
    pub fn client(&self) -> Client {
        Client::with_timeout(&self.http_address(), Some(Duration::from_secs(60)))
    }

    pub fn http_address(&self) -> String {
        format!("127.0.0.1:{}", self.http)
    }

    pub fn grpc_address(&self) -> String {
        format!("127.0.0.1:{}", self.grpc)
    }

    /// Of [`Server::start_sagemaker`].
    pub fn sagemaker_address(&self) -> String {
        format!("127.0.0.1:{}", self.sagemaker.expect("SageMaker's front end was asked for"))
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What the server has written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The value of each metric whose line starts with `prefix`.
    pub fn metric(&self, prefix: &str) -> f64 {
        let page = ureq::get(format!("http://127.0.0.1:{}/metrics", self.metrics))
            .call()
            .unwrap()
            .body_mut()
            .read_to_string()
            .unwrap();
        let lines = page.lines().filter(|line| line.starts_with(prefix));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
    }

    /// Open files and threads.
    pub fn handles(&self) -> (usize, usize) {
        let count = |what| fs::read_dir(format!("/proc/{}/{what}", self.pid)).unwrap().count();
        (count("fd"), count("task"))
    }

    /// Asks the server to end, as a container's runtime does.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.pid.try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits for the end; its exit code.
    pub fn wait(mut self) -> i32 {
        // `Child::wait` would close its standard input, and so kill the server.
        let _kept = self.keeper.stdin.take();
        self.keeper.wait().unwrap().code().expect("the keeper was not killed")
    }

    /// The server lives and `model` answers `request` still.
    pub fn assert_serves(&self, model: &str, request: &InferRequest) {
        let client = self.client();
        assert!(client.is_live(), "the server is gone:\n{}", self.log());
        if let Err(error) = client.infer(model, request) {
            panic!("`{model}` serves no more: {error}");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The keeper kills the server when its standard input ends.
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// A folder of a static's, which is never dropped: a shell removes it when this process has ended.
pub struct Lasting {
    path: PathBuf,
    _remover: Child,
}

impl Lasting {
    pub fn new() -> Lasting {
        let path = tempfile::tempdir().unwrap().keep();
        let remover = Command::new("sh")
            .args(["-c", "cat; rm -rf -- \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Of a group of its own: what interrupts the tests leaves it be.
            .process_group(0)
            .spawn()
            .expect("sh starts");
        Lasting { path, _remover: remover }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The server that most tests share: the demo repository, and the models of
/// [`test_models`]. It is killed with this process.
pub fn server() -> &'static Server {
    static SERVER: OnceLock<(Lasting, Server)> = OnceLock::new();
    let (_, server) = SERVER.get_or_init(|| {
        let models = test_models();
        let server = Server::start(&[&demo_repository(), models.path()], &[]);
        assert!(server.client().is_ready(), "a model does not load:\n{}", server.log());
        (models, server)
    });
    server
}

/// Copies of the demo's preprocessing that one test each has for itself.
fn test_models() -> Lasting {
    let folder = Lasting::new();
    // Nothing but the backend's name: the rest is completed.
    preprocess_model(folder.path(), "completed", "");
    preprocess_model(folder.path(), "ledger", "");
    preprocess_model(folder.path(), "cancelled", "");
    let wait = "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 8 ] max_queue_delay_microseconds: 500000 }";
    preprocess_model(folder.path(), "batcher", wait);
    let limits = "parameters { key: \"max_image_pixels\" value { string_value: \"10000\" } }";
    preprocess_model(folder.path(), "limited", limits);
    let deadline = "parameters { key: \"deadline_ms\" value { string_value: \"1\" } }";
    copy_model(folder.path(), "captioner", "impatient", deadline);
    let joined = "instance_group { count: 3 kind: KIND_CPU } \
         parameters { key: \"max_waiting_captions\" value { string_value: \"0\" } }";
    copy_model(folder.path(), "captioner", "joined", joined);
    folder
}

/// Adds to `repository` the model `name`: the demo's preprocessing with `config`.
pub fn preprocess_model(repository: &Path, name: &str, config: &str) {
    copy_model(repository, "preprocess", name, config);
}

/// Adds to `repository` the demo's stage `stage` as model `name` with `config`.
pub fn copy_model(repository: &Path, stage: &str, name: &str, config: &str) {
    let version = repository.join(name).join("1");
    copy_folder(&demo_repository().join(stage).join("1"), &version);
    let mut text = String::from("backend: \"imprompt\"\n");
    writeln!(text, "{config}").unwrap();
    fs::write(repository.join(name).join("config.pbtxt"), text).unwrap();
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// The model repository of the demo models.
pub fn demo_repository() -> PathBuf {
    from_environment("IMPROMPT_DEMO_REPOSITORY")
}

pub fn from_environment(variable: &str) -> PathBuf {
    let value = std::env::var_os(variable).map(PathBuf::from);
    let value = value.unwrap_or_else(|| {
        panic!("{variable} is not set: run the tests through scripts/test, which sets up a server")
    });
    assert!(value.exists(), "{variable}: {} does not exist: run scripts/test", value.display());
    value
}

/// Ports that nobody listened on a moment ago.
fn free_ports() -> [u16; 4] {
    // Held together, so that they differ.
    let held = [(); 4].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

/// An answer of HTTP.
pub struct Answer {
    pub status: u16,
    /// Its content type.
    pub kind: String,
    pub body: Vec<u8>,
}

/// Calls `url` with whatever method, headers and body.
pub fn call(method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut answer = agent.run(request.body(body.to_vec()).unwrap()).unwrap();
    let kind = answer.headers().get("content-type");
    let kind = kind.map(|kind| kind.to_str().unwrap().to_owned()).unwrap_or_default();
    let body = answer.body_mut().read_to_vec().unwrap();
    Answer { status: answer.status().as_u16(), kind, body }
}

/// A picture of one colour as PNG, with a diagonal so that it is no constant.
pub fn picture(width: u32, height: u32, colour: [u8; 3]) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(width as usize * height as usize * 3);
    for y in 0..height {
        for x in 0..width {
            pixels.extend(if x == y { [255 - colour[0], colour[2], colour[1]] } else { colour });
        }
    }
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::Fast);
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    out
}

/// `count` small pictures that all differ.
pub fn pictures(count: u8) -> Vec<Vec<u8>> {
    (0..count).map(|n| picture(40 + u32::from(n), 50, [n * 25, 200 - n * 20, 90])).collect()
}

/// A request with one picture.
pub fn with_image(image: impl Into<Vec<u8>>) -> InferRequest {
    InferRequest::new().bytes("image", [1, 1], [image.into()])
}

/// A request that every picture model answers.
pub fn good() -> InferRequest {
    with_image(picture(64, 48, [200, 120, 40]))
}

/// Waits until `done`; the names of tests wait for counters that follow answers.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
