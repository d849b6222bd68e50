//! Bodies as clients send them, and as nobody should.
#![allow(missing_docs)]

use imprompt_error::Kind;
use imprompt_invocation::{Answer, Asked, Invocation, Limits, Value, read};
use proptest::prelude::*;

const LIMITS: Limits =
    Limits { body_bytes: 1 << 20, labels: 4, text_bytes: 64, caption_tokens: 256 };

fn good(body: &str) -> (Vec<u8>, Asked) {
    let Invocation { picture, asked } =
        read(body.as_bytes(), &LIMITS).unwrap_or_else(|error| panic!("{body}: {error}"));
    (picture.into_owned(), asked)
}

fn texts(texts: &[&str]) -> Value {
    Value::Texts(texts.iter().map(|text| (*text).to_owned()).collect())
}

fn input(name: &str, value: Value) -> (String, Value) {
    (name.to_owned(), value)
}

#[test]
fn the_samples_bodies_are_read() {
    let (picture, asked) =
        good(r#"{"image": "aGk=", "prompt": ["a photo of cats", "a photo of dogs"]}"#);
    assert_eq!(picture, b"aGk=");
    let labels = texts(&["a photo of cats", "a photo of dogs"]);
    let expected = Asked { answer: Answer::Probabilities, inputs: vec![input("labels", labels)] };
    assert_eq!(asked, expected);

    let (picture, asked) = good(
        r#"{"inputs": "aGk=", "parameters": {"max_length": 50, "max_flavors": 32, "min_flavors": 8}}"#,
    );
    assert_eq!(picture, b"aGk=");
    let expected = Asked {
        answer: Answer::Prompt,
        inputs: vec![
            input("max_new_tokens", Value::Whole(50)),
            input("max_flavors", Value::Whole(32)),
            input("min_flavors", Value::Whole(8)),
        ],
    };
    assert_eq!(asked, expected);
}

#[test]
fn further_forms_are_read() {
    for body in
        [r#"{"inputs": "aGk="}"#, "\u{feff} \n{\"image\":\"aG\\u006b=\",\"parameters\":null}"]
    {
        let (picture, asked) = good(body);
        assert_eq!(picture, b"aGk=", "{body}");
        assert_eq!(asked, Asked { answer: Answer::Prompt, inputs: vec![] });
    }
    let (_, asked) =
        good(r#"{"image": "aGk=", "labels": ["a", "é"], "template": "a {}", "top_k": 1}"#);
    let expected = vec![
        input("labels", texts(&["a", "é"])),
        input("template", Value::Text("a {}".to_owned())),
        input("top_k", Value::Whole(1)),
    ];
    assert_eq!(asked, Asked { answer: Answer::Labels, inputs: expected });
    let (_, asked) =
        good(r#"{"inputs": "aGk=", "mode": "fast", "parameters": {"temperature": 1, "top_k": 3}}"#);
    let expected = vec![
        input("mode", Value::Text("fast".to_owned())),
        input("temperature", Value::Real(1.0)),
        input("top_k", Value::Whole(3)),
    ];
    assert_eq!(asked, Asked { answer: Answer::Prompt, inputs: expected });
    // One prompt, as CLIPProcessor takes it; and null is as good as nothing.
    let (_, asked) = good(r#"{"image": "aGk=", "prompt": "a cat", "mode": null}"#);
    assert_eq!(asked.inputs, [input("labels", texts(&["a cat"]))]);
}

#[test]
fn what_is_no_object_is_a_picture() {
    for body in [
        &b"\xff\xd8\xff\xe0"[..],
        b"\x89PNG\r\n",
        b"GIF89a",
        b"RIFF",
        b"BM",
        b"aGk=\n",
        b"data:;base64,",
    ] {
        let invocation = read(body, &LIMITS).unwrap();
        assert_eq!(&*invocation.picture, body);
        assert_eq!(invocation.asked, Asked { answer: Answer::Prompt, inputs: vec![] });
    }
}

#[test]
fn what_is_wrong_is_named_and_never_repeated() {
    let deep = format!("{{\"image\": {}", "[".repeat(100_000));
    let many = format!("{{\"image\": \"\", \"labels\": [{}\"\"]}}", "\"OOM\",".repeat(300));
    let long = format!("{{\"image\": \"\", \"mode\": \"{}\"}}", "OOM".repeat(30));
    let digits = format!("{{\"image\": \"\", \"seed\": {}}}", "9".repeat(5000));
    for (body, said) in [
        ("", "body: empty"),
        (" \n", "body: empty"),
        ("[1]", "body: JSON that is no object"),
        ("\"OOM\"", "body: JSON that is no object"),
        ("{", "body: not JSON: EOF"),
        ("{OOM}", "body: not JSON: key must be a string"),
        ("{\"image\": OOM}", "body: not JSON: expected value"),
        ("{\"image\": \"OOM\"} OOM", "body: not JSON: trailing characters"),
        ("{\"image\": \"\\ud800\"}", "body: not JSON: "),
        ("{}", "fields `image` and `inputs`: one of them is needed"),
        ("{\"parameters\": {}}", "fields `image` and `inputs`: one"),
        ("{\"image\": null}", "fields `image` and `inputs`: one"),
        ("{\"image\": 5}", "field `image`: a number, allowed: a picture as base64 text"),
        ("{\"image\": [\"OOM\"]}", "field `image`: a list, allowed"),
        ("{\"inputs\": {\"OOM\": 1}}", "field `inputs`: an object, allowed"),
        ("{\"inputs\": true}", "field `inputs`: true or false, allowed"),
        ("{\"image\": \"\", \"inputs\": \"\"}", "fields `image` and `inputs`: only one"),
        ("{\"image\": \"\", \"image\": \"\"}", "field `image`: given twice"),
        (
            "{\"image\": \"\", \"OOM\": 1}",
            "a field of 3 bytes that is not known, allowed: image, inputs, parameters, prompt",
        ),
        (
            "{\"inputs\": \"\", \"parameters\": {\"OOM\": 1}}",
            "a field of 3 bytes within `parameters` that is not known",
        ),
        (
            "{\"inputs\": \"\", \"parameters\": {\"parameters\": {}}}",
            "a field of 10 bytes within `parameters`",
        ),
        (
            "{\"inputs\": \"\", \"parameters\": {}, \"parameters\": {}}",
            "field `parameters`: given twice",
        ),
        (
            "{\"inputs\": \"\", \"parameters\": \"OOM\"}",
            "field `parameters`: a text, allowed: an object",
        ),
        (
            "{\"inputs\": \"\", \"parameters\": []}",
            "field `parameters`: a list, allowed: an object",
        ),
        ("{\"inputs\": \"\", \"parameters\": 7}", "field `parameters`: a number"),
        (
            "{\"image\": \"\", \"prompt\": []}",
            "field `prompt`: an empty list, allowed: a list of texts",
        ),
        ("{\"image\": \"\", \"prompt\": [\"OOM\", 1]}", "field `prompt`: a list with a number"),
        ("{\"image\": \"\", \"prompt\": [[\"OOM\"]]}", "field `prompt`: a list with a list"),
        ("{\"image\": \"\", \"prompt\": [null]}", "field `prompt`: a list with null"),
        ("{\"image\": \"\", \"prompt\": {\"OOM\": 1}}", "field `prompt`: an object"),
        (
            "{\"image\": \"\", \"prompt\": [\"a\"], \"labels\": [\"a\"]}",
            "fields `prompt` and `labels`: only one",
        ),
        (
            "{\"image\": \"\", \"vocabulary\": \"OOM\", \"labels\": [\"a\"]}",
            "fields `vocabulary` and `labels`: only one",
        ),
        (
            "{\"image\": \"\", \"prompt\": [\"a\"], \"mode\": \"fast\"}",
            "field `mode`: not allowed with `prompt`",
        ),
        (
            "{\"image\": \"\", \"prompt\": [\"a\"], \"top_k\": 1}",
            "field `top_k`: not allowed with `prompt`",
        ),
        ("{\"image\": \"\", \"template\": \"OOM {}\"}", "field `template`: not allowed without"),
        ("{\"image\": \"\", \"mode\": 3}", "field `mode`: a number, allowed: a text"),
        (
            "{\"image\": \"\", \"min_flavors\": \"OOM\"}",
            "field `min_flavors`: a text, allowed: a whole number",
        ),
        (
            "{\"image\": \"\", \"min_flavors\": 8.5}",
            "field `min_flavors`: a number that is not whole",
        ),
        (
            "{\"image\": \"\", \"min_flavors\": 4294967296}",
            "field `min_flavors`: a number beyond 32 bits",
        ),
        (
            "{\"image\": \"\", \"min_flavors\": -9223372036854775808}",
            "field `min_flavors`: a number beyond 32 bits",
        ),
        (
            "{\"image\": \"\", \"seed\": 18446744073709551615}",
            "field `seed`: a number beyond 32 bits",
        ),
        (
            "{\"image\": \"\", \"seed\": 1e300}",
            "field `seed`: a number that is not whole or too large",
        ),
        ("{\"image\": \"\", \"top_p\": 1e999}", "body: not JSON: number out of range"),
        ("{\"image\": \"\", \"top_p\": \"OOM\"}", "field `top_p`: a text, allowed: a number"),
        ("{\"image\": \"\", \"max_length\": 0}", "field `max_length`: 0, allowed: 1 to 256"),
        ("{\"image\": \"\", \"max_length\": 257}", "field `max_length`: 257, allowed: 1 to 256"),
        (
            "{\"image\": \"\", \"max_length\": 5, \"max_new_tokens\": 5}",
            "fields `max_length` and `max_new_tokens`: only one",
        ),
        (&deep, "field `image`: a list"),
        (&many, "field `labels`: more than 4 texts, at most 4 are allowed"),
        (&long, "field `mode`: a text of 90 bytes, at most 64 are allowed"),
        (&digits, "body: not JSON: number out of range"),
    ] {
        let error = read(body.as_bytes(), &LIMITS).map(drop).unwrap_err();
        let short = &body[..body.len().min(200)];
        assert_eq!(error.kind(), Kind::InvalidInput);
        assert!(error.message().starts_with(said), "{short}: {error}");
        assert!(!error.message().contains("OOM"), "{short}: {error}");
    }
    let error = read(&vec![0; (1 << 20) + 1], &LIMITS).unwrap_err();
    assert_eq!(error.message(), "body: 1048577 bytes, at most 1048576 are allowed");
}

proptest! {
    /// Whatever comes, it is read or refused, and what is refused is not repeated.
    #[test]
    fn no_bytes_are_too_much(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&body, &LIMITS);
    }

    #[test]
    fn no_marker_of_a_body_comes_back(
        key in "(image|inputs|prompt|labels|mode|seed|top_p|parameters|QZX[a-z]{0,5})",
        value in r#"("QZX"|\["QZX"\]|\{"QZX": 1\}|QZX|[0-9]{1,40}|-?[0-9]\.[0-9]e[0-9]{1,4}|null|true|\[\[\["QZX")"#,
        rest in r#"[\[\]{},:"0-9QZX ]{0,20}"#,
    ) {
        let body = format!("{{\"{key}\": {value}{rest}}}");
        if let Err(error) = read(body.as_bytes(), &LIMITS) {
            prop_assert!(!error.message().contains("QZX"), "{body}: {error}");
        }
    }

    #[test]
    fn labels_come_through_as_they_are(labels in prop::collection::vec("\\PC{0,15}", 1..4)) {
        let body = serde_json::json!({"image": "aGk=", "labels": labels}).to_string();
        let (_, asked) = good(&body);
        let again = Asked::from_text(asked.to_text().unwrap().as_bytes()).unwrap();
        prop_assert_eq!(&again, &asked);
        let [(name, Value::Texts(read))] = &asked.inputs[..] else { panic!("not one list") };
        prop_assert_eq!((&**name, read), ("labels", &labels));
    }
}
