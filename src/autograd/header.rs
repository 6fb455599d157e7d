//! The properties of a tensor (shape, strides, kind, device, layout, memory), read from libtorch in one call.
//!
//! tch asks libtorch for each of them in a call of its own, with a vector for each shape. An engine needs them several
//! times, which took as long as to compute a small loss.

use std::ffi::{c_int, c_uint, c_void};
use std::marker::PhantomData;

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn tch_losses_form(tensor: *const C_tensor) -> c_uint;
    fn tch_losses_header(tensor: *const C_tensor, header: *mut Raw);
}

/// The layout of a tensor and whether its memory holds its values, as bits that `header.cpp` sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form(c_uint);

impl Form {
    const UNDEFINED: c_uint = 1 << 0;
    const SPARSE: c_uint = 1 << 1;
    const MKLDNN: c_uint = 1 << 2;
    const NESTED: c_uint = 1 << 4;
    const QUANTIZED: c_uint = 1 << 5;
    const LAZY: c_uint = 1 << 6;
    const NEGATED_BOOLEAN: c_uint = 1 << 7;

    pub(crate) fn of(tensor: &Tensor) -> Self {
        // SAFETY: looks at a tensor that is borrowed for the call; an undefined one is one of its answers.
        Self(unsafe { tch_losses_form(tensor.as_ptr()) })
    }

    /// Whether it has strides, and its memory holds its values as they are.
    pub(crate) fn is_plain(self) -> bool {
        self.0 == 0
    }

    /// Whether its memory does not hold its values: zeros without memory, or a view that is negated or conjugated when
    /// it is read.
    pub(crate) fn is_lazy(self) -> bool {
        self.0 & Self::LAZY != 0
    }

    pub(crate) fn is_defined(self) -> bool {
        self.0 & Self::UNDEFINED == 0
    }

    /// Whether it is sparse, in coordinates or compressed.
    pub(crate) fn is_sparse(self) -> bool {
        self.0 & Self::SPARSE != 0
    }

    /// The word for its layout in error messages; `None` for strided, sparse and undefined tensors.
    pub(crate) fn other_layout(self) -> Option<&'static str> {
        Some(match self.0 & !Self::LAZY {
            0 => return None,
            bits if bits & (Self::UNDEFINED | Self::SPARSE) != 0 => return None,
            bits if bits & Self::NESTED != 0 => "nested",
            bits if bits & Self::NEGATED_BOOLEAN != 0 => "lazily negated Boolean",
            bits if bits & Self::MKLDNN != 0 => "mkldnn",
            bits if bits & Self::QUANTIZED != 0 => "quantized",
            _ => "opaque",
        })
    }
}

/// The header as `header.cpp` fills it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Raw {
    form: c_uint,
    kind: c_int,
    device: c_int,
    device_index: c_int,
    contiguous: bool,
    dims: usize,
    elements: usize,
    data: *const c_void,
    sizes: *const i64,
    strides: *const i64,
}

/// The properties of a tensor, as long as that is borrowed.
#[derive(Clone, Copy)]
pub(crate) struct Header<'a> {
    raw: Raw,
    tensor: PhantomData<&'a Tensor>,
}

impl<'a> Header<'a> {
    const CPU: c_int = 0;

    /// The header of a strided tensor. Of any other tensor only the [form](Self::form) is set.
    pub(crate) fn of(tensor: &'a Tensor) -> Self {
        let mut raw = std::mem::MaybeUninit::uninit();
        // SAFETY: looks at a tensor that is borrowed for the call, and fills all of the header.
        let raw = unsafe {
            tch_losses_header(tensor.as_ptr(), raw.as_mut_ptr());
            raw.assume_init()
        };
        Self { raw, tensor: PhantomData }
    }

    pub(crate) fn form(&self) -> Form {
        Form(self.raw.form)
    }

    fn is_of(&self, kind: Kind) -> bool {
        code(kind) == Some(self.raw.kind)
    }

    pub(crate) fn is_on_device_of(&self, other: &Header) -> bool {
        (self.raw.device, self.raw.device_index) == (other.raw.device, other.raw.device_index)
    }

    pub(crate) fn is_contiguous(&self) -> bool {
        self.raw.contiguous
    }

    /// Whether it is plain: strided, on the CPU, of this kind, and its memory holds its values.
    pub(crate) fn is_plain(&self, kind: Kind) -> bool {
        let has_memory = self.raw.elements == 0 || !self.raw.data.is_null();
        self.form().is_plain() && self.raw.device == Self::CPU && self.is_of(kind) && has_memory
    }

    /// Whether its memory, on whatever device, holds its elements, which are of this kind.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn is_numbers_of(&self, kind: Kind) -> bool {
        self.form().is_plain() && self.is_of(kind) && !self.raw.data.is_null()
    }

    /// Whether it is dense: without gaps and overlaps in memory. Then its strides are a permutation of those of a
    /// contiguous tensor.
    pub(crate) fn is_dense(&self) -> bool {
        if self.raw.contiguous {
            return true;
        }
        let mut dims: Vec<(i64, i64)> = self.stride().iter().copied().zip(self.size().iter().copied()).collect();
        dims.retain(|(_, size)| *size != 1);
        dims.sort_unstable();
        let mut expected = 1;
        for (stride, size) in dims {
            if stride != expected {
                return false;
            }
            expected *= size;
        }
        true
    }

    pub(crate) fn elements(&self) -> usize {
        self.raw.elements
    }

    /// The address of its first element; null where it has no memory.
    pub(crate) fn data(&self) -> *const c_void {
        self.raw.data
    }

    pub(crate) fn size(&self) -> &'a [i64] {
        self.numbers(self.raw.sizes)
    }

    pub(crate) fn stride(&self) -> &'a [i64] {
        self.numbers(self.raw.strides)
    }

    fn numbers(&self, start: *const i64) -> &'a [i64] {
        if self.raw.dims == 0 {
            return &[];
        }
        // SAFETY: libtorch keeps as many numbers as long as the tensor lives and is not resized, which no operation of
        // this crate does with a tensor that it is given.
        unsafe { std::slice::from_raw_parts(start, self.raw.dims) }
    }
}

/// libtorch's number of a kind; `None` for kinds that no loss takes.
pub(crate) fn code(kind: Kind) -> Option<c_int> {
    Some(match kind {
        Kind::Uint8 => 0,
        Kind::Int8 => 1,
        Kind::Int16 => 2,
        Kind::Int => 3,
        Kind::Int64 => 4,
        Kind::Half => 5,
        Kind::Float => 6,
        Kind::Double => 7,
        Kind::Bool => 11,
        Kind::BFloat16 => 15,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn a_header_is_what_tch_says() {
        let kinds =
            [Kind::Uint8, Kind::Int8, Kind::Int16, Kind::Int, Kind::Int64, Kind::Half, Kind::Float, Kind::Double]
                .into_iter()
                .chain([Kind::Bool, Kind::BFloat16]);
        for kind in kinds {
            let tensor = Tensor::zeros([2, 3, 4], (kind, Device::Cpu));
            for tensor in [tensor.shallow_clone(), tensor.transpose(0, 2), tensor.narrow(0, 1, 1), tensor.sum(kind)] {
                let header = Header::of(&tensor);
                assert!(header.is_plain(tensor.kind()));
                assert_eq!(header.is_contiguous(), tensor.is_contiguous());
                assert_eq!(header.elements(), tensor.numel());
                assert_eq!((header.size(), header.stride()), (&tensor.size()[..], &tensor.stride()[..]));
                assert_eq!(header.data(), tensor.data_ptr().cast_const());
            }
        }
    }

    #[test]
    fn others_have_a_form_alone() {
        let sparse =
            Tensor::eye(2, (Kind::Float, Device::Cpu)).to_sparse(None::<tch::Layout>, None::<i64>, None::<i64>);
        assert!(Header::of(&sparse).form().is_sparse());
        assert!(!Header::of(&Tensor::new()).form().is_defined());
    }
}
