//! Losses of pairs of boxes.

use tch::{Kind, Tensor};

use super::compare::{KINDS, REDUCTIONS, assert_as_composite, assert_sources_compile, unaligned};
use super::{rand, randn};
use crate::{CompleteBoxIouLoss, DistanceBoxIouLoss, GeneralizedBoxIouLoss, Loss, Reduction};

/// Boxes that have an area, most of which meet those beside them.
fn boxes(shape: &[i64], kind: Kind) -> Tensor {
    let corner = randn([shape, &[2]].concat());
    let size = rand([shape, &[2]].concat()) * 2.0 + 0.25;
    Tensor::cat(&[&corner, &(&corner + size)], -1).to_kind(kind)
}

fn losses(reduction: Reduction) -> [(&'static str, Box<dyn Loss>); 3] {
    [
        ("giou", Box::new(GeneralizedBoxIouLoss::new().reduction(reduction))),
        ("diou", Box::new(DistanceBoxIouLoss::new().reduction(reduction))),
        ("ciou", Box::new(CompleteBoxIouLoss::new().reduction(reduction))),
    ]
}

#[test]
fn losses_of_boxes_are_those_of_tensor_operations() {
    for reduction in REDUCTIONS {
        for (name, loss) in losses(reduction) {
            for shape in [&[][..], &[1], &[3], &[2, 5], &[1031]] {
                let tensors = [boxes(shape, Kind::Double), boxes(shape, Kind::Double)];
                let compute = |tensors: &[Tensor]| loss.f_forward(&tensors[0], &tensors[1]).unwrap();
                let name = format!("{name} {reduction:?}");
                assert_as_composite(&name, &tensors, &[0], &compute);
                assert_as_composite(&name, &tensors, &[0, 1], &compute);
                assert_as_composite(&name, &tensors, &[1], &compute);
            }
        }
    }
    assert_sources_compile();
}

#[test]
fn boxes_are_taken_in_every_kind_and_place() {
    for kind in KINDS {
        for reduction in REDUCTIONS {
            let [_, (name, loss), _] = losses(reduction);
            let tensors = [boxes(&[301], kind), boxes(&[301], kind)];
            let compute = |tensors: &[Tensor]| loss.f_forward(&tensors[0], &tensors[1]).unwrap();
            assert_as_composite(name, &tensors, &[0, 1], &compute);
            assert_as_composite(name, &tensors.each_ref().map(unaligned), &[0, 1], &compute);
        }
    }
    let columns = boxes(&[301], Kind::Double).transpose(0, 1).contiguous().transpose(0, 1);
    let [(name, loss), ..] = losses(Reduction::Mean);
    let compute = |tensors: &[Tensor]| loss.f_forward(&tensors[0], &tensors[1]).unwrap();
    assert_as_composite(name, &[columns, boxes(&[301], Kind::Double)], &[0, 1], &compute);
    // More than the blocks have threads.
    let many =
        [boxes(&[100_000], Kind::Float), boxes(&[100_000], Kind::Float)].map(|boxes| boxes.to_kind(Kind::Double));
    assert_as_composite(name, &many, &[0], &compute);
    assert_sources_compile();
}
