use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tch::Tensor;

use super::triplet::{self, Triplet};
#[cfg(feature = "serde")]
use crate::description::{Mismatch, OptionValue, Place, Problem, Value};
use crate::kernels::NumberOperations;
use crate::mean_parts::f_wide;
use crate::numeric::{f_widely, real};
use crate::{LossError, MeanParts, Reduction, check};

type Distance = dyn Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send;

/// The setter of the distance.
macro_rules! distance_function {
    ({ $($doc:tt)* } $option:ident) => {
        $($doc)*
        pub fn $option<F>(mut self, $option: F) -> Self
        where
            F: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
        {
            self.$option = DistanceFunction(Some(Arc::new(Mutex::new($option))));
            self
        }
    };
}

crate::options::options! {
/// The triplet margin loss with a distance function of your own.
///
/// As [`TripletMarginLoss`](crate::TripletMarginLoss), for embeddings whose distance is no p-norm: the cosine, a
/// hyperbolic distance, a learned one.
///
/// # Formula
///
/// ℓₙ = max(0, d(aₙ, pₙ) − d(aₙ, nₙ) + Δ)
///
/// where a is the anchor, p the positive and n the negative example, Δ the margin and d the distance. With a swap,
/// d(aₙ, nₙ) is min(d(aₙ, nₙ), d(pₙ, nₙ)).
///
#[doc = include_str!("../../docs/book/src/gallery/triplet_margin_with_distance.svg")]
///
/// # Shapes
///
/// * `anchor`: `[*, D]`, or any shape that the distance function takes
/// * `positive`, `negative`: `[*, D]`, or the same shape as `anchor`
/// * result: scalar, or `[*]` with [`Reduction::None`], or the shape of what the distance function returns
///
/// # Reference
///
/// `torch.nn.TripletMarginWithDistanceLoss` and `torch.nn.functional.triplet_margin_with_distance_loss` of PyTorch
/// 2.13.
///
/// # Differences from PyTorch
///
/// * Arguments, or distances, of different shapes are an error, unless [`broadcast`](Self::broadcast) allows them;
///   PyTorch broadcasts silently.
/// * A margin that is NaN is an error; PyTorch's result is NaN.
///
/// # Errors
///
/// [`LossError::Option`] for a margin that is not positive, [`LossError::Shape`] where shapes differ,
/// [`LossError::Device`] where devices do, [`LossError::Kind`] for booleans, and what the distance function returns.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{LossError, TripletMarginWithDistanceLoss};
///
/// fn manhattan(a: &Tensor, b: &Tensor) -> Result<Tensor, LossError> {
///     Ok(a.f_sub(b)?.f_abs()?.f_sum_dim_intlist(-1, false, None)?)
/// }
///
/// let anchor = Tensor::from_slice(&[0.0, 0.0]).view([1, 2]).set_requires_grad(true);
/// let positive = Tensor::from_slice(&[1.0, 1.0]).view([1, 2]);
/// let negative = Tensor::from_slice(&[-1.0, 4.0]).view([1, 2]);
///
/// let criterion = TripletMarginWithDistanceLoss::new().distance_function(manhattan).margin(4.0);
/// let loss = criterion.f_forward(&anchor, &positive, &negative)?; // 4 + 2 − 5
/// loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&loss)?, 1.0);
/// assert_eq!(Vec::<f64>::try_from(anchor.grad().view(-1))?, [-2.0, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "nn.TripletMarginWithDistanceLoss")]
#[doc(alias = "triplet_margin_with_distance_loss")]
pub struct TripletMarginWithDistanceLoss;

/// The triplet margin loss with PyTorch's defaults.
new {
    /// the distance of two tensors. By default that of `torch.nn.PairwiseDistance`: the Euclidean distance over the
    /// last dimension, with 10⁻⁶ added to each difference. Clones of the loss share it, and their threads take turns
    /// with it. It cannot be described in data.
    distance_function: DistanceFunction = DistanceFunction(None) => distance_function,
    /// by how much the negative must be farther away, > 0, for a triplet to have a loss of 0.
    margin: f64 = 1.0,
    /// whether the distance from the positive to the negative counts where it is the smaller one.
    swap: bool = false,
    /// whether the arguments may differ in shape and are broadcast against each other, and their distances too; the
    /// arguments still need the same number of dimensions.
    broadcast: bool = false,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

/// One thread calls it at a time: a closure that owns tensors is `Send` alone.
#[derive(Clone)]
struct DistanceFunction(Option<Arc<Mutex<Distance>>>);

crate::option_tensors::without_tensors!(DistanceFunction);

#[cfg(feature = "serde")]
impl OptionValue for DistanceFunction {
    fn f_read(_: &Value, _: Place) -> Result<Self, Mismatch> {
        Err(Mismatch::Inside("data cannot say a function".into()))
    }

    fn f_write(&self) -> Result<Value, Problem> {
        if self.0.is_none() { Ok(Value::Null) } else { Err("data cannot say a function".into()) }
    }
}

impl TripletMarginWithDistanceLoss {
    /// Computes the loss, with a graph where an argument requires a gradient.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault, or that of the distance function.
    pub fn f_forward(&self, anchor: &Tensor, positive: &Tensor, negative: &Tensor) -> Result<Tensor, LossError> {
        self.f_reduced([anchor, positive, negative], self.reduction)
    }

    /// The numerator and the denominator of the mean, for means over several calls: see [`MeanParts`].
    ///
    /// # Errors
    /// Those of [`f_forward`](Self::f_forward).
    pub fn f_parts(&self, anchor: &Tensor, positive: &Tensor, negative: &Tensor) -> Result<MeanParts, LossError> {
        let [anchor, positive, negative] = [f_wide(anchor)?, f_wide(positive)?, f_wide(negative)?];
        MeanParts::f_of_losses(&self.f_reduced([&anchor, &positive, &negative], Reduction::None)?)
    }

    crate::loss::or_panic!(forward as f_forward(anchor: &Tensor, positive: &Tensor, negative: &Tensor) -> Tensor);

    fn f_reduced(&self, arguments: [&Tensor; 3], reduction: Reduction) -> Result<Tensor, LossError> {
        let [anchor, positive, negative] = arguments;
        let named = [("anchor", anchor), ("positive", positive), ("negative", negative)];
        triplet::check(named, self.margin, self.broadcast)?;
        let (margin, swap, broadcast) = (self.margin, self.swap, self.broadcast);
        let Some(distance_function) = &self.distance_function.0 else {
            let triplet = Triplet { margin, p: 2.0, eps: 1e-6, swap };
            return triplet.f_loss(arguments, reduction, move |arguments| {
                f_widely(arguments, |arguments| {
                    f_losses(&f_euclidean, arguments, margin, swap, reduction, |_, _| Ok(()))
                })
            });
        };
        let check = |distance: check::Named, first: check::Named| {
            check::devices(&[first, distance])?;
            check::not_boolean(distance)?;
            real(first)?;
            real(distance)?;
            check::same_shape_or_broadcast(distance, first, broadcast)
        };
        let distance_function = distance_function.lock().unwrap_or_else(PoisonError::into_inner);
        f_widely(arguments, |arguments| f_losses(&*distance_function, arguments, margin, swap, reduction, check))
    }
}

/// The reduced losses of the distances, which are held against the first one by `check`.
fn f_losses(
    distance_function: &Distance,
    [anchor, positive, negative]: [&Tensor; 3],
    margin: f64,
    swap: bool,
    reduction: Reduction,
    check: impl Fn(check::Named, check::Named) -> Result<(), LossError>,
) -> Result<Tensor, LossError> {
    let to_positive = distance_function(anchor, positive)?;
    let mut to_negative = distance_function(anchor, negative)?;
    let first = ("distance_function(anchor, positive)", &to_positive);
    check(("distance_function(anchor, negative)", &to_negative), first)?;
    if swap {
        let swapped = distance_function(positive, negative)?;
        check(("distance_function(positive, negative)", &swapped), first)?;
        to_negative = to_negative.f_minimum(&swapped)?;
    }
    f_widely([&to_positive, &to_negative], |[to_positive, to_negative]| {
        let losses = to_positive.f_add_number(margin)?.f_sub(to_negative)?.f_clamp_min_number(0)?;
        reduction.f_apply(&losses)
    })
}

fn f_euclidean(a: &Tensor, b: &Tensor) -> Result<Tensor, LossError> {
    Ok(Tensor::f_pairwise_distance(a, b, 2.0, 1e-6, false)?)
}

impl fmt::Debug for DistanceFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "given" } else { "pairwise distance" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TripletMarginLoss;
    use crate::random::randn;

    #[test]
    fn without_a_function_it_is_the_triplet_margin_loss() {
        let (a, p, n) = (randn([5, 3]), randn([5, 3]), randn([5, 3]));
        for swap in [false, true] {
            let loss = TripletMarginWithDistanceLoss::new().swap(swap).forward(&a, &p, &n);
            assert_eq!(loss, TripletMarginLoss::new().swap(swap).forward(&a, &p, &n));
        }
    }

    #[test]
    fn an_error_of_the_function_comes_out() {
        let criterion = TripletMarginWithDistanceLoss::new().distance_function(|a, b| Ok(a.f_matmul(b)?));
        let x = randn([3, 4]);
        let error = criterion.f_forward(&x, &x, &x).unwrap_err();
        assert!(error.to_string().starts_with("libtorch: mat1 and mat2 shapes"), "{error}");
    }

    #[test]
    fn distances_are_not_broadcast_unasked() {
        let ragged = |a: &Tensor, b: &Tensor| {
            let keepdim = f64::try_from(b.f_sum(None)?)? > 0.0;
            Ok(a.f_sub(b)?.f_sum_dim_intlist(-1, keepdim, None)?)
        };
        let criterion = TripletMarginWithDistanceLoss::new().distance_function(ragged);
        let one = randn([3, 4]).ones_like();
        let error = criterion.f_forward(&one, &-&one, &one).unwrap_err();
        let expected = "distance_function(anchor, negative) has shape [3, 1], \
                        expected [3], the shape of distance_function(anchor, positive)";
        assert_eq!(error.to_string(), expected);
        let criterion = criterion.broadcast(true).reduction(Reduction::None);
        assert_eq!(criterion.forward(&one, &-&one, &one).size(), [3, 3]);
    }

    #[test]
    fn wrong_calls_are_named() {
        let x = randn([3, 4]);
        let criterion = TripletMarginWithDistanceLoss::new().margin(-1.0);
        let error = criterion.f_forward(&x, &x, &x).unwrap_err();
        assert_eq!(error.to_string(), "option margin is -1, expected a number > 0");
        let criterion = TripletMarginWithDistanceLoss::new().distance_function(|_, _| Ok(Tensor::new()));
        let error = criterion.f_forward(&x, &x, &x).unwrap_err();
        assert_eq!(error.to_string(), "distance_function(anchor, positive) is an undefined tensor");
        let criterion = TripletMarginWithDistanceLoss::new().distance_function(|a, b| Ok(a.f_eq_tensor(b)?));
        let error = criterion.f_forward(&x, &x, &x).unwrap_err();
        assert_eq!(error.to_string(), "distance_function(anchor, negative) has kind Bool, expected a kind of numbers");
        let error = TripletMarginWithDistanceLoss::new().f_forward(&x, &x, &x.gt(0.0)).unwrap_err();
        assert_eq!(error.to_string(), "negative has kind Bool, expected a kind of numbers");
    }

    #[test]
    fn it_can_be_sent_and_printed() {
        fn sent<T: Send>(_: &T) {}
        let criterion = TripletMarginWithDistanceLoss::new();
        sent(&criterion);
        assert!(format!("{criterion:?}").contains("distance_function: pairwise distance"));
    }
}
