//! The engine of losses with a term for every class of a softmax: the asymmetric loss of one label.

use super::rows::RowKernel;
use super::softmax::EXPONENTIALS;
use super::source::Recipe;
use super::source::rows::{around_row_loss, function};
use crate::kernels::formulas::ClassTerms;
use crate::kernels::graph;

pub(in crate::kernels) fn of_terms(formula: impl ClassTerms) -> RowKernel {
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
