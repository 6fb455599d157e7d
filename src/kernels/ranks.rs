//! The engine of weights that follow from the order of numbers.

use std::ops::{Add, Neg};

use tch::{Kind, Tensor};

use super::element::{Element, Output, booleans, elements, is_plain};
use super::{backend, parallel};
use crate::LossError;

/// A weight for each of the `numbers` `[R, P]`, by its place in the descending order of its row; equal ones keep theirs. Of the
/// number of those `marked`, `weights` makes what is asked for one weight after the other, given whether that number is marked.
/// No graph; `None` where the engine does not take the call.
pub(crate) fn f_by_rank<F, W>(numbers: &Tensor, marked: &Tensor, weights: F) -> Result<Option<Tensor>, LossError>
where
    F: Fn(usize) -> W + Sync,
    W: FnMut(bool) -> f64,
{
    let kind = numbers.f_kind()?;
    let sizes = numbers.size();
    let taken = backend::fused()
        && is_plain(numbers, kind)
        && is_plain(marked, Kind::Bool)
        && sizes.len() == 2
        && marked.size() == sizes
        && numbers.numel() != 0
        && sizes[1] <= i64::from(u32::MAX);
    Ok(match kind {
        Kind::Float if taken => Some(f_run::<f32, F, W>(numbers, marked, weights, radsort::sort_by_key)?),
        Kind::Double if taken => Some(f_run::<f64, F, W>(numbers, marked, weights, radsort::sort_by_key)?),
        _ => None,
    })
}

/// Sorts numbers and their places by a key, in ascending order.
type Sort<T> = fn(&mut [(T, u32)], fn(&(T, u32)) -> T);

fn f_run<T, F, W>(numbers: &Tensor, marked: &Tensor, weights: F, sort: Sort<T>) -> Result<Tensor, LossError>
where
    T: Element + Neg<Output = T> + Add<Output = T> + PartialOrd,
    F: Fn(usize) -> W + Sync,
    W: FnMut(bool) -> f64,
{
    let [numbers, marked] = [numbers.f_detach()?.f_contiguous()?, marked.f_contiguous()?];
    let [rows, length] = [numbers.size()[0] as usize, numbers.size()[1] as usize];
    let output = Output::<T>::f_of_size(&numbers.size())?;
    let (numbers, marked) = (elements::<T>(&numbers), booleans(&marked));
    parallel::each(rows, &|row| {
        let range = row * length..(row + 1) * length;
        let (numbers, marked) = (&numbers[range.clone()], &marked[range.clone()]);
        let mut order: Vec<(T, u32)> = numbers.iter().map(|number| descending(*number)).zip(0..).collect();
        sort(&mut order, |(number, _)| *number);
        let mut weights = weights(marked.iter().filter(|marked| **marked != 0).count());
        // SAFETY: tasks have rows of their own.
        let places = unsafe { output.range(range) };
        for (_, place) in order {
            let place = place as usize;
            places[place].write(T::from_f64(weights(marked[place] != 0)));
        }
    });
    Ok(output.into_tensor())
}

/// A number whose ascending order is the descending one of `number`. Both zeros have the same, and NaN is the first.
fn descending<T: Element + Neg<Output = T> + Add<Output = T> + PartialOrd>(number: T) -> T {
    let negative = -number + T::from_f64(0.0);
    if negative.partial_cmp(&negative).is_some() { negative } else { T::from_f64(f64::NEG_INFINITY) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_follow_the_order() {
        let numbers = Tensor::from_slice(&[0.5, f64::NAN, -0.0, 0.0, -2.0, 7.0, 7.0, 1.0]).view([2, 4]);
        let marked = Tensor::from_slice(&[true, false, false, true, false, true, false, false]).view([2, 4]);
        let weights = |total: usize| {
            let mut rank = 0;
            move |marked: bool| {
                rank += 1;
                f64::from(rank + 10 * i32::from(marked)) + 100.0 * total as f64
            }
        };
        for kind in [Kind::Float, Kind::Double] {
            let actual = f_by_rank(&numbers.to_kind(kind), &marked, weights).unwrap().unwrap();
            let expected = [212.0, 201.0, 203.0, 214.0, 104.0, 111.0, 102.0, 103.0];
            assert_eq!(Vec::<f64>::try_from(actual.to_kind(Kind::Double).view(-1)).unwrap(), expected, "{kind:?}");
        }
        assert!(f_by_rank(&numbers.to_kind(Kind::Half), &marked, weights).unwrap().is_none());
    }
}
