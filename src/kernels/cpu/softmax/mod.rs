//! The engine of losses of a softmax over classes: cross entropy, softmax focal, poly cross entropy. The target of a
//! row is a class, or a share for each class.
//!
//! With p = softmax(x) of a row and its target class t, such a loss is a function of log p\[t\] and of log Σ exp(x);
//! with shares it is their cross entropy. Its gradient is a multiple of p, plus numbers for the target. So the logits
//! are read once, the gradient is written once, and no log-probabilities are kept.
//!
//! * `exponentials` has the exponentials of a row, their sum, and logarithms of them that keep their digits.
//! * `room` has the buffers of some rows, and computes log p\[t\] and log Σ exp(x) of them.
//! * `classes` calls the formula with these, and derives the coefficients of the gradient.
//! * `class_rows` and `class_pixels` compute the exponentials, and write the gradient, of rows and of pixels.
//! * `shares` is the cross entropy of shares.

mod call;
mod class_pixels;
mod class_rows;
mod classes;
pub(super) mod exponentials;
mod room;
mod shares;

pub(in crate::kernels) use classes::OfClasses;
pub(in crate::kernels) use shares::OfShares;
