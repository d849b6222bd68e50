//! JPEG: baseline and progressive, 8 bits; gray, YCbCr, RGB, CMYK and YCCK.
//!
//! A picture that ends early is refused: decoders of the libjpeg family fill what is
//! missing with gray, and a model would describe that gray.

use super::{Limits, damaged, invalid, orientation};
use crate::{RgbImage8, zeros};
use imprompt_error::Result;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

/// What the markers say before any pixel is decoded.
#[derive(Default)]
struct Summary<'a> {
    width: usize,
    height: usize,
    /// Identifiers of the components, in the order of the frame.
    components: Vec<u8>,
    jfif: bool,
    /// The transform byte of an Adobe marker.
    adobe: Option<u8>,
    exif: Option<&'a [u8]>,
    /// Length up to and with the end-of-image marker; pictures may follow (a gain map, a thumbnail).
    length: usize,
}

/// Colours of a file, decided as libjpeg does (`default_decompress_parms` of jdapimin.c).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Colors {
    Gray,
    YCbCr,
    Rgb,
    Cmyk,
    Ycck,
}

impl Summary<'_> {
    fn colors(&self) -> Result<Colors> {
        match (self.components.as_slice(), self.adobe) {
            ([_], _) => Ok(Colors::Gray),
            ([_, _, _], _) if self.jfif => Ok(Colors::YCbCr),
            ([_, _, _], Some(0)) | ([b'R', b'G', b'B'], None) => Ok(Colors::Rgb),
            ([_, _, _], _) => Ok(Colors::YCbCr),
            ([_, _, _, _], Some(2)) => Ok(Colors::Ycck),
            ([_, _, _, _], _) => Ok(Colors::Cmyk),
            (other, _) => {
                Err(invalid(format_args!("unsupported JPEG of {} components", other.len())))
            }
        }
    }
}

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage8> {
    let summary = inspect(bytes, limits)?;
    let colors = summary.colors()?;
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(limits.side)
        .set_max_height(limits.side);
    let broken = |_| damaged("JPEG", "its image data cannot be decoded");
    let mut decoder =
        JpegDecoder::new_with_options(ZCursor::new(&bytes[..summary.length]), options);
    decoder.decode_headers().map_err(broken)?;
    let found = decoder.input_colorspace().ok_or_else(|| damaged("JPEG", "it has no frame"))?;
    // An Adobe marker sets this before the components are counted; the decoder mends it later.
    let found = match (found, summary.components.len()) {
        (ColorSpace::CMYK, 3) => ColorSpace::RGB,
        (ColorSpace::YCCK, 3) => ColorSpace::YCbCr,
        _ => found,
    };
    // Where the decoder's idea of the colours is ours, it converts; else it hands over
    // components as stored, and `convert` does the rest.
    let same = match colors {
        Colors::Gray => found == ColorSpace::Luma,
        Colors::YCbCr => found == ColorSpace::YCbCr,
        Colors::Rgb | Colors::Cmyk | Colors::Ycck => false,
    };
    let out = if same && colors == Colors::YCbCr { ColorSpace::RGB } else { found };
    decoder.set_options(decoder.options().jpeg_set_out_colorspace(out));
    let area = summary.width * summary.height;
    let mut stored = zeros(area * summary.components.len(), "a decoded picture")?;
    if decoder.output_buffer_size() != Some(stored.len()) {
        return Err(damaged("JPEG", "its frames differ"));
    }
    decoder.decode_into(&mut stored).map_err(broken)?;
    let pixels = match colors {
        Colors::YCbCr if same => stored,
        Colors::Rgb => stored,
        _ => {
            let mut pixels = zeros(area * 3, "a decoded picture")?;
            convert(&stored, colors, &mut pixels);
            pixels
        }
    };
    orientation::apply(RgbImage8::new(summary.width, summary.height, pixels)?, summary.exif)
}

/// Walks the markers from SOI to EOI.
fn inspect<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Summary<'a>> {
    let cut = || damaged("JPEG", "it ends before its end-of-image marker");
    let mut summary = Summary::default();
    let mut place = 2;
    loop {
        // To the next marker: anything but FF is skipped (also a scan's entropy-coded data), and
        // so are FF 00 (a stuffed byte), repeated FF (fill) and restarts.
        let found = bytes[place..].iter().position(|byte| *byte == 0xff).ok_or_else(cut)?;
        place += found + 1;
        let marker = *bytes.get(place).ok_or_else(cut)?;
        match marker {
            0xff => continue,
            0x00 | 0x01 | 0xd0..=0xd8 => {
                place += 1;
                continue;
            }
            0xd9 => {
                summary.length = place + 1;
                break;
            }
            _ => place += 1,
        }
        let length = bytes.get(place..place + 2).ok_or_else(cut)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let segment = bytes.get(place..place + length).ok_or_else(cut)?;
        let segment = segment.get(2..).ok_or_else(|| damaged("JPEG", "a segment is too short"))?;
        read_segment(marker, segment, &mut summary, limits)?;
        place += length;
    }
    if summary.components.is_empty() {
        return Err(damaged("JPEG", "it has no frame"));
    }
    Ok(summary)
}

fn read_segment<'a>(
    marker: u8,
    segment: &'a [u8],
    summary: &mut Summary<'a>,
    limits: &Limits,
) -> Result<()> {
    match marker {
        0xc0..=0xc2 => {
            if !summary.components.is_empty() {
                return Err(damaged("JPEG", "it has two frames"));
            }
            let [precision, h1, h0, w1, w0, count, components @ ..] = segment else {
                return Err(damaged("JPEG", "its frame header is too short"));
            };
            if *precision != 8 {
                return Err(invalid(format_args!("unsupported JPEG of {precision} bits a sample")));
            }
            summary.width = usize::from(u16::from_be_bytes([*w1, *w0]));
            summary.height = usize::from(u16::from_be_bytes([*h1, *h0]));
            limits.check(summary.width, summary.height)?;
            summary.components =
                components.chunks_exact(3).take(usize::from(*count)).map(|c| c[0]).collect();
            if summary.components.len() != usize::from(*count) || *count == 0 {
                return Err(damaged("JPEG", "its frame header is too short"));
            }
        }
        0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf | 0xf7 => {
            return Err(invalid(
                "unsupported JPEG: lossless, hierarchical or arithmetic coding; \
                 baseline and progressive are supported",
            ));
        }
        0xe0 if segment.starts_with(b"JFIF\0") => summary.jfif = true,
        0xe1 if segment.starts_with(b"Exif\0\0") && summary.exif.is_none() => {
            summary.exif = Some(segment);
        }
        0xee if segment.starts_with(b"Adobe") && segment.len() >= 12 => {
            summary.adobe = Some(segment[11]);
        }
        _ => {}
    }
    Ok(())
}

/// Components as stored to RGB, as libjpeg's jdcolor.c and Pillow's Convert.c do.
fn convert(stored: &[u8], colors: Colors, pixels: &mut [u8]) {
    let step = match colors {
        Colors::Gray => 1,
        Colors::YCbCr | Colors::Rgb => 3,
        Colors::Cmyk | Colors::Ycck => 4,
    };
    for (pixel, stored) in pixels.chunks_exact_mut(3).zip(stored.chunks_exact(step)) {
        let rgb = match colors {
            Colors::Gray => [stored[0]; 3],
            Colors::Rgb => [stored[0], stored[1], stored[2]],
            Colors::YCbCr => ycc_to_rgb(stored),
            Colors::Cmyk => cmyk_to_rgb([stored[0], stored[1], stored[2]], stored[3]),
            Colors::Ycck => cmyk_to_rgb(ycc_to_rgb(stored).map(|level| 255 - level), stored[3]),
        };
        pixel.copy_from_slice(&rgb);
    }
}

/// jdcolor.c: 16 fractional bits, green's two terms rounded together.
fn ycc_to_rgb(stored: &[u8]) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let y = i32::from(stored[0]);
    let (cb, cr) = (i32::from(stored[1]) - 128, i32::from(stored[2]) - 128);
    let red = y + ((91_881 * cr + HALF) >> 16);
    let green = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
    let blue = y + ((116_130 * cb + HALF) >> 16);
    [red, green, blue].map(|level| level.clamp(0, 255) as u8)
}

/// Pillow takes every CMYK JPEG as Adobe writes it, inverted (`CMYK;I`), then multiplies
/// (`cmyk2rgb` of Convert.c, `MULDIV255`).
fn cmyk_to_rgb(inverted: [u8; 3], inverted_key: u8) -> [u8; 3] {
    let white = i32::from(inverted_key);
    inverted.map(|level| {
        let product = i32::from(255 - level) * white + 128;
        (white - (((product >> 8) + product) >> 8)).clamp(0, 255) as u8
    })
}
