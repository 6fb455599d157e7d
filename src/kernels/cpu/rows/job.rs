//! A call of an engine over rows, as its tasks see it: where the numbers of rows and pixels are, and where their losses
//! and gradients go.

use std::ops::Range;

use super::options::Options;
use crate::kernels::cpu::elements::Numbers;
use crate::kernels::cpu::kinds::Wide;
use crate::kernels::cpu::output::Output;
use crate::kernels::cpu::parallel;

/// What the gradients of the rows are multiplied by: one number, or a number for each row.
#[derive(Clone, Copy)]
pub(in crate::kernels::cpu) enum Factors<'a, W> {
    Number(f64),
    Rows(Numbers<'a, W>),
}

/// A call, which all threads share.
pub(in crate::kernels::cpu) struct Job<'a, W> {
    pub(in crate::kernels::cpu) options: &'a Options<W>,
    pub(in crate::kernels::cpu) input: Numbers<'a, W>,
    /// The class of each row, where targets are classes; else empty.
    pub(in crate::kernels::cpu) target: &'a [i64],
    /// The numbers of the target, where targets are not classes; else empty.
    pub(in crate::kernels::cpu) numbers: Numbers<'a, W>,
    pub(in crate::kernels::cpu) classes: usize,
    /// How many rows lie beside each other in memory, which is the distance from one class of a row to the next.
    pub(in crate::kernels::cpu) inner: usize,
    pub(in crate::kernels::cpu) factors: Factors<'a, W>,
    pub(in crate::kernels::cpu) losses: Option<&'a Output<W>>,
    pub(in crate::kernels::cpu) gradient: Option<&'a Output<W>>,
}

/// Neighbouring pixels of one sample: rows whose numbers of one class lie side by side.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels::cpu) struct Pixels {
    /// The position in the input of the first pixel's number of class 0.
    pub(in crate::kernels::cpu) start: usize,
    /// The distance from one class to the next.
    pub(in crate::kernels::cpu) inner: usize,
    /// The row of the first pixel.
    pub(in crate::kernels::cpu) row: usize,
    /// How many pixels these are.
    pub(in crate::kernels::cpu) length: usize,
}

impl Pixels {
    /// The positions of the numbers of a class.
    pub(in crate::kernels::cpu) fn of(self, class: usize) -> Range<usize> {
        let start = self.start + class * self.inner;
        start..start + self.length
    }
}

impl<W: Wide> Job<'_, W> {
    /// The sum of what `rows` returns for the ranges of rows that tasks have, where the classes of a row lie side by
    /// side. Where they lie apart, the sum of what `pixels` returns for the tasks' blocks of at most `block` pixels.
    pub(in crate::kernels::cpu) fn sum(
        &self,
        block: usize,
        rows: impl Fn(Range<usize>) -> f64 + Sync,
        pixels: impl Fn(&mut dyn Iterator<Item = Pixels>) -> f64 + Sync,
    ) -> f64 {
        let (classes, inner) = (self.classes, self.inner);
        if inner == 1 {
            return parallel::rows(self.input.len() / classes, classes, rows);
        }
        let block = block.min(inner);
        let blocks = inner.div_ceil(block);
        let unit = block * classes;
        let at = |index: usize| {
            let (sample, first) = (index / blocks, index % blocks * block);
            let (start, row) = (sample * classes * inner + first, sample * inner + first);
            Pixels { start, inner, row, length: block.min(inner - first) }
        };
        let count = self.input.len() / (classes * inner) * blocks;
        parallel::rows(count, unit, |blocks| pixels(&mut blocks.map(&at)))
    }

    /// [`sum`](Self::sum) for engines that require the classes to be the last dimension.
    pub(in crate::kernels::cpu) fn sum_rows(&self, work: impl Fn(Range<usize>) -> f64 + Sync) -> f64 {
        self.sum(1, work, |_| 0.0)
    }

    /// Asks the processor to load memory into its cache that is needed soon after these classes of a row: the place of
    /// their gradient, and the same classes of the next row.
    #[inline(always)]
    pub(in crate::kernels::cpu) fn fetch_row(&self, row: usize, classes: Range<usize>) {
        let range = row * self.classes + classes.start..row * self.classes + classes.end;
        self.fetch(range, self.classes);
    }

    /// Asks the processor to load memory into its cache that is needed soon after this class of pixels: the place of
    /// their gradient, and the same class of the next pixels.
    #[inline(always)]
    pub(in crate::kernels::cpu) fn fetch_pixels(&self, pixels: Pixels, class: usize) {
        self.fetch(pixels.of(class), pixels.length);
    }

    #[inline(always)]
    fn fetch(&self, range: Range<usize>, to_next: usize) {
        if let Some(gradient) = self.gradient {
            gradient.fetch(range.clone());
        }
        let next = range.start + to_next..(range.end + to_next).min(self.input.len());
        self.input.fetch(next.clone());
        if self.numbers.len() == self.input.len() {
            self.numbers.fetch(next);
        }
    }

    /// The class of a row; `None` where the row is ignored.
    pub(in crate::kernels::cpu) fn class(&self, row: usize) -> Option<usize> {
        let class = self.target[row];
        (class != self.options.ignored).then_some(class as usize)
    }

    /// Calls `loss` for each of `rows` and its class. Writes the losses that it returns, and returns their sum. A row
    /// that is ignored has loss 0 and gradient 0.
    pub(in crate::kernels::cpu) fn sum_classes(
        &self,
        rows: Range<usize>,
        mut loss: impl FnMut(usize, usize) -> W,
    ) -> f64 {
        let mut sum = 0.0;
        for row in rows {
            let loss = match self.class(row) {
                Some(class) => loss(row, class),
                None => {
                    self.store_zeros(row * self.classes, self.classes);
                    W::default()
                }
            };
            self.store_losses(row, &[loss]);
            sum += loss.to_f64();
        }
        sum
    }

    /// Writes the classes of pixels as floats, −1 where they are ignored, so that kernels compare them in vectors.
    #[inline(always)]
    pub(in crate::kernels::cpu) fn class_numbers(&self, pixels: Pixels, numbers: &mut [W]) {
        let ignored = self.options.ignored;
        for (number, &class) in numbers[..pixels.length].iter_mut().zip(&self.target[pixels.row..]) {
            let class = if class == ignored { -1 } else { class as i32 };
            *number = W::from_f64(f64::from(class));
        }
    }

    /// What the gradient of a row is multiplied by.
    pub(in crate::kernels::cpu) fn factor(&self, row: usize) -> W {
        match self.factors {
            Factors::Number(number) => W::from_f64(number),
            Factors::Rows(factors) => W::from_f64(factors.get(row)),
        }
    }

    /// Writes what the gradients of pixels are multiplied by into `room`.
    pub(in crate::kernels::cpu) fn read_factors(&self, pixels: Pixels, room: &mut [W]) {
        let room = &mut room[..pixels.length];
        match self.factors {
            Factors::Number(number) => room.fill(W::from_f64(number)),
            Factors::Rows(factors) => factors.copy(pixels.row..pixels.row + pixels.length, room),
        }
    }

    pub(in crate::kernels::cpu) fn needs_gradient(&self) -> bool {
        self.gradient.is_some()
    }

    /// Writes the losses of the rows from `row` on, where losses are wanted.
    pub(in crate::kernels::cpu) fn store_losses(&self, row: usize, losses: &[W]) {
        let Some(output) = self.losses else { return };
        // SAFETY: tasks have rows of their own, and write them one after another.
        unsafe { output.write_cached(row..row + losses.len(), losses) };
    }

    /// Writes `map(position, number)` of each number as the gradient from `position` on, where the gradient is wanted.
    /// `other` is a position among them and the number that is written there instead. The `numbers` may be overwritten.
    #[inline(always)]
    pub(in crate::kernels::cpu) fn store_gradient(
        &self,
        position: usize,
        numbers: &mut [W],
        map: impl Fn(usize, W) -> W,
        other: Option<(usize, W)>,
    ) {
        let Some(output) = self.gradient else { return };
        // SAFETY: tasks have rows of their own, and write them one after another.
        unsafe { output.write_mapped(position..position + numbers.len(), numbers, map, other) };
    }

    /// Stores one number of the gradient.
    #[inline(always)]
    pub(in crate::kernels::cpu) fn store_number(&self, position: usize, number: W) {
        let Some(output) = self.gradient else { return };
        // SAFETY: tasks have rows of their own, and write them one after another.
        unsafe { output.write_cached(position..position + 1, &[number]) };
    }

    /// Writes zeros as the gradient of `length` numbers from `position` on, where the gradient is wanted.
    pub(in crate::kernels::cpu) fn store_zeros(&self, position: usize, length: usize) {
        let Some(output) = self.gradient else { return };
        // SAFETY: tasks have rows of their own, and write them one after another.
        unsafe { output.write_zeros(position..position + length) };
    }
}
