//! A real server, started with the arguments of each manifest, answers the manifest's probes, shows
//! the metrics it names, and ends as Kubernetes ends it.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{arguments, documents, from_environment, here, items, manifests, read, servers};

/// For the demo models on a busy machine.
const START: Duration = Duration::from_secs(120);

/// Killed when it is dropped.
struct Server {
    child: Child,
    ports: [(&'static str, u16); 3],
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The status of an answer, and all of it; `None` when nobody answers.
fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    // In one piece: Triton's front end takes a path that comes in two for another one.
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let status = text.split_whitespace().nth(1)?.parse().ok()?;
    Some((status, text))
}

impl Server {
    /// One that is started, by its probe, with all its ports open.
    fn started(container: &Value) -> Self {
        for _ in 0..5 {
            let mut server = Self::start(container);
            if server.wait(container) {
                return server;
            }
        }
        panic!("five times a port was taken that had been free");
    }

    /// With the arguments of a container; models, backend and ports are those of this machine.
    fn start(container: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let backends = folder.path().join("backends");
        fs::create_dir_all(backends.join("imprompt")).unwrap();
        let library = from_environment("IMPROMPT_BACKEND").canonicalize().unwrap();
        std::os::unix::fs::symlink(library, backends.join("imprompt/libtriton_imprompt.so"))
            .unwrap();
        let models = from_environment("IMPROMPT_DEMO_REPOSITORY");
        let held = [(); 3].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
        let [http, grpc, metrics] = held.map(|held| held.local_addr().unwrap().port());
        let ports = [("http", http), ("grpc", grpc), ("metrics", metrics)];
        let mut command = Command::new(from_environment("IMPROMPT_TRITONSERVER"));
        let mut given = BTreeSet::new();
        for (name, value) in arguments(container) {
            given.insert(name);
            let port = ports.iter().find(|(port, _)| name == format!("--{port}-port"));
            let value = match (name, port) {
                (_, Some((_, port))) => port.to_string(),
                ("--model-repository", _) => path(&models),
                ("--backend-directory", _) => path(&backends),
                _ => value.to_owned(),
            };
            command.arg(format!("{name}={value}"));
        }
        assert!(given.contains("--model-repository"));
        if !given.contains("--backend-directory") {
            command.arg(format!("--backend-directory={}", path(&backends)));
        }
        for (port, _) in ports {
            assert!(given.contains(&*format!("--{port}-port")), "{port}: not said");
            command.arg(format!("--{port}-address=127.0.0.1"));
        }
        let log = File::create(folder.path().join("log")).unwrap();
        let child = command
            .env("IMPROMPT_ONNXRUNTIME", from_environment("IMPROMPT_ONNXRUNTIME"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Server { child, ports, folder }
    }

    fn log(&self) -> String {
        read(&self.folder.path().join("log"))
    }

    /// The port here of one in a manifest, by its name or its number.
    fn port(&self, container: &Value, port: &Value) -> u16 {
        let number = items(&container["ports"]).find(|has| has["name"] == *port);
        let number = number.map_or(port, |has| &has["containerPort"]).to_string();
        let argument = arguments(container).into_iter().find(|(_, value)| *value == number);
        let name = argument.unwrap_or_else(|| panic!("no port {port}")).0;
        self.ports.iter().find(|(port, _)| name == format!("--{port}-port")).unwrap().1
    }

    fn probe(&self, container: &Value, probe: &Value) -> Option<u16> {
        let asked = &probe["httpGet"];
        let port = self.port(container, &asked["port"]);
        get(port, asked["path"].as_str().unwrap()).map(|(status, _)| status)
    }

    /// Waits until it is started; false where somebody else took one of its ports before it did.
    fn wait(&mut self, container: &Value) -> bool {
        let started = Instant::now();
        // The port of the metrics is the last one that it opens.
        let is_open = |port: u16| TcpStream::connect(("127.0.0.1", port)).is_ok();
        while self.probe(container, &container["startupProbe"]) != Some(200)
            || !self.ports.iter().all(|(_, port)| is_open(*port))
        {
            if self.child.try_wait().unwrap().is_some() {
                let log = self.log();
                assert!(log.contains("already in use"), "it ended:\n{log}");
                return false;
            }
            assert!(started.elapsed() < START, "it does not start:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        true
    }

    /// As Kubernetes ends it.
    fn end(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let asked = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(asked.elapsed() < Duration::from_secs(30), "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        };
        assert!(status.success(), "{status}:\n{}", self.log());
    }
}

fn path(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn servers_answer_their_probes() {
    let mut seen = 0;
    for (file, manifest) in manifests() {
        for container in servers(&manifest) {
            let server = Server::started(container);
            for probe in ["livenessProbe", "readinessProbe"] {
                let status = server.probe(container, &container[probe]);
                assert_eq!(status, Some(200), "{}: {probe}", file.display());
            }
            // A model that is to be loaded is, and one that is not named is not.
            let asked = arguments(container);
            let loaded = asked.iter().filter(|(name, _)| *name == "--load-model");
            let loaded: Vec<_> = loaded.map(|(_, model)| *model).collect();
            let http = server.ports[0].1;
            let ready = |model: &str| get(http, &format!("/v2/models/{model}/ready")).unwrap().0;
            assert_eq!(ready("interrogate"), 200, "{}", file.display());
            let expected = loaded.is_empty() || loaded.contains(&"embed_text");
            assert_eq!(ready("embed_text") == 200, expected, "{}", file.display());
            server.end();
            seen += 1;
        }
    }
    assert!(seen >= 5, "{seen} servers");
}

#[test]
fn the_service_is_ready_and_measured_as_it_says() {
    let runtime = &documents(&read(&here("kserve/runtime.yaml")))[0];
    let service = &documents(&read(&here("kserve/inferenceservice.yaml")))[0];
    let container = servers(runtime)[0];
    let server = Server::started(container);
    let model = &service["spec"]["predictor"]["model"];
    assert_eq!(server.probe(container, &model["readinessProbe"]), Some(200));
    let annotations = &runtime["spec"]["annotations"];
    let port: u16 = annotations["prometheus.kserve.io/port"].as_str().unwrap().parse().unwrap();
    let path = annotations["prometheus.kserve.io/path"].as_str().unwrap();
    let (status, metrics) = get(server.port(container, &port.into()), path).unwrap();
    assert_eq!(status, 200);
    // The metrics that autoscalers ask for, and where a ServiceMonitor looks for them.
    let mut seen = 0;
    for (file, manifest) in manifests() {
        for metric in items(&manifest["spec"]["metrics"]) {
            let Some(name) = metric["pods"]["metric"]["name"].as_str() else { continue };
            assert!(metrics.contains(&format!("\n{name}{{")), "{}: no {name}", file.display());
            seen += 1;
        }
        for endpoint in items(&manifest["spec"]["endpoints"]) {
            assert_eq!(endpoint["path"], path, "{}", file.display());
            seen += 1;
        }
    }
    assert!(seen >= 2, "{seen} metrics");
    server.end();
}
