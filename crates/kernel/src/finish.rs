//! What follows a matrix product, applied while its results are in the cache.

/// The activation of each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * Phi(x)` with the error function.
    Gelu,
    /// The tanh form of [`Activation::Gelu`].
    GeluTanh,
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `x * sigmoid(x)`.
    Silu,
}

/// `activation(product + bias) + residual`; what is `None` is left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Finish<'a> {
    /// `[outputs]`, added to every row.
    pub bias: Option<&'a [f32]>,
    /// Applied to every element.
    pub activation: Option<Activation>,
    /// `[rows, outputs]`, added last.
    pub residual: Option<&'a [f32]>,
}

impl Finish<'_> {
    /// Finishes `values`, outputs `column..` of row `row` of `outputs`.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(crate) fn apply(&self, values: &mut [f32], row: usize, column: usize, outputs: usize) {
        use std::arch::x86_64::*;

        use crate::lanes::{LANES, first};
        assert!(column + values.len() <= outputs);
        for (index, chunk) in values.chunks_mut(LANES).enumerate() {
            let (mask, column) = (first(chunk.len()), column + index * LANES);
            // SAFETY: the mask leaves out what is behind the row's end.
            unsafe {
                let lanes = _mm512_maskz_loadu_ps(mask, chunk.as_ptr());
                let lanes = self.lanes(lanes, mask, column, row * outputs + column);
                _mm512_mask_storeu_ps(chunk.as_mut_ptr(), mask, lanes);
            }
        }
    }

    /// Finishes sixteen values of a row: outputs from `column` on, which are values from `start` on
    /// of all results; those of `mask` are there.
    ///
    /// # Safety
    /// The values of `mask` are inside of the bias' and the residual's shapes.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(crate) unsafe fn lanes(
        &self,
        values: std::arch::x86_64::__m512,
        mask: std::arch::x86_64::__mmask16,
        column: usize,
        start: usize,
    ) -> std::arch::x86_64::__m512 {
        use std::arch::x86_64::*;
        let mut values = values;
        if let Some(bias) = self.bias {
            let bias = bias.as_ptr().wrapping_add(column);
            // SAFETY: what the caller promises.
            values = _mm512_add_ps(values, unsafe { _mm512_maskz_loadu_ps(mask, bias) });
        }
        if let Some(activation) = self.activation {
            values = activation.apply(values);
        }
        if let Some(residual) = self.residual {
            let residual = residual.as_ptr().wrapping_add(start);
            // SAFETY: what the caller promises.
            values = _mm512_add_ps(values, unsafe { _mm512_maskz_loadu_ps(mask, residual) });
        }
        values
    }

    /// [`Finish::apply`] without vectors.
    pub(crate) fn apply_portable(
        &self,
        values: &mut [f32],
        row: usize,
        column: usize,
        outputs: usize,
    ) {
        for (index, value) in values.iter_mut().enumerate() {
            let mut v = *value + self.bias.map_or(0.0, |bias| bias[column + index]);
            if let Some(activation) = self.activation {
                v = activation.of(v);
            }
            *value = v + self.residual.map_or(0.0, |all| all[row * outputs + column + index]);
        }
    }
}

impl Activation {
    /// Of one value, for processors without the vectors; in float64 inside.
    fn of(self, x: f32) -> f32 {
        let wide = f64::from(x);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let value = match self {
            Activation::Gelu => 0.5 * wide * erfc(-wide * std::f64::consts::FRAC_1_SQRT_2),
            Activation::GeluTanh => wide * sigmoid(2.0 * tanh_argument(wide)),
            Activation::QuickGelu => wide * sigmoid(1.702 * wide),
            Activation::Relu => wide.max(0.0),
            Activation::Silu => wide * sigmoid(wide),
        };
        value as f32
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn apply(self, x: std::arch::x86_64::__m512) -> std::arch::x86_64::__m512 {
        use std::arch::x86_64::*;

        use crate::lanes::{erf, exp};
        let c = |value: f32| _mm512_set1_ps(value);
        match self {
            Activation::Gelu => {
                let phi = erf(_mm512_mul_ps(x, c(std::f32::consts::FRAC_1_SQRT_2)));
                _mm512_mul_ps(_mm512_mul_ps(x, c(0.5)), _mm512_add_ps(phi, c(1.0)))
            }
            Activation::GeluTanh => {
                // 0.5 (1 + tanh(u)) = sigmoid(2 u).
                let square = _mm512_mul_ps(x, x);
                let inner = _mm512_fmadd_ps(square, c(TANH_CUBIC), c(1.0));
                let u = _mm512_mul_ps(_mm512_mul_ps(x, c(TANH_SCALE)), inner);
                let below = _mm512_add_ps(c(1.0), exp(_mm512_mul_ps(u, c(-2.0))));
                _mm512_div_ps(x, below)
            }
            Activation::QuickGelu => {
                let below = _mm512_add_ps(c(1.0), exp(_mm512_mul_ps(x, c(-1.702))));
                _mm512_div_ps(x, below)
            }
            // In this order a NaN stays one.
            Activation::Relu => _mm512_max_ps(c(0.0), x),
            Activation::Silu => {
                let below = _mm512_add_ps(c(1.0), exp(_mm512_sub_ps(c(0.0), x)));
                _mm512_div_ps(x, below)
            }
        }
    }
}

/// `sqrt(2 / pi)` and the factor of the cube, of GELU's tanh form.
const TANH_SCALE: f32 = 0.797_884_6;
const TANH_CUBIC: f32 = 0.044_715;

fn tanh_argument(x: f64) -> f64 {
    (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)
}

/// The complementary error function, to 1.2e-7 relative (Numerical Recipes, `erfcc`).
fn erfc(x: f64) -> f64 {
    let size = x.abs();
    let t = 1.0 / (1.0 + 0.5 * size);
    let coefficients = [
        0.170_872_77,
        -0.822_152_23,
        1.488_515_87,
        -1.135_203_98,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_68,
        -1.265_512_23,
    ];
    let p = coefficients.into_iter().fold(0.0, |sum, coefficient| sum * t + coefficient);
    let value = t * (-size * size + p).exp();
    if x < 0.0 { 2.0 - value } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Activation; 5] = [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Relu,
        Activation::Silu,
    ];

    /// torch 2.14.1, float64, at -3, -0.5, 0, 0.75 and 4.
    const RIGHT: [[f64; 5]; 5] = [
        [-0.004_049_694_095, -0.154_268_769_363, 0.0, 0.580_029_485_717, 3.999_873_315_033],
        [-0.003_637_392_082, -0.154_285_990_175, 0.0, 0.579_960_555_166, 3.999_929_754_052],
        [-0.018_071_309_708, -0.149_611_563_394, 0.0, 0.586_390_057_535, 3.995_585_275_860],
        [0.0, 0.0, 0.0, 0.75, 4.0],
        [-0.142_277_619_533, -0.188_770_334_399, 0.0, 0.509_384_024_382, 3.928_055_160_152],
    ];
    const POINTS: [f32; 5] = [-3.0, -0.5, 0.0, 0.75, 4.0];

    #[test]
    fn activations_are_torchs() {
        for (activation, right) in ALL.into_iter().zip(RIGHT) {
            for (x, right) in POINTS.into_iter().zip(right) {
                let found = f64::from(activation.of(x));
                assert!((found - right).abs() < 1e-6, "{activation:?}({x}) = {found}, not {right}");
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn vectors_agree_with_single_values() {
        if !crate::is_supported() {
            eprintln!("skipped: this processor has no AVX-512");
            return;
        }
        let points: Vec<f32> = (-1300..1300).map(|i| i as f32 * 0.01).collect();
        let bias = vec![0.25; points.len()];
        for activation in ALL {
            let finish =
                Finish { bias: Some(&bias), activation: Some(activation), residual: Some(&points) };
            let (mut vectors, mut single) = (points.clone(), points.clone());
            // SAFETY: the processor has the features, asked above.
            unsafe { finish.apply(&mut vectors, 0, 0, points.len()) };
            finish.apply_portable(&mut single, 0, 0, points.len());
            for ((x, a), b) in points.iter().zip(vectors).zip(single) {
                assert!((a - b).abs() <= 2e-6 * b.abs().max(1.0), "{activation:?}({x}): {a}, {b}");
            }
        }
    }
}
