//! What chance decides in one call: the seed of the call decides it all.

use fastrand::Rng;

/// Numbers that no option and no tensor expects.
const ABSURD: [f64; 16] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    f64::NAN,
    f64::INFINITY,
    f64::NEG_INFINITY,
    1e39,
    -1e39,
    1e-50,
    1e-300,
    f64::MAX,
    f64::MIN,
    f64::EPSILON,
    1e5,
    0.5,
];

/// Integers that no option expects.
const ABSURD_INTEGERS: [i64; 12] = [0, -1, 1, 2, 3, 7, -100, 255, 1 << 31, i64::MAX, i64::MIN, i32::MAX as i64 + 17];

/// The chance of one call.
#[derive(Debug)]
pub struct Random(Rng);

impl Random {
    /// The chance of the call of this seed.
    pub fn new(seed: u64) -> Random {
        Random(Rng::with_seed(seed))
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.0.f64() < probability
    }

    /// An integer of `0..end`, 0 where there is none.
    pub fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { self.0.usize(0..end) }
    }

    /// An integer of both ends and between.
    pub fn between(&mut self, least: i64, most: i64) -> i64 {
        self.0.i64(least..=most.max(least))
    }

    /// One of the items, which are not none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// A number of `[least, most)`.
    pub fn uniform(&mut self, least: f64, most: f64) -> f64 {
        least + (most - least) * self.0.f64()
    }

    /// A number of the standard normal distribution, nearly.
    pub fn normal(&mut self) -> f64 {
        (0..6).map(|_| self.0.f64()).sum::<f64>() * 2_f64.sqrt() - 18_f64.sqrt()
    }

    /// A number that no option expects.
    pub fn absurd(&mut self) -> f64 {
        *self.pick(&ABSURD)
    }

    /// An integer that no option expects.
    pub fn absurd_integer(&mut self) -> i64 {
        *self.pick(&ABSURD_INTEGERS)
    }

    /// The items in another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        self.0.shuffle(items);
    }

    /// A seed for something of its own.
    pub fn seed(&mut self) -> u64 {
        self.0.u64(..)
    }
}
