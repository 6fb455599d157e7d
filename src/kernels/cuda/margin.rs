//! The engine of hinges between the score of a row's class and those of the other classes.

use tch::Tensor;

use super::rows::{RowKernel, f_rows};
use super::source::Recipe;
use super::source::rows::around_row_loss;
use crate::LossError;
use crate::kernels::rows::{Hinges, Margin, RowReduction, Rows};

/// See [`kernels::f_margin`](crate::kernels::f_margin).
pub(in crate::kernels) fn f_margin<C>(
    margin: Margin,
    rows: &Rows,
    reduction: RowReduction,
    composite: C,
) -> Result<Option<Tensor>, LossError>
where
    C: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    f_rows(|| of_hinges(margin), rows, reduction, composite)
}

fn of_hinges(Margin { margin, hinges }: Margin) -> RowKernel {
    let [strongest, squared] = [Hinges::Strongest, Hinges::Squared].map(|these| i32::from(hinges == these));
    let definitions = format!("#define STRONGEST {strongest}\n#define SQUARED {squared}\n");
    let write = |recipe: &Recipe| around_row_loss(recipe, &[include_str!("source/margin.cu")]);
    RowKernel { definitions, parameters: vec![margin], ..RowKernel::of(write) }
}
