//! Ways a request can come in other than plain: compressed, through shared memory;
//! and what the server touches while it answers.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;
use imprompt_kserve::InferRequest;
use serde_json::{Value, json};

use crate::support::{
    Server, call, demo_repository, eventually, good, picture, server, with_image,
};

/// Posts `body` to a server's `path`; the status and the answer.
fn post(server: &Server, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, Value) {
    let answer = call("POST", &format!("http://{}{path}", server.http_address()), headers, body);
    (answer.status, serde_json::from_slice(&answer.body).unwrap_or(Value::Null))
}

fn base64_picture() -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(picture(40, 30, [200, 120, 10]))
}

#[test]
fn compressed_bodies_are_read_and_broken_ones_refused() {
    let input =
        json!({"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": [base64_picture()]});
    let body = json!({"inputs": [input]}).to_string();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(body.as_bytes()).unwrap();
    let packed = gzip.finish().unwrap();
    let path = "/v2/models/embed_image/infer";
    let (plain_status, plain) = post(server(), path, &[], body.as_bytes());
    let (status, answer) = post(server(), path, &[("content-encoding", "gzip")], &packed);
    assert_eq!((plain_status, status), (200, 200), "{plain} {answer}");
    assert_eq!(answer["outputs"], plain["outputs"]);
    let (status, answer) =
        post(server(), path, &[("content-encoding", "gzip")], &packed[..packed.len() / 2]);
    assert!(status >= 400, "{answer}");
    server().assert_serves("embed_image", &good());
}

/// A file of shared memory, which is removed in the end.
struct SharedMemory {
    name: String,
}

impl SharedMemory {
    fn new(bytes: &[u8]) -> Self {
        let name = format!("imprompt-test-{}-{}", std::process::id(), bytes.len());
        fs::write(Self::path(&name), bytes).unwrap();
        SharedMemory { name }
    }

    fn path(name: &str) -> PathBuf {
        Path::new("/dev/shm").join(name)
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        let _ = fs::remove_file(Self::path(&self.name));
    }
}

#[test]
fn shared_memory_is_read_and_its_lengths_are_not_believed() {
    let picture = picture(40, 30, [200, 120, 10]);
    let prefixed = |length: u32, bytes: &[u8]| [&length.to_le_bytes(), bytes].concat();
    let honest = prefixed(picture.len() as u32, &picture);
    let lying = [0x7fff_ffff, 0xffff_ffff, picture.len() as u32 + 1].map(|n| prefixed(n, &picture));
    let plain = server().client().infer("embed_image", &with_image(picture.clone())).unwrap();
    for (index, bytes) in std::iter::once(&honest).chain(&lying).enumerate() {
        let memory = SharedMemory::new(&[bytes.as_slice(), &vec![0; index]].concat());
        let region = format!("/v2/systemsharedmemory/region/picture{index}");
        let register =
            json!({"key": format!("/{}", memory.name), "offset": 0, "byte_size": bytes.len()});
        let (status, answer) =
            post(server(), &format!("{region}/register"), &[], register.to_string().as_bytes());
        assert_eq!(status, 200, "{answer}");
        let input = json!({
            "name": "image", "shape": [1, 1], "datatype": "BYTES",
            "parameters": {
                "shared_memory_region": format!("picture{index}"),
                "shared_memory_byte_size": bytes.len(),
            },
        });
        let body = json!({"inputs": [input]}).to_string();
        let (status, answer) = post(server(), "/v2/models/embed_image/infer", &[], body.as_bytes());
        if index == 0 {
            assert_eq!(status, 200, "{answer}");
            let found = answer["outputs"][0]["data"].as_array().unwrap();
            let found: Vec<f32> = found.iter().map(|v| v.as_f64().unwrap() as f32).collect();
            let expected = plain.f32("embedding").unwrap();
            let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
            assert!(found.iter().zip(expected).all(near), "the picture is the same");
        } else {
            assert_eq!(status, 400, "{answer}");
            let message = answer["error"].as_str().unwrap();
            assert!(message.contains("image"), "{message}");
        }
        let (status, answer) = post(server(), &format!("{region}/unregister"), &[], b"");
        assert_eq!(status, 200, "{answer}");
    }
    server().assert_serves("embed_image", &good());
}

/// A watch over the calls of a process that open files and addresses.
struct Watch {
    strace: Child,
    log: PathBuf,
}

impl Watch {
    fn start(pid: u32, log: &Path) -> Watch {
        let calls = "trace=%file,connect,bind,execve,accept,accept4";
        let strace = Command::new("strace")
            .args(["-f", "-qq", "-s", "4096", "-e", calls, "-p", &pid.to_string(), "-o"])
            .arg(log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("strace is installed: scripts/test does it");
        Watch { strace, log: log.to_owned() }
    }

    fn seen(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What was seen, once strace has let the process go.
    fn stop(mut self) -> String {
        let strace = rustix::process::Pid::from_child(&self.strace);
        rustix::process::kill_process(strace, rustix::process::Signal::TERM).unwrap();
        self.strace.wait().unwrap();
        self.seen()
    }
}

#[test]
fn nothing_of_a_request_is_opened() {
    // A server of its own: the others of this process open files as they like.
    let server = Server::start(&[&demo_repository()], &[]);
    let client = server.client();
    server.assert_serves("embed_image", &good());
    let folder = tempfile::tempdir().unwrap();
    let watch = Watch::start(server.pid(), &folder.path().join("trace"));
    // New connections are seen: the watch works.
    eventually("strace follows the server", || {
        server.client().is_live() && watch.seen().contains("accept")
    });

    let secret = folder.path().join("canary");
    fs::write(&secret, picture(9, 9, [1, 2, 3])).unwrap();
    let path = secret.to_str().unwrap().to_owned();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}/canary.png", listener.local_addr().unwrap());
    let names = [
        path.clone(),
        format!("file://{path}"),
        format!("../../../../../..{path}"),
        url,
        "canary".to_owned(),
        "http://canary.invalid/a.png".to_owned(),
        "s3://canary/a.png".to_owned(),
        "\\\\canary\\share".to_owned(),
    ];
    for name in &names {
        let image = || picture(20, 20, [9, 99, 199]);
        assert!(client.infer("embed_image", &with_image(name.as_bytes())).is_err(), "{name}");
        let with = |input: &str| with_image(image()).bytes(input, [1, 1], [name.as_bytes()]);
        // Whether it is answered or refused: nothing is opened.
        let _ = client.infer("caption", &with("text"));
        let _ = client.infer("interrogate", &with("given_caption"));
        let _ = client.infer("interrogate", &with("mode"));
        let _ = client.infer("zero_shot", &with("labels"));
        let _ = client.infer("zero_shot", &with("vocabulary"));
        let _ =
            client.infer("zero_shot", &with("labels").bytes("template", [1, 1], [name.as_bytes()]));
        let text = InferRequest::new().bytes("text", [1, 1], [name.as_bytes()]);
        client.infer("embed_text", &text).unwrap();
    }
    let trace = watch.stop();
    assert!(trace.lines().any(|line| line.contains("accept")), "nothing was watched");
    assert!(listener.accept().is_err(), "the server came for a picture");
    let bad: Vec<&str> = trace
        .lines()
        .filter(|line| {
            line.contains("canary") || line.contains("connect(") || line.contains("execve(")
        })
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
}
