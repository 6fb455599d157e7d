//! Equality with one process.

use tch::{Device, Kind, Tensor};
use tch_losses::distributed::{GlobalBatch, Group, Reduce, VocabParallelCrossEntropy};
use tch_losses::{
    BarlowTwinsLoss, BatchTripletMarginLoss, CircleLoss, ClipLoss, ContrastiveLoss, CrossEntropyLoss, EmbeddingLoss,
    EmbeddingPairs, EmbeddingReduction, GeneralizedBoxIouLoss, Loss, LossError, MeanParts, MseLoss,
    MultiSimilarityLoss, NtXentLoss, Reduction, SigLipLoss, SigmoidFocalLoss, SupConLoss, VicRegLoss, WhenEmpty,
};

use super::job::group;

/// A name, and what its ranks do.
pub type Case = (&'static str, fn(&Group));

/// Runs the case of this name, if there is one.
pub fn run(case: &str) -> bool {
    let cases: [Case; 11] = [
        ("collectives", collectives),
        ("gradients", gradients),
        ("means", means),
        ("nothing", nothing),
        ("pairs", pairs),
        ("own-anchors", own_anchors),
        ("clip", clip),
        ("siglip", siglip),
        ("redundancy", redundancy),
        ("vocabulary", vocabulary),
        ("single", single),
    ];
    run_one_of(&cases, case)
}

/// Runs the case of this name, if it is one of them.
pub fn run_one_of(cases: &[Case], case: &str) -> bool {
    let Some((_, run)) = cases.iter().find(|(name, _)| *name == case) else { return false };
    tch::manual_seed(1);
    run(&group(60));
    true
}

pub fn randn(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Double, Device::Cpu))
}

#[track_caller]
pub fn close(actual: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(actual.size(), expected.size(), "{what}");
    let difference = (actual - expected).abs().max().double_value(&[]);
    let size = expected.abs().max().double_value(&[]).max(1.0);
    assert!(difference <= 1e-12 * size, "{what}: {difference:e} beside {size:e}\n{actual:?} {expected:?}");
}

/// The rows of a rank: rank r has r + 2 of them.
fn rows_of(rank: usize) -> i64 {
    rank as i64 + 2
}

fn first_row(rank: usize) -> i64 {
    (0..rank).map(rows_of).sum()
}

pub fn all_rows(group: &Group) -> i64 {
    first_row(group.world_size())
}

/// The part of this rank.
pub fn own(group: &Group, whole: &Tensor) -> Tensor {
    whole.narrow(0, first_row(group.rank()), rows_of(group.rank()))
}

/// What data parallelism does with a gradient, and how the losses of ranks make up one.
pub fn average(group: &Group, tensor: &Tensor) -> Tensor {
    group.f_all_reduce(tensor, Reduce::Sum).unwrap() / group.world_size() as f64
}

/// The loss and gradients of one process, and those of the ranks, each of which has its rows of the `inputs`. The loss
/// gets what parameters make of these, and `scalars`, which are parameters themselves.
#[track_caller]
pub fn compare(
    group: &Group,
    what: &str,
    inputs: &[&Tensor],
    scalars: &[f64],
    whole: &dyn Fn(&[Tensor], &[Tensor]) -> Tensor,
    over_ranks: &dyn Fn(&[Tensor], &[Tensor]) -> Tensor,
) {
    let start: Vec<Tensor> = inputs.iter().map(|input| randn(&[input.size()[1], 4])).collect();
    let compute = |of_rank: bool| {
        let leaves: Vec<Tensor> = start.iter().map(|weight| weight.copy().set_requires_grad(true)).collect();
        let numbers: Vec<Tensor> = scalars.iter().map(|number| Tensor::from(*number).set_requires_grad(true)).collect();
        let embed = |(input, weight): (&&Tensor, &Tensor)| {
            if of_rank { own(group, input).matmul(weight) } else { input.matmul(weight) }
        };
        let embeddings: Vec<Tensor> = inputs.iter().zip(&leaves).map(embed).collect();
        let loss = if of_rank { over_ranks(&embeddings, &numbers) } else { whole(&embeddings, &numbers) };
        loss.f_backward().unwrap();
        let gradients: Vec<Tensor> = leaves.iter().chain(&numbers).map(Tensor::grad).collect();
        (loss.detach(), gradients)
    };
    let (expected, expected_gradients) = compute(false);
    let (loss, gradients) = compute(true);
    close(&average(group, &loss), &expected, &format!("{what}: loss"));
    for (gradient, expected) in gradients.iter().zip(&expected_gradients) {
        assert!(expected.abs().max().double_value(&[]) > 1e-9, "{what}: there is a gradient");
        close(&average(group, gradient), expected, &format!("{what}: gradient"));
    }
}

fn collectives(group: &Group) {
    let (rank, world) = (group.rank() as i64, group.world_size() as i64);
    let options = |kind| (kind, Device::Cpu);
    for kind in [
        Kind::Float,
        Kind::Double,
        Kind::Half,
        Kind::BFloat16,
        Kind::Int64,
        Kind::Int,
        Kind::Int16,
        Kind::Int8,
        Kind::Uint8,
    ] {
        let x = Tensor::full([3, 5], rank + 1, options(kind));
        for (reduce, expected) in [
            (Reduce::Sum, world * (world + 1) / 2),
            (Reduce::Product, (1..=world).product()),
            (Reduce::Min, 1),
            (Reduce::Max, world),
        ] {
            let reduced = group.f_all_reduce(&x, reduce).unwrap();
            assert_eq!(reduced, Tensor::full([3, 5], expected, options(kind)), "{reduce:?} of {kind:?}");
        }
        assert_eq!(x, Tensor::full([3, 5], rank + 1, options(kind)), "the caller's tensor is as it was");
        let parts: Vec<Tensor> = (0..world).map(|rank| Tensor::full([rank, 2], rank + 7, options(kind))).collect();
        let gathered = group.f_all_gather(&parts[rank as usize]).unwrap();
        assert_eq!(gathered, Tensor::cat(&parts, 0), "gather of {kind:?}");
        let root = world as usize - 1;
        assert_eq!(group.f_broadcast(&x, root).unwrap(), Tensor::full([3, 5], world, options(kind)), "of {kind:?}");
    }
    // Views, scalars, nothing, booleans, a leaf.
    let columns = Tensor::arange(6, options(Kind::Float)).view([2, 3]).transpose(0, 1);
    assert_eq!(group.f_all_reduce(&columns, Reduce::Sum).unwrap(), &columns * world);
    let scalar = group.f_all_reduce(&Tensor::from(1.5), Reduce::Sum).unwrap();
    assert_eq!((scalar.dim(), scalar.double_value(&[])), (0, 1.5 * world as f64));
    let nothing = Tensor::zeros([0, 4], options(Kind::Float));
    assert_eq!(group.f_all_reduce(&nothing, Reduce::Sum).unwrap().size(), [0, 4]);
    assert_eq!(group.f_all_gather(&nothing).unwrap().size(), [0, 4]);
    let flags = Tensor::from_slice(&[rank == 0, true]);
    let gathered = Vec::<bool>::try_from(group.f_all_gather(&flags).unwrap()).unwrap();
    assert_eq!(gathered[..4], [true, true, false, true]);
    assert!(group.f_all_reduce(&flags, Reduce::Max).is_err());
    let leaf = Tensor::from_slice(&[1.0]).set_requires_grad(true);
    assert!(!group.f_all_reduce(&leaf, Reduce::Sum).unwrap().requires_grad());
    assert!(leaf.requires_grad() && leaf.double_value(&[0]) == 1.0);
    assert!(group.f_all_gather(&Tensor::from(1.0)).is_err());
    group.f_barrier().unwrap();
    // A second group of the same address, beside the first.
    let second = super::job::group(60);
    assert_eq!(second.f_all_reduce(&Tensor::from(1.0), Reduce::Sum).unwrap().double_value(&[]), world as f64);
}

fn gradients(group: &Group) {
    let (rank, world) = (group.rank(), group.world_size() as f64);
    // Each rank has a loss of its own, (r + 1) Σ (Σᵣ x)²; the objective is their sum.
    let x = randn(&[group.world_size() as i64, 3]);
    let leaf = x.get(rank as i64).set_requires_grad(true);
    let sum = group.f_sum_data_parallel(&leaf).unwrap();
    close(&sum, &x.sum_dim_intlist(0, false, None), "sum");
    (sum.square().sum(None) * (rank as f64 + 1.0)).backward();
    let factor = world * (world + 1.0) / 2.0;
    close(&leaf.grad(), &(x.sum_dim_intlist(0, false, None) * 2.0 * factor), "gradient of a sum");
    // A replicated loss counts once.
    let leaf = x.get(rank as i64).set_requires_grad(true);
    group.f_sum_replicated(&leaf).unwrap().square().sum(None).backward();
    close(&leaf.grad(), &(x.sum_dim_intlist(0, false, None) * 2.0), "gradient of a replicated sum");
    // Each rank computes a part of a replicated loss from what all have.
    let leaf = x.copy().set_requires_grad(true);
    let part = group.f_copy_replicated(&leaf).unwrap().get(rank as i64).square().sum(None);
    group.f_sum_replicated(&part).unwrap().backward();
    close(&leaf.grad(), &(&x * 2.0), "gradient of what is computed in parts");

    // Rows of all ranks, with a loss of each rank that depends on all of them.
    let whole = randn(&[all_rows(group), 3]);
    let factors: Vec<Tensor> = (0..group.world_size()).map(|_| randn(&[all_rows(group), 3])).collect();
    let leaf = own(group, &whole).set_requires_grad(true);
    let gathered = group.f_gather_data_parallel(&leaf).unwrap();
    close(&gathered, &whole, "gather");
    (gathered.square() * &factors[rank]).sum(None).backward();
    let all_factors = Tensor::stack(&factors, 0).sum_dim_intlist(0, false, None);
    close(&leaf.grad(), &own(group, &(&whole * 2.0 * &all_factors)), "gradient of a gather");
    let leaf = own(group, &whole).set_requires_grad(true);
    group.f_gather_replicated(&leaf).unwrap().square().sum(None).backward();
    close(&leaf.grad(), &own(group, &(&whole * 2.0)), "gradient of a replicated gather");

    // Second derivatives: Σ x⁴ of all rows, on every rank.
    let leaf = own(group, &whole).set_requires_grad(true);
    let fourth = group.f_gather_data_parallel(&leaf).unwrap().square().square().sum(None);
    let first = Tensor::run_backward(&[fourth], &[&leaf], true, true).remove(0);
    close(&first, &own(group, &(whole.pow_tensor_scalar(3) * 4.0 * world)), "first derivative");
    first.sum(None).backward();
    close(&leaf.grad(), &own(group, &(whole.square() * 12.0 * world)), "second derivative");
    let leaf = own(group, &whole).set_requires_grad(true);
    let once = group.f_gather_replicated(&leaf).unwrap().square().sum(None);
    let first = Tensor::run_backward(&[once], &[&leaf], true, true).remove(0);
    let error = first.sum(None).f_backward().unwrap_err().to_string();
    assert!(error.contains("once_differentiable"), "{error}");
    // Where gradients are off there is no graph.
    assert!(!tch::no_grad(|| group.f_gather_data_parallel(&leaf)).unwrap().requires_grad());
}

/// The parts of a mean of embeddings and targets.
type Parts<'a> = &'a dyn Fn(&Tensor, &Tensor) -> MeanParts;

fn means(group: &Group) {
    let rows = all_rows(group);
    let x = randn(&[rows, 6]);
    let classes = Tensor::randint(4, [rows], (Kind::Int64, Device::Cpu));
    // Rank 0 has nothing but ignored targets, and others have some.
    let ignored = Tensor::arange(rows, (Kind::Int64, Device::Cpu)).lt(2).logical_or(&classes.eq(3));
    let classes = classes.masked_fill(&ignored, -100);
    let weight = Tensor::from_slice(&[0.5, 1.0, 2.0, 0.25]);
    let entropy = CrossEntropyLoss::new().label_smoothing(0.1).weight(weight);
    let real = randn(&[rows, 4]);
    let masks = real.gt(0.0).to_kind(Kind::Double);
    let cases: [(&str, &Tensor, Parts); 4] = [
        ("cross entropy", &classes, &|x, y| CrossEntropyLoss::new().f_parts(x, y).unwrap()),
        ("weighted cross entropy", &classes, &|x, y| entropy.f_parts(x, y).unwrap()),
        ("MSE", &real, &|x, y| MseLoss::new().f_parts(x, y).unwrap()),
        ("focal", &masks, &|x, y| SigmoidFocalLoss::new().reduction(Reduction::Mean).f_parts(x, y).unwrap()),
    ];
    for (what, target, parts) in cases {
        let whole = |x: &[Tensor], _: &[Tensor]| parts(&x[0], target).f_value().unwrap();
        let over = |x: &[Tensor], _: &[Tensor]| {
            let parts = parts(&x[0], &own(group, target)).f_over_ranks(group).unwrap();
            let value = parts.f_value().unwrap();
            close(&average(group, &value.detach()), &value.detach(), "all ranks have the value");
            value
        };
        compare(group, what, &[&x], &[], &whole, &over);
    }
}

/// Means over nothing on any rank, and on some of them.
fn nothing(group: &Group) {
    let rows = all_rows(group);
    let (logits, ignored) = (randn(&[rows, 3]), Tensor::full([rows], -100, (Kind::Int64, Device::Cpu)));
    let part = |tensor: &Tensor| own(group, tensor);
    let entropy = |when_empty| -> Box<dyn Loss> { Box::new(CrossEntropyLoss::new().when_empty(when_empty)) };
    for (when_empty, is_zero) in [(WhenEmpty::Zero, true), (WhenEmpty::Nan, false)] {
        let leaf = part(&logits).copy().set_requires_grad(true);
        let loss = entropy(when_empty).f_mean_over_ranks(&leaf, &part(&ignored), group).unwrap();
        loss.backward();
        assert_eq!((loss.double_value(&[]) == 0.0, loss.double_value(&[]).is_nan()), (is_zero, !is_zero));
        assert_eq!(leaf.grad(), leaf.zeros_like());
    }
    let error = entropy(WhenEmpty::Error).f_mean_over_ranks(&part(&logits), &part(&ignored), group);
    assert!(matches!(error, Err(LossError::Empty)), "{error:?}");
    // One rank has something.
    let target = if group.rank() == 1 { part(&ignored).fill(1) } else { part(&ignored) };
    let loss = entropy(WhenEmpty::Error).f_mean_over_ranks(&part(&logits), &target, group).unwrap();
    let _ = ignored.narrow(0, first_row(1), rows_of(1)).fill_(1);
    close(&loss, &CrossEntropyLoss::new().forward(&logits, &ignored), "one rank counts");
    let boxes = Tensor::zeros([0, 4], (Kind::Double, Device::Cpu));
    let mean = GeneralizedBoxIouLoss::new().reduction(Reduction::Mean);
    let over = mean.f_mean_over_ranks(&boxes, &boxes, group).unwrap();
    assert_eq!([over.double_value(&[]), mean.forward(&boxes, &boxes).double_value(&[])], [0.0; 2]);
}

fn pairs(group: &Group) {
    let rows = all_rows(group);
    let x = randn(&[rows, 6]);
    let labels = Tensor::randint(3, [rows], (Kind::Int64, Device::Cpu));
    let losses: [(&str, Box<dyn EmbeddingLoss>); 6] = [
        ("NT-Xent", Box::new(NtXentLoss::new())),
        ("SupCon", Box::new(SupConLoss::new())),
        ("multi-similarity", Box::new(MultiSimilarityLoss::new())),
        ("circle", Box::new(CircleLoss::new())),
        ("triplets", Box::new(BatchTripletMarginLoss::new().margin(0.3))),
        ("contrastive", Box::new(ContrastiveLoss::new())),
    ];
    for (what, loss) in losses {
        let whole = |x: &[Tensor], _: &[Tensor]| loss.f_forward(&x[0], &labels).unwrap();
        let over = |x: &[Tensor], _: &[Tensor]| loss.f_forward_over_ranks(&x[0], &own(group, &labels), group).unwrap();
        compare(group, what, &[&x], &[], &whole, &over);
    }
}

/// The losses of the own embeddings alone, which ranks sum up.
fn own_anchors(group: &Group) {
    let rows = all_rows(group);
    let x = randn(&[rows, 6]);
    let labels = Tensor::randint(3, [rows], (Kind::Int64, Device::Cpu));
    let sum = EmbeddingReduction::Sum;
    let losses: [(&str, Box<dyn EmbeddingLoss>); 4] = [
        ("NT-Xent", Box::new(NtXentLoss::new().reduction(sum))),
        ("SupCon", Box::new(SupConLoss::new().reduction(sum))),
        ("multi-similarity", Box::new(MultiSimilarityLoss::new().reduction(sum))),
        ("triplets", Box::new(BatchTripletMarginLoss::new().margin(2.0).reduction(sum))),
    ];
    for (what, loss) in losses {
        let whole = |x: &[Tensor], _: &[Tensor]| loss.f_forward(&x[0], &labels).unwrap();
        let over = |x: &[Tensor], _: &[Tensor]| {
            let pairs = EmbeddingPairs::f_over_ranks(&own(group, &labels), group).unwrap();
            let all = group.f_gather_data_parallel(&x[0]).unwrap();
            loss.f_forward_pairs(&x[0], &pairs, Some(&all)).unwrap() * group.world_size() as f64
        };
        compare(group, what, &[&x], &[], &whole, &over);
    }
}

fn clip(group: &Group) {
    let rows = all_rows(group);
    let (images, texts) = (randn(&[rows, 6]), randn(&[rows, 5]));
    for loss in [ClipLoss::new(), ClipLoss::new().label_smoothing(0.1).normalize(false).reduction(Reduction::Sum)] {
        for local in [true, false] {
            let options = GlobalBatch::new().local_loss(local);
            let whole = |x: &[Tensor], s: &[Tensor]| loss.f_forward(&x[0], &x[1], &s[0]).unwrap();
            let over =
                |x: &[Tensor], s: &[Tensor]| loss.f_forward_over_ranks(&x[0], &x[1], &s[0], group, options).unwrap();
            compare(group, &format!("{loss:?} {options:?}"), &[&images, &texts], &[2.0], &whole, &over);
        }
    }
    // Without a gradient through the gather the loss is the same, and of a loss of all rows so is 1/W of the gradient.
    let options = GlobalBatch::new().local_loss(false).gather_with_grad(false);
    let gradient = |of_rank: bool| {
        let [x, y] = [&images, &texts].map(|x| x.narrow(1, 0, 4).copy().set_requires_grad(true));
        let loss = match of_rank {
            true => ClipLoss::new().f_forward_over_ranks(&own(group, &x), &own(group, &y), 3.0, group, options),
            false => ClipLoss::new().f_forward(&x, &y, 3.0),
        }
        .unwrap();
        loss.backward();
        (loss.detach(), own(group, &x.grad()))
    };
    let ((loss, gradient), (expected, expected_gradient)) = (gradient(true), gradient(false));
    close(&loss, &expected, "loss without a gradient through the gather");
    close(&gradient, &expected_gradient, "gradient of the own rows");
    // Losses of each image.
    let loss = ClipLoss::new().reduction(Reduction::None);
    let (x, y) = (images.narrow(1, 0, 4), texts.narrow(1, 0, 4));
    let losses = loss.f_forward_over_ranks(&own(group, &x), &own(group, &y), 3.0, group, GlobalBatch::new()).unwrap();
    close(&losses, &own(group, &loss.forward(&x, &y, 3.0)), "losses of the own images");
}

fn siglip(group: &Group) {
    let rows = all_rows(group);
    let (images, texts) = (randn(&[rows, 6]), randn(&[rows, 5]));
    for loss in [SigLipLoss::new(), SigLipLoss::new().normalize(false).reduction(Reduction::Sum)] {
        let whole = |x: &[Tensor], s: &[Tensor]| loss.f_forward(&x[0], &x[1], &s[0], &s[1]).unwrap();
        let over = |x: &[Tensor], s: &[Tensor]| loss.f_forward_over_ranks(&x[0], &x[1], &s[0], &s[1], group).unwrap();
        compare(group, &format!("{loss:?}"), &[&images, &texts], &[2.0, -3.0], &whole, &over);
    }
}

fn redundancy(group: &Group) {
    let rows = all_rows(group);
    let (a, b) = (randn(&[rows, 6]), randn(&[rows, 6]));
    let losses: [(&str, Box<dyn Loss>, OverRanks); 2] = [
        ("Barlow Twins", Box::new(BarlowTwinsLoss::new().lambda_param(0.1)), &|a, b, group| {
            BarlowTwinsLoss::new().lambda_param(0.1).f_forward_over_ranks(a, b, group).unwrap()
        }),
        ("VICReg", Box::new(VicRegLoss::new()), &|a, b, group| {
            VicRegLoss::new().f_forward_over_ranks(a, b, group).unwrap()
        }),
    ];
    for (what, loss, over_ranks) in losses {
        // Small embeddings, so that VICReg's hinges count.
        let small = |x: &Tensor| x * 0.1;
        let whole = |x: &[Tensor], _: &[Tensor]| loss.f_forward(&small(&x[0]), &small(&x[1])).unwrap();
        let over = |x: &[Tensor], _: &[Tensor]| over_ranks(&small(&x[0]), &small(&x[1]), group);
        compare(group, what, &[&a, &b], &[], &whole, &over);
    }
    // Views with positions between batch and features.
    let views = |x: &Tensor| x.reshape([-1, 2, 2]);
    let whole = |x: &[Tensor], _: &[Tensor]| VicRegLoss::new().f_forward(&views(&x[0]), &views(&x[1])).unwrap();
    let over = |x: &[Tensor], _: &[Tensor]| {
        VicRegLoss::new().f_forward_over_ranks(&views(&x[0]), &views(&x[1]), group).unwrap()
    };
    compare(group, "VICReg with positions", &[&a, &b], &[], &whole, &over);
}

type OverRanks<'a> = &'a dyn Fn(&Tensor, &Tensor, &Group) -> Tensor;

/// Samples, a layer whose classes are spread over the ranks, and which of these a rank has.
pub struct Spread {
    pub classes: i64,
    pub first: i64,
    pub count: i64,
    pub rows: i64,
    pub target: Tensor,
    pub input: Tensor,
    pub layer: Tensor,
    pub bias: Tensor,
    pub weight: Tensor,
}

impl Spread {
    /// Rank r has r classes: the first one has none.
    pub fn new(group: &Group) -> Self {
        let (rank, world) = (group.rank() as i64, group.world_size() as i64);
        let classes = world * (world - 1) / 2 + 1;
        let (first, count) = (rank * (rank - 1) / 2, rank + i64::from(rank + 1 == world));
        let (rows, features) = (7, 5);
        let target = Tensor::randint(classes, [rows], (Kind::Int64, Device::Cpu));
        let _ = target.get(2).fill_(-100);
        let (input, layer, bias) = (randn(&[rows, features]) * 20.0, randn(&[classes, features]), randn(&[classes]));
        let weight = randn(&[classes]).abs() + 0.1;
        Self { classes, first, count, rows, target, input, layer, bias, weight }
    }
}

fn vocabulary(group: &Group) {
    let Spread { classes, first, count, rows, target, input, layer, bias, weight } = Spread::new(group);
    for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
        for (smoothing, weighted, z_loss) in [(0.0, false, 0.0), (0.2, false, 0.0), (0.2, true, 0.0), (0.0, true, 0.01)]
        {
            let what = format!("{reduction:?} {smoothing} {weighted} {z_loss}");
            let mut over =
                VocabParallelCrossEntropy::new().label_smoothing(smoothing).z_loss(z_loss).reduction(reduction);
            let mut whole =
                tch_losses::LinearCrossEntropy::new().label_smoothing(smoothing).z_loss(z_loss).reduction(reduction);
            if weighted {
                (over, whole) = (over.weight(weight.copy()), whole.weight(weight.copy()));
            }
            let leaf = |tensor: &Tensor| tensor.copy().set_requires_grad(true);
            let part = |tensor: &Tensor| tensor.narrow(0, first, count);
            let factors = randn(&[rows]);
            let scalar =
                |loss: &Tensor| if loss.dim() == 0 { loss.shallow_clone() } else { (loss * &factors).sum(None) };
            let [x, w, b] = [leaf(&input), leaf(&layer), leaf(&bias)];
            let expected = whole.f_forward(&x, &w, &target, Some(&b)).unwrap();
            scalar(&expected).backward();
            let [own_x, own_w, own_b] = [leaf(&input), leaf(&part(&layer)), leaf(&part(&bias))];
            let loss = over.f_forward_linear(&own_x, &own_w, &target, Some(&own_b), group).unwrap();
            scalar(&loss).backward();
            close(&loss.detach(), &expected.detach(), &what);
            close(&own_x.grad(), &x.grad(), &format!("{what}: gradient of the input"));
            if count > 0 {
                close(&own_w.grad(), &part(&w.grad()), &format!("{what}: gradient of the layer"));
                close(&own_b.grad(), &part(&b.grad()), &format!("{what}: gradient of the bias"));
            }
        }
    }
    let logits = input.matmul(&layer.transpose(0, 1)) + &bias;
    let own_logits = logits.narrow(1, first, count);
    let loss = VocabParallelCrossEntropy::new().f_forward(&own_logits, &target, group).unwrap();
    close(&loss, &CrossEntropyLoss::new().forward(&logits, &target), "cross entropy");
    // The third row is ignored, whatever its logits are.
    let with_third_row = |number: f64| {
        let leaf = own_logits.copy();
        let _ = leaf.get(2).fill_(number);
        let leaf = leaf.set_requires_grad(true);
        let loss = VocabParallelCrossEntropy::new().z_loss(0.1).label_smoothing(0.1);
        let loss = loss.f_forward(&leaf, &target, group).unwrap();
        loss.backward();
        (loss.detach(), leaf.grad())
    };
    let (expected, expected_gradient) = with_third_row(1.0);
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let (loss, gradient) = with_third_row(number);
        close(&loss, &expected, "an ignored row");
        assert_eq!(gradient, expected_gradient, "beside {number}");
    }
    // A class out of range is the same error on all ranks, and other targets are one, too.
    let wrong = target.copy();
    let _ = wrong.get(0).fill_(classes);
    let error = VocabParallelCrossEntropy::new().f_forward(&own_logits, &wrong, group).unwrap_err().to_string();
    assert_eq!(error, format!("target holds {classes}, expected classes in [0, {classes})"));
    let other = if group.rank() == 1 { &wrong } else { &target };
    let error = VocabParallelCrossEntropy::new().f_forward(&own_logits, other, group).unwrap_err().to_string();
    assert_eq!(error, "ranks disagree: rank 1 has other targets than rank 0");
}

/// In single precision, by torch.testing.assert_close's tolerances for it.
fn single(group: &Group) {
    let rows = all_rows(group);
    let [x, y] = [0, 1].map(|_| randn(&[rows, 8]).to_kind(Kind::Float));
    let classes = Tensor::randint(3, [rows], (Kind::Int64, Device::Cpu));
    let targets = classes.masked_fill(&classes.eq(2), -100);
    let (y, classes, targets) = (&y, &classes, &targets);
    type Of<'a> = &'a dyn Fn(&Tensor) -> Tensor;
    let losses: [(&str, Of, Of); 5] = [
        ("cross entropy", &|x| CrossEntropyLoss::new().forward(x, targets), &|x| {
            let parts = CrossEntropyLoss::new().f_parts(x, &own(group, targets)).unwrap();
            parts.f_over_ranks(group).unwrap().f_value().unwrap()
        }),
        ("SupCon", &|x| SupConLoss::new().forward(x, classes), &|x| {
            SupConLoss::new().f_forward_over_ranks(x, &own(group, classes), group).unwrap()
        }),
        ("CLIP", &|x| ClipLoss::new().forward(x, y, 10.0), &|x| {
            ClipLoss::new().f_forward_over_ranks(x, &own(group, y), 10.0, group, GlobalBatch::new()).unwrap()
        }),
        ("Barlow Twins", &|x| BarlowTwinsLoss::new().forward(x, y), &|x| {
            BarlowTwinsLoss::new().f_forward_over_ranks(x, &own(group, y), group).unwrap()
        }),
        ("VICReg", &|x| VicRegLoss::new().forward(x, y), &|x| {
            VicRegLoss::new().f_forward_over_ranks(x, &own(group, y), group).unwrap()
        }),
    ];
    for (what, whole, over_ranks) in losses {
        let (leaf, own_leaf) = (x.copy().set_requires_grad(true), own(group, &x).copy().set_requires_grad(true));
        let (expected, loss) = (whole(&leaf), over_ranks(&own_leaf));
        expected.backward();
        loss.backward();
        assert_eq!(loss.kind(), Kind::Float, "{what}");
        let world = group.world_size() as f64;
        for (actual, expected) in [
            (average(group, &loss.detach()), expected.detach()),
            // The own rows count on this rank alone, and so the average over ranks divides their gradient.
            (own_leaf.grad() / world, own(group, &leaf.grad())),
        ] {
            assert!(actual.allclose(&expected, 1.3e-6, 1e-5, false), "{what}: {actual:?}, expected {expected:?}");
        }
    }
}
