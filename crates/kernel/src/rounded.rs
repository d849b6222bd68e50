//! Rows of activations in 8 bits, and many of them against int8 weights.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::lanes::{LANES, first, first_bytes, transpose};
use crate::linear::{Linear, Out, Parallel, Scratch, Weight, Weights};
use crate::quantized::{INT4_BLOCK, ROW_BLOCK};
use crate::tile::{
    Line, PANEL, PANEL_SCRATCH, Place, Shared, Tiles, ask_ahead, by_height, columns, part,
};

/// Words of four inputs that go by before the next tile's turn.
const DEPTH: usize = 512;
/// Words of a block of inputs with one scale.
const BLOCK: usize = ROW_BLOCK / 4;

/// Rows of activations in 8 bits.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// `[rows, padded]`, what is behind a row's end is zero.
    pub(crate) values: Vec<i8>,
    /// `[rows, blocks]`.
    pub(crate) scales: Vec<f32>,
    /// What the weights' offset adds for each lane of four inputs, with its sign
    /// turned: `[rows, padded / 4]`.
    pub(crate) corrections: Vec<i32>,
    /// The sums of `corrections` over each block of int8 weights: `[rows, blocks]`.
    starts: Vec<i32>,
    /// Inputs with the padding.
    pub(crate) padded: usize,
    /// Blocks of a row.
    pub(crate) blocks: usize,
}

impl Rows {
    /// Rounds rows of `inputs` each, `block` (a multiple of 64) of them to a scale, padded to
    /// whole blocks.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(crate) fn round(&mut self, rows: &[f32], inputs: usize, block: usize) {
        let count = rows.len() / inputs;
        self.blocks = inputs.div_ceil(block);
        self.padded = self.blocks * block;
        self.values.resize(count * self.padded, 0);
        self.scales.resize(count * self.blocks, 0.0);
        for (index, row) in rows.chunks_exact(inputs).enumerate() {
            for (place, part) in row.chunks(block).enumerate() {
                let start = index * self.padded + place * block;
                let values = &mut self.values[start..start + block];
                self.scales[index * self.blocks + place] = round_block(part, values);
            }
        }
    }

    /// Adds what makes up for weights whose zero is 128: `corrections`, and their sums over each block.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(crate) fn correct(&mut self) {
        self.corrections.resize(self.values.len() / 4, 0);
        self.starts.clear();
        let (offset, zero) = (_mm512_set1_epi8(-128), _mm512_setzero_si512());
        let block = self.padded / self.blocks;
        let blocks = self.values.chunks_exact(block);
        for (values, corrections) in blocks.zip(self.corrections.chunks_exact_mut(block / 4)) {
            let (values, (corrections, _)) =
                (values.as_chunks::<64>().0, corrections.as_chunks_mut());
            let mut total = zero;
            for (values, out) in values.iter().zip::<&mut [[i32; 16]]>(corrections) {
                // SAFETY: 64 bytes, sixteen words.
                unsafe {
                    let added =
                        _mm512_dpbusd_epi32(zero, offset, _mm512_loadu_epi8(values.as_ptr()));
                    let correction = _mm512_sub_epi32(zero, added);
                    total = _mm512_add_epi32(total, correction);
                    _mm512_storeu_epi32(out.as_mut_ptr(), correction);
                }
            }
            self.starts.push(_mm512_reduce_add_epi32(total));
        }
    }

    /// Parts each 128 inputs in those of even and those of odd places, as int4 weights have them,
    /// for weights whose zero is 8; `corrections` are `[rows, padded / 8]` then.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(crate) fn part_in_pairs(&mut self) {
        self.corrections.resize(self.values.len() / 8, 0);
        let offset = _mm512_set1_epi8(8);
        let (blocks, _) = self.values.as_chunks_mut::<INT4_BLOCK>();
        for (block, out) in blocks.iter_mut().zip(self.corrections.as_chunks_mut::<16>().0) {
            // SAFETY: 128 bytes each, sixteen words.
            unsafe {
                let start = block.as_mut_ptr();
                let pairs = [_mm512_loadu_epi8(start), _mm512_loadu_epi8(start.add(64))];
                let join = |halves: [__m256i; 2]| {
                    _mm512_inserti64x4(_mm512_castsi256_si512(halves[0]), halves[1], 1)
                };
                let even = join(pairs.map(|pair| _mm512_cvtepi16_epi8(pair)));
                let odd = join(pairs.map(|pair| _mm512_cvtepi16_epi8(_mm512_srli_epi16(pair, 8))));
                _mm512_storeu_epi8(start, even);
                _mm512_storeu_epi8(start.add(64), odd);
                let zero = _mm512_setzero_si512();
                let added = _mm512_dpbusd_epi32(zero, offset, even);
                let added = _mm512_dpbusd_epi32(added, offset, odd);
                _mm512_storeu_epi32(out.as_mut_ptr(), _mm512_sub_epi32(zero, added));
            }
        }
    }

    /// How many they are.
    pub(crate) fn rows(&self) -> usize {
        self.scales.len() / self.blocks
    }

    /// The words of row `row`.
    pub(crate) fn words(&self, row: usize) -> *const i32 {
        self.values[row * self.padded..][..self.padded].as_ptr().cast()
    }
}

/// Rounds a block's values, zeros behind them, and gives the scale: the largest is 127.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn round_block(given: &[f32], values: &mut [i8]) -> f32 {
    // Which fours of bytes the packs below leave where: of each four vectors' fours, by lanes.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let (whole, rest) = given.as_chunks::<64>();
    let four = |chunk: &[f32; 64]| {
        // SAFETY: 64 floats.
        [0, 16, 32, 48].map(|at| unsafe { _mm512_loadu_ps(chunk.as_ptr().add(at)) })
    };
    let mut last = [0.0; 64];
    last[..rest.len()].copy_from_slice(rest);
    let chunks = || whole.iter().chain((!rest.is_empty()).then_some(&last));
    let mut largest = [_mm512_setzero_ps(); 4];
    for chunk in chunks() {
        for (largest, lanes) in largest.iter_mut().zip(four(chunk)) {
            *largest = _mm512_max_ps(*largest, _mm512_abs_ps(lanes));
        }
    }
    let [a, b, c, d] = largest;
    let largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d)));
    let inverse = _mm512_set1_ps(if largest > 0.0 { 127.0 / largest } else { 0.0 });
    let (outs, _) = values.as_chunks_mut::<64>();
    for (chunk, out) in chunks().zip(outs.iter_mut()) {
        let [a, b, c, d] =
            four(chunk).map(|lanes| _mm512_cvtps_epi32(_mm512_mul_ps(lanes, inverse)));
        let bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
        // SAFETY: 64 bytes.
        unsafe {
            let bytes = _mm512_permutexvar_epi32(order, bytes);
            _mm512_storeu_epi8(out.as_mut_ptr(), bytes);
        }
    }
    values[given.len().next_multiple_of(64)..].fill(0);
    largest / 127.0
}

/// Words `depth` of the rows `outputs` of `values` as panels `[panels][depth][PANEL]`; what is behind
/// the last row or the end of a row is zero.
///
/// # Safety
/// `outputs` are inside of the matrix; `out` has room for whole panels.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pack_panels(
    (values, inputs): (&[u8], usize),
    outputs: &Range<usize>,
    depth: &Range<usize>,
    out: *mut i32,
) {
    let long = depth.len();
    for half in 0..2 * outputs.len().div_ceil(PANEL) {
        let start = outputs.start + half * LANES;
        // SAFETY: inside of the panels.
        let out = unsafe { out.add((half / 2) * long * PANEL + (half % 2) * LANES) };
        let count = outputs.end.saturating_sub(start);
        columns!(long, LANES, PANEL, out, |row: usize, at: usize| {
            let byte = 4 * (depth.start + at);
            let left = (inputs.saturating_sub(byte)).min(4 * (long - at));
            match row < count {
                // SAFETY: `left` bytes of output `start + row`.
                true => unsafe {
                    let start = values.as_ptr().wrapping_add((start + row) * inputs + byte);
                    ask_ahead(start);
                    let signed = _mm512_maskz_loadu_epi8(first_bytes(left), start.cast());
                    _mm512_xor_si512(signed, _mm512_set1_epi8(-128))
                },
                false => _mm512_setzero_si512(),
            }
        });
    }
}

/// A tile of the results and what it is made of.
struct Tile<'a> {
    place: Place<'a>,
    /// `[depth][height]` words.
    words: *const i32,
    /// `[blocks][height]`, from the first block of the depth on.
    starts: *const i32,
    /// `[blocks][height]`, as `starts`.
    scales: *const f32,
    /// `[depth][PANEL]` words.
    panel: *const i32,
    depth: Range<usize>,
}

/// A tile's dot products over a block, on top of `dots`.
///
/// # Safety
/// `words` is `[BLOCK][H]`, `panel` is `[BLOCK][PANEL]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn products<const H: usize>(
    mut dots: [[__m512i; 2]; H],
    mut words: *const i32,
    mut panel: *const i32,
) -> [[__m512i; 2]; H] {
    let end = panel.wrapping_add(BLOCK * PANEL);
    while panel != end {
        // SAFETY: what the caller promises.
        unsafe {
            let left = _mm512_load_epi32(panel);
            let right = _mm512_load_epi32(panel.add(LANES));
            for (row, dots) in dots.iter_mut().enumerate() {
                let given = _mm512_set1_epi32(*words.add(row));
                dots[0] = _mm512_dpbusd_epi32(dots[0], left, given);
                dots[1] = _mm512_dpbusd_epi32(dots[1], right, given);
            }
            words = words.add(H);
            panel = panel.add(PANEL);
        }
    }
    dots
}

impl Tile<'_> {
    /// # Safety
    /// The words, what belongs to them and the panel are there; the place is the caller's alone.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn run<const H: usize>(&self, scales: &[u8], ends: bool) {
        let mut sums = match self.depth.start {
            0 => [[_mm512_setzero_ps(); 2]; H],
            _ => self.place.load(),
        };
        for block in 0..self.depth.len() / BLOCK {
            let mut dots = [[_mm512_setzero_si512(); 2]; H];
            // SAFETY: what the caller promises.
            unsafe {
                for (row, dots) in dots.iter_mut().enumerate() {
                    *dots = [_mm512_set1_epi32(*self.starts.add(block * H + row)); 2];
                }
                let words = self.words.add(block * BLOCK * H);
                let dots = products(dots, words, self.panel.add(block * BLOCK * PANEL));
                for (row, (sums, dots)) in sums.iter_mut().zip(dots).enumerate() {
                    let scale = _mm512_set1_ps(*self.scales.add(block * H + row));
                    sums[0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[0]), scale, sums[0]);
                    sums[1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[1]), scale, sums[1]);
                }
            }
        }
        if ends {
            let masks = self.place.masks();
            let scales = &scales[4 * self.place.columns.start..4 * self.place.columns.end];
            let start: *const f32 = scales.as_ptr().cast();
            // SAFETY: the masks end where the columns do.
            let scales = unsafe {
                [
                    _mm512_maskz_loadu_ps(masks[0], start),
                    _mm512_maskz_loadu_ps(masks[1], start.wrapping_add(LANES)),
                ]
            };
            for sums in &mut sums {
                *sums = [_mm512_mul_ps(sums[0], scales[0]), _mm512_mul_ps(sums[1], scales[1])];
            }
        }
        self.place.store(sums, ends);
    }
}

impl Linear<'_> {
    /// The layer of many rows over int8 weights.
    pub(crate) fn many_rounded(
        &self,
        rows: &[f32],
        scratch: &mut Scratch,
        out: &Out,
        parallel: &dyn Parallel,
    ) {
        let Weight { outputs, inputs, .. } = self.weight;
        let Weights::Int8 { values, scales } = self.weight.weights else { return };
        // SAFETY: `vectors` asked for the features.
        unsafe {
            scratch.rounded.round(rows, inputs, ROW_BLOCK);
            scratch.rounded.correct();
        }
        let rounded = &scratch.rounded;
        let tiles = Tiles::new(out.rows);
        let long = rounded.padded / 4;
        // The words, then the blocks' starts and scales.
        let tile_size = tiles.height * (long + 2 * rounded.blocks);
        scratch.words.resize(tiles.count() * tile_size, 0);
        let words = Shared(scratch.words.as_mut_ptr());
        parallel.run(tiles.count(), &|tile| {
            // SAFETY: `vectors` asked for the features; each part has a tile of its own.
            unsafe { pack_words(rounded, tiles, tile, words.at(tile * tile_size)) };
        });
        let part = part(outputs, parallel.threads());
        parallel.run(outputs.div_ceil(part), &|index| {
            let columns = index * part..outputs.min((index + 1) * part);
            PANEL_SCRATCH.with_borrow_mut(|panels| {
                panels.resize(part.next_multiple_of(PANEL) * DEPTH / LANES, Line::default());
                let panels: *mut i32 = panels.as_mut_ptr().cast();
                for start in (0..long).step_by(DEPTH) {
                    let depth = start..long.min(start + DEPTH);
                    // SAFETY: `vectors` asked for the features; the columns are this part's.
                    unsafe {
                        pack_panels((values, inputs), &columns, &depth, panels);
                        for tile in 0..tiles.count() {
                            let height = tiles.height;
                            let words = words.at(tile * tile_size);
                            let starts = words.add((long + start / BLOCK) * height);
                            for (panel, first) in columns.clone().step_by(PANEL).enumerate() {
                                let tile = Tile {
                                    place: Place {
                                        linear: self,
                                        out,
                                        rows: tiles.of(tile),
                                        columns: first..columns.end.min(first + PANEL),
                                    },
                                    words: words.add(start * height),
                                    starts,
                                    scales: starts.add(rounded.blocks * height).cast(),
                                    panel: panels.add(panel * depth.len() * PANEL),
                                    depth: depth.clone(),
                                };
                                by_height!(height, tile, run(scales, depth.end == long));
                            }
                        }
                    }
                }
            });
        });
    }
}

/// The words of a tile's rows as `[words][height]`, and behind them `[blocks][height]` of the
/// sums' starts and of the scales.
///
/// # Safety
/// `out` has room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pack_words(rows: &Rows, tiles: Tiles, tile: usize, out: *mut i32) {
    let range = tiles.of(tile);
    let (long, height) = (rows.padded / 4, tiles.height);
    columns!(long, height, height, out, |row: usize, at: usize| if row < range.len() {
        // SAFETY: row `row` of the tile, its lanes inside: rows are padded to whole vectors.
        unsafe { _mm512_loadu_epi32(rows.words(range.start + row).add(at)) }
    } else {
        _mm512_setzero_si512()
    });
    for block in 0..rows.blocks {
        for row in 0..height {
            let at = (range.start + row) * rows.blocks + block;
            let (start, scale) = match row < range.len() {
                true => (rows.starts[at], rows.scales[at]),
                false => (0, 0.0),
            };
            // SAFETY: behind the words.
            unsafe {
                let out = out.add((long + block) * height + row);
                out.write(start);
                out.add(rows.blocks * height).cast::<f32>().write(scale);
            }
        }
    }
}
