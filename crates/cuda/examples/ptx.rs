//! Compiles `kernels/ranking.cu` to the `kernels/ranking.ptx` beside it. NVRTC of CUDA 12.2 must be
//! among the libraries, see `docs/gpu.md`.

use std::error::Error;
use std::path::Path;

use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let source = std::fs::read_to_string(folder.join("ranking.cu"))?;
    let hash = source
        .bytes()
        .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let options = CompileOptions {
        arch: Some("compute_75"),
        fmad: Some(false),
        ftz: Some(false),
        name: Some("ranking.cu".to_owned()),
        ..CompileOptions::default()
    };
    let ptx = compile_ptx_with_opts(source, options)?.to_src();
    let ptx = format!("// Of ranking.cu with the FNV-1a hash {hash:08x}.\n{}\n", ptx.trim());
    std::fs::write(folder.join("ranking.ptx"), ptx)?;
    Ok(())
}
