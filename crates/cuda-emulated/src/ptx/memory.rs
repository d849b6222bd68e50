//! What a kernel reads and writes.

/// The memory of the device, as a kernel sees it.
pub(crate) trait Global {
    /// The bytes from `address` on.
    ///
    /// # Errors
    /// Words on what is there instead.
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), String>;

    /// Puts bytes there.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn write(&mut self, address: u64, from: &[u8]) -> Result<(), String>;
}

/// Where a block's own memory begins: nowhere that is an address of the device's.
pub(super) const SHARED: u64 = 0x1_0000;

/// Bytes of a word whose readers and writers are known.
const WORD: usize = 4;

/// No thread, and more than one.
const NOBODY: u32 = u32::MAX;
const MANY: u32 = u32::MAX - 1;

/// Which threads touched a word last, and between which barriers.
#[derive(Clone, Copy, Debug)]
struct Mark {
    writer: u32,
    written: u64,
    reader: u32,
    read: u64,
}

/// A block's own memory. Between two barriers no thread may read or write what another one writes.
#[derive(Debug)]
pub(super) struct Shared {
    bytes: Vec<u8>,
    marks: Vec<Mark>,
    /// Barriers that were passed so far, of all blocks.
    pub(super) barriers: u64,
}

impl Shared {
    pub(super) fn new(bytes: usize) -> Self {
        let none = Mark { writer: NOBODY, written: 0, reader: NOBODY, read: 0 };
        Shared { bytes: vec![0; bytes], marks: vec![none; bytes.div_ceil(WORD)], barriers: 0 }
    }

    /// Another block's: what is in it means nothing.
    pub(super) fn begin(&mut self, poison: u8) {
        self.bytes.fill(poison);
        self.barriers += 1;
    }

    fn place(&self, address: u64, length: usize) -> Result<usize, String> {
        let start = address.checked_sub(SHARED).and_then(|start| usize::try_from(start).ok());
        let start = start
            .filter(|start| start.checked_add(length).is_some_and(|end| end <= self.bytes.len()));
        start.ok_or_else(|| {
            let first = address.wrapping_sub(SHARED).cast_signed();
            format!("{length} bytes from byte {first} on of {} shared ones", self.bytes.len())
        })
    }

    pub(super) fn read(
        &mut self,
        address: u64,
        into: &mut [u8],
        thread: u32,
    ) -> Result<(), String> {
        let start = self.place(address, into.len())?;
        for word in start / WORD..(start + into.len()).div_ceil(WORD) {
            let mark = &mut self.marks[word];
            if mark.written == self.barriers && mark.writer != NOBODY && mark.writer != thread {
                return Err(format!(
                    "thread {thread} reads shared word {word}, which thread {} wrote, with no \
                     barrier between",
                    mark.writer
                ));
            }
            let is_first = mark.read != self.barriers || mark.reader == NOBODY;
            mark.reader = if is_first || mark.reader == thread { thread } else { MANY };
            mark.read = self.barriers;
        }
        into.copy_from_slice(&self.bytes[start..start + into.len()]);
        Ok(())
    }

    pub(super) fn write(&mut self, address: u64, from: &[u8], thread: u32) -> Result<(), String> {
        let start = self.place(address, from.len())?;
        for word in start / WORD..(start + from.len()).div_ceil(WORD) {
            let mark = &mut self.marks[word];
            let other =
                |when: u64, who: u32| when == self.barriers && who != NOBODY && who != thread;
            if other(mark.written, mark.writer) || other(mark.read, mark.reader) {
                return Err(format!(
                    "thread {thread} writes shared word {word}, which another one used, with no \
                     barrier between"
                ));
            }
            mark.writer = thread;
            mark.written = self.barriers;
        }
        self.bytes[start..start + from.len()].copy_from_slice(from);
        Ok(())
    }
}
