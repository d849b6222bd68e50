//! A tar.gz whose bytes depend on its members alone.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

use flate2::{Compression, GzBuilder, write::GzEncoder};
use imprompt_repository::files::hex;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// Bytes that are read at once.
const BLOCK: usize = 1 << 18;

/// The archive that is being written to `W`.
pub(crate) struct Archive<W: Write> {
    tar: Builder<GzEncoder<W>>,
    /// Folders that have an entry.
    folders: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// `level` is gzip's, 0 to 9.
    pub(crate) fn new(out: W, level: u32) -> Self {
        let gzip = GzBuilder::new().mtime(0).write(out, Compression::new(level));
        let tar = Builder::new(gzip);
        Archive { tar, folders: BTreeSet::new() }
    }

    /// Adds a file of `bytes` bytes, and tells `advance` of what is read. Gives its SHA-256.
    pub(crate) fn file(
        &mut self,
        path: &str,
        content: impl Read,
        bytes: u64,
        advance: &dyn Fn(u64),
    ) -> io::Result<String> {
        self.parents(path)?;
        let mode = if path.ends_with(".so") || path.contains(".so.") { 0o755 } else { 0o644 };
        let mut header = header(EntryType::Regular, bytes, mode);
        let mut content = Hashing::new(content.take(bytes), advance);
        let blocks = io::BufReader::with_capacity(BLOCK, &mut content);
        self.tar.append_data(&mut header, path, blocks)?;
        // The length stands before the bytes: fewer would shift all that follows.
        if content.inner.limit() > 0 {
            return Err(io::Error::other("it became shorter while it was packed"));
        }
        Ok(content.sha256())
    }

    /// Adds a hard link to a member that is there.
    pub(crate) fn link(&mut self, path: &str, to: &str) -> io::Result<()> {
        self.parents(path)?;
        self.tar.append_link(&mut header(EntryType::Link, 0, 0o644), path, to)
    }

    /// Entries of the folders that lead to `path`.
    fn parents(&mut self, path: &str) -> io::Result<()> {
        for (end, _) in path.match_indices('/') {
            let folder = &path[..=end];
            if self.folders.insert(folder.to_owned()) {
                let mut header = header(EntryType::Directory, 0, 0o755);
                self.tar.append_data(&mut header, folder, io::empty())?;
            }
        }
        Ok(())
    }

    /// Ends the archive.
    pub(crate) fn finish(self) -> io::Result<W> {
        self.tar.into_inner()?.finish()
    }
}

fn header(kind: EntryType, bytes: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(bytes);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Hashes what is read.
struct Hashing<'a, R> {
    inner: R,
    hash: Sha256,
    advance: &'a dyn Fn(u64),
}

impl<'a, R> Hashing<'a, R> {
    fn new(inner: R, advance: &'a dyn Fn(u64)) -> Self {
        Hashing { inner, hash: Sha256::new(), advance }
    }

    fn sha256(self) -> String {
        hex(&self.hash.finalize())
    }
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        (self.advance)(count as u64);
        Ok(count)
    }
}
