//! What losses over a batch need beyond their arguments, as the peak of the process's resident memory.
//!
//! There is one test, because resident memory is of the process and not of a test.
#![cfg(target_os = "linux")]

mod common;

use tch::{Device, Kind, Tensor};
use tch_losses::*;

use common::status;

const EMBEDDINGS: i64 = 2048;
const DIMENSIONS: i64 = 128;
/// A cube of the batch in single precision would take 32 GiB.
const LIMIT: f64 = 1e9;

/// How many bytes are resident at most while `loss` is computed and differentiated.
fn peak(loss: &dyn Loss, embeddings: &Tensor, labels: &Tensor) -> f64 {
    // From here on the peak is counted anew.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let value = loss.forward(embeddings, labels);
    let gradient = Tensor::run_backward(&[&value], &[embeddings], false, false).remove(0);
    assert!(bool::try_from(gradient.isfinite().all()).unwrap());
    status("VmHWM:")
}

#[test]
fn no_loss_needs_a_cube_of_the_batch() {
    let embeddings = Tensor::randn([EMBEDDINGS, DIMENSIONS], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    // Classes of eight.
    let labels = Tensor::arange(EMBEDDINGS, (Kind::Int64, Device::Cpu)).remainder(EMBEDDINGS / 8);
    let triplets = BatchTripletMarginLoss::new;
    let losses: Vec<(&str, Box<dyn Loss>)> = vec![
        ("ContrastiveLoss", Box::new(ContrastiveLoss::new())),
        ("SNR", Box::new(ContrastiveLoss::new().distance(EmbeddingDistance::signal_to_noise()))),
        ("NtXentLoss", Box::new(NtXentLoss::new())),
        ("SupConLoss", Box::new(SupConLoss::new())),
        ("MultiSimilarityLoss", Box::new(MultiSimilarityLoss::new())),
        ("CircleLoss", Box::new(CircleLoss::new())),
        ("NPairsLoss", Box::new(NPairsLoss::new())),
        ("LiftedStructureLoss", Box::new(LiftedStructureLoss::new())),
        ("GeneralizedLiftedStructureLoss", Box::new(GeneralizedLiftedStructureLoss::new())),
        ("all triplets", Box::new(triplets())),
        ("semi-hard triplets", Box::new(triplets().mining(TripletMining::SemiHard))),
        ("hardest triplets", Box::new(triplets().mining(TripletMining::BatchHard))),
        ("smooth triplets", Box::new(triplets().smooth_loss(true).swap(true))),
    ];
    // Of the whole of them, because memory of one that is free stays resident and serves the next.
    let before = status("VmRSS:");
    for (name, loss) in losses {
        let bytes = peak(&*loss, &embeddings, &labels) - before;
        println!("{name} needs {:.0} MB", bytes / 1e6);
        assert!(bytes < LIMIT, "{name} needs {:.0} MB", bytes / 1e6);
    }
}
