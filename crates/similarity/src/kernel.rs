//! The products of rows and images, once for each set of instructions.
//!
//! Every path adds in the same order, with the same fused multiply-adds: element `k` of a row goes
//! to sum `k % 64`, and the sums are added by halves. A similarity is the same number on every
//! machine, and in every company of rows and images.
//!
//! Rows are read one after the other, as they lie: on a Zen 4, several at once took twice as long, and
//! asking for them ahead of the processor's own prefetching a third longer; on a Sapphire Rapids all took 1.7 times
//! as long without asking.

use half::f16;

/// Elements of a vector, and vectors of sums: enough to wait for no multiply-add.
const LANES: usize = 16;
const VECTORS: usize = 4;
const SUMS: usize = LANES * VECTORS;

/// The sums of a product, added by halves.
#[inline(always)]
fn total(sums: [[f32; LANES]; VECTORS]) -> f32 {
    let [first, second, third, fourth] = sums;
    let mut lanes: [f32; LANES] =
        std::array::from_fn(|lane| (first[lane] + third[lane]) + (second[lane] + fourth[lane]));
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The last elements of a vector, and zeros.
#[inline(always)]
fn padded<T: Copy + Default>(rest: &[T]) -> [[T; LANES]; VECTORS] {
    let mut block = [[T::default(); LANES]; VECTORS];
    block.as_flattened_mut()[..rest.len()].copy_from_slice(rest);
    block
}

/// `values` as blocks of [`SUMS`], and what is left.
#[inline(always)]
fn blocks<T>(values: &[T]) -> (&[[[T; LANES]; VECTORS]], &[T]) {
    let (vectors, _) = values.as_chunks::<LANES>();
    let (blocks, _) = vectors.as_chunks::<VECTORS>();
    (blocks, &values[blocks.len() * SUMS..])
}

/// Bytes from the values at hand to those that are asked for.
const AHEAD: usize = 8192;

/// Asks for the values that come some pages later, to be in the second cache by then.
#[inline(always)]
fn ask_ahead(values: &[[f16; LANES]; VECTORS]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        const LINE: usize = 64;
        for line in (0..size_of_val(values)).step_by(LINE) {
            let start = std::ptr::from_ref(values).cast::<i8>();
            // SAFETY: a prefetch reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(AHEAD + line)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// A path: `block` over its own `IMAGES`, `zero`, `load`, `widen`, `multiply_add` and `lanes`.
macro_rules! path {
    ($(#[$features:meta])*) => {
        /// Products of `rows` (float16 `[r, dimension]`) with `images` (float32 `[i, dimension]`)
        /// into `results`, a list of `r` for each image; `ASKS` for rows ahead.
        $(#[$features])*
        pub(crate) fn block<const ASKS: bool>(
            rows: &[f16],
            images: &[f32],
            dimension: usize,
            results: &mut [&mut [f32]],
        ) {
            for (number, row) in rows.chunks_exact(dimension).enumerate() {
                let groups = images.chunks(IMAGES * dimension).zip(results.chunks_mut(IMAGES));
                for (images, results) in groups {
                    if results.len() == IMAGES {
                        products::<IMAGES, ASKS>(row, images, number, results);
                    } else {
                        for (image, result) in images.chunks_exact(dimension).zip(results) {
                            products::<1, ASKS>(row, image, number, std::slice::from_mut(result));
                        }
                    }
                }
            }
        }

        /// The products of one row, into place `number` of each list.
        #[inline]
        $(#[$features])*
        fn products<const I: usize, const ASKS: bool>(
            row: &[f16],
            images: &[f32],
            number: usize,
            results: &mut [&mut [f32]],
        ) {
            let (row, row_rest) = blocks(row);
            let dimension = images.len() / I;
            let images: [_; I] = std::array::from_fn(|i| blocks(&images[i * dimension..][..dimension]));
            let mut sums = [[zero(); VECTORS]; I];
            for (place, row) in row.iter().enumerate() {
                if ASKS {
                    ask_ahead(row);
                }
                let row = row.each_ref().map(|vector| widen(vector));
                for (sums, (image, _)) in sums.iter_mut().zip(images) {
                    // SAFETY: an image has as many blocks as a row. A check here would keep the
                    // sums in memory.
                    let image = unsafe { image.get_unchecked(place) };
                    for vector in 0..VECTORS {
                        sums[vector] = multiply_add(row[vector], load(&image[vector]), sums[vector]);
                    }
                }
            }
            for (((_, image_rest), mut sums), result) in images.into_iter().zip(sums).zip(results) {
                if !row_rest.is_empty() {
                    let (row, image) = (padded(row_rest), padded(image_rest));
                    for vector in 0..VECTORS {
                        let (row, image) = (widen(&row[vector]), load(&image[vector]));
                        sums[vector] = multiply_add(row, image, sums[vector]);
                    }
                }
                result[number] = total(sums.map(|sum| lanes(sum)));
            }
        }
    };
}

/// Any processor. Without a fused multiply-add of its own this is slow, and still the same.
pub(crate) mod portable {
    use half::slice::HalfFloatSliceExt;

    use super::{LANES, VECTORS, ask_ahead, blocks, f16, padded, total};

    type Vector = [f32; LANES];

    const IMAGES: usize = 1;

    fn zero() -> Vector {
        [0.0; LANES]
    }

    fn load(values: &[f32; LANES]) -> Vector {
        *values
    }

    fn widen(values: &[f16; LANES]) -> Vector {
        let mut wide = zero();
        values.convert_to_f32_slice(&mut wide);
        wide
    }

    fn multiply_add(a: Vector, b: Vector, sum: Vector) -> Vector {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], sum[lane]))
    }

    fn lanes(vector: Vector) -> [f32; LANES] {
        vector
    }

    path!();
}

/// Two vectors of eight.
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2 {
    use std::arch::x86_64::{__m256, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_setzero_ps};

    use super::{LANES, VECTORS, ask_ahead, blocks, f16, padded, total};

    type Vector = [__m256; 2];

    /// The sums of one image take half of the registers.
    const IMAGES: usize = 1;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn zero() -> Vector {
        [_mm256_setzero_ps(); 2]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn load(values: &[f32; LANES]) -> Vector {
        bytemuck::cast(*values)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn widen(values: &[f16; LANES]) -> Vector {
        let [low, high] = bytemuck::cast(*values);
        [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn multiply_add(a: Vector, b: Vector, sum: Vector) -> Vector {
        [_mm256_fmadd_ps(a[0], b[0], sum[0]), _mm256_fmadd_ps(a[1], b[1], sum[1])]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn lanes(vector: Vector) -> [f32; LANES] {
        bytemuck::cast(vector)
    }

    path!(#[target_feature(enable = "avx2,fma,f16c")]);
}

/// One vector of sixteen.
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512 {
    use std::arch::x86_64::{__m512, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_setzero_ps};

    use super::{LANES, VECTORS, ask_ahead, blocks, f16, padded, total};

    type Vector = __m512;

    /// Their sums take half of the registers.
    const IMAGES: usize = 4;

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn zero() -> Vector {
        _mm512_setzero_ps()
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(values: &[f32; LANES]) -> Vector {
        bytemuck::cast(*values)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn widen(values: &[f16; LANES]) -> Vector {
        _mm512_cvtph_ps(bytemuck::cast(*values))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn multiply_add(a: Vector, b: Vector, sum: Vector) -> Vector {
        _mm512_fmadd_ps(a, b, sum)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn lanes(vector: Vector) -> [f32; LANES] {
        bytemuck::cast(vector)
    }

    path!(#[target_feature(enable = "avx512f")]);
}
