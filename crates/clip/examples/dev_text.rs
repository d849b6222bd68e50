//! dev
use imprompt_clip::{TextEncoder, TextOptions};
use imprompt_engine::EngineOptions;
use imprompt_engine::onnxruntime::{OnnxRuntime, OnnxRuntimeOptions};
use imprompt_error::Uncancellable;
use imprompt_graph::clip::{IMAGE_GRAPH, TEXT_GRAPH};
use imprompt_graph::clip_graphs;
use std::path::Path;
use std::time::Instant;
fn main() {
    let source = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
    let tokens: usize = std::env::args().nth(2).map_or(1024, |s| s.parse().unwrap());
    let graphs = clip_graphs(&source).unwrap();
    std::fs::write(source.join(TEXT_GRAPH), &graphs.text.bytes).unwrap();
    std::fs::write(source.join(IMAGE_GRAPH), &graphs.image.bytes).unwrap();
    let rows: serde_json::Value =
        serde_json::from_reader(std::fs::File::open("/tmp/me/rows.json").unwrap()).unwrap();
    let get = |k: &str| -> Vec<Vec<u32>> {
        rows[k]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect())
            .collect()
    };
    let rt = OnnxRuntime::open(&OnnxRuntimeOptions::default()).unwrap();
    let t = Instant::now();
    let mut e = TextEncoder::open(
        Path::new(&source),
        graphs.facts.clone(),
        rt,
        &TextOptions { engine: EngineOptions::default(), tokens_per_run: tokens },
    )
    .unwrap();
    println!("open {:?}", t.elapsed());
    for k in ["labels", "chain"] {
        let rows = get(k);
        for _ in 0..3 {
            let t = Instant::now();
            let v = e.encode(&rows, &Uncancellable).unwrap();
            let s = t.elapsed().as_secs_f64();
            println!(
                "{k} {} rows {:.3} s {:.1}/s sum {}",
                rows.len(),
                s,
                rows.len() as f64 / s,
                v.iter().map(|x| *x as f64).sum::<f64>()
            );
        }
    }
}
