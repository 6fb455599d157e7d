//! What the tests of all engines share: a loss of any arguments by the emulated kernels and by tensor operations.

use tch::{Device, Kind, Tensor};

pub(super) use super::compiled::assert_sources_compile;
use super::{SOURCES, assert_near, emulated};
use crate::{Backend, Reduction, with_backend};

pub(super) const KINDS: [Kind; 4] = [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16];
pub(super) const REDUCTIONS: [Reduction; 3] = [Reduction::None, Reduction::Mean, Reduction::Sum];

/// A loss of some tensors.
pub(super) type Compute<'a> = &'a dyn Fn(&[Tensor]) -> Tensor;

/// The loss, and the gradients of the tensors that are `wanted`, given a gradient of the loss that is not 1.
pub(super) fn results(tensors: &[Tensor], wanted: &[usize], compute: Compute) -> Vec<Tensor> {
    let given: Vec<Tensor> = tensors
        .iter()
        .enumerate()
        .map(|(position, tensor)| tensor.detach().set_requires_grad(wanted.contains(&position)))
        .collect();
    let loss = compute(&given);
    if wanted.is_empty() {
        return vec![loss];
    }
    // Another number for each loss.
    let length = loss.numel() as i64;
    let grad = (Tensor::arange(length, (loss.kind(), loss.device())).remainder(7) * 0.125 + 0.75).view_as(&loss);
    let of: Vec<&Tensor> = wanted.iter().map(|position| &given[*position]).collect();
    let gradients = Tensor::run_backward(&[(&loss * grad).sum(None)], &of, false, false);
    std::iter::once(loss).chain(gradients).map(|tensor| tensor.detach()).collect()
}

/// Fails unless kernels compute the loss, and give what tensor operations do.
#[track_caller]
pub(super) fn assert_as_composite(name: &str, tensors: &[Tensor], wanted: &[usize], compute: Compute) {
    let before = SOURCES.with_borrow(Vec::len);
    let actual = emulated(|| results(tensors, wanted, compute));
    assert!(SOURCES.with_borrow(Vec::len) > before, "{name} asks for no kernel");
    let expected = with_backend(Backend::Composite, || results(tensors, wanted, compute));
    let kind = tensors[0].kind();
    for (position, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
        let name = format!("{name}, {:?}, result {position}", tensors[0].size());
        assert_eq!((actual.size(), actual.kind()), (expected.size(), expected.kind()), "{name}");
        assert_near(&name, &actual.to_kind(Kind::Double), &expected.to_kind(Kind::Double), kind);
    }
}

/// Fails unless no kernel is asked for.
#[track_caller]
pub(super) fn assert_not_taken(name: &str, tensors: &[Tensor], wanted: &[usize], compute: Compute) {
    let before = SOURCES.with_borrow(Vec::len);
    let actual = emulated(|| results(tensors, wanted, compute));
    assert_eq!(SOURCES.with_borrow(Vec::len), before, "{name} asks for kernels");
    assert!(actual[0].isfinite().all().int64_value(&[]) != 0, "{name}");
}

/// Fails where kernels are asked for whose source has this text.
#[track_caller]
pub(super) fn assert_without(text: &str, name: &str, tensors: &[Tensor], wanted: &[usize], compute: Compute) {
    SOURCES.take();
    let actual = emulated(|| results(tensors, wanted, compute));
    assert!(!SOURCES.take().iter().any(|source| source.contains(text)), "{name} asks for {text}");
    assert!(actual[0].isfinite().all().int64_value(&[]) != 0, "{name}");
}

/// The same numbers at an address that is a multiple of the size of an element and of no more.
pub(super) fn unaligned(tensor: &Tensor) -> Tensor {
    let length = tensor.numel() as i64;
    let room = Tensor::zeros([length + 1], (tensor.kind(), tensor.device()));
    let mut view = room.narrow(0, 1, length).view_as(tensor);
    view.copy_(tensor);
    view
}

/// A tensor at the very end of its memory: behind it, and before its page, nothing may be read or written.
pub(super) struct Guarded {
    start: *mut libc::c_void,
    length: usize,
    pub(super) tensor: Tensor,
}

impl Guarded {
    pub(super) fn new(tensor: &Tensor) -> Self {
        let page = 4096;
        let tensor = tensor.contiguous();
        let bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
        let length = bytes.next_multiple_of(page) + 2 * page;
        // SAFETY: new memory, of which all but the first and the last page may be used, which is as much as is written.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let start = libc::mmap(std::ptr::null_mut(), length, libc::PROT_NONE, flags, -1, 0);
            assert!(start != libc::MAP_FAILED);
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            assert_eq!(libc::mprotect(start.add(page), length - 2 * page, protection), 0);
            let place = start.add(length - page - bytes).cast::<u8>();
            std::ptr::copy_nonoverlapping(tensor.data_ptr().cast(), place, bytes);
            let guarded = Tensor::from_blob(place, &tensor.size(), &tensor.stride(), tensor.kind(), Device::Cpu);
            Self { start, length, tensor: guarded }
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: nobody has a copy of the tensor any more.
        unsafe { libc::munmap(self.start, self.length) };
    }
}
