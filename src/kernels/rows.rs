//! Losses of rows of classes, on the device of their input: what the engines of all devices are given, and the choice.

use tch::{Kind, Tensor};

use super::cpu;
#[cfg(any(test, feature = "cuda"))]
use super::cuda;
use super::engine::{composite_of, widely};
#[cfg(feature = "classification")]
use super::formulas::ClassTerms;
use super::formulas::RowLoss;
use super::tensors::f_one_layout;
use crate::autograd::Header;
use crate::{LossError, Reduction};

/// How the losses of rows are reduced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum RowReduction {
    None,
    Sum,
    /// The sum, divided by the sum of the weights of the targets that are not ignored.
    WeightedMean,
    /// The sum, divided by the number of the targets that are not ignored.
    CountedMean,
    /// The sum, divided by the number of all targets.
    Mean,
}

impl RowReduction {
    /// The reduction of losses whose mean is over all targets.
    pub(crate) fn over_all(reduction: Reduction) -> Self {
        match reduction {
            Reduction::Mean => Self::Mean,
            reduction => reduction.into(),
        }
    }
}

impl From<Reduction> for RowReduction {
    fn from(reduction: Reduction) -> Self {
        match reduction {
            Reduction::None => RowReduction::None,
            Reduction::Mean => RowReduction::WeightedMean,
            Reduction::Sum => RowReduction::Sum,
        }
    }
}

/// The arguments of a call.
pub(crate) struct Rows<'a> {
    /// The scores or logits, with their graph.
    pub(crate) input: &'a Tensor,
    /// The dimension of the classes.
    pub(crate) class_dim: usize,
    /// A class in range or the ignored index for each row, as 64-bit integers. Or numbers of the input's kind and
    /// without a gradient: one for each element of the input, or one for each row where the classes are the last
    /// dimension.
    pub(crate) target: &'a Tensor,
    pub(crate) ignore_index: Option<i64>,
    /// A factor for each class, of any floating kind, without a gradient.
    pub(crate) weight: Option<&'a Tensor>,
    /// What a kernel of CUDA takes note of where it comes upon a target that is none of these.
    #[cfg_attr(not(any(test, feature = "cuda")), allow(dead_code))]
    pub(crate) note: Option<&'a Note>,
}

/// What a GPU remembers of an invalid value: see [`InvalidValues::f_memory`](crate::InvalidValues::f_memory).
#[derive(Debug, Clone)]
#[cfg_attr(not(any(test, feature = "cuda")), allow(dead_code))]
pub(crate) struct Note {
    pub(crate) argument: &'static str,
    pub(crate) expected: String,
}

/// The tensors of a call in a layout that kernels read: the memory of the input is `[outer, classes, inner]`, and the
/// target is in the same order of rows.
pub(super) struct Layout {
    pub(super) input: Tensor,
    pub(super) target: Tensor,
    pub(super) classes: usize,
    pub(super) inner: usize,
}

impl Layout {
    pub(super) fn f_new(input: &Tensor, class_dim: usize, target: &Tensor) -> Result<Self, LossError> {
        let size = input.size();
        let classes = size[class_dim] as usize;
        let inner: i64 = size[class_dim + 1..].iter().product();
        let last = || input.f_movedim_int(class_dim as i64, -1);
        let (input, inner) = if input.is_contiguous() {
            (input.shallow_clone(), inner as usize)
        } else if Header::of(input).is_dense() && last()?.is_contiguous() {
            // In the memory format "channels last" the classes of a pixel lie side by side.
            (input.shallow_clone(), 1)
        } else {
            (input.f_detach()?.f_contiguous()?, inner as usize)
        };
        let target = match target.f_kind()? {
            Kind::Int64 => target.f_contiguous()?,
            _ if target.size() != size => target.f_detach()?.f_contiguous()?,
            _ => f_one_layout(&[&input, target])?.remove(1),
        };
        Ok(Self { input, target, classes, inner })
    }
}

/// Hinges of the score x\[t\] of the target t and the scores x\[c\] of the other classes c.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Margin {
    pub(crate) margin: f64,
    pub(crate) hinges: Hinges,
}

/// Which hinges make the loss of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Hinges {
    /// Σ max(0, `margin` − x\[t\] + x\[c\]) / C
    All,
    /// Σ max(0, `margin` − x\[t\] + x\[c\])² / C
    Squared,
    /// max(0, `margin` − x\[t\] + max(0, x\[c\], …))
    Strongest,
}

/// The options of cross entropy with the Jensen-Shannon divergence.
#[cfg(feature = "classification")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Views {
    /// How many views a sample has.
    pub(crate) count: usize,
    /// ε: the share of the target that is spread over all classes.
    pub(crate) smoothing: f64,
    /// What the divergence of a view from the mixture is multiplied by, before the mean over the views.
    pub(crate) weight: f64,
    /// The least probability in a mixture: smaller means are raised to it before the logarithm.
    pub(crate) floor: f64,
}

/// What is done with targets that have not been checked. Of a class out of range loss and gradient are NaN and 0.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(any(test, feature = "cuda")), allow(dead_code))]
pub(crate) struct Unchecked<'a> {
    /// The class whose targets are ignored.
    pub(crate) ignored: i64,
    /// A Boolean that becomes false where a class is out of range.
    pub(crate) note: Option<&'a Tensor>,
    /// A number, of the type that the logits are computed in, that becomes 0 there.
    pub(crate) valid: &'a Tensor,
}

/// Rows of logits and their targets.
pub(crate) struct LogitRows<'a> {
    /// `[n, C]`, without a graph.
    pub(crate) logits: &'a Tensor,
    /// `[n]`: a class in range, or −1 where it is ignored; 64-bit. With `unchecked` it is any number.
    pub(crate) target: &'a Tensor,
    /// On CUDA, where the kernel is to check the classes.
    #[cfg_attr(not(any(test, feature = "cuda")), allow(dead_code))]
    pub(crate) unchecked: Option<Unchecked<'a>>,
    /// A weight for each class, of any floating kind.
    pub(crate) weight: Option<&'a Tensor>,
    /// The share of the target that is spread over all classes.
    pub(crate) smoothing: f64,
    /// z, the factor of (log Σ exp(x))².
    pub(crate) z_loss: f64,
    /// The soft cap s: the losses are those of s tanh(x / s) instead of x.
    pub(crate) soft_cap: Option<f64>,
    /// The derivatives of the final result with respect to the cross entropy and to the z-loss of each row, `[n]`, in
    /// the type that the logits are computed in. `None` in a forward pass.
    pub(crate) derivatives: Option<[&'a Tensor; 2]>,
}

/// The losses of rows by the engine of a formula on the CPU, and of a kernel on CUDA.
macro_rules! by_device {
    ($rows:ident, $reduction:expr, $composite:ident, $formula:expr, $kernel:expr) => {{
        let composite = widely(composite_of(move |[input, target]: [&Tensor; 2]| $composite(input, target)));
        #[cfg(any(test, feature = "cuda"))]
        if cuda::is_asked_for_any_result($rows.input) {
            return Ok(cuda::rows::f_rows(|| $kernel, $rows, $reduction, composite)?.ok());
        }
        cpu::rows::f_rows($formula, $rows, $reduction, composite)
    }};
}

/// Whether the engines of rows may take calls with this input.
pub(crate) fn takes_rows(input: &Tensor) -> bool {
    #[cfg(any(test, feature = "cuda"))]
    if cuda::is_asked_for_any_result(input) {
        return true;
    }
    super::takes(input)
}

/// The losses of `rows` with classes as targets, reduced. The share `smoothing` of a target is spread over all classes.
/// `None` where the engine does not take the call. Second derivatives are those of the `composite` of input and target.
pub(crate) fn f_softmax(
    formula: impl RowLoss,
    smoothing: f64,
    rows: &Rows,
    reduction: RowReduction,
    composite: impl Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
) -> Result<Option<Tensor>, LossError> {
    let of_classes = cpu::softmax::OfClasses { formula, smoothing };
    by_device!(rows, reduction, composite, of_classes, cuda::softmax::of_classes(formula, smoothing))
}

/// The cross entropy of `rows` whose target has a share for each class, reduced. The share `smoothing` of a target is
/// spread over all classes. `None` where the engine does not take the call. Second derivatives are those of the
/// `composite` of input and target.
pub(crate) fn f_softmax_of_shares(
    smoothing: f64,
    rows: &Rows,
    reduction: RowReduction,
    composite: impl Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
) -> Result<Option<Tensor>, LossError> {
    let of_shares = cpu::softmax::OfShares { smoothing };
    by_device!(rows, reduction, composite, of_shares, cuda::softmax::of_shares(false, smoothing))
}

/// The losses of `rows`, reduced, whose target is a position among the classes: the two classes beside it have it in
/// proportion to how near they are. The classes are the last dimension. `None` where the engine does not take the call.
/// Second derivatives are those of the `composite` of input and target.
#[cfg(feature = "detection")]
pub(crate) fn f_softmax_of_positions(
    rows: &Rows,
    reduction: RowReduction,
    composite: impl Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
) -> Result<Option<Tensor>, LossError> {
    by_device!(rows, reduction, composite, cpu::positions::OfPositions, cuda::softmax::of_shares(true, 0.0))
}

/// The losses of `rows`, whose classes are the last dimension, reduced. `None` where the engine does not take the call.
/// Second derivatives are those of the `composite` of input and target.
#[cfg(feature = "classification")]
pub(crate) fn f_class_terms(
    formula: impl ClassTerms,
    rows: &Rows,
    reduction: RowReduction,
    composite: impl Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
) -> Result<Option<Tensor>, LossError> {
    by_device!(rows, reduction, composite, cpu::class_terms::OfTerms(formula), cuda::class_terms::of_terms(formula))
}

/// The mean cross entropy of the first views, plus the mean divergence of all views from their mixtures, times its
/// weight. `None` where the engine does not take the call. The rows are all samples' first views, then all samples'
/// second views, and so on, with the classes as the last dimension; the targets are the classes of the samples. Second
/// derivatives are those of the `composite` of input and target.
#[cfg(feature = "classification")]
pub(crate) fn f_views(
    views: Views,
    rows: &Rows,
    composite: impl Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
) -> Result<Option<Tensor>, LossError> {
    #[cfg(any(test, feature = "cuda"))]
    if cuda::is_asked_for_any_result(rows.input) && views.count > cuda::views::VIEWS {
        return Ok(None);
    }
    by_device!(rows, RowReduction::Sum, composite, views, cuda::views::of_views(views, rows.target.numel()))
}

/// The losses of `rows`, whose classes are the last dimension, reduced. `None` where the engine does not take the call.
/// Second derivatives are those of the `composite` of input and target.
pub(crate) fn f_margin(
    margin: Margin,
    rows: &Rows,
    reduction: RowReduction,
    composite: impl Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
) -> Result<Option<Tensor>, LossError> {
    by_device!(rows, reduction, composite, margin, cuda::margin::of_hinges(margin))
}

/// The negative log likelihood of `rows` of log-probabilities, reduced. `None` where the engine does not take the call.
/// Second derivatives are those of the `composite` of input and target.
pub(crate) fn f_picked(
    rows: &Rows,
    reduction: RowReduction,
    composite: impl Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
) -> Result<Option<Tensor>, LossError> {
    by_device!(rows, reduction, composite, cpu::picked::Picked, cuda::picked::of_targets())
}

/// The cross entropy and the z-loss of each row, `[n]`, in single precision for logits of half precision. `None` where
/// the engine does not take the call. Where there are derivatives, the logits are overwritten by the gradient.
pub(crate) fn f_logits(rows: &LogitRows) -> Result<Option<[Tensor; 2]>, LossError> {
    #[cfg(any(test, feature = "cuda"))]
    if cuda::is_asked(rows.logits) {
        return cuda::logits::f_logits(rows);
    }
    cpu::logits::f_logits(rows)
}

/// The losses Σ max(0, 1 − x\[t\] + x\[c\]) / C of each row, reduced: over its labels t, which end at the first −1, and
/// its other classes c. By the `composite` of tensor operations where the engine does not take the call. The arguments,
/// `[N, C]` or `[C]`, are scores and labels, the latter 64-bit integers.
pub(crate) fn f_label_margin(
    arguments: [&Tensor; 2],
    reduction: Reduction,
    note: Option<&Note>,
    composite: impl Fn([&Tensor; 2]) -> Result<Tensor, LossError> + Send + 'static,
) -> Result<Tensor, LossError> {
    let composite = widely(composite_of(composite));
    #[cfg(any(test, feature = "cuda"))]
    if cuda::is_asked_for_any_result(arguments[0]) {
        return cuda::label_margin::f_label_margin(arguments, reduction, note, composite);
    }
    // The engine of the CPU leaves a call with an entry that is no class to the composite.
    let _ = note;
    cpu::label_margin::f_label_margin(arguments, reduction, composite)
}
