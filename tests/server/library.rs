//! Where the backend is that the tests are about.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// `libtriton_imprompt.so`: the one that IMPROMPT_BACKEND names, or one built here and
/// now (cargo does not build a cdylib for tests) in the profile of the tests.
pub fn library() -> PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(find).clone()
}

fn find() -> PathBuf {
    if let Some(path) = std::env::var_os("IMPROMPT_BACKEND") {
        return std::fs::canonicalize(path).expect("IMPROMPT_BACKEND names the .so");
    }
    // target/PROFILE/deps/this_test
    let executable = std::env::current_exe().unwrap();
    let profile = executable.ancestors().nth(2).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet", "--offline", "--package=triton_imprompt", "--target-dir"])
        .arg(profile.parent().unwrap())
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "the backend does not build");
    profile.join("libtriton_imprompt.so")
}
