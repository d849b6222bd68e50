//! Weights in fewer bits, in the forms of ONNX's `DequantizeLinear`.
//!
//! * **int8**: signed bytes and a float32 scale an output; the value is `scale * byte`.
//! * **int4**: signed nibbles, two consecutive inputs a byte, the first in the low nibble, and a
//!   float32 scale for each [`INT4_GROUP`] inputs of an output; the value is `scale * nibble`.
//!
//! Both are symmetric, rounded to nearest. Rows of activations are rounded to 8 bits when they
//! are multiplied: for int8 a scale for each [`ROW_BLOCK`] inputs, for int4 for each 128.

/// Inputs of a row that share a scale when it meets int8 weights.
pub const ROW_BLOCK: usize = 256;
/// Inputs that share a scale of int4 weights; their number must be a multiple of it.
pub const INT4_GROUP: usize = 64;
/// Inputs of a row that share a scale when it meets int4 weights: 64 bytes of them.
pub(crate) const INT4_BLOCK: usize = 128;

/// A matrix `[outputs, inputs]` in fewer bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Bytes or pairs of nibbles, row-major.
    pub values: Vec<u8>,
    /// `[outputs]`, or `[outputs, inputs / INT4_GROUP]`.
    pub scales: Vec<f32>,
}

/// The rows of `weights`, `inputs` long each, in 8 bits.
#[must_use]
pub fn to_int8(weights: &[f32], inputs: usize) -> Quantized {
    let mut values = Vec::with_capacity(weights.len());
    let mut scales = Vec::with_capacity(weights.len() / inputs.max(1));
    for row in weights.chunks_exact(inputs.max(1)) {
        let largest = row.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        values.extend(row.iter().map(|value| (value * inverse).round_ties_even() as i8 as u8));
        scales.push(largest / 127.0);
    }
    Quantized { values, scales }
}

/// The rows of `weights`, `inputs` long each (a multiple of [`INT4_GROUP`]), in 4 bits. A group's
/// scale is the one of several around its largest value's that leaves the smallest squared error.
#[must_use]
pub fn to_int4(weights: &[f32]) -> Quantized {
    let mut values = Vec::with_capacity(weights.len() / 2);
    let mut scales = Vec::with_capacity(weights.len() / INT4_GROUP);
    for group in weights.chunks_exact(INT4_GROUP) {
        let scale = group_scale(group);
        let nibble = |value: f32| to_nibble(value, scale) as i8 as u8 & 15;
        values.extend(group.chunks_exact(2).map(|two| nibble(two[0]) | nibble(two[1]) << 4));
        scales.push(scale);
    }
    Quantized { values, scales }
}

fn to_nibble(value: f32, scale: f32) -> f32 {
    match scale {
        0.0 => 0.0,
        _ => (value / scale).round_ties_even().clamp(-8.0, 7.0),
    }
}

fn group_scale(group: &[f32]) -> f32 {
    let extreme = group.iter().fold(0f32, |e, &v| if v.abs() > e.abs() { v } else { e });
    let mut best = (f32::INFINITY, 0.0);
    // The extreme value at -8, or somewhat inside, with the sign that puts it there.
    for divisor in [-8.0, -7.6, -7.2, -6.8, 7.0, 6.6] {
        let scale = extreme / divisor;
        let error = group.iter().map(|&v| (v - scale * to_nibble(v, scale)).powi(2)).sum::<f32>();
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

/// Element `index` of int4 values, without its scale.
pub(crate) fn nibble(values: &[u8], index: usize) -> f32 {
    let byte = values[index / 2] >> (4 * (index % 2));
    f32::from((byte << 4) as i8 >> 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.7).sin() * (1.0 + (i % 13) as f32)).collect()
    }

    #[test]
    fn eight_bits_are_within_half_a_step() {
        let weights = wave(3 * 50);
        let rounded = to_int8(&weights, 50);
        for (index, weight) in weights.iter().enumerate() {
            let scale = rounded.scales[index / 50];
            let value = scale * f32::from(rounded.values[index] as i8);
            assert!((value - weight).abs() <= 0.501 * scale, "{weight} became {value}");
        }
    }

    #[test]
    fn four_bits_are_within_a_step() {
        let weights = wave(6 * INT4_GROUP);
        let rounded = to_int4(&weights);
        for (index, weight) in weights.iter().enumerate() {
            let scale = rounded.scales[index / INT4_GROUP];
            let value = scale * nibble(&rounded.values, index);
            assert!((value - weight).abs() <= 1.3 * scale.abs(), "{weight} became {value}");
        }
    }

    #[test]
    fn rows_of_zeros_stay_zeros() {
        assert_eq!(to_int8(&[0.0; 8], 8).values, [0; 8]);
        assert_eq!(to_int4(&[0.0; 64]).values, [0; 32]);
    }
}
