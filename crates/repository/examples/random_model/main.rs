//! Writes a model folder of a full-size model's shapes with random float16 weights: what it says is
//! nonsense, what it costs is not.
//!
//! ```text
//! cargo run --release -p imprompt-repository --example random_model -- KIND FOLDER [--layers N]
//! ```

#[path = "../../tests/shapes/mod.rs"]
mod shapes;
mod write;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use shapes::Model;

const USAGE: &str = "usage: random_model KIND FOLDER [--layers N]

KIND is blip2-opt-2.7b (7.5 GB), clip-vit-l-14 (0.9 GB) or clip-vit-h-14 (2 GB); with --layers each part
has N layers at most.";

fn main() -> ExitCode {
    match run() {
        Ok(done) => {
            println!("{done}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (kind, folder, layers) = match *arguments {
        [kind, folder] => (kind, folder, None),
        [kind, folder, "--layers", layers] => (kind, folder, Some(layers.parse()?)),
        _ => return Err(USAGE.into()),
    };
    let bytes = write::write(&Model::named(kind, layers)?, Path::new(folder))?;
    Ok(format!("{bytes} bytes of float16 weights in {folder}"))
}
