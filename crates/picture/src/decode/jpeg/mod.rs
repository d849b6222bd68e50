//! JPEG: baseline, extended and progressive, Huffman-coded, 8 bits; gray, YCbCr, RGB, CMYK and
//! YCCK. The result has the bytes that libjpeg-turbo 2.1.5 gives through Pillow 10.0.0 (accurate
//! integer DCT, "fancy" upsampling), which no decoder library in Rust does.
//!
//! A picture that ends early is refused: decoders of the libjpeg family fill what is
//! missing with gray, and a model would describe that gray.

mod frame;
mod huffman;
mod scan;
mod transform;

use super::{Limits, damaged, invalid, orientation};
use crate::RgbImage8;
use frame::{Colors, Frame};
use huffman::Table;
use imprompt_error::{Error, Result};

/// Most scans of a file: encoders write about 10, and each may visit every block.
const MOST_SCANS: usize = 100;

/// Places of 64 coefficients in the order of the file: from zigzag to natural order.
#[rustfmt::skip]
const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61,
    54, 47, 55, 62, 63,
];

fn broken(what: &str) -> Error {
    damaged("JPEG", what)
}

/// Tables in force, by their numbers in the file.
#[derive(Default)]
struct Tables {
    quantization: [Option<[i16; 64]>; 4],
    dc: [Option<Table>; 4],
    ac: [Option<Table>; 4],
    /// Units between two restart markers; 0 for none.
    restart_interval: usize,
}

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage8> {
    let summary = inspect(bytes, limits)?;
    let header = summary.frame.ok_or_else(|| broken("it has no frame"))?;
    let mut frame = Frame::new(header.progressive, header.segment)?;
    frame.colors = Colors::of(&frame, summary.jfif, summary.adobe)?;
    let mut tables = Tables::default();
    let mut segments = Segments { bytes: &bytes[..summary.length], place: 2 };
    let mut scans = 0;
    while let Some((marker, segment)) = segments.next()? {
        match marker {
            0xc4 => read_huffman(segment, &mut tables)?,
            0xdb => read_quantization(segment, &mut tables)?,
            0xdd => {
                let interval = segment.first_chunk().ok_or_else(|| broken("a restart interval"))?;
                tables.restart_interval = usize::from(u16::from_be_bytes(*interval));
            }
            0xda if frame.is_complete() => {}
            0xda => {
                scans += 1;
                if scans > MOST_SCANS {
                    return Err(broken("too many scans"));
                }
                segments.place =
                    scan::decode(&mut frame, segment, &tables, segments.bytes, segments.place)?;
            }
            _ => {}
        }
    }
    let (width, height) = (frame.width, frame.height);
    orientation::apply(RgbImage8::new(width, height, frame.finish()?)?, summary.exif)
}

/// What the markers say before anything is decoded.
#[derive(Default)]
struct Summary<'a> {
    frame: Option<FrameHeader<'a>>,
    jfif: bool,
    /// The transform byte of an Adobe marker.
    adobe: Option<u8>,
    exif: Option<&'a [u8]>,
    /// Length up to and with the end-of-image marker; pictures may follow (a gain map, a thumbnail).
    length: usize,
}

struct FrameHeader<'a> {
    progressive: bool,
    segment: &'a [u8],
}

/// Marker segments from `place` on. Entropy-coded data in between is skipped: it is anything but
/// FF, or FF 00 (a stuffed byte), or a restart.
struct Segments<'a> {
    bytes: &'a [u8],
    place: usize,
}

impl<'a> Segments<'a> {
    /// The next marker and what follows its length; nothing at the end-of-image marker, which
    /// leaves `place` behind it.
    fn next(&mut self) -> Result<Option<(u8, &'a [u8])>> {
        let cut = || broken("it ends before its end-of-image marker");
        loop {
            let rest = self.bytes.get(self.place..).ok_or_else(cut)?;
            self.place += memchr::memchr(0xff, rest).ok_or_else(cut)? + 1;
            match *self.bytes.get(self.place).ok_or_else(cut)? {
                0xff => {}
                0x00 | 0x01 | 0xd0..=0xd8 => self.place += 1,
                0xd9 => {
                    self.place += 1;
                    return Ok(None);
                }
                marker => {
                    let rest = &self.bytes[self.place + 1..];
                    let length =
                        usize::from(u16::from_be_bytes(*rest.first_chunk().ok_or_else(cut)?));
                    let segment = rest.get(..length).ok_or_else(cut)?;
                    self.place += 1 + length;
                    let segment =
                        segment.get(2..).ok_or_else(|| broken("a segment without content"))?;
                    return Ok(Some((marker, segment)));
                }
            }
        }
    }
}

/// Walks the markers from SOI to EOI: sides are checked, and unsupported kinds and cut files
/// refused, before a pixel's memory is taken.
fn inspect<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Summary<'a>> {
    let mut summary = Summary::default();
    let mut segments = Segments { bytes, place: 2 };
    while let Some((marker, segment)) = segments.next()? {
        match marker {
            0xc0..=0xc2 => {
                if summary.frame.is_some() {
                    return Err(broken("it has two frames"));
                }
                let (width, height) = frame::sides(segment)?;
                limits.check(width, height)?;
                summary.frame = Some(FrameHeader { progressive: marker == 0xc2, segment });
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
    }
    summary.length = segments.place;
    Ok(summary)
}

fn read_quantization(mut segment: &[u8], tables: &mut Tables) -> Result<()> {
    let short = || broken("a quantization table");
    while let Some((kind, rest)) = segment.split_first() {
        let table = tables.quantization.get_mut(usize::from(kind & 15)).ok_or_else(short)?;
        let size = if kind >> 4 == 0 { 1 } else { 2 };
        let (values, rest) = rest.split_at_checked(64 * size).ok_or_else(short)?;
        let mut steps = [0; 64];
        for (value, place) in values.chunks_exact(size).zip(ZIGZAG) {
            let step = value.iter().fold(0_u16, |step, byte| step << 8 | u16::from(*byte));
            // libjpeg's multipliers are 16 bits with a sign.
            steps[usize::from(place)] = step as i16;
        }
        *table = Some(steps);
        segment = rest;
    }
    Ok(())
}

fn read_huffman(mut segment: &[u8], tables: &mut Tables) -> Result<()> {
    let short = || broken("a Huffman table");
    while let Some((kind, rest)) = segment.split_first() {
        let (counts, rest) = rest.split_first_chunk::<16>().ok_or_else(short)?;
        let total = counts.iter().map(|count| usize::from(*count)).sum();
        let (symbols, rest) = rest.split_at_checked(total).ok_or_else(short)?;
        let class = match kind >> 4 {
            0 => &mut tables.dc,
            1 => &mut tables.ac,
            _ => return Err(short()),
        };
        *class.get_mut(usize::from(kind & 15)).ok_or_else(short)? =
            Some(Table::new(counts, symbols)?);
        segment = rest;
    }
    Ok(())
}
