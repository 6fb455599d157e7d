//! That training does not leak, as growth of the process's resident memory over thousands of steps.
//!
//! There is one test, because resident memory is of the process and not of a test.
#![cfg(target_os = "linux")]

mod common;

use tch::{Kind, Tensor};
use tch_losses::*;

use common::random::{randint, randn};
use common::status;

#[test]
fn thousands_of_steps_do_not_grow_the_process() {
    let (x, y) = (randn([64, 32]).set_requires_grad(true), randn([64, 32]));
    let classes = randint(32, [64]);
    let step = || {
        for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
            let losses: [(Box<dyn Loss>, &Tensor); 2] = [
                (Box::new(MseLoss::new().reduction(reduction)), &y),
                (Box::new(CrossEntropyLoss::new().reduction(reduction)), &classes),
            ];
            for (loss, target) in losses {
                let loss = with_backend(Backend::Auto, || loss.forward(&x, target)).sum(Kind::Double);
                let _ = Tensor::run_backward(&[loss], &[&x], false, false);
            }
        }
        // One of several steps behind a node, whose graph is dropped without a backward pass, too.
        for backward in [true, false] {
            let loss = with_backend(Backend::Auto, || SupConLoss::new().forward(&x, &classes));
            if backward {
                let _ = Tensor::run_backward(&[loss], &[&x], false, false);
            }
        }
    };
    (0..1000).for_each(|_| step());
    let before = status("VmRSS:");
    (0..10_000).for_each(|_| step());
    let growth = status("VmRSS:") - before;
    // A leak of one gradient a step would be 160 MB.
    assert!(growth < 3.2e7, "{growth} bytes");
}
