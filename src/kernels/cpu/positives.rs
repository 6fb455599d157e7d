//! The engine of losses of each pair with the same label (a positive), given the soft maximum of its negatives: NT-Xent
//! and lifted structure.
//!
//! The sums of `pairs` give L\[i\] = log Σ exp(t) of the negatives of each row i. The loss of a positive (i, j) is a
//! function of its element x, of L\[i\], and where both embeddings' negatives count, of L\[j\].
//!
//! The gradient is, at a positive, the derivative with respect to x; at a negative of row i, exp(t − L\[i\]) t′ times
//! the sum of the derivatives with respect to L\[i\] of all positives that use it.

use tch::{Kind, Tensor};

use super::elements::elements;
use super::kinds::Wide;
use super::output::{Output, f_scalar_of};
use super::pair_labels::HostLabels;
use super::pairs::{Job, OnTape, PairPass, Weights};
use super::parallel;
use crate::LossError;
use crate::autograd::{Backward, Place, Tape};
use crate::kernels::formulas::{OTHER, Positives};
use crate::kernels::pairs::{Counted, Each};
use crate::kernels::tensors::f_plain;

impl<F: Positives> PairPass for Each<F> {
    const SOFT: bool = true;
    type Terms = Self;

    fn terms(self) -> Self {
        self
    }
}

impl<F: Positives> OnTape for Each<F> {
    fn f_on(
        self,
        tape: &mut Tape,
        arguments: &[Place],
        labels: &HostLabels,
        counted: Counted,
        kind: Kind,
    ) -> Result<Option<Place>, LossError> {
        match tape.value(arguments[0]).f_kind()? {
            Kind::Float => f_run::<f32, F>(self, tape, arguments, labels, counted, kind),
            Kind::Double => f_run::<f64, F>(self, tape, arguments, labels, counted, kind),
            _ => Ok(None),
        }
    }
}

fn f_run<W: Wide, F: Positives>(
    plan: Each<F>,
    tape: &mut Tape,
    arguments: &[Place],
    labels: &HostLabels,
    counted: Counted,
    kind: Kind,
) -> Result<Option<Place>, LossError> {
    let matrix = tape.value(arguments[0]).f_contiguous()?;
    let job = Job::<W>::new(Box::new(plan), labels, counted);
    let sums = job.f_sums(&matrix)?;
    let pairs = SamePairs {
        formula: plan.0,
        counted,
        negatives: sums.iter().map(|sums| sums.of_row().log_sum_exp[OTHER]).collect(),
        members: members(labels),
        labels: labels.clone(),
    };
    let rows = pairs.f_rows::<W>(&matrix)?;
    let lacks_negatives = F::NEEDS_NEGATIVES && sums.iter().all(|sums| sums.counts[OTHER] == 0.0);
    let scale = if lacks_negatives { 0.0 } else { counted.scale(rows.iter().map(|row| row.count).sum()) };
    let loss = rows.iter().map(|row| row.loss).sum::<f64>() * scale;
    if loss.is_nan() {
        return Ok(None);
    }
    let weights = rows.iter().zip(&sums).map(|(row, sums)| {
        // A row without negatives has slope 0 and Σ exp = 0.
        let weight = if row.slope == 0.0 { 0.0 } else { scale * row.slope / sums.exponentials[OTHER] };
        Weights { soft: [0.0, weight], shift: sums.most, ..Weights::NOTHING }
    });
    let weights: Vec<Weights> = weights.collect();
    let pull = move |Backward { arguments, grad, .. }: Backward| {
        let grad = f_plain(grad)?.f_double_value(&[])?;
        let matrix = arguments[0].f_detach()?.f_contiguous()?;
        let x = elements::<W>(&matrix);
        let slope = |(column, slope)| (column, W::from_f64(grad * scale * slope));
        let slopes = |row: usize| pairs.slopes(x, row).map(slope).collect();
        Ok(vec![Some(job.f_gradient(&matrix, &weights, grad, &slopes)?)])
    };
    Ok(Some(tape.add(f_scalar_of(kind, loss)?, arguments, pull)))
}

/// The columns that have each label.
fn members(labels: &HostLabels) -> Vec<Vec<usize>> {
    let count = labels.rows.iter().chain(labels.columns.iter()).max().map_or(0, |most| *most as usize + 1);
    let mut members = vec![Vec::new(); count];
    for (column, label) in labels.columns.iter().enumerate() {
        members[*label as usize].push(column);
    }
    members
}

/// The positives of a call.
struct SamePairs<F> {
    formula: F,
    counted: Counted,
    /// L: log Σ exp of the terms of each row's negatives.
    negatives: Vec<f64>,
    /// The columns that have each label.
    members: Vec<Vec<usize>>,
    labels: HostLabels,
}

/// The sums over the positives of a row.
struct Row {
    loss: f64,
    count: f64,
    /// The derivative of the sum of all losses with respect to L of the row.
    slope: f64,
}

impl<F: Positives> SamePairs<F> {
    fn f_rows<W: Wide>(&self, matrix: &Tensor) -> Result<Vec<Row>, LossError> {
        const NUMBERS: usize = 3;
        let (x, rows) = (elements::<W>(matrix), self.labels.rows.len());
        let output = Output::<f64>::f_of_size(&[rows as i64, NUMBERS as i64])?;
        parallel::rows(rows, self.labels.columns.len(), |range| {
            for row in range {
                let Row { loss, count, slope } = self.row(x, row);
                // SAFETY: each row is one thread's.
                unsafe { output.write(row * NUMBERS..(row + 1) * NUMBERS, &[loss, count, slope]) };
            }
            0.0
        });
        let output = output.into_tensor();
        let row = |numbers: &[f64]| Row { loss: numbers[0], count: numbers[1], slope: numbers[2] };
        Ok(elements::<f64>(&output).chunks_exact(NUMBERS).map(row).collect())
    }

    fn row<W: Wide>(&self, x: &[W], row: usize) -> Row {
        let mut sums = Row { loss: 0.0, count: 0.0, slope: 0.0 };
        for column in self.columns(row) {
            let (loss, [_, of_row, _]) = self.loss(x, row, column);
            if self.counted.counts(loss) {
                sums = Row { loss: sums.loss + loss, count: sums.count + 1.0, slope: sums.slope + of_row };
            }
            if F::BOTH {
                let (loss, [_, _, of_column]) = self.loss(x, column, row);
                sums.slope += if self.counted.counts(loss) { of_column } else { 0.0 };
            }
        }
        sums
    }

    /// The columns of a row's positives, and the derivatives of the sum with respect to their elements.
    fn slopes<W: Wide>(&self, x: &[W], row: usize) -> impl Iterator<Item = (usize, f64)> {
        self.columns(row).map(move |column| {
            let (loss, [slope, ..]) = self.loss(x, row, column);
            (column, if self.counted.counts(loss) { slope } else { 0.0 })
        })
    }

    /// The columns of a row's positives.
    fn columns(&self, row: usize) -> impl Iterator<Item = usize> {
        let columns = self.members[self.labels.rows[row] as usize].iter().copied();
        columns.filter(move |column| !self.labels.own || *column != row)
    }

    /// The loss of a positive, and its derivatives with respect to the element, L of the row and L of the column.
    fn loss<W: Wide>(&self, x: &[W], row: usize, column: usize) -> (f64, [f64; 3]) {
        let of_column = if F::BOTH { self.negatives[column] } else { f64::NEG_INFINITY };
        let x = x[row * self.labels.columns.len() + column];
        self.formula.loss(x.into(), [self.negatives[row], of_column])
    }
}
