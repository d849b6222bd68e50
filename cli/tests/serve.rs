//! `imprompt serve` with a stand-in for tritonserver: what it starts, says and hands on. The real
//! server is started by the project's own `tests/`.

mod common;

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{Reply, Server, imprompt};

/// A folder with a repository's manifest, a backend, ONNX Runtime, and a server that writes down
/// how it was started and does `what` then.
fn installed(what: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("repository")).unwrap();
    let manifest = serde_json::json!({
        "imprompt": "0.1.0", "layout": 1, "ensembles": ["interrogate", "embed_text"],
        "stages": [], "tables": [], "files": []
    });
    std::fs::write(at("repository/imprompt.json"), manifest.to_string()).unwrap();
    std::fs::write(at("libtriton_imprompt.so"), "").unwrap();
    std::fs::write(at("libonnxruntime.so"), "").unwrap();
    let script = format!(
        "#!/bin/sh\nprintf '%s\\n' \"$@\" >{0}/arguments\nls \"$4/imprompt\" >{0}/backends\n\
         echo \"$IMPROMPT_ONNXRUNTIME\" >{0}/onnxruntime\n{what}\n",
        folder.path().display()
    );
    std::fs::write(at("tritonserver"), script).unwrap();
    std::fs::set_permissions(at("tritonserver"), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn serve(folder: &Path, port: &str) -> Command {
    let mut command = imprompt();
    command.arg("serve").arg(folder.join("repository"));
    command.args(["--", "--http-address=127.0.0.1", "--http-port", port]);
    command.env("TRITONSERVER", folder.join("tritonserver"));
    command.env("IMPROMPT_BACKEND", folder.join("libtriton_imprompt.so"));
    command.env("IMPROMPT_ONNXRUNTIME", folder.join("libonnxruntime.so"));
    command
}

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// Lines of stderr up to one that begins with `start`.
fn lines_until(child: &mut Child, start: &str) -> Vec<String> {
    let mut lines = vec![];
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        lines.push(line.unwrap());
        if lines.last().unwrap().starts_with(start) {
            break;
        }
    }
    lines
}

#[test]
fn the_parts_are_found_and_handed_over() {
    let folder = installed("exit 0");
    let run = common::run(&mut serve(folder.path(), "1"));
    assert_eq!((run.code, &*run.stdout), (0, ""), "{}", run.stderr);
    let arguments = read(folder.path().join("arguments"));
    let lines: Vec<_> = arguments.lines().collect();
    let repository = folder.path().join("repository");
    assert_eq!(lines[..2], ["--model-repository", repository.to_str().unwrap()]);
    assert_eq!(lines[2], "--backend-directory");
    assert!(!Path::new(lines[3]).exists(), "the temporary backend directory is gone");
    assert_eq!(lines[4..], ["--http-address=127.0.0.1", "--http-port", "1"]);
    assert_eq!(read(folder.path().join("backends")), "libtriton_imprompt.so\n");
    let onnxruntime = folder.path().join("libonnxruntime.so");
    assert_eq!(read(folder.path().join("onnxruntime")).trim(), onnxruntime.to_str().unwrap());
}

#[test]
fn it_says_when_the_server_is_ready_and_hands_signals_on() {
    let server = Server::start(|_| Reply::new(200, ""));
    let port = server.url.rsplit(':').next().unwrap().to_owned();
    let folder =
        installed("trap 'touch \"$(dirname \"$0\")/stopped\"; exit 0' TERM\nsleep 60 & wait");
    let mut child = serve(folder.path(), &port).stderr(Stdio::piped()).spawn().unwrap();
    let lines = lines_until(&mut child, "    -d ");
    assert_eq!(lines[1], format!("ready at {}: interrogate, embed_text", server.url));
    assert!(lines[3].contains("/v2/models/interrogate/infer"), "{lines:?}");
    let killed = Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(folder.path().join("stopped").exists());
}

#[test]
fn a_server_that_fails_is_a_failure() {
    let folder = installed("exit 3");
    let run = common::run(&mut serve(folder.path(), "1"));
    assert_eq!(run.code, 1);
    assert!(
        run.stderr.contains("error: tritonserver ended: exit status: 3\nhint: "),
        "{}",
        run.stderr
    );
}

#[test]
fn a_variable_that_names_nothing_is_refused() {
    let folder = installed("exit 0");
    for name in ["TRITONSERVER", "IMPROMPT_BACKEND", "IMPROMPT_ONNXRUNTIME"] {
        let run = common::run(serve(folder.path(), "1").env(name, "/nowhere/file"));
        assert_eq!(run.code, 1);
        assert_eq!(run.stderr, format!("error: ${name}: /nowhere/file: no such file\n"));
    }
}
