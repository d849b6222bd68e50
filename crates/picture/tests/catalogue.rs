//! Bad and unusual pictures, each with its expected answer.

mod common;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use common::{file, open, synthetic};
use imprompt_error::Kind;
use imprompt_picture::{Limits, Preprocessor, RgbImage8, Scratch, decode};
use std::time::{Duration, Instant};

/// Asserts a refusal of this input alone, and returns its text.
fn refused(bytes: &[u8], what: &str) -> String {
    let error = open(bytes).err().unwrap_or_else(|| panic!("{what} was accepted"));
    assert_eq!(error.kind(), Kind::InvalidInput, "{what}: {error}");
    let message = error.message().to_owned();
    assert!(
        message.starts_with("input `image`: ") && message.is_ascii() && message.len() < 200,
        "{message}"
    );
    assert!(!message.to_lowercase().contains("memory") && !message.contains("OOM"), "{message}");
    message
}

/// A PNG of these chunks.
fn png_of(chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    for (name, data) in chunks {
        out.extend(chunk_of(name, data));
    }
    out
}

fn chunk_of(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [&name[..], data].concat();
    let mut out = (data.len() as u32).to_be_bytes().to_vec();
    out.extend(&body);
    out.extend(crc32fast::hash(&body).to_be_bytes());
    out
}

fn header(width: u32, height: u32) -> (&'static [u8; 4], Vec<u8>) {
    let mut data = [width.to_be_bytes(), height.to_be_bytes()].concat();
    data.extend([8, 2, 0, 0, 0]);
    (b"IHDR", data)
}

#[test]
fn row_1_empty() {
    assert_eq!(refused(b"", "no bytes"), "input `image`: empty image");
    refused(b" \r\n", "blank");
    refused(b"\0\0\0\0", "zeros");
}

#[test]
fn row_2_truncated() {
    let names = [
        "coffee.jpg",
        "restarts.jpg",
        "progressive.jpg",
        "gray.jpg",
        "cmyk.jpg",
        "q95_444.jpg",
        "rgb.png",
        "palette4_interlaced.png",
        "photo.gif",
        "rgb.bmp",
        "palette8.bmp",
        "lossy.webp",
        "lossless.webp",
        "lossy_alpha.webp",
        "animated.webp",
    ];
    for name in names {
        let bytes = file(name);
        assert!(open(&bytes).is_ok(), "{name}");
        for percent in (1..100).chain([10, 50, 99]) {
            refused(&bytes[..bytes.len() * percent / 100], &format!("{percent} % of {name}"));
        }
        if !name.ends_with("gif") && !name.ends_with("webp") {
            refused(&bytes[..bytes.len() - 1], &format!("{name} less a byte"));
        }
    }
}

/// The same cut, hidden by an end-of-image marker: libjpeg would fill the rest with gray.
#[test]
fn row_2_jpeg_whose_scan_ends_early() {
    for name in ["coffee.jpg", "q85_420.jpg", "q95_444.jpg", "gray.jpg", "progressive.jpg"] {
        let bytes = file(name);
        for percent in [30, 50, 70, 85, 95] {
            let mut cut = bytes[..bytes.len() * percent / 100].to_vec();
            while cut.last() == Some(&0xff) {
                cut.pop();
            }
            cut.extend([0xff, 0xd9]);
            refused(&cut, &format!("{percent} % of {name} with an end"));
        }
    }
}

#[test]
fn row_5_and_8_huge_sides_are_refused_from_the_header() {
    let data = vec![0; 1 << 20];
    let huge = png_of(&[header(50_000, 50_000), (b"IDAT", data), (b"IEND", vec![])]);
    let mut jpeg = b"\xff\xd8\xff\xc0\x00\x11\x08".to_vec();
    jpeg.extend([65_500_u16.to_be_bytes(), 65_500_u16.to_be_bytes()].concat());
    jpeg.extend(b"\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01");
    let mut gif = b"GIF89a".to_vec();
    gif.extend([65_500_u16.to_le_bytes(), 65_500_u16.to_le_bytes()].concat());
    gif.extend(b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0;");
    let mut bmp = file("rgb.bmp");
    bmp[18..22].copy_from_slice(&40_000_u32.to_le_bytes());
    bmp[22..26].copy_from_slice(&40_000_u32.to_le_bytes());
    let mut webp = file("lossy_alpha.webp");
    webp[24..30].fill(0xff);
    for (bytes, name) in [(huge, "PNG"), (jpeg, "JPEG"), (gif, "GIF"), (bmp, "BMP"), (webp, "WebP")]
    {
        let before = peak_kibibytes();
        let start = Instant::now();
        let message = refused(&bytes, name);
        assert!(start.elapsed() < Duration::from_millis(50), "{name}: {:?}", start.elapsed());
        assert!(message.contains("16384 a side are allowed"), "{message}");
        assert!(peak_kibibytes() - before < 16 << 10, "{name}");
    }
    let area = png_of(&[header(16_000, 16_000), (b"IDAT", vec![]), (b"IEND", vec![])]);
    assert!(refused(&area, "256 million pixels").contains("67108864 in all are allowed"));
}

/// Peak resident memory of this process.
fn peak_kibibytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn row_7_broken_png() {
    let whole = file("rgb.png");
    for place in [20, 30, whole.len() / 2, whole.len() - 2] {
        let mut bytes = whole.clone();
        bytes[place] ^= 1;
        refused(&bytes, &format!("byte {place} changed"));
    }
    refused(&whole[..whole.len() - 12], "no IEND");
    let data = || (b"IDAT", vec![0x78, 0x9c, 3, 0, 0, 0, 0, 1]);
    let end = || (b"IEND", vec![]);
    refused(&png_of(&[header(0, 5), data(), end()]), "width 0");
    refused(&png_of(&[header(5, 0), data(), end()]), "height 0");
    refused(&png_of(&[header(1 << 31, 1), data(), end()]), "width 2^31");
    refused(&png_of(&[header(u32::MAX, u32::MAX), data(), end()]), "width 2^32 - 1");
    refused(&png_of(&[header(5, 5), data(), end()]), "no rows");
    refused(&png_of(&[header(5, 5), end()]), "no data");
    refused(&png_of(&[data(), header(5, 5), end()]), "no header first");
}

#[test]
fn row_9_one_pixel_sides() {
    let json = br#"{"image_processor_type": "CLIPImageProcessor"}"#;
    let preprocessor = Preprocessor::from_json(json).unwrap();
    let mut scratch = Scratch::default();
    for (name, width, height) in
        [("1x1.png", 1, 1), ("1x4000.png", 1, 4000), ("4000x1.png", 4000, 1)]
    {
        let image = open(&file(name)).unwrap();
        assert_eq!((image.width(), image.height()), (width, height));
        assert_eq!(image, synthetic("ramp", width, height));
        let mut out = vec![f32::NAN; preprocessor.output_len()];
        preprocessor.run(&image, &mut scratch, &mut out).unwrap();
        assert!(out.iter().all(|value| value.is_finite()), "{name}");
    }
}

#[test]
fn row_16_exif_that_says_nothing_is_ignored() {
    let plain = open(&file("orientation_1.jpg")).unwrap();
    for name in ["orientation_0.jpg", "orientation_9.jpg", "exif_broken.jpg"] {
        assert_eq!(open(&file(name)).unwrap(), plain, "{name}");
    }
    assert_eq!(open(&file("exif_64k.jpg")).unwrap().width(), 24);
}

#[test]
fn row_17_colour_profiles_are_ignored() {
    let plain = open(&file("q85_420.jpg")).unwrap();
    assert_eq!(open(&file("icc_p3.jpg")).unwrap(), plain);
    assert_eq!(open(&file("icc_corrupt.jpg")).unwrap(), plain);
}

#[test]
fn row_19_unsupported_jpeg() {
    let whole = file("q95_444.jpg");
    let frame = whole.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    for marker in [0xc3, 0xc5, 0xc6, 0xc7, 0xc9, 0xca, 0xcb, 0xcd, 0xce, 0xcf] {
        let mut bytes = whole.clone();
        bytes[frame + 1] = marker;
        assert!(refused(&bytes, "coding").contains("unsupported"), "{marker:x}");
    }
    let mut bytes = whole.clone();
    bytes[frame + 4] = 12;
    assert!(refused(&bytes, "12 bits").contains("unsupported JPEG of 12 bits"));
}

#[test]
fn row_20_only_the_first_frame_is_decoded() {
    const FRAMES: usize = 10_000;
    let mut gif = Vec::new();
    {
        let mut encoder = gif::Encoder::new(&mut gif, 128, 128, &[0, 0, 0, 255, 255, 255]).unwrap();
        for number in 0..FRAMES {
            let pixels = vec![u8::from(number > 0); 128 * 128];
            encoder.write_frame(&gif::Frame::from_indexed_pixels(128, 128, pixels, None)).unwrap();
        }
    }
    let webp = file("animated_offset.webp");
    let frames = webp.windows(4).position(|name| name == b"ANMF").unwrap();
    let frame = &webp[frames..frames + (webp.len() - frames) / 2];
    let mut animation = webp[..frames].to_vec();
    animation.extend(frame);
    // The others are not even pictures: whoever looked at one would fail.
    animation.extend([b"ANMF\x40\0\0\0".as_slice(), &[0xff; 64]].concat().repeat(FRAMES));
    let size = animation.len() as u32 - 8;
    animation[4..8].copy_from_slice(&size.to_le_bytes());
    let png = file("animated.png");
    let end = png.len() - 12;
    let mut apng = png[..end].to_vec();
    for number in 0..FRAMES as u32 {
        apng.extend(chunk_of(b"fdAT", &[&number.to_be_bytes()[..], &[0xff; 500]].concat()));
    }
    apng.extend(&png[end..]);
    for (bytes, first, name) in [
        (gif, RgbImage8::new(128, 128, vec![0; 128 * 128 * 3]).unwrap(), "GIF"),
        (animation, open(&webp).unwrap(), "WebP"),
        (apng, open(&png).unwrap(), "APNG"),
    ] {
        let start = Instant::now();
        assert_eq!(open(&bytes).unwrap(), first, "{name}");
        let seconds = start.elapsed().as_secs_f64();
        assert!(seconds < 0.25, "{name}: {seconds} s for {} bytes", bytes.len());
    }
}

#[test]
fn row_22_and_23_other_formats() {
    let others: [(&[u8], &str); 20] = [
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\xff\x0a\xfa\x7f\x01\x90\x08\x06", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL container"),
        (b"II*\0\x08\0\0\0\0\0", "TIFF"),
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (b"\0\0\x01\0\x01\0\x10\x10\0\0", "ICO"),
        (b"\0\0\x02\0\0\0\0\0\0\0\0\0\x10\0\x10\0\x18\0", "TGA"),
        (b"P6\n2 2\n255\n000000000000", "PNM"),
        (b"v/1\x01\x02\0\0\0", "EXR"),
        (b"8BPS\0\x01\0\0", "PSD"),
        (b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"PK\x03\x04\x14\0\0\0", "ZIP"),
        (b"\0\0\0\x20ftypisom\0\0\x02\0", "MP4"),
        (b"\x7fELF\x02\x01\x01\0", "ELF"),
        (b"just some words, ZOOM", "text"),
        (b"BMW is not a bitmap, however long the text is", "text"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "WAV"),
    ];
    for (bytes, name) in others {
        let message = refused(bytes, name);
        assert!(message.contains("not a picture of a supported format"), "{name}: {message}");
    }
    let message = refused(b"<htm", "HTML");
    assert!(message.ends_with("first bytes 3c 68 74 6d"), "{message}");
}

#[test]
fn row_25_to_28_text() {
    let bytes = file("q95_444.jpg");
    let picture = open(&bytes).unwrap();
    // A length of 3n + 1 or 3n + 2 makes padding matter.
    let bytes = [bytes, vec![0; 2]].concat();
    assert_ne!(bytes.len() % 3, 0);
    for engine in [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD] {
        let text = engine.encode(&bytes);
        assert_eq!(open(text.as_bytes()).unwrap(), picture);
        for (length, separator) in [(76, "\r\n"), (64, "\n"), (3, "\n")] {
            let lines: Vec<_> =
                text.as_bytes().chunks(length).map(|line| str::from_utf8(line).unwrap()).collect();
            assert_eq!(open(lines.join(separator).as_bytes()).unwrap(), picture);
            assert_eq!(open((lines.join(separator) + separator).as_bytes()).unwrap(), picture);
        }
        for start in [
            "data:image/jpeg;base64,",
            "DATA:Image/PNG;charset=utf-8;BASE64,",
            "data:image/x;base64,\n",
        ] {
            assert_eq!(open((start.to_owned() + &text).as_bytes()).unwrap(), picture, "{start}");
        }
    }
    let text = STANDARD.encode(&bytes);
    for (start, what) in [
        ("data:text/plain;base64,", "another media type"),
        ("data:;base64,", "no media type"),
        ("data:image/jpeg,", "not base64"),
        ("data:image/jpeg;base64", "no comma"),
        ("data:application/octet-stream;base64,", "another media type"),
    ] {
        refused((start.to_owned() + &text).as_bytes(), what);
    }
    refused(text.replacen('A', "*", 1).as_bytes(), "another alphabet");
    refused(text.replacen('A', "\u{e4}", 1).as_bytes(), "no ASCII");
    refused((text.clone() + "=====").as_bytes(), "too much padding");
    refused(("A".to_owned() + &text).as_bytes(), "shifted digits");
    refused(STANDARD.encode(&text).as_bytes(), "base64 of base64");
    refused(STANDARD.encode(b"hello there").as_bytes(), "base64 of words");
    refused(b"aGVsbG8", "base64 of words");
    refused(b"A", "one digit");
}

#[test]
fn row_27_and_31_the_limit_counts_bytes_as_received() {
    let bytes = file("q95_444.jpg");
    let limits = Limits { encoded_bytes: bytes.len(), ..Limits::default() };
    assert!(decode(&bytes, &limits).is_ok());
    let text = STANDARD.encode(&bytes);
    let error = decode(text.as_bytes(), &limits).unwrap_err();
    assert_eq!(
        error.message(),
        format!("input `image`: {} bytes, {} are allowed", text.len(), bytes.len())
    );
    let limits = Limits { encoded_bytes: bytes.len() - 1, ..Limits::default() };
    assert_eq!(decode(&bytes, &limits).unwrap_err().kind(), Kind::InvalidInput);

    // 20 MiB of comments in front of a small picture's tables, then one byte more.
    let comment = [&[0xff, 0xfe, 0xff, 0xff][..], &[b'x'; 65_533]].concat();
    let mut large = bytes[..2].to_vec();
    while large.len() + comment.len() + bytes.len() <= 20 << 20 {
        large.extend(&comment);
    }
    large.extend(&bytes[2..]);
    large.resize(20 << 20, 0);
    assert_eq!(open(&large).unwrap(), open(&bytes).unwrap());
    large.push(0);
    assert!(refused(&large, "20 MiB and a byte").contains("20971520 are allowed"));
}

#[test]
fn row_29_and_30_addresses_and_paths_are_not_opened() {
    for text in [
        "http://169.254.169.254/latest/meta-data/",
        "https://example.com/cat.jpg",
        "HTTPS://EXAMPLE.COM/CAT.JPG",
        "ftp://example.com/cat.jpg",
        "s3://bucket/cat.jpg",
        "file:///etc/passwd",
        "/etc/passwd",
        "../x.jpg",
        "cat.jpg",
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../goldens/picture/files/rgb.png"),
    ] {
        let message = refused(text.as_bytes(), text);
        assert!(message.contains("not a picture"), "{text}: {message}");
        assert!(!message.contains("example") && !message.contains("passwd"), "{message}");
    }
}

#[test]
fn row_33_extremes_give_finite_values() {
    let json = br#"{"image_processor_type": "BlipImageProcessor"}"#;
    let preprocessor = Preprocessor::from_json(json).unwrap();
    let mut out = vec![f32::NAN; preprocessor.output_len()];
    let black = RgbImage8::new(40, 30, vec![0; 3600]).unwrap();
    let white = RgbImage8::new(40, 30, vec![255; 3600]).unwrap();
    for image in [black, white, synthetic("noise", 500, 600), synthetic("blocks", 77, 41)] {
        preprocessor.run(&image, &mut Scratch::default(), &mut out).unwrap();
        assert!(out.iter().all(|value| value.is_finite() && value.abs() < 3.0));
    }
}
