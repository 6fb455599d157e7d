//! The golden files: results of PyTorch, stored so that these tests need no Python.
#![allow(dead_code, reason = "no test needs all of it")]

use std::path::{Path, PathBuf};

use parity::case::{Case, Tensors, read_cases, read_tensors};
use parity::compare::{Sides, Verdict, compare_case};
use parity::eval::{Runner, evaluate};
use parity::results::Results;
use tch::Device;
use tch_losses::Backend;

pub struct Golden {
    pub cases: Vec<Case>,
    pub tensors: Tensors,
    pub expected: Results,
    /// Those of half precision in double precision.
    pub truth: Results,
}

impl Golden {
    pub fn read() -> Golden {
        tch::set_num_threads(1);
        // A bundle has them beside the tests.
        let beside = std::env::var_os("PARITY_GOLDEN").map(PathBuf::from);
        let dir = beside.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("golden"));
        Golden {
            cases: read_cases(&dir.join("cases.json")).unwrap(),
            tensors: read_tensors(&dir.join("tensors.safetensors")).unwrap(),
            expected: Results::read_dir(&dir).unwrap(),
            truth: Results::read_dir(&dir.join("truth")).unwrap(),
        }
    }

    pub fn evaluate(&self, device: Device, runner: &Runner) -> Results {
        evaluate(&self.cases, &self.tensors, device, runner, || ()).unwrap()
    }

    /// The verdicts on a runner.
    pub fn verdicts(&self, runner: &Runner) -> Vec<(&Case, Verdict)> {
        self.compare(&self.evaluate(Device::Cpu, runner))
    }

    /// The verdicts on results. Another processor may sum in another order, so the bits need not be equal.
    pub fn compare(&self, actual: &Results) -> Vec<(&Case, Verdict)> {
        let compare = |case: &Case| {
            let truth = self.truth.cases.contains_key(&case.id).then_some(&self.truth);
            let (expected, actual) = (&self.expected, actual);
            compare_case(case, Sides { expected, actual, truth, bitwise: false, backend: Backend::Auto })
        };
        self.cases.iter().map(|case| (case, compare(case))).collect()
    }
}
