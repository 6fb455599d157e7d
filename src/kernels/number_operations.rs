//! Tensor operations with a number, such as `f_mul_number`, which return libtorch's errors.
//!
//! Those of tch (`f_mul_scalar`, …) panic where libtorch rejects the call or has no memory left: tch frees the number
//! before it looks at the error, and the freeing finds the error and panics. `clippy.toml` forbids the ones of tch.

use std::ffi::{CStr, c_int};

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::c_generated::*;
use torch_sys::{C_scalar, C_tensor};

use crate::autograd::kind_code;
use crate::numeric::is_floating;

/// An integer or a floating number. libtorch promotes kinds differently for the two.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Number {
    Integer(i64),
    Float(f64),
}

macro_rules! numbers {
    ($($type:ty => $variant:ident),+) => {
        $(
            impl From<$type> for Number {
                fn from(value: $type) -> Self {
                    Number::$variant(value.into())
                }
            }
        )+
    };
}
numbers!(i32 => Integer, i64 => Integer, f32 => Float, f64 => Float);

impl Number {
    fn is_zero(self) -> bool {
        matches!(self, Number::Integer(0)) || matches!(self, Number::Float(number) if number == 0.0)
    }
}

/// A [`Number`] on libtorch's heap, freed when it is dropped.
struct Scalar(*mut C_scalar);

impl Scalar {
    fn new(number: Number) -> Self {
        // SAFETY: both return a new number of the caller's.
        Scalar(match number {
            Number::Integer(value) => unsafe { torch_sys::ats_int(value) },
            Number::Float(value) => unsafe { torch_sys::ats_float(value) },
        })
    }
}

impl Drop for Scalar {
    fn drop(&mut self) {
        // SAFETY: it is that of `new`, and this is its last use.
        unsafe { torch_sys::ats_free(self.0) }
    }
}

/// Calls `operation` with a place for its result and with the numbers. Returns the tensor that it has put there, or
/// libtorch's error.
///
/// # Safety
/// `operation` calls one function of libtorch's C interface, with pointers that are alive, and writes no other tensor.
unsafe fn f_call<const N: usize>(
    numbers: [Number; N],
    operation: impl FnOnce(*mut *mut C_tensor, [*mut C_scalar; N]),
) -> Result<Tensor, TchError> {
    let scalars = numbers.map(Scalar::new);
    let mut result = std::ptr::null_mut();
    operation(&raw mut result, pointers(&scalars));
    // SAFETY: where there was no error, this is a new tensor which nobody else owns.
    f_last_error().map(|()| unsafe { Tensor::from_ptr(result) })
}

fn pointers<const N: usize>(scalars: &[Scalar; N]) -> [*mut C_scalar; N] {
    std::array::from_fn(|index| scalars[index].0)
}

/// Takes the error that libtorch's C interface has kept for this thread.
fn f_last_error() -> Result<(), TchError> {
    // SAFETY: it returns null, or a C string on the heap that is the caller's.
    let text = unsafe { torch_sys::get_and_reset_last_err() };
    if text.is_null() {
        return Ok(());
    }
    // SAFETY: see above.
    let message = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: see above; it was made by `strdup`.
    unsafe { libc::free(text.cast()) };
    Err(TchError::Torch(message))
}

fn of(tensor: &Tensor) -> *mut C_tensor {
    tensor.as_ptr().cast_mut()
}

/// `tensor` where the `mask`, as a number, is between two others, and 0 elsewhere: the derivative of a clamp. It is one
/// operation, and so is its derivative, where a masked fill is two, a copy and a filling. And it is a choice, so that a
/// NaN does not get through.
fn f_between(tensor: &Tensor, mask: &Tensor, bounds: [f64; 2]) -> Result<Tensor, TchError> {
    let call = |out, [min, max]: [_; 2]| {
        // SAFETY: both tensors are borrowed for the call, which writes one new tensor.
        unsafe { atg_hardtanh_backward(out, of(tensor), of(mask), min, max) }
    };
    // SAFETY: see above.
    unsafe { f_call(bounds.map(Number::Float), call) }
}

macro_rules! operations {
    ($($name:ident = $function:ident;)+ @in_place $($name_:ident = $function_:ident;)+) => {
        /// Tensor operations with a number, named as in tch.
        pub(crate) trait NumberOperations: Sized {
            $(fn $name(&self, number: impl Into<Number>) -> Result<Tensor, TchError>;)+
            $(fn $name_(&mut self, number: impl Into<Number>) -> Result<Tensor, TchError>;)+

            /// `number · log(1 + self)`
            fn f_log1p_times(&self, number: impl Into<Number>) -> Result<Tensor, TchError>;
            fn f_clamp_number(&self, min: impl Into<Number>, max: impl Into<Number>) -> Result<Tensor, TchError>;
            /// `self + number · (end − self)`
            fn f_lerp_number(&self, end: &Tensor, number: impl Into<Number>) -> Result<Tensor, TchError>;
            /// `number` where the elements are not above `least`. NaN stays.
            fn f_threshold_number(&self, least: impl Into<Number>, number: impl Into<Number>) -> Result<Tensor, TchError>;
            /// 0 where the `mask` is true, and `self`, a floating tensor, elsewhere.
            fn f_zeros_where(&self, mask: &Tensor) -> Result<Tensor, TchError>;
            /// 0 where the `mask` is false, and `self`, a floating tensor, elsewhere.
            fn f_zeros_unless(&self, mask: &Tensor) -> Result<Tensor, TchError>;
            /// 0 where the elements of the `other` tensor are not between the `bounds`, and `self` elsewhere, also for NaN.
            fn f_zeros_beyond(&self, other: &Tensor, bounds: [f64; 2]) -> Result<Tensor, TchError>;
            /// 0 where the elements of the `other` tensor are not above `least`, and `self` elsewhere, also for NaN.
            fn f_zeros_up_to(&self, least: impl Into<Number>, other: &Tensor) -> Result<Tensor, TchError>;
            /// With zeros for floating tensors it is [`f_zeros_where`](Self::f_zeros_where).
            fn f_masked_fill_number(&self, mask: &Tensor, number: impl Into<Number>) -> Result<Tensor, TchError>;
            fn f_masked_fill_number_(&mut self, mask: &Tensor, number: impl Into<Number>) -> Result<Tensor, TchError>;
            fn f_scatter_number(&self, dim: i64, index: &Tensor, number: impl Into<Number>) -> Result<Tensor, TchError>;
            fn f_scatter_number_(
                &mut self,
                dim: i64,
                index: &Tensor,
                number: impl Into<Number>,
            ) -> Result<Tensor, TchError>;
            fn f_index_fill_number(
                &self,
                dim: i64,
                index: &Tensor,
                number: impl Into<Number>,
            ) -> Result<Tensor, TchError>;
            fn f_fill_diagonal_number_(&mut self, number: impl Into<Number>, wrap: bool) -> Result<Tensor, TchError>;
            fn f_norm_number(&self, p: impl Into<Number>, dim: &[i64], keepdim: bool) -> Result<Tensor, TchError>;
            fn f_full_number(
                size: &[i64],
                number: impl Into<Number>,
                options: (Kind, Device),
            ) -> Result<Tensor, TchError>;
            /// The integers from `first` on that are below `end`.
            fn f_arange_numbers(first: i64, end: i64, options: (Kind, Device)) -> Result<Tensor, TchError>;
        }

        // SAFETY of all calls below: tensors are borrowed for the call, lengths are those of the slices, and each
        // function writes one new tensor. One in place returns the tensor itself under another pointer.
        impl NumberOperations for Tensor {
            $(
                fn $name(&self, number: impl Into<Number>) -> Result<Tensor, TchError> {
                    // SAFETY: see above.
                    unsafe { f_call([number.into()], |out, [number]| $function(out, of(self), number)) }
                }
            )+
            $(
                fn $name_(&mut self, number: impl Into<Number>) -> Result<Tensor, TchError> {
                    // SAFETY: see above.
                    unsafe { f_call([number.into()], |out, [number]| $function_(out, of(self), number)) }
                }
            )+

            fn f_log1p_times(&self, number: impl Into<Number>) -> Result<Tensor, TchError> {
                let call = |out, [number]: [_; 1]| {
                    // SAFETY: see above.
                    unsafe { atg_special_xlog1py_self_scalar(out, number, of(self)) }
                };
                // SAFETY: see above.
                unsafe { f_call([number.into()], call) }
            }

            fn f_clamp_number(&self, min: impl Into<Number>, max: impl Into<Number>) -> Result<Tensor, TchError> {
                // SAFETY: see above.
                unsafe { f_call([min.into(), max.into()], |out, [min, max]| atg_clamp(out, of(self), min, max)) }
            }

            fn f_lerp_number(&self, end: &Tensor, number: impl Into<Number>) -> Result<Tensor, TchError> {
                // SAFETY: see above.
                unsafe { f_call([number.into()], |out, [number]| atg_lerp(out, of(self), of(end), number)) }
            }

            fn f_threshold_number(
                &self,
                least: impl Into<Number>,
                number: impl Into<Number>,
            ) -> Result<Tensor, TchError> {
                let call = |out, [least, number]: [_; 2]| {
                    // SAFETY: see above.
                    unsafe { atg_threshold(out, of(self), least, number) }
                };
                // SAFETY: see above.
                unsafe { f_call([least.into(), number.into()], call) }
            }

            fn f_zeros_where(&self, mask: &Tensor) -> Result<Tensor, TchError> {
                f_between(self, mask, [-1.0, 0.5])
            }

            fn f_zeros_unless(&self, mask: &Tensor) -> Result<Tensor, TchError> {
                f_between(self, mask, [0.5, 2.0])
            }

            fn f_zeros_beyond(&self, other: &Tensor, bounds: [f64; 2]) -> Result<Tensor, TchError> {
                f_between(self, other, bounds)
            }

            fn f_zeros_up_to(&self, least: impl Into<Number>, other: &Tensor) -> Result<Tensor, TchError> {
                let call = |out, [least]: [_; 1]| {
                    // SAFETY: see above.
                    unsafe { atg_threshold_backward(out, of(self), of(other), least) }
                };
                // SAFETY: see above.
                unsafe { f_call([least.into()], call) }
            }

            fn f_masked_fill_number(&self, mask: &Tensor, number: impl Into<Number>) -> Result<Tensor, TchError> {
                let number = number.into();
                if is_floating(self.f_kind()?) && number.is_zero() {
                    return self.f_zeros_where(mask);
                }
                // SAFETY: see above.
                unsafe { f_call([number], |out, [number]| atg_masked_fill(out, of(self), of(mask), number)) }
            }

            fn f_masked_fill_number_(&mut self, mask: &Tensor, number: impl Into<Number>) -> Result<Tensor, TchError> {
                // SAFETY: see above.
                unsafe { f_call([number.into()], |out, [number]| atg_masked_fill_(out, of(self), of(mask), number)) }
            }

            fn f_scatter_number(
                &self,
                dim: i64,
                index: &Tensor,
                number: impl Into<Number>,
            ) -> Result<Tensor, TchError> {
                let call = |out, [number]: [_; 1]| {
                    // SAFETY: see above.
                    unsafe { atg_scatter_value(out, of(self), dim, of(index), number) }
                };
                // SAFETY: see above.
                unsafe { f_call([number.into()], call) }
            }

            fn f_scatter_number_(
                &mut self,
                dim: i64,
                index: &Tensor,
                number: impl Into<Number>,
            ) -> Result<Tensor, TchError> {
                let call = |out, [number]: [_; 1]| {
                    // SAFETY: see above.
                    unsafe { atg_scatter_value_(out, of(self), dim, of(index), number) }
                };
                // SAFETY: see above.
                unsafe { f_call([number.into()], call) }
            }

            fn f_index_fill_number(
                &self,
                dim: i64,
                index: &Tensor,
                number: impl Into<Number>,
            ) -> Result<Tensor, TchError> {
                let call = |out, [number]: [_; 1]| {
                    // SAFETY: see above.
                    unsafe { atg_index_fill(out, of(self), dim, of(index), number) }
                };
                // SAFETY: see above.
                unsafe { f_call([number.into()], call) }
            }

            fn f_fill_diagonal_number_(&mut self, number: impl Into<Number>, wrap: bool) -> Result<Tensor, TchError> {
                let wrap = c_int::from(wrap);
                // SAFETY: see above.
                unsafe { f_call([number.into()], |out, [number]| atg_fill_diagonal_(out, of(self), number, wrap)) }
            }

            fn f_norm_number(&self, p: impl Into<Number>, dim: &[i64], keepdim: bool) -> Result<Tensor, TchError> {
                let (dims, length, keepdim) = (dim.as_ptr(), dim.len() as c_int, c_int::from(keepdim));
                let call = |out, [p]: [_; 1]| {
                    // SAFETY: see above.
                    unsafe { atg_norm_scalaropt_dim(out, of(self), p, dims, length, keepdim) }
                };
                // SAFETY: see above.
                unsafe { f_call([p.into()], call) }
            }

            fn f_full_number(
                size: &[i64],
                number: impl Into<Number>,
                options: (Kind, Device),
            ) -> Result<Tensor, TchError> {
                Tensor::f_empty(size, options)?.f_fill_number_(number)
            }

            fn f_arange_numbers(first: i64, end: i64, options: (Kind, Device)) -> Result<Tensor, TchError> {
                let device = match options.1 {
                    Device::Cpu => Some(-1),
                    Device::Cuda(index) => c_int::try_from(index).ok(),
                    _ => None,
                };
                let (Some(kind), Some(device)) = (kind_code(options.0), device) else {
                    let ones = Tensor::f_ones((end - first).max(0), options)?;
                    return ones.f_cumsum(0, options.0)?.f_add_number(first - 1);
                };
                let call = |out, [first, end]: [_; 2]| {
                    // SAFETY: see above.
                    unsafe { atg_arange_start(out, first, end, kind, device) }
                };
                // SAFETY: see above.
                unsafe { f_call([first, end].map(Number::Integer), call) }
            }
        }
    };
}

operations! {
    f_add_number = atg_add_scalar;
    f_sub_number = atg_sub_scalar;
    f_rsub_number = atg_rsub_scalar;
    f_mul_number = atg_mul_scalar;
    f_div_number = atg_div_scalar;
    f_pow_number = atg_pow_tensor_scalar;
    f_clamp_min_number = atg_clamp_min;
    f_clamp_max_number = atg_clamp_max;
    f_eq_number = atg_eq;
    f_ne_number = atg_ne;
    f_lt_number = atg_lt;
    f_le_number = atg_le;
    f_gt_number = atg_gt;
    f_ge_number = atg_ge;
    f_full_like_number = atg_full_like;
    @in_place
    f_add_number_ = atg_add_scalar_;
    f_mul_number_ = atg_mul_scalar_;
    f_div_number_ = atg_div_scalar_;
    f_clamp_min_number_ = atg_clamp_min_;
    f_clamp_max_number_ = atg_clamp_max_;
    f_fill_number_ = atg_fill_;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_do_what_those_of_tch_do() {
        let x = Tensor::from_slice(&[1.0, -2.0, 0.5]);
        let numbers = |tensor: Result<Tensor, TchError>| Vec::<f64>::try_from(tensor.unwrap()).unwrap();
        assert_eq!(numbers(x.f_add_number(1)), [2.0, -1.0, 1.5]);
        assert_eq!(numbers(x.f_rsub_number(1.0)), [0.0, 3.0, 0.5]);
        assert_eq!(numbers(x.f_clamp_number(-1, 0.75)), [0.75, -1.0, 0.5]);
        assert_eq!(numbers(x.f_pow_number(2)), [1.0, 4.0, 0.25]);
        assert_eq!(numbers(x.f_masked_fill_number(&x.f_gt_number(0).unwrap(), 7_i64)), [7.0, -2.0, 7.0]);
        assert_eq!(numbers(x.f_lerp_number(&x.f_neg().unwrap(), 0.25)), [0.5, -1.0, 0.25]);
        assert_eq!(numbers(x.f_threshold_number(-1.0, 9)), [1.0, 9.0, 0.5]);
        assert_eq!(numbers(x.f_zeros_beyond(&x, [-2.0, 0.75])), [0.0, 0.0, 0.5]);
        assert_eq!(numbers(x.f_zeros_up_to(0.5, &(&x * 2.0))), [1.0, 0.0, 0.5]);
        let of_nan = (&x / &x.zeros_like()).f_zeros_where(&x.lt(1.0));
        assert_eq!(numbers(of_nan), [f64::INFINITY, 0.0, 0.0]);
        for kind in [Kind::Half, Kind::BFloat16, Kind::Float, Kind::Double] {
            let (x, mask) = (x.to_kind(kind), x.gt(0.0));
            let [filled, kept] = [x.f_masked_fill_number(&mask, 0), x.f_zeros_unless(&mask)].map(Result::unwrap);
            assert_eq!((filled.kind(), kept.kind()), (kind, kind));
            assert_eq!((filled, kept), (x.masked_fill(&mask, 0.0), x.masked_fill(&mask.logical_not(), 0.0)));
        }
        assert_eq!(numbers(x.f_norm_number(1, &[0], false).map(|norm| norm.view(1))), [3.5]);
        assert_eq!(
            numbers(x.f_abs().and_then(|x| x.f_log1p_times(2.0))),
            [1.0, 2.0, 0.5].map(|x: f64| 2.0 * x.ln_1p())
        );
        let index = Tensor::from_slice(&[2_i64]);
        assert_eq!(numbers(x.f_scatter_number(0, &index, 4.0)), [1.0, -2.0, 4.0]);
        assert_eq!(numbers(x.f_index_fill_number(0, &index, 4.0)), [1.0, -2.0, 4.0]);
        assert_eq!(numbers(Tensor::f_arange_numbers(1, 3, (Kind::Double, Device::Cpu))), [1.0, 2.0]);
        assert_eq!(numbers(Tensor::f_full_number(&[2], 3, (Kind::Double, Device::Cpu))), [3.0, 3.0]);
        let mut own = x.copy();
        drop(own.f_mul_number_(2));
        assert_eq!(numbers(own.f_fill_diagonal_number_(0, false).or(Ok(own))), [2.0, -4.0, 1.0]);
        // As in tch, an integer leaves the kind of integers, and a float does not.
        let integers = Tensor::from_slice(&[1_i64, 2]);
        assert_eq!(integers.f_mul_number(2).unwrap().kind(), Kind::Int64);
        assert_eq!(integers.f_mul_number(2.0).unwrap().kind(), Kind::Float);
    }

    #[test]
    fn what_libtorch_rejects_is_an_error() {
        let half = Tensor::from_slice(&[1.0]).to_kind(Kind::Half);
        let complex = Tensor::from_slice(&[1.0]).to_kind(Kind::ComplexDouble);
        let no_index = Tensor::from_slice(&[5_i64]);
        let one_element = Tensor::ones([1, 1], (Kind::Float, Device::Cpu));
        for (message, result) in [
            ("overflow", half.f_clamp_min_number(1e39)),
            ("undefined", Tensor::new().f_mul_number(2.0)),
            ("not supported for complex", complex.f_clamp_min_number(0)),
            ("out of bounds", half.f_scatter_number(0, &no_index, 1.0)),
            ("memory", one_element.expand([1 << 40, 1 << 10], false).f_add_number(1.0)),
            ("memory", Tensor::f_full_number(&[1 << 50], 1.0, (Kind::Float, Device::Cpu))),
        ] {
            let error = result.expect_err(message).to_string();
            assert!(error.contains(message), "{message}: {error}");
        }
        assert!(f_last_error().is_ok());
    }
}
