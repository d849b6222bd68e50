//! Help, wrong usage, and failures before any work: messages, hints and exit codes.

mod common;

use common::{imprompt, imprompt_with, project, run};

/// `IMPROMPT_WRITE_SNAPSHOTS=1` writes the help texts anew.
#[test]
fn help_is_as_written_down() {
    let folder = project().join("cli/tests/help");
    let commands: &[&[&str]] = &[
        &[],
        &["build"],
        &["serve"],
        &["interrogate"],
        &["tag"],
        &["caption"],
        &["embed"],
        &["vocabulary"],
        &["vocabulary", "add"],
        &["models"],
        &["bench"],
        &["check"],
        &["pack"],
        &["push"],
        &["deploy"],
        &["invoke"],
        &["delete"],
        &["restyle"],
    ];
    for command in commands {
        let help = imprompt_with(&[command, &["--help"][..]].concat());
        assert_eq!((help.code, &*help.stderr), (0, ""));
        let name = if command.is_empty() { "imprompt".to_owned() } else { command.join("-") };
        let file = folder.join(format!("{name}.txt"));
        if std::env::var_os("IMPROMPT_WRITE_SNAPSHOTS").is_some() {
            std::fs::write(&file, &help.stdout).unwrap();
        }
        let expected = std::fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(help.stdout, expected, "the help of {name} has changed");
    }
}

#[test]
fn wrong_usage_ends_with_2_and_prints_nothing_to_stdout() {
    let cases: &[&[&str]] = &[
        &[],
        &["nonsense"],
        &["interrogate"],
        &["interrogate", "a.png", "--mode", "slow"],
        &["interrogate", "a.png", "--max-flavors", "many"],
        &["interrogate", "a.png", "--repo", "r", "--server", "u"],
        &["tag", "a.png", "--repo", "r"],
        &["tag", "a.png", "--repo", "r", "--labels", "a", "--vocabulary", "b"],
        &["embed", "--repo", "r"],
        &["embed", "a.png", "--text", "b"],
        &["build", "--out", "r"],
        &["build", "--clip", "c"],
        &["build", "--clip", "c", "--model-names", "m", "--out", "r"],
        &["build", "--clip", "c", "--gpu-form", "fused", "--out", "r"],
        &["build", "--clip", "c", "--device", "gpu", "--gpu-form", "fused", "--out", "r"],
        &["models", "--kind", "cat"],
        &["bench", "a.png", "--requests", "0"],
        &["bench", "--ensemble", "zero_shot"],
        &["bench", "a.png", "--part", "everything"],
        &["bench", "a.png", "--concurrency", "1,0"],
        &["bench", "--part", "text", "--server", "u"],
        &["vocabulary", "add"],
        &["push", "m.tar.gz"],
        &["push", "cli", "m.tar.gz"],
        &["push", "m.tar.gz", "s3://b", "--part-size", "1"],
        &["deploy", "--name", "n"],
        &["invoke", "a.png"],
        &["invoke", "a.png", "--endpoint", "-"],
        &["invoke", "a.png", "--endpoint", "n", "--labels", "a", "--mode", "fast"],
        &["delete", "--endpoint", "a/b"],
    ];
    for case in cases {
        let run = imprompt_with(case);
        assert_eq!((run.code, &*run.stdout), (2, ""), "{case:?}: {}", run.stderr);
        assert!(!run.stderr.is_empty());
    }
}

#[test]
fn no_repository_is_wrong_usage_with_a_hint() {
    let run = imprompt_with(&["interrogate", "a.png"]);
    assert_eq!(run.code, 2);
    assert_eq!(
        run.stderr,
        "error: neither --repo nor $IMPROMPT_REPOSITORY names a repository\n\
         hint: make one with `imprompt build`, then pass it with --repo REPO; --server URL asks a \
         running server\n"
    );
}

#[test]
fn a_folder_that_is_no_repository_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    for command in [
        vec!["serve", path],
        vec!["caption", "a.png", "--repo", path],
        vec!["vocabulary", "list", "--repo", path],
    ] {
        let run = imprompt_with(&command);
        assert_eq!((run.code, &*run.stdout), (1, ""));
        let expected = format!(
            "error: {path}: not a repository made by `imprompt build` (it has no imprompt.json)\n"
        );
        assert_eq!(run.stderr, expected);
    }
    let by_variable = run(imprompt().args(["vocabulary", "list"]).env("IMPROMPT_REPOSITORY", path));
    assert_eq!(by_variable.code, 1);
}

#[test]
fn a_build_touches_nothing_that_is_not_its_own() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("thesis.txt"), "years of work").unwrap();
    let path = folder.path().to_str().unwrap();
    let clip = project().join("models/demo-clip");
    let run = imprompt_with(&["build", "--clip", clip.to_str().unwrap(), "--out", path]);
    assert_eq!(run.code, 1);
    assert_eq!(
        run.stderr,
        format!(
            "error: {path}: exists and is not a repository made by `imprompt build`\n\
             hint: choose another --out, or remove that folder yourself\n"
        )
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_source_that_is_neither_folder_nor_id_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("r");
    let run = imprompt_with(&["build", "--clip", "./nowhere", "--out", out.to_str().unwrap()]);
    assert_eq!(run.code, 1);
    assert_eq!(
        run.stderr,
        "error: ./nowhere: no such folder, and no known name of a CLIP\n\
         hint: supported: a folder, a hub id of the form OWNER/NAME, or a name that `imprompt models` \
         lists, of CLIP (vision transformer), SigLIP\n"
    );
    assert!(!out.exists());
}

#[test]
fn known_models_are_a_table_and_json_lines() {
    let table = imprompt_with(&["models"]);
    assert_eq!((table.code, &*table.stderr), (0, ""));
    let lines: Vec<&str> = table.stdout.lines().collect();
    assert!(lines[0].starts_with("NAME") && lines[0].ends_with("GOOD FOR"));
    assert!(lines.iter().any(|line| line.starts_with("ViT-L-14/openai ")
        && line.contains("428 M")
        && line.contains("openai/clip-vit-large-patch14 ")));
    let json = imprompt_with(&["models", "--json"]);
    let parsed: Vec<serde_json::Value> =
        json.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(parsed.len(), lines.len() - 1);
    let blip2 = parsed.iter().find(|model| model["name"] == "blip2-2.7b").unwrap();
    assert_eq!(
        *blip2,
        serde_json::json!({
            "name": "blip2-2.7b", "hub_id": "Salesforce/blip2-opt-2.7b", "kind": "captioner",
            "architecture": "BLIP-2 (OPT)", "parameters": 3_744_680_000u64,
            "disk_bytes": 15_500_000_000u64, "memory_bytes": 14_978_720_000u64, "licence": "MIT",
            "good_for": "better captions, questions; the AWS sample's default", "supported": true
        })
    );
    let some = imprompt_with(&["models", "VIT-L", "--kind", "clip", "--supported", "--json"]);
    assert!(some.stdout.lines().count() > 5);
    assert!(
        some.stdout
            .lines()
            .all(|line| line.contains("ViT-L-14") && line.contains("\"supported\":true"))
    );
    let none = imprompt_with(&["models", "nothing of the kind"]);
    assert_eq!((none.code, &*none.stdout), (1, ""));
    assert!(none.stderr.contains("hint: "));
}

#[test]
fn a_server_that_is_not_there_is_said_once() {
    let run = imprompt_with(&["caption", "a.png", "b.png", "--server", "http://127.0.0.1:9"]);
    assert_eq!((run.code, &*run.stdout), (1, ""));
    assert!(run.stderr.starts_with("error: no server answers at http://127.0.0.1:9\nhint: "));
    assert_eq!(run.stderr.lines().count(), 2);
}
