//! The golden files: results of PyTorch, stored so that these tests need no Python.

use std::path::Path;

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
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
        Golden {
            cases: read_cases(&dir.join("cases.json")).unwrap(),
            tensors: read_tensors(&dir.join("tensors.safetensors")).unwrap(),
            expected: Results::read_dir(&dir).unwrap(),
            truth: Results::read_dir(&dir.join("truth")).unwrap(),
        }
    }

    pub fn evaluate(&self, runner: &Runner) -> Results {
        evaluate(&self.cases, &self.tensors, Device::Cpu, runner, || ()).unwrap()
    }

    /// The verdicts on a runner. Another processor may sum in another order, so the bits need not be equal.
    pub fn verdicts(&self, runner: &Runner) -> Vec<(&Case, Verdict)> {
        let actual = self.evaluate(runner);
        let compare = |case: &Case| {
            let truth = self.truth.cases.contains_key(&case.id).then_some(&self.truth);
            let (expected, actual) = (&self.expected, &actual);
            compare_case(case, Sides { expected, actual, truth, bitwise: false, backend: Backend::Auto })
        };
        self.cases.iter().map(|case| (case, compare(case))).collect()
    }
}
