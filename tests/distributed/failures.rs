//! Ranks that disagree, are late, die or are not there.

use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use tch_losses::distributed::{GlobalBatch, Group, Reduce, VocabParallelCrossEntropy};
use tch_losses::{
    BarlowTwinsLoss, BatchTripletMarginLoss, Chunking, ClipLoss, ContrastiveLoss, CrossEntropyLoss, DinoConfig,
    DinoLoss, EmbeddingLoss, Loss, LossError, SigLipLoss, SupConLoss, VicRegLoss, WeightedSum,
};

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
        "again" => again(),
        "small" => small(),
        "options" => options(),
        "stopped-0" => stopped(),
        "killed-in-shift" => killed_in_shift(),
        "killed-in-backward" => killed_in_backward(),
        "late-in-shift" => late_in_shift(),
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
    let by = if first { 1 } else { -1 };
    disagreement(group.f_shift(&x, by), &["rank 0: shift by 1 of Float [2]", "shift by -1 of Float [2]"]);
    disagreement(group.f_shift(&ones(&[2, if first { 3 } else { 4 }], Kind::Float), 1), &["[2, 3]", "[2, 4]"]);
    works();
    // What is gathered may differ in its first dimension alone.
    disagreement(group.f_all_gather(&ones(&[2, if first { 3 } else { 4 }], Kind::Float)), &["[2, 3]", "[2, 4]"]);
    disagreement(group.f_all_gather(&ones(if first { &[2] } else { &[2, 1] }, Kind::Float)), &["[2]", "[2, 1]"]);
    works();
    // A gradient on some ranks only: the others would not come to the backward pass.
    let leaf = ones(&[2], Kind::Float).set_requires_grad(first);
    disagreement(group.f_sum_data_parallel(&leaf), &["with a gradient"]);
    works();
    disagreement(group.f_copy_replicated(&leaf), &["copy_replicated of Float [2], with a gradient"]);
    let linear = |input: &Tensor| {
        let (layer, target) = (ones(&[1, 2], Kind::Double).set_requires_grad(true), Tensor::from_slice(&[0_i64, 1]));
        VocabParallelCrossEntropy::new().f_forward_linear(input, &layer, &target, None, &group)
    };
    disagreement(linear(&ones(&[2, 2], Kind::Double).set_requires_grad(first)), &["with a gradient", "VocabParallel"]);
    works();
    // Backward passes in another order, which would add up gradients of different tensors.
    let [a, b] = [0, 1].map(|_| ones(&[2], Kind::Double).set_requires_grad(true));
    for collective in [Group::f_sum_data_parallel, Group::f_copy_replicated] {
        let sums = [&a, &b].map(|leaf| collective(&group, leaf).unwrap().sum(None));
        let [one, two] = if first { [0, 1] } else { [1, 0] };
        for place in [one, two] {
            let error = sums[place].f_backward().unwrap_err().to_string();
            assert!(error.contains("ranks disagree") && error.contains("backward of call"), "{error}");
        }
        works();
    }
    // Further than there are ranks, and longer than libtorch can wait.
    for by in [i64::MAX, i64::MIN] {
        let leaf = ones(&[2], Kind::Double).set_requires_grad(true);
        group.f_shift_data_parallel(&leaf, by).unwrap().sum(None).f_backward().unwrap();
        assert_eq!(leaf.grad(), ones(&[2], Kind::Double));
    }
    super::job::group(u64::MAX).f_barrier().unwrap();
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

/// A little of everything, on two ranks, for scripts/memcheck: numbers are compared elsewhere.
fn small() {
    let group = group(200);
    let first = group.rank() == 0;
    for kind in [Kind::Double, Kind::Half, Kind::Int16] {
        let x = ones(&[3 + i64::from(first), 2], kind);
        assert_eq!(group.f_all_gather(&x).unwrap().size(), [7, 2]);
        assert_eq!(group.f_shift(&x, 1).unwrap().size(), [3 + i64::from(!first), 2]);
        let x = x.narrow(0, 0, 2);
        let sum = group.f_all_reduce(&x, Reduce::Sum).unwrap();
        assert_eq!(sum, group.f_broadcast(&sum, 1).unwrap());
    }
    let x = Tensor::arange(12, (Kind::Double, Device::Cpu)).view([3, 4]).sin().set_requires_grad(true);
    let target = Tensor::from_slice(&[0_i64, 5, -100]);
    let chunks = VocabParallelCrossEntropy::new().label_smoothing(0.1).chunking(Chunking::Rows(2));
    for loss in [
        ClipLoss::new().f_forward_over_ranks(&x, &x, 1.0, &group, GlobalBatch::new()),
        SigLipLoss::new().f_forward_over_neighbours(&x, &x, 1.0, 0.0, &group),
        VicRegLoss::new().f_forward_over_ranks(&x, &x.cos(), &group),
        chunks.f_forward_linear(&x, &x, &target, None, &group),
    ] {
        loss.unwrap().f_backward().unwrap();
    }
    disagreement(group.f_shift(&x.narrow(1, 0, 2 + i64::from(first)), 1), &["[3, 3]", "[3, 2]"]);
    let loss = ContrastiveLoss::new().neg_margin(if first { 0.2 } else { 0.3 });
    let labels = Tensor::from_slice(&[0_i64, 0, 1]);
    disagreement(loss.f_forward_over_ranks(&x, &labels, &group), &["ContrastiveLoss"]);
    let refused = group.f_or_refuse(if first { Err(LossError::custom("an error")) } else { Ok(()) });
    if first {
        assert!(refused.is_err());
    } else {
        disagreement(group.f_barrier(), &["rank 0: an error of its own"]);
        // Leaves without a word.
        return;
    }
    assert!(matches!(group.f_barrier(), Err(LossError::Group { .. })));
    assert!(group.f_shift(&x, 1).unwrap_err().to_string().contains("the group is broken"));
}

/// Options that differ between ranks, of which shapes say nothing.
fn options() {
    let group = group(20);
    let (rank, first) = (group.rank(), group.rank() == 0);
    let x = Tensor::arange(8, (Kind::Double, Device::Cpu)).view([2, 4]).sin();
    let labels = Tensor::from_slice(&[0_i64, 1]);
    let pick = |a: f64, b: f64| if first { a } else { b };
    let others = if group.world_size() == 2 { "rank 1: " } else { "ranks 1, 2, 3: " };
    let works = || group.f_barrier().unwrap();

    let margin = |margin: f64| ContrastiveLoss::new().neg_margin(margin);
    let result = margin(pick(0.2, 0.3)).f_forward_over_ranks(&x, &labels, &group);
    let own = if first { "neg_margin: 0.2" } else { "neg_margin: 0.3" };
    disagreement(result, &["rank 0: ContrastiveLoss with the options", others, "the loss of this rank is", own]);
    works();
    let _ = margin(0.2).f_forward_over_ranks(&x, &labels, &group).unwrap();
    // Losses.
    let triplets = BatchTripletMarginLoss::new();
    let loss: &dyn EmbeddingLoss = if first { &triplets } else { &SupConLoss::new() };
    disagreement(loss.f_forward_over_ranks(&x, &labels, &group), &["BatchTripletMarginLoss", "SupConLoss"]);
    // Means, and the numbers of a tensor among the options.
    let entropy = CrossEntropyLoss::new().label_smoothing(pick(0.1, 0.0));
    disagreement(entropy.f_mean_over_ranks(&x, &labels, &group), &["rank 0: CrossEntropyLoss with the options"]);
    let weighted = |last: f32| CrossEntropyLoss::new().weight(Tensor::from_slice(&[1.0, 2.0, 3.0, last]));
    disagreement(weighted(pick(4.0, 5.0) as f32).f_mean_over_ranks(&x, &labels, &group), &["CrossEntropyLoss"]);
    let _ = weighted(4.0).f_mean_over_ranks(&x, &labels, &group).unwrap();
    // Factors of a sum, and options of its terms.
    let sum = |factor: f64, smoothing: f64| {
        WeightedSum::new().term("entropy", factor, CrossEntropyLoss::new().label_smoothing(smoothing))
    };
    for sum in [sum(pick(1.0, 2.0), 0.0), sum(1.0, pick(0.1, 0.2))] {
        disagreement(sum.f_whole_over_ranks(&x, &labels, &group), &["WeightedSum with the options"]);
    }
    // Each of the losses that has a method of its own.
    let clip = ClipLoss::new().label_smoothing(pick(0.1, 0.0));
    disagreement(clip.f_forward_over_ranks(&x, &x, 1.0, &group, GlobalBatch::new()), &["ClipLoss"]);
    let batch = GlobalBatch::new().local_loss(first);
    disagreement(ClipLoss::new().f_forward_over_ranks(&x, &x, 1.0, &group, batch), &["ClipLoss"]);
    let siglip = SigLipLoss::new().normalize(first);
    disagreement(siglip.f_forward_over_ranks(&x, &x, 1.0, 0.0, &group), &["SigLipLoss"]);
    disagreement(siglip.f_forward_over_neighbours(&x, &x, 1.0, 0.0, &group), &["SigLipLoss"]);
    let twins = BarlowTwinsLoss::new().lambda_param(pick(0.1, 0.2));
    disagreement(twins.f_forward_over_ranks(&x, &x, &group), &["BarlowTwinsLoss"]);
    let vicreg = VicRegLoss::new().nu_param(pick(0.1, 0.2));
    disagreement(vicreg.f_forward_over_ranks(&x, &x, &group), &["VicRegLoss"]);
    let vocabulary = VocabParallelCrossEntropy::new().z_loss(pick(0.1, 0.2));
    disagreement(vocabulary.f_forward(&x, &labels, &group), &["VocabParallelCrossEntropy", others]);
    let chunks = VocabParallelCrossEntropy::new().chunking(Chunking::Rows(1 + rank.min(1) as i64));
    disagreement(chunks.f_forward_linear(&x, &x, &labels, None, &group), &["VocabParallelCrossEntropy"]);
    let store = tch::nn::VarStore::new(Device::Cpu);
    let mut dino = DinoLoss::new(store.root(), 4, DinoConfig::new().center_momentum(pick(0.5, 0.6)));
    disagreement(dino.f_update_center_over_ranks(&[&x], &group), &["DinoLoss"]);
    disagreement(dino.f_forward_over_ranks(&[&x], &[&x, &x], &group), &["DinoLoss"]);
    // An error of one rank's own, and a loss of the user's.
    let refused = SupConLoss::new().f_forward_over_ranks(&if first { x.get(0) } else { x.copy() }, &labels, &group);
    if first {
        assert!(matches!(refused, Err(LossError::Shape { .. })), "{refused:?}");
    } else {
        disagreement(refused, &["rank 0: an error of its own before the call"]);
    }
    let text = format!("Mine {{ margin: {} }}", pick(0.2, 0.3));
    disagreement(group.for_loss(&text).f_sum_data_parallel(&x), &["Mine with the options", &text]);
    works();
}

/// Rank 0 goes silent with the store, as a machine that has vanished, and is killed in the end.
fn stopped() {
    let group = group(6);
    let x = ones(&[4], Kind::Double);
    let _ = group.f_all_reduce(&x, Reduce::Sum).unwrap();
    if group.rank() == 0 {
        let id = std::process::id();
        let script = format!("kill -STOP {id}; sleep 30; kill -9 {id}");
        std::process::Command::new("sh").args(["-c", &script]).status().unwrap();
        unreachable!("it is killed");
    }
    std::thread::sleep(Duration::from_secs(1));
    let start = Instant::now();
    // By the timeout of the group, and what the store is waited for.
    failure(group.f_all_reduce(&x, Reduce::Sum), &[0]);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    let message = failure(group.f_barrier(), &[0]);
    assert!(message.contains("the group is broken since an earlier call"), "{message}");
    assert!(message.contains("does not answer"), "{message}");
}

/// Kills this process.
fn die() -> ! {
    let id = std::process::id().to_string();
    std::process::Command::new("kill").args(["-9", &id]).status().unwrap();
    unreachable!()
}

/// A rank dies between what ranks tell each other and the exchange itself, as far as one can say: right before it.
fn killed_in_shift() {
    let group = group(20);
    let dies = group.world_size() - 1;
    let x = ones(&[1 << 20], Kind::Double);
    let _ = group.f_shift(&x, 1).unwrap();
    if group.rank() == dies {
        die();
    }
    let start = Instant::now();
    failure(group.f_shift(&x, 1), &[dies]);
    assert!(start.elapsed() < Duration::from_secs(15), "long before the timeout: {:?}", start.elapsed());
    failure(group.f_barrier(), &[dies]);
}

/// A rank dies after the forward pass: the backward pass is a collective, too.
fn killed_in_backward() {
    let group = group(20);
    let dies = group.world_size() - 1;
    let x = ones(&[3, 4], Kind::Double).set_requires_grad(true);
    let loss = SigLipLoss::new().f_forward_over_neighbours(&x, &x, 1.0, 0.0, &group).unwrap();
    if group.rank() == dies {
        die();
    }
    let start = Instant::now();
    let error = loss.f_backward().unwrap_err().to_string();
    assert!(error.contains("shift failed") && error.contains(&format!("no sign of rank {dies}")), "{error}");
    assert!(start.elapsed() < Duration::from_secs(15), "long before the timeout: {:?}", start.elapsed());
}

fn late_in_shift() {
    let group = group(5);
    let late = group.world_size() - 1;
    if group.rank() == late {
        std::thread::sleep(Duration::from_secs(14));
        let error = group.f_shift(&ones(&[4], Kind::Double), 1).unwrap_err();
        assert!(matches!(error, LossError::Group { .. }), "{error}");
        return;
    }
    let start = Instant::now();
    failure(group.f_shift(&ones(&[4], Kind::Double), 1), &[late]);
    assert!(start.elapsed() < Duration::from_secs(13), "{:?}", start.elapsed());
    if group.rank() == 0 {
        // The store stays for the late one.
        std::thread::sleep(Duration::from_secs(9));
    }
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
    assert!(seen || !silent.is_empty() || message.contains("onnect"), "{message}");
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

/// Ranks that have failed to meet meet the next time: what has failed is not counted, or counted by all of them.
fn again() {
    let (address, rank) = address();
    let group = |seconds| Group::new(&address, rank, 3, Duration::from_secs(seconds));
    if rank == 0 {
        std::thread::sleep(Duration::from_secs(5));
    } else {
        let message = failure(group(1), &[0]);
        assert!(message.contains("nothing answers there"), "{message}");
    }
    let first = group(30).unwrap();
    first.f_barrier().unwrap();
    if rank == 2 {
        std::thread::sleep(Duration::from_secs(7));
    } else {
        let message = failure(group(2), &[2]);
        assert!(message.contains("not all ranks came within"), "{message}");
    }
    let third = group(30).unwrap();
    third.f_barrier().unwrap();
    first.f_barrier().unwrap();
    // New groups at once, one after the other: the store goes and comes with rank 0.
    drop((first, third));
    for _ in 0..3 {
        group(30).unwrap().f_barrier().unwrap();
    }
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
        die();
    }
    let start = Instant::now();
    // Also where the store is gone with rank 0.
    let silent = &[dies];
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
