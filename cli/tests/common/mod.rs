//! What the tests of the command share: running it, and a loopback HTTP server.
#![allow(dead_code)]

pub mod cloud;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

/// The project's folder.
pub fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// What a run printed and how it ended.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// The command, free of the settings of whoever runs the tests.
pub fn imprompt() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imprompt"));
    for name in [
        "IMPROMPT_REPOSITORY",
        "IMPROMPT_BACKEND",
        "TRITONSERVER",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "HUGGING_FACE_HUB_TOKEN",
        "TRANSFORMERS_OFFLINE",
        "HF_ENDPOINT",
        "HF_HUB_OFFLINE",
        "PIP_INDEX_URL",
        "XDG_CACHE_HOME",
    ] {
        command.env_remove(name);
    }
    for (name, _) in std::env::vars_os() {
        let is_cloud =
            |name: &str| ["AWS_", "AZURE_", "GOOGLE_"].iter().any(|of| name.starts_with(of));
        if name.to_str().is_some_and(is_cloud) {
            command.env_remove(name);
        }
    }
    // No profile of whoever runs the tests, and no network to look for a role.
    command.env("AWS_CONFIG_FILE", "/nowhere").env("AWS_SHARED_CREDENTIALS_FILE", "/nowhere");
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    command.env("COLUMNS", "100").env("NO_PROXY", "127.0.0.1");
    command
}

/// Runs the command to its end.
pub fn run(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs `imprompt` with these arguments.
pub fn imprompt_with(arguments: &[&str]) -> Run {
    run(imprompt().args(arguments))
}

/// A request that a loopback server got.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What it answers.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Bytes of the body after which the connection ends, or goes silent.
    pub end: Option<(usize, End)>,
}

/// How a connection ends before its time.
#[derive(Clone, Copy, Debug)]
pub enum End {
    Cut,
    Silence,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Reply { status, headers: vec![], body: body.into(), end: None }
    }

    /// Ends the connection after this many bytes of the body.
    pub fn cut(mut self, after: usize) -> Self {
        self.end = Some((after, End::Cut));
        self
    }

    /// Sends nothing after this many bytes of the body, and keeps the connection.
    pub fn stalled(mut self, after: usize) -> Self {
        self.end = Some((after, End::Silence));
        self
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

/// An HTTP server on the loopback address, one request a connection.
pub struct Server {
    pub url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(vec![]));
        let (seen, answer) = (asked.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, answer) = (seen.clone(), answer.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &seen, &*answer));
            }
        });
        Server { url, asked }
    }

    /// Every request so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, seen: &Mutex<Vec<Asked>>, answer: &dyn Fn(&Asked) -> Reply) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut parts = line.split_whitespace().map(str::to_owned);
    let (method, path) = (parts.next().unwrap(), parts.next().unwrap());
    let mut headers = vec![];
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let mut asked = Asked { method, path, headers, body: vec![] };
    let length = asked.header("content-length").map_or(0, |length| length.parse().unwrap());
    asked.body.resize(length, 0);
    reader.read_exact(&mut asked.body).unwrap();
    let reply = answer(&asked);
    let is_head = asked.method == "HEAD";
    seen.lock().unwrap().push(asked);
    let mut head = format!(
        "HTTP/1.1 {} X\r\nconnection: close\r\ncontent-length: {}\r\n",
        reply.status,
        reply.body.len()
    );
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    let sent = reply.end.map_or(reply.body.len(), |(after, _)| after.min(reply.body.len()));
    let is_silent = matches!(reply.end, Some((_, End::Silence)));
    // A HEAD has the headers of a GET alone.
    if !is_head {
        let _ = stream.write_all(&reply.body[..sent]);
    }
    if is_silent {
        std::thread::sleep(std::time::Duration::from_secs(600));
    }
}
