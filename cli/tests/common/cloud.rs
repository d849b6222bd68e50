//! A stand-in for AWS (moto's server), and what signatures must be.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::{Asked, imprompt};

/// The access key of the tests; both halves are looked for in all that is printed.
pub const KEY: &str = "AKIAIOSFODNN7EXAMPLE";
pub const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
pub const TOKEN: &str = "a-session-token-that-nobody-may-see";

/// The command with these credentials, whose AWS is at `endpoint`.
pub fn with_aws(endpoint: &str) -> Command {
    let mut command = imprompt();
    command
        .env("AWS_ACCESS_KEY_ID", KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_SESSION_TOKEN", TOKEN)
        .env("AWS_REGION", "eu-west-1")
        .env("AWS_ENDPOINT_URL", endpoint);
    command
}

/// Runs it, and sees that nothing secret was printed.
pub fn run(command: &mut Command) -> super::Run {
    let run = super::run(command);
    for secret in [SECRET, TOKEN, KEY] {
        let said = format!("{}{}", run.stdout, run.stderr);
        assert!(!said.contains(secret), "a secret was printed: {said}");
    }
    run
}

/// moto's server with empty services of its own.
pub struct Moto {
    child: Child,
    pub url: String,
}

impl Moto {
    pub fn start() -> Self {
        let program = std::env::var_os("IMPROMPT_MOTO_SERVER").map(PathBuf::from).expect(
            "IMPROMPT_MOTO_SERVER is not set: run the tests through scripts/test, which installs moto",
        );
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let moto = Moto { child, url: format!("http://127.0.0.1:{port}") };
        let started = Instant::now();
        while ureq::get(format!("{}/moto-api/", moto.url)).call().is_err() {
            assert!(started.elapsed() < Duration::from_secs(60), "moto does not start");
            std::thread::sleep(Duration::from_millis(100));
        }
        moto
    }

    /// With a bucket.
    pub fn with_bucket(name: &str) -> Self {
        let moto = Moto::start();
        let region = "<CreateBucketConfiguration><LocationConstraint>eu-west-1</LocationConstraint></CreateBucketConfiguration>";
        ureq::put(format!("{}/{name}", moto.url)).send(region).unwrap();
        moto
    }

    /// An object's bytes, and the SHA-256 in its metadata.
    pub fn object(&self, path: &str) -> Option<(Vec<u8>, String)> {
        let mut answer = ureq::get(format!("{}/{path}", self.url))
            .header(
                "authorization",
                format!("AWS4-HMAC-SHA256 Credential={KEY}/x/eu-west-1/s3/aws4_request"),
            )
            .call()
            .ok()?;
        let header =
            answer.headers().get("x-amz-meta-sha256").map(|v| v.to_str().unwrap().to_owned());
        let bytes = answer.body_mut().with_config().limit(1 << 30).read_to_vec().unwrap();
        Some((bytes, header.unwrap_or_default()))
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut block = [0u8; 64];
    block[..key.len()].copy_from_slice(key);
    let padded = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().to_vec()
}

/// Computes Signature Version 4 of a request by its definition and compares.
pub fn check_signature(asked: &Asked, service: &str) {
    let authorization = asked.header("authorization").expect("the request is signed");
    let rest = authorization.strip_prefix("AWS4-HMAC-SHA256 ").unwrap();
    let part = |name: &str| {
        let of = rest.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
        of.unwrap().to_owned()
    };
    let (credential, names, signature) =
        (part("Credential"), part("SignedHeaders"), part("Signature"));
    let time = asked.header("x-amz-date").unwrap();
    let scope = format!("{}/eu-west-1/{service}/aws4_request", &time[..8]);
    assert_eq!(credential, format!("{KEY}/{scope}"));
    for needed in ["host", "x-amz-date", "x-amz-security-token"] {
        assert!(names.split(';').any(|name| name == needed), "{needed} is not signed");
    }
    assert_eq!(asked.header("x-amz-security-token"), Some(TOKEN));
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let headers: String = names
        .split(';')
        .map(|name| format!("{name}:{}\n", asked.header(name).unwrap().trim()))
        .collect();
    let body = sha256(&asked.body);
    let canonical = format!("{}\n{path}\n{query}\n{headers}\n{names}\n{body}", asked.method);
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", sha256(canonical.as_bytes()));
    let mut key = format!("AWS4{SECRET}").into_bytes();
    for part in [&time[..8], "eu-west-1", service, "aws4_request"] {
        key = hmac(&key, part);
    }
    assert_eq!(signature, hex(&hmac(&key, &text)), "the signature of {}", asked.path);
}
