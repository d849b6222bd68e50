//! A model of 15 GB is built in seconds and in little memory: only headers are read, and the
//! weights become hard links. The files are sparse; their headers are those of the real model.

mod shapes;

use std::path::Path;
use std::time::Instant;

use imprompt_repository::{BuildRequest, ModelFolder, Silent, build};
use shapes::Model;

/// The most memory that this process ever had, in bytes. Nothing else runs in it: this file has
/// one test.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn fifteen_gigabytes_take_seconds_and_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("blip2-opt-2.7b");
    std::fs::create_dir(&model).unwrap();
    let shapes = Model::named("blip2-opt-2.7b", None).unwrap();
    let shards = shapes.shards("F32", 4);
    let bytes: u64 = shards.iter().map(|shard| shard.bytes).sum();
    assert!(bytes > 14_900_000_000, "{bytes}");
    for shard in &shards {
        shard.create(&model).unwrap();
    }
    shapes.write_files(&model, &shards).unwrap();
    let request = BuildRequest {
        captioner: Some(ModelFolder::open(&model).unwrap()),
        ..BuildRequest::new(&folder.path().join("repository"))
    };
    let started = Instant::now();
    let manifest = build(&request, &Silent).unwrap();
    let (seconds, memory) = (started.elapsed().as_secs_f64(), peak_memory());
    println!("{bytes} bytes of weights: {seconds:.2} s, {} MB at most", memory >> 20);
    assert_eq!(manifest.ensembles, ["caption"]);
    assert!(seconds < 30.0, "{seconds} s");
    assert!(memory < 300 << 20, "{memory} bytes");
    let linked = request.out.join("captioner/1/model-00001-of-00002.safetensors");
    use std::os::unix::fs::MetadataExt as _;
    let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&linked), inode(&model.join("model-00001-of-00002.safetensors")));
}
