//! Huffman tables and the bits of a scan.

use super::broken;
use imprompt_error::Result;

/// Codes up to this length are decoded by one look-up.
const FAST_BITS: u32 = 9;
/// Marks a look-up that needs the long way.
const SLOW: u16 = 0;

/// A Huffman table.
pub(super) struct Table {
    /// `length << 8 | symbol` of the code that begins so; 0 for longer codes.
    fast: Vec<u16>,
    /// `value << 8 | run << 4 | length` when code and value together are that short; 0 if not.
    fast_values: Vec<i16>,
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
            fast: vec![SLOW; 1 << FAST_BITS],
            fast_values: vec![0; 1 << FAST_BITS],
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
                    let start = (code << (FAST_BITS - length)) as usize;
                    let run = 1 << (FAST_BITS - length);
                    table.fast[start..start + run].fill((length << 8) as u16 | u16::from(symbol));
                }
                code += 1;
                place += 1;
            }
            table.ends[length as usize] = code << (16 - length);
            code <<= 1;
        }
        table.ends[17] = u32::MAX;
        table.fill_values();
        Ok(table)
    }

    /// The values that follow short codes of AC coefficients.
    fn fill_values(&mut self) {
        for (bits, (fast, value)) in self.fast.iter().zip(&mut self.fast_values).enumerate() {
            let (length, symbol) = (u32::from(fast >> 8), fast & 0xff);
            let (run, size) = (i32::from(symbol >> 4), u32::from(symbol & 15));
            if length == 0 || size == 0 || length + size > FAST_BITS {
                continue;
            }
            let extra = (bits as u32 >> (FAST_BITS - length - size)) & ((1 << size) - 1);
            let number = extend(extra, size);
            if (-128..128).contains(&number) {
                *value = (number << 8 | run << 4 | (length + size) as i32) as i16;
            }
        }
    }

    /// The largest symbol, for tables whose symbols have a limit.
    pub(super) fn largest(&self) -> u8 {
        self.symbols.iter().copied().max().unwrap_or(0)
    }
}

/// A number of `size` bits as JPEG stores it: the lower half is negative.
fn extend(bits: u32, size: u32) -> i32 {
    let below = u32::from(size > 0 && bits < 1 << (size - 1));
    bits as i32 - (((1 << size) - 1) * below) as i32
}

/// The entropy-coded bits of a scan, up to the next marker.
pub(super) struct Bits<'a> {
    data: &'a [u8],
    place: usize,
    /// The last `count` bits are still to be read.
    buffer: u64,
    count: u32,
    /// How many of them are zeros put in past the end.
    padding: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(data: &'a [u8], place: usize) -> Self {
        Bits { data, place, buffer: 0, count: 0, padding: 0 }
    }

    /// Where the data of the scan ends, or will be read next.
    pub(super) fn place(&self) -> usize {
        self.place
    }

    /// Makes at least 32 bits available: a code and its value.
    #[inline]
    fn refill(&mut self) {
        if self.count >= 32 {
            return;
        }
        if let Some(bytes) = self.data.get(self.place..).and_then(|rest| rest.first_chunk::<4>()) {
            let word = u32::from_be_bytes(*bytes);
            // No byte is FF: none of the complement's is zero.
            let inverse = !word;
            if inverse.wrapping_sub(0x0101_0101) & !inverse & 0x8080_8080 == 0 {
                self.buffer = self.buffer << 32 | u64::from(word);
                self.count += 32;
                self.place += 4;
                return;
            }
        }
        self.refill_bytes();
    }

    #[cold]
    fn refill_bytes(&mut self) {
        while self.count <= 48 {
            let byte = match (self.data.get(self.place), self.data.get(self.place + 1)) {
                (Some(0xff), Some(0)) => {
                    self.place += 2;
                    0xff
                }
                (Some(0xff), _) | (None, _) => {
                    self.padding += 8;
                    0
                }
                (Some(byte), _) => {
                    self.place += 1;
                    *byte
                }
            };
            self.buffer = self.buffer << 8 | u64::from(byte);
            self.count += 8;
        }
    }

    #[inline]
    fn peek(&self, bits: u32) -> u32 {
        (self.buffer >> (self.count - bits)) as u32 & ((1 << bits) - 1)
    }

    /// An error once bits were used that the scan does not have.
    #[inline]
    pub(super) fn check(&self) -> Result<()> {
        if self.count < self.padding { Err(broken("a scan that ends early")) } else { Ok(()) }
    }

    /// The next `bits` bits, at most 16.
    #[inline]
    pub(super) fn take(&mut self, bits: u32) -> u32 {
        self.refill();
        let value = self.peek(bits);
        self.count -= bits;
        value
    }

    /// The next symbol.
    #[inline]
    pub(super) fn symbol(&mut self, table: &Table) -> Result<u8> {
        self.refill();
        let fast = table.fast[self.peek(FAST_BITS) as usize];
        if fast != SLOW {
            self.count -= u32::from(fast >> 8);
            return Ok(fast as u8);
        }
        self.long_symbol(table)
    }

    fn long_symbol(&mut self, table: &Table) -> Result<u8> {
        let code = self.peek(16);
        let longer = (1..17).find(|length| code < table.ends[*length]);
        let length = longer.ok_or_else(|| broken("a code that its table does not have"))?;
        let place = (code >> (16 - length)) as i32 + table.offsets[length];
        self.count -= length as u32;
        let symbol = usize::try_from(place).ok().and_then(|place| table.symbols.get(place));
        symbol.copied().ok_or_else(|| broken("a code that its table does not have"))
    }

    /// A symbol that is a size, and the number of that size.
    #[inline]
    pub(super) fn difference(&mut self, table: &Table) -> Result<i32> {
        let size = u32::from(self.symbol(table)?);
        // Sizes are checked when a scan begins; a value fits what `refill` left.
        let bits = self.peek(size);
        self.count -= size;
        Ok(extend(bits, size))
    }

    /// The run of zeros and the number after it: the next AC coefficient. Number 0 has a
    /// meaning of its own (run 15: 16 zeros; else the end of the block, or of many).
    #[inline]
    pub(super) fn coefficient(&mut self, table: &Table) -> Result<(usize, i32)> {
        self.refill();
        let value = table.fast_values[self.peek(FAST_BITS) as usize];
        if value != 0 {
            self.count -= (value & 15) as u32;
            return Ok((usize::from((value >> 4) as u8 & 15), i32::from(value >> 8)));
        }
        let symbol = self.symbol(table)?;
        let size = u32::from(symbol & 15);
        let bits = self.peek(size);
        self.count -= size;
        Ok((usize::from(symbol >> 4), extend(bits, size)))
    }

    /// Skips to the restart marker that must come next.
    pub(super) fn restart(&mut self, number: usize) -> Result<()> {
        self.check()?;
        // What was taken into the buffer and not used is a last byte's filling, and stuffed bytes.
        if self.count - self.padding >= 8 {
            return Err(broken("a restart that is missing"));
        }
        while self.data.get(self.place + 1) == Some(&0xff) {
            self.place += 1;
        }
        if self.data.get(self.place..self.place + 2) != Some(&[0xff, 0xd0 + (number % 8) as u8]) {
            return Err(broken("a restart that is missing"));
        }
        *self = Bits::new(self.data, self.place + 2);
        Ok(())
    }
}
