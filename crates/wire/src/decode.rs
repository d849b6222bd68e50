//! Bytes to elements.

use std::borrow::Cow;

use crate::PREFIX_BYTES;
use imprompt_error::{Error, Result};

/// What a tensor may hold. The default allows anything but an empty tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Fewest elements: 1 refuses the tensor of zero elements that reaches a
    /// backend as the shape [1, 0] with no bytes.
    pub min_elements: usize,
    /// Most elements.
    pub max_elements: usize,
    /// Most bytes of one element.
    pub max_element_bytes: usize,
    /// Most bytes of the whole tensor, prefixes included.
    pub max_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            min_elements: 1,
            max_elements: usize::MAX,
            max_element_bytes: usize::MAX,
            max_bytes: usize::MAX,
        }
    }
}

impl Limits {
    /// Exactly one element of at most `max_element_bytes`.
    pub fn one(max_element_bytes: usize) -> Self {
        Limits { min_elements: 1, max_elements: 1, max_element_bytes, max_bytes: usize::MAX }
    }

    /// Everything that is known before an element is read. Afterwards
    /// `elements` is at most `bytes / 4`, so a vector of that many entries is
    /// of the input's own order of size.
    fn admit(&self, tensor: &str, elements: usize, bytes: usize) -> Result<()> {
        if elements < self.min_elements {
            return Err(Error::invalid(format!(
                "{tensor}: {elements} elements, at least {} needed",
                self.min_elements
            )));
        }
        if elements > self.max_elements {
            return Err(Error::invalid(format!(
                "{tensor}: {elements} elements, at most {} allowed",
                self.max_elements
            )));
        }
        if bytes > self.max_bytes {
            return Err(Error::invalid(format!(
                "{tensor}: {bytes} bytes, at most {} allowed",
                self.max_bytes
            )));
        }
        if elements > bytes / PREFIX_BYTES {
            return Err(Error::invalid(format!(
                "{tensor}: {bytes} bytes are too few for {elements} elements, \
                 each has a length of {PREFIX_BYTES} bytes"
            )));
        }
        Ok(())
    }

    /// The declared length of element `index` against the `rest` bytes behind
    /// its prefix.
    fn admit_element(&self, tensor: &str, index: usize, len: u32, rest: usize) -> Result<usize> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > rest {
            return Err(Error::invalid(format!(
                "{tensor}: element {index} declares {len} bytes, {rest} follow"
            )));
        }
        if len > self.max_element_bytes {
            return Err(Error::invalid(format!(
                "{tensor}: element {index} has {len} bytes, at most {} allowed",
                self.max_element_bytes
            )));
        }
        Ok(len)
    }
}

fn cut_prefix(tensor: &str, index: usize, elements: usize, rest: usize) -> Error {
    Error::invalid(format!(
        "{tensor}: {rest} bytes where the length of element {index} of {elements} should be"
    ))
}

fn trailing(tensor: &str, elements: usize, rest: usize) -> Error {
    Error::invalid(format!("{tensor}: {rest} bytes follow the last of {elements} elements"))
}

/// The elements of a tensor that lies in one piece, borrowed from it: nothing
/// is allocated and each length is read once. After an error, and after the
/// last element, the iterator is empty.
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    tensor: &'a str,
    rest: &'a [u8],
    limits: Limits,
    elements: usize,
    index: usize,
    done: bool,
}

/// Reads `elements` elements out of one piece. The last item is an error when
/// bytes are left over.
///
/// # Errors
/// Those of [`decode`] that are known before the first element is read; the
/// others come out of the iterator.
pub fn elements<'a>(
    tensor: &'a str,
    piece: &'a [u8],
    elements: usize,
    limits: &Limits,
) -> Result<Elements<'a>> {
    limits.admit(tensor, elements, piece.len())?;
    Ok(Elements { tensor, rest: piece, limits: *limits, elements, index: 0, done: false })
}

impl<'a> Elements<'a> {
    fn step(&mut self) -> Result<Option<&'a [u8]>> {
        if self.index == self.elements {
            return match self.rest.len() {
                0 => Ok(None),
                rest => Err(trailing(self.tensor, self.elements, rest)),
            };
        }
        let Some((prefix, after)) = self.rest.split_first_chunk::<PREFIX_BYTES>() else {
            return Err(cut_prefix(self.tensor, self.index, self.elements, self.rest.len()));
        };
        let len = u32::from_le_bytes(*prefix);
        let len = self.limits.admit_element(self.tensor, self.index, len, after.len())?;
        let (element, after) = after.split_at(len);
        self.rest = after;
        self.index += 1;
        Ok(Some(element))
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let step = self.step().transpose();
        self.done = !matches!(step, Some(Ok(_)));
        step
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        if self.done {
            return (0, Some(0));
        }
        // One more than there are elements: the error about trailing bytes.
        (0, Some(self.elements - self.index + 1))
    }
}

impl std::iter::FusedIterator for Elements<'_> {}

/// The one element of a tensor of one element that lies in one piece, borrowed.
///
/// # Errors
/// Those of [`decode`] with `elements` 1.
pub fn decode_one<'a>(tensor: &str, piece: &'a [u8], limits: &Limits) -> Result<&'a [u8]> {
    limits.admit(tensor, 1, piece.len())?;
    let Some((prefix, after)) = piece.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(cut_prefix(tensor, 0, 1, piece.len()));
    };
    let len = limits.admit_element(tensor, 0, u32::from_le_bytes(*prefix), after.len())?;
    let (element, after) = after.split_at(len);
    if after.is_empty() { Ok(element) } else { Err(trailing(tensor, 1, after.len())) }
}

/// Reads `elements` elements (see [`crate::element_count`]) out of the pieces
/// of a tensor, in order. An element that lies within one piece is borrowed
/// from it, one that straddles pieces is copied together.
///
/// # Errors
/// [`imprompt_error::Kind::InvalidInput`] when the number of elements or bytes
/// is outside of `limits`, the bytes are too few for `elements`, an element
/// declares more bytes than follow or than `limits` allow, or bytes follow the
/// last element; [`imprompt_error::Kind::OutOfMemory`] when the result cannot
/// be stored.
pub fn decode<'a>(
    tensor: &str,
    pieces: &[&'a [u8]],
    elements: usize,
    limits: &Limits,
) -> Result<Vec<Cow<'a, [u8]>>> {
    // Summed before anything is believed: a slice of `usize::MAX / 2` bytes
    // may be named twice.
    let bytes = pieces
        .iter()
        .try_fold(0usize, |sum, piece| sum.checked_add(piece.len()))
        .ok_or_else(|| Error::invalid(format!("{tensor}: more than {} bytes", usize::MAX)))?;
    limits.admit(tensor, elements, bytes)?;
    let mut out = Vec::new();
    out.try_reserve_exact(elements)
        .map_err(|_| Error::out_of_memory(format!("{tensor}: {elements} elements")))?;
    let mut cursor = Cursor { pieces, current: &[], left: bytes };
    for index in 0..elements {
        if cursor.left < PREFIX_BYTES {
            return Err(cut_prefix(tensor, index, elements, cursor.left));
        }
        let prefix = cursor.prefix();
        let len = limits.admit_element(tensor, index, prefix, cursor.left)?;
        out.push(cursor.take(len).map_err(|()| {
            Error::out_of_memory(format!("{tensor}: element {index} of {len} bytes"))
        })?);
    }
    if cursor.left > 0 {
        return Err(trailing(tensor, elements, cursor.left));
    }
    Ok(out)
}

/// A place in the pieces; `left` bytes lie behind it, `current` first.
struct Cursor<'p, 'a> {
    pieces: &'p [&'a [u8]],
    current: &'a [u8],
    left: usize,
}

impl<'a> Cursor<'_, 'a> {
    /// Moves on to a piece that has bytes; without one, `current` is empty.
    fn refill(&mut self) {
        while self.current.is_empty() {
            let Some((first, rest)) = self.pieces.split_first() else { return };
            self.current = first;
            self.pieces = rest;
        }
    }

    /// Up to `want` bytes of the current piece.
    fn advance(&mut self, want: usize) -> &'a [u8] {
        self.refill();
        let (taken, rest) = self.current.split_at(want.min(self.current.len()));
        self.current = rest;
        self.left -= taken.len();
        taken
    }

    /// The next length; the caller has seen that 4 bytes are left.
    fn prefix(&mut self) -> u32 {
        let mut prefix = [0u8; PREFIX_BYTES];
        let mut filled = 0;
        while filled < PREFIX_BYTES {
            let part = self.advance(PREFIX_BYTES - filled);
            prefix[filled..filled + part.len()].copy_from_slice(part);
            filled += part.len();
        }
        u32::from_le_bytes(prefix)
    }

    /// The next `len` bytes; the caller has seen that they are left.
    fn take(&mut self, len: usize) -> Result<Cow<'a, [u8]>, ()> {
        let first = self.advance(len);
        if first.len() == len {
            return Ok(Cow::Borrowed(first));
        }
        let mut whole = Vec::new();
        whole.try_reserve_exact(len).map_err(|_| ())?;
        whole.extend_from_slice(first);
        while whole.len() < len {
            let part = self.advance(len - whole.len());
            whole.extend_from_slice(part);
        }
        Ok(Cow::Owned(whole))
    }
}
