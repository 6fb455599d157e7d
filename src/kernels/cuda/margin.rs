//! The engine of hinges between the score of a row's class and those of the other classes.

use super::rows::RowKernel;
use super::source::Recipe;
use super::source::rows::around_row_loss;
use crate::kernels::rows::{Hinges, Margin};

pub(in crate::kernels) fn of_hinges(Margin { margin, hinges }: Margin) -> RowKernel {
    let [strongest, squared] = [Hinges::Strongest, Hinges::Squared].map(|these| i32::from(hinges == these));
    let definitions = format!("#define STRONGEST {strongest}\n#define SQUARED {squared}\n");
    let write = |recipe: &Recipe| around_row_loss(recipe, &[include_str!("source/margin.cu")]);
    RowKernel { definitions, parameters: vec![margin], ..RowKernel::of(write) }
}
