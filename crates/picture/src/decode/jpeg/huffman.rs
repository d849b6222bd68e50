//! Huffman tables and the bits of a scan.

use super::{ZIGZAG, broken};
use imprompt_error::{Error, Result};

/// Codes up to this length are decoded by one look-up, with the number after them where both
/// together are that short.
const FAST_BITS: u32 = 10;

/// Zeros behind the bytes of a segment: its last bytes are read eight at once as all others are.
const PADDING: usize = 8;

/// What a look-up gives: a symbol's run of zeros and, of its number, the value if its bits were
/// seen, else the size. 0 stands for a longer code.
#[derive(Clone, Copy, Default)]
struct Entry(u32);

impl Entry {
    fn new(length: u32, symbol: u8, value: i32) -> Self {
        let size = if value == 0 { u32::from(symbol & 15) } else { 0 };
        Entry((value as u32) << 16 | size << 12 | u32::from(symbol >> 4) << 8 | length)
    }

    /// Bits to pass over.
    fn length(self) -> u32 {
        self.0 & 0xff
    }

    fn run(self) -> usize {
        (self.0 >> 8 & 15) as usize
    }

    /// Size of a number whose bits come next.
    fn size(self) -> u32 {
        self.0 >> 12 & 15
    }

    /// The number; 0 where there is none, or its bits come next.
    fn value(self) -> i32 {
        self.0 as i32 >> 16
    }
}

/// A Huffman table.
pub(super) struct Table {
    fast: Box<[Entry; 1 << FAST_BITS]>,
    symbols: Vec<u8>,
    /// First code above those of each length, aligned to 16 bits; and what to add to a code
    /// of that length to get the place of its symbol.
    ends: [u32; 18],
    offsets: [i32; 17],
}

impl Table {
    /// A table from the counts of codes of length 1 to 16 and the symbols in order of code.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8]) -> Result<Self> {
        let mut table = Table {
            fast: Box::new([Entry::default(); 1 << FAST_BITS]),
            symbols: symbols.to_vec(),
            ends: [0; 18],
            offsets: [0; 17],
        };
        let (mut code, mut place) = (0_u32, 0_usize);
        for length in 1..=16_u32 {
            table.offsets[length as usize] = place as i32 - code as i32;
            for _ in 0..counts[length as usize - 1] {
                let symbol = *symbols.get(place).ok_or_else(|| broken("a Huffman table"))?;
                if code >= 1 << length {
                    return Err(broken("a Huffman table"));
                }
                if length <= FAST_BITS {
                    let rest = FAST_BITS - length;
                    let start = (code << rest) as usize;
                    let entries = &mut table.fast[start..start + (1 << rest)];
                    let size = u32::from(symbol & 15);
                    for (bits, entry) in entries.iter_mut().enumerate() {
                        *entry = if size > 0 && size <= rest {
                            let value = extend(bits as u32 >> (rest - size), size);
                            Entry::new(length + size, symbol, value)
                        } else {
                            Entry::new(length, symbol, 0)
                        };
                    }
                }
                code += 1;
                place += 1;
            }
            table.ends[length as usize] = code << (16 - length);
            code <<= 1;
        }
        table.ends[17] = u32::MAX;
        Ok(table)
    }

    /// The largest symbol, for tables whose symbols have a limit.
    pub(super) fn largest(&self) -> u8 {
        self.symbols.iter().copied().max().unwrap_or(0)
    }
}

#[cold]
fn too_long() -> Error {
    broken("a block of more than 64 numbers")
}

/// A number of `size` bits as JPEG stores it: the lower half is negative.
fn extend(bits: u32, size: u32) -> i32 {
    let below = u32::from(size > 0 && bits < 1 << (size - 1));
    bits as i32 - (((1 << size) - 1) * below) as i32
}

/// The next bits of a segment: what a loop keeps in registers.
#[derive(Clone, Copy, Default)]
pub(super) struct Reader {
    /// The first `count` bits, from the top, are still to be read; those that follow are zeros, or
    /// what they will be.
    buffer: u64,
    count: u32,
    /// Bytes of the segment that are in the buffer or read.
    position: usize,
}

impl Reader {
    /// Makes at least 56 bits available: more than a code and its number. Past the end they are 0.
    #[inline(always)]
    pub(super) fn refill(&mut self, segment: &[u8]) {
        let next = segment.get(self.position..).and_then(|rest| rest.first_chunk::<8>());
        let word = next.map_or(0, |bytes| u64::from_be_bytes(*bytes));
        self.buffer |= word.wrapping_shr(self.count);
        self.position = self.position.wrapping_add((63_u32.wrapping_sub(self.count) >> 3) as usize);
        self.count |= 56;
    }

    #[inline(always)]
    fn skip(&mut self, bits: u32) {
        self.buffer = self.buffer.wrapping_shl(bits);
        self.count = self.count.wrapping_sub(bits);
    }

    /// The next `bits` bits of those available.
    #[inline(always)]
    pub(super) fn take(&mut self, bits: u32) -> u32 {
        // In two steps, since there may be no bits at all.
        let value = (self.buffer >> 1).wrapping_shr(63_u32.wrapping_sub(bits)) as u32;
        self.skip(bits);
        value
    }

    #[inline(always)]
    fn peek(self, table: &Table) -> Entry {
        table.fast[(self.buffer >> (64 - FAST_BITS)) as usize]
    }

    /// The next bit alone, which need not be available.
    #[inline(always)]
    pub(super) fn bit(&mut self, segment: &[u8]) -> bool {
        if self.count == 0 {
            self.refill(segment);
        }
        self.take(1) == 1
    }

    /// The next symbol and its number, together at most 32 bits: a coefficient as [`Bits::coefficient`]
    /// gives it.
    #[inline(always)]
    pub(super) fn entry(&mut self, table: &Table) -> Result<(usize, i32)> {
        let mut entry = self.peek(table);
        if entry.value() == 0 && entry.length() == 0 {
            entry = self.long_entry(table)?;
        }
        self.skip(entry.length());
        if entry.value() != 0 {
            return Ok((entry.run(), entry.value()));
        }
        let size = entry.size();
        Ok((entry.run(), extend(self.take(size), size)))
    }

    #[cold]
    fn long_entry(self, table: &Table) -> Result<Entry> {
        let unknown = || broken("a code that its table does not have");
        let code = (self.buffer >> 48) as u32;
        let length = (1..17).find(|length| code < table.ends[*length]).ok_or_else(unknown)?;
        let place = (code >> (16 - length)) as i32 + table.offsets[length];
        let symbol = usize::try_from(place).ok().and_then(|place| table.symbols.get(place));
        Ok(Entry::new(length as u32, *symbol.ok_or_else(unknown)?, 0))
    }
}

/// The entropy-coded bits of a scan, from marker to marker.
pub(super) struct Bits<'a> {
    data: &'a [u8],
    /// Where the marker stands that ends the segment.
    place: usize,
    /// The bytes up to there, without the zeros that are stuffed in after FF; then [`PADDING`] zeros.
    segment: Vec<u8>,
    reader: Reader,
}

impl<'a> Bits<'a> {
    pub(super) fn new(data: &'a [u8], place: usize) -> Result<Self> {
        let mut segment = Vec::new();
        segment
            .try_reserve_exact(data.len().saturating_sub(place) + PADDING)
            .map_err(|_| Error::out_of_memory("a decoded picture"))?;
        let mut bits = Bits { data, place, segment, reader: Reader::default() };
        bits.start_segment();
        Ok(bits)
    }

    /// Reads from `place` on.
    fn start_segment(&mut self) {
        self.reader = Reader::default();
        self.segment.clear();
        loop {
            let rest = self.data.get(self.place..).unwrap_or_default();
            let length = memchr::memchr(0xff, rest).unwrap_or(rest.len());
            self.place += length;
            if rest.get(length + 1) != Some(&0) {
                self.segment.extend_from_slice(&rest[..length]);
                self.segment.extend([0; PADDING]);
                return;
            }
            self.segment.extend_from_slice(&rest[..=length]);
            self.place += 2;
        }
    }

    /// Where the data ends, as far as it was looked at: a marker.
    pub(super) fn place(&self) -> usize {
        self.place
    }

    /// Bits that are left; below 0 when bits were used that the segment does not have.
    fn left(&self) -> i64 {
        let used = self.reader.position as i64 * 8 - i64::from(self.reader.count);
        (self.segment.len() - PADDING) as i64 * 8 - used
    }

    /// An error once bits were used that the scan does not have.
    #[inline]
    pub(super) fn check(&self) -> Result<()> {
        if self.left() < 0 { Err(broken("a scan that ends early")) } else { Ok(()) }
    }

    /// The next `bits` bits, at most 16.
    #[inline]
    pub(super) fn take(&mut self, bits: u32) -> u32 {
        self.reader.refill(&self.segment);
        self.reader.take(bits)
    }

    /// The segment and its reader, for a loop that takes many; [`Self::put_back`] the reader then.
    #[inline]
    pub(super) fn reader(&self) -> (&[u8], Reader) {
        (&self.segment, self.reader)
    }

    #[inline]
    pub(super) fn put_back(&mut self, reader: Reader) {
        self.reader = reader;
    }

    /// A symbol that is a size, and the number of that size.
    #[inline]
    pub(super) fn difference(&mut self, table: &Table) -> Result<i32> {
        // Sizes are checked when a scan begins.
        self.coefficient(table).map(|(_, value)| value)
    }

    /// The run of zeros and the number after it: the next AC coefficient. Number 0 has a
    /// meaning of its own (run 15: 16 zeros; else the end of the block, or of many).
    #[inline]
    pub(super) fn coefficient(&mut self, table: &Table) -> Result<(usize, i32)> {
        self.reader.refill(&self.segment);
        self.reader.entry(table)
    }

    /// All AC coefficients of a block; true when there are none.
    pub(super) fn block(&mut self, table: &Table, block: &mut [i16; 64]) -> Result<bool> {
        // In registers all the while.
        let mut reader = self.reader;
        let mut place = 1_usize;
        let mut flat = true;
        'block: while place < 64 {
            reader.refill(&self.segment);
            // Two short codes with their numbers leave enough for a long one.
            for _ in 0..3 {
                let entry = reader.peek(table);
                let (run, value) = if entry.value() == 0 {
                    reader.entry(table)?
                } else {
                    reader.skip(entry.length());
                    (entry.run(), entry.value())
                };
                if value == 0 {
                    if run < 15 {
                        break 'block;
                    }
                    place = place.wrapping_add(16);
                    continue 'block;
                }
                place = place.wrapping_add(run);
                let natural = *ZIGZAG.get(place).ok_or_else(too_long)?;
                block[usize::from(natural & 63)] = value as i16;
                place = place.wrapping_add(1);
                flat = false;
                if entry.value() == 0 || place > 63 {
                    continue 'block;
                }
            }
        }
        self.reader = reader;
        Ok(flat)
    }

    /// Skips to the restart marker that must come next.
    pub(super) fn restart(&mut self, number: usize) -> Result<()> {
        self.check()?;
        // What was not used is a last byte's filling.
        if self.left() >= 8 {
            return Err(broken("a restart that is missing"));
        }
        while self.data.get(self.place + 1) == Some(&0xff) {
            self.place += 1;
        }
        let marker = self.data.get(self.place..).and_then(|rest| rest.first_chunk());
        if marker != Some(&[0xff, 0xd0 + (number % 8) as u8]) {
            return Err(broken("a restart that is missing"));
        }
        self.place += 2;
        self.start_segment();
        Ok(())
    }
}
