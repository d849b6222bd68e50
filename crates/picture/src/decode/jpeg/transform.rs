//! The inverse DCT, chroma upsampling and colours, with libjpeg's own integers:
//! jidctint.c (`jpeg_idct_islow`), jdsample.c ("fancy" upsampling) and jdcolor.c.

use super::frame::Component;
use crate::simd::Simd;

/// Fractional bits of the constants, and of the first pass's results.
const CONST_BITS: i32 = 13;
const PASS_1_BITS: i32 = 2;

/// 64 coefficients in natural order, dequantised, to 8 rows of 8 levels in `plane`.
pub(super) fn inverse_dct(
    block: &[i16; 64],
    quantization: &[i16; 64],
    plane: &mut [u8],
    (stride, simd): (usize, Simd),
) {
    if simd.inverse_dct(block, quantization, plane, stride) {
        return;
    }
    let mut rows = [[0_i32; 8]; 8];
    for (row, (coefficients, steps)) in
        rows.iter_mut().zip(block.chunks_exact(8).zip(quantization.chunks_exact(8)))
    {
        for (value, (coefficient, step)) in row.iter_mut().zip(coefficients.iter().zip(steps)) {
            *value = i32::from(*coefficient) * i32::from(*step);
        }
    }
    pass(&mut rows, CONST_BITS - PASS_1_BITS);
    let mut columns = transpose(&rows);
    pass(&mut columns, CONST_BITS + PASS_1_BITS + 3);
    for (row, out) in transpose(&columns).iter().zip(plane.chunks_mut(stride)) {
        for (level, value) in out[..8].iter_mut().zip(row) {
            *level = (value + 128).clamp(0, 255) as u8;
        }
    }
}

/// The same for a block of its first coefficient alone: one level.
pub(super) fn flat_level(coefficient: i16, step: i16) -> u8 {
    let value = (i32::from(coefficient) * i32::from(step)) << PASS_1_BITS;
    let rounded = value.wrapping_add(1 << (PASS_1_BITS + 2)) >> (PASS_1_BITS + 3);
    (rounded + 128).clamp(0, 255) as u8
}

fn transpose(rows: &[[i32; 8]; 8]) -> [[i32; 8]; 8] {
    let mut out = [[0; 8]; 8];
    for (y, row) in rows.iter().enumerate() {
        for (x, value) in row.iter().enumerate() {
            out[x][y] = *value;
        }
    }
    out
}

/// Eight one-dimensional transforms side by side, down the columns. A damaged file may overflow:
/// its levels mean nothing, but it must not panic.
#[inline]
fn pass(rows: &mut [[i32; 8]; 8], shift: i32) {
    let rounding = 1 << (shift - 1);
    let mul = |value: i32, constant: i32| value.wrapping_mul(constant);
    // By index: eight columns at once become vectors.
    #[expect(clippy::needless_range_loop)]
    for column in 0..8 {
        let input = |row: usize| rows[row][column];
        let (z2, z3) = (input(2), input(6));
        let z1 = mul(z2.wrapping_add(z3), 4433);
        let tmp2 = z1.wrapping_add(mul(z3, -15137));
        let tmp3 = z1.wrapping_add(mul(z2, 6270));
        let tmp0 = input(0).wrapping_add(input(4)) << CONST_BITS;
        let tmp1 = input(0).wrapping_sub(input(4)) << CONST_BITS;
        let even = [
            tmp0.wrapping_add(tmp3),
            tmp1.wrapping_add(tmp2),
            tmp1.wrapping_sub(tmp2),
            tmp0.wrapping_sub(tmp3),
        ];
        let (tmp0, tmp1, tmp2, tmp3) = (input(7), input(5), input(3), input(1));
        let z1 = mul(tmp0.wrapping_add(tmp3), -7373);
        let z2 = mul(tmp1.wrapping_add(tmp2), -20995);
        let (z3, z4) = (tmp0.wrapping_add(tmp2), tmp1.wrapping_add(tmp3));
        let z5 = mul(z3.wrapping_add(z4), 9633);
        let z3 = mul(z3, -16069).wrapping_add(z5);
        let z4 = mul(z4, -3196).wrapping_add(z5);
        let odd = [
            mul(tmp3, 12299).wrapping_add(z1).wrapping_add(z4),
            mul(tmp2, 25172).wrapping_add(z2).wrapping_add(z3),
            mul(tmp1, 16819).wrapping_add(z2).wrapping_add(z4),
            mul(tmp0, 2446).wrapping_add(z1).wrapping_add(z3),
        ];
        for place in 0..4 {
            let (even, odd) = (even[place].wrapping_add(rounding), odd[place]);
            rows[place][column] = even.wrapping_add(odd) >> shift;
            rows[7 - place][column] = even.wrapping_sub(odd) >> shift;
        }
    }
}

/// How a component's samples become the picture's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upsampling {
    /// Each sample as often as needed, across and down.
    Repeat(usize, usize),
    /// Triangle filter across.
    Across,
    /// Triangle filter down.
    Down,
    /// Triangle filter both ways.
    Both,
}

impl Upsampling {
    /// jdsample.c `jinit_upsampler`: the filter only for a factor of 2, and across only for
    /// more than 2 samples.
    pub(super) fn of(factors: (usize, usize), width: usize) -> Self {
        match factors {
            (2, 1) if width > 2 => Upsampling::Across,
            (2, 2) if width > 2 => Upsampling::Both,
            (1, 2) => Upsampling::Down,
            (across, down) => Upsampling::Repeat(across, down),
        }
    }

    /// Row `y` of the picture, made of the samples of `component`, in the first buffer if they are
    /// not it already.
    pub(super) fn row<'a>(
        self,
        y: usize,
        component: &'a Component,
        (out, sums): (&'a mut Vec<u8>, &mut Vec<i16>),
        simd: Simd,
    ) -> &'a [u8] {
        let line = |row: usize| component.line(row);
        // The neighbouring row, nearer than any other but the row itself.
        let beside =
            |y: usize| if y.is_multiple_of(2) { (y / 2).saturating_sub(1) } else { y / 2 + 1 };
        match self {
            Upsampling::Repeat(1, 1) => return line(y),
            Upsampling::Repeat(across, down) => {
                out.clear();
                out.extend(
                    line(y / down).iter().flat_map(|sample| std::iter::repeat_n(*sample, across)),
                );
            }
            Upsampling::Across => {
                sums.clear();
                sums.extend(line(y).iter().map(|sample| i16::from(*sample)));
                out.resize(sums.len() * 2, 0);
                let mut done = 0;
                let _ = simd.spread_across(sums, out, &mut done);
                spread::<1, 2, 2>(sums, done, out);
            }
            Upsampling::Down => {
                let bias = if y.is_multiple_of(2) { 1 } else { 2 };
                let pairs = line(y / 2).iter().zip(line(beside(y)));
                out.clear();
                out.extend(pairs.map(|(near, far)| {
                    ((u16::from(*near) * 3 + u16::from(*far) + bias) >> 2) as u8
                }));
            }
            Upsampling::Both => {
                let (near, far) = (line(y / 2), line(beside(y)));
                sums.resize(near.len(), 0);
                if !simd.weigh(near, far, sums) {
                    for ((sum, near), far) in sums.iter_mut().zip(near).zip(far) {
                        *sum = i16::from(*near) * 3 + i16::from(*far);
                    }
                }
                out.resize(sums.len() * 2, 0);
                let mut done = 0;
                let _ = simd.spread_both(sums, out, &mut done);
                spread::<8, 7, 4>(sums, done, out);
            }
        }
        out
    }
}

/// The triangle filter across: twice as many levels as `sums`, weighted 3 to 1, with the
/// roundings of left and right halves. The ends have no neighbour: they count four times.
/// Of `done` sums after the first the levels are there already.
fn spread<const LEFT: i16, const RIGHT: i16, const SHIFT: u32>(
    sums: &[i16],
    done: usize,
    out: &mut [u8],
) {
    let level = |near: i16, far: i16, rounding: i16| {
        (near.wrapping_mul(3).wrapping_add(far).wrapping_add(rounding) >> SHIFT) as u8
    };
    let (first, last) = (sums[0], sums[sums.len() - 1]);
    let ends = out.len() - 1;
    let pairs = sums[done..].iter().zip(&sums[done + 1..]);
    let rest = out[1 + 2 * done..ends].as_chunks_mut::<2>().0;
    for (out, (before, after)) in rest.iter_mut().zip(pairs) {
        *out = [level(*before, *after, RIGHT), level(*after, *before, LEFT)];
    }
    out[1] = level(first, sums[1], RIGHT);
    out[0] = level(first, first, LEFT);
    out[ends] = level(last, last, RIGHT);
}

/// One row of luma and chroma to RGB, 16 pixels at a time: a fixed count becomes vectors.
pub(super) fn ycc_row([luma, blue, red]: [&[u8]; 3], simd: Simd, out: &mut [u8]) {
    const AT_ONCE: usize = 16;
    let is_done = simd.ycc_row(luma, blue, red, out);
    let (out, out_rest) = out.as_chunks_mut::<{ 3 * AT_ONCE }>();
    let (luma, luma_rest) = luma.as_chunks::<AT_ONCE>();
    let done = luma.len() * AT_ONCE;
    let chroma = blue.as_chunks::<AT_ONCE>().0.iter().zip(red.as_chunks::<AT_ONCE>().0);
    let out = if is_done { &mut [] } else { out };
    for ((pixels, luma), (blue, red)) in out.iter_mut().zip(luma).zip(chroma) {
        let mut planes = [[0; AT_ONCE]; 3];
        for x in 0..AT_ONCE {
            let rgb = ycc_to_rgb(luma[x], blue[x], red[x]);
            for (plane, level) in planes.iter_mut().zip(rgb) {
                plane[x] = level;
            }
        }
        for (x, pixel) in pixels.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            *pixel = [planes[0][x], planes[1][x], planes[2][x]];
        }
    }
    let rest = luma_rest.iter().zip(&blue[done..]).zip(&red[done..]);
    for (pixel, ((luma, blue), red)) in out_rest.as_chunks_mut::<3>().0.iter_mut().zip(rest) {
        *pixel = ycc_to_rgb(*luma, *blue, *red);
    }
}

/// One pixel. jdcolor.c's constants have 16 fractional bits; their whole parts are added apart so
/// that the products are of 16-bit numbers. Nothing here can overflow; `wrapping` keeps the checks
/// of release builds out of the loop.
#[inline]
pub(super) fn ycc_to_rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let times = |factor: i32, value: i32| factor.wrapping_mul(value);
    let red = y.wrapping_add(cr).wrapping_add(times(26_345, cr).wrapping_add(HALF) >> 16);
    let both = times(18_734, cr).wrapping_sub(times(22_554, cb)).wrapping_add(HALF) >> 16;
    let green = y.wrapping_sub(cr).wrapping_add(both);
    let blue = HALF.wrapping_sub(times(14_942, cb)) >> 16;
    let blue = y.wrapping_add(cb << 1).wrapping_add(blue);
    [red, green, blue].map(|level| level.clamp(0, 255) as u8)
}

/// Pillow takes every CMYK JPEG as Adobe writes it, inverted (`CMYK;I`), then multiplies
/// (`cmyk2rgb` of Convert.c, `MULDIV255`).
pub(super) fn cmyk_to_rgb(inverted: [u8; 3], inverted_key: u8) -> [u8; 3] {
    let white = i32::from(inverted_key);
    inverted.map(|level| {
        let product = i32::from(255 - level) * white + 128;
        (white - (((product >> 8) + product) >> 8)).clamp(0, 255) as u8
    })
}
