//! Products of pictures with rows on the device, and the best of them there: the bits of
//! `imprompt_similarity` and of `imprompt_interrogate::rank`, whose orders of sums the kernels keep.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaFunction, LaunchConfig, PushKernelArg as _, result};
use cudarc::nvrtc::Ptx;
use half::f16;
use imprompt_error::{Error, Result};

use crate::device::failed;
use crate::{Buffer, Feed, Part, Span, Stream, Table};

/// `kernels/ranking.cu` for any card from compute capability 7.5 on: the driver makes of it what the
/// card runs.
const PTX: &str = include_str!("../kernels/ranking.ptx");

/// Threads of a block, and rows that they take, of each product.
const TABLE_BLOCK: (u32, usize) = (256, 32);
const TEXT_BLOCK: (u32, usize) = (64, 16);

/// Threads that sort a chunk at most.
const SORTERS: u32 = 1024;

/// Values of an image at most: it lies in a block's own memory, of which any card gives 48 KiB.
const MOST_VALUES: usize = 12 << 10;

/// How similarities are ranked: each run of `size` of them keeps its best `keep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunks {
    /// Similarities of a chunk, 1 to [`Ranking::MOST_CHUNK`].
    pub size: usize,
    /// How many of each are kept.
    pub keep: usize,
}

/// Compares pictures with rows on a device and finds the best of them there. What was compared last
/// stays on the device until the next comparison.
pub struct Ranking {
    kernels: Kernels,
    images: Feed,
    products: Buffer,
    /// The least place of a product that is not finite.
    wrong: Buffer,
    found: Buffer,
    /// How many products the last comparison has.
    count: usize,
    comparing: Comparing,
    stream: Stream,
}

/// What the products are of.
enum Comparing {
    Nothing,
    /// Read by what was given to the stream.
    Table(#[expect(dead_code, reason = "kept alive")] Arc<Table>),
    /// The image is there; products are added until there are so many.
    Texts {
        image: u64,
        dimension: usize,
        most: usize,
    },
}

struct Kernels {
    similarities_f16: CudaFunction,
    similarities_f32: CudaFunction,
    best: CudaFunction,
}

impl std::fmt::Debug for Ranking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ranking").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl Kernels {
    fn load(stream: &Stream) -> Result<Self> {
        let module = stream.stream.context().load_module(Ptx::from_src(PTX));
        let module = module.map_err(|error| failed(&error, "the kernels that rank"))?;
        let function =
            |name: &str| module.load_function(name).map_err(|error| failed(&error, name));
        Ok(Kernels {
            similarities_f16: function("similarities_f16")?,
            similarities_f32: function("similarities_f32")?,
            best: function("best")?,
        })
    }
}

/// A number that a kernel is given.
fn number(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::internal(format!("{value}: too many for the GPU")))
}

impl Ranking {
    /// Similarities that are sorted together at most.
    pub const MOST_CHUNK: usize = 2048;

    /// A ranking that gives its work to `stream`.
    ///
    /// # Errors
    /// What the driver says, for one where the card is older than the kernels are for.
    pub fn new(stream: &Stream) -> Result<Self> {
        Ok(Ranking {
            kernels: Kernels::load(stream)?,
            images: Feed::new(stream)?,
            products: stream.zeros(0)?,
            wrong: stream.zeros(size_of::<u32>())?,
            found: stream.zeros(0)?,
            count: 0,
            comparing: Comparing::Nothing,
            stream: stream.clone(),
        })
    }

    /// [`Table::upload`] to the device that it is on.
    ///
    /// # Errors
    /// As [`Table::upload`].
    pub fn upload(&self, parts: &[&[f16]], dimension: usize) -> Result<Table> {
        Table::upload(&self.stream, parts, dimension)
    }

    /// Gives the products of `images` (`[images, dimension]`) with the rows `ranges` of `table`, for
    /// each image one list over all ranges: those that [`Self::similarities`] reads.
    ///
    /// # Errors
    /// `Internal` when the table is on another device, a range reaches out of it, or the images have
    /// other widths; `OutOfMemory`; what the driver says.
    pub fn compare(
        &mut self,
        table: &Arc<Table>,
        ranges: &[Range<usize>],
        images: &[f32],
    ) -> Result<()> {
        let dimension = table.dimension();
        if !images.len().is_multiple_of(dimension) || dimension > MOST_VALUES {
            return Err(Error::internal(format!(
                "images of {} values, a table's rows have {dimension}",
                images.len()
            )));
        }
        if table.ordinal() != self.stream.device().ordinal() {
            return Err(Error::internal("the table is on another GPU"));
        }
        let image_count = images.len() / dimension;
        let addresses: Vec<u64> =
            ranges.iter().map(|range| table.address(range)).collect::<Result<_>>()?;
        let total: usize = ranges.iter().map(ExactSizeIterator::len).sum();
        let count = total.saturating_mul(image_count);
        number(count)?;
        self.begin(count)?;
        self.comparing = Comparing::Table(table.clone());
        self.count = count;
        if count == 0 {
            return Ok(());
        }
        let image = self.image(images)?;
        let (threads, rows_of_block) = TABLE_BLOCK;
        let (products, wrong) = (self.products.address(), self.wrong.address());
        let (width, lists, stride) = (number(dimension)?, number(image_count)?, number(total)?);
        let mut start = 0;
        for (range, address) in ranges.iter().zip(addresses) {
            if range.is_empty() {
                continue;
            }
            let (rows, first) = (number(range.len())?, number(start)?);
            let blocks = range.len().div_ceil(rows_of_block).saturating_mul(image_count);
            let memory = dimension.next_multiple_of(64) * size_of::<f32>();
            let config = config(blocks, threads, memory)?;
            let mut launch = self.stream.stream.launch_builder(&self.kernels.similarities_f16);
            launch.arg(&address).arg(&image).arg(&products).arg(&wrong);
            launch.arg(&rows).arg(&width).arg(&lists).arg(&first).arg(&stride);
            // SAFETY: the arguments are the kernel's. It reads `rows` rows of the table, which
            // `comparing` keeps, and `lists` images of the feed, and writes places below
            // `lists * stride`, as many as there is room for, and one number at `wrong`.
            unsafe { launch.launch(config) }
                .map_err(|error| failed(&error, "the products with a table"))?;
            start += range.len();
        }
        Ok(())
    }

    /// Begins products of `image` with up to `most` rows that [`Self::add`] names.
    ///
    /// # Errors
    /// `OutOfMemory`; what the driver says.
    pub fn compare_texts(&mut self, image: &[f32], most: usize) -> Result<()> {
        if image.is_empty() {
            return Err(Error::internal("an image of no values"));
        }
        self.begin(most)?;
        let (dimension, image) = (image.len(), self.image(image)?);
        self.comparing = Comparing::Texts { image, dimension, most };
        Ok(())
    }

    /// Adds the products with `embeds`, float32 rows on the device, behind those added before.
    ///
    /// # Errors
    /// `Internal` when [`Self::compare_texts`] was not called before, when they are of another
    /// stream, no whole rows, or more than was said; what the driver says.
    pub fn add(&mut self, embeds: Span<'_>) -> Result<()> {
        let Comparing::Texts { image, dimension, most } = self.comparing else {
            return Err(Error::internal("texts are added to no comparison"));
        };
        let row = dimension * size_of::<f32>();
        let rows = embeds.len() / row;
        if !embeds.len().is_multiple_of(row) || rows > most - self.count {
            return Err(Error::internal(format!(
                "{} bytes of rows of {row}, behind {} of {most} rows",
                embeds.len(),
                self.count
            )));
        }
        if embeds.stream().handle() != self.stream.handle() {
            return Err(Error::internal("embeddings of another stream of the GPU"));
        }
        if rows == 0 {
            return Ok(());
        }
        let (threads, rows_of_block) = TEXT_BLOCK;
        let config = config(rows.div_ceil(rows_of_block), threads, 0)?;
        let address = embeds.address();
        let products = self.products.address() + (self.count * size_of::<f32>()) as u64;
        let (given, width) = (number(rows)?, number(dimension)?);
        let mut launch = self.stream.stream.launch_builder(&self.kernels.similarities_f32);
        launch.arg(&address).arg(&image).arg(&products).arg(&given).arg(&width);
        // SAFETY: the arguments are the kernel's. It reads `rows` rows, which are allocated and are
        // the stream's, and the image, which the feed has until the next one; it writes `rows`
        // products behind the last ones, where there is room for `most`.
        unsafe { launch.launch(config) }
            .map_err(|error| failed(&error, "the products with texts"))?;
        self.count += rows;
        Ok(())
    }

    /// All products of the last comparison, image after image.
    ///
    /// # Errors
    /// `OutOfMemory`; what went wrong on the device.
    pub fn similarities(&self) -> Result<Vec<f32>> {
        read(&self.products, self.count)
    }

    /// The place of the first product of [`Self::compare`] that is not finite, if there is one.
    ///
    /// # Errors
    /// What went wrong on the device.
    pub fn first_wrong(&self) -> Result<Option<usize>> {
        let place: Vec<u32> = read(&self.wrong, 1)?;
        let place = place.first().map_or(usize::MAX, |place| *place as usize);
        Ok((place < self.count).then_some(place))
    }

    /// The best of each chunk of the products `range`, or those of the least value if `reverse`:
    /// places in the range and values, chunk after chunk, of each the best first, equal ones in order.
    ///
    /// # Errors
    /// `Internal` when the range reaches out of the products or a chunk has a size that is not
    /// allowed; `OutOfMemory`; what went wrong on the device.
    pub fn best(
        &mut self,
        range: Range<usize>,
        chunks: Chunks,
        reverse: bool,
    ) -> Result<Vec<(usize, f32)>> {
        let Chunks { size, keep } = chunks;
        let is_inside = range.start <= range.end && range.end <= self.count;
        if !is_inside || size == 0 || size > Self::MOST_CHUNK {
            return Err(Error::internal(format!(
                "chunks of {size} of the products {range:?} of {}",
                self.count
            )));
        }
        let (count, keep) = (range.len(), keep.min(size));
        if count == 0 || keep == 0 {
            return Ok(Vec::new());
        }
        let blocks = count.div_ceil(size);
        reserve(&mut self.found, blocks * keep * size_of::<[u32; 2]>())?;
        // No more than there is to sort; of one value there is nothing to swap.
        let sorted = size.min(count).next_power_of_two();
        let threads = number(sorted / 2)?.clamp(32, SORTERS);
        let config = config(blocks, threads, sorted * size_of::<u64>())?;
        let values = self.products.address() + (range.start * size_of::<f32>()) as u64;
        let found = self.found.address();
        let sign = if reverse { -1.0_f32 } else { 1.0 };
        let (all, chunk, kept, sorted) =
            (number(count)?, number(size)?, number(keep)?, number(sorted)?);
        let mut launch = self.stream.stream.launch_builder(&self.kernels.best);
        launch.arg(&values).arg(&found).arg(&all).arg(&chunk).arg(&kept).arg(&sorted).arg(&sign);
        // SAFETY: the arguments are the kernel's. It reads `count` products from the range's start
        // on, which are there, and writes `keep` pairs a block, for which there is room.
        unsafe { launch.launch(config) }.map_err(|error| failed(&error, "the best of a table"))?;
        let pairs: Vec<[u32; 2]> = read(&self.found, blocks * keep)?;
        let chunk = |(number, pairs): (usize, &[[u32; 2]])| {
            let kept = keep.min(count - number * size);
            let pair = |[index, bits]: &[u32; 2]| (*index as usize, f32::from_bits(*bits));
            pairs[..kept].iter().map(pair).collect::<Vec<_>>()
        };
        Ok(pairs.chunks(keep).enumerate().flat_map(chunk).collect())
    }

    /// Makes room for `most` products. There are none then.
    fn begin(&mut self, most: usize) -> Result<()> {
        self.forget()?;
        reserve(&mut self.products, most * size_of::<f32>())?;
        let (address, length) = (self.wrong.address(), self.wrong.len());
        // SAFETY: the bytes of the buffer, which is this ranking's; the stream orders it.
        unsafe { result::memset_d8_async(address, 0xff, length, self.stream.stream.cu_stream()) }
            .map_err(|error| failed(&error, "writing to the GPU"))
    }

    /// Lets go of the last comparison, once nothing reads its table.
    fn forget(&mut self) -> Result<()> {
        self.count = 0;
        self.stream.bind()?;
        if let Comparing::Table(_) = self.comparing {
            self.stream.synchronize()?;
        }
        self.comparing = Comparing::Nothing;
        Ok(())
    }

    /// Brings the values of images to the device: where they are, until the next ones.
    fn image(&mut self, values: &[f32]) -> Result<u64> {
        let mut there = self.images.load(&[Part::Host(bytemuck::cast_slice(values))])?;
        there.next().ok_or_else(|| Error::internal("an image that is nowhere"))
    }
}

impl Drop for Ranking {
    fn drop(&mut self) {
        // A table may be another stream's to free.
        if let Err(error) = self.forget() {
            tracing::error!("work on the GPU failed while a ranking was closed: {error}");
        }
    }
}

fn config(blocks: usize, threads: u32, memory: usize) -> Result<LaunchConfig> {
    // What a grid may have.
    let blocks = i32::try_from(blocks)
        .map_err(|_| Error::internal(format!("{blocks} blocks: too many for the GPU")))?;
    Ok(LaunchConfig {
        grid_dim: (blocks.unsigned_abs(), 1, 1),
        block_dim: (threads, 1, 1),
        shared_mem_bytes: number(memory)?,
    })
}

/// Makes `buffer` at least `bytes` long; what is in it is lost.
fn reserve(buffer: &mut Buffer, bytes: usize) -> Result<()> {
    if buffer.len() < bytes {
        *buffer = buffer.stream().zeros(bytes.next_power_of_two())?;
    }
    Ok(())
}

/// The first `count` numbers of `buffer`, once what was given before is done.
fn read<T: bytemuck::Pod>(buffer: &Buffer, count: usize) -> Result<Vec<T>> {
    let mut values = vec![T::zeroed(); count];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
    buffer.span(0, bytes.len())?.read(bytes)?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_are_for_old_cards_and_drivers() {
        let line = |start: &str| PTX.lines().find(|line| line.starts_with(start)).unwrap();
        assert_eq!(line(".target"), ".target sm_75");
        // Drivers from 535 on, those of CUDA 12.2, know this version.
        let version: f32 = line(".version").trim_start_matches(".version ").parse().unwrap();
        assert!(version <= 8.2, "{version}");
        for name in ["similarities_f16", "similarities_f32", "best"] {
            assert!(PTX.contains(&format!(".visible .entry {name}(")), "{name}");
        }
    }

    #[test]
    fn the_kernels_are_those_of_the_source() {
        let source = include_bytes!("../kernels/ranking.cu");
        let mark = format!("// Of ranking.cu with the FNV-1a hash {:08x}.", hash(source));
        assert_eq!(PTX.lines().next(), Some(mark.as_str()), "run the example `ptx`");
        // Small numbers count.
        assert!(!PTX.contains(".ftz"));
    }

    fn hash(bytes: &[u8]) -> u32 {
        bytes
            .iter()
            .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
    }
}
