//! What the losses with a vector for each class share: its variable on a path, and angles to it.

use tch::{Kind, Tensor, nn};

use super::batch::{f_kind_of_pairs, f_labels, softplus};
use super::pairs::CountedAs;
use super::{EmbeddingDistance, EmbeddingPairs, EmbeddingReduction};
use crate::autograd::{Backward, Gradients, Place, Tape, f_taped};
use crate::check::{self, ClassIndices, Named};
use crate::kernels::{
    self, NumberOperations, OTHER, PairLabels, PairSlopes, PairSums, PairTerms, Real, SAME, Soft, SoftPairs, f_pairs,
    f_pairs_on, scaled,
};
use crate::numeric::{f_matrix_product, f_selected_rows, f_times, result_kind};
use crate::{CrossEntropyLoss, InvalidValues, Loss, LossError, Reduction};

/// A variable of normal values for classes and features, of which there are `sizes`; `form` makes its shape and the
/// standard deviation of its values of them.
pub(super) fn f_variable(
    path: &nn::Path,
    name: &str,
    sizes: [i64; 2],
    form: impl FnOnce([i64; 2]) -> ([i64; 2], f64),
) -> Result<Tensor, LossError> {
    for (option, size) in ["num_classes", "embedding_size"].into_iter().zip(sizes) {
        check::option(option, size, size > 0, "a number > 0")?;
    }
    let (shape, stdev) = form(sizes);
    Ok(path.f_var(name, &shape, nn::Init::Randn { mean: 0.0, stdev })?)
}

/// The calls of a loss whose vectors of the classes are an argument; a method `f_loss` computes it.
macro_rules! passed_in {
    ($vectors:ident) => {
        /// Computes the loss, with a graph where an argument requires a gradient.
        ///
        /// # Errors
        /// A [`LossError`] that names the argument or option at fault.
        pub fn f_forward(&self, input: &Tensor, $vectors: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
            self.f_loss(input, $vectors, target, None)
        }

        /// Computes the loss where the embeddings count as often as the `pairs` of a miner name them: see
        /// [`EmbeddingPairs`].
        ///
        /// # Errors
        /// A [`LossError`] that names the argument or option at fault.
        pub fn f_forward_pairs(
            &self,
            input: &Tensor,
            $vectors: &Tensor,
            target: &Tensor,
            pairs: &EmbeddingPairs,
        ) -> Result<Tensor, LossError> {
            self.f_loss(input, $vectors, target, Some(pairs))
        }

        crate::loss::or_panic!(forward as f_forward(input: &Tensor, $vectors: &Tensor, target: &Tensor) -> Tensor);

        crate::loss::or_panic! {
            forward_pairs as f_forward_pairs(
                input: &Tensor, $vectors: &Tensor, target: &Tensor, pairs: &EmbeddingPairs
            ) -> Tensor
        }
    };
}
pub(super) use passed_in;

/// A loss that owns the vectors of the classes, a variable on a path: the struct with its page, of the options that are
/// the loss with vectors passed in; the vectors with their page; and their name on the path and form for
/// [`f_variable`].
macro_rules! owned {
    (
        $(#[$meta:meta])*
        pub struct $loss:ident of $options:ident: $passed_in:ident;

        $(#[$of_vectors:meta])*
        $vectors:ident: $name:literal, $form:expr;
    ) => {
        $(#[$meta])*
        #[derive(Debug)]
        #[must_use]
        pub struct $loss {
            $vectors: Tensor,
            $options: $passed_in,
        }

        crate::option_tensors::shared_parameters!($loss { $vectors });

        impl $loss {
            /// Creates the variable on `path`.
            ///
            /// # Errors
            /// A [`LossError`] that names the option at fault.
            pub fn f_new<'a>(
                path: impl std::borrow::Borrow<tch::nn::Path<'a>>,
                num_classes: i64,
                embedding_size: i64,
                $options: $passed_in,
            ) -> Result<Self, LossError> {
                $options.f_check()?;
                let sizes = [num_classes, embedding_size];
                let $vectors = super::class_vectors::f_variable(path.borrow(), $name, sizes, $form)?;
                Ok(Self { $vectors, $options })
            }

            crate::loss::or_panic! { "Creates the variable on `path`", new['a] as new f_new(
                path: impl std::borrow::Borrow<tch::nn::Path<'a>>, num_classes: i64, embedding_size: i64,
                $options: $passed_in
            ) -> Self }

            /// Computes the loss where the embeddings count as often as the `pairs` of a miner name them: see
            /// [`EmbeddingPairs`].
            ///
            /// # Errors
            /// A [`LossError`] that names the argument or option at fault.
            pub fn f_forward_pairs(
                &self,
                input: &Tensor,
                target: &Tensor,
                pairs: &EmbeddingPairs,
            ) -> Result<Tensor, LossError> {
                self.$options.f_forward_pairs(input, &self.$vectors, target, pairs)
            }

            crate::loss::or_panic! {
                forward_pairs as f_forward_pairs(input: &Tensor, target: &Tensor, pairs: &EmbeddingPairs) -> Tensor
            }

            $(#[$of_vectors])*
            pub fn $vectors(&self) -> &Tensor {
                &self.$vectors
            }
        }

        impl crate::Loss for $loss {
            crate::option_tensors::with_tensors!(shared);

            fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
                self.$options.f_forward(input, &self.$vectors, target)
            }
        }
    };
}
pub(super) use owned;

/// The proxies are a row of the embeddings' features for each class.
pub(super) fn check_proxies(input: &Tensor, proxies: &Tensor, target: &Tensor) -> Result<(), LossError> {
    check::devices(&[("input", input), ("proxies", proxies), ("target", target)])?;
    let features = input.size().get(1).copied().unwrap_or(0);
    let fits = matches!(proxies.size()[..], [classes, columns] if classes > 0 && columns == features);
    check::shape(("proxies", proxies), fits, format_args!("[C, {features}], one row for each class"))
}

/// Embeddings `[N, D]`, a vector for each class, `[C, D]`, and the classes `[N]` of the embeddings.
pub(super) struct Classified {
    pub(super) embeddings: Tensor,
    pub(super) vectors: Tensor,
    /// As 64-bit integers.
    pub(super) classes: Tensor,
    /// What the losses of the embeddings are multiplied by, `[N]`, where they count differently.
    pub(super) weights: Option<Tensor>,
    /// The kind in which they are compared.
    pub(super) wide: Kind,
    pub(super) kind: Kind,
}

impl Classified {
    /// `vectors` has one row for each class, or `per_class` rows for each.
    pub(super) fn f_new(
        input: &Tensor,
        (name, vectors): Named,
        target: &Tensor,
        per_class: i64,
    ) -> Result<Classified, LossError> {
        let classes = f_labels(("input", input), ("target", target))?;
        check::floating((name, vectors))?;
        let classes = ClassIndices::f_new(&classes, vectors.size()[0] / per_class, None, InvalidValues::Error)?;
        let wide = f_kind_of_pairs(input, [input.size()[0], vectors.size()[0]])?;
        let embeddings = classes.validity.f_unsqueeze(1)?.f_poison(input, true)?;
        let vectors = vectors.shallow_clone();
        Ok(Classified { embeddings, vectors, classes: classes.indices, weights: None, wide, kind: result_kind(input)? })
    }

    /// The same where the embeddings count as often as `pairs` name them, if there are any.
    pub(super) fn f_weighted(self, pairs: Option<&EmbeddingPairs>, named: CountedAs) -> Result<Classified, LossError> {
        let Some(pairs) = pairs else { return Ok(self) };
        Ok(Classified { weights: pairs.f_weights(("input", &self.embeddings), named, self.wide)?, ..self })
    }

    /// `weight` is `[D, C · sub_centers]`, the weights of a class side by side.
    pub(super) fn f_of_weight(
        input: &Tensor,
        weight: &Tensor,
        target: &Tensor,
        sub_centers: i64,
    ) -> Result<Classified, LossError> {
        check::devices(&[("input", input), ("weight", weight), ("target", target)])?;
        check::option("sub_centers", sub_centers, sub_centers > 0, "a number > 0")?;
        let features = input.size().get(1).copied().unwrap_or(0);
        match weight.size()[..] {
            [rows, columns] if rows == features && columns > 0 && columns % sub_centers == 0 => {
                Classified::f_new(input, ("weight", &weight.f_transpose(0, 1)?), target, sub_centers)
            }
            _ => {
                let expected = match sub_centers {
                    1 => format!("[{features}, C], one column for each class"),
                    _ => format!("[{features}, {sub_centers} C], {sub_centers} columns for each class"),
                };
                Err(check::shape_error(("weight", weight), expected))
            }
        }
    }

    /// The same classes of other tensors.
    pub(super) fn with(&self, [embeddings, vectors]: [&Tensor; 2]) -> Classified {
        let [embeddings, vectors, classes] = [embeddings, vectors, &self.classes].map(Tensor::shallow_clone);
        let weights = self.weights.as_ref().map(Tensor::shallow_clone);
        Classified { embeddings, vectors, classes, weights, ..*self }
    }

    /// The distances or similarities of the embeddings to the vectors, `[N, C]`.
    pub(super) fn f_matrix(&self, distance: EmbeddingDistance) -> Result<Tensor, LossError> {
        distance.f_matrix(&self.embeddings, Some(&self.vectors), self.wide)
    }

    /// The same, `[C, N]`.
    pub(super) fn f_matrix_of_vectors(&self, distance: EmbeddingDistance) -> Result<Tensor, LossError> {
        match distance.is_symmetric() {
            true => distance.f_matrix(&self.vectors, Some(&self.embeddings), self.wide),
            false => Ok(self.f_matrix(distance)?.f_transpose(0, 1)?),
        }
    }

    /// How alike the embeddings and the vectors are, up to a number that is added to a whole row, which does not change
    /// a softmax.
    pub(super) fn f_nearness(&self, distance: EmbeddingDistance) -> Result<Tensor, LossError> {
        if !distance.is_squared_chord() {
            return distance.f_alike(&self.f_matrix(distance)?);
        }
        // −‖a − b‖² is 2 a · b − ‖b‖², but for ‖a‖².
        let unit = |rows: &Tensor| distance.f_prepared(rows, self.wide);
        let (a, b) = (unit(&self.embeddings)?, unit(&self.vectors)?);
        let squares = b.f_square()?.f_sum_dim_intlist([1_i64].as_slice(), false, None)?;
        Ok(squares.f_neg()?.f_unsqueeze(0)?.f_addmm(&a.f_mul_number(2)?, &b.f_transpose(0, 1)?)?)
    }

    /// The classes as the labels of the rows of a matrix that has `count` columns; none where the embeddings have
    /// weights, which the engine does not take.
    pub(super) fn f_numbered(&self, count: i64) -> Result<Option<PairLabels>, LossError> {
        if self.weights.is_some() {
            return Ok(None);
        }
        PairLabels::f_of_classes(&self.classes, count)
    }

    /// Cross entropy of the embeddings' nearness to the vectors, of which those of the classes are lowered.
    pub(super) fn f_cross_entropy_of(
        &self,
        distance: EmbeddingDistance,
        softmax: OwnSoftmax,
        reduction: EmbeddingReduction,
    ) -> Result<Tensor, LossError> {
        let reduction = reduction.of_anchors();
        let (labels, counted) = (self.f_numbered(self.vectors.size()[0])?, reduction.f_counted()?);
        let steps = |tape: &mut Tape, places: &[Place]| {
            if labels.is_none() || counted.is_none() {
                return Ok(None);
            }
            let Some((rows, sign)) = f_nearness_on(distance, tape, places, self.wide)? else { return Ok(None) };
            let softmax = OwnSoftmax { scale: sign * softmax.scale, ..softmax };
            f_pairs_on(tape, Soft(softmax), &[rows], labels.as_ref(), counted, self.kind)
        };
        let same = self.with([&self.embeddings, &self.vectors]);
        f_taped(&[&self.embeddings, &self.vectors], steps, move |inputs| {
            let batch = same.with([&inputs[0], &inputs[1]]);
            batch.f_cross_entropy(softmax, &batch.f_nearness(distance)?, None, reduction)
        })
    }

    /// Cross entropy of the `rows` `[N, C]`, of which the elements of the classes are lowered, or replaced by `own`.
    pub(super) fn f_cross_entropy(
        &self,
        softmax: OwnSoftmax,
        rows: &Tensor,
        own: Option<&Tensor>,
        reduction: EmbeddingReduction,
    ) -> Result<Tensor, LossError> {
        let (classes, kind, reduction) = (self.classes.shallow_clone(), self.kind, reduction.of_anchors());
        let weights = self.weights.as_ref().map(Tensor::shallow_clone);
        let composite = move |rows: &Tensor, own: Option<&Tensor>| {
            let losses = f_times(&softmax.f_losses(rows, own, &classes)?, weights.as_ref())?;
            Ok(reduction.f_apply(&losses, None)?.f_to_kind(kind)?)
        };
        let (labels, counted) = (self.f_numbered(rows.size()[1])?, reduction.f_counted()?);
        let (plan, labels) = (Soft(softmax), labels.as_ref());
        match own {
            None => f_pairs(plan, [rows], labels, counted, kind, move |[rows]| composite(rows, None)),
            Some(own) => {
                f_pairs(plan, [rows, own], labels, counted, kind, move |[rows, own]| composite(rows, Some(own)))
            }
        }
    }

    /// Of each row the element of its class.
    fn f_own(&self, rows: &Tensor) -> Result<Tensor, LossError> {
        f_own(rows, &self.classes)
    }

    /// The result in the kind of the embeddings.
    pub(super) fn f_narrow(&self, loss: &Tensor) -> Result<Tensor, LossError> {
        Ok(loss.f_to_kind(self.kind)?)
    }
}

/// How alike the embeddings at two places of a tape are, up to a number that is added to a whole row, and the sign of
/// that; none where no engine takes them.
fn f_nearness_on(
    distance: EmbeddingDistance,
    tape: &mut Tape,
    places: &[Place],
    kind: Kind,
) -> Result<Option<(Place, f64)>, LossError> {
    if !distance.is_squared_chord() {
        return Ok(distance.f_matrix_on(tape, places, kind)?.map(|matrix| (matrix, -distance.sign())));
    }
    let Some(units) = distance.f_units_on(tape, places, kind)? else { return Ok(None) };
    let (a, b) = (tape.value(units[0]), tape.value(units[1]));
    let squares = |rows: &Tensor| rows.f_square()?.f_sum_dim_intlist([1_i64].as_slice(), false, None);
    let nearness = squares(b)?.f_neg()?.f_unsqueeze(0)?.f_addmm(&a.f_mul_number(2)?, &b.f_transpose(0, 1)?)?;
    let pull = |Backward { arguments, grad, needed, .. }: Backward| -> Gradients {
        let (a, b, twice) = (arguments[0], arguments[1], grad.f_mul_number(2)?);
        let of_a = needed[0].then(|| f_matrix_product(&twice, b)).transpose()?;
        let of_b = needed[1].then(|| {
            let own = b.f_mul(&twice.f_sum_dim_intlist([0_i64].as_slice(), false, None)?.f_unsqueeze(1)?)?;
            Ok::<_, LossError>(f_matrix_product(&twice.f_transpose(0, 1)?, a)?.f_sub(&own)?)
        });
        Ok(vec![of_a, of_b.transpose()?])
    };
    Ok(Some((tape.add(nearness, &units, pull), 1.0)))
}

/// Of each row the element of its class.
fn f_own(rows: &Tensor, classes: &Tensor) -> Result<Tensor, LossError> {
    Ok(rows.f_gather(1, &classes.f_unsqueeze(1)?, false)?.f_squeeze_dim(1)?)
}

/// Cross entropy of rows of which the elements of the classes are lowered or replaced.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnSoftmax {
    pub(super) scale: f64,
    /// What is taken from the elements of the classes.
    pub(super) margin: f64,
}

impl OwnSoftmax {
    /// The losses of `rows` by their `classes`, which are known to be in range.
    pub(super) fn f_losses(self, rows: &Tensor, own: Option<&Tensor>, classes: &Tensor) -> Result<Tensor, LossError> {
        let replaced = |own: &Tensor| rows.f_scatter(1, &classes.f_unsqueeze(1)?, &own.f_unsqueeze(1)?);
        let rows = match own {
            Some(own) => replaced(own)?,
            None if self.margin == 0.0 => rows.shallow_clone(),
            None => replaced(&f_own(rows, classes)?.f_sub_number(self.margin)?)?,
        };
        let logits = if self.scale == 1.0 { rows } else { rows.f_mul_number(self.scale)? };
        if !kernels::waits(&logits) {
            return CrossEntropyLoss::new().reduction(Reduction::None).f_forward(&logits, classes);
        }
        // A loss would check the classes again.
        let classes = check::f_kept(classes, &logits)?;
        Ok(logits.f_cross_entropy_loss(&classes, None::<&Tensor>, tch::Reduction::None, NO_CLASS, 0.0)?)
    }
}

/// An index that no class has.
const NO_CLASS: i64 = -100;

impl PairTerms for OwnSoftmax {
    #[inline(always)]
    fn same<R: Real>(self, x: R) -> (R, R) {
        scaled(x, self.margin, self.scale)
    }

    #[inline(always)]
    fn other<R: Real>(self, x: R) -> (R, R) {
        scaled(x, 0.0, self.scale)
    }
}

impl SoftPairs for OwnSoftmax {
    fn loss<R: Real>(self, sums: &PairSums<R>) -> (R, PairSlopes<R>) {
        let (zero, scale) = (R::of(0.0), R::of(self.scale));
        let own = sums.own.map_or(sums.sums[SAME], |own| scale * own);
        let (loss, slope) = softplus(sums.log_sum_exp[OTHER] - own);
        let of_others = PairSlopes::of_log_sum_exp([zero, slope]);
        match sums.own {
            Some(_) => (loss, PairSlopes { own: -slope * scale, ..of_others }),
            None => (loss, PairSlopes { sums: [-slope, zero], ..of_others }),
        }
    }
}

/// The cosines of embeddings with weights of classes, of which the nearest of several may count.
pub(super) struct Angles {
    classified: Classified,
    /// `[N, C]`
    cosines: Tensor,
    /// Of the nearest weight of each class, `[N, C]`, where there are several.
    nearest: Option<Tensor>,
    sub_centers: i64,
}

impl Angles {
    /// `weight` is `[D, C · sub_centers]`, the weights of a class side by side.
    pub(super) fn f_new(
        input: &Tensor,
        weight: &Tensor,
        target: &Tensor,
        sub_centers: i64,
        pairs: Option<&EmbeddingPairs>,
    ) -> Result<Angles, LossError> {
        let mut classified =
            Classified::f_of_weight(input, weight, target, sub_centers)?.f_weighted(pairs, CountedAs::Any)?;
        let classes = classified.vectors.size()[0] / sub_centers;
        let cosine = EmbeddingDistance::cosine();
        classified.embeddings = cosine.f_prepared(&classified.embeddings, classified.wide)?;
        classified.vectors = cosine.f_prepared(&classified.vectors, classified.wide)?;
        let cosines = f_matrix_product(&classified.embeddings, &classified.vectors.f_transpose(0, 1)?)?;
        if sub_centers == 1 {
            return Ok(Angles { classified, cosines, nearest: None, sub_centers });
        }
        let (cosines, nearest) = cosines.f_view([-1, classes, sub_centers])?.f_max_dim(2, false)?;
        Ok(Angles { classified, cosines, nearest: Some(nearest), sub_centers })
    }

    /// The embeddings and the weights of their classes, of length 1.
    pub(super) fn f_own_vectors(&self) -> Result<[Tensor; 2], LossError> {
        let Classified { embeddings, vectors, classes, .. } = &self.classified;
        let rows = match &self.nearest {
            Some(nearest) => classes.f_mul_number(self.sub_centers)?.f_add(&self.classified.f_own(nearest)?)?,
            None => classes.shallow_clone(),
        };
        Ok([embeddings.shallow_clone(), f_selected_rows(vectors, &rows)?])
    }

    /// Cross entropy of the cosines, with those of the embeddings' own classes lowered or replaced.
    pub(super) fn f_loss(
        &self,
        softmax: OwnSoftmax,
        own: Option<&Tensor>,
        reduction: EmbeddingReduction,
    ) -> Result<Tensor, LossError> {
        self.classified.f_cross_entropy(softmax, &self.cosines, own, reduction)
    }
}
