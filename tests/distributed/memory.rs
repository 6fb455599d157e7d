//! What ranks hold in memory, at most.

use tch::{Device, Kind, Tensor};
use tch_losses::distributed::{Group, VocabParallelCrossEntropy};
use tch_losses::{Chunking, SigLipLoss};

use super::common::status;
use super::job::{Job, group};

/// Runs the case of this name, if there is one.
pub fn run(case: &str) -> bool {
    match case {
        "memory-vocabulary" => vocabulary(&group(60)),
        "memory-neighbours" => neighbours(&group(60)),
        _ => return false,
    }
    true
}

/// The most bytes that a call has at a time, besides what there was before. What is freed goes back to the system at
/// once, because `Job` asks malloc for that.
fn peak(call: impl Fn()) -> f64 {
    call();
    // The peak begins anew: see proc_pid_clear_refs(5).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS:");
    call();
    status("VmHWM:") - before
}

const CLASSES: i64 = 1 << 15;
const FEATURES: i64 = 16;
const ROWS: i64 = 2048;
/// The bytes of all logits.
const LOGITS: f64 = (ROWS * CLASSES * 4) as f64;

/// What a rank measures.
fn print(numbers: &[f64]) {
    println!("{}", serde_json::to_string(numbers).unwrap());
}

fn read(text: &str) -> Vec<f64> {
    let line = text.lines().find(|line| line.starts_with('['));
    serde_json::from_str(line.unwrap_or_else(|| panic!("no numbers in {text}"))).unwrap()
}

fn vocabulary(group: &Group) {
    let options = (Kind::Float, Device::Cpu);
    tch::manual_seed(1);
    let own = CLASSES / group.world_size() as i64;
    let layer = Tensor::randn([own, FEATURES], options).set_requires_grad(true);
    let input = Tensor::randn([2 * ROWS, FEATURES], options).set_requires_grad(true);
    let target = Tensor::randint(CLASSES, [2 * ROWS], (Kind::Int64, Device::Cpu));
    let of = |criterion: VocabParallelCrossEntropy, rows: i64| {
        let (input, target) = (input.narrow(0, 0, rows), target.narrow(0, 0, rows));
        peak(|| {
            let loss = criterion.f_forward_linear(&input, &layer, &target, None, group).unwrap();
            drop(Tensor::run_backward(&[loss], &[&layer], false, false));
        })
    };
    let chunks = || VocabParallelCrossEntropy::new().label_smoothing(0.1).chunking(Chunking::Rows(256));
    print(&[of(VocabParallelCrossEntropy::new(), ROWS), of(chunks(), ROWS), of(chunks(), 2 * ROWS)]);
}

pub fn memory_of_spread_classes_is_that_of_a_chunk_of_the_own_classes() {
    let measured = [1, 2, 4].map(|world| {
        let ranks = Job::new("memory-vocabulary", world).run();
        ranks.all_succeed();
        let of_ranks: Vec<Vec<f64>> = (0..world).map(|rank| read(ranks.text(rank))).collect();
        [0, 1, 2].map(|place| of_ranks.iter().map(|numbers| numbers[place]).fold(0.0, f64::max))
    });
    println!("{measured:?} beside {LOGITS} bytes of all logits");
    for (world, [at_once, chunks, of_more_rows]) in [1.0, 2.0, 4.0].into_iter().zip(measured) {
        // The measure sees logits that are computed at once.
        assert!(at_once > LOGITS / world, "{at_once} bytes at once, {world} ranks");
        assert!(chunks < 0.3 * LOGITS / world, "{chunks} bytes in chunks, {world} ranks");
        assert!(of_more_rows < 1.3 * chunks, "{of_more_rows} bytes of twice the rows, {chunks} of the rows");
    }
    let [one, two, four] = measured.map(|numbers| numbers[1]);
    assert!(two < 0.7 * one && four < 0.4 * one, "{one}, {two}, {four} bytes on 1, 2 and 4 ranks");
}

const IMAGES: i64 = 1024;

fn neighbours(group: &Group) {
    let embed = || Tensor::randn([IMAGES, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let (image, text) = (embed(), embed());
    let of = |over_neighbours: bool| {
        peak(|| {
            let loss = SigLipLoss::new();
            let loss = match over_neighbours {
                true => loss.f_forward_over_neighbours(&image, &text, 2.0, -3.0, group),
                false => loss.f_forward_over_ranks(&image, &text, 2.0, -3.0, group),
            };
            drop(Tensor::run_backward(&[loss.unwrap()], &[&image, &text], false, false));
        })
    };
    print(&[of(false), of(true)]);
}

pub fn memory_of_neighbours_is_that_of_one_block() {
    let ranks = Job::new("memory-neighbours", 4).run();
    ranks.all_succeed();
    for rank in 0..4 {
        let [gathered, passed] = read(ranks.text(rank))[..] else { panic!("two numbers") };
        println!("rank {rank}: {gathered} bytes of all texts, {passed} of one rank's at a time");
        assert!(gathered > (4 * IMAGES * IMAGES * 4) as f64, "{gathered} bytes: the measure sees all logits");
        assert!(passed < 0.4 * gathered, "{passed} bytes beside {gathered}");
    }
}
