//! Losses of statistics of the whole batch, and those that keep one.

use tch::{Device, Kind, Tensor, nn};
use tch_losses::distributed::{Group, VocabParallelCrossEntropy};
use tch_losses::{
    Activation, ArcFace, ArcFaceLoss, Chunking, DiceLoss, DinoConfig, DinoLoss, Grouping, LinearCrossEntropy, Loss,
    LossError, LovaszSoftmaxLoss, MseLoss, NPairsLoss, ProxyAnchor, ProxyAnchorLoss, Reduction,
};

use super::equality::{Case, Spread, all_rows, average, close, compare, own, randn, run_one_of};

/// Runs the case of this name, if there is one.
pub fn run(case: &str) -> bool {
    let cases: [Case; 3] = [("dino", dino), ("whole", whole), ("vocabulary-chunks", vocabulary_chunks)];
    run_one_of(&cases, case)
}

fn dino(group: &Group) {
    let rows = all_rows(group);
    let criterion = |store: &mut nn::VarStore| {
        let config = DinoConfig::new().teacher_temp(0.5).student_temp(0.7).center_momentum(0.6);
        let criterion = DinoLoss::new(store.root(), 5, config);
        store.double();
        criterion
    };
    let mut stores = [nn::VarStore::new(Device::Cpu), nn::VarStore::new(Device::Cpu)];
    let [mut alone, mut over] = stores.each_mut().map(criterion);
    let layer = randn(&[6, 5]);
    for step in 0..4 {
        let views: Vec<Tensor> = (0..4).map(|_| randn(&[rows, 6])).collect();
        let outputs = |of_rank: bool, layer: &Tensor| -> Vec<Tensor> {
            views.iter().map(|view| if of_rank { own(group, view) } else { view.copy() }.matmul(layer)).collect()
        };
        let [leaf, own_leaf] = [0, 1].map(|_| layer.copy().set_requires_grad(true));
        let teacher = |of_rank| outputs(of_rank, &(&layer + 1.0))[..2].iter().map(Tensor::copy).collect::<Vec<_>>();
        let expected = alone.f_forward(&teacher(false), &outputs(false, &leaf)).unwrap();
        let loss = over.f_forward_over_ranks(&teacher(true), &outputs(true, &own_leaf), group).unwrap();
        expected.backward();
        loss.backward();
        close(&average(group, &loss.detach()), &expected.detach(), &format!("loss of step {step}"));
        close(&average(group, &own_leaf.grad()), &leaf.grad(), &format!("gradient of step {step}"));
        alone.update_center(&teacher(false));
        over.f_update_center_over_ranks(&teacher(true), group).unwrap();
        close(over.center(), alone.center(), &format!("centre after step {step}"));
        assert!(over.center().abs().max().double_value(&[]) > 1e-3, "there is a centre");
    }
    // Rank 0 has nothing, and then nobody has anything.
    let outputs = [randn(&[i64::from(group.rank() > 0), 5])];
    over.f_update_center_over_ranks(&outputs, group).unwrap();
    let before = over.center().copy();
    let error = over.f_update_center_over_ranks(&[randn(&[0, 5])], group).unwrap_err().to_string();
    assert_eq!(error, "teacher_out has shape [0, 5], expected a batch that is not empty on all ranks");
    assert_eq!(*over.center(), before);
    // Other numbers of views.
    let view = || randn(&[2, 5]);
    let student: Vec<Tensor> = (0..2 + group.rank()).map(|_| view()).collect();
    let error = over.f_forward_over_ranks(&[view()], &student, group).unwrap_err();
    assert!(matches!(&error, LossError::Ranks { asked } if asked.contains("views")), "{error}");
}

/// Losses that are no means over samples.
fn whole(group: &Group) {
    let rows = all_rows(group);
    let labels = Tensor::randint(3, [rows], (Kind::Int64, Device::Cpu));
    let x = randn(&[rows, 6]);
    let mut store = nn::VarStore::new(Device::Cpu);
    // The same on all ranks, because all have drawn the same numbers so far.
    let anchors = ProxyAnchorLoss::new(store.root() / "anchors", 3, 4, ProxyAnchor::new());
    let arcs = ArcFaceLoss::new(store.root() / "arcs", 3, 4, ArcFace::new());
    store.double();
    let dice = DiceLoss::new().activation(Activation::Softmax).grouping(Grouping::Class);
    let pairs = Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder((rows + 1) / 2);
    let losses: [(&str, &dyn Loss, &Tensor); 5] = [
        ("Dice of the batch", &dice, &labels),
        ("Lovasz", &LovaszSoftmaxLoss::new(), &labels),
        ("N-pairs", &NPairsLoss::new(), &pairs),
        ("proxy anchor", &anchors, &labels),
        ("ArcFace", &arcs, &labels),
    ];
    for (what, loss, target) in losses {
        let alone = |x: &[Tensor], _: &[Tensor]| loss.f_forward(&x[0], target).unwrap();
        let over = |x: &[Tensor], _: &[Tensor]| loss.f_whole_over_ranks(&x[0], &own(group, target), group).unwrap();
        compare(group, what, &[&x], &[], &alone, &over);
    }
    // The gradient of the proxies.
    let gradient = |over: bool| {
        let _ = store.trainable_variables().iter_mut().map(Tensor::zero_grad).count();
        let x = x.narrow(1, 0, 4);
        let loss = match over {
            true => anchors.f_whole_over_ranks(&own(group, &x), &own(group, &labels), group).unwrap(),
            false => anchors.forward(&x, &labels),
        };
        loss.backward();
        anchors.proxies().grad().copy()
    };
    let expected = gradient(false);
    close(&average(group, &gradient(true)), &expected, "gradient of the proxies");
    // A target with a gradient, and a mean by its parts.
    let (y, mse) = (randn(&[rows, 6]), MseLoss::new());
    let alone = |x: &[Tensor], _: &[Tensor]| mse.forward(&x[0], &x[1]);
    let over = |x: &[Tensor], _: &[Tensor]| mse.f_whole_over_ranks(&x[0], &x[1], group).unwrap();
    compare(group, "MSE of all rows", &[&x, &y], &[], &alone, &over);
    let over = |x: &[Tensor], _: &[Tensor]| mse.f_mean_over_ranks(&x[0], &x[1], group).unwrap();
    compare(group, "MSE of the parts", &[&x, &y], &[], &alone, &over);
}

fn vocabulary_chunks(group: &Group) {
    let Spread { classes, first, count, rows, target, input, layer, bias, weight } = Spread::new(group);
    let leaf = |tensor: &Tensor| tensor.copy().set_requires_grad(true);
    let part = |tensor: &Tensor| tensor.narrow(0, first, count);
    for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
        for (smoothing, weighted, z_loss, cap, size) in [
            (0.0, false, 0.0, None, 1),
            (0.2, false, 0.0, Some(30.0), 3),
            (0.2, true, 0.0, None, 7),
            (0.0, true, 0.01, Some(5.0), 2),
            (0.3, true, 0.1, Some(5.0), 100),
        ] {
            let what = format!("{reduction:?} {smoothing} {weighted} {z_loss} {cap:?} {size}");
            let mut over = VocabParallelCrossEntropy::new().label_smoothing(smoothing).z_loss(z_loss);
            let mut alone = LinearCrossEntropy::new().label_smoothing(smoothing).z_loss(z_loss).reduction(reduction);
            over = over.reduction(reduction).chunking(Chunking::Rows(size));
            if weighted {
                (over, alone) = (over.weight(weight.copy()), alone.weight(weight.copy()));
            }
            if let Some(cap) = cap {
                (over, alone) = (over.soft_cap(cap), alone.soft_cap(cap));
            }
            let factors = randn(&[rows]);
            let scalar = |loss: &Tensor| if loss.dim() == 0 { loss * 0.7 } else { (loss * &factors).sum(None) };
            let [x, w, b] = [leaf(&input), leaf(&layer), leaf(&bias)];
            let expected = alone.f_forward(&x, &w, &target, Some(&b)).unwrap();
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
    let own_layer = part(&layer);
    let criterion = || VocabParallelCrossEntropy::new().soft_cap(5.0).chunking(Chunking::Rows(2));
    let error = |criterion: VocabParallelCrossEntropy, target: &Tensor| {
        criterion.f_forward_linear(&input, &own_layer, target, None, group).unwrap_err().to_string()
    };
    // Without a graph, and with that of the logits at once; in single precision of half.
    let chunks = criterion().f_forward_linear(&input, &own_layer, &target, None, group).unwrap();
    let at_once = VocabParallelCrossEntropy::new().soft_cap(5.0);
    close(&chunks, &at_once.f_forward_linear(&input, &own_layer, &target, None, group).unwrap(), "soft cap at once");
    let half = |tensor: &Tensor| tensor.to_kind(Kind::BFloat16).set_requires_grad(true);
    let (x, w) = (half(&input), half(&own_layer));
    let narrow = criterion().f_forward_linear(&x, &w, &target, None, group).unwrap();
    narrow.backward();
    assert_eq!([narrow.kind(), x.grad().kind()], [Kind::BFloat16; 2]);
    let difference = (narrow.to_kind(Kind::Double) - &chunks).abs().double_value(&[]);
    assert!(difference <= 0.1 * chunks.double_value(&[]), "{difference} beside {chunks}");
    // Nothing at all.
    let nothing = |tensor: &Tensor| tensor.narrow(0, 0, 0);
    let sum = criterion().reduction(Reduction::Sum);
    let empty = sum.f_forward_linear(&nothing(&input), &own_layer, &nothing(&target), None, group).unwrap();
    assert_eq!(empty.double_value(&[]), 0.0);
    // The gradient has none.
    let x = leaf(&input);
    let loss = criterion().f_forward_linear(&x, &own_layer, &target, None, group).unwrap();
    let gradient = Tensor::run_backward(&[loss], &[&x], true, true).remove(0);
    let once = gradient.sum(None).f_backward().unwrap_err().to_string();
    assert!(once.contains("once_differentiable"), "{once}");
    // What is wrong is so on all ranks.
    let wrong = target.copy();
    let _ = wrong.get(0).fill_(classes);
    assert_eq!(error(criterion(), &wrong), format!("target holds {classes}, expected classes in [0, {classes})"));
    let other = if group.rank() == 1 { &wrong } else { &target };
    assert_eq!(error(criterion(), other), "ranks disagree: rank 1 has other targets than rank 0");
    let zero = VocabParallelCrossEntropy::new().chunking(Chunking::Rows(0));
    assert_eq!(error(zero, &target), "option chunking is Rows(0), expected a number of rows >= 1");
    // A rank whose input needs no gradient would not sum it up.
    let x = input.copy().set_requires_grad(group.rank() == 1);
    let error = criterion().f_forward_linear(&x, &own_layer, &target, None, group).unwrap_err();
    assert!(matches!(&error, LossError::Ranks { asked } if asked.contains("with a gradient")), "{error}");
}
