//! `imprompt restyle` over a loopback server of `interrogate` and a loopback endpoint of SDXL.

mod common;

use common::cloud::{check_signature, run, with_aws};
use common::{Asked, Reply, Server, imprompt_with, project};
use serde_json::{Value, json};

/// A server whose `interrogate` answers each mode.
fn interrogate(asked: &Asked) -> Reply {
    if asked.path == "/v2/health/live" {
        return Reply::new(200, "");
    }
    let is_negative = asked.body.windows(8).any(|bytes| bytes == b"negative");
    let prompt = if is_negative { "blurry, low quality" } else { "a croissant, crisp" };
    let outputs =
        json!([{"name": "prompt", "datatype": "BYTES", "shape": [1, 1], "data": [prompt]}]);
    Reply::new(
        200,
        json!({"model_name": "interrogate", "model_version": "1", "outputs": outputs}).to_string(),
    )
}

fn picture() -> String {
    project().join("models/croissant.png").to_str().unwrap().to_owned()
}

fn restyle(arguments: &[&str]) -> common::Run {
    let server = Server::start(interrogate);
    imprompt_with(&[&["restyle", &picture(), "--server", &server.url], arguments].concat())
}

#[test]
fn the_request_is_that_of_the_sample_with_what_shall_not_be_seen() {
    let run = restyle(&["--style", "van-gogh/the-starry-night"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let request: Value = serde_json::from_str(&run.stdout).unwrap();
    let expected = json!({
        "text_prompts": [
            {"text": "This scene is a Van Gogh painting with The Starry Night style, a croissant, crisp", "weight": 1.0},
            {"text": "blurry, low quality", "weight": -1.0}
        ],
        "width": 1024, "height": 1024, "cfg_scale": 7.0, "steps": 20, "seed": 418, "samples": 1
    });
    assert_eq!(request, expected);
    let other = restyle(&[
        "--template",
        "a watercolour, {prompt}",
        "--no-negative",
        "--width",
        "1344",
        "--height",
        "768",
    ]);
    let request: Value = serde_json::from_str(&other.stdout).unwrap();
    assert_eq!(
        request["text_prompts"],
        json!([{"text": "a watercolour, a croissant, crisp", "weight": 1.0}])
    );
    assert_eq!((&request["width"], &request["height"]), (&json!(1344), &json!(768)));
}

#[test]
fn what_is_out_of_range_is_wrong_usage_before_anybody_is_asked() {
    let style = ["--style", "van-gogh/the-starry-night"];
    let own = picture();
    let cases: &[&[&str]] = &[
        &["--style", "nobody/nothing"],
        &["--template", "no place for it"],
        &["--template", "{artist}, {prompt}"],
        &[&style[..], &["--steps", "9"]].concat(),
        &[&style[..], &["--cfg-scale", "36"]].concat(),
        &[&style[..], &["--samples", "0"]].concat(),
        &[&style[..], &["--width", "512", "--height", "512"]].concat(),
        &[&style[..], &["--init-image", &own]].concat(),
        &[&style[..], &["--image-strength", "0.5"]].concat(),
        &[&style[..], &["--endpoint", "sdxl"]].concat(),
    ];
    for case in cases {
        let server = Server::start(|_| Reply::new(500, ""));
        let run =
            imprompt_with(&[&["restyle", &picture(), "--server", &server.url], *case].concat());
        assert_eq!((run.code, &*run.stdout), (2, ""), "{case:?}: {}", run.stderr);
        assert!(server.asked().is_empty(), "{case:?}");
    }
}

#[test]
fn a_first_picture_of_the_right_size_goes_with_the_request() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("first.bmp");
    // 1152 x 896, 24 bits, all black.
    let pixels = 1152 * 896 * 3u32;
    let mut bmp = b"BM".to_vec();
    for number in [54 + pixels, 0, 54, 40, 1152, 896, 1 | 24 << 16, 0, pixels, 2835, 2835, 0, 0] {
        bmp.extend(number.to_le_bytes());
    }
    bmp.resize(54 + pixels as usize, 0);
    std::fs::write(&path, &bmp).unwrap();
    let first = path.to_str().unwrap();
    let flags = ["--style", "klimt/the-kiss", "--init-image", first, "--image-strength", "0.5"];
    let run = restyle(&flags);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let request: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(
        (&request["init_image_mode"], &request["image_strength"]),
        (&json!("IMAGE_STRENGTH"), &json!(0.5))
    );
    assert!(request["init_image"].as_str().unwrap().starts_with("Qk0"));
    assert!(request.get("width").is_none() && request.get("step_schedule_start").is_none());
}

#[test]
fn an_endpoint_draws_the_picture() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("night.png");
    let place = Server::start(interrogate);
    let ask = |url: &str| {
        let flags =
            ["restyle", &picture(), "--server", &place.url, "--style", "van-gogh/the-starry-night"];
        run(with_aws(url)
            .args(flags)
            .args(["--samples", "2", "--endpoint", "sdxl", "--out"])
            .arg(&out))
    };
    let sdxl = Server::start(|asked| {
        check_signature(asked, "sagemaker");
        assert_eq!(asked.path, "/endpoints/sdxl/invocations");
        assert_eq!(asked.header("accept"), Some("application/json;png"));
        assert_eq!(asked.header("content-type"), Some("application/json"));
        let request: Value = serde_json::from_slice(&asked.body).unwrap();
        assert_eq!((&request["seed"], &request["samples"]), (&json!(418), &json!(2)));
        let artifact = |text: &str| json!({"seed": 418, "base64": text, "finishReason": "SUCCESS"});
        Reply::new(
            200,
            json!({"result": "success", "artifacts": [artifact("b25l"), artifact("dHdv")]})
                .to_string(),
        )
    });
    let drawn = ask(&sdxl.url);
    assert_eq!((drawn.code, &*drawn.stdout), (0, ""), "{}", drawn.stderr);
    assert_eq!(std::fs::read(&out).unwrap(), b"one");
    assert_eq!(std::fs::read(folder.path().join("night-2.png")).unwrap(), b"two");
    let refusing = Server::start(|_| {
        Reply::new(
            200,
            r#"{"error": {"id": "1", "name": "invalid_prompts", "message": "a croissant"}}"#,
        )
    });
    let refused = ask(&refusing.url);
    assert_eq!(refused.code, 1);
    assert_eq!(refused.stderr, "error: the endpoint refused: invalid_prompts\n");
}
