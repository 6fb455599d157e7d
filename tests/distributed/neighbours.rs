//! Exchanges between neighbours, and the bytes that ranks send.

use tch::{Device, Kind, Tensor};
use tch_losses::distributed::{Group, Reduce};
use tch_losses::{Reduction, SigLipLoss};

use super::equality::{Case, all_rows, close, compare, own, randn, run_one_of};

/// Runs the case of this name, if there is one.
pub fn run(case: &str) -> bool {
    let cases: [Case; 3] = [("shifts", shifts), ("siglip-neighbours", siglip), ("bytes", bytes)];
    run_one_of(&cases, case)
}

/// The rows of a rank, of which there are another number on each.
fn rows(rank: i64, kind: Kind) -> Tensor {
    Tensor::full([rank + 1, 2], 10 * rank, (kind, Device::Cpu))
}

fn shifts(group: &Group) {
    let (rank, world) = (group.rank() as i64, group.world_size() as i64);
    for kind in [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16, Kind::Int64, Kind::Int16, Kind::Bool] {
        for by in [1, -1, 2, -2, 0, world, 7] {
            let from = (rank - by).rem_euclid(world);
            assert_eq!(group.f_shift(&rows(rank, kind), by).unwrap(), rows(from, kind), "{kind:?} by {by}");
        }
    }
    // Some have nothing.
    let nothing = |rank: i64| rows(rank, Kind::Float).narrow(0, 0, if rank % 2 == 0 { 0 } else { 1 });
    let from = (rank - 1).rem_euclid(world);
    assert_eq!(group.f_shift(&nothing(rank), 1).unwrap(), nothing(from));
    assert!(group.f_shift(&Tensor::from(1.0), 1).is_err(), "a scalar has no rows");

    // Each rank has a loss of its own of what came, and the gradient goes back to where it came from.
    let factor = |rank: i64| rank as f64 + 1.0;
    for by in [1, -1, 3] {
        let leaf = rows(rank, Kind::Double).set_requires_grad(true);
        let came = group.f_shift_data_parallel(&leaf, by).unwrap();
        let fourth = came.pow_tensor_scalar(4).sum(None) * factor(rank);
        let first = Tensor::run_backward(&[fourth], &[&leaf], true, true).remove(0);
        let reader = factor((rank + by).rem_euclid(world));
        let x = rows(rank, Kind::Double);
        close(&first, &(x.pow_tensor_scalar(3) * 4.0 * reader), "gradient of a shift");
        first.sum(None).backward();
        close(&leaf.grad(), &(x.square() * 12.0 * reader), "second derivative of a shift");
    }
}

fn siglip(group: &Group) {
    let rows = all_rows(group);
    let (images, texts) = (randn(&[rows, 6]), randn(&[rows, 5]));
    for loss in [SigLipLoss::new(), SigLipLoss::new().normalize(false).reduction(Reduction::Sum)] {
        let whole = |x: &[Tensor], s: &[Tensor]| loss.f_forward(&x[0], &x[1], &s[0], &s[1]).unwrap();
        let over =
            |x: &[Tensor], s: &[Tensor]| loss.f_forward_over_neighbours(&x[0], &x[1], &s[0], &s[1], group).unwrap();
        compare(group, &format!("{loss:?}"), &[&images, &texts], &[2.0, -3.0], &whole, &over);
    }
    // Losses of the own images, each with a gradient of its own, where texts need none; and second derivatives.
    let loss = SigLipLoss::new().reduction(Reduction::None);
    let factors = randn(&[rows]);
    let numbers = |of_neighbours: bool| {
        let [image, text] = [&images, &texts].map(|whole| own(group, &whole.narrow(1, 0, 4)).copy());
        let image = image.set_requires_grad(true);
        let losses = match of_neighbours {
            true => loss.f_forward_over_neighbours(&image, &text, 2.0, -3.0, group),
            false => loss.f_forward_over_ranks(&image, &text, 2.0, -3.0, group),
        }
        .unwrap();
        let value = (&losses * own(group, &factors)).sum(None);
        let first = Tensor::run_backward(&[value], &[&image], true, true).remove(0);
        first.square().sum(None).backward();
        [losses.detach(), first.detach(), image.grad()]
    };
    for (of_neighbours, gathered) in numbers(true).iter().zip(numbers(false)) {
        close(of_neighbours, &gathered, "losses of the own images, and their derivatives");
    }
    let [x, y] = [&images, &texts].map(|whole| whole.narrow(1, 0, 4));
    close(&numbers(true)[0], &own(group, &loss.forward(&x, &y, 2.0, -3.0)), "losses of the own images");
    // The kind of the arguments stays.
    let half = |tensor: &Tensor| own(group, &tensor.narrow(1, 0, 4)).to_kind(Kind::BFloat16).set_requires_grad(true);
    let (image, text) = (half(&images), half(&texts));
    let value = SigLipLoss::new().f_forward_over_neighbours(&image, &text, 2.0, -3.0, group).unwrap();
    value.backward();
    assert_eq!((value.kind(), text.grad().kind()), (Kind::BFloat16, Kind::BFloat16));
}

/// The bytes that this process has written so far, to whatever it writes to.
fn written() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap();
    line.parse().unwrap()
}

fn bytes(group: &Group) {
    let large = Tensor::zeros([1 << 18], (Kind::Float, Device::Cpu));
    let calls: [(&str, &dyn Fn()); 4] = [
        ("sum", &|| drop(group.f_all_reduce(&large, Reduce::Sum).unwrap())),
        ("gather", &|| drop(group.f_all_gather(&large).unwrap())),
        ("broadcast", &|| drop(group.f_broadcast(&large, 1).unwrap())),
        ("shift", &|| drop(group.f_shift(&large, 1).unwrap())),
    ];
    for (what, call) in calls {
        // What is still on its way belongs to the call before.
        group.f_barrier().unwrap();
        let (counted, before) = (group.sent_bytes(), written());
        call();
        let (counted, real) = ((group.sent_bytes() - counted) as f64, (written() - before) as f64);
        // The rest are headers of messages.
        assert!((real - counted).abs() <= 4096.0 + 0.01 * counted, "{what}: {counted} counted, {real} written");
    }
    assert!(group.sent_bytes() > 3 << 20, "the counter goes on");
}
