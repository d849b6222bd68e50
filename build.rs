//! Makes the bindings of Triton's C API and sets the linker's flags of the .so.

use std::path::PathBuf;
use std::process::Command;

/// Our own header: the functions this backend calls, and no more.
const HEADER: &str = "backend/include/imprompt_triton.h";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={HEADER}");
    bindings();
    linker_flags();
    static_cpp_library();
    hide_cxx();
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

fn compiler() -> Command {
    println!("cargo:rerun-if-env-changed=CC");
    Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
}

/// A folder of this build.
fn folder(name: &str) -> PathBuf {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let folder = out.join(name);
    std::fs::create_dir_all(&folder).expect("OUT_DIR is writable");
    folder
}

/// The few lines of C++ that call TensorRT need the C++ library. A folder with the static one alone is
/// where the linker looks first, so that the .so carries what it uses of it, whatever version the server
/// was built with. Without a static one the system's shared one is linked.
fn static_cpp_library() {
    const NAME: &str = "libstdc++.a";
    let asked = compiler().arg(format!("-print-file-name={NAME}")).output();
    let found = asked.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    // A compiler that has none says its name alone.
    let found = found.and_then(|path| String::from_utf8(path).ok()).map(|path| path.trim().into());
    let Some(found) = found.filter(|path: &PathBuf| path.is_absolute()) else {
        println!("cargo:warning=no static {NAME}: the .so will need the system's libstdc++");
        return;
    };
    let folder = folder("cpp");
    std::fs::copy(found, folder.join(NAME)).expect("OUT_DIR is writable");
    println!("cargo:rustc-link-search=native={}", folder.display());
}

/// Hides the functions that the crate `cxx` has for C++: rustc exports whatever has a name for C, and the
/// .so exports Triton's entry points alone. A linker takes the narrowest visibility that any of its
/// inputs gives a name: here an object that does nothing but name them. A name that is new in a later
/// version of `cxx` is exported; tests/linkage.rs sees it.
fn hide_cxx() {
    const ELEMENTS: [&str; 16] = [
        "bool", "char", "f32", "f64", "i16", "i32", "i64", "i8", "isize", "str", "string", "u16",
        "u32", "u64", "u8", "usize",
    ];
    const OF_VECTORS: [&str; 9] = [
        "capacity",
        "data_const",
        "data_mut",
        "drop",
        "len",
        "new",
        "reserve_total",
        "set_len",
        "truncate",
    ];
    const OF_STRINGS: [&str; 13] = [
        "capacity",
        "clone",
        "drop",
        "from_utf16",
        "from_utf16_lossy",
        "from_utf8",
        "from_utf8_lossy",
        "len",
        "new",
        "ptr_const",
        "ptr_mut",
        "reserve_additional",
        "reserve_total",
    ];
    let vectors = ELEMENTS.iter().flat_map(|element| {
        OF_VECTORS.iter().map(move |function| format!("rust_vec${element}${function}"))
    });
    let strings = OF_STRINGS.iter().map(|function| format!("string${function}"));
    let slices = ["from", "len", "new", "ptr", "ref"].map(|function| format!("str${function}"));
    let others = ["slice$len", "slice$new", "slice$ptr", "exception"].map(str::to_owned);
    // Weak: a name that is not there is none that is missing. What uses the names is left out of the .so.
    let mut text = String::from(
        ".section .note.GNU-stack,\"\",%progbits\n.section .hidden_names,\"e\",%progbits\n",
    );
    for name in vectors.chain(strings).chain(slices).chain(others) {
        let name = format!("\"cxxbridge1${name}\"");
        text += &format!(".weak {name}\n.hidden {name}\n.quad {name}\n");
    }
    let folder = folder("hidden");
    let (source, object) = (folder.join("hidden.s"), folder.join("hidden.o"));
    std::fs::write(&source, text).expect("OUT_DIR is writable");
    let status = compiler().arg("-c").arg(&source).arg("-o").arg(&object).status();
    assert!(status.is_ok_and(|status| status.success()), "{} is not assembled", source.display());
    println!("cargo:rustc-cdylib-link-arg={}", object.display());
}
