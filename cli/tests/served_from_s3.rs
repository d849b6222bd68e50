//! A pushed repository on the real server, which reads it from the store itself.

mod common;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::cloud::{KEY, Moto, SECRET, run, with_aws};
use common::{imprompt, project};

/// The longest a server may take to fetch and load its models.
const START: Duration = Duration::from_secs(120);

fn from_environment(name: &str) -> PathBuf {
    let value = std::env::var_os(name).map(PathBuf::from);
    value.filter(|path| path.exists()).unwrap_or_else(|| {
        panic!("{name} names nothing: run the tests through scripts/test, which sets up a server")
    })
}

/// Killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_pushed_repository_is_served_from_the_store() {
    let repository = from_environment("IMPROMPT_DEMO_REPOSITORY");
    let moto = Moto::with_bucket("models");
    let pushed = run(with_aws(&moto.url).arg("push").arg(&repository).arg("s3://models/demo"));
    assert_eq!(pushed.code, 0, "{}", pushed.stderr);
    let served = pushed.stderr.split("--model-repository ").nth(1).unwrap().trim();
    assert_eq!(served, format!("s3://{}/models/demo", moto.url));

    // The backend is the server's: Triton loads none from a store.
    let folder = tempfile::tempdir().unwrap();
    let backend = folder.path().join("backends/imprompt");
    std::fs::create_dir_all(&backend).unwrap();
    let library = from_environment("IMPROMPT_BACKEND").canonicalize().unwrap();
    std::os::unix::fs::symlink(library, backend.join("libtriton_imprompt.so")).unwrap();
    let held = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [http, grpc, metrics] = held.map(|held| held.local_addr().unwrap().port().to_string());
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let child = Command::new(from_environment("IMPROMPT_TRITONSERVER"))
        .args(["--model-repository", served, "--backend-directory"])
        .arg(folder.path().join("backends"))
        .args(["--http-port", &http, "--grpc-port", &grpc, "--metrics-port", &metrics])
        .env("AWS_ACCESS_KEY_ID", KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_DEFAULT_REGION", "eu-west-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("IMPROMPT_ONNXRUNTIME", from_environment("IMPROMPT_ONNXRUNTIME"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut server = Killed(child);
    let address = format!("http://127.0.0.1:{http}");
    let started = Instant::now();
    while ureq::get(format!("{address}/v2/health/ready")).call().is_err() {
        let said = || std::fs::read_to_string(folder.path().join("log")).unwrap();
        assert!(server.0.try_wait().unwrap().is_none(), "the server ended:\n{}", said());
        assert!(started.elapsed() < START, "the server does not start:\n{}", said());
        std::thread::sleep(Duration::from_millis(100));
    }
    let picture = project().join("models/croissant.png");
    let ask = |place: [&str; 2]| {
        let run =
            run(imprompt().arg("interrogate").arg(&picture).args(["--mode", "fast"]).args(place));
        assert_eq!(run.code, 0, "{}", run.stderr);
        run.stdout
    };
    let expected = ask(["--repo", repository.to_str().unwrap()]);
    assert_eq!(ask(["--server", &address]), expected);
}
