//! Makes the bindings of Triton's C API and sets the linker's flags of the .so.

use std::path::PathBuf;

/// Our own header: the functions this backend calls, and no more.
const HEADER: &str = "backend/include/imprompt_triton.h";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={HEADER}");
    bindings();
    linker_flags();
}

/// Writes `$OUT_DIR/triton.rs`. What this library itself exports is left out:
/// backend/src/triton/exports.rs defines it.
fn bindings() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let exported = "TRITONBACKEND_(Initialize|Finalize|GetBackendAttribute|Model(Instance)?(Initialize|Finalize|Execute))";
    bindgen::Builder::default()
        .header(HEADER)
        .allowlist_item("(IMPROMPT_)?TRITON.*")
        .blocklist_function(exported)
        .prepend_enum_name(false)
        .generate_comments(false)
        .layout_tests(false)
        .use_core()
        .rust_edition(bindgen::RustEdition::Edition2024)
        .generate()
        .unwrap_or_else(|error| {
            panic!("{HEADER}: {error}; bindgen needs libclang (Debian: libclang-dev and clang)")
        })
        .write_to_file(out.join("triton.rs"))
        .expect("OUT_DIR is writable");
}

/// The names `TRITON*` stay undefined: the server that opens the library has
/// them. Once opened the library is never unmapped, since threads of an engine
/// and thread-local destructors may still run in it when a server exits.
fn linker_flags() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
