//! The engines of CUDA, whose kernels run on the CPU, against stored results of PyTorch.

mod common;

use std::collections::BTreeMap;

use common::Golden;
use parity::adapters;
use parity::compare::Verdict;
use parity::eval::{evaluate, run_adapter};
use parity::jobs::run_all;
use parity::results::Results;
use tch::Device;
use tch_losses::{emulated_cuda, emulated_launches};

/// Losses that are tensor operations on CUDA in all of their cases, and why.
const COMPOSITE: &[(&str, &str)] = &[
    ("AdaptiveLogSoftmaxWithLoss", CHOSEN),
    ("CTCLoss", OWN),
    ("CpoLoss", FEW),
    ("CrossEntropyLoss (timm, soft targets)", TARGETS),
    ("DinoLoss", PRODUCTS),
    ("DpoLoss", FEW),
    ("HausdorffDtLoss", HOST),
    ("HausdorffDtLoss (formula)", HOST),
    ("HausdorffDtLoss (log)", HOST),
    ("IpoLoss", FEW),
    ("KtoLoss", FEW),
    ("LovaszHingeLoss (formula)", SORTED),
    ("LovaszHingeLoss (kornia)", SORTED),
    ("LovaszHingeLoss, LovaszSoftmaxLoss (smp)", SORTED),
    ("LovaszSoftmaxLoss (formula)", SORTED),
    ("LovaszSoftmaxLoss (kornia)", SORTED),
    ("LovaszSoftmaxLoss (probabilities, smp)", SORTED),
    ("OrpoLoss", FEW),
    ("SigLipLoss", PRODUCTS),
    ("SigLipLoss (open_clip)", PRODUCTS),
    ("SimpoLoss", FEW),
];

const CHOSEN: &str = "matrix products of the rows of each cluster, which are chosen as in PyTorch";
const OWN: &str = "libtorch has kernels for it";
const FEW: &str = "a few operations on one number of each answer";
const TARGETS: &str = "its cases ask for the gradient of the probabilities, too";
const PRODUCTS: &str = "matrix products, and a few operations on their results; it has no engine on the CPU either";
const HOST: &str = "distances to the border of a mask are computed by the host";
const SORTED: &str = "a sort";

/// The results of every `jobs`-th case from `part` on, and how many kernels each loss took.
fn part_of(part: usize, jobs: usize) -> (Results, BTreeMap<&'static str, usize>) {
    let golden = Golden::read();
    let mut launches = BTreeMap::new();
    let results = emulated_cuda(|| {
        let cases = golden.cases.iter().skip(part).step_by(jobs).map(|case| {
            let before = emulated_launches();
            let results = evaluate([case], &golden.tensors, Device::Cpu, &run_adapter, || ()).unwrap();
            let name = adapters::find(&case.reference).map_or("", |adapter| adapter.name);
            *launches.entry(name).or_default() += emulated_launches() - before;
            results
        });
        Results::merge(cases.collect::<Vec<_>>())
    });
    (results, launches)
}

#[test]
fn the_engines_of_cuda_equal_the_golden_results() {
    const JOBS: usize = 2;
    let parts = run_all(0..JOBS, |part| Ok(part_of(part, JOBS))).unwrap();
    let mut launches = BTreeMap::<&str, usize>::new();
    parts.iter().flat_map(|(_, of_part)| of_part).for_each(|(name, count)| *launches.entry(name).or_default() += count);
    let results = Results::merge(parts.into_iter().map(|(results, _)| results));

    let golden = Golden::read();
    let failed = golden.compare(&results).into_iter().filter_map(|(case, verdict)| match verdict {
        Verdict::Failed(reason) => Some((&case.id, reason)),
        _ => None,
    });
    let failed: Vec<_> = failed.collect();
    assert!(failed.is_empty(), "{} of {} cases differ: {failed:#?}", failed.len(), golden.cases.len());

    let composite: Vec<&str> = launches.iter().filter(|(_, count)| **count == 0).map(|(name, _)| *name).collect();
    let listed: Vec<&str> = COMPOSITE.iter().map(|(name, _)| *name).collect();
    assert_eq!(composite, listed, "losses without a kernel");
}
