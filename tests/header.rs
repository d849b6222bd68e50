//! backend/include/imprompt_triton.h is valid C, and says what Triton's own
//! headers say where those are at hand.
#![allow(missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const HEADER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/backend/include/imprompt_triton.h");

/// Compiles `source`, which is not kept.
fn compiles(compiler: &str, flags: &[&str], include: &Path, source: &str, extension: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("check").with_extension(extension);
    fs::write(&file, source).unwrap();
    let output = Command::new(compiler)
        .args(["-fsyntax-only", "-Wall", "-Wextra", "-Werror"])
        .args(flags)
        .arg("-I")
        .arg(include)
        .arg(&file)
        .output()
        .unwrap_or_else(|error| panic!("{compiler}: {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_header_is_valid_c() {
    let source = format!("#include \"{HEADER}\"\n");
    compiles("clang", &["-std=c11"], Path::new("/"), &source, "c");
}

/// Triton's headers: where $IMPROMPT_TRITON_INCLUDE says, or where its containers have them.
fn official() -> Option<PathBuf> {
    let named = std::env::var_os("IMPROMPT_TRITON_INCLUDE").map(PathBuf::from);
    let usual = PathBuf::from("/opt/tritonserver/include");
    named.or_else(|| usual.exists().then_some(usual))
}

#[test]
fn the_header_agrees_with_tritons_own() {
    let Some(include) = official() else {
        eprintln!("skipped: no tritonbackend.h at hand (IMPROMPT_TRITON_INCLUDE names its folder)");
        return;
    };
    // In C++ two declarations of one `extern "C"` function must agree. Our enum
    // values are asserted one by one.
    let ours = fs::read_to_string(HEADER).unwrap();
    let mut source = format!(
        "#include \"triton/core/tritonbackend.h\"\n#include \"triton/core/tritonserver.h\"\n\
         #define IMPROMPT_OFFICIAL_TYPES\nextern \"C\" {{\n#include \"{HEADER}\"\n}}\n\
         static_assert(IMPROMPT_TRITON_API_MAJOR == TRITONBACKEND_API_VERSION_MAJOR);\n\
         static_assert(IMPROMPT_TRITON_API_MINOR <= TRITONBACKEND_API_VERSION_MINOR);\n"
    );
    let values =
        ours.lines().filter_map(|line| line.trim().trim_end_matches(',').split_once(" = "));
    let mut count = 0;
    for (name, value) in values {
        source.push_str(&format!("static_assert({name} == {value});\n"));
        count += 1;
    }
    assert!(count > 20, "only {count} values were found in {HEADER}");
    compiles("clang++", &["-std=c++17"], &include, &source, "cc");
}
