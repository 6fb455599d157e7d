//! The engine of losses with a term for every class of a softmax: the asymmetric loss of one label.

use tch::Tensor;

use super::rows::{RowKernel, f_rows};
use super::softmax::EXPONENTIALS;
use super::source::Recipe;
use super::source::rows::{around_row_loss, function};
use crate::LossError;
use crate::kernels::formulas::ClassTerms;
use crate::kernels::graph;
use crate::kernels::rows::{RowReduction, Rows};

/// See [`kernels::f_class_terms`](crate::kernels::f_class_terms).
pub(in crate::kernels) fn f_class_terms<F, C>(
    formula: F,
    rows: &Rows,
    reduction: RowReduction,
    composite: C,
) -> Result<Option<Tensor>, LossError>
where
    F: ClassTerms,
    C: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    f_rows(|| of_terms(formula), rows, reduction, composite)
}

fn of_terms(formula: impl ClassTerms) -> RowKernel {
    let both = |(term, slope)| vec![term, slope];
    let of_target = graph::record(|[log_p, p]| both(formula.of_target(log_p, p)));
    let of_other = graph::record(|[log_p]| both(formula.of_other(log_p)));
    let definitions = format!("#define TARGET_PARAMETERS {}\n", of_target.parameters.len());
    let parameters = [&of_target.parameters[..], &of_other.parameters].concat();
    RowKernel { definitions, formulas: vec![of_target, of_other], parameters, ..RowKernel::of(write) }
}

fn write(recipe: &Recipe) -> String {
    let target = function("of_target", &["log_p", "p_of_target"], &["slope"], &recipe.formulas[0]);
    let other = function("of_other", &["log_p"], &["slope"], &recipe.formulas[1]);
    around_row_loss(recipe, &[&target, &other, EXPONENTIALS, include_str!("source/class_terms.cu")])
}
