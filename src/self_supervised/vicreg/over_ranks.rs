use tch::Tensor;

use super::{VicRegLoss, f_products, f_squares};
use crate::distributed::Group;
use crate::kernels::NumberOperations;
use crate::numeric::{result_kind, wide_kind};
use crate::self_supervised::moments::f_centred;
use crate::self_supervised::views;
use crate::{Loss, LossError, check};

impl VicRegLoss {
    /// Computes the loss of the batches of all ranks of a group, which may be of different sizes: means, variances and
    /// covariances are those of the whole batch, as lightly's with `gather_distributed`.
    ///
    /// Every rank has the loss of one process with the whole batch, and the average of the gradients over ranks is that
    /// of one process. A rank computes the covariances of its own batch alone.
    ///
    /// # Errors
    /// Those of [`f_forward`](Loss::f_forward), where the whole batch needs two samples, and those of
    /// [`Group::f_sum_data_parallel`](Group::f_sum_data_parallel).
    pub fn f_forward_over_ranks(&self, input: &Tensor, target: &Tensor, group: &Group) -> Result<Tensor, LossError> {
        let group = &group.of_options(self, "");
        let [a, b] = group.f_or_refuse(self.f_checked(input, target))?;
        let features = a.size()[a.dim() - 1];
        let (centred, samples) = f_centred(&Tensor::f_cat(&[&a, &b], -1)?, group)?;
        let expected = "[N, D] or [N, d1, ..., D] with at least two samples on all ranks together";
        check::shape(("input", input), samples >= 2, expected)?;
        let squares = centred.f_square()?.f_sum_dim_intlist(0, true, None)?;
        let variances = group.f_sum_data_parallel(&squares)?.f_div_number(samples - 1)?;
        let views = [0, features].map(|first| centred.f_narrow(-1, first, features));
        let [a_centred, b_centred] = views;
        let products = Tensor::f_stack(&[f_products(&a_centred?)?, f_products(&b_centred?)?], 0)?;
        let covariances = group.f_sum_of_same_loss(&products)?.f_div_number(samples - 1)?;
        let differences = group.f_sum_of_same_loss(&a.f_sub(&b)?.f_square()?.f_sum(None)?)?;
        let elements = samples * a.size()[1..].iter().product::<i64>();
        let invariance = differences.f_div_number(elements)?.f_mul_number(self.lambda_param)?;
        // The means of both views together are half of the sums of their means.
        let variance = self.f_hinges(&variances)?.f_mul_number(self.mu_param)?;
        let covariance = f_squares(&covariances, features)?.f_mul_number(2.0 * self.nu_param)?;
        Ok(invariance.f_add(&variance)?.f_add(&covariance)?.f_to_kind(result_kind(input)?)?)
    }

    fn f_checked(&self, input: &Tensor, target: &Tensor) -> Result<[Tensor; 2], LossError> {
        views(("input", input), ("target", target))?;
        check::shape(("input", input), input.dim() >= 2, "[N, D] or [N, d1, ..., D]")?;
        self.f_check_options()?;
        let kind = wide_kind(input)?;
        Ok([input.f_to_kind(kind)?, target.f_to_kind(kind)?])
    }
}
