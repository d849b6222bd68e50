//! Tensors that go from one engine to another's instance.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use imprompt_cuda::{Buffer, Device, Part as GpuPart, Span};
use imprompt_error::{Error, Result};

use crate::tensor::element_count;
use crate::{ElementType, Held, HostCopy, Input, TensorView};

/// A tensor and the elements of it that count.
type Part = (Arc<dyn Held>, Range<usize>);

/// Rows of float32 tensors that engines hold, one behind the other, as one tensor. They are shared, and
/// settled: an engine of any instance may be given them, and reads them on the GPU where they are on
/// its own.
#[derive(Debug)]
pub struct HeldRows {
    parts: Vec<Part>,
    shape: Vec<usize>,
    /// The elements, where they are of several tensors.
    host: HostCopy,
}

impl Clone for HeldRows {
    fn clone(&self) -> Self {
        HeldRows { parts: self.parts.clone(), shape: self.shape.clone(), host: HostCopy::default() }
    }
}

/// Tensors of one shape, whatever they hold, are equal where they are the same memory.
impl PartialEq for HeldRows {
    fn eq(&self, other: &Self) -> bool {
        let same = |((a, x), (b, y)): (&Part, &Part)| Arc::ptr_eq(a, b) && x == y;
        self.shape == other.shape
            && self.parts.len() == other.parts.len()
            && self.parts.iter().zip(&other.parts).all(same)
    }
}

impl HeldRows {
    /// All of `held`, once it is written.
    ///
    /// # Errors
    /// `Internal` when its elements are not float32; what went wrong in the work that writes it.
    pub fn new(held: Box<dyn Held>) -> Result<Self> {
        if held.element_type() != ElementType::F32 {
            return Err(Error::internal(format!(
                "a tensor of elements {:?} goes to another engine, F32 may",
                held.element_type()
            )));
        }
        held.settle()?;
        let shape = held.shape().to_vec();
        let elements = shape.iter().product();
        Ok(HeldRows { parts: vec![(held.into(), 0..elements)], shape, host: HostCopy::default() })
    }

    /// What `buffer` has as a tensor of `shape`, once it is written.
    ///
    /// # Errors
    /// `Internal` when it has not as many bytes; what went wrong in the work that writes it.
    pub fn on_gpu(buffer: Buffer, shape: Vec<usize>) -> Result<Self> {
        let bytes = element_count(&shape).and_then(|count| count.checked_mul(size_of::<f32>()));
        if bytes.is_none_or(|bytes| bytes > buffer.len()) {
            return Err(Error::internal(format!(
                "a tensor of shape {shape:?} in {} bytes on the GPU",
                buffer.len()
            )));
        }
        HeldRows::new(Box::new(Copied { buffer, shape, host: HostCopy::default() }))
    }

    /// How many elements there are.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The elements from `start` on, as many as fill `shape`, as a tensor of that.
    ///
    /// # Errors
    /// `Internal` when there are not so many.
    pub fn part(&self, start: usize, shape: Vec<usize>) -> Result<Self> {
        let end = element_count(&shape).and_then(|count| count.checked_add(start));
        let Some(end) = end.filter(|end| *end <= self.elements()) else {
            return Err(Error::internal(format!(
                "a tensor of shape {shape:?} from element {start} on of {}",
                self.elements()
            )));
        };
        let mut before = 0;
        let mut parts = Vec::new();
        for (held, range) in &self.parts {
            let first = start.max(before) - before;
            let last = end.min(before + range.len()).saturating_sub(before);
            if first < last {
                parts.push((held.clone(), range.start + first..range.start + last));
            }
            before += range.len();
        }
        Ok(HeldRows { parts, shape, host: HostCopy::default() })
    }

    /// `tensors`, which differ in their first dimension alone, one behind the other.
    ///
    /// # Errors
    /// `Internal` when they differ in more, or there are none.
    pub fn joined<'a>(tensors: impl IntoIterator<Item = &'a HeldRows>) -> Result<Self> {
        let mut tensors = tensors.into_iter();
        let none = || Error::internal("no tensors to be joined");
        let mut joined = tensors.next().ok_or_else(none)?.clone();
        for tensor in tensors {
            let [first, rest @ ..] = joined.shape.as_mut_slice() else { return Err(none()) };
            match tensor.shape.as_slice() {
                [more, other @ ..] if rest == other => *first += more,
                other => {
                    return Err(Error::internal(format!(
                        "tensors of shapes {:?} and {other:?} to be joined",
                        joined.shape
                    )));
                }
            }
            joined.parts.extend(tensor.parts.iter().cloned());
        }
        Ok(joined)
    }
}

/// How `input` is brought to a run on `device`: from there where it is settled there (see
/// [`Held::settled`]), else from the host.
///
/// # Errors
/// As [`Held::settled`] and [`Held::to_host`].
pub fn brought<'a>(input: &Input<'a>, device: &Device) -> Result<GpuPart<'a>> {
    let view = match input {
        Input::View(view) => *view,
        Input::Held(held) => {
            let is_there = |span: &Span<'_>| span.stream().device().ordinal() == device.ordinal();
            match held.settled()?.filter(|spans| spans.iter().all(is_there)) {
                Some(spans) => return Ok(GpuPart::There(spans)),
                None => held.to_host()?,
            }
        }
    };
    Ok(GpuPart::Host(view.data().bytes()))
}

impl Held for HeldRows {
    fn element_type(&self) -> ElementType {
        ElementType::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn to_host(&self) -> Result<TensorView<'_>> {
        if let [(held, range)] = self.parts.as_slice() {
            return TensorView::new(&self.shape, &held.as_slice::<f32>()?[range.clone()]);
        }
        self.host.view(&self.shape, ElementType::F32, |mut into| {
            for (held, range) in &self.parts {
                let bytes: &[u8] = bytemuck::cast_slice(&held.as_slice::<f32>()?[range.clone()]);
                let (own, rest) = into.split_at_mut(bytes.len());
                own.copy_from_slice(bytes);
                into = rest;
            }
            Ok(())
        })
    }

    fn settled(&self) -> Result<Option<Vec<Span<'_>>>> {
        let mut spans = Vec::with_capacity(self.parts.len());
        for (held, range) in &self.parts {
            // Where one is not there, all are read on the host.
            let Some(span) = held.on_gpu()? else { return Ok(None) };
            let size = size_of::<f32>();
            spans.push(span.part(range.start * size, range.len() * size)?);
        }
        Ok(Some(spans))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A tensor in memory of its own on a GPU.
#[derive(Debug)]
struct Copied {
    buffer: Buffer,
    shape: Vec<usize>,
    host: HostCopy,
}

impl Copied {
    fn span(&self) -> Result<Span<'_>> {
        let elements: usize = self.shape.iter().product();
        self.buffer.span(0, elements * size_of::<f32>())
    }
}

impl Held for Copied {
    fn element_type(&self) -> ElementType {
        ElementType::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn to_host(&self) -> Result<TensorView<'_>> {
        let span = self.span()?;
        self.host.view(&self.shape, ElementType::F32, |into| span.read(into))
    }

    fn on_gpu(&self) -> Result<Option<Span<'_>>> {
        self.span().map(Some)
    }

    fn settle(&self) -> Result<()> {
        self.buffer.stream().synchronize()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tensor on the host.
    #[derive(Debug)]
    struct There(Vec<usize>, Vec<f32>);

    impl Held for There {
        fn element_type(&self) -> ElementType {
            ElementType::F32
        }

        fn shape(&self) -> &[usize] {
            &self.0
        }

        fn to_host(&self) -> Result<TensorView<'_>> {
            TensorView::new(&self.0, &self.1)
        }

        fn as_any(&self) -> &dyn Any {
            self
        }
    }

    fn rows(shape: &[usize], from: usize) -> HeldRows {
        let count: usize = shape.iter().product();
        let values = (from..from + count).map(|value| value as f32).collect();
        HeldRows::new(Box::new(There(shape.to_vec(), values))).unwrap()
    }

    fn values(rows: &HeldRows) -> Vec<usize> {
        let held: &dyn Held = rows;
        held.as_slice::<f32>().unwrap().iter().map(|value| *value as usize).collect()
    }

    #[test]
    fn parts_and_what_is_joined_have_their_values() {
        let (one, two) = (rows(&[3, 2], 0), rows(&[1, 2], 10));
        assert_eq!(values(&one), [0, 1, 2, 3, 4, 5]);
        assert_eq!(values(&one.part(2, vec![2, 2]).unwrap()), [2, 3, 4, 5]);
        let joined = HeldRows::joined([&one.part(4, vec![1, 2]).unwrap(), &two, &one]).unwrap();
        assert_eq!(joined.shape(), [5, 2]);
        assert_eq!(values(&joined), [4, 5, 10, 11, 0, 1, 2, 3, 4, 5]);
        // Across the pieces, and inside one.
        for start in 0..10 {
            for end in start + 1..=10 {
                let part = joined.part(start, vec![end - start]).unwrap();
                assert_eq!(values(&part), values(&joined)[start..end]);
            }
        }
        assert!(values(&joined.part(10, vec![0, 2]).unwrap()).is_empty());
        // None of it is on a GPU.
        assert!(joined.settled().unwrap().is_none());
        assert_eq!(joined, joined.clone());
        assert_ne!(joined, one);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let one = rows(&[3, 2], 0);
        assert!(one.part(1, vec![3, 2]).is_err());
        assert!(one.part(usize::MAX, vec![1]).is_err());
        assert!(one.part(0, vec![usize::MAX, 2]).is_err());
        assert!(HeldRows::joined([&one, &rows(&[1, 3], 0)]).is_err());
        assert!(HeldRows::joined([]).is_err());
        assert!(HeldRows::joined([&rows(&[], 0), &rows(&[], 0)]).is_err());
    }
}
