//! What the engines of losses over rows of classes share: layouts, reductions, kinds, the graph.

use std::ops::{Range, RangeInclusive};
use std::sync::atomic::{AtomicBool, Ordering};

use half::{bf16, f16};
use tch::{Kind, Tensor};

use super::element::{
    Numbers, Output, Stored, elements, f_keeps_digits, f_numbers, f_one_layout, f_own, f_plain, f_scalar_of, integers,
    is_dense, is_plain, is_stored,
};
use super::engine::{Composite, composite_of, widely};
use super::simd::Wide;
use super::{backend, parallel};
use crate::autograd::{self, Context, Function, StoredGradients};
use crate::{LossError, Reduction, check};

/// What the losses of rows are reduced to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum RowReduction {
    None,
    Sum,
    /// Divided by the sum of the weights of the targets that are not ignored.
    WeightedMean,
    /// Divided by the number of those targets.
    CountedMean,
    /// Divided by the number of all targets.
    Mean,
}

impl RowReduction {
    /// That of losses whose mean is over all targets.
    pub(crate) fn over_all(reduction: Reduction) -> Self {
        match reduction {
            Reduction::Mean => Self::Mean,
            reduction => reduction.into(),
        }
    }
}

impl From<Reduction> for RowReduction {
    fn from(reduction: Reduction) -> Self {
        match reduction {
            Reduction::None => RowReduction::None,
            Reduction::Mean => RowReduction::WeightedMean,
            Reduction::Sum => RowReduction::Sum,
        }
    }
}

/// The arguments of a call.
pub(crate) struct Rows<'a> {
    /// With a graph.
    pub(crate) input: &'a Tensor,
    /// Where the classes are.
    pub(crate) class_dim: usize,
    /// A class in range for each row, or the ignored index, 64-bit; or a number for each element of the input, or for each row
    /// of classes that are the last dimension, of the input's kind and without a gradient.
    pub(crate) target: &'a Tensor,
    pub(crate) ignore_index: Option<i64>,
    /// A factor for each class, of any floating kind, without a gradient.
    pub(crate) weight: Option<&'a Tensor>,
}

/// Losses of rows of classes.
pub(super) trait RowFormula: Send + Sync + 'static {
    /// Runs over all rows of the job, stores what it has outputs for, returns the sum of the losses.
    fn run<W: Wide>(&self, job: &Job<W>) -> f64;
}

/// The same without its type.
trait AnyFormula: OfWidth<f32> + OfWidth<f64> + Send {}
impl<F: RowFormula> AnyFormula for F {}

/// Such a formula of numbers of one type.
trait OfWidth<W: Wide>: Sync {
    fn run(&self, job: &Job<W>) -> f64;
}
impl<W: Wide, F: RowFormula> OfWidth<W> for F {
    fn run(&self, job: &Job<W>) -> f64 {
        RowFormula::run(self, job)
    }
}

/// The reduced loss of `rows`; `None` where the engine does not take the call. Second derivatives are those of the
/// `composite` of input and target.
pub(super) fn f_rows<F, C>(
    formula: F,
    rows: &Rows,
    reduction: RowReduction,
    composite: C,
) -> Result<Option<Tensor>, LossError>
where
    F: RowFormula,
    C: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    let composite = move || widely(composite_of(move |[input, target]: [&Tensor; 2]| composite(input, target)));
    if !takes(rows)? {
        return Ok(None);
    }
    f_engine(Box::new(formula), rows, reduction, composite()).map(Some)
}

fn takes(rows: &Rows) -> Result<bool, LossError> {
    let kind = rows.input.f_kind()?;
    let target = rows.target.f_kind()?;
    Ok(backend::fused()
        && matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16)
        && rows.input.numel() != 0
        && rows.input.size()[rows.class_dim] < CLASSES
        && is_plain(rows.input, kind)
        && (target == Kind::Int64 || target == kind)
        && is_plain(rows.target, target)
        && !rows.target.requires_grad()
        && rows.weight.is_none_or(|weight| !weight.requires_grad()))
}

/// More classes are not exact numbers in `f32`.
const CLASSES: i64 = 1 << 24;

fn f_engine(
    formula: Box<dyn AnyFormula>,
    rows: &Rows,
    reduction: RowReduction,
    composite: Composite,
) -> Result<Tensor, LossError> {
    match rows.input.f_kind()? {
        Kind::Double => f_run::<f64>(formula, |formula| formula, rows, reduction, composite),
        _ => f_run::<f32>(formula, |formula| formula, rows, reduction, composite),
    }
}

fn f_run<W: Wide>(
    formula: Box<dyn AnyFormula>,
    of_width: fn(&dyn AnyFormula) -> &dyn OfWidth<W>,
    rows: &Rows,
    reduction: RowReduction,
    composite: Composite,
) -> Result<Tensor, LossError> {
    let kind = rows.input.f_kind()?;
    let options = Options::<W>::f_new(rows)?;
    let pass = Pass::f_new(rows.input, rows.class_dim, rows.target)?;
    let needed = autograd::grad_enabled() && rows.input.requires_grad();
    let unreduced = reduction == RowReduction::None;
    let at_once = !unreduced && is_stored(kind);
    let scale = pass.scale(&options, reduction);
    let (loss, gradient) = if unreduced {
        let mut size = rows.input.size();
        size.remove(rows.class_dim);
        let losses = Output::f_of_kind(&size, kind)?;
        of_width(&*formula).run(&pass.job(&options, Factors::Number(1.0), Some(&losses), None));
        (losses.into_tensor(), None)
    } else {
        let gradient = (needed && at_once).then(|| Output::f_like(&pass.input)).transpose()?;
        let sum = of_width(&*formula).run(&pass.job(&options, Factors::Number(scale), None, gradient.as_ref()));
        (f_scalar_of(kind, sum * scale)?, gradient.map(Output::into_tensor))
    };
    if !needed {
        return Ok(loss);
    }
    let class_dim = rows.class_dim;
    let stored = at_once.then(|| StoredGradients::f_of_own_kind([gradient])).transpose()?;
    let backward = move |context: Context| -> autograd::Gradients {
        let Some(grad) = context.grad(0) else { return Ok(vec![None]) };
        let [input, target] = context.saved() else { return Ok(vec![None]) };
        let fused = || {
            let grad = f_plain(&grad)?.f_contiguous()?;
            if let Some(stored) = &stored
                && f_keeps_digits(kind, &grad)?
            {
                return stored.f_scaled(&context, &grad);
            }
            let pass = Pass::f_new(input, class_dim, target)?;
            f_unchanged(&pass.target, pass.classes, options.ignored)?;
            let gradient = Output::f_like(&pass.input)?;
            let factors = match unreduced {
                true => Factors::Rows(Numbers::of(&grad)),
                false => Factors::Number(grad.f_double_value(&[])? * scale),
            };
            of_width(&*formula).run(&pass.job(&options, factors, None, Some(&gradient)));
            Ok(vec![Some(gradient.into_tensor())])
        };
        context.f_gradients(&fused, &|| {
            let target = f_own(target)?;
            f_unchanged(&target, input.size()[class_dim] as usize, options.ignored)?;
            let loss = |inputs: &[Tensor]| composite(&[&inputs[0], &target]);
            autograd::f_gradients_of(&loss, &grad, std::slice::from_ref(input), &[true])
        })
    };
    Ok(Function::new(&[rows.input]).save(&[rows.input, rows.target]).f_attach_own(vec![loss], backward)?.remove(0))
}

/// Class indices that were checked in the forward pass may have been written to since, through a name that libtorch does not
/// watch, such as `data()`.
fn f_unchanged(target: &Tensor, classes: usize, ignored: i64) -> Result<(), LossError> {
    if target.f_kind()? == Kind::Int64
        && !matches!(scan_classes(target, classes as i64, Some(ignored)), Some((true, _)))
    {
        let expected = format!("classes in [0, {classes}), as in the forward pass");
        return Err(LossError::Value { argument: "target", expected, actual: "others".into() });
    }
    Ok(())
}

/// The options of a call, in the kind that it is computed in.
pub(super) struct Options<W> {
    /// What no class is where nothing is ignored.
    ignored: i64,
    pub(super) weight: Option<Vec<W>>,
}

impl<W: Wide> Options<W> {
    fn f_new(rows: &Rows) -> Result<Self, LossError> {
        Ok(Self { ignored: rows.ignore_index.unwrap_or(-1), weight: rows.weight.map(f_wide_numbers).transpose()? })
    }

    /// The sum of the weights of all classes where a target is smoothed; else 0, so that it is looked at nowhere.
    pub(super) fn total_of_spread(&self, smoothing: f64, classes: usize) -> f64 {
        total_of_spread(self.weight.as_deref(), smoothing, classes)
    }

    pub(super) fn weight_of(&self, class: usize) -> f64 {
        self.weight.as_ref().map_or(1.0, |weight| weight[class].to_f64())
    }
}

/// See [`Options::total_of_spread`].
pub(super) fn total_of_spread<W: Wide>(weight: Option<&[W]>, smoothing: f64, classes: usize) -> f64 {
    match weight {
        _ if smoothing == 0.0 => 0.0,
        None => classes as f64,
        Some(weight) => weight.iter().map(|&weight| weight.to_f64()).sum(),
    }
}

/// The elements of a tensor, in the kind that a call is computed in.
pub(super) fn f_wide_numbers<W: Wide>(tensor: &Tensor) -> Result<Vec<W>, LossError> {
    let numbers = f_numbers(tensor)?;
    let mut wide = check::f_room(numbers.len())?;
    wide.extend(numbers.into_iter().map(W::from_f64));
    Ok(wide)
}

/// Whether all `indices`, 64-bit, are classes or the ignored one, and whether any is the latter; `None` where their memory cannot
/// be looked at.
pub(crate) fn scan_classes(indices: &Tensor, classes: i64, ignored: Option<i64>) -> Option<(bool, bool)> {
    if !is_plain(indices, Kind::Int64) || !indices.is_contiguous() {
        return None;
    }
    let indices = integers(indices);
    let any_ignored = AtomicBool::new(false);
    let invalid = parallel::sum(indices.len(), 1, |range| {
        let (mut ignores, mut invalid) = (false, false);
        for &class in &indices[range] {
            let ignore = Some(class) == ignored;
            ignores |= ignore;
            invalid |= !ignore & ((class as u64) >= classes as u64);
        }
        any_ignored.fetch_or(ignores, Ordering::Relaxed);
        f64::from(u8::from(invalid))
    });
    Some((invalid == 0.0, any_ignored.into_inner()))
}

/// Whether all numbers of a floating tensor are in the range, NaN is not; `None` where their memory cannot be looked at.
pub(crate) fn scan_range(tensor: &Tensor, range: RangeInclusive<f64>) -> Option<bool> {
    fn all<T: Stored + Into<f64>>(tensor: &Tensor, range: RangeInclusive<f64>) -> bool {
        all_in(elements::<T>(tensor), |number| range.contains(&(*number).into()))
    }
    let kind = tensor.f_kind().ok()?;
    if !is_plain(tensor, kind) || !tensor.is_contiguous() {
        return None;
    }
    Some(match kind {
        Kind::Float => all::<f32>(tensor, range),
        Kind::Double => all::<f64>(tensor, range),
        Kind::Half => all::<f16>(tensor, range),
        Kind::BFloat16 => all::<bf16>(tensor, range),
        Kind::Int64 => all_in(integers(tensor), |number| range.contains(&(*number as f64))),
        _ => return None,
    })
}

fn all_in<E: Sync>(elements: &[E], inside: impl Fn(&E) -> bool + Sync) -> bool {
    let outside = |part: Range<usize>| elements[part].iter().filter(|element| !inside(element)).count();
    parallel::sum(elements.len(), 1, |part| outside(part) as f64) == 0.0
}

/// Numbers `[outer, classes, inner]` in memory, and their target.
struct Pass {
    input: Tensor,
    target: Tensor,
    classes: usize,
    inner: usize,
}

impl Pass {
    fn f_new(input: &Tensor, class_dim: usize, target: &Tensor) -> Result<Self, LossError> {
        let size = input.size();
        let classes = size[class_dim] as usize;
        let inner: i64 = size[class_dim + 1..].iter().product();
        let last = || input.f_movedim_int(class_dim as i64, -1);
        let (input, inner) = if !input.is_contiguous() && is_dense(input) && last()?.is_contiguous() {
            // Channels last.
            (input.f_detach()?, 1)
        } else {
            (input.f_detach()?.f_contiguous()?, inner as usize)
        };
        let target = match target.f_kind()? {
            Kind::Int64 => target.f_contiguous()?,
            _ if target.size() != size => target.f_detach()?.f_contiguous()?,
            _ => f_one_layout(&[&input, target])?.remove(1),
        };
        Ok(Self { input, target, classes, inner })
    }

    /// What the sum of the losses is multiplied by.
    fn scale<W: Wide>(&self, options: &Options<W>, reduction: RowReduction) -> f64 {
        let divisor = match reduction {
            RowReduction::None | RowReduction::Sum => 1.0,
            RowReduction::Mean => (self.input.numel() / self.classes) as f64,
            RowReduction::WeightedMean | RowReduction::CountedMean => {
                let target = integers(&self.target);
                let weighted = reduction == RowReduction::WeightedMean && options.weight.is_some();
                parallel::sum(target.len(), 1, |range| {
                    let counted = target[range].iter().filter(|class| **class != options.ignored);
                    match weighted {
                        true => counted.map(|class| options.weight_of(*class as usize)).sum(),
                        false => counted.count() as f64,
                    }
                })
            }
        };
        if divisor == 0.0 && reduction == RowReduction::WeightedMean && self.all_weightless(options) {
            // 0 / 0, to which a smoothed target adds what it spreads over the other classes.
            return f64::NAN;
        }
        1.0 / divisor
    }

    /// Whether the class of each target that is not ignored has weight 0.
    fn all_weightless<W: Wide>(&self, options: &Options<W>) -> bool {
        let counted = integers(&self.target).iter().filter(|class| **class != options.ignored);
        counted.copied().all(|class| options.weight_of(class as usize) == 0.0)
    }

    fn job<'a, W: Wide>(
        &'a self,
        options: &'a Options<W>,
        factors: Factors<'a, W>,
        losses: Option<&'a Output<W>>,
        gradient: Option<&'a Output<W>>,
    ) -> Job<'a, W> {
        let (classes, numbers) = match self.target.f_kind() {
            Ok(Kind::Int64) => (integers(&self.target), Numbers::NONE),
            _ => (&[][..], Numbers::of(&self.target)),
        };
        Job {
            options,
            input: Numbers::of(&self.input),
            target: classes,
            numbers,
            classes: self.classes,
            inner: self.inner,
            factors,
            losses,
            gradient,
        }
    }
}

/// What the gradients of the rows are multiplied by.
#[derive(Clone, Copy)]
enum Factors<'a, W> {
    Number(f64),
    Rows(Numbers<'a, W>),
}

/// What all threads work on.
pub(super) struct Job<'a, W> {
    pub(super) options: &'a Options<W>,
    pub(super) input: Numbers<'a, W>,
    /// The class of each row, where there is one.
    pub(super) target: &'a [i64],
    /// The numbers of the target, where there is no class.
    pub(super) numbers: Numbers<'a, W>,
    pub(super) classes: usize,
    /// How many rows lie beside each other: the distance of the classes of a row.
    inner: usize,
    factors: Factors<'a, W>,
    losses: Option<&'a Output<W>>,
    gradient: Option<&'a Output<W>>,
}

/// Pixels of one sample beside each other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pixels {
    /// The position of the first one's number of class 0.
    start: usize,
    /// From one class to the next.
    inner: usize,
    /// The row of the first one.
    pub(super) row: usize,
    /// How many there are.
    pub(super) length: usize,
}

impl Pixels {
    /// Where the numbers of a class are.
    pub(super) fn of(self, class: usize) -> Range<usize> {
        let start = self.start + class * self.inner;
        start..start + self.length
    }
}

impl<W: Wide> Job<'_, W> {
    /// The sum of what `rows` returns for ranges of rows with their classes side by side, or where these are apart, `pixels`
    /// for blocks of at most `block` pixels.
    pub(super) fn sum(
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
    pub(super) fn sum_rows(&self, work: impl Fn(Range<usize>) -> f64 + Sync) -> f64 {
        self.sum(1, work, |_| 0.0)
    }

    /// Has the memory fetched that is needed soon after the exponentials of these classes of a row: where their gradient goes, and
    /// the same classes of the next row.
    #[inline(always)]
    pub(super) fn fetch_row(&self, row: usize, classes: Range<usize>) {
        let range = row * self.classes + classes.start..row * self.classes + classes.end;
        self.fetch(range, self.classes);
    }

    /// Has the memory fetched that is needed soon after the exponentials of this class of pixels: where their gradient goes, and
    /// the same class of the next pixels.
    #[inline(always)]
    pub(super) fn fetch_pixels(&self, pixels: Pixels, class: usize) {
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
    pub(super) fn class(&self, row: usize) -> Option<usize> {
        let class = self.target[row];
        (class != self.options.ignored).then_some(class as usize)
    }

    /// The sum of the losses of `rows`, which are stored, too: what `loss` returns for a row and its class, and 0 with gradient 0
    /// where a row is ignored.
    pub(super) fn sum_classes(&self, rows: Range<usize>, mut loss: impl FnMut(usize, usize) -> W) -> f64 {
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
    pub(super) fn class_numbers(&self, pixels: Pixels, numbers: &mut [W]) {
        let ignored = self.options.ignored;
        for (number, &class) in numbers[..pixels.length].iter_mut().zip(&self.target[pixels.row..]) {
            let class = if class == ignored { -1 } else { class as i32 };
            *number = W::from_f64(f64::from(class));
        }
    }

    pub(super) fn factor(&self, row: usize) -> W {
        match self.factors {
            Factors::Number(number) => W::from_f64(number),
            Factors::Rows(factors) => W::from_f64(factors.get(row)),
        }
    }

    /// Writes the factors of pixels into `room`.
    pub(super) fn read_factors(&self, pixels: Pixels, room: &mut [W]) {
        let room = &mut room[..pixels.length];
        match self.factors {
            Factors::Number(number) => room.fill(W::from_f64(number)),
            Factors::Rows(factors) => factors.copy(pixels.row..pixels.row + pixels.length, room),
        }
    }

    pub(super) fn needs_gradient(&self) -> bool {
        self.gradient.is_some()
    }

    /// Stores the losses of rows from `row` on.
    pub(super) fn store_losses(&self, row: usize, losses: &[W]) {
        let Some(output) = self.losses else { return };
        // SAFETY: tasks have rows of their own, and write them one after another.
        unsafe { output.write_cached(row..row + losses.len(), losses) };
    }

    /// Stores what `map` makes of numbers as the gradient from `position` on, but `other` at a place among them. The numbers may
    /// be lost.
    #[inline(always)]
    pub(super) fn store_gradient(
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
    pub(super) fn store_zeros(&self, position: usize, length: usize) {
        let Some(output) = self.gradient else { return };
        // SAFETY: tasks have rows of their own, and write them one after another.
        unsafe { output.write_zeros(position..position + length) };
    }
}
