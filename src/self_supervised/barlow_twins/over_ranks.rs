use tch::Tensor;

use super::BarlowTwinsLoss;
use crate::distributed::Group;
use crate::kernels::NumberOperations;
use crate::numeric::{f_matrix_product, result_kind, wide_kind};
use crate::self_supervised::moments::f_centred;
use crate::self_supervised::views;
use crate::{Loss, LossError, check};

impl BarlowTwinsLoss {
    /// Computes the loss of the batches of all ranks of a group, which may be of different sizes: means, variances and
    /// correlations are those of the whole batch.
    ///
    /// Every rank has the loss of one process with the whole batch, and the average of the gradients over ranks is that
    /// of one process. A rank computes the correlations of its own batch alone.
    ///
    /// # Errors
    /// Those of [`f_forward`](Loss::f_forward), where the whole batch needs two rows, and those of
    /// [`Group::f_sum_data_parallel`](Group::f_sum_data_parallel).
    pub fn f_forward_over_ranks(&self, input: &Tensor, target: &Tensor, group: &Group) -> Result<Tensor, LossError> {
        let group = &group.of_options(self, "");
        let both = group.f_or_refuse(self.f_checked(input, target))?;
        let features = both.size()[1] / 2;
        let (centred, rows) = f_centred(&both, group)?;
        check::shape(("input", input), rows >= 2, "[N, D] with at least two rows on all ranks together")?;
        let squares = centred.f_square()?.f_sum_dim_intlist(0, true, None)?;
        let variances = group.f_sum_data_parallel(&squares)?.f_div_number(rows)?;
        let normalized = centred.f_mul(&variances.f_add_number(1e-5)?.f_rsqrt()?)?;
        let [a, b] = [normalized.f_narrow(1, 0, features)?, normalized.f_narrow(1, features, features)?];
        let product = group.f_sum_of_same_loss(&f_matrix_product(&a.f_transpose(0, 1)?, &b)?)?;
        Ok(self.f_of_product(&product, rows)?.f_to_kind(result_kind(input)?)?)
    }

    /// The views side by side, so that they are reduced at once.
    fn f_checked(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        views(("input", input), ("target", target))?;
        check::shape(("input", input), input.dim() == 2, "[N, D]")?;
        self.f_check_options()?;
        Ok(Tensor::f_cat(&[input, target], 1)?.f_to_kind(wide_kind(input)?)?)
    }
}
