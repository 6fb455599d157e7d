//! How many kernels a GPU runs for the losses that are computed by tensor operations: no more than for the references.
//!
//! golden/kernels.json has those of the references, which `parity bench --kernels --json` writes.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use parity::bench::kernels::{Counter, Counts, DTYPES, smallest};
use tch::{Device, Kind, Tensor};

/// Why a loss has more kernels than its reference.
const INDICES: &str = "class indices out of range are looked for; PyTorch's kernels end all CUDA work of the process";
const RANGES: &str = "values out of range are looked for, and make the loss NaN; the reference computes with them";
const LIMITS: &str = "infinite numbers, and zeros where something is divided, have their limits; the reference has NaN";
const NANS: &str =
    "class indices are looked for, and it is made of operations, which a NaN gets through; PyTorch's kernel drops it";
const MASKED: &str =
    "class indices are looked for, and a masked class without a weight has the loss 0; the reference has NaN";
const NO_SHARES: &str = "targets outside [0, 1], which any number may be, have the formula that loses no digits there";
const RACE: &str = "the gradient is made of operations; PyTorch's kernel loses some to a race";

/// The losses that have more kernels than their references, in single precision at most so many, and why.
const MORE: &[(&str, usize, &str)] = &[
    ("BceLoss", 16, RANGES),
    ("KlDivLoss", 13, LIMITS),
    ("CrossEntropyLoss", 12, INDICES),
    ("CrossEntropyLoss, smoothing and weight", 35, MASKED),
    ("CrossEntropyLoss, probabilities", 13, LIMITS),
    ("NllLoss", 9, INDICES),
    ("MultiMarginLoss", 21, NANS),
    ("MultiLabelMarginLoss", 31, RACE),
    ("CtcLoss", 14, RANGES),
    ("MultiLabelSoftMarginLoss", 28, NO_SHARES),
    ("SoftBceWithLogitsLoss", 25, RANGES),
    ("LinearCrossEntropy", 15, INDICES),
    ("LinearCrossEntropy, PyTorch's own", 15, INDICES),
];

/// All threads are counted, so that only one test may compute at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn counter() -> Counter {
    let dir = tempfile::tempdir().unwrap();
    // The library stays in memory.
    Counter::new(dir.path()).unwrap()
}

#[test]
fn losses_have_no_more_kernels_than_their_references() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    tch::set_num_threads(1);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/kernels.json");
    let references: Counts = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    let counter = counter();
    let (mut wrong, mut seen) = (Vec::new(), vec![false; MORE.len()]);
    let [single, half] = DTYPES.map(|dtype| (dtype.name(), smallest(None, dtype)));
    for (workload, in_half) in single.1.iter().zip(&half.1) {
        let name = workload.name;
        let reference = references[single.0].get(name).with_context(|| format!("kernels.json has no {name}"))?;
        let ours = counter.of_workload(workload).with_context(|| workload.id())?;
        let known = MORE.iter().position(|(known, ..)| *known == name);
        if let Some(known) = known {
            seen[known] = ours.count() > reference.count();
        }
        let most = known.map_or(reference.count(), |known| MORE[known].1);
        if ours.count() > most {
            wrong.push(format!("{name}: {ours:?}\n  more than {most}, not {reference:?}"));
        }
        // A loss of half precision is computed in single precision, which the reference does not do everywhere. Nothing
        // but conversions may come with that.
        if !references[half.0].contains_key(name) {
            continue;
        }
        let in_half = counter.of_workload(in_half).with_context(|| workload.id())?;
        let conversions = in_half.copies().saturating_sub(ours.copies());
        if in_half.count() - conversions > ours.count() {
            wrong.push(format!("{name} in half precision: {in_half:?}\n  not {ours:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} have more kernels than their references:\n{}", wrong.len(), wrong.join("\n"));
    let unseen: Vec<&str> = MORE.iter().zip(seen).filter(|(_, seen)| !seen).map(|((name, ..), _)| *name).collect();
    assert!(unseen.is_empty(), "these have no more kernels than their references any longer: {unseen:?}");
    Ok(())
}

#[test]
fn views_and_memory_are_no_kernels_and_compositions_are_their_parts() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let counter = counter();
    let count = |call: &dyn Fn() -> Tensor| counter.count(|| Ok(call())).map(|(operations, _)| operations.count());
    let x = Tensor::ones([3, 4], (Kind::Float, Device::Cpu));
    let mask = x.gt(0.0);
    assert_eq!(count(&|| x.view([4, 3]).transpose(0, 1).unsqueeze(0).expand([2, 3, 4], false))?, 0);
    assert_eq!(count(&|| x.empty_like())?, 0);
    assert_eq!(count(&|| x.to_kind(Kind::Float).contiguous())?, 0, "they are what they were");
    assert_eq!(count(&|| x.to_kind(Kind::Double))?, 1);
    assert_eq!(count(&|| x.transpose(0, 1).contiguous())?, 1, "a copy");
    assert_eq!(count(&|| x.mse_loss(&x, tch::Reduction::Mean))?, 1);
    assert_eq!(count(&|| x.square())?, 1, "a power");
    assert_eq!(count(&|| x.masked_fill(&mask, 1.0))?, 2, "a copy that is filled");
    assert_eq!(count(&|| x.sum(None))?, 1);
    Ok(())
}
