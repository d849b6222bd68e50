//! What is computed in registers. Those hold values of less than 64 bits with zeros above.

use half::f16;

/// One operation of registers on registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Move16,
    Move32,
    Move64,
    Add32,
    Add64,
    Subtract32,
    Multiply32,
    MultiplyWide,
    MultiplyAdd32,
    Divide32,
    Remainder32,
    Least32,
    And,
    Or,
    ExclusiveOr,
    Not32,
    Left32,
    Left64,
    Right32,
    Insert64,
    Select,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    GreaterOrEqual,
    GreaterSigned,
    LessFloat,
    AddFloat,
    MultiplyFloat,
    FusedFloat,
    AbsoluteFloat,
    WidenHalf,
}

impl Operation {
    /// The operation of an instruction, and how many operands it has; nothing for those that no
    /// kernel here has needed.
    pub(super) fn named(name: &str) -> Option<(Self, usize)> {
        Some(match name {
            "cvt.u16.u32" => (Self::Move16, 1),
            "mov.b32" | "mov.u32" | "mov.f32" | "cvt.u64.u32" => (Self::Move32, 1),
            "mov.b64" | "mov.u64" | "cvta.to.global.u64" => (Self::Move64, 1),
            "add.s32" | "add.u32" => (Self::Add32, 2),
            "add.s64" | "add.u64" => (Self::Add64, 2),
            "sub.s32" | "sub.u32" => (Self::Subtract32, 2),
            "mul.lo.s32" | "mul.lo.u32" => (Self::Multiply32, 2),
            "mul.wide.u32" => (Self::MultiplyWide, 2),
            "mad.lo.s32" | "mad.lo.u32" => (Self::MultiplyAdd32, 3),
            "div.u32" => (Self::Divide32, 2),
            "rem.u32" => (Self::Remainder32, 2),
            "min.u32" => (Self::Least32, 2),
            "and.pred" | "and.b32" | "and.b64" => (Self::And, 2),
            "or.pred" | "or.b32" | "or.b64" => (Self::Or, 2),
            "xor.pred" | "xor.b32" | "xor.b64" => (Self::ExclusiveOr, 2),
            "not.b32" => (Self::Not32, 1),
            "shl.b32" => (Self::Left32, 2),
            "shl.b64" => (Self::Left64, 2),
            "shr.u32" => (Self::Right32, 2),
            // Two operands besides, the place and the length: the parser sees to it that they are
            // the upper half.
            "bfi.b64" => (Self::Insert64, 2),
            "selp.b32" | "selp.f32" => (Self::Select, 3),
            "setp.eq.s32" | "setp.eq.u32" | "setp.eq.s64" => (Self::Equal, 2),
            "setp.ne.s32" | "setp.ne.u32" | "setp.ne.s64" => (Self::NotEqual, 2),
            "setp.lt.u32" | "setp.lt.u64" => (Self::Less, 2),
            "setp.le.u32" | "setp.le.u64" => (Self::LessOrEqual, 2),
            "setp.ge.u32" | "setp.ge.u64" => (Self::GreaterOrEqual, 2),
            "setp.gt.s32" => (Self::GreaterSigned, 2),
            "setp.lt.f32" => (Self::LessFloat, 2),
            "add.rn.f32" => (Self::AddFloat, 2),
            "mul.rn.f32" => (Self::MultiplyFloat, 2),
            "fma.rn.f32" => (Self::FusedFloat, 3),
            "abs.f32" => (Self::AbsoluteFloat, 1),
            "cvt.f32.f16" => (Self::WidenHalf, 1),
            _ => return None,
        })
    }

    /// Whether operands are 64 bits wide: numbers in the text are cut to 32 otherwise.
    pub(super) fn is_wide(name: &str) -> bool {
        name.ends_with("64") && name != "cvt.u64.u32"
    }

    pub(super) fn compute(self, [a, b, c]: [u64; 3]) -> Result<u64, String> {
        let (low, other) = (a as u32, b as u32);
        Ok(match self {
            Self::Move16 => a & 0xffff,
            Self::Move32 => u64::from(low),
            Self::Move64 => a,
            Self::Add32 => u64::from(low.wrapping_add(other)),
            Self::Add64 => a.wrapping_add(b),
            Self::Subtract32 => u64::from(low.wrapping_sub(other)),
            Self::Multiply32 => u64::from(low.wrapping_mul(other)),
            Self::MultiplyWide => u64::from(low) * u64::from(other),
            Self::MultiplyAdd32 => u64::from(low.wrapping_mul(other).wrapping_add(c as u32)),
            Self::Divide32 => u64::from(low.checked_div(other).ok_or("a division by zero")?),
            Self::Remainder32 => u64::from(low.checked_rem(other).ok_or("a division by zero")?),
            Self::Least32 => u64::from(low.min(other)),
            Self::And => a & b,
            Self::Or => a | b,
            Self::ExclusiveOr => a ^ b,
            Self::Not32 => u64::from(!low),
            Self::Left32 => u64::from(low.checked_shl(other).unwrap_or(0)),
            Self::Left64 => a.checked_shl(other).unwrap_or(0),
            Self::Right32 => u64::from(low.checked_shr(other).unwrap_or(0)),
            Self::Insert64 => a << 32 | b & 0xffff_ffff,
            Self::Select => {
                if c == 0 {
                    b
                } else {
                    a
                }
            }
            Self::Equal => u64::from(a == b),
            Self::NotEqual => u64::from(a != b),
            Self::Less => u64::from(a < b),
            Self::LessOrEqual => u64::from(a <= b),
            Self::GreaterOrEqual => u64::from(a >= b),
            Self::GreaterSigned => u64::from(low.cast_signed() > other.cast_signed()),
            Self::LessFloat => u64::from(float(a) < float(b)),
            Self::AddFloat => bits(float(a) + float(b)),
            Self::MultiplyFloat => bits(float(a) * float(b)),
            Self::FusedFloat => bits(float(a).mul_add(float(b), float(c))),
            Self::AbsoluteFloat => u64::from(low & 0x7fff_ffff),
            Self::WidenHalf => bits(f16::from_bits(a as u16).to_f32()),
        })
    }
}

fn float(value: u64) -> f32 {
    f32::from_bits(value as u32)
}

/// A GPU has one NaN.
fn bits(value: f32) -> u64 {
    u64::from(if value.is_nan() { 0x7fff_ffff } else { value.to_bits() })
}
