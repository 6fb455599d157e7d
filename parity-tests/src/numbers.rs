//! Floating-point numbers of every dtype: values, bits, units in the last place, tolerances.

use anyhow::{Result, bail};
use float_cmp::Ulps;
use half::{bf16, f16};
use tch::{Kind, Tensor};

/// The elements of a tensor, in their own precision.
#[derive(Debug)]
pub struct Elements {
    kind: Kind,
    bytes: Vec<u8>,
}

impl Elements {
    /// Copies the elements of a tensor.
    pub fn new(tensor: &Tensor) -> Result<Elements> {
        let kind = tensor.f_kind()?;
        if !matches!(kind, Kind::Double | Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Int64) {
            bail!("results of kind {kind:?} are not compared");
        }
        let mut bytes = vec![0; tensor.numel() * kind.elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        Ok(Elements { kind, bytes })
    }

    /// The dtype.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.kind.elt_size_in_bytes()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn at<const N: usize>(&self, position: usize) -> [u8; N] {
        std::array::from_fn(|byte| self.bytes[position * N + byte])
    }

    /// The element as a double; exact for every floating kind.
    pub fn value(&self, position: usize) -> f64 {
        match self.kind {
            Kind::Double => f64::from_le_bytes(self.at(position)),
            Kind::Float => f32::from_le_bytes(self.at(position)).into(),
            Kind::Half => f16::from_le_bytes(self.at(position)).into(),
            Kind::BFloat16 => bf16::from_le_bytes(self.at(position)).into(),
            _ => i64::from_le_bytes(self.at(position)) as f64,
        }
    }

    /// Whether the elements of both at `position` are equal bit by bit; all NaNs count as the same.
    pub fn same_bits(&self, other: &Elements, position: usize) -> bool {
        let size = self.kind.elt_size_in_bytes();
        let bits = position * size..(position + 1) * size;
        self.bytes[bits.clone()] == other.bytes[bits]
            || (self.value(position).is_nan() && other.value(position).is_nan())
    }

    /// The distance of the elements of both at `position` in units in the last place.
    pub fn ulps(&self, other: &Elements, position: usize) -> u64 {
        match self.kind {
            Kind::Double => {
                let (a, b) = (f64::from_le_bytes(self.at(position)), f64::from_le_bytes(other.at(position)));
                a.ulps(&b).unsigned_abs()
            }
            Kind::Float => {
                let (a, b) = (f32::from_le_bytes(self.at(position)), f32::from_le_bytes(other.at(position)));
                a.ulps(&b).unsigned_abs().into()
            }
            Kind::Half | Kind::BFloat16 => {
                let (a, b) = (u16::from_le_bytes(self.at(position)), u16::from_le_bytes(other.at(position)));
                ordered(a).abs_diff(ordered(b)).into()
            }
            _ => (self.value(position) - other.value(position)).abs() as u64,
        }
    }
}

/// The number of a floating kind nearest to `value`.
pub fn rounded(value: f64, kind: Kind) -> f64 {
    match kind {
        Kind::Float => f64::from(value as f32),
        Kind::Half => f16::from_f64(value).into(),
        Kind::BFloat16 => bf16::from_f64(value).into(),
        _ => value,
    }
}

/// The bits of a 16-bit float as an integer that grows with the number.
fn ordered(bits: u16) -> i32 {
    let magnitude = i32::from(bits & 0x7fff);
    if bits & 0x8000 == 0 { magnitude } else { -magnitude }
}

/// How far a result may be from the reference's.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    relative: f64,
    /// What counts for elements near zero.
    pub absolute: f64,
}

/// The defaults of `torch.testing.assert_close` for a dtype.
pub fn tolerance(kind: Kind) -> Tolerance {
    let (relative, absolute) = match kind {
        Kind::Double => (1e-7, 1e-7),
        Kind::Float => (1.3e-6, 1e-5),
        Kind::Half => (1e-3, 1e-5),
        Kind::BFloat16 => (1.6e-2, 1e-5),
        _ => (0.0, 0.0),
    };
    Tolerance { relative, absolute }
}

impl Tolerance {
    /// Whether `actual` is as good as `expected`.
    pub fn accepts(self, actual: f64, expected: f64) -> bool {
        actual == expected
            || (actual.is_nan() && expected.is_nan())
            || (expected.is_finite() && (actual - expected).abs() <= self.allowed(expected))
    }

    /// How far from `expected` a result may be.
    pub fn allowed(self, expected: f64) -> f64 {
        self.absolute + self.relative * expected.abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(value: f64, kind: Kind) -> Elements {
        Elements::new(&Tensor::from_slice(&[value]).to_kind(kind)).unwrap()
    }

    #[test]
    fn ulps_count_representable_numbers() {
        assert_eq!(half(1.0, Kind::Double).ulps(&half(1.0 + f64::EPSILON, Kind::Double), 0), 1);
        assert_eq!(half(1.0, Kind::Half).ulps(&half(1.0 + 0.001953125, Kind::Half), 0), 2);
        assert_eq!(half(1.0, Kind::BFloat16).ulps(&half(1.0 - 0.00390625, Kind::BFloat16), 0), 1);
        assert_eq!(half(0.0, Kind::BFloat16).ulps(&half(-0.0, Kind::BFloat16), 0), 0);
    }

    #[test]
    fn values_survive_every_kind() {
        for kind in [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16] {
            assert_eq!(half(-2.5, kind).value(0), -2.5);
        }
    }

    #[test]
    fn the_tolerance_knows_nan_and_infinity() {
        let tolerance = tolerance(Kind::Float);
        assert!(tolerance.accepts(f64::NAN, f64::NAN));
        assert!(tolerance.accepts(f64::INFINITY, f64::INFINITY));
        assert!(!tolerance.accepts(f64::INFINITY, f64::NEG_INFINITY));
        assert!(!tolerance.accepts(1.0, f64::INFINITY));
        assert!(!tolerance.accepts(f64::NAN, 1.0));
        assert!(!tolerance.accepts(1.0, f64::NAN));
        assert!(tolerance.accepts(1.0 + 1.0e-5, 1.0));
        assert!(!tolerance.accepts(1.0 + 1.3e-5, 1.0));
    }
}
