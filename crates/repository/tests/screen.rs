//! The int8 screen of a repository of the demo models: what it sorts out is never what a chain
//! without it would choose. Needs ONNX Runtime: `scripts/setup` installs it, IMPROMPT_ONNXRUNTIME names it.

mod agreement;

use std::path::{Path, PathBuf};

use agreement::Comparer;
use imprompt_interrogate::{Mode, PromptEncoder};
use imprompt_repository::{BuildRequest, Manifest, ModelFolder, Precision, Silent, build, parts};
use imprompt_stage::Parameters;

fn project() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn parameters() -> Parameters {
    let installed = ".imprompt/onnxruntime/onnxruntime/capi/libonnxruntime.so.1.32.0";
    let named = std::env::var_os("IMPROMPT_ONNXRUNTIME").map(PathBuf::from);
    let onnxruntime = named.unwrap_or_else(|| project().join(installed));
    assert!(
        onnxruntime.is_file(),
        "no ONNX Runtime: run scripts/setup, or set IMPROMPT_ONNXRUNTIME"
    );
    Parameters { onnxruntime: Some(onnxruntime), ..Parameters::default() }
}

fn repository(out: &Path) -> Manifest {
    let open = |name| Some(ModelFolder::open(&project().join("models").join(name)).unwrap());
    let request = BuildRequest {
        clip: open("demo-clip"),
        captioner: open("demo-blip2"),
        vocabularies: vec![project().join("models/demo-vocabulary")],
        precision: Precision { screen: true, ..Precision::default() },
        onnxruntime: parameters().onnxruntime,
        ..BuildRequest::new(out)
    };
    build(&request, &Silent).unwrap()
}

#[test]
fn prompts_are_those_without_a_screen() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("repository");
    let manifest = repository(&out);
    assert!(manifest.precision.unwrap().ends_with("clip_text=f32,captioner=f32,screen=int8"));
    let has_screen = |parameters: &Parameters| {
        parts::interrogator(&out, parameters).unwrap().1.screen().is_some()
    };
    for off in [
        Parameters { screen: false, ..parameters() },
        // The runtime's own operators gain nothing by bytes.
        Parameters { kernels: None, ..parameters() },
    ] {
        assert!(!has_screen(&off));
    }
    if !has_screen(&parameters()) {
        println!("this processor multiplies bytes no faster than floats: screens are not used");
        return;
    }
    let mut comparer = Comparer::open(&out, &parameters()).unwrap();
    let picture = std::fs::read(project().join("goldens/demo/noto-castle.png")).unwrap();
    let mut screens_alone = 0;
    for mode in [Mode::Best, Mode::Negative] {
        let compared = comparer.compare(&picture, mode, Some(4)).unwrap();
        assert_eq!(compared.prompts[0], compared.prompts[1], "{mode:?}");
        let apart = (compared.similarities[0] - compared.similarities[1]).abs();
        assert!(apart < 1e-6, "{mode:?}: {apart}, though both are of the tower itself");
        assert!(compared.steps.len() >= 4);
        for step in &compared.steps {
            assert!(step.is_equal && step.scored >= 32 && step.scored < step.candidates / 4);
            screens_alone += usize::from(step.above > 0);
        }
    }
    // By the screen alone some of them would be others: else this test says nothing.
    assert!(screens_alone > 0);
}
