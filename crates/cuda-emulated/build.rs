//! Names the shared library as programs ask for the driver: once it is open in a process, opening
//! `libcuda.so` there gives it and searches for no other.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
    println!("cargo::rerun-if-changed=build.rs");
}
