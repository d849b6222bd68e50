//! Many rows: tiles of up to [`TILE`] rows by [`PANEL`] outputs, whose sums stay in the
//! registers while the inputs go by.
//!
//! Both operands are laid out for that, the rows once a layer, the weights panel by
//! panel into a buffer that stays in the cache: a small part of the work where the
//! rows are many, and nothing of it is kept.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use crate::lanes::{Brain, Half, LANES, Single, Stored, first, transpose};
use crate::linear::{Linear, Out, Parallel, Weight, Weights};

/// Rows of a tile at most.
pub(crate) const TILE: usize = 14;
/// Outputs of a tile.
pub(crate) const PANEL: usize = 2 * LANES;
/// Panels of a part of the work.
const PANELS: usize = 4;
/// Inputs that go by before the next tile's turn: panels of so many stay in the cache.
const DEPTH: usize = 512;

/// Sixteen lanes at an address that a vector does not straddle.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub(crate) struct Line(#[allow(dead_code)] [f32; LANES]);

thread_local! {
    /// Panels of weights.
    pub(crate) static PANEL_SCRATCH: RefCell<Vec<Line>> = RefCell::default();
}

/// How rows are parted in tiles.
#[derive(Clone, Copy)]
pub(crate) struct Tiles {
    rows: usize,
    /// Rows of each but the last.
    pub(crate) height: usize,
}

impl Tiles {
    pub(crate) fn new(rows: usize) -> Self {
        Tiles { rows, height: rows.div_ceil(rows.div_ceil(TILE)) }
    }

    pub(crate) fn count(self) -> usize {
        self.rows.div_ceil(self.height)
    }

    pub(crate) fn of(self, tile: usize) -> Range<usize> {
        tile * self.height..self.rows.min((tile + 1) * self.height)
    }
}

/// Lays rows of lanes out as columns: `source(row, at)` gives lanes `at..` of a row, zeros behind
/// its end; the `height` lanes of column `k` go to `out + k * stride`. The caller sees to it that there is room.
macro_rules! columns {
    ($depth:expr, $height:expr, $stride:expr, $out:expr, $source:expr) => {{
        let (depth, height, stride, out) = ($depth, $height, $stride, $out);
        let mask = first(height);
        let mut at = 0;
        while at < depth {
            let mut lanes = [_mm512_setzero_si512(); LANES];
            for (row, lanes) in lanes.iter_mut().enumerate().take(height) {
                *lanes = $source(row, at);
            }
            let columns = transpose(lanes);
            for (index, column) in columns.into_iter().enumerate().take(depth - at) {
                // SAFETY: column `at + index` of `depth`, which the caller has room for.
                unsafe { _mm512_mask_storeu_epi32(out.add((at + index) * stride), mask, column) };
            }
            at += LANES;
        }
    }};
}

/// Rows `range` of `rows` as `[inputs][range.len()]`.
///
/// # Safety
/// `out` has room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pack_tile(
    rows: &[f32],
    range: &Range<usize>,
    inputs: usize,
    height: usize,
    out: *mut f32,
) {
    let rows = &rows[range.start * inputs..range.end * inputs];
    let count = range.len();
    let out = out.cast::<i32>();
    columns!(inputs, height, height, out, |row: usize, at: usize| if row < count {
        // SAFETY: row `row` of `count`, its lanes inside.
        unsafe {
            let start = rows.as_ptr().add(row * inputs + at);
            _mm512_castps_si512(_mm512_maskz_loadu_ps(first(inputs - at), start))
        }
    } else {
        _mm512_setzero_si512()
    });
}

/// Asks for the part of a weight row that comes some steps later: sixteen rows are read side by
/// side, more than the processor follows by itself.
#[inline]
pub(crate) fn ask_ahead(start: *const u8) {
    // SAFETY: a prefetch reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(AHEAD).cast()) };
}

/// Bytes from a weight to the one that is asked for.
const AHEAD: usize = 512;

/// Inputs `depth` of the weight rows `outputs` in `bytes`, `inputs` long each, as float32 panels
/// `[panels][depth][PANEL]`; what is behind the last row is zero.
///
/// # Safety
/// The ranges are inside of the weight; `out` has room for whole panels.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pack_panels<S: Stored>(
    (bytes, inputs): (&[u8], usize),
    outputs: &Range<usize>,
    depth: &Range<usize>,
    out: *mut f32,
) {
    let long = depth.len();
    for (half, start) in outputs.clone().step_by(LANES).enumerate() {
        // Two halves of sixteen outputs make a panel.
        // SAFETY: inside of the panels.
        let out = unsafe { out.add((half / 2) * long * PANEL + (half % 2) * LANES) }.cast::<i32>();
        let count = LANES.min(outputs.end - start);
        columns!(long, LANES, PANEL, out, |row: usize, at: usize| if row < count {
            let place = (start + row) * inputs + depth.start + at;
            // SAFETY: output `start + row`, inputs `depth.start + at..` up to `depth.end`.
            unsafe {
                let start = bytes.as_ptr().add(S::BYTES * place);
                ask_ahead(start);
                _mm512_castps_si512(S::load(start, first(long - at)))
            }
        } else {
            _mm512_setzero_si512()
        });
        // A panel whose second half is missing is filled up.
        if outputs.end - start <= LANES && half % 2 == 0 {
            for at in 0..long {
                // SAFETY: inside of the panel.
                unsafe {
                    _mm512_storeu_epi32(out.add(at * PANEL + LANES), _mm512_setzero_si512());
                }
            }
        }
    }
}

/// A tile's sums over `depth` inputs, on top of `sums`.
///
/// # Safety
/// `tile` is `[depth][H]`, `panel` is `[depth][PANEL]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn products<const H: usize>(
    mut sums: [[__m512; 2]; H],
    mut tile: *const f32,
    mut panel: *const f32,
    depth: usize,
) -> [[__m512; 2]; H] {
    let end = panel.wrapping_add(depth * PANEL);
    while panel != end {
        // SAFETY: what the caller promises.
        unsafe {
            let left = _mm512_load_ps(panel);
            let right = _mm512_load_ps(panel.add(LANES));
            for (row, sums) in sums.iter_mut().enumerate() {
                let given = _mm512_set1_ps(*tile.add(row));
                sums[0] = _mm512_fmadd_ps(given, left, sums[0]);
                sums[1] = _mm512_fmadd_ps(given, right, sums[1]);
            }
            tile = tile.add(H);
            panel = panel.add(PANEL);
        }
    }
    sums
}

/// A tile of the results.
pub(crate) struct Place<'a> {
    pub(crate) linear: &'a Linear<'a>,
    pub(crate) out: &'a Out,
    pub(crate) rows: Range<usize>,
    pub(crate) columns: Range<usize>,
}

impl Place<'_> {
    /// Runs a tile: `first` starts from zero, `last` finishes.
    ///
    /// # Safety
    /// As [`products`]; the place is the caller's alone.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn run<const H: usize>(
        &self,
        tile: *const f32,
        panel: *const f32,
        depth: usize,
        (starts, ends): (bool, bool),
    ) {
        let sums = match starts {
            true => [[_mm512_setzero_ps(); 2]; H],
            false => self.load(),
        };
        // SAFETY: what the caller promises.
        let sums = unsafe { products(sums, tile, panel, depth) };
        self.store(sums, ends);
    }

    /// The columns' masks, of the left and the right half.
    pub(crate) fn masks(&self) -> [__mmask16; 2] {
        [first(self.columns.len()), first(self.columns.len().saturating_sub(LANES))]
    }

    /// The sums so far.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(crate) fn load<const H: usize>(&self) -> [[__m512; 2]; H] {
        let masks = self.masks();
        let mut sums = [[_mm512_setzero_ps(); 2]; H];
        for (row, sums) in self.rows.clone().zip(&mut sums) {
            // SAFETY: the place is inside of the results and the caller's alone; the masks end
            // where the columns do.
            unsafe {
                let start = self.out.start.add(row * self.out.outputs + self.columns.start);
                sums[0] = _mm512_maskz_loadu_ps(masks[0], start);
                sums[1] = _mm512_maskz_loadu_ps(masks[1], start.wrapping_add(LANES));
            }
        }
        sums
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(crate) fn store<const H: usize>(&self, sums: [[__m512; 2]; H], ends: bool) {
        let masks = self.masks();
        let column = self.columns.start;
        for (row, sums) in self.rows.clone().zip(sums) {
            let at = row * self.out.outputs + column;
            for (half, mut sum) in sums.into_iter().enumerate() {
                let (at, column) = (at + half * LANES, column + half * LANES);
                // SAFETY: as in `load`; bias and residual have the results' shapes.
                unsafe {
                    if ends {
                        sum = self.linear.finish.lanes(sum, masks[half], column, at);
                    }
                    let start = self.out.start.wrapping_add(at);
                    _mm512_mask_storeu_ps(start, masks[half], sum);
                }
            }
        }
    }
}

/// Calls `$call::<H>` for the height at hand.
macro_rules! by_height {
    ($height:expr, $this:expr, $method:ident($($argument:expr),*)) => {
        match $height {
            1 => $this.$method::<1>($($argument),*),
            2 => $this.$method::<2>($($argument),*),
            3 => $this.$method::<3>($($argument),*),
            4 => $this.$method::<4>($($argument),*),
            5 => $this.$method::<5>($($argument),*),
            6 => $this.$method::<6>($($argument),*),
            7 => $this.$method::<7>($($argument),*),
            8 => $this.$method::<8>($($argument),*),
            9 => $this.$method::<9>($($argument),*),
            10 => $this.$method::<10>($($argument),*),
            11 => $this.$method::<11>($($argument),*),
            12 => $this.$method::<12>($($argument),*),
            13 => $this.$method::<13>($($argument),*),
            _ => $this.$method::<14>($($argument),*),
        }
    };
}
pub(crate) use {by_height, columns};

/// A pointer that the parts of the work share, each writing places of its own.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(pub(crate) *mut T);

// SAFETY: said at each use.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn at(&self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }
}

impl Linear<'_> {
    /// The layer of many rows, weights as float32.
    pub(crate) fn many(
        &self,
        rows: &[f32],
        packed: &mut Vec<f32>,
        out: &Out,
        parallel: &dyn Parallel,
    ) {
        let Weight { outputs, inputs, .. } = self.weight;
        let tiles = Tiles::new(out.rows);
        packed.resize(tiles.count() * tiles.height * inputs, 0.0);
        let tile_size = tiles.height * inputs;
        let packed = Shared(packed.as_mut_ptr());
        parallel.run(tiles.count(), &|tile| {
            // SAFETY: `vectors` asked for the features; each part has a tile of its own.
            unsafe {
                let packed = packed.at(tile * tile_size);
                pack_tile(rows, &tiles.of(tile), inputs, tiles.height, packed);
            }
        });
        let part = part(outputs, parallel.threads());
        parallel.run(outputs.div_ceil(part), &|index| {
            let columns = index * part..outputs.min((index + 1) * part);
            PANEL_SCRATCH.with_borrow_mut(|panels| {
                panels.resize(part.next_multiple_of(PANEL) * DEPTH / LANES, Line::default());
                let panels: *mut f32 = panels.as_mut_ptr().cast();
                for start in (0..inputs.max(1)).step_by(DEPTH) {
                    let depth = start..inputs.min(start + DEPTH);
                    let passes = (start == 0, depth.end == inputs);
                    // SAFETY: `vectors` asked for the features; the tiles are packed and
                    // read alone now, the columns are this part's.
                    unsafe {
                        match self.weight.weights {
                            Weights::F32(bytes) => {
                                pack_panels::<Single>((bytes, inputs), &columns, &depth, panels);
                            }
                            Weights::F16(bytes) => {
                                pack_panels::<Half>((bytes, inputs), &columns, &depth, panels);
                            }
                            Weights::Bf16(bytes) => {
                                pack_panels::<Brain>((bytes, inputs), &columns, &depth, panels);
                            }
                            Weights::Int8 { .. } | Weights::Int4 { .. } => {
                                unreachable!("rounded weights meet rounded rows")
                            }
                        }
                        for tile in 0..tiles.count() {
                            let packed = packed.at(tile * tile_size + start * tiles.height);
                            for (panel, first) in columns.clone().step_by(PANEL).enumerate() {
                                let place = Place {
                                    linear: self,
                                    out,
                                    rows: tiles.of(tile),
                                    columns: first..columns.end.min(first + PANEL),
                                };
                                let panel = panels.add(panel * depth.len() * PANEL);
                                let long = depth.len();
                                by_height!(tiles.height, place, run(packed, panel, long, passes));
                            }
                        }
                    }
                }
            });
        });
    }
}

/// Outputs of a part of the work: whole panels, several parts a thread where there are enough.
pub(crate) fn part(outputs: usize, threads: usize) -> usize {
    let fair = outputs.div_ceil(4 * threads).next_multiple_of(PANEL);
    fair.clamp(PANEL, PANELS * PANEL)
}
