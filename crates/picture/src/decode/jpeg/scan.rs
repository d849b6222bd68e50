//! One scan: Huffman-coded blocks, sequential or a step of a progressive frame
//! (ITU-T T.81, F.2 and G.2; libjpeg's jdhuff.c and jdphuff.c).

use super::frame::{Component, Frame};
use super::huffman::{Bits, Reader, Table};
use super::{Tables, ZIGZAG, broken};
use crate::simd::Simd;
use imprompt_error::Result;

/// What the scan's header says.
struct Scan<'a> {
    /// Places in the frame's components, with their tables.
    parts: Vec<Part<'a>>,
    progressive: bool,
    /// First and last coefficient, in zigzag order.
    first: usize,
    last: usize,
    /// Bits left out: before this scan (0 for none sent yet), and still after it.
    high: u32,
    low: u32,
}

struct Part<'a> {
    component: usize,
    dc: Option<&'a Table>,
    ac: Option<&'a Table>,
    /// The last DC coefficient, of which the next is the difference.
    previous: i32,
}

/// Decodes the scan whose header is `segment` and whose data starts at `place`; gives the
/// place where the data ends.
pub(super) fn decode(
    frame: &mut Frame,
    segment: &[u8],
    tables: &Tables,
    bytes: &[u8],
    place: usize,
) -> Result<usize> {
    let mut scan = Scan::read(frame, segment, tables)?;
    let mut bits = Bits::new(bytes, place)?;
    frame.begin_scan(scan.parts.len())?;
    // A scan of one component has its blocks in rows; of several, in units of the frame.
    let alone = scan.parts.len() == 1;
    let (columns, rows) = if alone {
        let component = &frame.components[scan.parts[0].component];
        (component.blocks_across, component.blocks_down)
    } else {
        (frame.units_across, frame.units_down)
    };
    // With all of a sequential frame's components at hand, rows become pixels as they come.
    let streams = !frame.progressive && scan.parts.len() == frame.components.len();
    let rows_a_unit = if alone { frame.components[scan.parts[0].component].down } else { 1 };
    let mut blocks = Blocks { bits: &mut bits, simd: frame.simd, end_run: 0 };
    let (mut left, mut restarts) = (tables.restart_interval, 0);
    for row in 0..rows {
        for column in 0..columns {
            if tables.restart_interval > 0 {
                if left == 0 {
                    blocks.restart(&mut scan, restarts)?;
                    restarts += 1;
                    left = tables.restart_interval;
                }
                left -= 1;
            }
            for number in 0..scan.parts.len() {
                let component = &mut frame.components[scan.parts[number].component];
                let (across, down) =
                    if alone { (1, 1) } else { (component.across, component.down) };
                for y in row * down..(row + 1) * down {
                    for x in column * across..(column + 1) * across {
                        blocks.decode(&mut scan, number, component, (x, y))?;
                    }
                }
            }
        }
        blocks.bits.check()?;
        if streams {
            frame.show_units(if row + 1 == rows {
                frame.units_down
            } else {
                (row + 1) / rows_a_unit
            });
        }
    }
    Ok(bits.place())
}

impl<'a> Scan<'a> {
    fn read(frame: &mut Frame, segment: &[u8], tables: &'a Tables) -> Result<Self> {
        let wrong = || broken("a scan header");
        let (count, rest) = segment.split_first().ok_or_else(wrong)?;
        let (stated, rest) = rest.split_at_checked(usize::from(*count) * 2).ok_or_else(wrong)?;
        let [first, last, bits, ..] = *rest else { return Err(wrong()) };
        let (first, last) = (usize::from(first), usize::from(last));
        let (high, low) = (u32::from(bits >> 4), u32::from(bits & 15));
        let mut parts: Vec<Part> = Vec::new();
        for entry in stated.chunks_exact(2) {
            let component =
                frame.components.iter().position(|one| one.name == entry[0]).ok_or_else(wrong)?;
            if parts.iter().any(|part| part.component == component) {
                return Err(wrong());
            }
            let table = |class: &'a [Option<Table>; 4], number: u8| {
                class.get(usize::from(number)).and_then(Option::as_ref)
            };
            let (dc, ac) = (table(&tables.dc, entry[1] >> 4), table(&tables.ac, entry[1] & 15));
            parts.push(Part { component, dc, ac, previous: 0 });
        }
        let scan = if frame.progressive {
            Scan { parts, progressive: true, first, last, high, low }
        } else {
            // libjpeg ignores what a sequential frame's scans say here.
            Scan { parts, progressive: false, first: 0, last: 63, high: 0, low: 0 }
        };
        scan.check(frame)?;
        for part in &scan.parts {
            let component = &mut frame.components[part.component];
            if component.quantization.is_none() {
                let table = tables.quantization.get(component.quantization_number);
                component.quantization = table.copied().flatten();
            }
            if component.quantization.is_none() {
                return Err(broken("a missing quantization table"));
            }
        }
        Ok(scan)
    }

    /// That the header is one of T.81's, and its tables are there.
    fn check(&self, frame: &Frame) -> Result<()> {
        let wrong = || broken("a scan header");
        let unit: usize = self
            .parts
            .iter()
            .map(|part| &frame.components[part.component])
            .map(|component| component.across * component.down)
            .sum();
        let several = self.parts.len() > 1;
        let mixed = frame.progressive && self.first == 0 && self.last > 0;
        if self.parts.is_empty() || (several && (unit > 10 || self.first > 0)) || mixed {
            return Err(wrong());
        }
        if self.last > 63
            || self.first > self.last
            || self.low > 13
            || (self.high > 0 && self.high != self.low + 1)
        {
            return Err(wrong());
        }
        let needs_dc = self.first == 0 && self.high == 0;
        let needs_ac = self.last > 0;
        for part in &self.parts {
            let lacks_dc = needs_dc && part.dc.is_none_or(|table| table.largest() > 15);
            if lacks_dc || (needs_ac && part.ac.is_none()) {
                return Err(broken("a missing Huffman table"));
            }
        }
        Ok(())
    }
}

/// The blocks of a scan.
struct Blocks<'a, 'b> {
    bits: &'b mut Bits<'a>,
    simd: Simd,
    /// Blocks whose band ends at once, still to come.
    end_run: u32,
}

impl Blocks<'_, '_> {
    fn restart(&mut self, scan: &mut Scan, number: usize) -> Result<()> {
        self.bits.restart(number)?;
        self.end_run = 0;
        for part in &mut scan.parts {
            part.previous = 0;
        }
        Ok(())
    }

    fn decode(
        &mut self,
        scan: &mut Scan,
        number: usize,
        component: &mut Component,
        (x, y): (usize, usize),
    ) -> Result<()> {
        let (low, progressive) = (scan.low, scan.progressive);
        let part = &mut scan.parts[number];
        if !progressive {
            let mut block = [0; 64];
            let flat = self.sequential(part, &mut block)?;
            return component.show((x, y), (&block, flat), self.simd);
        }
        let number = y * component.row_blocks + x;
        let outside = || broken("a block outside its picture");
        let block = component.coefficients[number * 64..].first_chunk_mut().ok_or_else(outside)?;
        let present = component.present.get_mut(number).ok_or_else(outside)?;
        match (scan.first, scan.high) {
            (0, 0) => block[0] = (self.next_dc(part)? << low) as i16,
            (0, _) => block[0] |= (self.bits.take(1) << low) as i16,
            (_, 0) => self.band(part.ac, (scan.first, scan.last, low), (block, present))?,
            _ => self.refine(part.ac, (scan.first, scan.last, low), (block, present))?,
        }
        Ok(())
    }

    #[inline]
    fn next_dc(&mut self, part: &mut Part) -> Result<i32> {
        let table = part.dc.ok_or_else(|| broken("a missing Huffman table"))?;
        part.previous = part.previous.wrapping_add(self.bits.difference(table)?);
        Ok(part.previous)
    }

    /// A whole block; true when only its first coefficient is not 0.
    fn sequential(&mut self, part: &mut Part, block: &mut [i16; 64]) -> Result<bool> {
        block[0] = self.next_dc(part)? as i16;
        let table = part.ac.ok_or_else(|| broken("a missing Huffman table"))?;
        self.bits.block(table, block)
    }

    /// First bits of a band of AC coefficients.
    fn band(
        &mut self,
        table: Option<&Table>,
        (first, last, low): (usize, usize, u32),
        (block, present): (&mut [i16; 64], &mut u64),
    ) -> Result<()> {
        if self.end_run > 0 {
            self.end_run -= 1;
            return Ok(());
        }
        let table = table.ok_or_else(|| broken("a missing Huffman table"))?;
        let (segment, mut reader) = self.bits.reader();
        let mut place = first;
        while place <= last {
            reader.refill(segment);
            let (run, value) = reader.entry(table)?;
            if value == 0 {
                if run < 15 {
                    self.end_run = (1 << run) - 1 + reader.take(run as u32);
                    break;
                }
                place += 16;
                continue;
            }
            place += run;
            let natural =
                ZIGZAG.get(place).ok_or_else(|| broken("a block of more than 64 numbers"))?;
            block[usize::from(*natural & 63)] = (value << low) as i16;
            *present |= 1 << place;
            place += 1;
        }
        self.bits.put_back(reader);
        Ok(())
    }

    /// One more bit of a band: of its known coefficients, and new ones of that size.
    fn refine(
        &mut self,
        table: Option<&Table>,
        (first, last, low): (usize, usize, u32),
        (block, present): (&mut [i16; 64], &mut u64),
    ) -> Result<()> {
        let table = table.ok_or_else(|| broken("a missing Huffman table"))?;
        let (segment, mut reader) = self.bits.reader();
        let mut place = first;
        if self.end_run == 0 {
            while place <= last {
                reader.refill(segment);
                let (run, value) = reader.entry(table)?;
                if value == 0 && run < 15 {
                    self.end_run = (1 << run) + reader.take(run as u32);
                    break;
                }
                if value.abs() > 1 {
                    return Err(broken("a refinement of more than a bit"));
                }
                let band = (place, last, low);
                place = skip_zeros((segment, &mut reader), band, run, (block, *present));
                if value != 0 {
                    let natural = *ZIGZAG
                        .get(place)
                        .filter(|_| place <= last)
                        .ok_or_else(|| broken("a block of more than 64 numbers"))?;
                    block[usize::from(natural & 63)] = (value << low) as i16;
                    *present |= 1 << place;
                }
                place += 1;
            }
        }
        if self.end_run > 0 {
            skip_zeros((segment, &mut reader), (place, last, low), 64, (block, *present));
            self.end_run -= 1;
        }
        self.bits.put_back(reader);
        Ok(())
    }
}

/// Passes `zeros` coefficients that are still 0, and refines all others on the way; gives
/// the place of the zero after them, or one behind `last`.
#[inline]
fn skip_zeros(
    (segment, reader): (&[u8], &mut Reader),
    (mut place, last, low): (usize, usize, u32),
    mut zeros: usize,
    (block, present): (&mut [i16; 64], u64),
) -> usize {
    while place <= last {
        // Zeros up to the next known coefficient.
        let gap = ((present >> place).trailing_zeros() as usize).min(last + 1 - place);
        if gap > zeros {
            return place + zeros;
        }
        zeros -= gap;
        place += gap;
        if place > last {
            break;
        }
        let value = &mut block[usize::from(ZIGZAG[place] & 63)];
        if reader.bit(segment) && *value & (1 << low) == 0 {
            *value = value.wrapping_add(if *value > 0 { 1 << low } else { -(1 << low) });
        }
        place += 1;
    }
    place
}
