//! The whole command in one process, on the demo models. Needs ONNX Runtime, which
//! `scripts/setup` installs where the command looks for it (or IMPROMPT_ONNXRUNTIME names it).

mod common;

use std::path::Path;

use common::{Run, imprompt, project, run};
use serde_json::Value;

fn at(repository: &Path, arguments: &[&str]) -> Run {
    let mut command = imprompt();
    // The builder of the repository under test has no models on a hub and no index.
    command.args(arguments).env("IMPROMPT_REPOSITORY", repository);
    run(&mut command)
}

fn lines(run: &Run) -> Vec<Value> {
    assert_eq!(run.code, 0, "{}", run.stderr);
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_repository_is_built_used_and_changed() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository");
    let models = project().join("models");
    let path = |name: &str| models.join(name).to_str().unwrap().to_owned();
    let (clip, captioner, vocabulary) =
        (path("demo-clip"), path("demo-blip2"), path("demo-vocabulary"));
    let out = repository.to_str().unwrap();
    let built = at(
        &repository,
        &[
            "build",
            "--clip",
            &clip,
            "--captioner",
            &captioner,
            "--vocabulary",
            &vocabulary,
            "--out",
            out,
        ],
    );
    assert_eq!((built.code, &*built.stdout), (0, ""), "{}", built.stderr);
    assert!(built.stderr.contains("interrogate, caption, zero_shot, embed_image, embed_text"));

    let pictures = folder.path().join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    for name in ["a.png", "c.png"] {
        std::fs::copy(models.join("croissant.png"), pictures.join(name)).unwrap();
    }
    std::fs::write(pictures.join("b.png"), "not a picture").unwrap();
    let pictures = pictures.to_str().unwrap();
    let croissant = path("croissant.png");

    let prompts = at(&repository, &["interrogate", pictures, "--mode", "fast", "--json"]);
    assert_eq!((prompts.code, prompts.stdout.lines().count()), (1, 2), "{}", prompts.stderr);
    assert!(prompts.stderr.contains("b.png: input `image`"), "{}", prompts.stderr);
    let given = ["interrogate", &croissant, "--mode", "caption", "--given-caption", "a bread"];
    assert_eq!(at(&repository, &given).stdout, "a bread\n");

    let tagged = lines(&at(
        &repository,
        &["tag", &croissant, "--labels", "croissant,bread,pizza", "--json"],
    ));
    let labels = tagged[0]["labels"].as_array().unwrap();
    let sum: f64 = labels.iter().map(|label| label["probability"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    let several = at(&repository, &["tag", pictures, "--vocabulary", "mediums", "--top-k", "2"]);
    assert_eq!((several.code, several.stdout.lines().count()), (1, 4), "{}", several.stderr);

    let embedded = lines(&at(&repository, &["embed", &croissant]));
    let texts = lines(&at(&repository, &["embed", "--text", "croissant", "pizza"]));
    let width = embedded[0]["embedding"].as_array().unwrap().len();
    assert_eq!((texts.len(), texts[1]["embedding"].as_array().unwrap().len()), (2, width));
    assert!(at(&repository, &["caption", &croissant, "--max-new-tokens", "4"]).code == 0);

    let whole = at(&repository, &["caption", &croissant, "--text", "a picture of"]).stdout;
    let told = at(&repository, &["caption", &croissant, "--text", "a picture of", "--stream"]);
    assert_eq!((told.code, &told.stdout), (0, &whole), "{}", told.stderr);
    let several = at(&repository, &["caption", pictures, "--stream", "--num-beams", "2"]);
    assert_eq!((several.code, several.stdout.lines().count()), (1, 2), "{}", several.stderr);
    assert!(several.stderr.contains("b.png: input `image`"), "{}", several.stderr);
    let refused = at(&repository, &["caption", &croissant, "--stream", "--num-beams", "9"]);
    assert_eq!((refused.code, &*refused.stdout), (1, ""));
    assert!(refused.stderr.contains("`num_beams`: 9, allowed: 1 to 8"), "{}", refused.stderr);

    let refused = at(&repository, &["interrogate", &croissant, "--max-flavors", "-1"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("max_flavors"), "{}", refused.stderr);

    let table = folder.path().join("moods.txt");
    std::fs::write(&table, "calm\nwild\n").unwrap();
    let table = table.to_str().unwrap();
    assert_eq!(
        at(&repository, &["vocabulary", "add", table]).stderr.lines().last(),
        Some("added moods: 2 labels")
    );
    let again = at(&repository, &["vocabulary", "add", table]);
    assert!(again.code == 1 && again.stderr.contains("\nhint: --replace "), "{}", again.stderr);
    assert_eq!(at(&repository, &["vocabulary", "add", "--replace", table]).code, 0);
    let listed = lines(&at(&repository, &["vocabulary", "list", "--json"]));
    let mut names: Vec<_> = listed.iter().map(|line| line["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["artists", "flavors", "mediums", "moods", "movements", "negative", "trendings"]
    );
    assert_eq!(
        lines(&at(&repository, &["tag", &croissant, "--vocabulary", "moods", "--json"])).len(),
        1
    );
    assert_eq!(at(&repository, &["vocabulary", "remove", "moods"]).code, 0);
    assert_eq!(at(&repository, &["vocabulary", "remove", "moods"]).code, 1);

    let bench = [
        "bench",
        &croissant,
        "--ensemble",
        "embed_image",
        "--requests",
        "5",
        "--concurrency",
        "2",
        "--json",
    ];
    let measured = lines(&at(&repository, &bench));
    assert_eq!(measured[0]["failed"], 0);
    let stages = measured[0]["stages"].as_array().unwrap();
    assert_eq!(stages.len(), 2, "preprocess and clip_image: {stages:?}");
    let parts = "picture,text,chain,image,captioner,rank";
    let bench = ["bench", &croissant, "--part", parts, "--requests", "1", "--batch", "2", "--json"];
    let measured = lines(&at(&repository, &bench));
    let told: Vec<_> = measured.iter().map(|line| line["part"].as_str().unwrap()).collect();
    assert_eq!(told.join(","), parts);
    assert!(measured.iter().all(|line| line["latency_ms"]["p50"].as_f64().unwrap() > 0.0));
    assert_eq!(measured[4]["answers"][0].as_array().unwrap().len(), 20, "tokens of a caption");
    let few = ["bench", "--part", "chain", "--batch", "9999", "--requests", "1"];
    assert!(at(&repository, &few).stderr.contains("9999 were asked for"));
    let html = folder.path().join("report.html");
    let html = html.to_str().unwrap();
    let sweep = [
        "bench", &croissant, "--part", "rank", "--batch", "9", "--sweep", "labels", "--limit", "1",
    ];
    let swept = at(&repository, &[&sweep[..], &["--html", html, "--json"]].concat());
    assert_eq!(swept.code, 0, "{}", swept.stderr);
    let curves: Vec<Value> = lines(&swept);
    for (curve, least) in [("labels_stored", 2), ("labels_new", 1), ("labels_known", 1)] {
        let count = curves.iter().filter(|line| line["sweep"]["curve"] == curve).count();
        assert!(count >= least, "{curve}: {count} points");
    }
    assert!(std::fs::read_to_string(html).unwrap().contains("How cost grows with labels"));
}
