//! Ranks that disagree, are late, die or are not there.

use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use tch_losses::distributed::{Group, Reduce};
use tch_losses::{CrossEntropyLoss, EmbeddingLoss, Loss, LossError, SupConLoss};

use super::job::group;

/// Runs the case of this name, if there is one.
pub fn run(case: &str) -> bool {
    match case {
        "disagree" => disagree(),
        "refuse" => refuse(),
        "few" => few(),
        "taken" => taken(),
        "counts" => counts(),
        "same" => same(),
        "killed" => killed(|group| group.world_size() - 1),
        "killed-0" => killed(|_| 0),
        "late" => late(),
        "barrier" => barrier(),
        _ => return false,
    }
    true
}

fn ones(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::ones(shape, (kind, Device::Cpu))
}

#[track_caller]
fn disagreement<T: std::fmt::Debug>(result: Result<T, LossError>, words: &[&str]) {
    let error = result.unwrap_err();
    assert!(matches!(error, LossError::Ranks { .. }), "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{error} lacks {word:?}");
    }
}

#[track_caller]
fn failure<T: std::fmt::Debug>(result: Result<T, LossError>, expected: &[usize]) -> String {
    match result.unwrap_err() {
        LossError::Group { silent, message, .. } if silent == expected => message,
        other => panic!("{other:?}, expected silent ranks {expected:?}"),
    }
}

fn disagree() {
    let group = group(20);
    let (first, world) = (group.rank() == 0, group.world_size());
    let sum = |tensor: &Tensor| group.f_all_reduce(tensor, Reduce::Sum);
    let works = || assert_eq!(sum(&ones(&[2], Kind::Float)).unwrap().double_value(&[1]), world as f64);
    let others = if world == 2 { "rank 1: " } else { "ranks 1, 2, 3: " };

    // Sizes, and shapes of one size.
    disagreement(
        sum(&ones(&[if first { 4 } else { 5 }], Kind::Float)),
        &["rank 0: all_reduce (sum) of Float [4]", others],
    );
    disagreement(sum(&ones(if first { &[6] } else { &[2, 3] }, Kind::Float)), &["Float [6]", "Float [2, 3]"]);
    works();
    // Kinds of one size, which c10d sums up to wrong numbers.
    disagreement(sum(&ones(&[2], if first { Kind::Float } else { Kind::Int })), &["Float [2]", "Int [2]"]);
    works();
    // Operations.
    let reduce = if first { Reduce::Sum } else { Reduce::Max };
    disagreement(group.f_all_reduce(&ones(&[2], Kind::Float), reduce), &["(sum)", "(max)"]);
    let x = ones(&[2], Kind::Float);
    disagreement(if first { sum(&x) } else { group.f_all_gather(&x) }, &["all_reduce", "all_gather"]);
    disagreement(if first { group.f_barrier() } else { sum(&x).map(drop) }, &["rank 0: barrier", "all_reduce"]);
    disagreement(group.f_broadcast(&x, usize::from(!first)), &["broadcast from rank 0", "broadcast from rank 1"]);
    // What is gathered may differ in its first dimension alone.
    disagreement(group.f_all_gather(&ones(&[2, if first { 3 } else { 4 }], Kind::Float)), &["[2, 3]", "[2, 4]"]);
    disagreement(group.f_all_gather(&ones(if first { &[2] } else { &[2, 1] }, Kind::Float)), &["[2]", "[2, 1]"]);
    works();
    // A gradient on some ranks only: the others would not come to the backward pass.
    let leaf = ones(&[2], Kind::Float).set_requires_grad(first);
    disagreement(group.f_sum_data_parallel(&leaf), &["with a gradient"]);
    works();
    // Backward passes in another order.
    let [a, b] = [0, 1].map(|_| ones(&[2], Kind::Double).set_requires_grad(true));
    let sums = [&a, &b].map(|leaf| group.f_sum_data_parallel(leaf).unwrap().sum(None));
    let [one, two] = if first { [0, 1] } else { [1, 0] };
    for place in [one, two] {
        let error = sums[place].f_backward().unwrap_err().to_string();
        assert!(error.contains("ranks disagree") && error.contains("backward of call"), "{error}");
    }
    works();
}

fn refuse() {
    let group = group(20);
    let first = group.rank() == 0;
    let start = Instant::now();
    // One rank has an error of its own, each time in another place.
    let parts = CrossEntropyLoss::new().f_parts(
        &ones(&[2, 3], Kind::Double),
        &if first { Tensor::from_slice(&[0_i64, 7]) } else { Tensor::from_slice(&[0_i64, 1]) },
    );
    let loss = group.f_or_refuse(parts).and_then(|parts| parts.f_over_ranks(&group));
    let words = ["rank 0: an error of its own"];
    if first {
        assert!(matches!(loss, Err(LossError::Value { .. })), "{loss:?}");
    } else {
        disagreement(loss, &words);
    }
    let labels = Tensor::from_slice(if first { &[0_i64, 1, 2][..] } else { &[0, 1] });
    let loss = SupConLoss::new().f_forward_over_ranks(&ones(&[2, 3], Kind::Double), &labels, &group);
    if first {
        assert!(matches!(loss, Err(LossError::Shape { .. })), "{loss:?}");
    } else {
        disagreement(loss, &words);
    }
    let sum = group.f_all_reduce(&if first { Tensor::new() } else { ones(&[2], Kind::Float) }, Reduce::Sum);
    if first {
        assert!(matches!(sum, Err(LossError::Undefined { .. })), "{sum:?}");
    } else {
        disagreement(sum, &words);
    }
    let dimensions: &[i64] = if first { &[1; 17] } else { &[1] };
    let sum = group.f_all_reduce(&ones(dimensions, Kind::Float), Reduce::Sum);
    if first {
        assert!(matches!(sum, Err(LossError::Shape { .. })), "{sum:?}");
    } else {
        disagreement(sum, &words);
    }
    assert!(start.elapsed() < Duration::from_secs(10), "nobody waits");
    group.f_barrier().unwrap();
}

fn few() {
    let start = Instant::now();
    let message = failure(Group::from_env_within(Duration::from_secs(8)), &[2]);
    assert!(message.contains("no sign of rank 2"), "{message}");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

fn taken() {
    let start = Instant::now();
    let error = Group::from_env_within(Duration::from_secs(3)).unwrap_err().to_string();
    assert!(error.contains("store of rank 0 at 127.0.0.1:"), "{error}");
    if std::env::var("RANK").unwrap() == "0" {
        assert!(error.contains("in use"), "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

/// A rank that counts more ranks than the others do.
fn counts() {
    let (address, rank) = address();
    let error = Group::new(&address, rank, 2 + rank, Duration::from_secs(3)).unwrap_err();
    let LossError::Group { message, silent, .. } = error else { panic!("{error}") };
    // The second one sees it, and the first one waits for it.
    let seen = message.contains("ranks, and another rank one of ");
    assert!(seen || silent == [1] || message.contains("Timed out") || message.contains("onnect"), "{message}");
    println!("{}", if seen { "seen" } else { "waited" });
}

/// Two processes of rank 1, besides rank 0.
fn same() {
    let (address, rank) = address();
    // Rank 0 has the store for all of them.
    let first = (rank < 2).then(|| Group::new(&address, rank, 2, Duration::from_secs(20)).unwrap());
    if let Some(group) = &first {
        group.f_barrier().unwrap();
        std::thread::sleep(Duration::from_secs(3));
        return;
    }
    std::thread::sleep(Duration::from_secs(1));
    let error = Group::new(&address, 1, 2, Duration::from_secs(20)).unwrap_err().to_string();
    assert!(error.contains("another process is rank 1, too"), "{error}");
}

/// Where the ranks meet, and the number of this one.
fn address() -> (String, usize) {
    let variable = |name| std::env::var(name).unwrap();
    (format!("{}:{}", variable("MASTER_ADDR"), variable("MASTER_PORT")), variable("RANK").parse().unwrap())
}

fn killed(which: impl Fn(&Group) -> usize) {
    let group = group(20);
    let dies = which(&group);
    let x = ones(&[4], Kind::Double);
    let _ = group.f_all_reduce(&x, Reduce::Sum).unwrap();
    if group.rank() == dies {
        let id = std::process::id().to_string();
        std::process::Command::new("kill").args(["-9", &id]).status().unwrap();
    }
    let start = Instant::now();
    // The store is gone with rank 0, so that nobody can be asked who is there.
    let silent: &[usize] = if dies == 0 { &[] } else { &[dies] };
    failure(group.f_all_reduce(&x, Reduce::Sum), silent);
    assert!(start.elapsed() < Duration::from_secs(15), "long before the timeout: {:?}", start.elapsed());
    // The group is broken from now on, at once.
    let start = Instant::now();
    let message = failure(group.f_barrier(), silent);
    assert!(message.contains("the group is broken since an earlier call"), "{message}");
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(Vec::<f64>::try_from(&x).unwrap(), [1.0; 4], "the caller's tensor is as it was");
}

fn late() {
    let group = group(5);
    let late = group.world_size() - 1;
    let x = ones(&[4], Kind::Double);
    let _ = group.f_all_reduce(&x, Reduce::Sum).unwrap();
    if group.rank() == late {
        std::thread::sleep(Duration::from_secs(14));
        let error = group.f_all_reduce(&x, Reduce::Sum).unwrap_err();
        assert!(matches!(error, LossError::Group { .. }), "{error}");
        return;
    }
    let start = Instant::now();
    failure(group.f_all_reduce(&x, Reduce::Sum), &[late]);
    assert!(start.elapsed() < Duration::from_secs(13), "{:?}", start.elapsed());
    if group.rank() == 0 {
        // The store stays for the late one.
        std::thread::sleep(Duration::from_secs(9));
    }
}

fn barrier() {
    let group = group(5);
    group.f_barrier().unwrap();
    if group.rank() >= 2 {
        std::thread::sleep(Duration::from_secs(14));
        return;
    }
    let message = failure(group.f_barrier(), &[2, 3]);
    assert!(message.contains("no sign of ranks 2, 3"), "{message}");
}
