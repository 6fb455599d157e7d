//! Losses of all pairs of a batch.

use std::collections::BTreeSet;

use tch::{Device, Kind, Tensor};

use super::compare::{Guarded, KINDS, assert_as_composite, assert_without, results};
use super::compiled::{assert_compile, installed_nvrtc};
use super::{LAUNCHED, ORDER, SOURCES, assert_caught, assert_near, emulated, excess, rand, randn, sources_of};
use crate::kernels::formulas::{OTHER, PairSlopes, PairSums, PairTerms, Positives, SAME, SoftPairs};
use crate::kernels::number::{Real, choose};
use crate::kernels::pair_labels::PairLabels;
use crate::kernels::pairs::{Counted, Each, Hard, PairPlan, Soft, f_pairs};
use crate::random::randint;
use crate::{
    ArcFace, Backend, BarlowTwinsLoss, CircleLoss, ContrastiveLoss, CosFace, EmbeddingDistance, EmbeddingLoss,
    EmbeddingPairs, EmbeddingReduction, GeneralizedLiftedStructureLoss, LiftedStructureLoss, Loss, LossError,
    MultiSimilarityLoss, NPairsLoss, NcaLoss, NtXentLoss, ProxyAnchor, ProxyNca, SupConLoss, VicRegLoss, with_backend,
};

/// A loss, with whether it takes references.
type Case = (&'static str, Box<dyn EmbeddingLoss>, bool);

const REDUCTIONS: [EmbeddingReduction; 4] = [
    EmbeddingReduction::Mean,
    EmbeddingReduction::MeanNonZero,
    EmbeddingReduction::Sum,
    EmbeddingReduction::Threshold { low: Some(0.4), high: Some(1.6) },
];

fn cases(reduction: EmbeddingReduction) -> Vec<Case> {
    let product = || EmbeddingDistance::dot_product().normalize_embeddings(false);
    vec![
        ("contrastive", Box::new(ContrastiveLoss::new().reduction(reduction)), true),
        (
            "contrastive of cosines",
            Box::new(
                ContrastiveLoss::new()
                    .pos_margin(0.9)
                    .neg_margin(0.1)
                    .distance(EmbeddingDistance::cosine())
                    .reduction(reduction),
            ),
            true,
        ),
        ("multi-similarity", Box::new(MultiSimilarityLoss::new().reduction(reduction)), true),
        ("nca", Box::new(NcaLoss::new().softmax_scale(3.0).reduction(reduction)), true),
        ("sup con", Box::new(SupConLoss::new().reduction(reduction)), true),
        ("circle", Box::new(CircleLoss::new().reduction(reduction)), true),
        ("generalized lifted", Box::new(GeneralizedLiftedStructureLoss::new().reduction(reduction)), true),
        ("nt-xent", Box::new(NtXentLoss::new().reduction(reduction)), true),
        ("nt-xent of products", Box::new(NtXentLoss::new().distance(product()).reduction(reduction)), true),
        ("lifted structure", Box::new(LiftedStructureLoss::new().reduction(reduction)), false),
    ]
}

fn of_batch(loss: &dyn EmbeddingLoss) -> impl Fn(&[Tensor]) -> Tensor {
    move |tensors| match tensors {
        [embeddings, labels] => loss.f_forward(embeddings, labels).unwrap(),
        [embeddings, ref_emb, labels, ref_labels] => {
            loss.f_forward_with(embeddings, labels, ref_emb, ref_labels).unwrap()
        }
        _ => panic!("arguments"),
    }
}

fn embeddings(rows: i64, kind: Kind) -> Tensor {
    randn([rows, 3]).to_kind(kind)
}

#[test]
fn a_backward_pass_has_the_labels_of_its_forward_pass() {
    let embeddings = randn([6, 4]);
    let gradient = |loss: &dyn Loss, replaced: bool| {
        let mut labels = Tensor::from_slice(&[0_i64, 1, 0, 2, 1, 2]);
        let input = embeddings.detach().set_requires_grad(true);
        let loss = emulated(|| loss.f_forward(&input, &labels).unwrap());
        if replaced {
            let _ = labels.zero_();
        }
        Tensor::run_backward(&[loss], &[&input], false, false).remove(0)
    };
    let losses: [Box<dyn Loss>; 3] =
        [Box::new(SupConLoss::new()), Box::new(ContrastiveLoss::new()), Box::new(NtXentLoss::new())];
    for (position, loss) in losses.iter().enumerate() {
        let [expected, actual] = [false, true].map(|replaced| gradient(&**loss, replaced));
        assert!(actual.equal(&expected), "loss {position}");
    }
}

#[test]
fn every_loss_and_reduction_is_that_of_tensor_operations() {
    for reduction in REDUCTIONS {
        for (name, loss, takes_references) in cases(reduction) {
            let name = format!("{name} {reduction:?}");
            for rows in [1, 2, 7, 36] {
                let tensors = [embeddings(rows, Kind::Double), randint(4, [rows])];
                assert_as_composite(&name, &tensors, &[0], &of_batch(&*loss));
            }
            for (rows, others) in [(5, 1), (1, 9), (9, 32)] {
                let labels = |rows| randint(3, [rows]);
                let [a, b] = [rows, others].map(|rows| embeddings(rows, Kind::Double));
                let tensors = [a, b, labels(rows), labels(others)];
                let name = format!("{name} with {others} references");
                match takes_references {
                    true => assert_as_composite(&name, &tensors, &[0, 1], &of_batch(&*loss)),
                    false => assert_without("pairs_finish", &name, &tensors, &[0, 1], &of_batch(&*loss)),
                }
            }
        }
    }
}

#[test]
fn labels_decide_which_pairs_there_are() {
    let rows = 12;
    let labels = [
        ("one", Tensor::zeros([rows], (Kind::Int64, Device::Cpu))),
        ("all different", Tensor::arange(rows, (Kind::Int64, Device::Cpu)) * -(1_i64 << 40)),
        ("of 8 bits", randint(3, [rows]).to_kind(Kind::Uint8)),
        ("of every other place", randint(3, [2 * rows]).slice(0, 0, 2 * rows, 2)),
        ("of views", Tensor::arange(rows, (Kind::Int64, Device::Cpu)).divide_scalar_mode(2, "floor")),
    ];
    for (of, labels) in labels {
        for reduction in [EmbeddingReduction::Mean, EmbeddingReduction::MeanNonZero] {
            for (name, loss, _) in cases(reduction) {
                let tensors = [embeddings(rows, Kind::Double), labels.to_kind(labels.kind())];
                assert_as_composite(&format!("{name}, labels {of}"), &tensors, &[0], &of_batch(&*loss));
            }
        }
    }
}

/// The first result of kernels that is neither what tensor operations give nor nearer to double precision, in words:
/// gradients are sums over pairs whose terms nearly cancel.
fn first_wrong(tensors: &[Tensor], wanted: &[usize], compute: &dyn Fn(&[Tensor]) -> Tensor) -> Option<String> {
    let wide = |tensor: &Tensor| if tensor.is_floating_point() { tensor.to_kind(Kind::Double) } else { tensor.copy() };
    let exact: Vec<Tensor> = tensors.iter().map(wide).collect();
    let before = SOURCES.with_borrow(Vec::len);
    let actual = emulated(|| results(tensors, wanted, compute));
    assert!(SOURCES.with_borrow(Vec::len) > before, "no kernel is asked for");
    let [expected, exact] =
        [tensors, &exact].map(|tensors| with_backend(Backend::Composite, || results(tensors, wanted, compute)));
    let wrong = |position: &usize| {
        let [actual, expected] = [&actual, &expected].map(|all| all[*position].to_kind(Kind::Double));
        let far = |tensor: &Tensor| (tensor - &exact[*position]).abs().max().double_value(&[]);
        let near = excess(&actual, &expected, tensors[0].kind()) <= 0.0 || far(&actual) <= far(&expected);
        (!near).then(|| format!("{position} of {:?}: {} > {}", tensors[0].size(), far(&actual), far(&expected)))
    };
    (0..actual.len()).find_map(|position| wrong(&position))
}

#[track_caller]
pub(super) fn assert_as_near(name: &str, tensors: &[Tensor], wanted: &[usize], compute: &dyn Fn(&[Tensor]) -> Tensor) {
    let wrong = first_wrong(tensors, wanted, compute);
    assert!(wrong.is_none(), "{name}, result {wrong:?}");
}

#[test]
fn kinds_and_sizes_of_pairs_are_taken() {
    for (name, loss, takes_references) in cases(EmbeddingReduction::MeanNonZero) {
        for kind in KINDS {
            let tensors = [embeddings(30, kind), randint(4, [30])];
            assert_as_composite(name, &tensors, &[0], &of_batch(&*loss));
        }
        // Matrices of single precision: a warp for each row, without and with whole packs.
        for rows in [257, 260] {
            let tensors = [embeddings(rows, Kind::Float), randint(40, [rows])];
            assert_as_near(name, &tensors, &[0], &of_batch(&*loss));
        }
        if !takes_references {
            continue;
        }
        // Blocks for each row, in parts or not, and more rows than there are groups of threads.
        let several = ["contrastive", "multi-similarity", "nt-xent"].contains(&name);
        let sizes = [(1, 1025), (3, 1026), (70, 1028), (4, 20_001), (8200, 9)];
        for (rows, others) in sizes.into_iter().take(if several { 5 } else { 3 }) {
            let draw = |rows| embeddings(rows, Kind::Float);
            let tensors = [draw(rows), draw(others), randint(40, [rows]), randint(40, [others])];
            assert_as_near(name, &tensors, &[0, 1], &of_batch(&*loss));
        }
    }
}

#[test]
fn vectors_of_classes_are_taken() {
    for (rows, classes) in [(1, 2), (9, 4), (7, 1100), (300, 300)] {
        let kind = if rows == 9 { Kind::Double } else { Kind::Float };
        let vectors = |rows| embeddings(rows, kind);
        let labels = randint(classes, [rows]);
        for reduction in [EmbeddingReduction::Mean, EmbeddingReduction::Sum] {
            let across = [vectors(rows), vectors(classes).transpose(0, 1), labels.copy()];
            let along = [vectors(rows), vectors(classes), labels.copy()];
            let arc = ArcFace::new().scale(5.0).reduction(reduction);
            assert_as_composite("ArcFace", &across, &[0, 1], &|t| arc.f_forward(&t[0], &t[1], &t[2]).unwrap());
            let cos = CosFace::new().scale(5.0).reduction(reduction);
            assert_as_composite("CosFace", &across, &[0, 1], &|t| cos.f_forward(&t[0], &t[1], &t[2]).unwrap());
            let nca = ProxyNca::new().reduction(reduction);
            assert_as_composite("proxy NCA", &along, &[0, 1], &|t| nca.f_forward(&t[0], &t[1], &t[2]).unwrap());
            let anchor = ProxyAnchor::new().alpha(4.0).reduction(reduction);
            assert_as_composite("anchors", &along, &[0, 1], &|t| anchor.f_forward(&t[0], &t[1], &t[2]).unwrap());
        }
    }
    // A class out of range makes the loss NaN.
    let tensors = [randn([4, 3]), randn([5, 3]), Tensor::from_slice(&[0_i64, 5, 2, 1])];
    let nca = ProxyNca::new();
    let all = emulated(|| results(&tensors, &[0], &|t| nca.f_forward(&t[0], &t[1], &t[2]).unwrap()));
    assert!(all[0].double_value(&[]).is_nan());
}

#[test]
fn diagonals_are_taken() {
    for (rows, features) in [(2, 1), (9, 5), (40, 64), (4, 1030)] {
        for kind in [Kind::Double, Kind::Float, Kind::Half] {
            let views = || [randn([rows, features]).to_kind(kind), randn([rows, features]).to_kind(kind)];
            let [barlow, vicreg] = [BarlowTwinsLoss::new(), BarlowTwinsLoss::new().lambda_param(0.5)];
            for loss in [barlow, vicreg] {
                let compute = |tensors: &[Tensor]| loss.f_forward(&tensors[0], &tensors[1]).unwrap();
                assert_as_composite("Barlow twins", &views(), &[0, 1], &compute);
            }
            let loss = VicRegLoss::new();
            let compute = |tensors: &[Tensor]| loss.f_forward(&tensors[0], &tensors[1]).unwrap();
            assert_as_composite("VICReg", &views(), &[0, 1], &compute);
        }
    }
    let several = [randn([6, 3, 5]), randn([6, 3, 5])];
    let compute = |tensors: &[Tensor]| VicRegLoss::new().f_forward(&tensors[0], &tensors[1]).unwrap();
    assert_as_composite("VICReg of several matrices", &several, &[0, 1], &compute);
    // As many rows of one matrix as there are pairs.
    let tensors = [randn([10, 4]), Tensor::from_slice(&[0_i64, 0, 1, 2, 1, 2, 2, 3, 4, 4])];
    let compute = |tensors: &[Tensor]| NPairsLoss::new().f_forward(&tensors[0], &tensors[1]).unwrap();
    assert_as_composite("N-pairs", &tensors, &[0], &compute);
}

#[test]
fn what_has_no_kernel_is_computed_by_tensor_operations() {
    let tensors = || [randn([6, 3]), randint(2, [6])];
    let none = ContrastiveLoss::new().reduction(EmbeddingReduction::None);
    assert_without("pairs_finish", "unreduced losses", &tensors(), &[0], &of_batch(&none));
    let named = |tensors: &[Tensor]| {
        let place = |numbers: &[i64]| Tensor::from_slice(numbers);
        let pairs = EmbeddingPairs::pairs(&place(&[0, 1]), &place(&[2, 3]), &place(&[0]), &place(&[4]));
        ContrastiveLoss::new().f_forward_pairs(&tensors[0], &pairs, None).unwrap()
    };
    assert_without("pairs_finish", "pairs that are named", &tensors(), &[0], &named);
    let loss = ContrastiveLoss::new();
    let empty = [Tensor::zeros([0, 3], (Kind::Double, Device::Cpu)), Tensor::zeros([0], (Kind::Int64, Device::Cpu))];
    assert_without("pairs_finish", "no embeddings", &empty, &[0], &of_batch(&loss));
    let [a, labels] = tensors();
    let no_references = [a, empty[0].copy(), labels, empty[1].copy()];
    assert_without("pairs_finish", "no references", &no_references, &[0], &of_batch(&loss));
}

/// The gradient of the gradient's length, which comes from tensor operations.
#[test]
fn second_derivatives_are_those_of_tensor_operations() {
    let (x, labels) = (randn([7, 3]), randint(3, [7]));
    for (name, loss, _) in cases(EmbeddingReduction::Mean) {
        let second = || {
            let x = x.detach().set_requires_grad(true);
            let loss = loss.f_forward(&x, &labels).unwrap();
            let gradient = Tensor::run_backward(&[loss], &[&x], true, true).remove(0);
            Tensor::run_backward(&[gradient.square().sum(None)], &[&x], false, false).remove(0)
        };
        let expected = with_backend(Backend::Composite, second);
        assert_near(&format!("{name}, second derivative"), &emulated(second), &expected, Kind::Float);
    }
}

/// Formulas of a given matrix, whose tensor operations are below.
#[derive(Clone, Copy)]
struct Plain;

impl PairTerms for Plain {
    fn same<R: Real>(self, x: R) -> (R, R) {
        (-x, R::of(-1.0))
    }

    fn other<R: Real>(self, x: R) -> (R, R) {
        (x, R::of(1.0))
    }
}

impl SoftPairs for Plain {
    fn loss<R: Real>(self, sums: &PairSums<R>) -> (R, PairSlopes<R>) {
        let [same, other] = sums.log_sum_exp;
        let (zero, two, own) = (R::of(0.0), R::of(2.0), sums.own.unwrap_or(R::of(0.0)));
        // The soft maximum of what is there, and the square of the number beside the matrix.
        let part = |k: usize, number: R| choose(sums.counts[k].greater(zero), number, zero);
        let loss = part(SAME, same) + two * part(OTHER, other) + own * own;
        let slopes = PairSlopes::of_log_sum_exp([part(SAME, R::of(1.0)), part(OTHER, two)]);
        (loss, PairSlopes { own: two * own, ..slopes })
    }
}

impl Positives for Plain {
    const BOTH: bool = true;

    fn negative<R: Real>(self, x: R) -> (R, R) {
        (x, R::of(1.0))
    }

    fn loss<R: Real>(self, x: R, [row, column]: [R; 2]) -> (R, [R; 3]) {
        let two = R::of(2.0);
        (x * x + row + two * column, [two * x, R::of(1.0), two])
    }
}

/// log Σ exp of the elements of rows that a mask names; a very small number without any.
fn soft_maxima(matrix: &Tensor, mask: &Tensor) -> Tensor {
    let least = if matrix.kind() == Kind::Double { f64::MIN } else { f64::from(f32::MIN) } / 2.0;
    matrix.masked_fill(&mask.logical_not(), least).logsumexp([1_i64].as_slice(), false)
}

struct Masks {
    same: Tensor,
    other: Tensor,
}

impl Masks {
    fn new(rows: &Tensor, columns: &Tensor, own: bool) -> Self {
        let same = rows.unsqueeze(1).eq_tensor(&columns.unsqueeze(0));
        let other = same.logical_not();
        let mut same = same;
        if own {
            let _ = same.fill_diagonal_(0, false);
        }
        Self { same, other }
    }
}

fn hard(matrix: &Tensor, masks: &Masks) -> Tensor {
    let mean = |terms: Tensor, mask: &Tensor| {
        terms.masked_fill(&mask.logical_not(), 0.0).sum(Kind::Double) / mask.sum(Kind::Double).clamp_min(1.0)
    };
    mean(-matrix, &masks.same) + mean(matrix.shallow_clone(), &masks.other)
}

fn soft(matrix: &Tensor, beside: Option<&Tensor>, masks: &Masks) -> Tensor {
    let part = |terms: &Tensor, mask: &Tensor| {
        soft_maxima(terms, mask).masked_fill(&mask.any_dim(1, false).logical_not(), 0.0)
    };
    let losses = part(&-matrix, &masks.same) + part(matrix, &masks.other) * 2.0;
    match beside {
        Some(beside) => (losses + beside.square()).mean(Kind::Double),
        None => losses.mean(Kind::Double),
    }
}

fn each(matrix: &Tensor, masks: &Masks) -> Tensor {
    let of_rows = soft_maxima(matrix, &masks.other);
    let losses = matrix.square() + of_rows.unsqueeze(1) + of_rows.unsqueeze(0) * 2.0;
    let sum = losses.masked_fill(&masks.same.logical_not(), 0.0).sum(Kind::Double);
    sum / masks.same.sum(Kind::Double).clamp_min(1.0)
}

const MEAN: Counted = Counted { low: f64::NAN, high: f64::NAN, mean: true };

/// The loss of a matrix by kernels, and by tensor operations.
fn both<P: PairPlan>(
    plan: P,
    tensors: &[Tensor],
    [rows, columns]: [&Tensor; 2],
    own: bool,
    composite: fn(&[Tensor], &Masks) -> Tensor,
) -> [Vec<Tensor>; 2] {
    let wanted: Vec<usize> = (0..tensors.len()).collect();
    let by_kernels = |tensors: &[Tensor]| {
        let labels = PairLabels::f_new(rows, (!own).then_some(columns)).unwrap();
        let loss = match tensors {
            [matrix] => f_pairs(plan, [matrix], labels.as_ref(), Some(MEAN), Kind::Double, never),
            [matrix, beside] => f_pairs(plan, [matrix, beside], labels.as_ref(), Some(MEAN), Kind::Double, never),
            _ => panic!("arguments"),
        };
        loss.unwrap()
    };
    let masks = Masks::new(rows, columns, own);
    let actual = emulated(|| results(tensors, &wanted, &by_kernels));
    let expected =
        with_backend(Backend::Composite, || results(tensors, &wanted, &|tensors| composite(tensors, &masks)));
    [actual, expected]
}

fn never<const N: usize>(_: [&Tensor; N]) -> Result<Tensor, LossError> {
    panic!("no composite")
}

fn check<P: PairPlan>(
    name: &str,
    plan: P,
    tensors: &[Tensor],
    labels: [&Tensor; 2],
    own: bool,
    composite: fn(&[Tensor], &Masks) -> Tensor,
) {
    let [actual, expected] = both(plan, tensors, labels, own, composite);
    for (position, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
        let name = format!("{name} of {:?}, result {position}", tensors[0].size());
        assert_near(&name, &actual.to_kind(Kind::Double), &expected.to_kind(Kind::Double), tensors[0].kind());
    }
}

#[test]
fn nothing_beside_a_matrix_is_read() {
    for order in [1, 5] {
        ORDER.set(order);
        for kind in [Kind::Double, Kind::Float] {
            for (rows, columns) in [(1, 1), (5, 5), (8, 8), (3, 31), (2, 1025), (2, 1028)] {
                let own = rows == columns;
                let [matrix, beside] =
                    [&[rows, columns][..], &[rows]].map(|size| Guarded::new(&randn(size).to_kind(kind)));
                let of_rows = Guarded::new(&randint(3, [rows]));
                let of_columns = if own { Guarded::new(&of_rows.tensor) } else { Guarded::new(&randint(3, [columns])) };
                let labels = [&of_rows.tensor, &of_columns.tensor];
                let matrix = [matrix.tensor.shallow_clone()];
                let with = [matrix[0].shallow_clone(), beside.tensor.shallow_clone()];
                check("terms", Hard(Plain), &matrix, labels, own, |t, masks| hard(&t[0], masks));
                check("rows", Soft(Plain), &matrix, labels, own, |t, masks| soft(&t[0], None, masks));
                check("numbers beside", Soft(Plain), &with, labels, own, |t, masks| soft(&t[0], Some(&t[1]), masks));
                if own {
                    check("positives", Each(Plain), &matrix, labels, own, |t, masks| each(&t[0], masks));
                }
            }
        }
    }
    ORDER.set(1);
}

#[test]
fn blocks_share_long_rows() {
    let drawn =
        |rows, columns| ([randn([rows, columns]).to_kind(Kind::Float)], randint(3, [rows]), randint(3, [columns]));
    for (columns, whole) in [(32_768, 0), (32_769, 1), (36_864, 1)] {
        let (matrix, of_rows, of_columns) = drawn(2, columns);
        let labels = [&of_rows, &of_columns];
        LAUNCHED.take();
        check("terms", Hard(Plain), &matrix, labels, false, |t, masks| hard(&t[0], masks));
        check("rows", Soft(Plain), &matrix, labels, false, |t, masks| soft(&t[0], None, masks));
        let launched = LAUNCHED.take();
        assert_eq!(launched.iter().filter(|name| **name == c"pairs_whole").count(), 2 * whole, "{launched:?}");
    }
    let loss = NtXentLoss::new().distance(EmbeddingDistance::dot_product().normalize_embeddings(false));
    let draw = |rows| embeddings(rows, Kind::Float);
    let tensors = [draw(3), draw(33_001), randint(40, [3]), randint(40, [33_001])];
    assert_as_near("nt-xent", &tensors, &[0, 1], &of_batch(&loss));
    assert!(LAUNCHED.take().contains(&c"positives_whole"));
}

#[test]
fn numbers_that_are_not_finite_are_as_in_tensor_operations() {
    let labels = Tensor::from_slice(&[0_i64, 0, 1, 1, 2, 2]);
    for kind in [Kind::Double, Kind::Float] {
        // A pair of one label, and one of two.
        for (row, column) in [(0, 1), (0, 3)] {
            for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let matrix = randn([6, 6]).to_kind(kind);
                let _ = matrix.get(row).get(column).fill_(number);
                let (matrix, labels) = ([matrix], [&labels, &labels]);
                let name = format!("{number} at {row}, {column}");
                let value = |plan_results: [Vec<Tensor>; 2]| plan_results.map(|mut all| all.remove(0));
                let [actual, expected] = value(both(Hard(Plain), &matrix, labels, true, |t, m| hard(&t[0], m)));
                assert_near(&format!("terms, {name}"), &actual, &expected, kind);
                let [actual, expected] = value(both(Soft(Plain), &matrix, labels, true, |t, m| soft(&t[0], None, m)));
                assert_near(&format!("rows, {name}"), &actual, &expected, kind);
                let [actual, expected] = value(both(Each(Plain), &matrix, labels, true, |t, m| each(&t[0], m)));
                assert_near(&format!("positives, {name}"), &actual, &expected, kind);
            }
        }
    }
    // An embedding that is NaN.
    for (name, loss, _) in cases(EmbeddingReduction::MeanNonZero) {
        let embeddings = randn([8, 3]);
        let _ = embeddings.get(2).fill_(f64::NAN);
        for labels in [randint(3, [8]), Tensor::zeros([8], (Kind::Int64, Device::Cpu))] {
            let tensors = [embeddings.copy(), labels];
            let compute = of_batch(&*loss);
            let actual = emulated(|| compute(&tensors));
            let expected = with_backend(Backend::Composite, || compute(&tensors));
            assert_near(&format!("{name} of NaN"), &actual, &expected, Kind::Double);
        }
    }
}

/// Whether the emulated kernels give what tensor operations do.
fn is_right(tensors: &[Tensor], compute: &dyn Fn(&[Tensor]) -> Tensor) -> bool {
    first_wrong(tensors, &[0], compute).is_none()
}

#[test]
fn mutations_of_kernels_of_pairs_are_caught() {
    let [hard, soft, positives, lifted]: [Box<dyn EmbeddingLoss>; 4] = [
        Box::new(ContrastiveLoss::new().reduction(EmbeddingReduction::Threshold { low: Some(0.3), high: Some(1.2) })),
        Box::new(MultiSimilarityLoss::new()),
        Box::new(NtXentLoss::new()),
        Box::new(LiftedStructureLoss::new()),
    ];
    let sup_con = SupConLoss::new();
    let products = NtXentLoss::new().distance(EmbeddingDistance::dot_product().normalize_embeddings(false));
    let [square, wide, long] = [[40, 40], [3, 1100], [3, 33_001]];
    // What stands in the kernels, what takes its place, a loss, and a size of the matrix.
    let mutations: [(&str, &str, &dyn EmbeddingLoss, [i64; 2]); 30] = [
        ("pair[i] = !(call.own && column + i == row);", "pair[i] = true;", &*soft, square),
        ("pair[i] = !(call.own && column + i == row);", "pair[i] = column + i != row;", &*hard, wide),
        (
            "const Real factor = term == most ? Real(1) : exp(-fabs(term - most));",
            "const Real factor = 1;",
            &*soft,
            square,
        ),
        (
            "exponentials = larger ? exponentials * factor + 1",
            "exponentials = larger ? exponentials + 1",
            &*soft,
            square,
        ),
        ("exponentials * exp(most - largest)", "exponentials", &*soft, square),
        ("of_most == most ? Real(1) : exp(-fabs(of_most - most))", "Real(1)", &*soft, [4, 20_000]),
        ("} else if (!counts(call, term)) {", "} else if (false) {", &*hard, square),
        ("column += GROUP * LENGTH) {\n      const Columns", "column += GROUP) {\n      const Columns", &*soft, wide),
        ("i < all; i += groups()) {\n    Sums same", "i + 1 < all; i += groups()) {\n    Sums same", &*soft, square),
        ("block < blocks; block += THREADS) totals", "block + 1 < blocks; block += THREADS) totals", &*soft, square),
        ("NEEDS_NEGATIVES && totals[3] == 0", "false", &sup_con, [20, 20]),
        ("count < 1 ? 1 : count", "count", &*positives, [1, 1]),
        ("fma(exp(term - shift), soft, plain)", "exp(term) * soft", &*soft, square),
        ("return counts(call, term) ? plain : Real(0);", "return plain;", &*hard, square),
        ("return grad * call.scales[kind];", "return call.scales[kind];", &*hard, square),
        ("from = i % parts * call.part;", "from = 0;", &*soft, [2, 9000]),
        ("? call.columns : from + call.part;", "? call.columns : call.columns;", &*soft, long),
        ("return call.room ? call.parts : 1;", "return call.room ? call.parts - 1 : 1;", &*soft, long),
        ("part < call.parts; part += GROUP", "part + 1 < call.parts; part += GROUP", &*soft, long),
        ("(row * call.parts + part) * ROW_SUMS;", "part * ROW_SUMS;", &*soft, long),
        ("to[2] = exponentials;", "to[2] = 1;", &*soft, long),
        ("call.room[i] = slope;", "call.room[row] = slope;", &products, long),
        ("slope += call.room[", "slope = call.room[", &products, long),
        ("BOTH ? Row(call, column)", "BOTH ? Row(call, row)", &*lifted, square),
        ("if (!BOTH) continue;", "continue;", &*lifted, square),
        ("BOTH ? call.weights[(column + i) * WEIGHTS + 2]", "BOTH ? weights[2]", &*lifted, square),
        ("slope = sum_of_group(slope);", "", &*positives, square),
        ("weights[0] = slope / of.exponentials[OTHER];", "weights[0] = slope;", &*positives, square),
        ("weights[k] = factor * q[2 + k] / of.exponentials[k];", "weights[k] = factor * q[2 + k];", &*soft, square),
        ("if (!columns.pair[0] || !columns.same[0]) continue;", "if (!columns.same[0]) continue;", &*positives, square),
    ];
    for (text, other, loss, [rows, columns]) in mutations {
        let draw = |rows| embeddings(rows, Kind::Float);
        let one_label = text.starts_with("NEEDS_NEGATIVES");
        let labels =
            |rows| if one_label { Tensor::zeros([rows], (Kind::Int64, Device::Cpu)) } else { randint(6, [rows]) };
        let tensors = match rows == columns {
            true => vec![draw(rows), labels(rows)],
            false => vec![draw(rows), draw(columns), labels(rows), labels(columns)],
        };
        let compute = of_batch(loss);
        assert_caught(text, other, || is_right(&tensors, &compute));
    }
}

#[test]
fn sources_of_pairs_compile_for_gpus() {
    let Some(nvrtc) = installed_nvrtc() else {
        println!("left out: this libtorch came without NVRTC");
        return;
    };
    let calls = || {
        for (_, loss, takes_references) in cases(EmbeddingReduction::Mean) {
            for (rows, others) in [(3, 4), (70, 1028)] {
                let draw = |rows| embeddings(rows, Kind::Float);
                let _ = match takes_references {
                    true => loss.f_forward_with(&draw(rows), &randint(3, [rows]), &draw(others), &randint(3, [others])),
                    false => loss.f_forward(&draw(rows), &randint(3, [rows])),
                };
            }
        }
        let (x, classes) = (embeddings(4, Kind::Float), randint(5, [4]));
        let _ = ArcFace::new().f_forward(&x, &embeddings(5, Kind::Float).transpose(0, 1), &classes);
        let _ = ProxyAnchor::new().f_forward(&x, &embeddings(5, Kind::Float), &classes);
        let _ = BarlowTwinsLoss::new().f_forward(&x, &x);
        let _ = VicRegLoss::new().f_forward(&x, &(rand([4, 3]).to_kind(Kind::Float)));
    };
    let sources: BTreeSet<String> = sources_of(calls);
    assert!(sources.len() > 20, "{} sources", sources.len());
    assert_compile(&nvrtc, sources);
}
