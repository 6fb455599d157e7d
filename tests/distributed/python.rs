//! Ranks of Python in the same job, and losses of Python's libraries over ranks of their own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use tch::{Device, Kind, Tensor, nn};
use tch_losses::distributed::{GlobalBatch, Group, Reduce, VocabParallelCrossEntropy};
use tch_losses::{
    BarlowTwinsLoss, Chunking, ClipLoss, CrossEntropyLoss, DinoConfig, DinoLoss, EmbeddingLoss, Loss, LossError,
    NtXentLoss, ProxyAnchor, ProxyAnchorLoss, SigLipLoss, SupConLoss, VicRegLoss,
};

use super::job::{Job, group};

/// What a rank computed, by name.
type Results = BTreeMap<String, Vec<f64>>;

/// Runs the case of this name, if there is one.
pub fn run(case: &str) -> bool {
    let group = || group(60);
    let results = match case {
        "mixed" => mixed(&group()),
        "oracle" => oracle(&group()),
        _ => return false,
    };
    println!("{}", serde_json::to_string(&results).unwrap());
    true
}

/// The interpreter with PyTorch, once `scripts/setup` has made it.
pub fn python() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    python.is_file().then_some(python)
}

pub fn python_ranks_belong_to_the_group() {
    let Some(python) = python() else { return };
    for world in [2, 4] {
        // Ranks 0 and 2 are of this program.
        let ranks = Job::new("mixed", world).of_python(&python, |rank| rank % 2 == 1).run();
        ranks.all_succeed();
        let results: Vec<Results> = (0..world).map(|rank| read(ranks.text(rank))).collect();
        for (rank, result) in results.iter().enumerate() {
            assert_eq!(result.len(), 7);
            assert_eq!(result["total"], vec![(world * (world + 1) / 2) as f64; 3], "rank {rank}");
            assert_eq!(result["disagreed"], [1.0], "rank {rank}");
            for name in ["gathered", "loss"] {
                close(&result[name], &results[1][name], &format!("{name} of rank {rank} of {world}"));
            }
            let before = (rank + world - 1) % world;
            close(
                &result["came"],
                &list(&numbers(before as i64 + 1, 2, before as f64)),
                "what came from the neighbour",
            );
            let reader = ((rank + 1) % world + 1) as f64;
            let expected = numbers(rank as i64 + 1, 2, rank as f64) * (2.0 * reader);
            close(&result["gradient of what went"], &list(&expected), "gradient of what went to the neighbour");
        }
        // The gradient of each rank, once it is averaged, is that of one process.
        let leaf = Tensor::cat(&(0..world).map(|rank| numbers(4, 3, rank as f64)).collect::<Vec<_>>(), 0);
        let leaf = leaf.set_requires_grad(true);
        let target = Tensor::cat(&(0..world).map(targets).collect::<Vec<_>>(), 0);
        CrossEntropyLoss::new().forward(&leaf, &target).backward();
        for (rank, result) in results.iter().enumerate() {
            let expected = leaf.grad().narrow(0, 4 * rank as i64, 4) * world as f64;
            close(&result["gradient"], &list(&expected), &format!("gradient of rank {rank} of {world}"));
        }
    }
}

pub fn losses_are_those_of_python_over_ranks() {
    let Some(python) = python() else { return };
    for world in [2, 4] {
        let expected = Job::new("oracle", world).of_python(&python, |_| true).run();
        expected.all_succeed();
        let actual = Job::new("oracle", world).run();
        actual.all_succeed();
        for rank in 0..world {
            let (actual, expected) = (read(actual.text(rank)), read(expected.text(rank)));
            assert_eq!(actual.len(), 40);
            assert!(actual.keys().eq(expected.keys()), "{:?} {:?}", actual.keys(), expected.keys());
            for (name, numbers) in &actual {
                close(numbers, &expected[name], &format!("{name}, rank {rank} of {world}"));
            }
        }
    }
}

pub fn torchrun_starts_ranks() {
    let Some(python) = python() else { return };
    let output = Command::new(python)
        .args(["-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", "--master-port"])
        .arg(super::job::free_port().to_string())
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "rank", "--nocapture"])
        .env("TCH_LOSSES_TEST_CASE", "collectives")
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    // Lines of two ranks may be mixed up, but not this part of one.
    assert_eq!(text(&output.stdout).matches("1 passed").count(), 2);
}

/// The line of JSON in what a rank printed.
fn read(text: &str) -> Results {
    let line = text.lines().find(|line| line.starts_with('{'));
    serde_json::from_str(line.unwrap_or_else(|| panic!("no results in {text}"))).unwrap()
}

#[track_caller]
fn close(actual: &[f64], expected: &[f64], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let size = expected.iter().fold(1.0, |size: f64, number| size.max(number.abs()));
    for (a, b) in actual.iter().zip(expected) {
        assert!((a - b).abs() <= 1e-12 * size, "{what}: {actual:?}, expected {expected:?}");
    }
}

fn list(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.detach().to_kind(Kind::Double).flatten(0, -1).contiguous()).unwrap()
}

/// The same in every program.
fn numbers(rows: i64, columns: i64, shift: f64) -> Tensor {
    let positions = Tensor::arange(rows * columns, (Kind::Double, Device::Cpu));
    (positions * 0.7 + shift).sin().view([rows, columns])
}

fn targets(rank: usize) -> Tensor {
    Tensor::from_slice(&[rank as i64 % 3, -100, 1, if rank % 2 == 1 { -100 } else { 2 }])
}

fn mixed(group: &Group) -> Results {
    let rank = group.rank();
    let ranks = Tensor::full([3], rank as i64 + 1, (Kind::BFloat16, Device::Cpu));
    let total = group.f_all_reduce(&ranks, Reduce::Sum).unwrap();
    let gathered = group.f_all_gather(&numbers(rank as i64 + 1, 2, rank as f64)).unwrap();
    let logits = numbers(4, 3, rank as f64).set_requires_grad(true);
    // Ranks of this program say which loss it is; those of Python do not.
    let loss = CrossEntropyLoss::new().f_mean_over_ranks(&logits, &targets(rank), group).unwrap();
    loss.backward();
    group.f_barrier().unwrap();
    let leaf = numbers(rank as i64 + 1, 2, rank as f64).set_requires_grad(true);
    let came = group.f_shift_data_parallel(&leaf, 1).unwrap();
    (came.square().sum(None) * (rank as f64 + 1.0)).backward();
    let size = if rank == 0 { 3 } else { 2 };
    let disagreed = group.f_all_reduce(&Tensor::zeros([size], (Kind::Float, Device::Cpu)), Reduce::Sum);
    let disagreed = f64::from(u8::from(matches!(disagreed, Err(LossError::Ranks { .. }))));
    let results = [
        ("total", list(&total)),
        ("gathered", list(&gathered)),
        ("loss", list(&loss)),
        ("gradient", list(&logits.grad())),
        ("disagreed", vec![disagreed]),
        ("came", list(&came)),
        ("gradient of what went", list(&leaf.grad())),
    ];
    results.into_iter().map(|(name, numbers)| (name.to_owned(), numbers)).collect()
}

fn oracle(group: &Group) -> Results {
    let (rank, rows) = (group.rank() as i64, 6);
    let labels = (Tensor::arange(rows, (Kind::Int64, Device::Cpu)) + rank).remainder(3);
    let clip = |local: bool, through: bool| {
        let options = GlobalBatch::new().local_loss(local).gather_with_grad(through);
        move |a: &Tensor, b: &Tensor| ClipLoss::new().f_forward_over_ranks(a, b, 3.0, group, options)
    };
    let siglip = |a: &Tensor, b: &Tensor| SigLipLoss::new().f_forward_over_ranks(a, b, 3.0, -2.0, group);
    let neighbours = |a: &Tensor, b: &Tensor| SigLipLoss::new().f_forward_over_neighbours(a, b, 3.0, -2.0, group);
    type Of<'a> = &'a dyn Fn(&Tensor, &Tensor) -> Result<Tensor, LossError>;
    let mut store = nn::VarStore::new(Device::Cpu);
    let proxies = ProxyAnchorLoss::new(store.root(), 3, 4, ProxyAnchor::new());
    store.double();
    tch::no_grad(|| proxies.proxies().shallow_clone().copy_(&numbers(3, 4, 7.0)));
    let views = NtXentLoss::new().temperature(0.25);
    let samples = Tensor::arange(rows, (Kind::Int64, Device::Cpu)) + rank * rows;
    let losses: [(&str, Of); 14] = [
        ("clip", &clip(false, true)),
        ("clip local", &clip(true, true)),
        ("clip, own gradients", &clip(false, false)),
        ("clip local, own gradients", &clip(true, false)),
        ("siglip", &siglip),
        ("siglip, reduced", &siglip),
        ("siglip neighbours", &neighbours),
        ("siglip neighbours, both ways", &neighbours),
        ("barlow twins", &|a, b| BarlowTwinsLoss::new().f_forward_over_ranks(a, b, group)),
        ("nt xent of views", &|a, b| {
            let both = |tensor: &Tensor, other: &Tensor| Tensor::cat(&[tensor, other], 0);
            views.f_forward_over_ranks(&both(a, b), &both(&samples, &samples), group)
        }),
        ("proxy anchor", &|a, _| proxies.f_whole_over_ranks(a, &labels, group)),
        ("vicreg", &|a, b| VicRegLoss::new().f_forward_over_ranks(&(a * 0.1), &(b * 0.1), group)),
        ("sup con", &|a, _| SupConLoss::new().f_forward_over_ranks(a, &labels, group)),
        ("nt xent", &|a, _| NtXentLoss::new().f_forward_over_ranks(a, &labels, group)),
    ];
    let average =
        |tensor: &Tensor| list(&(group.f_all_reduce(tensor, Reduce::Sum).unwrap() / group.world_size() as f64));
    let mut results = Results::new();
    for (name, loss) in losses {
        let weight = numbers(5, 4, 9.0).set_requires_grad(true);
        let embed = |shift: i64| numbers(rows, 5, shift as f64).matmul(&weight);
        let value = loss(&embed(3 * rank), &embed(3 * rank + 1)).unwrap();
        value.backward();
        results.insert(name.to_owned(), average(&value.detach()));
        results.insert(format!("gradient of {name}"), average(&weight.grad()));
    }
    dino(group, &average, &mut results);
    vocabulary(group, &mut results);
    results
}

fn dino(group: &Group, average: &dyn Fn(&Tensor) -> Vec<f64>, results: &mut Results) {
    let mut store = nn::VarStore::new(Device::Cpu);
    let config = DinoConfig::new().teacher_temp(0.5).student_temp(0.25).center_momentum(0.6);
    let mut criterion = DinoLoss::new(store.root(), 5, config);
    store.double();
    for step in 0..3 {
        let weight = numbers(3, 5, 2.0).set_requires_grad(true);
        let views = [0, 1, 2, 3].map(|view| numbers(4, 3, (10 * step + 4 * group.rank() + view) as f64));
        let teacher = [0, 1].map(|view: usize| views[view].matmul(&numbers(3, 5, 1.0)));
        let student = views.map(|view| view.matmul(&weight));
        let loss = criterion.f_forward_over_ranks(&teacher, &student, group).unwrap();
        loss.backward();
        criterion.f_update_center_over_ranks(&teacher, group).unwrap();
        results.insert(format!("dino {step}"), average(&loss.detach()));
        results.insert(format!("gradient of dino {step}"), average(&weight.grad()));
        results.insert(format!("centre of dino {step}"), list(criterion.center()));
    }
}

fn vocabulary(group: &Group, results: &mut Results) {
    let own = 8 / group.world_size() as i64;
    let part = |whole: Tensor| whole.narrow(0, own * group.rank() as i64, own).copy();
    let input = (numbers(7, 5, 1.0) * 9.0).set_requires_grad(true);
    let layer = part(numbers(8, 5, 2.0)).set_requires_grad(true);
    let bias = part(numbers(1, 8, 3.0).get(0));
    let target = Tensor::from_slice(&[0_i64, 7, 3, -100, 5, 2, 6]);
    let loss = VocabParallelCrossEntropy::new()
        .weight(numbers(1, 8, 4.0).get(0).abs() + 0.1)
        .label_smoothing(0.1)
        .z_loss(0.01)
        .soft_cap(4.0)
        .chunking(Chunking::Rows(3))
        .f_forward_linear(&input, &layer, &target, Some(&bias), group)
        .unwrap();
    loss.backward();
    results.insert("vocabulary".into(), list(&loss));
    results.insert("gradient of vocabulary: input".into(), list(&input.grad()));
    results.insert("gradient of vocabulary: layer".into(), list(&group.f_all_gather(&layer.grad()).unwrap()));
}
