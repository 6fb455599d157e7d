//! Random tensors that are the same in every run.
//!
//! libtorch has one generator for all threads, so that what a test draws from it depends on the tests beside it.
#![allow(dead_code, reason = "few tests draw all of them")]

use std::cell::RefCell;

use fastrand::Rng;
use tch::{Kind, Tensor};

thread_local! {
    /// A test has a thread, and so a generator, of its own.
    static GENERATOR: RefCell<Rng> = const { RefCell::new(Rng::with_seed(0)) };
}

fn draw(shape: impl AsRef<[i64]>, number: impl Fn(&mut Rng) -> f64) -> Tensor {
    let shape = shape.as_ref();
    let count = shape.iter().product::<i64>();
    let numbers: Vec<f64> = GENERATOR.with_borrow_mut(|generator| (0..count).map(|_| number(generator)).collect());
    Tensor::from_slice(&numbers).view(shape)
}

/// Uniform numbers of [0, 1) in double precision.
pub fn rand(shape: impl AsRef<[i64]>) -> Tensor {
    draw(shape, Rng::f64)
}

/// Standard normal numbers in double precision.
pub fn randn(shape: impl AsRef<[i64]>) -> Tensor {
    // By Box and Muller; 1 - u is never 0.
    draw(shape, |rng| (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos())
}

/// Integers of [0, `high`).
pub fn randint(high: i64, shape: impl AsRef<[i64]>) -> Tensor {
    draw(shape, |rng| rng.i64(0..high) as f64).to_kind(Kind::Int64)
}

/// The integers of [0, `count`) in a random order.
pub fn randperm(count: i64) -> Tensor {
    rand([count]).argsort(0, false)
}
