//! Bad requests: each gets its own clear error, names what is wrong in numbers,
//! repeats nothing of the request, and leaves the server as it was.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use imprompt_kserve::{Error, InferRequest, Values};

use crate::support::{good, picture, server, with_image};

/// A word that no error may repeat: it holds one that SageMaker turns into status 507.
const CANARY: &str = "ZOOM";

/// `model` must answer `request` with `code` and a message that has `expected`.
fn refused(model: &str, request: &InferRequest, code: u16, expected: &str) {
    match server().client().infer(model, request) {
        Err(Error::Status { code: got, message }) => {
            assert_eq!(got, code, "{model}: {message}");
            assert!(message.contains(expected), "{model}: {message:?} lacks {expected:?}");
            assert!(!message.contains(CANARY) && !message.contains("OOM"), "{message}");
            assert!(message.is_ascii() && message.len() < 1000, "{message}");
        }
        other => panic!("{model}: expected {code} {expected:?}, got {other:?}"),
    }
}

/// Nothing else has suffered.
fn still_serves() {
    server().assert_serves("embed_image", &good());
}

fn refused_image(image: impl Into<Vec<u8>>, expected: &str) {
    refused("embed_image", &with_image(image), 400, expected);
}

#[test]
fn pictures_that_are_none() {
    refused_image("", "image");
    let junk: [&[u8]; 14] = [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7 ZOOM",
        b"<!DOCTYPE html><p>ZOOM",
        b"PK\x03\x04ZOOM",
        b"\x7fELF\x02\x01\x01",
        b"\0\0\0\x18ftypmp42ZOOM",
        b"\0\0\0\x1cftypavifZOOM",
        b"\0\0\0\x18ftypheicZOOM",
        b"II*\0ZOOM",
        b"8BPSZOOM",
        b"\x76\x2f\x31\x01ZOOM",
        b"P6 1 1 255 ZOOM",
        b"\xff\x0aZOOM",
        b"\0\0\x01\0ZOOM",
    ];
    for bytes in junk {
        refused_image(bytes, "image");
    }
    refused_image("just some text with ZOOM in it!", "image");
    refused_image("data:text/html;base64,Wk9PTQ==", "image");
    refused_image("data:image/png,ZOOM", "image");
    refused_image("iVBORw0KGgo=====ZOOM", "image");
    still_serves();
}

#[test]
fn pictures_that_are_cut_or_corrupt() {
    let whole = picture(200, 100, [90, 30, 220]);
    for part in [10, 50, 99] {
        refused_image(&whole[..whole.len() * part / 100], "image");
    }
    let mut corrupt = whole.clone();
    let middle = corrupt.len() / 2;
    corrupt[middle] ^= 0x55;
    refused_image(corrupt, "image");
    // A GIF and a JPEG that end after their first words.
    refused_image(b"GIF89a\x01\0\x01\0\0\0\0", "image");
    refused_image(b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0", "image");
    still_serves();
}

/// A PNG whose header says `width` x `height` and whose checksum is right.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let crc = chunk.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1))
        })
    });
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.append(&mut chunk);
    png.extend((!crc).to_be_bytes());
    png.extend(b"\0\0\0\x10IDAT\x78\x9c\x63\0\0\0\x02\0\x01\0\0\0\0\0\0\0\0\0\0\0");
    png
}

#[test]
fn bombs_are_refused_by_their_header() {
    server().assert_serves("embed_image", &good());
    let before = server().memory();
    for (width, height) in [(50_000, 50_000), (16_385, 1), (10_000, 10_000), (0, 5), (1 << 31, 1)] {
        refused_image(png_header(width, height), "image");
    }
    let grown = server().memory().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    still_serves();
}

#[test]
fn limits_are_configurable() {
    server().assert_serves("limited", &with_image(picture(100, 100, [1, 2, 3])));
    let large = with_image(picture(101, 100, [1, 2, 3]));
    refused("limited", &large, 400, "10000");
    server().assert_serves("embed_image", &large);
}

#[test]
fn a_picture_over_the_byte_limit() {
    let mut large = picture(10, 10, [0, 0, 0]);
    large.resize((20 << 20) + 1, 0);
    refused_image(large, "20971520");
    still_serves();
}

#[test]
fn no_address_is_followed() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), picture(8, 8, [9, 9, 9])).unwrap();
    let path = file.path().to_str().unwrap();
    for text in [
        format!("http://{address}/picture.png"),
        format!("https://{address}/ZOOM"),
        format!("ftp://{address}/"),
        "s3://bucket/ZOOM".to_owned(),
        path.to_owned(),
        format!("file://{path}"),
        "../../etc/passwd".to_owned(),
    ] {
        refused_image(text, "image");
    }
    let nobody = listener.accept().unwrap_err();
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
    still_serves();
}

#[test]
fn odd_pictures_are_served() {
    for (width, height) in [(1, 1), (1, 4000), (4000, 1)] {
        server().assert_serves("embed_image", &with_image(picture(width, height, [5, 6, 7])));
    }
}

fn labels(values: &[&[u8]]) -> InferRequest {
    good().bytes("labels", [1, values.len() as i64], values.iter().map(|value| value.to_vec()))
}

#[test]
fn labels_and_texts() {
    let model = "zero_shot";
    refused(model, &good(), 400, "labels");
    refused(model, &labels(&[]), 400, "`labels`");
    refused(model, &labels(&[b"ok", b"\xff\xfeZOOM"]), 400, "UTF-8");
    refused(model, &labels(&[&b"ZOOM ".repeat(1000)]), 400, "4096");
    let many: Vec<&[u8]> = vec![b"ZOOM"; 1001];
    refused(model, &labels(&many), 400, "1000");
    refused(model, &labels(&[b"a"]).text("vocabulary", "flavors"), 400, "vocabulary");
    let unknown = good().text("vocabulary", "ZOOM");
    refused(model, &unknown, 400, "vocabulary");
    refused(model, &labels(&[b"a"]).text("template", "no place ZOOM"), 400, "template");
    refused(model, &labels(&[b"a"]).i32("top_k", [1, 1], [0]), 400, "top_k");
    refused(model, &labels(&[b"a"]).i32("top_k", [1, 1], [-1]), 400, "top_k");
    // Long but lawful text is cut off as the reference does; odd characters are text.
    server().assert_serves(model, &labels(&[&b"word ".repeat(500)]));
    let odd = ["\u{feff}bom", "nul\0inside", "\x1b[31m", "👩‍👩‍👧‍👦", "مرحبا", " "];
    let odd: Vec<&[u8]> = odd.iter().map(|text| text.as_bytes()).collect();
    server().assert_serves(model, &labels(&odd));
    let text = |text: &[u8]| InferRequest::new().bytes("text", [1, 1], [text.to_vec()]);
    refused("embed_text", &text(b"\x80"), 400, "UTF-8");
    refused("embed_text", &text(&b"ZOOM".repeat(2000)), 400, "4096");
    server().assert_serves("embed_text", &text(b""));
    still_serves();
}

#[test]
fn parameters_of_interrogate() {
    let model = "interrogate";
    let number = |name: &str, value: i32| good().i32(name, [1, 1], [value]);
    refused(model, &good().text("mode", CANARY), 400, "mode");
    refused(model, &good().bytes("mode", [1, 1], [b"\xff\xff"]), 400, "mode");
    for value in [-1, 0, i32::MAX, i32::MIN] {
        refused(model, &number("max_flavors", value), 400, "max_flavors");
        refused(model, &number("budget_ms", value), 400, "budget_ms");
        refused(model, &number("max_new_tokens", value), 400, "max_new_tokens");
    }
    refused(model, &number("min_flavors", -1), 400, "min_flavors");
    let long = good().text("given_caption", "ZOOM".repeat(2000));
    refused(model, &long, 400, "given_caption");
    refused("caption", &good().bytes("text", [1, 1], [b"\xc3\x28"]), 400, "text");
    still_serves();
}

#[test]
fn lengths_that_lie() {
    let raw = |name: &str, shape: [i64; 2], bytes: &[u8]| {
        let bytes = bytes.to_vec();
        InferRequest::new().tensor(name, shape, Values::Raw { datatype: "BYTES".into(), bytes })
    };
    // These pass Triton's own check.
    for prefix in [100u32, 4, u32::MAX, 0x7fff_ffff] {
        let mut bytes = prefix.to_le_bytes().to_vec();
        bytes.extend(b"abc");
        refused("preprocess", &raw("image", [1, 1], &bytes), 400, "`image`");
        refused("embed_image", &raw("image", [1, 1], &bytes), 400, "image");
    }
    // These do not: whoever refuses them, it is the request that is wrong.
    refused("preprocess", &raw("image", [1, 1], &[1, 0, 0]), 400, "");
    refused("preprocess", &raw("image", [1, 1], &[1, 0, 0, 0, b'a', b'b', b'c']), 400, "");
    refused("preprocess", &raw("image", [2, 1], &[1, 0, 0, 0, b'a']), 400, "");
    still_serves();
}

#[test]
fn shapes_and_types_that_are_wrong() {
    let client = server().client();
    let wrong = [
        InferRequest::new(),
        InferRequest::new().f32("image", [1, 1], [1.0]),
        InferRequest::new().text("picture", "x"),
        good().text("other", "x"),
        InferRequest::new().bytes("image", [1], [picture(4, 4, [0; 3])]),
        InferRequest::new().bytes("image", [1, 2], [picture(4, 4, [0; 3]), vec![]]),
        InferRequest::new().bytes("image", [0, 1], [b""; 0]),
        InferRequest::new().bytes("image", [100, 1], vec![picture(4, 4, [0; 3]); 100]),
        good().output("nothing"),
    ];
    for request in wrong {
        let code = client.infer("embed_image", &request).unwrap_err().code().unwrap();
        assert!((400..500).contains(&code), "{code}");
    }
    let pixels = InferRequest::new().f32("pixel_values", [1, 3, 2, 2], [0.5; 12]);
    refused("clip_image", &pixels, 400, "pixel_values");
    assert_eq!(client.infer("no_such_model", &good()).unwrap_err().code(), Some(404));
    still_serves();
}

/// Sends `request` in HTTP chunks of `size`; the status and body of the answer.
fn in_chunks(model: &str, request: &InferRequest, size: usize) -> (u16, Vec<u8>) {
    let (body, header_length) = request.http_body();
    let mut stream = TcpStream::connect(server().http_address()).unwrap();
    // In one piece: Triton 2.51 may read a wrong model name out of a request line that
    // comes in several, and it is the body's pieces that this is about.
    let head = format!(
        "POST /v2/models/{model}/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         transfer-encoding: chunked\r\ninference-header-content-length: {header_length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let (header, tensors) = body.split_at(header_length);
    for chunk in std::iter::once(header).chain(tensors.chunks(size)) {
        stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).unwrap();
        stream.write_all(chunk).unwrap();
        stream.write_all(b"\r\n").unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    (status, answer.split_off(end))
}

#[test]
fn an_input_in_many_pieces_is_read_whole() {
    let request = with_image(picture(300, 200, [120, 99, 200])).output("embedding");
    let whole = in_chunks("embed_image", &request, usize::MAX);
    assert_eq!(whole.0, 200);
    for size in [100, 4096] {
        assert_eq!(in_chunks("embed_image", &request, size), whole);
    }
}
