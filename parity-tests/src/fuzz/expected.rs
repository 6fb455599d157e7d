//! Differences that are meant.

use super::call::Call;
use super::families::takes_elements;
use super::truth::Which;

/// A difference that is meant, or none of the crate's doing.
#[derive(Debug)]
pub struct Expected {
    /// Whether it is one: by the call, which result it is of, a number of this crate's, and the one that it is held against.
    holds: fn(&Call, Which, f64, f64) -> bool,
    /// Why.
    pub reason: &'static str,
}

/// Those between both backends. Where one is between the values, there may be others between the derivatives.
pub const BETWEEN_BACKENDS: &[Expected] = &[
    Expected {
        holds: is_over_another_count,
        reason: "the mean is over the losses that are not 0, and an engine keeps e⁻⁸⁰ where tensor operations make 0 of it",
    },
    Expected {
        holds: |call, _, own, other| {
            let is_fault = takes_elements(call.loss) && other.is_finite();
            call.has_huge_numbers() && !(own.is_finite() && other.is_finite()) && !is_fault
        },
        reason: "of a number that is infinite, or whose square is, a sum of terms is infinite or NaN, whichever comes first",
    },
    Expected {
        holds: |call, which, _, _| call.steep && which != Which::Output,
        reason: "the slope of the unit vector of an embedding shorter than 1e-9 multiplies the last digit by 10⁹ and more",
    },
];

/// Those between both backends and double precision.
pub const BESIDE_DOUBLE: &[Expected] = &[
    Expected { holds: is_over_another_count, reason: "the same: a loss of e⁻⁸⁰ is 0 in single precision" },
    Expected {
        holds: |call, _, _, _| call.has_huge_numbers(),
        reason: "what overflows in single precision does not in double precision",
    },
    Expected {
        holds: |call, _, _, _| call.loss == "orpo",
        reason: "log(1 - p) of a certain answer is bounded by the precision of the kind",
    },
];

/// The reason for a difference, where a row has one.
pub fn find(rows: &[Expected], call: &Call, which: Which, own: f64, other: f64) -> Option<&'static str> {
    rows.iter().find(|row| (row.holds)(call, which, own, other)).map(|row| row.reason)
}

/// Whether two means are one sum over two counts, neither of them more than the rows.
fn is_over_another_count(call: &Call, _: Which, own: f64, other: f64) -> bool {
    const MOST: i64 = 12;
    if !["MeanNonZero", "mean_non_zero"].iter().any(|word| call.description.contains(word)) {
        return false;
    }
    let rows = call.arguments[0].1.size().first().copied().unwrap_or(1).min(MOST);
    let is_near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs();
    (1..=rows).any(|n| (1..=rows).any(|m| is_near(own * n as f64, other * m as f64)))
}
