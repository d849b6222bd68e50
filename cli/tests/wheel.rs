//! `--vocabulary clip-interrogator`: the wheel of that package, checked before it is used.

mod common;

use common::{Reply, Server, imprompt, project, run};

const WHEEL: &str = "clip_interrogator-0.6.0-py3-none-any.whl";

#[test]
fn a_wheel_with_another_hash_is_refused() {
    let server = Server::start(|asked| match &*asked.path {
        "/simple/clip-interrogator/" => {
            Reply::new(200, format!("<a href=\"../../files/{WHEEL}#sha256=0\">{WHEEL}</a>"))
        }
        path if path == format!("/files/{WHEEL}") => Reply::new(200, "not the wheel"),
        _ => Reply::new(404, ""),
    });
    let home = tempfile::tempdir().unwrap();
    let clip = project().join("models/demo-clip");
    let mut command = imprompt();
    command.args(["build", "--vocabulary", "clip-interrogator", "--clip"]).arg(&clip);
    command.arg("--out").arg(home.path().join("repository"));
    command
        .env("XDG_CACHE_HOME", home.path())
        .env("PIP_INDEX_URL", format!("{}/simple/", server.url));
    let run = run(&mut command);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains(&format!("{WHEEL}: SHA-256 is ")), "{}", run.stderr);
    let paths: Vec<_> = server.asked().into_iter().map(|asked| asked.path).collect();
    assert_eq!(paths, ["/simple/clip-interrogator/".to_owned(), format!("/files/{WHEEL}")]);
    assert!(!home.path().join("imprompt/vocabularies").exists());
}

#[test]
fn an_index_without_the_wheel_is_explained() {
    let server = Server::start(|_| Reply::new(200, r#"{"files": []}"#));
    let home = tempfile::tempdir().unwrap();
    let mut command = imprompt();
    command.args(["build", "--vocabulary", "clip-interrogator", "--clip"]);
    command.arg(project().join("models/demo-clip")).arg("--out").arg(home.path().join("r"));
    command.env("XDG_CACHE_HOME", home.path()).env("PIP_INDEX_URL", &server.url);
    let run = run(&mut command);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("the package index lists no "), "{}", run.stderr);
}
