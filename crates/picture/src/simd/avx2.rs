//! The loops of [`super`], 32 bytes at a time.

use std::arch::x86_64::*;

fn load(values: &[i16; 16]) -> __m256i {
    bytemuck::cast(*values)
}

/// 16 levels as 16-bit numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(levels: &[u8; 16]) -> __m256i {
    _mm256_cvtepu8_epi16(bytemuck::cast(*levels))
}

/// Eight one-dimensional transforms side by side: `transform::pass`, operation by operation.
#[inline]
#[target_feature(enable = "avx2")]
fn pass<const SHIFT: i32>(rows: [__m256i; 8]) -> [__m256i; 8] {
    let add = |a, b| _mm256_add_epi32(a, b);
    let sub = |a, b| _mm256_sub_epi32(a, b);
    let mul = |value, constant| _mm256_mullo_epi32(value, _mm256_set1_epi32(constant));
    let (z2, z3) = (rows[2], rows[6]);
    let z1 = mul(add(z2, z3), 4433);
    let tmp2 = add(z1, mul(z3, -15137));
    let tmp3 = add(z1, mul(z2, 6270));
    let rounding = _mm256_set1_epi32(1 << (SHIFT - 1));
    // The rounding is in every sum of the even part.
    let tmp0 = add(_mm256_slli_epi32::<13>(add(rows[0], rows[4])), rounding);
    let tmp1 = add(_mm256_slli_epi32::<13>(sub(rows[0], rows[4])), rounding);
    let even = [add(tmp0, tmp3), add(tmp1, tmp2), sub(tmp1, tmp2), sub(tmp0, tmp3)];
    let (tmp0, tmp1, tmp2, tmp3) = (rows[7], rows[5], rows[3], rows[1]);
    let z1 = mul(add(tmp0, tmp3), -7373);
    let z2 = mul(add(tmp1, tmp2), -20995);
    let (z3, z4) = (add(tmp0, tmp2), add(tmp1, tmp3));
    let z5 = mul(add(z3, z4), 9633);
    let z3 = add(mul(z3, -16069), z5);
    let z4 = add(mul(z4, -3196), z5);
    let odd = [
        add(add(mul(tmp3, 12299), z1), z4),
        add(add(mul(tmp2, 25172), z2), z3),
        add(add(mul(tmp1, 16819), z2), z4),
        add(add(mul(tmp0, 2446), z1), z3),
    ];
    let shift = |value| _mm256_srai_epi32::<SHIFT>(value);
    [
        shift(add(even[0], odd[0])),
        shift(add(even[1], odd[1])),
        shift(add(even[2], odd[2])),
        shift(add(even[3], odd[3])),
        shift(sub(even[3], odd[3])),
        shift(sub(even[2], odd[2])),
        shift(sub(even[1], odd[1])),
        shift(sub(even[0], odd[0])),
    ]
}

#[inline]
#[target_feature(enable = "avx2")]
fn transpose(rows: [__m256i; 8]) -> [__m256i; 8] {
    let pairs = |a, b| (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let fours = |a, b| (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let [(a0, a1), (a2, a3), (a4, a5), (a6, a7)] = [
        pairs(rows[0], rows[1]),
        pairs(rows[2], rows[3]),
        pairs(rows[4], rows[5]),
        pairs(rows[6], rows[7]),
    ];
    let [(b0, b1), (b2, b3), (b4, b5), (b6, b7)] =
        [fours(a0, a2), fours(a1, a3), fours(a4, a6), fours(a5, a7)];
    let low = |a, b| _mm256_permute2x128_si256::<0x20>(a, b);
    let high = |a, b| _mm256_permute2x128_si256::<0x31>(a, b);
    [
        low(b0, b4),
        low(b1, b5),
        low(b2, b6),
        low(b3, b7),
        high(b0, b4),
        high(b1, b5),
        high(b2, b6),
        high(b3, b7),
    ]
}

#[target_feature(enable = "avx2")]
pub(super) fn inverse_dct(
    block: &[i16; 64],
    quantization: &[i16; 64],
    plane: &mut [u8],
    stride: usize,
) {
    let (block, steps) = (block.as_chunks::<8>().0, quantization.as_chunks::<8>().0);
    let mut rows = [_mm256_setzero_si256(); 8];
    for (row, (coefficients, steps)) in rows.iter_mut().zip(block.iter().zip(steps)) {
        let coefficients = _mm256_cvtepi16_epi32(bytemuck::cast(*coefficients));
        let steps = _mm256_cvtepi16_epi32(bytemuck::cast(*steps));
        *row = _mm256_mullo_epi32(coefficients, steps);
    }
    // The second pass is across: each vector of its result is a column.
    let columns = pass::<18>(transpose(pass::<11>(rows)));
    let pack = |a, b| _mm256_adds_epi16(_mm256_packs_epi32(a, b), _mm256_set1_epi16(128));
    let bytes = |place: usize| {
        let columns = &columns[place..place + 4];
        let all = _mm256_packus_epi16(pack(columns[0], columns[1]), pack(columns[2], columns[3]));
        // From four columns of four rows to four rows of four columns, in each half.
        let order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm256_shuffle_epi8(all, _mm256_broadcastsi128_si256(order))
    };
    let (left, right) = (bytes(0), bytes(4));
    let [row_0, row_1, row_4, row_5]: [[u8; 8]; 4] =
        bytemuck::cast(_mm256_unpacklo_epi32(left, right));
    let [row_2, row_3, row_6, row_7]: [[u8; 8]; 4] =
        bytemuck::cast(_mm256_unpackhi_epi32(left, right));
    let rows = [row_0, row_1, row_2, row_3, row_4, row_5, row_6, row_7];
    for (row, out) in rows.iter().zip(plane.chunks_mut(stride)) {
        out[..8].copy_from_slice(row);
    }
}

#[target_feature(enable = "avx2")]
pub(super) fn spread_both(sums: &[i16], out: &mut [u8], done: &mut usize) {
    spread::<8, 7, 4>(sums, out, done);
}

#[target_feature(enable = "avx2")]
pub(super) fn spread_across(sums: &[i16], out: &mut [u8], done: &mut usize) {
    spread::<1, 2, 2>(sums, out, done);
}

#[inline]
#[target_feature(enable = "avx2")]
fn spread<const LEFT: i16, const RIGHT: i16, const SHIFT: i32>(
    sums: &[i16],
    out: &mut [u8],
    done: &mut usize,
) {
    let Some(inner) = sums.len().checked_sub(2) else { return };
    let outs = out[2..].as_chunks_mut::<32>().0;
    let (before, own) = (sums.as_chunks::<16>().0, sums[1..].as_chunks::<16>().0);
    let after = sums[2..].as_chunks::<16>().0;
    for (((before, own), after), out) in before.iter().zip(own).zip(after).zip(outs) {
        let own = load(own);
        let thrice = _mm256_add_epi16(_mm256_add_epi16(own, own), own);
        let level = |other: &[i16; 16], rounding| {
            let sum = _mm256_add_epi16(
                _mm256_add_epi16(thrice, load(other)),
                _mm256_set1_epi16(rounding),
            );
            _mm256_srli_epi16::<SHIFT>(sum)
        };
        let both =
            _mm256_or_si256(level(before, LEFT), _mm256_slli_epi16::<8>(level(after, RIGHT)));
        *out = bytemuck::cast(both);
    }
    *done = inner / 16 * 16;
}

#[target_feature(enable = "avx2")]
pub(super) fn weigh(near: &[u8], far: &[u8], sums: &mut [i16]) {
    // Becomes vectors by itself.
    for ((sum, near), far) in sums.iter_mut().zip(near).zip(far) {
        *sum = i16::from(*near) * 3 + i16::from(*far);
    }
}

/// The bytes that a shuffle takes, of three vectors, for each of three vectors; -1 makes a 0.
type Orders = [[[i8; 16]; 3]; 3];

/// 16 pixels are three parts of 16 bytes, or three planes: the orders that make parts of planes, and
/// planes of parts.
const JOIN: Orders = orders().0;
const SPLIT: Orders = orders().1;

const fn orders() -> (Orders, Orders) {
    let (mut join, mut split) = ([[[-1; 16]; 3]; 3], [[[-1; 16]; 3]; 3]);
    let mut byte = 0;
    while byte < 48 {
        let (part, place) = (byte / 16, byte % 16);
        let (pixel, channel) = (byte / 3, byte % 3);
        join[part][channel][place] = pixel as i8;
        split[channel][part][pixel] = place as i8;
        byte += 1;
    }
    (join, split)
}

/// The bytes that `orders` takes of each of `parts`, together.
#[inline]
#[target_feature(enable = "avx2")]
fn gather(parts: [__m128i; 3], orders: [[i8; 16]; 3]) -> __m128i {
    let first = _mm_shuffle_epi8(parts[0], bytemuck::cast(orders[0]));
    let second = _mm_shuffle_epi8(parts[1], bytemuck::cast(orders[1]));
    let third = _mm_shuffle_epi8(parts[2], bytemuck::cast(orders[2]));
    _mm_or_si128(_mm_or_si128(first, second), third)
}

#[target_feature(enable = "avx2")]
pub(super) fn ycc_row(luma: &[u8], blue: &[u8], red: &[u8], out: &mut [u8]) {
    let half = _mm256_set1_epi16(128);
    let one = _mm256_set1_epi16(1);
    let pixels = out.as_chunks_mut::<48>().0.iter_mut();
    let chroma = blue.as_chunks::<16>().0.iter().zip(red.as_chunks::<16>().0);
    for (pixels, (luma, (blue, red))) in pixels.zip(luma.as_chunks::<16>().0.iter().zip(chroma)) {
        let luma = widen(luma);
        let (cb, cr) = (_mm256_sub_epi16(widen(blue), half), _mm256_sub_epi16(widen(red), half));
        // (factor * value + 2^15) >> 16 for a factor of 16 bits, as the half of twice that.
        let scaled = |value, factor| {
            let twice =
                _mm256_mulhi_epi16(_mm256_add_epi16(value, value), _mm256_set1_epi16(factor));
            _mm256_srai_epi16::<1>(_mm256_add_epi16(twice, one))
        };
        let r = _mm256_add_epi16(_mm256_add_epi16(luma, cr), scaled(cr, 26_345));
        let b =
            _mm256_add_epi16(_mm256_add_epi16(luma, _mm256_add_epi16(cb, cb)), scaled(cb, -14_942));
        let factors = _mm256_set1_epi32(18_734 << 16 | (-22_554_i16 as u16) as i32);
        let sum = |pairs| {
            let sum =
                _mm256_add_epi32(_mm256_madd_epi16(pairs, factors), _mm256_set1_epi32(1 << 15));
            _mm256_srai_epi32::<16>(sum)
        };
        let both = _mm256_packs_epi32(
            sum(_mm256_unpacklo_epi16(cb, cr)),
            sum(_mm256_unpackhi_epi16(cb, cr)),
        );
        let g = _mm256_add_epi16(_mm256_sub_epi16(luma, cr), both);
        // Halves side by side: the order of a pack.
        let bytes =
            |low, high| _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(low, high));
        let red_green = bytes(r, g);
        let red = _mm256_castsi256_si128(red_green);
        let green = _mm256_extracti128_si256::<1>(red_green);
        let planes = [red, green, _mm256_castsi256_si128(bytes(b, b))];
        let parts = [gather(planes, JOIN[0]), gather(planes, JOIN[1]), gather(planes, JOIN[2])];
        *pixels = bytemuck::cast(parts);
    }
}

#[target_feature(enable = "avx2")]
pub(super) fn split_planes(row: &[u8], red: &mut [i16], green: &mut [i16], blue: &mut [i16]) {
    let planes = red.as_chunks_mut::<16>().0.iter_mut().zip(green.as_chunks_mut::<16>().0);
    let planes = planes.zip(blue.as_chunks_mut::<16>().0);
    for (pixels, ((red, green), blue)) in row.as_chunks::<48>().0.iter().zip(planes) {
        let parts: [__m128i; 3] = bytemuck::cast(*pixels);
        *red = bytemuck::cast(_mm256_cvtepu8_epi16(gather(parts, SPLIT[0])));
        *green = bytemuck::cast(_mm256_cvtepu8_epi16(gather(parts, SPLIT[1])));
        *blue = bytemuck::cast(_mm256_cvtepu8_epi16(gather(parts, SPLIT[2])));
    }
}

/// High and low sums, put together.
#[inline]
#[target_feature(enable = "avx2")]
fn whole(sums: [__m256i; 2]) -> __m256i {
    _mm256_add_epi32(_mm256_slli_epi32::<15>(sums[0]), sums[1])
}

/// `sums` and the products of 16 old levels with the halves of their factors.
#[inline]
#[target_feature(enable = "avx2")]
fn weigh_more(sums: [__m256i; 2], old: &[i16; 16], high: __m256i, low: __m256i) -> [__m256i; 2] {
    let old = load(old);
    [
        _mm256_add_epi32(sums[0], _mm256_madd_epi16(old, high)),
        _mm256_add_epi32(sums[1], _mm256_madd_epi16(old, low)),
    ]
}

#[target_feature(enable = "avx2")]
pub(super) fn narrow_row(
    bounds: &[(usize, usize)],
    high: &[i16],
    low: &[i16],
    planes: &[i16],
    row: &mut [u8],
) {
    let stride = high.len() / bounds.len();
    let (red, rest) = planes.split_at(planes.len() / 3);
    let (green, blue) = rest.split_at(rest.len() / 2);
    let factors = high.chunks_exact(stride).zip(low.chunks_exact(stride));
    let places = bounds.iter().zip(factors);
    for (new, ((start, _), (high, low))) in row.as_chunks_mut::<3>().0.iter_mut().zip(places) {
        let old = *start..*start + stride;
        let old =
            red[old.clone()].as_chunks::<16>().0.iter().zip(
                green[old.clone()].as_chunks::<16>().0.iter().zip(blue[old].as_chunks::<16>().0),
            );
        let factors = high.as_chunks::<16>().0.iter().zip(low.as_chunks::<16>().0);
        let zero = [_mm256_setzero_si256(); 2];
        let (mut red, mut green, mut blue) = (zero, zero, zero);
        for ((old_red, (old_green, old_blue)), (high, low)) in old.zip(factors) {
            let (high, low) = (load(high), load(low));
            red = weigh_more(red, old_red, high, low);
            green = weigh_more(green, old_green, high, low);
            blue = weigh_more(blue, old_blue, high, low);
        }
        let (red, green, blue) = (whole(red), whole(green), whole(blue));
        let two = _mm256_hadd_epi32(red, green);
        let all = _mm256_hadd_epi32(two, _mm256_hadd_epi32(blue, blue));
        let all = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
        let levels = _mm_srai_epi32::<22>(_mm_add_epi32(all, _mm_set1_epi32(1 << 21)));
        let levels = _mm_packus_epi16(_mm_packs_epi32(levels, levels), levels);
        let [r, g, b, _] = _mm_cvtsi128_si32(levels).to_le_bytes();
        *new = [r, g, b];
    }
}

#[target_feature(enable = "avx2")]
pub(super) fn lower_row(old_rows: &[u8], high: &[i16], low: &[i16], new_row: &mut [u8]) {
    let length = new_row.len();
    let last = old_rows.len() / length - 1;
    // Two rows at a time; where their number is odd the factor of the second is 0.
    let pair = |factors: &[i16; 2]| _mm256_set1_epi32(bytemuck::cast(*factors));
    let factors = high.as_chunks::<2>().0.iter().zip(low.as_chunks::<2>().0);
    let factors = factors.take(last / 2 + 1);
    for (number, new) in new_row.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let mut sums = [[_mm256_setzero_si256(); 2]; 2];
        for (place, (high, low)) in factors.clone().enumerate() {
            let old = |row: usize| {
                let start = row.min(last) * length + number * 16;
                let old = old_rows[start..].first_chunk::<16>();
                old.map_or(_mm_setzero_si128(), |old| bytemuck::cast(*old))
            };
            let (first, second) = (old(place * 2), old(place * 2 + 1));
            let pairs = [_mm_unpacklo_epi8(first, second), _mm_unpackhi_epi8(first, second)];
            for (sums, pairs) in sums.iter_mut().zip(pairs) {
                let pairs = _mm256_cvtepu8_epi16(pairs);
                sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(pairs, pair(high)));
                sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(pairs, pair(low)));
            }
        }
        let [first, second] = sums.map(|[high, low]| {
            let sum = _mm256_add_epi32(_mm256_slli_epi32::<15>(high), low);
            _mm256_srai_epi32::<22>(_mm256_add_epi32(sum, _mm256_set1_epi32(1 << 21)))
        });
        // Packs work in halves: bring the four quarters in order.
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(first, second));
        let bytes =
            _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        *new = bytemuck::cast(bytes);
    }
}
