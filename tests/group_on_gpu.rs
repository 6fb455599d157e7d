//! Groups whose tensors are on a GPU: they are sent by NCCL with the feature `nccl`, else through the memory of the host.
//! NCCL wants a GPU for each rank, so that one GPU is a world of one.

#![cfg(target_os = "linux")]

use std::net::TcpListener;
use std::time::Duration;

use tch::{Cuda, Device, Kind, Tensor};
use tch_losses::distributed::{Group, Reduce, VocabParallelCrossEntropy};
use tch_losses::{CrossEntropyLoss, Loss};

fn world_of_one() -> Group {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    Group::new(&format!("127.0.0.1:{port}"), 0, 1, Duration::from_secs(60)).unwrap()
}

/// The devices of this machine. Without a GPU what follows is of the CPU alone.
fn devices() -> Vec<Device> {
    if !Cuda::is_available() {
        println!("the GPU is left out: there is none");
        return vec![Device::Cpu];
    }
    vec![Device::Cpu, Device::Cuda(0)]
}

#[test]
fn collectives_return_what_they_were_given_on_its_device() {
    let group = world_of_one();
    for device in devices() {
        for kind in [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16, Kind::Int64, Kind::Int16, Kind::Uint8] {
            let tensor = Tensor::from_slice(&[3_i64, 1, 4, 1, 5, 9]).view([2, 3]).to_device(device).to_kind(kind);
            let results = [
                group.f_all_reduce(&tensor, Reduce::Sum).unwrap(),
                group.f_all_reduce(&tensor.tr(), Reduce::Max).unwrap().tr(),
                group.f_all_gather(&tensor).unwrap(),
                group.f_broadcast(&tensor, 0).unwrap(),
            ];
            for result in results {
                assert_eq!((result.device(), result.kind()), (device, kind));
                assert!(result.equal(&tensor), "{device:?} {kind:?}");
            }
        }
        let empty = Tensor::zeros([0, 3], (Kind::Float, device));
        assert_eq!(group.f_all_gather(&empty).unwrap().size(), [0, 3]);
    }
}

#[test]
fn losses_and_gradients_are_those_without_a_group() {
    let group = world_of_one();
    for device in devices() {
        tch::manual_seed(1);
        let start = Tensor::randn([8, 5], (Kind::Double, device));
        let target = Tensor::from_slice(&[0_i64, -100, 2, 1, 4, 4, -100, 3]).to_device(device);
        let losses: [&dyn Fn(&Tensor) -> Tensor; 3] = [
            &|logits| CrossEntropyLoss::new().forward(logits, &target),
            &|logits| {
                let parts = CrossEntropyLoss::new().f_parts(logits, &target).unwrap();
                parts.f_over_ranks(&group).unwrap().f_value().unwrap()
            },
            &|logits| VocabParallelCrossEntropy::new().f_forward(logits, &target, &group).unwrap(),
        ];
        let results = losses.map(|loss| {
            let logits = start.copy().set_requires_grad(true);
            let value = loss(&logits);
            value.f_backward().unwrap();
            [value.detach(), logits.grad()]
        });
        for other in &results[1..] {
            for (expected, actual) in results[0].iter().zip(other) {
                assert_eq!(actual.device(), device);
                assert!(actual.allclose(expected, 1e-12, 1e-12, false), "{device:?}: {actual} {expected}");
            }
        }
    }
}
