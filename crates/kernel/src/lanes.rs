//! Sixteen values at a time: loads from every stored form, `exp`, `erf`, and the
//! transposition of a square of lanes. All of it needs AVX-512 F, BW, DQ and VL.

use std::arch::x86_64::*;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// The mask of the first `count` lanes.
#[inline]
pub(crate) fn first(count: usize) -> __mmask16 {
    match count {
        LANES.. => !0,
        _ => (1 << count) - 1,
    }
}

/// The mask of the first `count` bytes.
#[inline]
pub(crate) fn first_bytes(count: usize) -> __mmask64 {
    match count {
        64.. => !0,
        _ => (1 << count) - 1,
    }
}

/// A form in which floats are stored.
pub(crate) trait Stored {
    /// Of an element.
    const BYTES: usize;

    /// The lanes of `mask` from `start` on; zero in the others.
    ///
    /// # Safety
    /// The lanes of `mask` are readable; called where AVX-512 F, BW and VL may be used.
    unsafe fn load(start: *const u8, mask: __mmask16) -> __m512;
}

/// float32.
pub(crate) struct Single;
/// float16.
pub(crate) struct Half;
/// bfloat16.
pub(crate) struct Brain;

impl Stored for Single {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load(start: *const u8, mask: __mmask16) -> __m512 {
        // SAFETY: what the caller promises.
        unsafe { _mm512_maskz_loadu_ps(mask, start.cast()) }
    }
}

impl Stored for Half {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(start: *const u8, mask: __mmask16) -> __m512 {
        // SAFETY: what the caller promises.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, start.cast())) }
    }
}

impl Stored for Brain {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(start: *const u8, mask: __mmask16) -> __m512 {
        // SAFETY: what the caller promises.
        unsafe {
            let halves = _mm256_maskz_loadu_epi16(mask, start.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))
        }
    }
}

/// `e^x`, within one unit in the last place from -87.3 to 88.7; 0 and infinity
/// outside, NaN of NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) fn exp(x: __m512) -> __m512 {
    // Beyond these the result is 0 or infinity anyway; the order of the operands keeps NaN.
    let x = _mm512_min_ps(_mm512_set1_ps(128.0), _mm512_max_ps(_mm512_set1_ps(-128.0), x));
    let n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)), 8);
    // ln 2 in two parts, so that the rest is exact.
    let rest = _mm512_fnmadd_ps(n, _mm512_set1_ps(355.0 / 512.0), x);
    let rest = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.121_944_4e-4), rest);
    // Cephes, expf.c.
    let mut p = _mm512_set1_ps(1.987_569_2e-4);
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(coefficient));
    }
    let square = _mm512_mul_ps(rest, rest);
    let p = _mm512_add_ps(_mm512_fmadd_ps(p, square, rest), _mm512_set1_ps(1.0));
    _mm512_scalef_ps(p, n)
}

/// The error function, within two units in the last place (N. Juffa's two
/// polynomials: odd below 0.92, `1 - e^p` above).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) fn erf(x: __m512) -> __m512 {
    let size = _mm512_abs_ps(x);
    let square = _mm512_mul_ps(x, x);
    let c = |value: f32| _mm512_set1_ps(value);

    let high = _mm512_fmadd_ps(c(-1.728_534_7e-5), size, c(3.831_979_7e-4));
    let low = _mm512_fmadd_ps(c(-3.883_964e-3), size, c(2.425_462_2e-2));
    let mut p = _mm512_fmadd_ps(high, square, low);
    for coefficient in [-1.067_778_8e-1, -6.348_468_7e-1, -1.287_175_1e-1] {
        p = _mm512_fmadd_ps(p, size, c(coefficient));
    }
    let p = _mm512_fnmadd_ps(_mm512_sub_ps(c(0.0), p), size, _mm512_sub_ps(c(0.0), size));
    let outer = _mm512_sub_ps(c(1.0), exp(p));
    let outer = _mm512_or_ps(outer, _mm512_and_ps(x, c(-0.0)));

    let mut q = c(-5.967_617e-4);
    for coefficient in
        [4.991_194_2e-3, -2.676_813_5e-2, 1.128_199_25e-1, -3.761_253_4e-1, 1.283_791_7e-1]
    {
        q = _mm512_fmadd_ps(q, square, c(coefficient));
    }
    let inner = _mm512_fmadd_ps(q, x, x);
    _mm512_mask_mov_ps(inner, _mm512_cmp_ps_mask(size, c(0.921_875), _CMP_GT_OQ), outer)
}

/// Rows to columns: lane `j` of vector `i` becomes lane `i` of vector `j`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) fn transpose(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut pairs = rows;
    for i in (0..LANES).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // Of each four rows: column 4b + j in block b of vector j.
    let mut fours = pairs;
    for i in (0..LANES).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    let mut columns = fours;
    for j in 0..4 {
        // Blocks 0 and 2, 1 and 3 of rows 0 to 7, then of rows 8 to 15.
        let even_low = _mm512_shuffle_i32x4(fours[j], fours[j + 4], 0b10_00_10_00);
        let odd_low = _mm512_shuffle_i32x4(fours[j], fours[j + 4], 0b11_01_11_01);
        let even_high = _mm512_shuffle_i32x4(fours[j + 8], fours[j + 12], 0b10_00_10_00);
        let odd_high = _mm512_shuffle_i32x4(fours[j + 8], fours[j + 12], 0b11_01_11_01);
        columns[j] = _mm512_shuffle_i32x4(even_low, even_high, 0b10_00_10_00);
        columns[j + 8] = _mm512_shuffle_i32x4(even_low, even_high, 0b11_01_11_01);
        columns[j + 4] = _mm512_shuffle_i32x4(odd_low, odd_high, 0b10_00_10_00);
        columns[j + 12] = _mm512_shuffle_i32x4(odd_low, odd_high, 0b11_01_11_01);
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn each(values: &[f32], function: impl Fn(__m512) -> __m512) -> Vec<f32> {
        let mut found = Vec::new();
        for chunk in values.chunks(LANES) {
            let mut lanes = [0f32; LANES];
            lanes[..chunk.len()].copy_from_slice(chunk);
            // SAFETY: both are sixteen floats.
            let lanes: [f32; LANES] =
                unsafe { std::mem::transmute(function(_mm512_loadu_ps(lanes.as_ptr()))) };
            found.extend_from_slice(&lanes[..chunk.len()]);
        }
        found
    }

    fn points() -> Vec<f32> {
        (-200_000..=200_000).map(|i| i as f32 * 4.3e-4).collect()
    }

    #[test]
    fn exponentials_are_right_to_the_last_place() {
        if !crate::is_supported() {
            eprintln!("skipped: this processor has no AVX-512");
            return;
        }
        let points = points();
        // SAFETY: the processor has the features, asked above.
        let found = unsafe { each(&points, |x| exp(x)) };
        for (x, found) in points.iter().zip(found) {
            let right = f64::from(*x).exp();
            assert!(((f64::from(found) - right) / right).abs() < 1.2e-7, "exp({x}) = {found}");
        }
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e9, -1e9, 0.0];
        // SAFETY: as above.
        let found = unsafe { each(&odd, |x| exp(x)) };
        assert!(found[0].is_nan());
        assert_eq!(&found[1..], [f32::INFINITY, 0.0, f32::INFINITY, 0.0, 1.0]);
    }

    #[test]
    fn error_functions_are_right() {
        if !crate::is_supported() {
            eprintln!("skipped: this processor has no AVX-512");
            return;
        }
        // DLMF 7.2; the values from mpmath.
        let points = [0.0f32, 0.1, 0.5, 0.9, 0.93, 1.0, 1.5, 2.0, 3.0, 5.0];
        let right = [
            0.0,
            0.112_462_92,
            0.520_499_9,
            0.796_908_2,
            0.811_563_6,
            0.842_700_8,
            0.966_105_16,
            0.995_322_3,
            0.999_977_9,
            1.0f32,
        ];
        // SAFETY: the processor has the features, asked above.
        let found = unsafe { each(&points, |x| erf(x)) };
        for ((x, found), right) in points.iter().zip(found).zip(right) {
            assert!((found - right).abs() < 1.5e-7, "erf({x}) = {found}, not {right}");
        }
    }

    #[test]
    fn a_square_is_transposed() {
        if !crate::is_supported() {
            eprintln!("skipped: this processor has no AVX-512");
            return;
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn run() -> Vec<i32> {
            let rows = std::array::from_fn(|row| {
                let row: [i32; LANES] = std::array::from_fn(|column| (16 * row + column) as i32);
                // SAFETY: sixteen integers.
                unsafe { _mm512_loadu_epi32(row.as_ptr()) }
            });
            transpose(rows)
                .into_iter()
                // SAFETY: both are sixteen integers.
                .flat_map(|column| unsafe { std::mem::transmute::<__m512i, [i32; 16]>(column) })
                .collect()
        }
        // SAFETY: the processor has the features, asked above.
        let found = unsafe { run() };
        for column in 0..16 {
            for row in 0..16 {
                assert_eq!(found[16 * column + row], (16 * row + column) as i32);
            }
        }
    }
}
