//! A frame: its components, their blocks, and the way from blocks to RGB.

use super::transform::{Upsampling, cmyk_to_rgb, flat_level, inverse_dct, ycc_row, ycc_to_rgb};
use super::{broken, invalid};
use crate::simd::Simd;
use crate::{grow, zeros};
use imprompt_error::{Error, Result};

/// Colours of a file, decided as libjpeg does (`default_decompress_parms` of jdapimin.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colors {
    Gray,
    YCbCr,
    Rgb,
    Cmyk,
    Ycck,
}

impl Colors {
    pub(super) fn of(frame: &Frame, jfif: bool, adobe: Option<u8>) -> Result<Self> {
        let names: Vec<_> = frame.components.iter().map(|component| component.name).collect();
        match (names.as_slice(), adobe) {
            ([_], _) => Ok(Colors::Gray),
            ([_, _, _], _) if jfif => Ok(Colors::YCbCr),
            ([_, _, _], Some(0)) | ([b'R', b'G', b'B'], None) => Ok(Colors::Rgb),
            ([_, _, _], _) => Ok(Colors::YCbCr),
            ([_, _, _, _], Some(2)) => Ok(Colors::Ycck),
            ([_, _, _, _], _) => Ok(Colors::Cmyk),
            _ => Err(invalid(format_args!("unsupported JPEG of {} components", names.len()))),
        }
    }
}

/// One component of a frame.
pub(super) struct Component {
    pub(super) name: u8,
    /// Blocks of a unit (MCU), across and down.
    pub(super) across: usize,
    pub(super) down: usize,
    /// Number of its quantization table, and that table as of its first scan.
    pub(super) quantization_number: usize,
    pub(super) quantization: Option<[i16; 64]>,
    /// Samples that count.
    width: usize,
    height: usize,
    /// Blocks that hold those samples: what a scan of this component alone has.
    pub(super) blocks_across: usize,
    pub(super) blocks_down: usize,
    /// Blocks of a row with those that fill up the last unit.
    pub(super) row_blocks: usize,
    /// The levels of some rows of blocks: row `y` has the place `y % plane_blocks`.
    plane: Vec<u8>,
    plane_blocks: usize,
    /// Of a progressive frame, until its last scan: 64 numbers a block, natural order.
    pub(super) coefficients: Vec<i16>,
    /// And of each block a bit for every AC coefficient that is not 0, zigzag order: a scan passes
    /// most blocks without a look at their coefficients.
    pub(super) present: Vec<u64>,
}

impl Component {
    /// Memory for the levels of `blocks` rows of blocks.
    fn make_plane(&mut self, blocks: usize) -> Result<()> {
        self.plane_blocks = blocks;
        self.plane = zeros(blocks * self.row_blocks * 64, "a decoded picture")?;
        Ok(())
    }

    /// The samples of row `y`, or of the last row.
    pub(super) fn line(&self, y: usize) -> &[u8] {
        let place = y.min(self.height - 1) % (self.plane_blocks * 8);
        &self.plane[place * self.row_blocks * 8..][..self.width]
    }

    /// Puts the levels of block (`x`, `y`) in place. `flat`: only the first coefficient is not 0.
    pub(super) fn show(
        &mut self,
        (x, y): (usize, usize),
        (block, flat): (&[i16; 64], bool),
        simd: Simd,
    ) -> Result<()> {
        let quantization = self.quantization.as_ref().ok_or_else(|| broken("a missing table"))?;
        let stride = self.row_blocks * 8;
        let plane = &mut self.plane[y % self.plane_blocks * 8 * stride + x * 8..];
        if flat {
            let level = flat_level(block[0], quantization[0]);
            for row in plane.chunks_mut(stride).take(8) {
                row[..8].fill(level);
            }
        } else {
            inverse_dct(block, quantization, plane, (stride, simd));
        }
        Ok(())
    }
}

impl Component {
    /// Shows the blocks of a row of units of a progressive frame.
    fn show_coefficients(&mut self, unit: usize, simd: Simd) -> Result<()> {
        let coefficients = std::mem::take(&mut self.coefficients);
        let blocks = coefficients.as_chunks::<64>().0;
        let shown = (unit * self.down..(unit + 1) * self.down).try_for_each(|y| {
            (0..self.row_blocks).try_for_each(|x| {
                let number = y * self.row_blocks + x;
                let flat = self.present[number] == 0;
                self.show((x, y), (&blocks[number], flat), simd)
            })
        });
        self.coefficients = coefficients;
        shown
    }
}

/// A frame.
pub(super) struct Frame {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) progressive: bool,
    pub(super) components: Vec<Component>,
    /// Units of the whole frame.
    pub(super) units_across: usize,
    pub(super) units_down: usize,
    most_across: usize,
    most_down: usize,
    pub(super) colors: Colors,
    pub(super) simd: Simd,
    output: Output,
}

/// The picture as far as it is there, and buffers for its next row.
#[derive(Default)]
struct Output {
    pixels: Vec<u8>,
    rows: usize,
    upsampling: Vec<Upsampling>,
    buffers: [Vec<u8>; 4],
    sums: Vec<i16>,
    row: Vec<u8>,
}

/// Width and height of a frame header, whose samples must have 8 bits.
pub(super) fn sides(segment: &[u8]) -> Result<(usize, usize)> {
    let [precision, h1, h0, w1, w0, ..] = segment else {
        return Err(broken("its frame header is too short"));
    };
    if *precision != 8 {
        return Err(invalid(format_args!("unsupported JPEG of {precision} bits a sample")));
    }
    let side = |high, low| usize::from(u16::from_be_bytes([high, low]));
    Ok((side(*w1, *w0), side(*h1, *h0)))
}

impl Frame {
    /// A frame from its header's content, with memory for its samples.
    pub(super) fn new(progressive: bool, segment: &[u8]) -> Result<Self> {
        let (width, height) = sides(segment)?;
        let short = || broken("its frame header is too short");
        let count = usize::from(*segment.get(5).ok_or_else(short)?);
        let stated = segment.get(6..6 + count * 3).ok_or_else(short)?;
        if !(1..=4).contains(&count) {
            return Err(invalid(format_args!("unsupported JPEG of {count} components")));
        }
        let factors = |entry: &[u8]| (usize::from(entry[1] >> 4), usize::from(entry[1] & 15));
        let all = || stated.chunks_exact(3).map(factors);
        if all().any(|(across, down)| !(1..=4).contains(&across) || !(1..=4).contains(&down)) {
            return Err(broken("a sampling factor"));
        }
        let most_across = all().map(|factor| factor.0).max().unwrap_or(1);
        let most_down = all().map(|factor| factor.1).max().unwrap_or(1);
        if all().any(|(across, down)| most_across % across != 0 || most_down % down != 0) {
            return Err(invalid("unsupported JPEG of fractional sampling"));
        }
        let mut frame = Frame {
            width,
            height,
            progressive,
            components: Vec::new(),
            units_across: width.div_ceil(8 * most_across),
            units_down: height.div_ceil(8 * most_down),
            most_across,
            most_down,
            colors: Colors::Gray,
            simd: Simd::best(),
            output: Output::default(),
        };
        for entry in stated.chunks_exact(3) {
            let component = frame.component(entry, factors(entry))?;
            frame.components.push(component);
        }
        Ok(frame)
    }

    fn component(&self, entry: &[u8], (across, down): (usize, usize)) -> Result<Component> {
        let width = (self.width * across).div_ceil(self.most_across);
        let height = (self.height * down).div_ceil(self.most_down);
        let row_blocks = self.units_across * across;
        let blocks = row_blocks * self.units_down * down;
        let (mut coefficients, mut present) = (Vec::new(), Vec::new());
        if self.progressive {
            grow(&mut coefficients, blocks * 64, "a decoded picture")?;
            grow(&mut present, blocks, "a decoded picture")?;
        }
        Ok(Component {
            name: entry[0],
            across,
            down,
            quantization_number: usize::from(entry[2]),
            quantization: None,
            width,
            height,
            blocks_across: width.div_ceil(8),
            blocks_down: height.div_ceil(8),
            row_blocks,
            plane: Vec::new(),
            plane_blocks: 0,
            coefficients,
            present,
        })
    }

    /// True once all rows are there: later scans of a sequential frame say nothing.
    pub(super) fn is_complete(&self) -> bool {
        self.output.rows == self.height
    }

    /// Memory for the levels of a sequential frame's scan of `parts` components: of all rows, unless
    /// rows become pixels as they come.
    pub(super) fn begin_scan(&mut self, parts: usize) -> Result<()> {
        if self.progressive || !self.components[0].plane.is_empty() {
            return Ok(());
        }
        self.make_planes(if parts == self.components.len() { 2 } else { self.units_down })
    }

    fn make_planes(&mut self, units: usize) -> Result<()> {
        let units = units.min(self.units_down);
        self.components.iter_mut().try_for_each(|one| one.make_plane(units * one.down))?;
        let factors = |one: &Component| (self.most_across / one.across, self.most_down / one.down);
        let of = |one| Upsampling::of(factors(one), one.width);
        self.output.upsampling = self.components.iter().map(of).collect();
        self.output.row = zeros(self.width * 3, "a decoded picture")?;
        let bytes = self.width * self.height * 3;
        let reserved = self.output.pixels.try_reserve_exact(bytes);
        reserved.map_err(|_| Error::out_of_memory("a decoded picture"))
    }

    /// Makes pixels of the rows that the first `units` rows of units are enough for.
    pub(super) fn show_units(&mut self, units: usize) {
        let Output { pixels, rows, upsampling, buffers, sums, row } = &mut self.output;
        // The filter looks at the row below.
        let below = usize::from(self.most_down > 1);
        let end = if units == self.units_down {
            self.height
        } else {
            (units * 8 * self.most_down).saturating_sub(below)
        };
        for y in *rows..end {
            let mut lines = [&[][..]; 4];
            let parts = self.components.iter().zip(upsampling.iter()).zip(buffers.iter_mut());
            for (((component, upsampling), buffer), line) in parts.zip(&mut lines) {
                *line = upsampling.row(y, component, (buffer, sums), self.simd);
            }
            convert(self.colors, lines, self.simd, row);
            pixels.extend_from_slice(row);
        }
        *rows = end.max(*rows);
    }

    /// RGB bytes, once all scans are decoded.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        if self.components.iter().any(|component| component.quantization.is_none()) {
            return Err(broken("a component without a scan"));
        }
        if self.progressive {
            self.make_planes(2)?;
            for unit in 0..self.units_down {
                for component in &mut self.components {
                    component.show_coefficients(unit, self.simd)?;
                }
                self.show_units(unit + 1);
            }
        }
        self.show_units(self.units_down);
        Ok(self.output.pixels)
    }
}

fn convert(colors: Colors, [first, second, third, fourth]: [&[u8]; 4], simd: Simd, out: &mut [u8]) {
    if colors == Colors::YCbCr {
        return ycc_row([first, second, third], simd, out);
    }
    for (x, pixel) in out.chunks_exact_mut(3).enumerate() {
        let rgb = match colors {
            Colors::Gray => [first[x]; 3],
            Colors::Rgb => [first[x], second[x], third[x]],
            Colors::YCbCr => ycc_to_rgb(first[x], second[x], third[x]),
            Colors::Cmyk => cmyk_to_rgb([first[x], second[x], third[x]], fourth[x]),
            Colors::Ycck => {
                let inverted = ycc_to_rgb(first[x], second[x], third[x]).map(|level| 255 - level);
                cmyk_to_rgb(inverted, fourth[x])
            }
        };
        pixel.copy_from_slice(&rgb);
    }
}
