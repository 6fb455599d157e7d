//! What the threads of a call work on: rows or pixels, and where their losses and gradients go.

use std::ops::Range;

use super::options::Options;
use crate::kernels::cpu::elements::Numbers;
use crate::kernels::cpu::kinds::Wide;
use crate::kernels::cpu::output::Output;
use crate::kernels::cpu::parallel;

/// What the gradients of the rows are multiplied by.
#[derive(Clone, Copy)]
pub(in crate::kernels::cpu) enum Factors<'a, W> {
    Number(f64),
    Rows(Numbers<'a, W>),
}

/// What all threads work on.
pub(in crate::kernels::cpu) struct Job<'a, W> {
    pub(in crate::kernels::cpu) options: &'a Options<W>,
    pub(in crate::kernels::cpu) input: Numbers<'a, W>,
    /// The class of each row, where there is one.
    pub(in crate::kernels::cpu) target: &'a [i64],
    /// The numbers of the target, where there is no class.
    pub(in crate::kernels::cpu) numbers: Numbers<'a, W>,
    pub(in crate::kernels::cpu) classes: usize,
    /// How many rows lie beside each other: the distance of the classes of a row.
    pub(in crate::kernels::cpu) inner: usize,
    pub(in crate::kernels::cpu) factors: Factors<'a, W>,
    pub(in crate::kernels::cpu) losses: Option<&'a Output<W>>,
    pub(in crate::kernels::cpu) gradient: Option<&'a Output<W>>,
}

/// Pixels of one sample beside each other.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels::cpu) struct Pixels {
    /// The position of the first one's number of class 0.
    pub(in crate::kernels::cpu) start: usize,
    /// From one class to the next.
    pub(in crate::kernels::cpu) inner: usize,
    /// The row of the first one.
    pub(in crate::kernels::cpu) row: usize,
    /// How many there are.
    pub(in crate::kernels::cpu) length: usize,
}

impl Pixels {
    /// Where the numbers of a class are.
    pub(in crate::kernels::cpu) fn of(self, class: usize) -> Range<usize> {
        let start = self.start + class * self.inner;
        start..start + self.length
    }
}

impl<W: Wide> Job<'_, W> {
    /// The sum of what `rows` returns for ranges of rows with their classes side by side, or where these are apart, `pixels`
    /// for blocks of at most `block` pixels.
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

    /// The sum of what `work` returns for ranges of rows, of classes that are the last dimension.
    pub(in crate::kernels::cpu) fn sum_rows(&self, work: impl Fn(Range<usize>) -> f64 + Sync) -> f64 {
        self.sum(1, work, |_| 0.0)
    }

    /// Has the memory fetched that is needed soon after the exponentials of these classes of a row: where their gradient goes, and
    /// the same classes of the next row.
    #[inline(always)]
    pub(in crate::kernels::cpu) fn fetch_row(&self, row: usize, classes: Range<usize>) {
        let range = row * self.classes + classes.start..row * self.classes + classes.end;
        self.fetch(range, self.classes);
    }

    /// Has the memory fetched that is needed soon after the exponentials of this class of pixels: where their gradient goes, and
    /// the same class of the next pixels.
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

    /// The class of a row that is not ignored.
    pub(in crate::kernels::cpu) fn class(&self, row: usize) -> Option<usize> {
        let class = self.target[row];
        (class != self.options.ignored).then_some(class as usize)
    }

    /// The sum of the losses of `rows`, which are stored, too: what `loss` returns for a row and its class, and 0 with gradient 0
    /// where a row is ignored.
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

    /// The classes of pixels as numbers; −1 where they are ignored.
    #[inline(always)]
    pub(in crate::kernels::cpu) fn class_numbers(&self, pixels: Pixels, numbers: &mut [W]) {
        let ignored = self.options.ignored;
        for (number, &class) in numbers[..pixels.length].iter_mut().zip(&self.target[pixels.row..]) {
            let class = if class == ignored { -1 } else { class as i32 };
            *number = W::from_f64(f64::from(class));
        }
    }

    pub(in crate::kernels::cpu) fn factor(&self, row: usize) -> W {
        match self.factors {
            Factors::Number(number) => W::from_f64(number),
            Factors::Rows(factors) => W::from_f64(factors.get(row)),
        }
    }

    /// Writes the factors of pixels into `room`.
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

    /// Stores the losses of rows from `row` on.
    pub(in crate::kernels::cpu) fn store_losses(&self, row: usize, losses: &[W]) {
        let Some(output) = self.losses else { return };
        // SAFETY: tasks have rows of their own, and write them one after another.
        unsafe { output.write_cached(row..row + losses.len(), losses) };
    }

    /// Stores what `map` makes of numbers as the gradient from `position` on, but `other` at a place among them. The numbers may
    /// be lost.
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

    /// Stores zeros as the gradient of `length` numbers from `position` on.
    pub(in crate::kernels::cpu) fn store_zeros(&self, position: usize, length: usize) {
        let Some(output) = self.gradient else { return };
        // SAFETY: tasks have rows of their own, and write them one after another.
        unsafe { output.write_zeros(position..position + length) };
    }
}
